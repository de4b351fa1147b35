"""The short causal depthwise convolution in front of a selective scan, its step form and its resets.

    out[b, t, d] = activation(bias[d] + sum_k weight[d, k] x[b, t - K + 1 + k, d])

with what came before the start from the state, as in Mamba (state-spaces/mamba, mamba_simple.py). Layout [B, L, D].
With K of about 4 it is a sum of K shifted products; plain PyTorch, differentiated by
autograd, is the only implementation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    resets: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves each channel with its past.

    Args:
        x: [B, L, D] input.
        weight: [D, K], the last column meets the present.
        bias: [D], or None.
        activation: "silu" or None.
        initial_state: [B, K - 1, D], what came before, oldest first; None for zeros.
        return_final_state: also return the last K - 1 inputs.
        resets: [B, L] bool; nothing before a true position is seen at it or after it.

    Returns:
        [B, L, D] in the dtype of x; with `return_final_state` also [B, K - 1, D], the state for what follows.

    Raises:
        ValueError: shapes or devices that do not fit, or another activation.
        TypeError: dtypes that are not floating or, for resets, bool.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2] or weight.shape[1] < 1:
        raise ValueError(f"expected x [B, L, D] and weight [D, K], got {list(x.shape)} and {list(weight.shape)}.")
    if activation not in (None, "silu"):
        raise ValueError(f"activation {activation!r} must be 'silu' or None.")
    batch, length, channels = x.shape
    past = weight.shape[1] - 1
    if initial_state is None:
        initial_state = x.new_zeros(batch, past, channels)
    if tuple(initial_state.shape) != (batch, past, channels):
        raise ValueError(f"initial_state {list(initial_state.shape)} must be {[batch, past, channels]}.")
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"bias {list(bias.shape)} must be {[channels]}.")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("initial_state", initial_state)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating, got {tensor.dtype}.")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}.")
    if resets is not None and resets.dtype != torch.bool:
        raise TypeError(f"resets must be bool, got {resets.dtype}.")
    if resets is not None and tuple(resets.shape) != (batch, length):
        raise ValueError(f"resets {list(resets.shape)} must be {[batch, length]}.")
    whole = torch.cat([initial_state.to(x.dtype), x], 1)
    out = x * weight[:, past]
    # which sequence of a packed row a position belongs to; what came before the row belongs to the first, numbered 0
    part = None if resets is None else F.pad(resets.long().cumsum(1), (past, 0))
    for k in range(past):
        term = whole[:, k : k + length]
        if part is not None:
            term = torch.where((part[:, k : k + length] == part[:, past:])[..., None], term, 0.0)
        out = out + term * weight[:, k]
    if bias is not None:
        out = out + bias
    if activation == "silu":
        out = F.silu(out)
    out = out.to(x.dtype)
    if not return_final_state:
        return out
    final = whole[:, length:]
    if part is not None and past:
        last = part[:, -1:]
        final = torch.where((part[:, length:] == last)[..., None], final, 0.0)
    return out, final


def causal_conv1d_step(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> tuple[Tensor, Tensor]:
    """Advances the convolution by one event.

    Args:
        state: [B, K - 1, D], the inputs before, oldest first.
        x: [B, D].
        weight: [D, K].
        bias: [D], or None.
        activation: "silu" or None.

    Returns:
        out [B, D] and the new state [B, K - 1, D].
    """
    out, state = causal_conv1d(x[:, None], weight, bias, activation, state, True)
    return out[:, 0], state
