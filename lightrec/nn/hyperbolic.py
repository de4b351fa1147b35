"""Hyperbolic geometry in the hyperboloid model.

Sectional curvature is -kappa with kappa >= 0; kappa = 0 is flat space, without a special case. A point is carried by
its space part x [..., D]; its time part sqrt(1/kappa + |x|^2) is implied, so that every vector is a point. The maps
exp0 and log0 between vectors and points are in `lightrec.ops.hyperbolic_selective_scan`.

The usual forms of the distance subtract numbers near 1 (or near 1/kappa) from each other. Here

    u(x)    = |x|^2 / (1 + sqrt(1 + kappa |x|^2))           how far the time part has risen
    q(x, y) = u(x) + u(y) + kappa u(x) u(y) - x . y         half the squared chord; -kappa <x, y> = 1 + kappa q
    d(x, y) = arcosh(1 + kappa q) / sqrt(kappa) = 2 asinh(sqrt(kappa q / 2)) / sqrt(kappa)

and q is one matrix product of D + 2 columns for a whole catalog: [x, u(x), 1] . [-y, 1 + kappa u(y), u(y)]. d^2 is
analytic in q and in kappa at 0, where it is 2 q = |x - y|^2; its derivatives are written out below.

Rounding: q of one product is good to 1e-7 of u(x) + u(y), not of q. `distance` subtracts first and is good for near
points too. Both lose digits as cosh(sqrt(kappa) r) grows, which is what `cap_norm` is for.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CAP = 8.0  # sqrt(kappa) r at which cosh has lost half of float32's digits


def lift(x: Tensor, kappa: Tensor | float) -> Tensor:
    """Puts the time part before a space part.

    Args:
        x: [..., D] space parts.
        kappa: scalar > 0.

    Returns:
        [..., 1 + D], points of the hyperboloid <p, p> = -1/kappa.
    """
    return torch.cat([(1 / kappa + x.square().sum(-1, keepdim=True)).sqrt(), x], -1)


def minkowski(x: Tensor, y: Tensor) -> Tensor:
    """The product <x, y> = -x_0 y_0 + x_1 y_1 + ... of [..., 1 + D] points, [...]."""
    return (x[..., 1:] * y[..., 1:]).sum(-1) - x[..., 0] * y[..., 0]


def distance(x: Tensor, y: Tensor, kappa: Tensor | float) -> Tensor:
    """Distance of points by the asinh of their chord, good for near points; the gradient at x = y is zero.

    Args:
        x: [..., D] space parts.
        y: [..., D] space parts.
        kappa: scalar >= 0.

    Returns:
        [...], d(x, y) >= 0.
    """
    kappa = torch.as_tensor(kappa, dtype=x.dtype, device=x.device)
    step = x - y
    time_x, time_y = ((1 + kappa * p.square().sum(-1)).sqrt() for p in (x, y))
    time_step = (step * (x + y)).sum(-1) / (time_x + time_y)  # sqrt(kappa) is left out of it
    chord = step.square().sum(-1) - kappa * time_step.square()
    return distance_power(chord / 2, kappa, 1)


def cap_norm(v: Tensor, kappa: Tensor | float, cap: float = CAP) -> Tensor:
    """Shortens vectors smoothly: |v| becomes c tanh(|v| / c) with c = cap / sqrt(kappa), so that sqrt(kappa)|v| < cap.

    Args:
        v: [..., D] tangent vectors at the origin.
        kappa: scalar >= 0; in flat space nothing is shortened.
        cap: the bound.

    Returns:
        [..., D]. Directions are kept, and the gradient is nowhere zero or infinite.
    """
    square = kappa * v.square().sum(-1, keepdim=True) / cap**2
    near = square < 1e-4
    root = square.clamp_min(1e-4).sqrt()
    return v * torch.where(near, 1 - square / 3 + square.square() * (2 / 15), torch.tanh(root) / root)


def rise(x: Tensor, kappa: Tensor | float) -> Tensor:
    """u(x) of the module's docstring: [..., D] -> [..., 1]."""
    square = x.square().sum(-1, keepdim=True)
    return square / (1 + (1 + kappa * square).sqrt())


def state_rows(x: Tensor, kappa: Tensor | float) -> Tensor:
    """[x, u(x), 1]: the left factor of q; [..., D] -> [..., D + 2]."""
    u = rise(x, kappa)
    return torch.cat([x, u, torch.ones_like(u)], -1)


