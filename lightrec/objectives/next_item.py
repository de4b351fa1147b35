"""NextItem: predict what comes next, by full softmax over the catalog; and what every next-item objective shares."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightrec.data.batch import Batch
from lightrec.interfaces import ItemTable, Objective
from lightrec.nn.sequence import last_state, real_positions, valid_mask
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
        seen_weight: weight of a second cross-entropy, of the next item against what came before it in the window. For
            logs in which nothing comes twice and a ranking that keeps what was seen (protocol P3): see `seen_loss`.

    Raises:
        ValueError: `all` with an encoder that sees the future, which would leak the target; a negative weight.
    """

    def __init__(self, positions: Positions = "all", head_dtype: HeadDtype | None = None, seen_weight: float = 0.0):
        super().__init__()
        if seen_weight < 0:
            raise ValueError(f"seen_weight ({seen_weight}) must not be negative.")
        self.positions, self.head_dtype, self.seen_weight = positions, head_dtype, seen_weight

    def forward(self, recommender, batch: Batch) -> Tensor:
        hidden, targets = next_item_rows(recommender, batch, self.positions)
        dtype = None if self.head_dtype is None else getattr(torch, self.head_dtype)
        total = catalog_cross_entropy(recommender.items, hidden, targets, dtype)
        if self.seen_weight:
            inputs, _ = next_item_pairs(batch)
            total = total + self.seen_weight * seen_loss(recommender.items, hidden, targets, inputs, self.positions)
        return mean_over_targets(total, len(targets))


def next_item_pairs(batch: Batch) -> tuple[Batch, Tensor]:
    """Shifts a training batch by one: inputs, a Batch of windows without their last item; targets [B, L]."""
    width = batch.item_ids.shape[1]

    def without_last(t: Tensor) -> Tensor:
        return t[:, :-1] if t.dim() > 1 and t.shape[1] == width else t

    inputs = batch.map(without_last).replace(lengths=batch.lengths - 1)
    return inputs, batch.item_ids[:, 1:]


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

    size = max(16, 2**24 // (items.num_items + 1))
    pairs = zip(hidden.split(size), target_ids.split(size), strict=True)
    return torch.stack([checkpoint(block, h, ids, use_reentrant=False) for h, ids in pairs]).sum()


def seen_loss(
    items: ItemTable, hidden: Tensor, target_ids: Tensor, inputs: Batch, positions: Positions = "all"
) -> Tensor:
    """Sums the cross-entropy of the next item among itself and what the window held until then.

    Tied tables make an item the most similar one to itself, so the full softmax learns late, if at all, that what was
    just seen does not come next: of ten items ranked by a Mamba4Rec of 64 numbers on MovieLens-1M almost four were seen
    before, one of them mostly the very last. A seen item that does come again is no negative of itself.

    Args:
        items: of the recommender.
        hidden: [T, D], as `next_item_rows` gives it.
        target_ids: [T].
        inputs: the windows that `hidden` is of, without their last items.
        positions: as of `next_item_rows`.

    Returns:
        Scalar sum, float32.
    """
    ids, length = inputs.item_ids, inputs.item_ids.shape[1]
    real = valid_mask(inputs.lengths, length)
    positive = items.score(hidden, target_ids[:, None]).float()[:, 0]
    if positions == "last":
        scores, seen = items.score(hidden, ids), real  # [B, L]
    else:
        rows = real_positions(inputs.lengths, length)
        spread = hidden.new_zeros(ids.numel(), hidden.shape[1]).index_copy(0, rows, hidden).view(*ids.shape, -1)
        scores = torch.stack([items.score(h, row) for h, row in zip(spread, ids, strict=True)])  # [B, L, L]
        seen = real[:, None] & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        scores, seen = (t.flatten(0, 1).index_select(0, rows) for t in (scores, seen))  # [T, L]
        ids = ids.repeat_interleave(inputs.lengths, 0, output_size=len(target_ids))
    others = scores.float().masked_fill(~(seen & (ids != target_ids[:, None])), torch.finfo(torch.float32).min / 2)
    return F.softplus(others.logsumexp(1) - positive).sum()


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
