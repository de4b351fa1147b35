"""Full-softmax cross-entropy of hyperbolic distances, without ever holding the logits of all rows.

    logit = -d^p / temperature,   d = arcosh(1 + kappa q) / sqrt(kappa),   q = rows . items

where q is half the squared chord of two points, as a product of D + 2 columns (see `lightrec.nn.hyperbolic`). The plan
is that of `linear_cross_entropy`: a block of rows is multiplied, turned into losses and into its gradient, and
forgotten. What is new is elementwise, and done tile by tile in place, while a tile is in cache.

Three gradients need no pass of their own, since q is bilinear and d^p is kappa^(-p/2) times a function of kappa q:

    d/d rows         = (d/dq) items
    d/d log temp.    = -sum of (d/d logit) logit
    d/d kappa        = (sum of rows (d/d rows) - p/2 sum of (d/d logit) logit) / kappa
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightrec.ops.blocks import rows_that_fit
from lightrec.ops.hyperbolic_selective_scan import checked_curvature
from lightrec.ops.linear_cross_entropy import check_targets

_TILE = 1024  # columns; a tile of 128 rows is half a megabyte
_TINY = 1e-30  # least kappa q: arcosh and its slope are exact to rounding there
_FLAT = 1e-20  # least kappa: indistinguishable from zero in float32, and nothing is divided by zero


def distance_cross_entropy(
    rows: Tensor,
    items: Tensor,
    targets: Tensor,
    kappa: Tensor,
    log_temperature: Tensor,
    power: int,
    limit: float | None = None,
    block_rows: int | None = None,
) -> Tensor:
    """Sums -log softmax(-d^power / temperature)[target] over rows.

    Args:
        rows: [T, M], the left factors of q, for states.
        items: [V, M], the right factors, one per class.
        targets: [T] int64, classes in 0..V-1.
        kappa: scalar >= 0, minus the sectional curvature; its gradient here is that at fixed q.
        log_temperature: scalar.
        power: 1 for the distance, with gradient zero where it is zero; 2 for its square.
        limit: largest kappa q: distances beyond are those at the limit, without gradient; None for none.
        block_rows: rows at a time; None chooses what stays in cache, on a GPU blocks of 256 MiB.

    Returns:
        Scalar sum, float32 (float64 for float64 input); all products are made in that dtype.

    Raises:
        ValueError: shapes that do not fit, a target that is not a class, or another power; a kappa that is not a finite
            scalar >= 0, or is learned under a limit.
        TypeError: rows that are not floating, targets that are not int64.
    """
    if rows.dim() != 2 or items.dim() != 2 or rows.shape[1] != items.shape[1]:
        raise ValueError(f"expected rows [T, M] and items [V, M], got {list(rows.shape)} and {list(items.shape)}.")
    check_targets(targets, rows, len(items))
    kappa = checked_curvature(kappa, rows)
    if power not in (1, 2):
        raise ValueError(f"power ({power}) must be 1 or 2.")
    if limit is not None and kappa.requires_grad:
        raise ValueError(f"with a limit ({limit}) kappa has no gradient here: it must not require one.")
    if block_rows is None:
        block_rows = rows_that_fit(4 * len(items), rows.device, "distances", least=32, most=256)
    return _DistanceCrossEntropy.apply(rows, items, targets, kappa, log_temperature, power, limit, block_rows)


def _logits_and_slopes(rows, items, kappa, scale, power, limit, logits, slopes) -> None:
    """Fills logits [R, V] = -d^p / temperature, and slopes [R, V], their derivatives in q but for a common factor."""
    tile = _TILE if rows.device.type == "cpu" else len(items)
    for start in range(0, len(items), tile):
        columns = slice(start, start + tile)
        t, s = logits[:, columns], slopes[:, columns]
        torch.mm(rows, items[columns].T, out=t)
        t.mul_(kappa).clamp_(_TINY, limit)
        beyond = None if limit is None else t >= limit
        torch.add(t, 2.0, out=s)
        s.mul_(t).sqrt_()
        a = t.add_(s).log1p_()  # arcosh(1 + t), with full precision near t = 0
        if power == 2:
            torch.div(a, s, out=s)
            a.square_()
        else:
            s.masked_fill_(s < 1e-14, torch.inf).reciprocal_()
        a.mul_(scale)
        if beyond is not None:
            s.masked_fill_(beyond, 0.0)


def _factors(kappa: Tensor, temperature: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """What arcosh^p must be multiplied by to be logits, and the slopes above to be their derivatives."""
    if power == 2:
        return -1 / (kappa * temperature), -2 / temperature
    return -1 / (kappa.sqrt() * temperature), -kappa.sqrt() / temperature


class _DistanceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, items, targets, kappa, log_temperature, power, limit, block_rows):
        exact = torch.float64 if rows.dtype == torch.float64 else torch.float32
        with torch.autocast(rows.device.type, enabled=False):
            x, y = rows.to(exact), items.to(exact)
            curved = kappa.to(exact).clamp_min(_FLAT)
            scale, slope_scale = _factors(curved, log_temperature.to(exact).exp(), power)
            needed = any(ctx.needs_input_grad)
            total, by_logit = x.new_zeros(()), x.new_zeros(())
            grad_x = torch.empty_like(x) if needed else None
            grad_y = torch.zeros_like(y) if needed else None
            shape = min(block_rows, len(x)), len(y)
            buffers = x.new_empty(shape), x.new_empty(shape)
            for start in range(0, len(x), block_rows):
                block = slice(start, start + block_rows)
                xb, column = x[block], targets[block, None]
                logits, slopes = (b[: len(xb)] for b in buffers)
                _logits_and_slopes(xb, y, curved, scale, power, limit, logits, slopes)
                gold = logits.gather(1, column)
                peak, prob = logits.amax(1, keepdim=True), torch.softmax(logits, 1)
                total += (peak - prob.amax(1, keepdim=True).log() - gold).sum()
                if not needed:
                    continue
                prob.scatter_add_(1, column, prob.new_full((), -1.0).expand_as(column))  # d loss / d logits
                by_logit += torch.dot(prob.flatten(), logits.flatten())
                by_q = prob.mul_(slopes)
                torch.mm(by_q, y, out=grad_x[block])
                grad_y.addmm_(by_q.T, xb)
            if needed:
                grad_x.mul_(slope_scale)
                grad_y.mul_(slope_scale)
                by_kappa = ((grad_x * x).sum() - power / 2 * by_logit) / curved
                ctx.save_for_backward(grad_x, grad_y, by_kappa, by_logit)
        ctx.dtypes = rows.dtype, items.dtype, kappa.dtype, log_temperature.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grad_x, grad_y, by_kappa, by_logit = ctx.saved_tensors
        parts = (grad_x * grad, grad_y * grad, by_kappa * grad, -by_logit * grad)
        by_x, by_y, by_kappa, by_temperature = (p.to(d) for p, d in zip(parts, ctx.dtypes, strict=True))
        return by_x, by_y, None, by_kappa, by_temperature, None, None, None
