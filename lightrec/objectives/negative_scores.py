"""The logits of sampled negatives: five ways to make them, one value.

A sampled loss is a function of one positive logit and N negative logits per position. What differs in cost is how the
negative logits are made. `STRATEGIES` is the table by which the way is chosen:

| items score by | draw shared by | catalog | strategy | what is computed |
|---|---|---|---|---|
| another geometry | any | any | Scored | `items.score` of target and negatives |
| a linear head | batch | any | SharedProduct | one product with the N shared vectors |
| a linear head | row | V <= 4 N | FullLogits | one product with the whole catalog, then N columns are picked |
| a linear head | position | V <= 32 N | FullLogits | the same |
| a linear head | row | larger | RowProducts | one small product per row |
| a linear head | position | larger | FetchedVectors | N vectors are fetched for every position |

A product is so much cheaper than fetching N vectors from memory that FullLogits pays up to V = 32 N.

Shapes: T positions with a target, b positions of a block, N negatives of a position, D hidden_size, V = num_items + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightrec.interfaces import ItemTable, LinearHead
from lightrec.objectives.negatives import Negatives
from lightrec.ops.blocks import rows_that_fit


class Logits(NamedTuple):
    """What a loss is made from, for a block of b positions."""

    positive: Tensor
    """[b] float32."""
    negative: Tensor
    """[b, N] float32."""
    taken: Tensor | None
    """[b, N] bool, negatives that do not count; None if all count."""
    ids: Tensor
    """[N] or [b, N], whose logits the negatives are."""
    target_ids: Tensor
    """[b]."""


Terms = Callable[[Logits], Tensor]
"""The loss of a block: a scalar sum over its positions."""


class Asked(NamedTuple):
    """T positions, their targets, and the negatives that these are compared with."""

    items: ItemTable
    hidden: Tensor
    """[T, D]."""
    target_ids: Tensor
    """[T]."""
    row: Tensor
    """[T], the row of the batch that each position is in."""
    negatives: Negatives
    head: LinearHead | None
    """The factors of the score, if it is linear."""

    def ids(self, block: slice) -> Tensor:
        """Returns the negatives of a block, [N] or [b, N]."""
        return self.negatives.of(block, self.row[block])

    def loss(self, block: slice, positive: Tensor, negative: Tensor, terms: Terms) -> Tensor:
        """Returns the scalar loss of a block from its logits [b] and [b, N]."""
        ids, target_ids = self.ids(block), self.target_ids[block]
        taken = self.negatives.taken(ids, self.row[block], target_ids)
        return terms(Logits(positive.float(), negative.float(), taken, ids, target_ids))

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiplies states [b, D] with vectors [n, D] in the dtype of the table's head: [b, n]."""
        dtype = self.items.head_dtype
        if dtype is None:
            return F.linear(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):  # the weight was cast once, for all blocks
            logits = F.linear(x.to(dtype), weight).float()
        return logits if bias is None else logits + bias

    def positives(self) -> Tensor:
        """Returns the logits of the targets, [T], by a linear head."""
        places = self.target_ids - 1
        positive = (self.head.hidden * F.embedding(places, self.head.weight)).sum(-1)
        return positive if self.head.bias is None else positive + self.head.bias[places]

    def weights(self, ids: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns the weight of a linear head and the bias if there is one; of all items, or of ids [n]."""
        _, weight, bias = self.head
        if ids is not None:
            weight, bias = F.embedding(ids - 1, weight), None if bias is None else bias[ids - 1]
        return (weight,) if bias is None else (weight, bias)


@dataclass(frozen=True)
class NegativeScores(ABC):
    """One way to make the logits of negatives.

    Args:
        rows: positions of a block; None is as many as fit.
    """

    rows: int | None = None

    @abstractmethod
    def suits(self, asked: Asked) -> bool:
        """Says whether this is the cheapest way for these shapes, if no earlier one of the table is."""

    @abstractmethod
    def sum(self, asked: Asked, terms: Terms) -> Tensor:
        """Returns the sum of the terms of all positions."""


@dataclass(frozen=True)
class Scored(NegativeScores):
    """Asks the item table, whatever its geometry. The only way without a linear head."""

    def suits(self, asked: Asked) -> bool:
        return asked.head is None

    def sum(self, asked: Asked, terms: Terms) -> Tensor:
        items, hidden, ids = asked.items, asked.hidden, asked.negatives.ids
        is_shared = ids.dim() == 1

        def block_loss(x: Tensor, block: slice) -> Tensor:
            targets = asked.target_ids[block, None]
            if is_shared:  # the vectors of shared negatives are made once, not for every position
                positive, negative = items.score(x, targets)[:, 0], items.score(x, ids)
            else:
                logits = items.score(x, torch.cat([targets, asked.ids(block)], 1))
                positive, negative = logits[:, 0], logits[:, 1:]
            return asked.loss(block, positive, negative, terms)

        numbers = (1 if is_shared else hidden.shape[1]) * (ids.shape[-1] + 1)  # of a position
        size = self.rows or rows_that_fit(4 * numbers, hidden.device, "gathered vectors")
        blocks = [slice(i, i + size) for i in range(0, len(hidden), size)]
        if len(blocks) == 1:  # what one block keeps for the backward pass is within the bound: nothing is made twice
            return block_loss(hidden, blocks[0])
        return torch.stack([checkpoint(block_loss, hidden[b], b, use_reentrant=False) for b in blocks]).sum()


@dataclass(frozen=True)
class SharedProduct(NegativeScores):
    """One product with the vectors that the batch shares."""

    def suits(self, asked: Asked) -> bool:
        return asked.negatives.ids.dim() == 1

    def sum(self, asked: Asked, terms: Terms) -> Tensor:
        def block_loss(block: slice, x: Tensor, positive: Tensor, vectors: Tensor, bias: Tensor | None = None):
            return asked.loss(block, positive, asked.product(x, vectors, bias), terms)

        x, ids = asked.head.hidden, asked.negatives.ids
        size = self.rows or rows_that_fit(4 * len(ids), x.device, "logits", least=64, most=4096)
        return sum_over_blocks(block_loss, size, (x, asked.positives()), asked.weights(ids), asked.items.head_dtype)


@dataclass(frozen=True)
class FullLogits(NegativeScores):
    """One product with the whole catalog, from which the negatives are picked.

    Args:
        rows: positions of a block; None is as many as fit.
        per_position: items per negative up to which this pays, if each position has its own draw. It was measured on
            two CPU cores with D = 64.
        per_row: the same, if a row shares its draw.
    """

    per_position: int = 32
    per_row: int = 4

    def suits(self, asked: Asked) -> bool:
        ratio = self.per_row if asked.negatives.shared == "row" else self.per_position
        return asked.items.num_items <= ratio * asked.negatives.ids.shape[1]

    def sum(self, asked: Asked, terms: Terms) -> Tensor:
        def block_loss(block: slice, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            logits = asked.product(x, weight, bias)
            positive = logits.gather(1, asked.target_ids[block, None] - 1).squeeze(1)
            return asked.loss(block, positive, logits.gather(1, asked.ids(block) - 1), terms)

        x = asked.head.hidden
        size = self.rows or rows_that_fit(4 * asked.items.num_items, x.device, "logits", least=64, most=1024)
        return sum_over_blocks(block_loss, size, (x,), asked.weights(), asked.items.head_dtype)


@dataclass(frozen=True)
class FetchedVectors(NegativeScores):
    """N vectors are fetched for every position."""

    def suits(self, asked: Asked) -> bool:
        return asked.negatives.shared == "position"

    def sum(self, asked: Asked, terms: Terms) -> Tensor:
        def block_loss(block: slice, x: Tensor, positive: Tensor, weight: Tensor, bias: Tensor | None = None):
            ids = asked.ids(block)
            negative = self.negative(asked, block, x, weight)
            negative = negative if bias is None else negative + bias[ids - 1]
            return asked.loss(block, positive, negative, terms)

        x, weight, _ = asked.head
        numbers = weight.shape[1] * asked.negatives.ids.shape[1]  # of a position
        size = self.rows or rows_that_fit(4 * numbers, x.device, "gathered vectors", least=64)
        return sum_over_blocks(block_loss, size, (x, asked.positives()), asked.weights())

    def negative(self, asked: Asked, block: slice, x: Tensor, weight: Tensor) -> Tensor:
        """Returns the logits of negatives without bias: states x [b, D], weight [num_items, D] -> [b, N]."""
        return (F.embedding(asked.ids(block) - 1, weight) @ x.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class RowProducts(FetchedVectors):
    """One small product per row of the batch, with the N vectors that its positions share."""

    def suits(self, asked: Asked) -> bool:
        return asked.negatives.shared == "row"

    def negative(self, asked: Asked, block: slice, x: Tensor, weight: Tensor) -> Tensor:
        # Positions are in the order of rows, so those of one row are side by side. A block may begin within a row.
        rows, counts = asked.row[block].unique_consecutive(return_counts=True)
        parts = zip(x.split(counts.tolist()), F.embedding(asked.negatives.ids[rows] - 1, weight), strict=True)
        return torch.cat([F.linear(part, vectors) for part, vectors in parts])


STRATEGIES: tuple[NegativeScores, ...] = (Scored(), SharedProduct(), FullLogits(), RowProducts(), FetchedVectors())
"""In the order in which they are asked whether they suit."""


def choose(asked: Asked) -> NegativeScores:
    """Returns the cheapest way to the logits of these negatives."""
    return next(strategy for strategy in STRATEGIES if strategy.suits(asked))


@torch.compiler.disable
def sum_over_blocks(
    block_loss: Callable[..., Tensor],
    size: int,
    per_row: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sums `block_loss(block, *rows of the block, *shared)` over blocks of rows, in the memory of one block.

    Args:
        block_loss: returns the scalar loss of a block.
        size: rows of a block.
        per_row: tensors [T, ...] that are cut into blocks.
        shared: tensors that every block needs whole.
        dtype: what shared matrices are cast to, once for all blocks; None leaves them.
    """
    return _SumOverBlocks.apply(block_loss, size, dtype, len(per_row), *per_row, *shared)


class _SumOverBlocks(torch.autograd.Function):
    """Takes the gradient of a block while the block is at hand.

    So nothing is kept for the backward pass but gradients, and nothing is computed twice. Gradients are accumulated in
    the dtype of what they belong to.
    """

    @staticmethod
    def forward(ctx, block_loss, size, dtype, num_per_row, *tensors):
        per_row, shared = tensors[:num_per_row], tensors[num_per_row:]
        needed = ctx.needs_input_grad[4:]
        # Shared tensors become leaves of small graphs of their own; matrices are cast once.
        shared = [
            (t.detach() if dtype is None or t.dim() < 2 else t.detach().to(dtype)).requires_grad_(need)
            for t, need in zip(shared, needed[num_per_row:], strict=True)
        ]
        grads = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed, strict=True)]
        total = 0.0
        for start in range(0, len(per_row[0]), size):
            block = slice(start, start + size)
            with torch.set_grad_enabled(any(needed)):
                rows = [t[block].detach().requires_grad_(n) for t, n in zip(per_row, needed, strict=False)]
                part = block_loss(block, *rows, *shared)
            total = total + part.detach()
            if any(needed):
                wanted = [i for i, need in enumerate(needed) if need]
                leaves = [(rows + shared)[i] for i in wanted]
                # A row's gradient comes from its own block; a shared tensor's is the sum over all blocks.
                for i, grad in zip(wanted, torch.autograd.grad(part, leaves), strict=True):
                    if i < num_per_row:
                        grads[i][block] = grad
                    else:
                        grads[i] += grad
        ctx.save_for_backward(*grads)
        return total if isinstance(total, Tensor) else per_row[0].new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return None, None, None, None, *(None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors)