def item_rows(y: Tensor, kappa: Tensor | float) -> Tensor:
    """[-y, 1 + kappa u(y), u(y)]: the right factor of q; [..., D] -> [..., D + 2]."""
    u = rise(y, kappa)
    return torch.cat([-y, 1 + kappa * u, u], -1)


def distance_power(q: Tensor, kappa: Tensor | float, power: int) -> Tensor:
    """Distance, or its square, from half the squared chord.

    Args:
        q: [...], of any sign that rounding gives it.
        kappa: scalar >= 0.
        power: 1 for d, whose gradient is set to zero where d is; 2 for d^2, which is smooth.

    Returns:
        [...].
    """
    return _DistancePower.apply(q, torch.as_tensor(kappa, dtype=q.dtype, device=q.device), power)


_TINY = 1e-30  # its square root and the ratios below are exact to rounding in float32


def squared_distance(q: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d^2 and what its derivatives are made of, [...] each: d^2, its derivative in q, and t = kappa q, at least 1e-30.

    With a = arcosh(1 + t) = log(1 + t + s), s = sqrt(t (t + 2)): d^2 = q a^2 / t and 2 a / s. Both ratios tend to 2 as
    t goes to 0, and reach it in floating point at t = 1e-30.
    """
    t = (kappa * q).clamp_min_(_TINY)
    s = (t + 2).mul_(t).sqrt_()
    a = (t + s).log1p_()
    slope = (2 * a).div_(s)
    return a.square_().div_(t).mul_(q), slope, t


def squared_distance_by_kappa(q: Tensor, squared: Tensor, slope: Tensor, t: Tensor) -> Tensor:
    """Derivative of d^2 in kappa, [...]: (q slope - d^2) / kappa, or q^2 (slope - d^2 / q) / t; -q^2 / 3 in flat space.

    Near 0 the difference loses its digits, and the first terms of its series in t stand for it.
    """
    near = t < (1e-3 if q.dtype == torch.float64 else 2e-2)
    far = (slope * q).sub_(squared).mul_(q).div_(t)
    # -1/3 + t (8/45 - t (3/35 - t 64/1575)), from the inside
    series = (t * (64 / 1575)).sub_(3 / 35).mul_(t).add_(8 / 45).mul_(t).sub_(1 / 3)
    return torch.where(near, series.mul_(q).mul_(q), far)


class _DistancePower(torch.autograd.Function):
    """Keeps q only: what else the backward pass needs is cheaper to compute again than to keep."""

    @staticmethod
    def forward(ctx, q, kappa, power):
        ctx.save_for_backward(q, kappa)
        ctx.power = power
        squared, _, _ = squared_distance(q, kappa)
        return squared if power == 2 else squared.clamp_min_(0).sqrt_()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, kappa = ctx.saved_tensors
        squared, slope, t = squared_distance(q, kappa)
        if ctx.power == 1:
            grad = torch.where(squared > _TINY, grad / (2 * squared.clamp_min(_TINY).sqrt()), torch.zeros_like(grad))
        by_kappa = None
        if ctx.needs_input_grad[1]:
            by_kappa = (squared_distance_by_kappa(q, squared, slope, t) * grad).sum()
        return slope.mul_(grad), by_kappa, None


class Curvature(nn.Module):
    """kappa = softplus(rho), minus the sectional curvature; shared by all that live in one space.

    Args:
        kappa: value at first.
        learn: train it; else it stays exactly what it is.

    Raises:
        ValueError: a kappa that is negative or not finite, or zero and to be learned.
    """

    def __init__(self, kappa: float = 1.0, learn: bool = True):
        super().__init__()
        if not 0 <= kappa < math.inf or (learn and kappa == 0):
            raise ValueError(f"kappa ({kappa}) must be finite and not negative, and positive if it is learned.")
        if learn:
            self.rho = nn.Parameter(torch.tensor(kappa + math.log(-math.expm1(-kappa))))
        else:  # not part of a checkpoint: the constructor knows it
            self.register_buffer("kappa", torch.tensor(float(kappa)), persistent=False)
        self.learn = learn

    def forward(self) -> Tensor:
        """Returns kappa, a scalar."""
        return F.softplus(self.rho) if self.learn else self.kappa
