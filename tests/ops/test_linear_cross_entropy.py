"""The fused cross-entropy agrees with torch's on loss and all gradients, in bounded memory."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.ops import registry
from lightrec.ops.linear_cross_entropy import linear_cross_entropy

# Rounding of float32 sums over a few hundred terms; the blocks change their order.
FLOAT32_TOLERANCE = 2e-6
# bfloat16 keeps 8 bits: half a unit in the last place of a logit, relative to the largest.
BFLOAT16_TOLERANCE = 1e-2


def inputs(rows, classes, dim=16, dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(rows * classes)
    shapes = (rows, dim), (classes, dim), (classes,)
    hidden, weight, b = (torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)
    targets = torch.randint(classes, (rows,), generator=generator)
    return hidden, weight, targets, b if bias else None


def reference(hidden, weight, targets, bias):
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("rows,classes", [(1, 2), (7, 100), (63, 5), (130, 257)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, FLOAT32_TOLERANCE), (torch.float64, 1e-13)])
def test_loss_and_gradients_equal_those_of_full_logits(rows, classes, bias, dtype, tolerance):
    args = inputs(rows, classes, dtype=dtype, bias=bias)
    leaves = [t for t in args if t is not None and t.requires_grad]
    ours, theirs = linear_cross_entropy(*args, block_rows=32), reference(*args)
    assert relative(ours, theirs) < tolerance
    pairs = zip(torch.autograd.grad(ours * 0.5, leaves), torch.autograd.grad(theirs * 0.5, leaves), strict=True)
    for mine, other in pairs:
        assert relative(mine, other) < tolerance


def test_gradients_pass_finite_differences():
    hidden, weight, targets, bias = inputs(5, 7, dim=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, targets, b, block_rows=2), (hidden, weight, bias)
    )


def test_block_size_does_not_change_the_loss():
    args = inputs(100, 50)
    losses = [linear_cross_entropy(*args, block_rows=n).item() for n in (1, 3, 64, 100, 1000)]
    assert max(losses) - min(losses) < FLOAT32_TOLERANCE * losses[0]


def test_huge_logits_stay_finite_and_exact():
    hidden, weight, targets, bias = inputs(20, 30)
    args = (hidden * 100).detach().requires_grad_(), (weight * 100).detach(), targets, bias
    ours, theirs = linear_cross_entropy(*args), reference(*args)
    assert ours.isfinite() and relative(ours, theirs) < FLOAT32_TOLERANCE
    assert torch.autograd.grad(ours, args[0])[0].isfinite().all()


def test_non_contiguous_input_gives_the_same_loss():
    hidden, weight, targets, _ = inputs(40, 30)
    scattered = hidden.T.contiguous().T
    assert not scattered.is_contiguous()
    assert linear_cross_entropy(scattered, weight[::2], targets // 2).item() == pytest.approx(
        linear_cross_entropy(hidden, weight[::2].contiguous(), targets // 2).item(), rel=FLOAT32_TOLERANCE
    )


def test_bfloat16_products_stay_within_their_precision():
    hidden, weight, targets, bias = inputs(200, 300)
    ours = linear_cross_entropy(hidden, weight, targets, bias, matmul_dtype=torch.bfloat16)
    theirs = reference(hidden, weight, targets, bias)
    assert ours.dtype == torch.float32 and relative(ours, theirs) < BFLOAT16_TOLERANCE
    mine, other = (torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs))
    assert all(relative(a, b) < BFLOAT16_TOLERANCE for a, b in zip(mine, other, strict=True))


def test_autocast_chooses_the_dtype_of_the_products():
    hidden, weight, targets, bias = inputs(200, 300)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets, bias)
    assert ours.item() == linear_cross_entropy(hidden, weight, targets, bias, matmul_dtype=torch.bfloat16).item()


def test_logits_of_all_rows_never_exist(monkeypatch):
    largest = 0
    softmax = torch.softmax

    def watched(x, dim):
        nonlocal largest
        largest = max(largest, x.numel())
        return softmax(x, dim)

    monkeypatch.setattr(torch, "softmax", watched)
    linear_cross_entropy(*inputs(5000, 4000, dim=4)).backward()
    assert 0 < largest * 4 <= 8 * 2**20


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"hidden": torch.zeros(4, 3)}, ValueError, r"expected hidden \[T, D\] and weight \[V, D\]"),
        ({"hidden": torch.zeros(4, 16).long()}, TypeError, "hidden must be floating, got torch.int64"),
        ({"weight": torch.zeros(0, 16), "bias": None}, ValueError, "at least one class"),
        ({"weight": torch.zeros(5, 16, device="meta")}, ValueError, "weight is on meta, hidden on cpu"),
        ({"bias": torch.zeros(1)}, ValueError, r"bias \[1\] must be \[5\]"),
        ({"targets": torch.tensor([0, 1])}, ValueError, r"targets \[2\] must have one class for each of 4 rows"),
        ({"targets": torch.tensor([0, 1, 2, 5])}, ValueError, r"targets reach from 0 to 5; classes are 0\.\.4"),
        ({"targets": torch.tensor([0, 1, 2, -1])}, ValueError, "targets reach from -1 to 2"),
        ({"targets": torch.zeros(4)}, TypeError, "targets must be int64, got torch.float32"),
        ({"targets": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, "targets are on meta"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words):
    given = dict(zip(("hidden", "weight", "targets", "bias"), inputs(4, 5), strict=True))
    with pytest.raises(error, match=words):
        linear_cross_entropy(**(given | change))


def test_a_compiled_graph_is_whole_and_agrees():
    hidden, weight, targets, bias = inputs(20, 30)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    results = []
    for function in (linear_cross_entropy, compiled):
        loss = function(hidden, weight, targets, bias)
        results.append([loss, *torch.autograd.grad(loss, (hidden, weight, bias))])
    assert all(relative(a, b) < FLOAT32_TOLERANCE for a, b in zip(*results, strict=True))


def test_the_kernel_is_chosen_by_name_and_a_name_of_another_op_leaves_it_alone():
    args = inputs(7, 11)
    expected = linear_cross_entropy(*args)
    assert torch.equal(linear_cross_entropy(*args, kernel="torch"), expected)
    with registry.use_kernel("reference"):  # which only the scan has
        assert torch.equal(linear_cross_entropy(*args), expected)
    with pytest.raises(ValueError, match="no kernel 'nothing'"):
        linear_cross_entropy(*args, kernel="nothing")
