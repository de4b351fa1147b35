"""The conformance suite lets right kernels through and finds each kind of wrong one."""

import subprocess
import sys

import pytest
import torch

from lightrec import testing
from lightrec.ops import registry, torch_scan
from lightrec.ops.registry import Kernel
from lightrec.ops.selective_scan import OP
from lightrec.testing import check_kernel
from lightrec.testing.kernels import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE


@pytest.fixture
def kernel(monkeypatch):
    """Registers the torch kernel with one of its functions replaced, under the name `changed`."""
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))

    def register(forward=torch_scan.forward, backward=torch_scan.backward, accepts=lambda spec: None, **fields):
        registry.register_kernel(Kernel(OP, "changed", forward, backward, accepts, **fields))

    return register


def changing(place, change):
    """The torch kernel's forward with one of its results changed."""

    def forward(*arguments):
        made = list(torch_scan.forward(*arguments))
        made[place] = change(made[place], arguments)
        return tuple(made)

    return forward


def changing_gradient(place, change):
    def backward(*arguments):
        made = list(torch_scan.backward(*arguments))
        if made[place] is not None:
            made[place] = change(made[place])
        return tuple(made)

    return backward


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_the_small_budget_checks_the_same_in_every_dtype(name):
    errors = check_kernel(name, budget="small")
    assert set(errors) == {
        f"{dtype} {what}" for dtype in ("float32", "bfloat16", "float16", "float64") for what in ("output", "gradients")
    }
    assert errors["float32 output"] <= OUTPUT_TOLERANCE and errors["float32 gradients"] <= GRADIENT_TOLERANCE


def test_a_kernel_differentiated_by_autograd_passes(kernel):
    def forward(*arguments):
        *inputs, every = arguments
        from lightrec.ops.selective_scan import reference_scan

        return *reference_scan(*inputs), None

    kernel(forward, None)
    check_kernel("changed")


def test_dtypes_may_be_refused_with_a_reason_but_not_the_first(kernel):
    kernel(accepts=lambda spec: None if spec.dtype == torch.float32 else "float32 only")
    assert set(check_kernel("changed", budget="small")) == {"float32 output", "float32 gradients"}
    with pytest.raises(AssertionError, match="refuses torch.bfloat16 on cpu: float32 only"):
        check_kernel("changed", dtypes=(torch.bfloat16,))


def nothing_after(t, arguments):
    return torch.cat([t[:, :1] + arguments[0][:, -1:] * 1e-30, t[:, 1:]], 1).to(t.dtype)


def unwritten(t, arguments):
    """Leaves the last channel to what memory holds: NaN where new tensors are filled, elsewhere the right values."""
    if not torch.are_deterministic_algorithms_enabled():
        return t
    made = torch.empty_like(t)
    made[..., :-1] = t[..., :-1]
    return made


class Drifting:
    """Adds another rounding error to each result."""

    def __init__(self):
        self.calls = 0

    def __call__(self, t, arguments=None):
        self.calls += 1
        return t * (1 + 1e-7 * (self.calls % 5))


def dense(x, *rest):
    return torch_scan.forward(x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride()), *rest)


def without(place):
    def forward(*arguments):
        return torch_scan.forward(*arguments[:place], None, *arguments[place + 1 :])

    return forward


def multiplied(*arguments):
    """Resets as a decay of 0, which leaves a NaN what it is."""
    *given, resets, softplus, every = arguments
    out, final, kept = torch_scan.forward(*given, resets, softplus, every)
    if resets is not None:
        out = out + torch.cat([torch.zeros_like(out[:, :1]), 0 * out[:, :-1]], 1)
    return out, final, kept


def spoiling(x, *rest):
    made = torch_scan.forward(x, *rest)
    if x.is_contiguous():
        x.detach().mul_(1.000001)
    return made


DEFECTS = {
    "a wrong output": (dict(forward=changing(0, lambda t, _: t * 1.00001)), "out is off by"),
    "a wrong final state": (dict(forward=changing(1, lambda t, _: t * 1.00001)), "final_state is off by"),
    "a wrong gradient of A": (dict(backward=changing_gradient(2, lambda g: g * 1.0001)), "dA is off by"),
    "a wrong gradient of the state": (dict(backward=changing_gradient(8, lambda g: 0 * g)), "dinitial_state is off by"),
    "no initial state": (dict(forward=without(8)), "out is off by"),
    "no resets": (dict(forward=without(9)), "with resets .*out is off by"),
    "a reset that multiplies": (dict(forward=multiplied), "NaN in front of a reset reaches the output"),
    "strides ignored": (dict(forward=dense), "on strided inputs .*is off by"),
    "a peek at the future": (dict(forward=changing(0, nothing_after)), "what follows a prefix, or pads it"),
    "unwritten memory": (dict(forward=changing(0, unwritten)), "leaves a part of the output unwritten"),
    "an unstable output": (dict(forward=changing(0, Drifting())), "is another|gives another|unwritten|an expanded"),
    "an unstable gradient": (dict(backward=changing_gradient(2, Drifting())), "gives another|unwritten|an expanded"),
    "an input changed": (dict(forward=spoiling), "writes into its input x"),
    "wrong checkpoints": (dict(forward=changing(2, lambda t, _: t[:, :, :1])), "keeps|is off by"),
    "checkpoints in half precision": (dict(forward=changing(2, lambda t, _: t.bfloat16())), "checkpoints|is off by"),
    "a refusal without a reason": (dict(accepts=lambda s: "" if s.dtype == torch.bfloat16 else None), "without a rea"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(kernel, defect):
    changes, words = DEFECTS[defect]
    kernel(**changes)
    with pytest.raises((AssertionError, RuntimeError), match=words):
        check_kernel("changed", dtypes=(torch.float32, torch.bfloat16), budget="small")


def test_an_unknown_budget_is_refused():
    with pytest.raises(ValueError, match="budget 'tiny' must be one of small, full"):
        check_kernel("torch", budget="tiny")


def test_checking_a_kernel_does_not_import_lightning():
    code = "import sys; from lightrec.testing import check_kernel; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_public_names_resolve_and_others_are_refused():
    assert all(getattr(testing, name) for name in testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'check_kernels'"):
        _ = testing.check_kernels
