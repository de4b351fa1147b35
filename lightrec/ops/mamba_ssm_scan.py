"""The `mamba_ssm` kernel of the selective scan: the CUDA code of Mamba's authors (state-spaces/mamba), if installed.

Its layout is [B, D, L], so four tensors are transposed on the way in and one on the way out. It takes no initial state
and no resets, its final state has no gradient, and its gradients of B and C are summed by atomics, so they differ in
the last bits from run to run. Hence a priority below kernels that keep the whole contract.

Tested without a GPU: what it refuses, and the plumbing against a stand-in that follows the documented formulas. It has
not run against the library itself. Contract: `lightrec.ops.selective_scan`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

MOST_STATES = 256  # csrc/selective_scan/selective_scan.cpp
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def accepts(spec) -> str | None:
    """None, or why the kernel cannot run this call. The library is looked for last: importing it takes seconds."""
    if spec.device != "cuda":
        return f"it runs on CUDA, not on {spec.device}"
    if spec.dtype not in _DTYPES:
        return f"it computes in float32; x is {spec.dtype}"
    if spec.has_resets:
        return "it knows no resets"
    if spec.has_initial_state:
        return "it starts from zero and takes no initial state"
    if spec.needs_grad and spec.returns_final_state:
        return "its final state has no gradient"
    if spec.states > MOST_STATES:
        return f"it has room for {MOST_STATES} states a channel, not for {spec.states}"
    if spec.compiling:
        return "it cannot be part of a compiled graph"
    return library()[1]


@cache
def library() -> tuple[Callable | None, str | None]:
    """The library's function, or why there is none."""
    try:
        # The package alone is not enough: it installs without its CUDA extension and then fails when it is called.
        import selective_scan_cuda  # noqa: F401
    except ImportError as error:
        return None, f"its extension module selective_scan_cuda cannot be imported ({error})"
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception as error:  # its package imports much else, which may be missing or too new
        return None, f"mamba_ssm cannot be imported ({type(error).__name__}: {error})"
    return selective_scan_fn, None


def forward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every):
    """See the contract; autograd differentiates it through the library's own backward."""
    wide = torch.float32
    if x.numel() == 0:
        return x.clone(), x.new_zeros(x.shape[0], *A.shape, dtype=wide), None
    # the library wants one dtype for all that has a length: the widest, so that nothing is rounded
    dtype = x.dtype
    for tensor in (delta, B, C, z):
        dtype = dtype if tensor is None else torch.promote_types(dtype, tensor.dtype)
    dtype = wide if dtype == torch.float64 else dtype

    def turned(tensor):
        return None if tensor is None else tensor.to(dtype).transpose(1, 2).contiguous()

    def parameter(tensor):
        return None if tensor is None else tensor.to(wide).contiguous()

    out, final = library()[0](
        turned(x),
        turned(delta),
        parameter(A),
        turned(B),
        turned(C),
        D=parameter(D),
        z=turned(z),
        delta_bias=parameter(delta_bias),
        delta_softplus=softplus,
        return_last_state=True,
    )
    return out.transpose(1, 2).to(x.dtype), final.detach().to(wide), None
