"""IDNP: a user's interest as a function of time, inferred from few observations by a neural process.

Jing Du, Zesheng Ye, Lina Yao, Bin Guo and Zhiwen Yu, "IDNP: Interest Dynamics Modeling using Generative Neural
Processes for Sequential Recommendation", WSDM 2023, https://arxiv.org/abs/2208.04600.

We could read neither the full text nor code. What the abstract, a figure's caption and a summary by others say is kept:
short sub-sequences as observations, dilated convolutions with attention over scales and places, a summary that does not
depend on the order of observations, a latent path z and a path that depends on the query time, a decoder of both with
the query, a Wasserstein term. The equations between these facts are the standard ones of neural processes.

Differences and additions, and why:

* An observation is the window that ends at each event, so every position of a history can be asked with what came
  before it. That makes the encoder causal; random contexts exist only within the training window.
* Scores have no user vector: new users have none.
* Without times in the log, positions stand in for days.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightrec.configurable import AtLeast
from lightrec.data.batch import Batch
from lightrec.interfaces import History, Losses, Objective, SequenceEncoder, Term
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.nn.dropout import Dropout
from lightrec.nn.sequence import valid_mask
from lightrec.objectives.next_item import NextItemStates, mean_over_targets
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer
from lightrec_idnp.process import DAY, InterestProcess, Latent, days, kullback_leibler, wasserstein
from lightrec_idnp.windows import ShortTermEncoder, short_windows

Distance = Literal["wasserstein", "kl"]
QueryTime = Literal["last", "next"]


class Observations(NamedTuple):
    """What a history shows of an interest; row i is the window that ends at event i and the item after it."""

    short: Tensor
    """[B, L, D], the windows; each is a query too."""
    made: Tensor
    """[B, L, D], windows with what followed; the last of a history was followed by nothing and is never known."""
    times: Tensor
    """[B, L] in days."""


class IDNPEncoder(SequenceEncoder):
    """Short windows -> observations -> neural process -> the interest after each event.

    Args:
        hidden_size: D.
        window: items of a sub-sequence.
        num_layers: dilated convolutions.
        latent_size: Z; None is half of hidden_size.
        time_size: features of a time.
        dropout: of item vectors and of the decoder.
        latent: have the latent path.
        deterministic: have the path that depends on the query time.
    """

    limits = {"window": AtLeast(1), "num_layers": AtLeast(0)}
    causal = True

    def __init__(
        self,
        hidden_size: int = 64,
        window: int = 5,
        num_layers: int = 3,
        latent_size: int | None = None,
        time_size: int = 16,
        dropout: float = 0.2,
        latent: bool = True,
        deterministic: bool = True,
    ):
        super().__init__()
        self.hidden_size, self.window = hidden_size, window
        self.dropout = Dropout(dropout)
        self.short_term = ShortTermEncoder(hidden_size, num_layers)
        self.process = InterestProcess(
            hidden_size, latent_size or max(1, hidden_size // 2), time_size, latent, deterministic, dropout
        )

    def enter(self, history: History) -> History:
        return history._replace(x=self.dropout(history.x))

    def observe(self, history: History) -> Observations:
        """Makes the observations of an entered history."""
        x, lengths, times = history.x, history.lengths, days_of(history)
        windows, inside = short_windows(x, lengths, self.window)
        short = x.new_zeros(x.shape)
        real = valid_mask(lengths, x.shape[1])
        short[real] = self.short_term(windows[real], inside[real])  # nothing is computed on padding
        after = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)
        return Observations(short, self.process.observe(short, after, times), times)

    def interest(
        self, seen: Observations, context: Tensor, positions: Tensor | None, at: Tensor, z: Tensor | None = None
    ) -> Tensor:
        """Decodes the interest at queries.

        Args:
            seen: observations [B, L].
            context: [B, Q, L] bool, which observations each query knows.
            positions: [B, Q], the windows that ask; None is all of them, Q = L.
            at: [B, Q], when, in days.
            z: [B, Q, Z] global interest; None is the mean of what the context tells.

        Returns:
            [B, Q, D].
        """
        if z is None:
            z = self.process.global_interest(seen.made, context).mean
        r_d = self.process.interest_at(seen.made, seen.times, context, at)
        short = seen.short
        if positions is not None:
            short = short.gather(1, positions[..., None].expand(-1, -1, short.shape[-1]))
        return self.process.decode(r_d, z.expand(*r_d.shape[:2], -1), short, at)

    def mix(self, history: History) -> Tensor:
        B, L, _ = history.x.shape
        context = torch.ones(L, L, dtype=torch.bool, device=history.x.device).tril(-1).expand(B, -1, -1)
        return self.interest(self.observe(history), context, None, asked_days_of(history))

    def last(self, history: History) -> Tensor:
        seen, context, at = self.before_last(history)
        return self.interest(seen, context, (history.lengths - 1)[:, None], at)[:, 0]

    def before_last(self, history: History) -> tuple[Observations, Tensor, Tensor]:
        """Observations, which of them the last event knows [B, 1, L], and the query time [B, 1]."""
        seen = self.observe(self.enter(history))
        context = valid_mask(history.lengths - 1, history.x.shape[1])[:, None]
        return seen, context, history.last(asked_days_of(history))[:, None]


def days_of(history: History) -> Tensor:
    """Times of events, [B, L] in days; positions if there are none."""
    return days(history.timestamps, history.x.shape[:2], history.x.device)


def asked_days_of(history: History) -> Tensor:
    """Times for which the interest after each event is asked, [B, L] in days."""
    return days_of(history) if history.query_times is None else history.query_times.double() / DAY


class NeuralProcess(Objective):
    """The evidence bound: likelihood of the targets under z of all observations, which z of a part is to resemble.

    In every window, up to `max_targets` random events are the targets D, and a random part of them, of a random size
    that may be nothing, is the context C: -sum_D log p(y | context, z ~ q(z | D)) + beta * distance(q(z|D), q(z|C)).

    Args:
        beta: weight of the distance.
        distance: `wasserstein` (squared, order 2) or `kl`.
        max_targets: most targets of a window.
        include_context: ask for the context's own items too, as neural processes do. They can be looked up in the
            context, so that these terms teach the decoder to copy.
    """

    limits = {"beta": AtLeast(0), "max_targets": AtLeast(1)}

    def __init__(
        self,
        beta: float = 1.0,
        distance: Distance = "wasserstein",
        max_targets: int = 20,
        include_context: bool = False,
    ):
        super().__init__()
        self.beta, self.distance, self.max_targets = beta, distance, max_targets
        self.include_context = include_context

    def draw(self, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Returns targets and context [B, width] bool: C is a random part of D, of 0 to |D| - 1 events."""
        real = valid_mask(lengths, width)
        keys = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0)
        rank = keys.argsort(1).argsort(1)
        count = lengths.clamp_max(self.max_targets)
        known = (torch.rand(len(lengths), device=real.device) * count).long()  # one at least is left to be guessed
        targets = rank < count[:, None]
        return targets & real, (rank < known[:, None]) & real

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        encoder = recommender.encoder
        if not isinstance(encoder, IDNPEncoder):
            raise ValueError(f"NeuralProcess trains an IDNPEncoder, not {type(encoder).__name__}: use NextItem.")
        states = states or NextItemStates(recommender, batch)
        inputs, next_ids = states.inputs, states.next_ids
        # the last target is an observation too, so the vectors of the whole window are needed
        history = encoder.enter(recommender.history(batch))
        width = inputs.item_ids.shape[1]
        at = asked_days_of(history)[:, :width]
        seen = Observations(*(t[:, :width] for t in encoder.observe(history)))
        targets, context = self.draw(inputs.lengths, width)
        posterior = encoder.process.global_interest(seen.made, targets[:, None])
        known = encoder.process.global_interest(seen.made, context[:, None])
        hidden = encoder.interest(seen, context[:, None].expand(-1, width, -1), None, at, posterior.sample())
        asked = targets if self.include_context else targets & ~context
        count = int(asked.sum())
        total = recommender.items.cross_entropy(hidden[asked], next_ids[asked])
        if not (encoder.process.has_latent and self.beta):
            return {"bound": Term(mean_over_targets(total, count))}
        apart = wasserstein if self.distance == "wasserstein" else kullback_leibler
        distance = apart(posterior, known).sum()
        bound = mean_over_targets(total + self.beta * distance, count)
        return {"bound": Term(bound), "distance": Term(distance.detach() / count, 0)}  # the bound holds it already


