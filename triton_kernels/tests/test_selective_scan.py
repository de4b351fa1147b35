"""The Triton scan in the interpreter, against float64."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("lightrec_triton", reason="lightrec-triton is not installed")
pytestmark = pytest.mark.xdist_group("triton")  # its processes are started once


@pytest.fixture
def found(interpreted):
    return interpreted["scan"]


def test_output_and_all_gradients_agree_with_float64(found):
    for case, errors in found["errors"].items():
        for name, error in errors.items():
            assert error <= (1e-6 if name in ("out", "final_state") else 5e-6), (case, name, error)


def test_it_passes_the_conformance_suite_in_every_dtype_that_it_takes(found):
    parts = {f"{dtype} {what}" for dtype in ("float32", "bfloat16", "float16") for what in ("output", "gradients")}
    assert set(found["conformance"]) == parts
    # bfloat16 tensors keep float32 states
    assert max(found["conformance"][f"bfloat16 {what}"] for what in ("output", "gradients")) <= 1e-2


def test_the_interpreter_runs_if_named_and_is_never_chosen_otherwise(found):
    assert found["named"] == "triton" and found["automatic"] != "triton"


def test_on_a_cpu_without_the_interpreter_it_says_what_it_needs(compiled):
    cpu, double, gpu = compiled["reasons"]
    assert "TRITON_INTERPRET=1" in cpu and "float64" in double and gpu is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_passes_the_conformance_suite_on_a_gpu():
    from lightrec.testing.kernels import check_kernel

    check_kernel("triton", device="cuda")
