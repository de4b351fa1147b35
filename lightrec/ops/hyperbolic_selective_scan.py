"""The selective scan on the hyperboloid, and its maps to and from the tangent space at the origin.

Sectional curvature is -kappa with kappa >= 0; kappa = 0 is flat space, without a special case. A point is carried by
its space part x_s [..., D]; its time part sqrt(1/kappa + |x_s|^2) is implied.

    exp0(v) = v phi(kappa |v|^2)     phi(s) = sinh(sqrt s) / sqrt s
    log0(x) = x psi(kappa |x|^2)     psi(s) = asinh(sqrt s) / sqrt s

Both functions are analytic in s at 0. Their derivatives are written out, because automatic differentiation through
sqrt(s) is NaN at v = 0 and at kappa = 0.

The scan's decay is exp(delta_t (A . s)) with a factor s [N] that differs from one in its first state only (HMamba,
arXiv 2505.09205, algorithm 1, where the factor is K = diag(sqrt(1/kappa), 1, ...)):

    "paper"       s_0 = kappa^(-1/2). Euclidean at kappa = 1; as kappa goes to 0 the first state forgets at once.
    "flat-limit"  s_0 = sqrt(1 + kappa). Euclidean at kappa = 0; not from the paper.
    "none"        s_0 = 1: what the authors' code does.

The scan itself runs by the kernels of `selective_scan`. The maps are an op of their own, `radial_map`; its kernels are

    forward(v [..., D], kappa, "exp0" | "log0") -> out [..., D] as v, kept: what backward wants
    backward(grad_out, v, kappa, kept, "exp0" | "log0") -> gradients of v and kappa

with kappa a tensor without dimensions, float32 (float64 for float64 v). Compiled graphs contain the `torch` one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightrec.ops import registry
from lightrec.ops.selective_scan import check_scan, selective_scan

MAP = "radial_map"
FACTORS = ("paper", "flat-limit", "none")


@dataclass(frozen=True)
class MapSpec:
    """What decides whether a kernel of `radial_map` can run."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    compiling: bool = False


def hyperbolic_selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    kappa: Tensor | float = 1.0,
    factor: str = "flat-limit",
    map_input: bool = False,
    map_output: bool = False,
    softplus: bool = True,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    resets: Tensor | None = None,
    kernel: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scans with decays that depend on curvature; differentiable in every floating input and in kappa.

    Args:
        x: [B, L, D] tangent vectors, or with `map_input` the space parts of points.
        delta: as of `selective_scan`, like A to delta_bias.
        A: [D, N].
        B: [B, L, N].
        C: [B, L, N].
        D: [D], or None.
        z: [B, L, D], or None.
        delta_bias: [D], or None.
        kappa: scalar >= 0, minus the sectional curvature.
        factor: "paper", "flat-limit" or "none".
        map_input: take log0 of x first.
        map_output: return exp0 of the result.
        softplus: as of `selective_scan`, like the rest.
        initial_state: [B, D, N], or None.
        return_final_state: also return the last state.
        resets: [B, L] bool, or None.
        kernel: name of a kernel of `selective_scan`: the factor changes A, not the kernel.

    Returns:
        As of `selective_scan`.

    Raises:
        ValueError: an unknown factor, a kappa that is not a finite scalar >= 0 (> 0 for "paper"); and as of
            `selective_scan`, as are the other two.
        TypeError: dtypes that are not floating or, for resets, bool.
        RuntimeError: a kernel asked for by name cannot run.
    """
    check_scan(x, delta, A, B, C, D, z, delta_bias, initial_state, resets)
    kappa = checked_curvature(kappa, x, factor)
    rates = A * decay_factor(kappa, A.shape[1], factor)
    u = log0(x, kappa) if map_input else x
    optional = D, z, delta_bias, softplus, initial_state, return_final_state, resets, kernel
    made = selective_scan(u, delta, rates, B, C, *optional)
    if not map_output:
        return made
    return (exp0(made[0], kappa), made[1]) if return_final_state else exp0(made, kappa)


def decay_factor(kappa: Tensor, states: int, factor: str) -> Tensor:
    """The factor s [N] of the decay rates.

    Raises:
        ValueError: an unknown factor.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor {factor!r} must be one of {', '.join(FACTORS)}.")
    ones = kappa.new_ones(states)
    if factor == "none":
        return ones
    first = kappa.rsqrt() if factor == "paper" else (1 + kappa).sqrt()
    return torch.cat([first.reshape(1), ones[1:]])


def exp0(v: Tensor, kappa: Tensor | float) -> Tensor:
    """Space part of the exponential map at the origin.

    Args:
        v: [..., D] tangent vectors. sqrt(kappa)|v| beyond 44 overflows float32: cap it before.
        kappa: scalar >= 0.

    Returns:
        [..., D], dtype of v; computed in float32 (float64 for float64 v).

    Raises:
        ValueError: kappa is not a finite scalar >= 0.
        TypeError: vectors that are not floating.
    """
    return _map(v, checked_curvature(kappa, v), "exp0")


