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
from lightrec.nn.item_embedding import ItemEmbedding
from torch import Tensor, nn

from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import Objective, SequenceEncoder
from lightrec.nn.dropout import Dropout
from lightrec.nn.sequence import last_state, positions_from_end, real_positions, valid_mask
from lightrec.objectives.next_item import HeadDtype, catalog_cross_entropy, mean_over_targets, next_item_pairs
from lightrec.recommender import Decay, EncoderRecommender
from lightrec_unirec.statistics import ItemFacts, count_items
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
        max_length: longest history; rows of the position table.
        hidden_size: D.
        num_layers: blocks.
        dropout: of the input, attention weights and sub-layers.
    """

    causal = True

    def __init__(self, max_length: int, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.3):
        super().__init__()
        self.hidden_size, self.max_length = hidden_size, max_length
        self.positions = nn.Embedding(max_length, hidden_size)
        nn.init.normal_(self.positions.weight, std=0.01)
        self.calendar = CalendarFeatures(hidden_size)
        self.interval = IntervalFeatures(hidden_size)
        self.blocks = nn.ModuleList(UniRecBlock(hidden_size, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(2 * hidden_size)
        self.dropout = Dropout(dropout)

    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        if x.shape[1] > self.max_length:
            raise ValueError(f"the batch has {x.shape[1]} items a row, more than max_length ({self.max_length}).")
        return self.dropout(x + self._positions(x, lengths))

    def view(self, x: Tensor, lengths: Tensor, timestamps: Tensor | None, view: View) -> Tensor:
        """The state after each event, [B, L, 2 D], of prepared x [B, L, D] as seen through one view of time.

        The first D numbers score items. The other half meets the time of the candidate in the original, which is one
        number for all candidates of a query and changes no ranking and no softmax.
        """
        context = self._positions(x, lengths)
        if timestamps is not None:
            features = self.calendar if view == "calendar" else self.interval
            context = context + self.hidden_size**0.5 * features(timestamps, lengths)
        context = self.dropout(context)
        x = torch.cat([x, context], -1)
        for block in self.blocks:
            x = block(x, context)
            context = x[..., self.hidden_size :]
        return self.norm(x)

    def mix(self, x: Tensor, lengths: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """The sum of both views: scores of the two add up. Without timestamps, positions are all there is of time."""
        return sum(self.view(x, lengths, timestamps, v)[..., : self.hidden_size] for v in VIEWS)

    def _positions(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.positions(positions_from_end(lengths, x.shape[1]))


class DualEnhancement(Objective):
    """Next items in both views, plus three terms that teach hard cases by easy ones; all weights 0 is the base model.

    Args:
        sequence_weight: of |W f(S') - f(S)|^2 over uniform histories S and their irregular parts S'.
        item_weight: of |A[e ; neighbours] - e|^2 over frequent items: teaches A to predict a vector from neighbours.
        tail_weight: of the same over the other items, with A held still: moves their vectors.
        uniform_share: share of users whose gaps are the most even, within the training part.
        stop_gradient: keep f(S) fixed in the first term, so that irregular parts learn from whole ones only.
        use_times: times are required; false lets positions stand in for them.
        head_dtype: dtype of the matrix products with the catalog; None is float32, or the dtype of autocast.

    Raises:
        ValueError: a negative weight or a share outside [0, 1].
    """

    def __init__(
        self,
        sequence_weight: float = 0.2,
        item_weight: float = 0.3,
        tail_weight: float = 0.1,
        uniform_share: float = 0.4,
        stop_gradient: bool = True,
        use_times: bool = True,
        head_dtype: HeadDtype | None = None,
    ):
        super().__init__()
        for name, value in (("sequence", sequence_weight), ("item", item_weight), ("tail", tail_weight)):
            if value < 0:
                raise ValueError(f"{name}_weight ({value}) must not be negative.")
        if not 0 <= uniform_share <= 1:
            raise ValueError(f"uniform_share ({uniform_share}) must be between 0 and 1.")
        self.sequence_weight, self.item_weight, self.tail_weight = sequence_weight, item_weight, tail_weight
        self.uniform_share, self.stop_gradient, self.use_times = uniform_share, stop_gradient, use_times
        self.head_dtype = head_dtype
        self._facts: ItemFacts | None = None
        self._limit: float | None = None

    def connect(self, facts: ItemFacts, spread_limit: float) -> None:
        """Takes what is counted from the training part; asked of the data module at the first step otherwise."""
        self._facts, self._limit = facts, spread_limit

    def forward(self, recommender, batch: Batch) -> Tensor:
        recommender.check_times(batch)
        encoder, items = recommender.encoder, recommender.items
        inputs, next_ids = next_item_pairs(batch)
        x = encoder.prepare(recommender.vectors(inputs), inputs.lengths)
        rows = real_positions(inputs.lengths, x.shape[1])
        targets = next_ids.flatten().index_select(0, rows)
        dtype = None if self.head_dtype is None else getattr(torch, self.head_dtype)
        total, states = 0.0, []
        for view in VIEWS:
            states.append(encoder.view(x, inputs.lengths, inputs.timestamps, view))
            hidden = states[-1][..., : encoder.hidden_size].flatten(0, 1).index_select(0, rows)
            total = total + catalog_cross_entropy(items, hidden, targets, dtype)
        loss = mean_over_targets(total, len(targets))
        if not (self.sequence_weight or self.item_weight or self.tail_weight):
            return loss
        self._count(recommender, inputs)
        progress = _progress(recommender)
        if self.sequence_weight and inputs.timestamps is not None:
            whole = [last_state(s, inputs.lengths) for s in states]
            loss = loss + self.sequence_weight * self._sequence_term(recommender, inputs, whole, progress)
        if self.item_weight or self.tail_weight:
            head, tail = self._item_terms(recommender, inputs)
            loss = loss + self.item_weight * head + self.tail_weight * progress * tail
        return loss

    def is_uniform(self, batch: Batch) -> Tensor:
        """[B] bool: gaps as even as those of the most even share of training users, and at least two of them."""
        return (gap_spread(batch.timestamps, batch.lengths) <= self._limit) & (batch.lengths >= 3)

    def irregular_part(self, batch: Batch) -> Batch:
        """Keeps the two most recent events and older ones of irregular items, each with its own time."""
        width = batch.item_ids.shape[1]
        place = torch.arange(width, device=batch.item_ids.device)
        keep = self._facts.irregular.to(batch.item_ids.device)[batch.item_ids]
        keep = (keep | (place >= batch.lengths[:, None] - 2)) & valid_mask(batch.lengths, width)
        order = (~keep).long().argsort(dim=1, stable=True)
        lengths = keep.sum(1)
        left = valid_mask(lengths, width)
        return batch.replace(
            item_ids=batch.item_ids.gather(1, order) * left,
            timestamps=batch.timestamps.gather(1, order) * left,
            lengths=lengths,
        )

    def _sequence_term(self, recommender, batch: Batch, whole: list[Tensor], progress: float) -> Tensor:
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
        x = encoder.prepare(recommender.vectors(part), part.lengths)
        ease = part.lengths / batch.lengths[chosen]
        weight = quarter_sine(progress, ease)
        total = 0.0
        for view, state in zip(VIEWS, whole, strict=True):
            guess = recommender.from_part(
                last_state(encoder.view(x, part.lengths, part.timestamps, view), part.lengths)
            )
            goal = state[chosen].detach() if self.stop_gradient else state[chosen]
            total = total + (weight * (guess - goal).square().mean(-1)).sum()
        return total / (len(VIEWS) * len(batch))

    def _item_terms(self, recommender, batch: Batch) -> tuple[Tensor, Tensor]:
        ids = batch.item_ids[valid_mask(batch.lengths, batch.item_ids.shape[1])].unique()
        frequent = self._facts.frequent.to(ids.device)[ids]
        vectors = recommender.items.embedding(ids)
        near = self._facts.neighbours.to(ids.device)[ids]
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

    def _count(self, recommender, batch: Batch) -> None:
        if self._facts is not None:
            return
        data = getattr(getattr(recommender, "_trainer", None), "datamodule", None)
        num_items = recommender.items.num_items
        if hasattr(data, "prepared") and hasattr(data, "split"):
            log, train = data.prepared, data.split.train
            facts = count_items(log.items, log.times, train.begin, train.end, num_items)
            limit = _spread_limit(log.times, train.begin, train.end, self.uniform_share)
        else:  # outside a run, the batch is all there is to count
            length = batch.lengths.cpu().numpy()
            stop = length.cumsum()
            real = valid_mask(batch.lengths, batch.item_ids.shape[1])
            times = None if batch.timestamps is None else batch.timestamps[real].cpu().numpy()
            begin = stop - length
            facts = count_items(batch.item_ids[real].cpu().numpy(), times, begin, stop, num_items)
            limit = _spread_limit(times, begin, stop, self.uniform_share)
        self.connect(facts, limit)


def _spread_limit(times, begin, end, share: float) -> float:
    """The spread of gaps that `share` of the histories with two gaps or more stay below."""
    if times is None:
        return float("inf")
    long = end - begin >= 3
    found = []
    for b, e in zip(begin[long], end[long], strict=True):
        row = torch.as_tensor(times[b:e].copy())[None]
        found.append(gap_spread(row, torch.tensor([row.shape[1]])))
    return torch.cat(found).quantile(share).item() if found else float("inf")


def _progress(recommender) -> float:
    """Share of the epochs that are done, 1 outside a run of known length."""
    trainer = getattr(recommender, "_trainer", None)
    if trainer is None or not trainer.max_epochs or trainer.max_epochs < 0:
        return 1.0
    return min(1.0, trainer.current_epoch / trainer.max_epochs)


class UniRec(EncoderRecommender):
    """Uniformity of sequences, frequency of items, and time in several dimensions.

    Args:
        num_items: size of the catalog.
        max_length: longest history that is read.
        hidden_size: D.
        num_layers: blocks.
        dropout: of the input, attention weights and sub-layers.
        objective: what is trained; None is the dual enhancement.
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay on matrices.
        warmup_steps: steps of linear warm-up.
        decay: how the learning rate falls until the last step.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int = 50,
        hidden_size: int = 64,
        num_layers: int = 2,
        dropout: float = 0.3,
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, scale=hidden_size**0.5),
            encoder=UniRecEncoder(max_length, hidden_size, num_layers, dropout),
            objective=objective or DualEnhancement(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )
        self.from_part = nn.Linear(2 * hidden_size, 2 * hidden_size, bias=False)  # W
        self.from_neighbours = nn.Linear(2 * hidden_size, hidden_size)  # A
        nn.init.eye_(self.from_part.weight)

    def check_times(self, batch: Batch) -> None:
        """Times that were trained with are needed for ranking too.

        Raises:
            InputError: they are needed and the batch has none.
        """
        if batch.timestamps is None and getattr(self.objective, "use_times", False) and len(batch):
            raise InputError(
                "UniRec needs times: set --data.with_times true. For a log without them, set "
                "--model.objective.use_times false (positions then stand in for time), or choose a model that needs "
                "none: any of lightrec itself."
            )

    def encode(self, batch: Batch) -> Tensor:
        self.check_times(batch)
        x = self.encoder.prepare(self.vectors(batch), batch.lengths)
        return self.encoder.mix(x, batch.lengths, batch.timestamps)

    def query(self, batch: Batch) -> Tensor:
        return last_state(self.encode(batch), batch.lengths)
