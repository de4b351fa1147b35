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
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows, items, size", [(1, 2, 8), (256, 5000, 64), (3000, 700, 100), (70, 40000, 256)])
def test_it_agrees_with_float64_on_a_gpu(rows, items, size, dtype, tolerance):
    from lightrec.ops.linear_cross_entropy import linear_cross_entropy

    torch.manual_seed(0)
    leaves = [torch.randn(*shape, device="cuda") for shape in ((rows, size), (items, size), (items,))]
    leaves = [(t / 4).to(dtype).requires_grad_() for t in leaves]
    targets = torch.randint(items, (rows,), device="cuda")
    found = []
    for kernel in ("triton", "torch", "exact"):
        if kernel == "exact":
            hidden, weight, bias = (t.double() for t in leaves)
            loss = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")
        else:
            loss = linear_cross_entropy(*leaves[:2], targets, leaves[2], matmul_dtype=dtype, kernel=kernel)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for ours, theirs, exact in zip(*found, strict=True):
        for made in (ours, theirs):
            assert (made.double() - exact.double()).abs().max() <= tolerance * exact.double().abs().max()
