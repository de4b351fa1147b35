"""Popularity and Markov: the two baselines that every table needs. They count; nothing is learned.

Popularity ranks items by how often they came next. The first-order Markov chain ranks them by how often they came right
after the last item, and falls back on popularity where it has seen nothing. A model that does not clear both has not
learned from order.

Both count the targets of the windows that they are given, so `train_windows: all` counts each transition of a log
exactly once (the first event of a history, which nothing precedes, is not counted). One epoch is enough; a second
begins anew. The catalog is scored in blocks of rows and transitions are stored as a sorted list, so nothing of size
V x V is ever held.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightrec.configurable import Above, AtLeast
from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import Losses
from lightrec.nn.sequence import last_state, real_positions
from lightrec.ops.blocks import rows_that_fit
from lightrec.recommender import Optimizer, SequenceRecommender
from lightrec.search.exact import ranked

_PENDING = 2**20  # transitions that are gathered before they are sorted into the rest


class _NoOptimizer(Optimizer):
    """Changes nothing. Lightning counts the steps of an optimizer, and writes no checkpoint before the first."""

    def configure(self, model: nn.Module, last_step: Callable[[], float]) -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)


class CountingRecommender(SequenceRecommender):
    """A recommender that is fitted by counting, in one process and one epoch.

    Args:
        num_items: size of the catalog.
    """

    limits = {"num_items": AtLeast(1)}

    def __init__(self, num_items: int):
        super().__init__(_NoOptimizer())
        self.num_items = num_items
        self.automatic_optimization = False
        self.register_buffer("item_counts", torch.zeros(num_items + 1, dtype=torch.long))

    @abstractmethod
    def count(self, item_ids: Tensor, target_ids: Tensor) -> None:
        """Counts transitions: [T] items and [T] what came right after each."""

    @abstractmethod
    def scores_after(self, last_ids: Tensor) -> Tensor:
        """Returns [B, V] scores of the catalog after [B] last items, float64."""

    def loss(self, batch: Batch) -> Losses:
        raise NotImplementedError(f"{type(self).__name__} counts; it has no loss.")

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.world_size > 1:
            raise InputError(
                f"{type(self).__name__} counts in one process, got {self.trainer.world_size}: use --trainer.devices 1."
            )
        super().setup(stage)

    def on_train_epoch_start(self) -> None:
        self.item_counts.zero_()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        width = batch.item_ids.shape[1] - 1
        places = real_positions(batch.lengths - 1, width)
        items, targets = (ids.flatten()[places] for ids in (batch.item_ids[:, :-1], batch.item_ids[:, 1:]))
        self.item_counts += torch.bincount(targets, minlength=self.num_items + 1)
        self.count(items, targets)
        self.optimizers().step()

    @torch.no_grad()
    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        rows = rows_that_fit(8 * (self.num_items + 1), self.item_counts.device, "counted scores")
        last = last_state(batch.item_ids, batch.lengths)
        lists = [self._rank(last[i : i + rows], batch, slice(i, i + rows), k) for i in range(0, len(batch), rows)]
        if not lists:
            return last.new_zeros(0, k), self.item_counts.new_zeros(0, k, dtype=torch.float32)
        ids, scores = zip(*lists, strict=True)
        return torch.cat(ids), torch.cat(scores)

    def _rank(self, last: Tensor, batch: Batch, rows: slice, k: int) -> tuple[Tensor, Tensor]:
        seen, candidates = (None if t is None else t[rows] for t in (batch.seen_ids, batch.candidate_ids))
        return ranked(self.scores_after(last), k, seen, candidates)


class Popularity(CountingRecommender):
    """Ranks items by how often they came next; the score is that count.

    Args:
        num_items: size of the catalog.
    """

    def __init__(self, num_items: int):
        super().__init__(num_items)

    def count(self, item_ids: Tensor, target_ids: Tensor) -> None:
        """Nothing more than what every such model counts."""

    def scores_after(self, last_ids: Tensor) -> Tensor:
        return self.item_counts.double().repeat(len(last_ids), 1)


class Markov(CountingRecommender):
    """Ranks items by how often they came right after the last one.

    The score is the probability (count(last, item) + smoothing * popularity(item)) / (count(last) + smoothing).

    Args:
        num_items: size of the catalog.
        smoothing: how many transitions the popularity of an item weighs, above 0; it orders what was never seen to
            follow.
    """

    limits = {"smoothing": Above(0)}

    def __init__(self, num_items: int, smoothing: float = 1.0):
        super().__init__(num_items)
        self.smoothing = smoothing
        # Transition (a, b) is a * (num_items + 1) + b; sorted, each once.
        for name in ("transitions", "transition_counts", "pending"):
            self.register_fitted(name, torch.zeros(0, dtype=torch.long))

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for name in ("transitions", "transition_counts", "pending"):
            setattr(self, name, getattr(self, name)[:0])

    def count(self, item_ids: Tensor, target_ids: Tensor) -> None:
        self.pending = torch.cat([self.pending, item_ids * (self.num_items + 1) + target_ids])
        if len(self.pending) > max(_PENDING, len(self.transitions) // 4):
            self._settle()

    def scores_after(self, last_ids: Tensor) -> Tensor:
        self._settle()
        size = self.num_items + 1
        popularity = self.item_counts.double() / self.item_counts.sum().clamp_min(1)
        scores = (self.smoothing * popularity).repeat(len(last_ids), 1)
        begin = torch.searchsorted(self.transitions, last_ids * size)
        number = torch.searchsorted(self.transitions, (last_ids + 1) * size) - begin
        row = torch.arange(len(last_ids), device=last_ids.device).repeat_interleave(number)
        first = number.cumsum(0) - number
        place = torch.arange(len(row), device=row.device) + (begin - first)[row]
        scores[row, self.transitions[place] % size] += self.transition_counts[place].double()
        total = torch.zeros_like(begin, dtype=torch.float64).index_add_(0, row, self.transition_counts[place].double())
        return scores / (total + self.smoothing)[:, None]

    def _settle(self) -> None:
        if not len(self.pending):
            return
        keys, where = torch.cat([self.transitions, self.pending]).unique(return_inverse=True)
        counts = torch.cat([self.transition_counts, torch.ones_like(self.pending)])
        self.transition_counts = torch.zeros_like(keys).index_add_(0, where, counts)
        self.transitions, self.pending = keys, self.pending[:0]
