"""The conformance suite for a scan kernel: what an outside author runs against the float64 reference.

from lightrec.testing.kernels import check_kernel
check_kernel("my_kernel")
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightrec.ops import registry
from lightrec.ops.selective_scan import OP, ScanSpec, reference_scan, selective_scan

# float32 against float64, relative to the largest value: sums of some hundred terms, exponentials of rounded products.
OUTPUT_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 5e-6
# bfloat16 inputs and outputs with float32 states: half a unit of 8 bits in what is stored.
BFLOAT16_TOLERANCE = 1e-2
FLOAT64_TOLERANCE = 1e-12

NAMES = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def scan_inputs(
    batch: int,
    length: int,
    channels: int,
    states: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Inputs of a usual scale for every argument of `selective_scan`; parameters stay float32 below 32 bits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = dtype if dtype == torch.float64 else torch.float32
    made = {
        "x": normal(batch, length, channels).to(dtype),
        "delta": normal(batch, length, channels).to(dtype),
        "A": -torch.exp(0.5 * normal(channels, states)).to(wide),
        "B": normal(batch, length, states).to(dtype),
        "C": normal(batch, length, states).to(dtype),
        "D": normal(channels).to(wide),
        "z": normal(batch, length, channels).to(dtype),
        "delta_bias": normal(channels).to(wide),
        "initial_state": normal(batch, channels, states).to(wide),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest exact value; infinite where ours is not finite."""
    if exact.numel() == 0:
        return 0.0
    error = (ours.double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-30)
    return error.item() if torch.isfinite(error) else float("inf")


def compare_with_reference(
    inputs: dict[str, Tensor], kernel: str, softplus: bool = True, resets: Tensor | None = None, change=lambda t: t
) -> dict[str, float]:
    """Relative errors of the output, the final state and every gradient against float64.

    Args:
        inputs: as of `scan_inputs`, some left out.
        kernel: name of the kernel.
        softplus: as of the op.
        resets: [B, L] bool, or None.
        change: what happens to each tensor before the call, such as another stride.
    """

    def run(function, dtype):
        leaves = {n: (t if dtype is None else t.to(dtype)).detach().clone().requires_grad_() for n, t in inputs.items()}
        arguments = {n: change(leaves[n]) if n in leaves else None for n in NAMES}
        out, final = function(arguments)
        g = torch.Generator().manual_seed(1)
        # upstream gradients that the dtype of the output holds exactly
        up = torch.randn(out.shape, generator=g).to(inputs["x"].dtype).to(out)
        up_final = torch.randn(final.shape, generator=g).to(final)
        grads = torch.autograd.grad((out, final), list(leaves.values()), (up, up_final))
        return {"out": out, "final_state": final, **{f"d{n}": d for n, d in zip(leaves, grads, strict=True)}}

    ours = run(
        lambda a: selective_scan(**a, softplus=softplus, resets=resets, return_final_state=True, kernel=kernel), None
    )
    exact = run(lambda a: reference_scan(*a.values(), resets, softplus), torch.float64)
    return {name: relative_error(ours[name], exact[name]) for name in exact}


