"""Objectives that compare the next item with a few sampled ones: sampled softmax, BCE and gBCE.

Every one of them is a function of one positive logit and N negative logits a position; what differs in cost is how the
negative logits are made, and that is chosen by shape, with identical values:

* negatives shared by the batch: one matmul with N vectors;
* negatives of a row or a position, small catalog: one matmul with the whole catalog, then N columns are picked. A
  matmul is so much cheaper than fetching N vectors from memory that for positions this pays up to V = 32 N;
* negatives of a row, large catalog: one small matmul a row;
* negatives of a position, large catalog: N vectors are fetched for every position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, Objective, Term
from lightrec.objectives.next_item import NextItemStates, Positions, mean_over_targets
from lightrec.ops.linear_cross_entropy import rows_at_once

if TYPE_CHECKING:
    from lightrec.recommender import EncoderRecommender

Proposal = Literal["uniform", "popularity", "in-batch"]
Shared = Literal["position", "row", "batch"]
Exclude = Literal["nothing", "target", "window"]

# Picking from full logits beats fetching vectors up to this many items a negative (measured on 2 CPU cores, D = 64).
_DENSE_RATIO = {"position": 32, "row": 4}
_BLOCK_BYTES = 8 * 2**20  # logits of a block, as in ops.linear_cross_entropy
_GATHER_BYTES = 64 * 2**20  # fetched vectors of a block
_REDRAWS = 8


class SampledSoftmax(Objective):
    """Softmax over the next item and sampled negatives, averaged over real positions.

    -log( exp(s+) / (exp(s+) + sum_j exp(s_j)) ). The defaults are eSASRec's (Tikhonovich et al., RecSys 2025): 256
    uniform items drawn for each position, collisions with the target kept, no correction. `shared="row",
    distinct=True, exclude="window", num_negatives=3000` is SASRec+ 3000 (Klenitskiy and Vasilev, RecSys 2023).

    Args:
        num_negatives: N, negatives a position.
        proposal: `uniform` over the catalog, `popularity` (train count ** alpha) or `in-batch` (targets of the batch,
            always shared by the batch).
        shared: who shares a draw: each `position` has its own, or all of a `row`, or the whole `batch`.
        exclude: negatives that do not count: `nothing`, the `target` of the position, or all of its `window`.
        distinct: draw without replacement (uniform, shared by row or batch).
        alpha: exponent of the popularity.
        log_q: divide the weight of a negative by how often it is expected to be drawn, so that the sum estimates the
            full softmax without bias (the target, being present always, is not corrected; excludes it as a negative).
        positions: `all`, or `last` for encoders that see the future.

    Raises:
        ValueError: options that do not go together.
    """

    def __init__(
        self,
        num_negatives: int = 256,
        proposal: Proposal = "uniform",
        shared: Shared = "position",
        exclude: Exclude = "nothing",
        distinct: bool = False,
        alpha: float = 1.0,
        log_q: bool = False,
        positions: Positions = "all",
    ):
        super().__init__()
        if proposal == "in-batch":
            shared = "batch"
        if exclude == "nothing" and (log_q or proposal == "in-batch"):
            exclude = "target"
        self.sampler = NegativeSampler(num_negatives, proposal, shared, exclude, distinct, alpha)
        self.log_q, self.positions = log_q, positions

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        log_q = self.sampler.log_q(recommender) if self.log_q else None
        states = states or NextItemStates(recommender, batch)
        loss = _sampled_loss(states, self.sampler, _softmax_terms, self.positions, log_q)
        return {"sampled_softmax": Term(loss)}


class BinaryCrossEntropy(Objective):
    """Binary cross-entropy of the next item against sampled items, averaged over terms and real positions.

    The defaults are SASRec's of 2018: one uniform negative that the window does not hold.

    Args:
        num_negatives: N, negatives a position.
        proposal: `uniform`, `popularity` (train count ** alpha) or `in-batch`.
        shared: who shares a draw: `position`, `row` or `batch`.
        exclude: negatives that do not count: `nothing`, `target` or `window`.
        alpha: exponent of the popularity.
        positions: `all`, or `last` for encoders that see the future.
    """

    def __init__(
        self,
        num_negatives: int = 1,
        proposal: Proposal = "uniform",
        shared: Shared = "position",
        exclude: Exclude = "window",
        alpha: float = 1.0,
        positions: Positions = "all",
    ):
        super().__init__()
        if proposal == "in-batch":
            shared, exclude = "batch", "target" if exclude == "nothing" else exclude
        self.sampler = NegativeSampler(num_negatives, proposal, shared, exclude, False, alpha)
        self.positions = positions

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        states = states or NextItemStates(recommender, batch)
        return {"bce": Term(_sampled_loss(states, self.sampler, _binary_terms(1.0), self.positions))}


class GBCE(Objective):
    """Generalised binary cross-entropy: BCE whose positive is weighed down by how thinly negatives are sampled.

    Petrov and Macdonald, gSASRec, RecSys 2023, https://arxiv.org/abs/2308.07192. With alpha = N / (V - 1), the share of
    the catalog that is drawn, beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha) and the loss is
    -(beta * log sigmoid(s+) + sum_j log(1 - sigmoid(s_j))) / (N + 1). t = 0 is BCE; t = 1 gives calibrated
    probabilities. The authors transform the positive logit in float64; this is the same number without that.

    Args:
        num_negatives: N, negatives a position.
        t: calibration, 0 to 1.
        shared: who shares a draw: `position`, `row` or `batch`.
        exclude: negatives that do not count; the authors keep collisions.
        positions: `all`, or `last` for encoders that see the future.
    """

    def __init__(
        self,
        num_negatives: int = 256,
        t: float = 0.75,
        shared: Shared = "position",
        exclude: Exclude = "nothing",
        positions: Positions = "all",
    ):
        super().__init__()
        if not 0 <= t <= 1:
            raise ValueError(f"t ({t}) must be between 0 (BCE) and 1 (calibrated).")
        self.sampler = NegativeSampler(num_negatives, "uniform", shared, exclude)
        self.t, self.positions = t, positions

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        beta = gbce_beta(self.sampler.num_negatives, recommender.items.num_items, self.t)
        states = states or NextItemStates(recommender, batch)
        return {"gbce": Term(_sampled_loss(states, self.sampler, _binary_terms(beta), self.positions))}


def gbce_beta(num_negatives: int, num_items: int, t: float) -> float:
    """Returns the power of the positive's probability in gBCE (equation 8 of the paper)."""
    alpha = min(1.0, num_negatives / max(1, num_items - 1))
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


