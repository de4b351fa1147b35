"""UniRec: learning from uniform sequences for irregular ones, and from frequent items for rare ones, with time.

Yang Liu, Yitong Wang and Chenyue Feng, "UniRec: A Dual Enhancement of Uniformity and Frequency in Sequential
Recommendations", CIKM 2024, https://arxiv.org/abs/2406.18470; code: Linxi000/UniRec, on the network of MOJITO
(Tran et al., SIGIR 2023).

The text of the paper could not be had; the network follows the code, whose defects are listed, with what stands here
instead, in the README. The chief ones: its tables count test events, its "uniform" users are the least uniform ones,
its "frequent" items are those of regular gaps, noise stays on when it ranks, and curriculum weights become negative.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightrec.configurable import AtLeast, Between
from lightrec.data.batch import Batch
from lightrec.data.corpus import Corpus, TrainingLog
from lightrec.errors import InputError
from lightrec.interfaces import History, Losses, Objective, SequenceEncoder, Term
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.nn.dropout import Dropout
from lightrec.nn.positions import LearnedPositions
from lightrec.nn.sequence import real_positions, valid_mask
from lightrec.objectives.next_item import NextItemStates, mean_over_targets
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer
from lightrec_unirec.statistics import ItemFacts, count_items, spread_limit
from lightrec_unirec.time import CalendarFeatures, IntervalFeatures, gap_spread, quarter_sine

View = Literal["calendar", "interval"]
VIEWS: tuple[View, ...] = ("calendar", "interval")


class MixedAttention(nn.Module):
    """Two maps of scores, of items and of times, mixed pair by pair into two heads.

    Args:
        hidden_size: D; inputs have 2 D numbers, the item half first.
        dropout: of attention weights.
        noise: standard deviation of the learned noise on scores at first; training only.
    """

    def __init__(self, hidden_size: int, dropout: float, noise: float = 0.1):
        super().__init__()
        self.hidden_size = hidden_size
        self.item_query = nn.Linear(2 * hidden_size, hidden_size)
        self.item_key = nn.Linear(2 * hidden_size, hidden_size)
        self.time_query = nn.Linear(hidden_size, hidden_size)
        self.time_key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.noise = nn.Parameter(torch.full((2,), noise))
        self.mix = nn.Linear(2, 2)
        self.dropout = Dropout(dropout)
        with torch.no_grad():  # each head begins with its own map, and the ReLU lets most scores through
            self.mix.weight.copy_(torch.eye(2))
            self.mix.bias.fill_(1.0)

    def forward(self, query: Tensor, x: Tensor, context: Tensor) -> Tensor:
        """query and x [B, L, 2 D], context [B, L, D] -> [B, L, 2 D]; causal."""
        scores = (
            torch.stack(
                [
                    self.item_query(query) @ self.item_key(x).transpose(1, 2),
                    self.time_query(context) @ self.time_key(context).transpose(1, 2),
                ],
                -1,
            )
            / self.hidden_size**0.5
        )
        if self.training:
            scores = scores + self.noise * torch.randn_like(scores)
        scores = torch.relu(self.mix(scores)).movedim(-1, 1)  # [B, 2, L, L]
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = self.dropout(scores.masked_fill(future, -torch.inf).softmax(-1))
        values = self.value(x).unflatten(-1, (2, self.hidden_size)).transpose(1, 2)
        return (weights @ values).transpose(1, 2).flatten(-2)


class UniRecBlock(nn.Module):
    """Attention and a feed-forward network on 2 D numbers; residuals carry the normalised query, as in SASRec."""

    def __init__(self, hidden_size: int, dropout: float):
        super().__init__()
        wide = 2 * hidden_size
        self.query_norm, self.inner_norm = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.attention = MixedAttention(hidden_size, dropout)
        self.inner = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), Dropout(dropout), nn.Linear(wide, wide))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = self.query_norm(x)
        x = self.inner_norm(query + self.attention(query, x, context))
        return x + self.dropout(self.inner(x))


class UniRecEncoder(SequenceEncoder):
    """Attention over items and times; one set of weights for both views of time.

    Args:
        max_length: longest history that is read; rows of the position table.
        hidden_size: D.
        num_layers: blocks.
        dropout: of the input, attention weights and sub-layers.
        use_times: times are required, for training and for ranking; false lets positions stand in for them.
    """

    limits = {"max_length": AtLeast(1), "num_layers": AtLeast(0)}
    causal = True

    def __init__(
        self,
        max_length: int = 50,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.3,
        use_times: bool = True,
    ):
        super().__init__()
        self.hidden_size, self.use_times = hidden_size, use_times
        self.positions = LearnedPositions(max_length, hidden_size)
        nn.init.normal_(self.positions.weight, std=0.01)
        self.calendar = CalendarFeatures(hidden_size)
        self.interval = IntervalFeatures(hidden_size)
        self.blocks = nn.ModuleList(UniRecBlock(hidden_size, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(2 * hidden_size)
        self.dropout = Dropout(dropout)

    def enter(self, history: History) -> History:
        """Adds positions.

        Raises:
            InputError: times are needed and the history has none.
        """
        if self.use_times and history.timestamps is None and len(history.lengths):
            raise InputError(
                "UniRec needs times: set --data.with_times true. For a log without them, set --model.use_times false "
                "(positions then stand in for time), or choose a model that needs none: any of lightrec itself."
            )
        x = history.x + self.positions(history.lengths, history.x.shape[1])
        return history._replace(x=self.dropout(x))

    def view(self, history: History, view: View) -> Tensor:
        """The state after each event, [B, L, 2 D], of an entered history as seen through one view of time.

        The first D numbers score items. The other half meets the time of the candidate in the original, which is one
        number for all candidates of a query and changes no ranking and no softmax.
        """
        x, lengths = history.x, history.lengths
        context = self.positions(lengths, x.shape[1])
        if history.timestamps is not None:
            features = self.calendar if view == "calendar" else self.interval
            context = context + self.hidden_size**0.5 * features(history.timestamps, lengths)
        context = self.dropout(context)
        x = torch.cat([x, context], -1)
        for block in self.blocks:
            x = block(x, context)
            context = x[..., self.hidden_size :]
        return self.norm(x)

    def mix(self, history: History) -> Tensor:
        """The sum of both views: scores of the two add up. Without times, positions are all there is of time."""
        return sum(self.view(history, v)[..., : self.hidden_size] for v in VIEWS)


class DualEnhancement(Objective):
    """Next items in both views, plus three terms that teach hard cases by easy ones; all weights 0 is the base model.

    What the terms need to know of items and of gaps is counted from the training part by `connect`. Outside of a run it
    is counted in the first batch.

    Args:
        sequence_weight: of |W f(S') - f(S)|^2 over uniform histories S and their irregular parts S'.
        item_weight: of |A[e ; neighbours] - e|^2 over frequent items: teaches A to predict a vector from neighbours.
        tail_weight: of the same over the other items, with A held still: moves their vectors.
        uniform_share: share of users whose gaps are the most even, within the training part.
        stop_gradient: keep f(S) fixed in the first term, so that irregular parts learn from whole ones only.
    """

    limits = {
        "sequence_weight": AtLeast(0),
        "item_weight": AtLeast(0),
        "tail_weight": AtLeast(0),
        "uniform_share": Between(0, 1),
    }

    def __init__(
        self,
        sequence_weight: float = 0.2,
        item_weight: float = 0.3,
        tail_weight: float = 0.1,
        uniform_share: float = 0.4,
        stop_gradient: bool = True,
    ):
        super().__init__()
        self.sequence_weight, self.item_weight, self.tail_weight = sequence_weight, item_weight, tail_weight
        self.uniform_share, self.stop_gradient = uniform_share, stop_gradient
        # Not buffers: a checkpoint needs none of it, and processes need not send it to each other at every step.
        self.facts: ItemFacts | None = None
        self.spread_limit = float("inf")

    @property
    def has_terms(self) -> bool:
        """Whether there is anything beside the base model."""
        return bool(self.sequence_weight or self.item_weight or self.tail_weight)

    def connect(self, corpus: Corpus) -> None:
        """Counts facts of the items and the spread of gaps in the training part."""
        if self.has_terms:
            self.count(corpus.train, corpus.num_items)

    def count(self, train: TrainingLog, num_items: int) -> None:
        """Takes what is counted in some histories."""
        self.facts = count_items(train, num_items)
        self.spread_limit = spread_limit(train, self.uniform_share)

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        encoder, items = recommender.encoder, recommender.items
        states = states or NextItemStates(recommender, batch)
        inputs = states.inputs
        history = encoder.enter(recommender.history(inputs))
        rows = real_positions(inputs.lengths, history.x.shape[1])
        targets = states.next_ids.flatten().index_select(0, rows)
        total, seen = 0.0, []
        for view in VIEWS:
            seen.append(encoder.view(history, view))
            hidden = seen[-1][..., : encoder.hidden_size].flatten(0, 1).index_select(0, rows)
            total = total + items.cross_entropy(hidden, targets)
        losses = {"next_item": Term(mean_over_targets(total, len(targets)))}
        if not self.has_terms:
            return losses
        if self.facts is None:
            self._count_in(inputs, items.num_items)
        self.facts = self.facts.to(inputs.item_ids.device)
        progress = recommender.progress
        if self.sequence_weight and inputs.timestamps is not None:
            whole = [history.last(state) for state in seen]
            losses["sequence"] = Term(self.sequence_term(recommender, inputs, whole, progress), self.sequence_weight)
        if self.item_weight or self.tail_weight:
            head, tail = self.item_terms(recommender, inputs)
            losses |= {"items": Term(head, self.item_weight), "tail": Term(tail, self.tail_weight * progress)}
        return losses

    def is_uniform(self, batch: Batch) -> Tensor:
        """[B] bool: gaps as even as those of the most even share of training users, and at least two of them."""
        return (gap_spread(batch.timestamps, batch.lengths) <= self.spread_limit) & (batch.lengths >= 3)

    def irregular_part(self, batch: Batch) -> Batch:
        """Keeps the two most recent events and older ones of irregular items, each with its own time."""
        width = batch.item_ids.shape[1]
        place = torch.arange(width, device=batch.item_ids.device)
        keep = self.facts.irregular.to(batch.item_ids.device)[batch.item_ids]
        keep = (keep | (place >= batch.lengths[:, None] - 2)) & valid_mask(batch.lengths, width)
        order = (~keep).long().argsort(dim=1, stable=True)
        lengths = keep.sum(1)
        left = valid_mask(lengths, width)
        return batch.replace(
            item_ids=batch.item_ids.gather(1, order) * left,
            timestamps=batch.timestamps.gather(1, order) * left,
            lengths=lengths,
        )

    def sequence_term(self, recommender, batch: Batch, whole: list[Tensor], progress: float) -> Tensor:
        """Distance of irregular parts from the whole histories [B, 2 D] in each view, weighed by a curriculum."""
        encoder = recommender.encoder
        chosen = self.is_uniform(batch).nonzero().squeeze(1)
        if not len(chosen):
            return whole[0].sum() * 0.0
        part = self.irregular_part(
            batch.replace(
                item_ids=batch.item_ids[chosen],
                lengths=batch.lengths[chosen],
                user_ids=batch.user_ids[chosen],
                timestamps=batch.timestamps[chosen],
            )
        )
        history = encoder.enter(recommender.history(part))
        ease = part.lengths / batch.lengths[chosen]
        weight = quarter_sine(progress, ease)
        total = 0.0
        for view, state in zip(VIEWS, whole, strict=True):
            guess = recommender.from_part(history.last(encoder.view(history, view)))
            goal = state[chosen].detach() if self.stop_gradient else state[chosen]
            total = total + (weight * (guess - goal).square().mean(-1)).sum()
        return total / (len(VIEWS) * len(batch))

    def item_terms(self, recommender, batch: Batch) -> tuple[Tensor, Tensor]:
        """Distance of frequent items, and of the others, from what their neighbours tell."""
        ids = batch.item_ids[valid_mask(batch.lengths, batch.item_ids.shape[1])].unique()
        facts = self.facts.to(ids.device)
        frequent = facts.frequent[ids]
        vectors = recommender.items.embedding(ids)
        near = facts.neighbours[ids]
        around = recommender.items.embedding(near)
        scores = (around @ vectors[..., None]).squeeze(-1).masked_fill(near == 0, torch.finfo(vectors.dtype).min)
        weights = scores.softmax(-1) * (near != 0)
        both = torch.cat([vectors, (weights[..., None] * around).sum(1)], -1)
        has = (near != 0).any(1)
        head, tail = frequent & has, ~frequent & has
        still = nn.functional.linear(
            both, recommender.from_neighbours.weight.detach(), recommender.from_neighbours.bias.detach()
        )
        taught = (recommender.from_neighbours(both) - vectors).square().mean(-1)
        moved = (still.detach() - vectors).square().mean(-1)
        count = max(1, len(ids))
        return taught[head].sum() / count, moved[tail].sum() / count

    def _count_in(self, batch: Batch, num_items: int) -> None:
        lengths, real = batch.lengths.cpu().numpy(), valid_mask(batch.lengths, batch.item_ids.shape[1])
        times = None if batch.timestamps is None else batch.timestamps[real].cpu().numpy()
        end = lengths.cumsum()
        self.count(TrainingLog(batch.item_ids[real].cpu().numpy(), times, end - lengths, end), num_items)


class UniRec(EncoderRecommender):
    """Uniformity of sequences, frequency of items, and time in several dimensions.

    Further options are those of `UniRecEncoder`.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
        objective: what is trained; None is the dual enhancement.
        optimizer: how it is trained.
    """

    network = UniRecEncoder

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        head_dtype: HeadDtype | None = None,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, scale=hidden_size**0.5, head_dtype=head_dtype),
            encoder=UniRecEncoder(hidden_size=hidden_size, **network),
            objective=objective or DualEnhancement(),
            optimizer=optimizer,
        )
        self.from_part = nn.Linear(2 * hidden_size, 2 * hidden_size, bias=False)  # W
        self.from_neighbours = nn.Linear(2 * hidden_size, hidden_size)  # A
        nn.init.eye_(self.from_part.weight)
