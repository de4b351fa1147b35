"""The Triton cross-entropy in the interpreter, against float64."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("lightrec_triton", reason="lightrec-triton is not installed")
pytestmark = pytest.mark.xdist_group("triton")  # its processes are started once


@pytest.fixture
def found(interpreted):
    return interpreted["cross_entropy"]


def test_loss_and_all_gradients_agree_with_float64(found):
    for case, (loss, *gradients) in found["float32"].items():
        # logits in the thousands are rounded by 1e-4 in float32, and so are their exponentials
        assert loss <= 1e-6 and max(gradients) <= (1e-3 if case == "large" else 5e-6), (case, loss, gradients)


def test_bfloat16_tensors_are_summed_in_float32(found):
    assert max(found["bfloat16"]) <= 1e-2, found["bfloat16"]


def test_any_strides_and_no_rows(found):
    assert found["strides"] < 1e-5 and found["empty"] == 0


def test_a_target_that_is_no_class_gives_no_number(found):
    assert found["unknown_targets"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_agrees_with_torch_on_a_gpu():
    from lightrec.ops.linear_cross_entropy import linear_cross_entropy

    hidden, weight = torch.randn(300, 64, device="cuda"), torch.randn(5000, 64, device="cuda")
    targets = torch.randint(5000, (300,), device="cuda")
    ours, theirs = (linear_cross_entropy(hidden, weight, targets, kernel=k) for k in ("triton", "torch"))
    assert torch.allclose(ours, theirs, rtol=1e-5)
