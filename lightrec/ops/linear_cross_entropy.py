"""Full-softmax cross-entropy of a linear head, without ever holding the logits of all rows.

The logits of a catalog are the largest tensor of a recommender: 4,096 positions by 100,000 items are 1.6 GB, and as
much again for their gradient. Here a block of rows that fits the cache is multiplied, turned into a loss and into its
gradient, and forgotten. The gradient is made in the forward pass, because the block is at hand there; the backward pass
only scales it.

A kernel is one function (`lightrec.ops.registry.Kernel`, its `backward` stays None):

    forward(hidden, weight, targets, bias, matmul_dtype, block_rows, needs)
        -> the sum over rows, a float32 scalar (float64 for float64 hidden), then the gradients of hidden, weight and
        bias for an upstream gradient of 1, in that dtype; None for each of the three that `needs` says no to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightrec.ops import registry
from lightrec.ops.blocks import rows_that_fit

OP = "linear_cross_entropy"


@dataclass(frozen=True)
class HeadSpec:
    """What decides whether a kernel can run."""

    hidden_size: int = 64
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    matmul_dtype: torch.dtype = torch.float32


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    matmul_dtype: torch.dtype | None = None,
    block_rows: int | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Sums -log softmax(hidden @ weight.T + bias)[target] over rows.

    Args:
        hidden: [T, D] states.
        weight: [V, D] one row per class.
        targets: [T] int64, classes in 0..V-1.
        bias: [V] or None.
        matmul_dtype: dtype of the three matrix products; None is that of autocast if it is on, else float32. Softmax,
            loss and the accumulated weight gradient are float32 always (float64 for float64 input).
        block_rows: rows at a time; None chooses what stays in cache, on a GPU blocks of 256 MiB. A Triton kernel has
            sizes of its own.
        kernel: name of a kernel; None leaves it to `lightrec.ops.registry`.

    Returns:
        Scalar sum (not mean: the caller knows over what to average), float32.

    Raises:
        ValueError: shapes or devices that do not fit, a target that is not a class (looked at on the CPU outside of
            compiled graphs: elsewhere that would stall or break them), or an unknown kernel.
        TypeError: dtypes that are not floating or, for targets, int64.
        RuntimeError: a kernel asked for by name cannot run.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected hidden [T, D] and weight [V, D], got {list(hidden.shape)} and {list(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} must be {[len(weight)]}, one per class.")
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating, got {tensor.dtype}.")
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}.")
    check_targets(targets, hidden, len(weight))
    if matmul_dtype is None:
        kind = hidden.device.type
        matmul_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    if hidden.dtype == torch.float64:
        matmul_dtype = torch.float64
    if block_rows is None:
        block_rows = rows_that_fit(4 * len(weight), hidden.device, "logits", least=64, most=1024)
    forward = _torch_forward
    if not torch.compiler.is_compiling():
        spec = HeadSpec(hidden.shape[1], hidden.device.type, hidden.dtype, matmul_dtype)
        forward = registry.choose(OP, spec, kernel).forward
    return _LinearCrossEntropy.apply(hidden, weight, targets, bias, matmul_dtype, block_rows, forward)


def check_targets(targets: Tensor, rows: Tensor, num_classes: int) -> None:
    """Refuses targets [T] that are not one class, 0..num_classes - 1, for each of rows [T, D].

    Raises:
        ValueError: another shape or device, no class at all, or a number that is not a class, if that can be seen.
        TypeError: not int64.
    """
    if num_classes < 1:
        raise ValueError("there must be at least one class, got 0.")
    if targets.shape != rows.shape[:1]:
        raise ValueError(f"targets {list(targets.shape)} must have one class for each of {len(rows)} rows.")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}.")
    if targets.device != rows.device:
        raise ValueError(f"targets are on {targets.device}, rows on {rows.device}.")
    # a subclass, such as the fake tensors of a tracer, may have no values
    at_hand = type(targets) is Tensor and targets.device.type == "cpu" and not torch.compiler.is_compiling()
    if at_hand and targets.numel():
        least, most = (t.item() for t in targets.aminmax())
        if least < 0 or most >= num_classes:
            raise ValueError(f"targets reach from {least} to {most}; classes are 0..{num_classes - 1}.")


def _torch_forward(hidden, weight, targets, bias, matmul_dtype, block_rows, needs):
    """The `torch` kernel; see the contract."""
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    x, w = hidden.to(matmul_dtype), weight.to(matmul_dtype)
    need_x, need_w, need_b = needs
    total = hidden.new_zeros((), dtype=exact)
    grad_x = torch.empty_like(hidden, dtype=exact) if need_x else None
    grad_w = torch.zeros_like(weight, dtype=exact) if need_w else None
    grad_b = torch.zeros_like(bias, dtype=exact) if need_b else None
    for start in range(0, len(x), block_rows):
        rows = slice(start, start + block_rows)
        xb, column = x[rows], targets[rows, None]
        logits = (xb @ w.T).to(exact)
        if bias is not None:
            logits += bias
        gold = logits.gather(1, column)
        peak, prob = logits.amax(1, keepdim=True), torch.softmax(logits, 1)
        # the largest probability is 1 / sum(exp(logit - peak)): the normaliser for free, and no underflow
        total += (peak - prob.amax(1, keepdim=True).log() - gold).sum()
        if not (need_x or need_w or need_b):
            continue
        prob.scatter_add_(1, column, prob.new_full((), -1.0).expand_as(column))  # d loss / d logits
        if need_b:
            grad_b += prob.sum(0)
        prob = prob.to(matmul_dtype)
        if need_x:
            grad_x[rows] = prob @ w
        if need_w:
            if matmul_dtype == exact:
                grad_w.addmm_(prob.T, xb)
            else:
                grad_w += prob.T @ xb
    return total, grad_x, grad_w, grad_b


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, matmul_dtype, block_rows, forward):
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        with torch.autocast(hidden.device.type, enabled=False):
            total, *gradients = forward(hidden, weight, targets, bias, matmul_dtype, block_rows, needs)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_w, grad_b = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        return (
            None if grad_x is None else (grad_x * grad).to(x_dtype),
            None if grad_w is None else (grad_w * grad).to(w_dtype),
            None,
            None if grad_b is None else grad_b * grad,
            None,
            None,
            None,
        )


registry.register_op(OP, lambda device: HeadSpec(device=device))
registry.register_kernel(registry.Kernel(OP, "torch", _torch_forward, None, lambda spec: None, priority=0))