def log0(x: Tensor, kappa: Tensor | float) -> Tensor:
    """Logarithm at the origin of points given by their space part; the inverse of `exp0`.

    Args:
        x: [..., D] space parts.
        kappa: scalar >= 0.

    Returns:
        [..., D] tangent vectors, dtype of x; computed in float32 (float64 for float64 x).

    Raises:
        ValueError: kappa is not a finite scalar >= 0.
        TypeError: vectors that are not floating.
    """
    return _map(x, checked_curvature(kappa, x), "log0")


def checked_curvature(kappa: Tensor | float, like: Tensor, factor: str = "none") -> Tensor:
    """Curvature as a scalar on the device of `like`, in the dtype that is computed in.

    Raises:
        ValueError: no finite scalar >= 0, as far as that can be seen (> 0 for the factor "paper").
        TypeError: `like` is not floating.
    """
    if not like.is_floating_point():
        raise TypeError(f"vectors must be floating, got {like.dtype}.")
    if isinstance(kappa, Tensor) and kappa.numel() != 1:
        raise ValueError(f"kappa must be a scalar, got {list(kappa.shape)}.")
    # reading a value back stalls an accelerator and breaks a graph: there, a learnable kappa is the caller's word
    if not isinstance(kappa, Tensor) or (kappa.device.type == "cpu" and not torch.compiler.is_compiling()):
        value = float(kappa.detach()) if isinstance(kappa, Tensor) else float(kappa)
        if not 0 <= value < float("inf"):
            raise ValueError(f"kappa ({value}) must be finite and not negative.")
        if factor == "paper" and value == 0:
            raise ValueError('factor "paper" needs a positive kappa: its first rate is infinite in flat space.')
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.as_tensor(kappa, dtype=dtype, device=like.device).reshape(())


def _series(s: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = torch.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * s + c
    return total


# sinh(r)/r = sum s^k / (2k+1)!; below s = 1 nine terms reach float64's rounding
_PHI = tuple(1.0 / f for f in (1, 6, 120, 5040, 362880, 39916800, 6227020800, 1307674368000, 355687428096000))
# asinh(r)/r = sum (-1)^k (2k)! / (4^k k!^2 (2k+1)) s^k; below s = 0.01
_PSI = (1.0, -1 / 6, 3 / 40, -15 / 336, 105 / 3456, -945 / 42240, 10395 / 599040, -135135 / 9676800)


def _slopes(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(k * c for k, c in enumerate(coefficients))[1:]


def _phi(s: Tensor) -> tuple[Tensor, Tensor]:
    """phi and its derivative in s; the unused branch is fed a harmless value."""
    near, far = s < 1.0, s.clamp_min(1.0)
    root = far.sqrt()
    value = torch.where(near, _series(s, _PHI), torch.sinh(root) / root)
    slope = torch.where(near, _series(s, _slopes(_PHI)), (torch.cosh(root) - torch.sinh(root) / root) / (2 * far))
    return value, slope


def _psi(s: Tensor) -> tuple[Tensor, Tensor]:
    """psi and its derivative in s."""
    near, far = s < 0.01, s.clamp_min(0.01)
    root = far.sqrt()
    value = torch.where(near, _series(s, _PSI), torch.asinh(root) / root)
    slope = torch.where(near, _series(s, _slopes(_PSI)), ((1 + far).rsqrt() - torch.asinh(root) / root) / (2 * far))
    return value, slope


_FUNCTIONS = {"exp0": _phi, "log0": _psi}


def _forward(v, kappa, function):
    # Few passes over [..., D], since a scan takes no more than ten times one; what is per row is as good as free.
    square = torch.linalg.vector_norm(v, dim=-1, keepdim=True, dtype=kappa.dtype).square()
    value, slope = _FUNCTIONS[function](kappa * square)
    return (v * value).to(v.dtype), torch.cat([square, value, slope], -1)


def _backward(grad, v, kappa, kept, function):
    square, value, slope = kept.unbind(-1)
    wide, g = v.to(kappa.dtype), grad.to(kappa.dtype)
    along = torch.einsum("...d,...d->...", g, wide) * slope  # without the product in memory
    dv = (g * value.unsqueeze(-1)).addcmul_(wide, (2 * kappa * along).unsqueeze(-1))
    return dv, (along * square).sum()


def _map(v: Tensor, kappa: Tensor, function: str) -> Tensor:
    compiling = torch.compiler.is_compiling()
    name = "torch" if compiling else registry.choose(MAP, MapSpec(v.device.type, v.dtype)).name
    return _RadialMap.apply(v, kappa, function, name)


class _RadialMap(torch.autograd.Function):
    """v f(kappa |v|^2), with f's derivative written out."""

    @staticmethod
    def forward(ctx, v, kappa, function, kernel):
        out, kept = registry.registered(MAP, kernel).forward(v, kappa, function)
        ctx.save_for_backward(v, kappa, kept)
        ctx.facts = function, kernel
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        v, kappa, kept = ctx.saved_tensors
        function, kernel = ctx.facts
        with torch.autocast(grad.device.type, enabled=False):  # a gradient asked for within autocast, too, is exact
            dv, dkappa = registry.registered(MAP, kernel).backward(grad, v, kappa, kept, function)
        return dv.to(v.dtype), dkappa.to(kappa.dtype), None, None


registry.register_op(MAP, lambda device: MapSpec(device=device))
registry.register_kernel(registry.Kernel(MAP, "torch", _forward, _backward, lambda spec: None, priority=0))
