"""The Triton cross-entropy: in the interpreter against float64, and compiled for GPUs that are not here. In processes
of their own: the mode is fixed at import."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("lightrec_triton", reason="lightrec-triton is not installed")
pytestmark = pytest.mark.xdist_group("interpreted cross-entropy")  # its fixture is worked out once

WORK = """
import json
import torch
import torch.nn.functional as F
from lightrec.ops.linear_cross_entropy import linear_cross_entropy

def errors(rows, items, size, bias=True, dtype=torch.float32, scale=1.0, matmul=None):
    g = torch.Generator().manual_seed(rows + items)
    hidden, weight = (torch.randn(n, size, generator=g).to(dtype) * scale for n in (rows, items))
    b = torch.randn(items, generator=g).to(dtype) if bias else None
    targets = torch.randint(items, (rows,), generator=g)
    def run(cast, call):
        leaves = [cast(t).requires_grad_() for t in (hidden, weight, b) if t is not None]
        loss = call(leaves[0], leaves[1], targets, leaves[2] if bias else None)
        return [loss, *torch.autograd.grad(loss * 0.5, leaves)]
    ours = run(lambda t: t.clone(), lambda *a: linear_cross_entropy(*a, matmul_dtype=matmul, kernel="triton"))
    again = run(lambda t: t.clone(), lambda *a: linear_cross_entropy(*a, matmul_dtype=matmul, kernel="triton"))
    exact = run(lambda t: t.double(), lambda h, w, t, o: F.cross_entropy(F.linear(h, w, o), t, reduction="sum"))
    assert all(torch.equal(a, b) for a, b in zip(ours, again))
    return [((a.double() - e).abs().max() / e.abs().max()).item() for a, e in zip(ours, exact)]

found = {"float32": {}}
for case in [(1, 2, 8), (3, 70, 16), (70, 5, 12), (66, 130, 33)]:
    for bias in (True, False):
        found["float32"][f"{case} {bias}"] = errors(*case, bias=bias)
found["float32"]["large"] = errors(5, 70, 16, scale=30.0)
found["bfloat16"] = errors(66, 70, 32, dtype=torch.bfloat16, matmul=torch.bfloat16)
hidden, weight = torch.randn(9, 20).t()[:, ::2][:3, :], torch.randn(7, 5)
targets = torch.tensor([0, 6, 3])
found["strides"] = abs(linear_cross_entropy(hidden[:, :5], weight, targets, kernel="triton").item()
                       - F.cross_entropy(hidden[:, :5] @ weight.T, targets, reduction="sum").item())
found["empty"] = linear_cross_entropy(torch.randn(0, 5), weight, targets[:0], kernel="triton").item()
print(json.dumps(found))
"""
COMPILE = """
import dataclasses, json, sys
from lightrec_triton import cross_entropy as head
from lightrec_triton.compiled import compile_for
found = {}
for size in (64, 256):
    sizes = dict(zip(("BLOCK_ROWS", "BLOCK_ITEMS", "BLOCK_K"), head.tiles(size)), size=size, HAS_BIAS=True)
    for kernel in (head.loss_kernel, head.hidden_kernel, head.weight_kernel):
        types = {"x_ptr": "*bf16", "w_ptr": "*bf16", "target_ptr": "*i64"}
        made = compile_for(sys.argv[1], kernel, sizes, types, head.NUM_WARPS)
        found[f"{kernel.fn.__name__} {size}"] = dataclasses.asdict(made)
print(json.dumps(found))
"""


def run(script, *arguments, interpret):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    return run(WORK, interpret="1")


def test_loss_and_all_gradients_agree_with_float64(found):
    for case, (loss, *gradients) in found["float32"].items():
        # logits in the thousands are rounded by 1e-4 in float32, and so are their exponentials
        assert loss <= 1e-6 and max(gradients) <= (1e-3 if case == "large" else 5e-6), (case, loss, gradients)


def test_bfloat16_tensors_are_summed_in_float32(found):
    assert max(found["bfloat16"]) <= 1e-2, found["bfloat16"]


def test_any_strides_and_no_rows(found):
    assert found["strides"] < 1e-5 and found["empty"] == 0


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_tiles_stay_in_registers(target):
    for name, made in run(COMPILE, target, interpret="0").items():
        assert made["stack"] == 0 and made["registers"] <= (512 if target == "gfx942" else 255), (name, made)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_agrees_with_torch_on_a_gpu():
    from lightrec.ops.linear_cross_entropy import linear_cross_entropy

    hidden, weight = torch.randn(300, 64, device="cuda"), torch.randn(5000, 64, device="cuda")
    targets = torch.randint(5000, (300,), device="cuda")
    ours, theirs = (linear_cross_entropy(hidden, weight, targets, kernel=k) for k in ("triton", "torch"))
    assert torch.allclose(ours, theirs, rtol=1e-5)
