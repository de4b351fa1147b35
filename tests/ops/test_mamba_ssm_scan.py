"""The adapter to mamba_ssm: what it refuses, and that every tensor arrives as the library documents it.

The library needs a GPU. Here a stand-in takes its place that computes from the documented formulas in the documented
layout, so these tests say that the plumbing is right, not that the library has run.
"""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from lightrec.ops import mamba_ssm_scan
from lightrec.ops.registry import explain
from lightrec.ops.selective_scan import ScanSpec, reference_scan
from lightrec.testing.kernels import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, relative_error, scan_inputs

CUDA = ScanSpec(device="cuda")


@pytest.mark.parametrize(
    "spec, words",
    [
        (ScanSpec(), "runs on CUDA, not on cpu"),
        (replace(CUDA, dtype=torch.float64), "computes in float32; x is torch.float64"),
        (replace(CUDA, has_resets=True), "knows no resets"),
        (replace(CUDA, has_initial_state=True), "takes no initial state"),
        (replace(CUDA, returns_final_state=True), "its final state has no gradient"),
        (replace(CUDA, states=300), "room for 256 states"),
        (replace(CUDA, compiling=True), "compiled graph"),
    ],
)
def test_it_refuses_with_a_reason(spec, words):
    assert words in dict(explain("selective_scan", spec))["mamba_ssm"]


def test_a_package_without_its_extension_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    mamba_ssm_scan.library.cache_clear()
    try:
        assert "extension module selective_scan_cuda cannot be imported" in mamba_ssm_scan.accepts(CUDA)
    finally:
        mamba_ssm_scan.library.cache_clear()


def stand_in(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """selective_scan_fn by its documentation: u, delta, z [B, D, L]; A [D, N]; B, C [B, N, L]; D, delta_bias [D]."""
    sequences = [t for t in (u, delta, B, C, z) if t is not None]
    assert len({t.dtype for t in sequences}) == 1 and all(t.stride(-1) == 1 for t in sequences)
    parameters = [t for t in (A, D, delta_bias) if t is not None]
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in parameters)
    assert u.shape == delta.shape and B.shape == C.shape == (len(u), A.shape[1], u.shape[2]) and len(A) == u.shape[1]
    step = delta.float() if delta_bias is None else delta.float() + delta_bias[:, None]
    step = F.softplus(step) if delta_softplus else step
    state, outputs = u.new_zeros(len(u), *A.shape, dtype=torch.float32), []
    for t in range(u.shape[2]):
        entering = step[:, :, t, None] * B[:, None, :, t].float() * u[:, :, t, None].float()
        state = torch.exp(step[:, :, t, None] * A) * state + entering
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t].float()))
    out = torch.stack(outputs, 2)
    out = out if D is None else out + D[:, None] * u.float()
    out = out if z is None else out * F.silu(z.float())
    out = out.to(u.dtype)
    return (out, state) if return_last_state else out


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.setattr(mamba_ssm_scan, "library", lambda: (stand_in, None))

    def run(inputs, softplus=True):
        names = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")
        leaves = {n: t.clone().requires_grad_() for n, t in inputs.items() if n != "initial_state"}
        given = [leaves.get(n) for n in names]
        out, final, _ = mamba_ssm_scan.forward(*given, None, None, softplus, 16)
        exact, end = reference_scan(*(None if t is None else t.double() for t in given), None, None, softplus)
        up = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
        grads = [torch.autograd.grad(o, list(leaves.values()), up.to(o.dtype)) for o in (out, exact)]
        return out, exact, final, end, list(zip(*grads, strict=True))

    return run


@pytest.mark.parametrize("left_out", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("softplus", [True, False])
def test_every_tensor_arrives_where_it_belongs(adapter, left_out, softplus):
    inputs = {n: t for n, t in scan_inputs(2, 9, 5, 3).items() if n not in left_out}
    if not softplus:
        inputs |= {n: inputs[n].abs() for n in ("delta", "delta_bias") if n in inputs}
    out, exact, final, end, grads = adapter(inputs, softplus)
    assert out.shape == (2, 9, 5) and final.shape == (2, 5, 3)
    assert relative_error(out, exact) < OUTPUT_TOLERANCE and relative_error(final, end) < OUTPUT_TOLERANCE
    assert all(relative_error(a, b) < GRADIENT_TOLERANCE for a, b in grads)


def test_mixed_dtypes_are_widened_and_the_output_is_as_x(adapter):
    inputs = scan_inputs(2, 9, 5, 3, dtype=torch.bfloat16)
    out, exact, final, _, _ = adapter(inputs | {"delta": inputs["delta"].float(), "D": inputs["D"].bfloat16()})
    assert out.dtype == torch.bfloat16 and final.dtype == torch.float32
    assert relative_error(out, exact) < 1e-2


@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (2, 0, 4, 3)])
def test_nothing_is_launched_for_an_empty_batch_or_sequence(shape, monkeypatch):
    monkeypatch.setattr(mamba_ssm_scan, "library", lambda: (None, "would fail"))
    i = scan_inputs(*shape)
    out, final, _ = mamba_ssm_scan.forward(*[i[n] for n in list(i)[:8]], None, None, True, 16)
    assert out.shape == shape[:3] and not final.any()