class Negatives(NamedTuple):
    """A draw of negatives."""

    ids: Tensor
    """[N] shared by the batch, [B, N] one draw a row, or [T, N] one a position."""
    seen: Tensor | None
    """[B, V + 1] bool, what the window of each row holds, where that is to be excluded."""


class NegativeSampler(nn.Module):
    """Draws item ids for positions; see SampledSoftmax for the arguments.

    Popularity is a fact of the data: it is asked of the data module at the first draw, or given to `connect`. It is
    not stored in checkpoints, since only training needs it.
    """

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
        if num_negatives < 1:
            raise ValueError(f"num_negatives ({num_negatives}) must be at least 1.")
        for name, value, known in (
            ("proposal", proposal, ("uniform", "popularity", "in-batch")),
            ("shared", shared, ("position", "row", "batch")),
            ("exclude", exclude, ("nothing", "target", "window")),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}.")
        if distinct and (proposal != "uniform" or shared == "position"):
            raise ValueError("distinct=True needs proposal='uniform' and shared='row' or 'batch'.")
        self.num_negatives, self.proposal, self.shared = num_negatives, proposal, shared
        self.exclude, self.distinct, self.alpha = exclude, distinct, alpha
        self.register_buffer("weights", None, persistent=False)  # [V + 1] float64, sums to 1
        self.register_buffer("cumulative", None, persistent=False)  # [V]

    def connect(self, item_counts: Tensor) -> None:
        """Takes the number of training events of each item, [num_items + 1] with 0 for padding."""
        weights = item_counts.double()
        # in-batch negatives are targets, so they come with the plain count
        weights = weights if self.proposal == "in-batch" else weights.clamp_min(0) ** self.alpha * (weights > 0)
        self.weights = weights / weights.sum()
        self.cumulative = self.weights[1:].cumsum(0)

    def log_q(self, recommender) -> Tensor:
        """Returns [V + 1] float32, log probability of drawing each item (-inf for one that is never drawn)."""
        if self.proposal == "uniform":
            num_items = recommender.items.num_items
            log_q = torch.full((num_items + 1,), -torch.tensor(float(num_items)).log().item())
            return log_q.to(next(recommender.items.parameters()).device)
        return self._known_weights(recommender).log().float()

    def draw(self, recommender: EncoderRecommender, batch: Batch, row: Tensor, target_ids: Tensor) -> Negatives:
        """Draws for T positions.

        Args:
            recommender: whose catalog is drawn from.
            batch: the training batch, B rows.
            row: [T] the row of each position.
            target_ids: [T].
        """
        num_items, device = recommender.items.num_items, target_ids.device
        seen = None
        if self.exclude == "window":
            seen = torch.zeros(len(batch), num_items + 1, dtype=torch.bool, device=device)
            seen.scatter_(1, batch.item_ids, True)
        if self.proposal == "in-batch":
            pick = torch.randperm(len(target_ids), device=device)[: self.num_negatives]
            return Negatives(target_ids[pick], seen)
        if self.distinct:
            return Negatives(self._draw_distinct(batch, num_items, seen, device), seen)
        first = {"position": len(target_ids), "row": len(batch), "batch": None}[self.shared]
        shape = (self.num_negatives,) if first is None else (first, self.num_negatives)
        ids = self._draw(shape, recommender, device)
        if self.exclude != "nothing" and self.shared == "position":
            for _ in range(_REDRAWS):
                taken = self._taken(ids, seen, row, target_ids)
                where = taken.nonzero(as_tuple=True)
                if not len(where[0]):
                    break
                ids[where] = self._draw((len(where[0]),), recommender, device)
        return Negatives(ids, seen)

    def _draw(self, shape: tuple[int, ...], recommender, device: torch.device) -> Tensor:
        num_items = recommender.items.num_items
        if self.proposal == "uniform":
            return torch.randint(1, num_items + 1, shape, device=device)
        self._known_weights(recommender)
        places = torch.searchsorted(self.cumulative, torch.rand(shape, dtype=torch.float64, device=device), right=True)
        return places.clamp_max(num_items - 1) + 1

    def _draw_distinct(self, batch: Batch, num_items: int, seen: Tensor | None, device: torch.device) -> Tensor:
        count = min(self.num_negatives, num_items)
        if self.shared == "batch":
            return torch.randperm(num_items, device=device)[:count] + 1
        keys = torch.rand(len(batch), num_items, device=device)
        if seen is not None:
            keys.masked_fill_(seen[:, 1:], -1.0)  # last to be chosen, and masked if chosen
        return keys.topk(count, sorted=False).indices + 1

    def _known_weights(self, recommender) -> Tensor:
        if self.weights is None:
            trainer = getattr(recommender, "_trainer", None)
            counts = getattr(getattr(trainer, "datamodule", None), "item_counts", None)
            if counts is None:
                raise RuntimeError(
                    f"proposal={self.proposal!r} needs the popularity of items: train with a data module that has "
                    "item_counts, or call objective.sampler.connect(item_counts) first."
                )
            self.connect(counts.to(next(recommender.items.parameters()).device))
        return self.weights

    def _taken(self, ids: Tensor, seen: Tensor | None, row: Tensor, target_ids: Tensor) -> Tensor | None:
        """Returns [T, N] True where a negative does not count, or None."""
        if self.exclude == "nothing":
            return None
        if ids.dim() == 1:
            ids = ids.expand(len(target_ids), -1)
        if seen is None:
            return ids == target_ids[:, None]
        return seen[row[:, None], ids]


