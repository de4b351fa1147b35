"""The selective scan (S6) of Mamba: the contract, and the reference that a reader checks against the paper.

    delta = softplus(delta + delta_bias)
    h_t   = exp(delta_t A) h_{t-1} + delta_t B_t x_t          h: [B, D, N]
    y_t   = C_t . h_t + D x_t
    out_t = y_t silu(z_t)

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, algorithm 2; A by its exact
exponential and B by Euler's rule, as in the authors' code (state-spaces/mamba, selective_scan_interface.py).

Layout is [B, L, D] everywhere. Arithmetic is float32 (float64 for float64 x), whatever the inputs' dtypes and whether
or not autocast is on: a decay close to one, multiplied hundreds of times, does not survive bfloat16.

A kernel is a pair of functions (`lightrec.ops.registry.Kernel`), tensors positional, absent ones None:

    forward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every)
        -> out [B, L, D] as x, final_state [B, D, N], checkpoints [B, ceil(L / every), D, N]: the state before the steps
        0, every, 2 every, ... (before a reset there). States are float32 (float64 for float64 x).
        What a reset forgets is masked, not multiplied by 0: NaN and infinity stop there, in gradients as well.
    backward(grad_out, grad_final | None, x, delta, A, B, C, D, z, delta_bias, resets, checkpoints, softplus, every)
        -> gradients of x, delta, A, B, C, D, z, delta_bias, initial_state in that order, None for what is absent.

A kernel without a backward is differentiated by autograd, and its checkpoints may be None. Tensors may have any
strides. `lightrec.testing.check_kernel` tests all of this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightrec.ops import mamba_ssm_scan, registry, torch_scan

OP = "selective_scan"


@dataclass(frozen=True)
class ScanSpec:
    """What decides whether a kernel can run: constants of a model and flags, no batch size, length or tensor."""

    channels: int = 128
    states: int = 16
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    needs_grad: bool = True
    has_initial_state: bool = False
    has_resets: bool = False
    compiling: bool = False
    returns_final_state: bool = False


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    softplus: bool = True,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    resets: Tensor | None = None,
    kernel: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scans a sequence with input-dependent decays; differentiable in every floating input.

    Args:
        x: [B, L, D] input.
        delta: [B, L, D] step sizes, before bias and softplus.
        A: [D, N] rates, negative; zero is allowed (a state that never forgets), above zero a state would grow for
            ever. The sign is looked at on the CPU outside of compiled graphs: elsewhere that would stall or break them.
        B: [B, L, N] what enters the state.
        C: [B, L, N] what is read from it.
        D: [D] skip, or None.
        z: [B, L, D] gate, or None.
        delta_bias: [D], or None.
        softplus: pass delta through softplus after the bias.
        initial_state: [B, D, N], or None for zero.
        return_final_state: also return the state after the last step.
        resets: [B, L] bool; where true, the state is forgotten before that step (a sequence of a packed row begins).
        kernel: name of a kernel; None leaves it to `lightrec.ops.registry`.

    Returns:
        [B, L, D] in the dtype of x; with `return_final_state` also [B, D, N] in float32 (float64 for float64 x).

    Raises:
        ValueError: shapes or devices that do not fit, a rate above zero, or an unknown kernel.
        TypeError: dtypes that are not floating (x and its like) or bool (resets).
        RuntimeError: a kernel asked for by name cannot run.
    """
    check_scan(x, delta, A, B, C, D, z, delta_bias, initial_state, resets)
    tensors = (x, delta, A, B, C, D, z, delta_bias, initial_state)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    compiling = torch.compiler.is_compiling()
    if not compiling:
        _check_rates(A)
    flags = (needs_grad, initial_state is not None, resets is not None, compiling, return_final_state)
    select = _select_while_compiling if compiling else _select
    name = select(A.shape[0], A.shape[1], x.device.type, x.dtype, *flags, kernel)
    with torch.autocast(x.device.type, enabled=False):
        found = registry.registered(OP, name)
        every = found.checkpoint_every
        if found.backward is None:
            out, final, _ = found.forward(*tensors, resets, softplus, every)
        elif compiling:
            out, final, _ = _scan_op(*tensors, resets, softplus, every, name)
        elif needs_grad:
            out, final = _Scan.apply(*tensors, resets, softplus, name)
        else:
            out, final, _ = found.forward(*tensors, resets, softplus, every)
    return (out, final) if return_final_state else out


def selective_scan_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """Advances a state by one event: one step of `selective_scan`, in constant time and memory.

    Args:
        state: [B, D, N] state so far.
        x: [B, D] input; delta and z likewise.
        delta: [B, D].
        A: [D, N].
        B: [B, N].
        C: [B, N].
        D: [D], or None.
        z: [B, D], or None.
        delta_bias: [D], or None.
        softplus: pass delta through softplus after the bias.

    Returns:
        out [B, D] in the dtype of x, and the new state [B, D, N].

    Raises:
        ValueError: shapes or devices that do not fit, or a rate above zero.
        TypeError: dtypes that are not floating.
    """
    gate = None if z is None else z[:, None]
    sequence = x[:, None], delta[:, None], A, B[:, None], C[:, None], D, gate, delta_bias
    check_scan(*sequence, state, None)
    if not torch.compiler.is_compiling():
        _check_rates(A)
    with torch.autocast(x.device.type, enabled=False):
        out, state = reference_scan(*sequence, state, None, softplus)
    return out[:, 0], state


