"""NextItem: predict what comes next, by full softmax over the catalog; and what every next-item objective shares."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightrec.data.batch import Batch
from lightrec.interfaces import ItemTable, Objective
from lightrec.nn.sequence import last_state, real_positions
from lightrec.ops.blocks import rows_that_fit
from lightrec.ops.linear_cross_entropy import linear_cross_entropy

Positions = Literal["all", "last"]
HeadDtype = Literal["float32", "bfloat16"]


class NextItem(Objective):
    """Cross-entropy of the next item over the full catalog, averaged over real positions.

    Args:
        positions: `all` asks at every position of a window; `last` only at its end, which is what a non-causal encoder
            needs (together with `train_windows: prefixes`).
        head_dtype: dtype of the matrix products with the catalog; `bfloat16` is a third faster on a CPU that has it.
            None is float32, or the dtype of autocast.

    Raises:
        ValueError: `all` with an encoder that sees the future, which would leak the target.
    """

    def __init__(self, positions: Positions = "all", head_dtype: HeadDtype | None = None):
        super().__init__()
        self.positions, self.head_dtype = positions, head_dtype

    def forward(self, recommender, batch: Batch) -> Tensor:
        hidden, targets = next_item_rows(recommender, batch, self.positions)
        dtype = None if self.head_dtype is None else getattr(torch, self.head_dtype)
        return mean_over_targets(catalog_cross_entropy(recommender.items, hidden, targets, dtype), len(targets))


def next_item_pairs(batch: Batch) -> tuple[Batch, Tensor]:
    """Shifts a training batch by one: inputs, a Batch of windows without their last item; targets [B, L]."""
    return batch.without_last(), batch.item_ids[:, 1:]


def next_item_rows(recommender, batch: Batch, positions: Positions = "all") -> tuple[Tensor, Tensor]:
    """Encodes a training batch and keeps the rows that have a target: hidden [T, D], target_ids [T].

    Raises:
        ValueError: `all` with an encoder that sees the future.
    """
    inputs, targets = next_item_pairs(batch)
    if positions == "last":
        # the state that the catalog will be scored with; what is not read of the other positions is not computed
        return recommender.query(inputs), last_state(targets, inputs.lengths)
    if not recommender.encoder.causal:
        raise ValueError(
            f"{type(recommender.encoder).__name__} sees the future, so a loss at all positions would leak the target: "
            "use positions='last' with train_windows='prefixes', or the Cloze objective."
        )
    hidden = recommender.encode(inputs)
    rows = real_positions(inputs.lengths, hidden.shape[1])
    return hidden.flatten(0, 1).index_select(0, rows), targets.flatten().index_select(0, rows)


def catalog_cross_entropy(
    items: ItemTable, hidden: Tensor, target_ids: Tensor, matmul_dtype: torch.dtype | None = None
) -> Tensor:
    """Sums the full-softmax cross-entropy of hidden [T, D] against target_ids [T] for any item table.

    A linear head takes the fused op, and a table that has its own way takes that; any other geometry is scored in
    blocks of rows that are recomputed in the backward pass, so that memory stays bounded too.
    """
    head = items.linear_head(hidden)
    if head is not None:
        return linear_cross_entropy(head.hidden, head.weight, target_ids - 1, head.bias, matmul_dtype)
    loss = items.cross_entropy(hidden, target_ids)
    if loss is not None:
        return loss

    def block(h: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(items.score(h).float()[:, 1:], ids - 1, reduction="sum")

    size = rows_that_fit(4 * (items.num_items + 1), hidden.device, "scores", least=16)
    pairs = zip(hidden.split(size), target_ids.split(size), strict=True)
    return torch.stack([checkpoint(block, h, ids, use_reentrant=False) for h, ids in pairs]).sum()


def mean_over_targets(total: Tensor, count: int) -> Tensor:
    """Divides a sum by the number of targets; over several processes, so that the averaged gradient is that of the mean
    over all their targets, however unevenly they are spread."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            counts = torch.tensor(float(count), device=total.device)
            torch.distributed.all_reduce(counts)
            return total * world / counts
    return total / count
