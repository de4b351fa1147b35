"""NegativeSampler: draws the items that a target is compared with, and knows which of them do not count.

Shapes: B rows of a batch, T positions with a target, N negatives of a position, V = num_items + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from lightrec.configurable import AtLeast
from lightrec.data.batch import Batch
from lightrec.interfaces import ItemTable
from lightrec.part import Part

if TYPE_CHECKING:
    from lightrec.data.corpus import Corpus

Proposal = Literal["uniform", "popularity", "in-batch"]
Shared = Literal["position", "row", "batch"]
Exclude = Literal["nothing", "target", "window"]

_REDRAWS = 8  # rounds in which negatives that do not count are drawn anew; what is left after them is masked


class Negatives(NamedTuple):
    """A draw of negatives."""

    ids: Tensor
    """[N] if the batch shares them, [B, N] if each row has its own, [T, N] if each position has."""
    shared: Shared = "position"
    exclude: Exclude = "nothing"
    seen: Tensor | None = None
    """[B, V] bool, what the window of each row holds, if `exclude` is `window`."""

    def of(self, block: slice, row: Tensor) -> Tensor:
        """Returns the ids of a block of positions, [N] or [b, N]; row [b] is the row of each."""
        if self.shared == "batch":
            return self.ids
        return self.ids[row] if self.shared == "row" else self.ids[block]

    def taken(self, ids: Tensor, row: Tensor, target_ids: Tensor) -> Tensor | None:
        """Marks the negatives that do not count.

        Args:
            ids: [N] or [b, N], negatives of some positions.
            row: [b], the row of each position.
            target_ids: [b].

        Returns:
            [b, N] bool, True for a negative that does not count; None if all of them count.
        """
        if self.exclude == "nothing":
            return None
        if ids.dim() == 1:
            ids = ids.expand(len(target_ids), -1)
        if self.seen is None:
            return ids == target_ids[:, None]
        return self.seen[row[:, None], ids]


class NegativeSampler(Part):
    """Draws item ids for positions. SampledSoftmax describes the arguments.

    Popularity is a fact of the data, which `connect` takes from the corpus. Outside of a run, assign to `item_counts`.
    A checkpoint does not hold the counts, since only training needs them.

    Raises:
        ValueError: options that do not go together.
    """

    limits = {"num_negatives": AtLeast(1)}

    item_counts: Tensor | None
    """[V] int64, training events of each item. Integers, so that no conversion of a model's dtype changes them."""

    def __init__(
        self,
        num_negatives: int,
        proposal: Proposal = "uniform",
        shared: Shared = "position",
        exclude: Exclude = "nothing",
        distinct: bool = False,
        alpha: float = 1.0,
    ):
        super().__init__()
        if distinct and (proposal != "uniform" or shared == "position"):
            raise ValueError("distinct=True needs proposal='uniform' and shared='row' or 'batch'.")
        self.num_negatives, self.proposal, self.shared = num_negatives, proposal, shared
        self.exclude, self.distinct, self.alpha = exclude, distinct, alpha
        self.register_buffer("item_counts", None, persistent=False)
        self._of: Tensor | None = None  # the counts that the next two were made from
        self._weights = self._cumulative = None

    def connect(self, corpus: Corpus) -> None:
        """Takes how often each item was seen in training."""
        if self.proposal != "uniform":
            self.item_counts = corpus.item_counts

    def weights(self) -> Tensor:
        """Returns [V] float64, the probability of drawing each item by popularity; the sum is 1.

        Raises:
            RuntimeError: the sampler does not know how popular items are.
        """
        if self.item_counts is None:
            raise RuntimeError(
                f"proposal={self.proposal!r} needs the popularity of items: train with a data module, or assign the "
                "[num_items + 1] counts to objective.sampler.item_counts first."
            )
        if self._of is not self.item_counts:
            weights = self.item_counts.double()
            # in-batch negatives are targets, so their probability is the plain count
            weights = weights if self.proposal == "in-batch" else weights.clamp_min(0) ** self.alpha * (weights > 0)
            self._weights = weights / weights.sum()
            self._cumulative = self._weights[1:].cumsum(0)
            self._of = self.item_counts
        return self._weights

    def log_q(self, items: ItemTable) -> Tensor:
        """Returns [V] float32, log probability of drawing each item; -inf for an item that is never drawn."""
        if self.proposal == "uniform":
            log_q = torch.full((items.num_items + 1,), -torch.tensor(float(items.num_items)).log().item())
            return log_q.to(next(items.parameters()).device)
        return self.weights().log().float()

    def draw(self, items: ItemTable, batch: Batch, row: Tensor, target_ids: Tensor) -> Negatives:
        """Draws for T positions.

        Args:
            items: the catalog that is drawn from.
            batch: the training batch, B rows.
            row: [T] the row of each position.
            target_ids: [T].
        """
        num_items, device = items.num_items, target_ids.device
        seen = None
        if self.exclude == "window":
            seen = torch.zeros(len(batch), num_items + 1, dtype=torch.bool, device=device)
            seen.scatter_(1, batch.item_ids, True)
        if self.proposal == "in-batch":
            pick = torch.randperm(len(target_ids), device=device)[: self.num_negatives]
            return Negatives(target_ids[pick], "batch", self.exclude, seen)
        if self.distinct:
            ids = self._draw_distinct(batch, num_items, seen, device)
            return Negatives(ids, self.shared, self.exclude, seen)
        first = {"position": len(target_ids), "row": len(batch), "batch": None}[self.shared]
        shape = (self.num_negatives,) if first is None else (first, self.num_negatives)
        negatives = Negatives(self._draw(shape, num_items, device), self.shared, self.exclude, seen)
        # A draw that is shared suits nobody better when it is repeated. So only draws of one position are.
        if self.exclude != "nothing" and self.shared == "position":
            for _ in range(_REDRAWS):
                where = negatives.taken(negatives.ids, row, target_ids).nonzero(as_tuple=True)
                if not len(where[0]):
                    break
                negatives.ids[where] = self._draw((len(where[0]),), num_items, device)
        return negatives

    def _draw(self, shape: tuple[int, ...], num_items: int, device: torch.device) -> Tensor:
        """Draws ids with replacement."""
        if self.proposal == "uniform":
            return torch.randint(1, num_items + 1, shape, device=device)
        self.weights()
        # A uniform number falls into the interval of an item, whose width is the item's probability.
        places = torch.searchsorted(self._cumulative, torch.rand(shape, dtype=torch.float64, device=device), right=True)
        return places.clamp_max(num_items - 1) + 1

    def _draw_distinct(self, batch: Batch, num_items: int, seen: Tensor | None, device: torch.device) -> Tensor:
        """Draws ids without replacement: [N] for the batch or [B, N] for its rows."""
        count = min(self.num_negatives, num_items)
        if self.shared == "batch":
            return torch.randperm(num_items, device=device)[:count] + 1
        # Every item gets a random key, and the N largest keys win. Seen items get the smallest keys: they are chosen
        # only if nothing else is left, and are masked then.
        keys = torch.rand(len(batch), num_items, device=device)
        if seen is not None:
            keys.masked_fill_(seen[:, 1:], -1.0)
        return keys.topk(count, sorted=False).indices + 1