def check_kernel(name: str, device: str = "cpu", dtypes=(torch.float32, torch.bfloat16)) -> None:
    """Checks a kernel of `selective_scan` by name; a dtype that it refuses is passed over if it gives a reason.

    Args:
        name: the kernel.
        device: where to run.
        dtypes: of x, delta, B, C and z. The first must be accepted.

    Raises:
        AssertionError: names what differs and by how much.
    """
    found = registry.get_kernel(OP, name)
    assert found.accepts(ScanSpec(device=device, dtype=dtypes[0])) is None, f"{name} refuses {dtypes[0]} on {device}"
    for dtype in dtypes:
        if found.accepts(ScanSpec(device=device, dtype=dtype)) is not None:
            continue
        for shape in [(2, 1, 3, 1), (3, 17, 9, 5), (2, 33, 20, 16), (1, 63, 33, 4)]:
            inputs = scan_inputs(*shape, dtype=dtype, device=device)
            _assert_close(compare_with_reference(inputs, name), dtype, f"{name} at {shape}")
    small = scan_inputs(3, 19, 10, 4, dtype=dtypes[0], device=device)
    only = {n: small[n] for n in ("x", "delta", "A", "B", "C")}
    _assert_close(compare_with_reference(only, name), dtypes[0], f"{name} without optional inputs")
    positive = {**small, "delta": small["delta"].abs(), "delta_bias": small["delta_bias"].abs()}
    _assert_close(compare_with_reference(positive, name, softplus=False), dtypes[0], f"{name} without softplus")
    resets = torch.rand(3, 19, generator=torch.Generator().manual_seed(3)).to(device) < 0.3
    _assert_close(compare_with_reference(small, name, resets=resets), dtypes[0], f"{name} with resets")
    strided = compare_with_reference(
        small, name, change=lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() < 3 else _transposed(t)
    )
    _assert_close(strided, dtypes[0], f"{name} on strided inputs")
    for shape in [(0, 5, 4, 3), (2, 0, 4, 3)]:
        empty = {n: t.requires_grad_() for n, t in scan_inputs(*shape, dtype=dtypes[0], device=device).items()}
        out, final = selective_scan(**empty, return_final_state=True, kernel=name)
        (out.sum() + final.sum()).backward()
        assert out.shape == shape[:3] and empty["initial_state"].grad.shape == final.shape, f"{name} at {shape}"
    _check_expanded_gradient(name, small)
    _check_determinism(name, small)
    _check_padding_and_split(name, small)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def _assert_close(errors: dict[str, float], dtype: torch.dtype, where: str) -> None:
    for name, error in errors.items():
        if dtype == torch.float64:
            limit = FLOAT64_TOLERANCE
        elif dtype == torch.float32:
            limit = OUTPUT_TOLERANCE if name in ("out", "final_state") else GRADIENT_TOLERANCE
        else:
            limit = BFLOAT16_TOLERANCE
        assert error <= limit, f"{where} ({dtype}): {name} is off by {error:.2e} of its maximum; allowed {limit:.0e}."


def _check_expanded_gradient(name: str, inputs: dict[str, Tensor]) -> None:
    """`out.sum()` hands a gradient of stride zero to the kernel."""
    ones = torch.ones_like(inputs["x"])
    results = []
    for upstream in (ones, ones[:1, :1, :1].expand_as(ones)):
        leaves = {n: t.clone().requires_grad_() for n, t in inputs.items()}
        out = selective_scan(**leaves, kernel=name)
        results.append(torch.autograd.grad(out, list(leaves.values()), upstream))
    for n, a, b in zip(inputs, *results, strict=True):
        assert relative_error(a, b) <= GRADIENT_TOLERANCE, f"{name}: an expanded gradient changes d{n}."


def _check_determinism(name: str, inputs: dict[str, Tensor]) -> None:
    results = []
    for _ in range(2):
        # an output that the kernel forgets to write shows the NaN of memory freed just now
        freed = [torch.full_like(t, float("nan")) for t in inputs.values() for _ in range(2)]
        del freed
        leaves = {n: t.clone().requires_grad_() for n, t in inputs.items()}
        out = selective_scan(**leaves, kernel=name)
        (out * out).sum().backward()
        results.append([out, *(t.grad for t in leaves.values())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b), f"{name} gives another result the second time."


def _check_padding_and_split(name: str, inputs: dict[str, Tensor]) -> None:
    whole, end = selective_scan(**inputs, return_final_state=True, kernel=name)
    sequences = ("x", "delta", "B", "C", "z")
    first = {n: t[:, :7] if n in sequences else t for n, t in inputs.items()}
    head, state = selective_scan(**first, return_final_state=True, kernel=name)
    assert relative_error(head, whole[:, :7]) <= OUTPUT_TOLERANCE, f"{name}: a prefix alone differs."
    spoilt = {
        n: t.clone().index_fill_(1, torch.arange(7, 19, device=t.device), float("nan"))
        for n, t in inputs.items()
        if n in sequences
    }
    ahead = selective_scan(**(inputs | spoilt), kernel=name)[:, :7]
    assert torch.equal(ahead, whole[:, :7]), f"{name}: what follows a prefix, or pads it, changes it."
    rest = {n: t[:, 7:] if n in sequences else t for n, t in inputs.items()} | {"initial_state": state}
    tail, final = selective_scan(**rest, return_final_state=True, kernel=name)
    assert relative_error(torch.cat([head, tail], 1), whole) <= OUTPUT_TOLERANCE, f"{name}: scan, then scan differs."
    assert relative_error(final, end) <= OUTPUT_TOLERANCE, f"{name}: the final state differs after a split."