Terms = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(positive [b], negative [b, N], taken [b, N] | None) -> scalar sum over positions."""


def _softmax_terms(positive: Tensor, negative: Tensor, taken: Tensor | None) -> Tensor:
    if taken is not None:
        negative = negative.masked_fill(taken, -torch.inf)
    return (torch.cat([positive[:, None], negative], 1).logsumexp(1) - positive).sum()


def _binary_terms(beta: float) -> Terms:
    def terms(positive: Tensor, negative: Tensor, taken: Tensor | None) -> Tensor:
        losses = F.softplus(negative)  # -log(1 - sigmoid)
        if taken is not None:
            losses = losses.masked_fill(taken, 0.0)
        return (beta * F.softplus(-positive).sum() + losses.sum()) / (1 + negative.shape[1])

    return terms


def _sampled_loss(
    states: NextItemStates, sampler: NegativeSampler, terms: Terms, positions: Positions, log_q: Tensor | None = None
) -> Tensor:
    recommender, batch = states.recommender, states.batch
    hidden, targets = states.rows(positions)
    row = torch.arange(len(batch), device=targets.device)
    if positions == "all":
        row = row.repeat_interleave(batch.lengths - 1, output_size=len(targets))
    with torch.no_grad():
        negatives = sampler.draw(recommender, batch, row, targets)
    total = _sum_of_terms(recommender.items, hidden, targets, row, negatives, sampler, terms, log_q)
    return mean_over_targets(total, len(targets))


def _sum_of_terms(items, hidden, targets, row, negatives, sampler, terms, log_q) -> Tensor:
    """Sums the terms of T positions over blocks, with the cheapest way to the negative logits."""
    ids, seen = negatives
    num_negatives, num_items = ids.shape[-1], items.num_items
    head = items.linear_head(hidden)
    dtype = items.head_dtype

    def finish(positive, negative, block_ids, block_row, block_targets):
        negative, positive = negative.float(), positive.float()
        taken = sampler._taken(block_ids, seen, block_row, block_targets)
        if log_q is not None:
            negative = negative - _log_expected(log_q, block_ids, block_targets, taken, num_negatives)
        return terms(positive, negative, taken)

    def linear(x, weight, bias):
        if dtype is None:
            return F.linear(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):  # the weight was cast once, for all blocks
            logits = F.linear(x.to(dtype), weight).float()
        return logits if bias is None else logits + bias

    def ids_of(block, block_row):
        if ids.dim() == 1:
            return ids
        return ids[block_row] if sampler.shared == "row" else ids[block]

    if head is None:

        def scored(x, block):
            block_ids = ids_of(block, row[block])
            if ids.dim() == 1:  # the vectors of shared negatives are made once, not for every position
                positive, negative = items.score(x, targets[block, None])[:, 0], items.score(x, ids)
            else:
                logits = items.score(x, torch.cat([targets[block, None], block_ids], 1))
                positive, negative = logits[:, 0], logits[:, 1:]
            return finish(positive, negative, block_ids, row[block], targets[block])

        vectors = 1 if ids.dim() == 1 else hidden.shape[1]
        size = max(1, _GATHER_BYTES // (4 * vectors * (num_negatives + 1)))
        blocks = [slice(i, i + size) for i in range(0, len(hidden), size)]
        if len(blocks) == 1:  # what one block keeps for the backward pass is within the bound: nothing is made twice
            return scored(hidden, blocks[0])
        return torch.stack([checkpoint(scored, hidden[b], b, use_reentrant=False) for b in blocks]).sum()

    x, weight, bias = head
    if ids.dim() == 2 and num_items <= _DENSE_RATIO[sampler.shared] * num_negatives:  # pick from the full logits

        def dense(block, x, weight, *bias):
            logits = linear(x, weight, bias[0] if bias else None)
            block_row, block_targets = row[block], targets[block]
            block_ids = ids_of(block, block_row)
            positive = logits.gather(1, block_targets[:, None] - 1).squeeze(1)
            return finish(positive, logits.gather(1, block_ids - 1), block_ids, block_row, block_targets)

        shared = (weight,) if bias is None else (weight, bias)
        size = rows_at_once(num_items, x.device, _BLOCK_BYTES, 64, 1024)
        return _sum_over_blocks(dense, size, (x,), shared, dtype)

    places = targets - 1
    positive = (x * F.embedding(places, weight)).sum(-1)
    if bias is not None:
        positive = positive + bias[places]
    if ids.dim() == 1:  # one matmul with the shared vectors

        def with_batch(block, x, positive, vectors, *bias):
            negative = linear(x, vectors, bias[0] if bias else None)
            return finish(positive, negative, ids, row[block], targets[block])

        shared = (F.embedding(ids - 1, weight),) + (() if bias is None else (bias[ids - 1],))
        size = rows_at_once(num_negatives, x.device, _BLOCK_BYTES, 64, 4096)
        return _sum_over_blocks(with_batch, size, (x, positive), shared, dtype)

    def fetched(block, x, positive, weight, *bias):
        block_row = row[block]
        if sampler.shared == "row":  # one matmul a row of the batch
            rows, counts = block_row.unique_consecutive(return_counts=True)
            parts = zip(x.split(counts.tolist()), F.embedding(ids[rows] - 1, weight), strict=True)
            negative = torch.cat([F.linear(part, vectors) for part, vectors in parts])
        else:
            negative = (F.embedding(ids[block] - 1, weight) @ x.unsqueeze(-1)).squeeze(-1)
        block_ids = ids_of(block, block_row)
        if bias:
            negative = negative + bias[0][block_ids - 1]
        return finish(positive, negative, block_ids, block_row, targets[block])

    shared = (weight,) if bias is None else (weight, bias)
    size = max(64, _GATHER_BYTES // (4 * weight.shape[1] * num_negatives))
    return _sum_over_blocks(fetched, size, (x, positive), shared)


def _log_expected(log_q, ids, target_ids, taken, num_negatives) -> Tensor:
    """Log of how often each negative is expected among the n that count, given that the target is not one of them."""
    log_q = log_q.clamp_min(-100.0)  # an item that is never drawn is only looked up as a target
    counted = num_negatives - taken.sum(1, keepdim=True)
    rest = torch.log1p(-log_q[target_ids].exp().clamp_max(1 - 1e-6))[:, None]
    return log_q[ids] - rest + counted.clamp_min(1).float().log()


@torch.compiler.disable
def _sum_over_blocks(
    fn, size: int, per_row: tuple[Tensor, ...], shared: tuple[Tensor, ...], dtype: torch.dtype | None = None
) -> Tensor:
    """Sums fn(block, *rows of the block, *shared); `dtype` is what fn gets shared matrices in."""
    return _SumOverBlocks.apply(fn, size, dtype, len(per_row), *per_row, *shared)


class _SumOverBlocks(torch.autograd.Function):
    """Sums over blocks of rows, and takes the gradient while a block is at hand.

    Memory is that of one block, nothing is computed twice, and gradients are accumulated in their own dtype.
    """

    @staticmethod
    def forward(ctx, fn, size, dtype, num_per_row, *tensors):
        per_row, shared = tensors[:num_per_row], tensors[num_per_row:]
        needed = ctx.needs_input_grad[4:]
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
                part = fn(block, *rows, *shared)
            total = total + part.detach()
            if any(needed):
                wanted = [i for i, need in enumerate(needed) if need]
                leaves = [(rows + shared)[i] for i in wanted]
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
