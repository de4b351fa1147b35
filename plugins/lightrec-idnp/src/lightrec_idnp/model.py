"""IDNP: a user's interest as a function of time, inferred from few observations by a neural process.

Jing Du, Zesheng Ye, Lina Yao, Bin Guo and Zhiwen Yu, "IDNP: Interest Dynamics Modeling using Generative Neural
Processes for Sequential Recommendation", WSDM 2023, https://arxiv.org/abs/2208.04600.

Neither the full text nor code could be had. What the abstract, a figure's caption and a summary by others say is kept:
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
from lightrec.nn.item_embedding import ItemEmbedding
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.interfaces import Objective, SequenceEncoder
from lightrec.nn.dropout import Dropout
from lightrec.nn.sequence import last_state, valid_mask
from lightrec.objectives.next_item import HeadDtype, catalog_cross_entropy, mean_over_targets, next_item_pairs
from lightrec.recommender import Decay, EncoderRecommender
from lightrec_idnp.process import InterestProcess, Latent, days, kullback_leibler, wasserstein
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
        if window < 1:
            raise ValueError(f"window ({window}) must be at least 1.")
        self.hidden_size, self.window = hidden_size, window
        self.dropout = Dropout(dropout)
        self.short_term = ShortTermEncoder(hidden_size, num_layers)
        self.process = InterestProcess(
            hidden_size, latent_size or max(1, hidden_size // 2), time_size, latent, deterministic, dropout
        )

    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.dropout(x)

    def observe(self, x: Tensor, lengths: Tensor, times: Tensor) -> Observations:
        """x [B, L, D] and times [B, L] in days -> observations."""
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

    def mix(self, x: Tensor, lengths: Tensor, times: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """As of SequenceEncoder; also takes times and query times [B, L] in days, positions if there are none."""
        times = days(None, x.shape[:2], x.device) if times is None else times
        context = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(-1)
        context = context.expand(len(x), -1, -1)
        return self.interest(self.observe(x, lengths, times), context, None, times if at is None else at)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.last_at(x, lengths, days(None, x.shape[:2], x.device), None)

    def last_at(self, x: Tensor, lengths: Tensor, times: Tensor, at: Tensor | None, z: Tensor | None = None) -> Tensor:
        """The interest after the last event: [B, D].

        Args:
            x: [B, L, D] item vectors.
            lengths: [B].
            times: [B, L] in days.
            at: [B], when it is asked for, in days; None is the time of the last event.
            z: [B, 1, Z] global interest; None is the mean of what the history tells.
        """
        seen, context, at = self.before_last(x, lengths, times, at)
        return self.interest(seen, context, (lengths - 1)[:, None], at, z)[:, 0]

    def before_last(self, x: Tensor, lengths: Tensor, times: Tensor, at: Tensor | None):
        """Observations, which of them the last event knows [B, 1, L], and the query time [B, 1]."""
        seen = self.observe(self.prepare(x, lengths), lengths, times)
        context = valid_mask(lengths - 1, x.shape[1])[:, None]
        at = last_state(times[..., None], lengths) if at is None else at[:, None]
        return seen, context, at


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
        head_dtype: dtype of the matrix products with the catalog; None is float32, or the dtype of autocast.

    Raises:
        ValueError: a negative beta, an unknown distance, or max_targets below 1.
    """

    def __init__(
        self,
        beta: float = 1.0,
        distance: Distance = "wasserstein",
        max_targets: int = 20,
        include_context: bool = False,
        head_dtype: HeadDtype | None = None,
    ):
        super().__init__()
        if beta < 0:
            raise ValueError(f"beta ({beta}) must not be negative.")
        if distance not in Distance.__args__:
            raise ValueError(f"distance {distance!r} is unknown; choose {' or '.join(Distance.__args__)}.")
        if max_targets < 1:
            raise ValueError(f"max_targets ({max_targets}) must be at least 1.")
        self.beta, self.distance, self.max_targets = beta, distance, max_targets
        self.include_context, self.head_dtype = include_context, head_dtype

    def draw(self, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Returns targets and context [B, width] bool: C is a random part of D, of 0 to |D| - 1 events."""
        real = valid_mask(lengths, width)
        keys = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0)
        rank = keys.argsort(1).argsort(1)
        count = lengths.clamp_max(self.max_targets)
        known = (torch.rand(len(lengths), device=real.device) * count).long()  # one at least is left to be guessed
        targets = rank < count[:, None]
        return targets & real, (rank < known[:, None]) & real

    def forward(self, recommender, batch: Batch) -> Tensor:
        encoder = recommender.encoder
        if not isinstance(encoder, IDNPEncoder):
            raise ValueError(f"NeuralProcess trains an IDNPEncoder, not {type(encoder).__name__}: use NextItem.")
        inputs, next_ids = next_item_pairs(batch)
        # the last target is an observation too, so the vectors of the whole window are needed
        x = encoder.prepare(recommender.vectors(batch), batch.lengths)
        times, at = recommender.times_of(batch)
        width = inputs.item_ids.shape[1]
        seen = encoder.observe(x, batch.lengths, times)
        seen = Observations(*(t[:, :width] for t in seen))
        targets, context = self.draw(inputs.lengths, width)
        posterior = encoder.process.global_interest(seen.made, targets[:, None])
        known = encoder.process.global_interest(seen.made, context[:, None])
        hidden = encoder.interest(seen, context[:, None].expand(-1, width, -1), None, at[:, :width], posterior.sample())
        asked = targets if self.include_context else targets & ~context
        dtype = None if self.head_dtype is None else getattr(torch, self.head_dtype)
        total = catalog_cross_entropy(recommender.items, hidden[asked], next_ids[asked], dtype)
        if encoder.process.has_latent and self.beta:
            apart = wasserstein if self.distance == "wasserstein" else kullback_leibler
            total = total + self.beta * apart(posterior, known).sum()
        return mean_over_targets(total, int(asked.sum()))


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

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        window: items of a sub-sequence.
        num_layers: dilated convolutions.
        latent_size: Z; None is half of hidden_size.
        time_size: features of a time.
        dropout: of item vectors and of the decoder.
        latent: have the latent path.
        deterministic: have the path that depends on the query time.
        query_time: `last`: ask at the time of the last known event; `next`: at the time of the event that is asked
            for, where the batch tells it (needs `with_times`).
        objective: what is trained; None is the evidence bound.
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay on matrices.
        warmup_steps: steps of linear warm-up.
        decay: how the learning rate falls until the last step.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        window: int = 5,
        num_layers: int = 3,
        latent_size: int | None = None,
        time_size: int = 16,
        dropout: float = 0.2,
        latent: bool = True,
        deterministic: bool = True,
        query_time: QueryTime = "last",
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        if query_time not in QueryTime.__args__:
            raise ValueError(f"query_time {query_time!r} is unknown; choose {' or '.join(QueryTime.__args__)}.")
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, scale=hidden_size**0.5),
            encoder=IDNPEncoder(
                hidden_size, window, num_layers, latent_size, time_size, dropout, latent, deterministic
            ),
            objective=objective or NeuralProcess(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )
        self.query_time = query_time

    def times_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Times of events and query times behind them, [B, L] in days."""
        times = days(batch.timestamps, batch.item_ids.shape, batch.item_ids.device)
        if self.query_time == "last":
            return times, times
        return times, torch.cat([times[:, 1:], times[:, -1:]], 1)

    def encode(self, batch: Batch) -> Tensor:
        x = self.encoder.prepare(self.vectors(batch), batch.lengths)
        return self.encoder.mix(x, batch.lengths, *self.times_of(batch))

    def query(self, batch: Batch) -> Tensor:
        times, _ = self.times_of(batch)
        return self.encoder.last_at(self.vectors(batch), batch.lengths, times, self._asked_at(batch))

    def _asked_at(self, batch: Batch) -> Tensor | None:
        if self.query_time == "last" or batch.target_timestamps is None or not batch.target_timestamps.shape[1]:
            return None
        return batch.target_timestamps[:, 0].double() / 86400.0

    def global_interest(self, batch: Batch) -> Latent:
        """What a history tells of z: means and deviations [B, 1, Z]."""
        times, _ = self.times_of(batch)
        seen, context, _ = self.encoder.before_last(self.vectors(batch), batch.lengths, times, None)
        return self.encoder.process.global_interest(seen.made, context)

    @torch.no_grad()
    def recommend_with_uncertainty(self, batch: Batch, k: int, num_samples: int = 32) -> Uncertain:
        """Ranks by the mean probability over samples of the global interest.

        Args:
            batch: histories; `seen_ids` are left out and have no probability.
            k: length of the lists.
            num_samples: samples of z.
        """
        times, _ = self.times_of(batch)
        x = self.vectors(batch)
        seen, context, at = self.encoder.before_last(x, batch.lengths, times, self._asked_at(batch))
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