def reference_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The formulas at the top of the file, step by step. Never fast, always right."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, A, B, C = x.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)
    delta = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    if softplus:
        delta = F.softplus(delta, threshold=40.0)  # exp(-40) is below float64's rounding of 40
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(x.shape[1]):
        if resets is not None:
            h = torch.where(resets[:, t, None, None], 0.0, h)
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * u[:, t, :, None] * B[:, t, None, :]
        outputs.append((h * C[:, t, None, :]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(u)
    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h


def check_scan(x, delta, A, B, C, D, z, delta_bias, initial_state, resets) -> None:
    """Refuses tensors whose shapes, devices or dtypes do not fit together."""
    if x.dim() != 3 or A.dim() != 2:
        raise ValueError(f"expected x [B, L, D] and A [D, N], got {list(x.shape)} and {list(A.shape)}.")
    batch, length, channels = x.shape
    states = A.shape[1]
    if states < 1:
        raise ValueError("A [D, N] needs at least one state a channel, got N = 0.")
    expected = {
        "delta": (delta, (batch, length, channels)),
        "A": (A, (channels, states)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, states)),
        "resets": (resets, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} {list(tensor.shape)} must be {list(shape)} for x {list(x.shape)} and N={states}.")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}.")
        if name != "resets" and not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating, got {tensor.dtype}.")
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must be floating, got {x.dtype}.")
    if resets is not None and resets.dtype != torch.bool:
        raise TypeError(f"resets must be bool, got {resets.dtype}.")


def _check_rates(A: Tensor) -> None:
    # a subclass, such as the fake tensors of a tracer, may have no values
    if A.device.type == "cpu" and A.numel() and type(A) in (Tensor, torch.nn.Parameter):
        largest = A.detach().max().item()
        if largest > 0:
            raise ValueError(f"A [D, N] must not be above zero (its largest rate is {largest:g}); pass -exp(A_log).")


def _select(*facts) -> str:
    *spec, kernel = facts
    return registry.choose(OP, ScanSpec(*spec), kernel).name


# The choice is a fact of the trace: neither the registry nor its context variable becomes part of a graph.
@torch.compiler.assume_constant_result
def _select_while_compiling(*facts) -> str:
    return _select(*facts)


class _Scan(torch.autograd.Function):
    """The eager path: a third of a custom op's overhead."""

    @staticmethod
    def forward(ctx, x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, name):
        found = registry.get_kernel(OP, name)
        every = found.checkpoint_every
        out, final, kept = found.forward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every)
        ctx.save_for_backward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, kept)
        ctx.softplus, ctx.kernel = softplus, found
        ctx.set_materialize_grads(False)
        return out, final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, grad_final):
        *inputs, resets, kept = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(inputs[0])
        every = ctx.kernel.checkpoint_every
        with torch.autocast(grad_out.device.type, enabled=False):
            made = ctx.kernel.backward(grad_out, grad_final, *inputs[:8], resets, kept, ctx.softplus, every)
        return *_as(made, inputs), None, None, None


def _as(gradients, inputs) -> tuple[Tensor | None, ...]:
    return tuple(None if i is None else g.to(i.dtype) for g, i in zip(gradients, inputs, strict=True))


@torch.library.custom_op("lightrec::selective_scan", mutates_args=())
def _scan_op(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    softplus: bool,
    every: int,
    kernel: str,
) -> tuple[Tensor, Tensor, Tensor]:
    found = registry.get_kernel(OP, kernel)
    tensors = x, delta, A, B, C, D, z, delta_bias, initial_state, resets
    return tuple(t.contiguous() for t in found.forward(*tensors, softplus, every))


@_scan_op.register_fake
def _(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every, kernel):
    state = (x.shape[0], *A.shape)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept = (x.shape[0], (x.shape[1] + every - 1) // every, *A.shape)
    return x.new_empty(x.shape), x.new_empty(state, dtype=dtype), x.new_empty(kept, dtype=dtype)


@torch.library.custom_op("lightrec::selective_scan_backward", mutates_args=())
def _scan_backward_op(
    grad_out: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    kept: Tensor,
    softplus: bool,
    every: int,
    kernel: str,
) -> list[Tensor]:
    inputs = x, delta, A, B, C, D, z, delta_bias
    found = registry.get_kernel(OP, kernel)
    made = found.backward(grad_out, grad_final, *inputs, resets, kept, softplus, every)
    # an op's outputs cannot be None: what is absent is an empty tensor, dropped by the caller
    return [x.new_empty(0) if g is None else g.contiguous() for g in _as(made, (*inputs, initial_state))]


@_scan_backward_op.register_fake
def _(grad_out, grad_final, x, delta, A, B, C, D, z, delta_bias, initial_state, resets, kept, softplus, every, kernel):
    inputs = x, delta, A, B, C, D, z, delta_bias, initial_state
    return [x.new_empty(0) if i is None else i.new_empty(i.shape) for i in inputs]


def _setup(ctx, inputs, output):
    *tensors, softplus, every, kernel = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.facts = softplus, every, kernel
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_out, grad_final, _):
    *inputs, resets, kept = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(inputs[0])
    made = _scan_backward_op(grad_out, grad_final, *inputs, resets, kept, *ctx.facts)
    return *(None if i is None else g for g, i in zip(made, inputs, strict=True)), None, None, None, None


_scan_op.register_autograd(_differentiate, setup_context=_setup)


def _reference_forward(*arguments):
    *inputs, every = arguments
    return *reference_scan(*inputs), None


registry.register_op(OP, lambda device: ScanSpec(device=device))
registry.register_kernel(registry.Kernel(OP, "reference", _reference_forward, None, lambda spec: None, priority=-100))
registry.register_kernel(
    registry.Kernel(
        OP, "torch", torch_scan.forward, torch_scan.backward, lambda spec: None, priority=0, checkpoint_every=16
    )
)
registry.register_kernel(
    registry.Kernel(OP, "mamba_ssm", mamba_ssm_scan.forward, None, mamba_ssm_scan.accepts, priority=30)
)