class Uncertain(NamedTuple):
    """A ranked list with what the model knows of its own doubt."""

    item_ids: Tensor
    """[B, K], by mean probability."""
    probability: Tensor
    """[B, K], mean over samples of z."""
    std: Tensor
    """[B, K], standard deviation over samples of z."""


class IDNP(EncoderRecommender):
    """Interest dynamics with a neural process.

    Further options are those of `IDNPEncoder`.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        query_time: `last`: ask at the time of the last known event; `next`: at the time of the event that is asked
            for, where the batch tells it (needs `with_times`).
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
        objective: what is trained; None is the evidence bound.
        optimizer: how it is trained.
    """

    network = IDNPEncoder

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        query_time: QueryTime = "last",
        head_dtype: HeadDtype | None = None,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, scale=hidden_size**0.5, head_dtype=head_dtype),
            encoder=IDNPEncoder(hidden_size=hidden_size, **network),
            objective=objective or NeuralProcess(),
            optimizer=optimizer,
        )
        self.query_time = query_time

    def history(self, batch: Batch) -> History:
        """Returns what the encoder reads; with `query_time: next`, the interest is asked for at the next event's time.

        After the last event that is the time of the target, or the event's own time if the batch does not tell it.
        """
        history = super().history(batch)
        if self.query_time == "last":
            return history
        times = history.timestamps
        if times is None:  # positions stand in for days
            times = torch.arange(batch.item_ids.shape[1], device=batch.item_ids.device).expand(batch.item_ids.shape)
            times = times * DAY
        following = torch.cat([times[:, 1:], times[:, -1:]], 1)
        known = batch.target_timestamps
        last = history.last(times)[:, None] if known is None or not known.shape[1] else known[:, :1]
        place = torch.arange(times.shape[1], device=times.device)
        return history._replace(query_times=torch.where(place == batch.lengths[:, None] - 1, last, following))

    def global_interest(self, batch: Batch) -> Latent:
        """What a history tells of z: means and deviations [B, 1, Z]."""
        seen, context, _ = self.encoder.before_last(self.history(batch))
        return self.encoder.process.global_interest(seen.made, context)

    @torch.no_grad()
    def recommend_with_uncertainty(self, batch: Batch, k: int, num_samples: int = 32) -> Uncertain:
        """Ranks by the mean probability over samples of the global interest.

        Args:
            batch: histories; `seen_ids` are left out and have no probability.
            k: length of the lists.
            num_samples: samples of z.
        """
        seen, context, at = self.encoder.before_last(self.history(batch))
        latent = self.encoder.process.global_interest(seen.made, context)
        place = (batch.lengths - 1)[:, None]
        total = square = 0.0
        for _ in range(num_samples):
            hidden = self.encoder.interest(seen, context, place, at, latent.sample())[:, 0]
            scores = self.items.score(hidden).float()
            if batch.seen_ids is not None:
                scores = scores.scatter(1, batch.seen_ids, -torch.inf)
            chance = scores.softmax(-1)
            total, square = total + chance, square + chance.square()
        mean = total / num_samples
        std = (square / num_samples - mean.square()).clamp_min(0).sqrt()
        probability, item_ids = mean.topk(k)
        return Uncertain(item_ids, probability, std.gather(1, item_ids))
