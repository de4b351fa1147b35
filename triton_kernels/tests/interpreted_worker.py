"""Runs both kernels in Triton's interpreter against float64 and prints what it found. See conftest.py."""

import json

import torch
import torch.nn.functional as F
from lightrec_triton import cross_entropy, selective_scan

from lightrec.ops import registry
from lightrec.ops.linear_cross_entropy import linear_cross_entropy
from lightrec.ops.selective_scan import ScanSpec
from lightrec.testing.kernels import check_kernel, compare_with_reference, scan_inputs

# B, L, D, N, resets, and how many programs are few: what the conformance suite leaves out
SCANS = [(1, 3, 12, 5, False, 2), (1, 17, 12, 5, True, 2), (1, 9, 40, 16, True, 0), (1, 9, 40, 16, True, 512)]
# rows, items, hidden size: less than a tile, more than one, and no multiple of it
HEADS = [(1, 2, 8), (3, 70, 16), (70, 5, 12), (66, 130, 33)]


def scan():
    errors = {}
    for *case, resets, few in SCANS:
        selective_scan.FEW = few
        torch.manual_seed(0)
        flags = torch.rand(case[0], case[1]) < 0.3 if resets else None
        errors[f"{case} {resets} {few}"] = compare_with_reference(scan_inputs(*case), "triton", resets=flags)
    return {
        "errors": errors,
        "automatic": registry.choose("selective_scan", ScanSpec()).name,
        "named": registry.choose("selective_scan", ScanSpec(), "triton").name,
        "conformance": check_kernel("triton", budget="small"),
    }


def head_errors(rows, items, size, bias=True, dtype=torch.float32, scale=1.0, matmul=None):
    """Relative errors of the loss and of each gradient, after the same bits came out twice."""
    g = torch.Generator().manual_seed(rows + items)
    hidden, weight = (torch.randn(n, size, generator=g).to(dtype) * scale for n in (rows, items))
    offset = torch.randn(items, generator=g).to(dtype) if bias else None
    targets = torch.randint(items, (rows,), generator=g)

    def run(cast, call):
        leaves = [cast(t).requires_grad_() for t in (hidden, weight, offset) if t is not None]
        loss = call(leaves[0], leaves[1], targets, leaves[2] if bias else None)
        return [loss, *torch.autograd.grad(loss * 0.5, leaves)]

    def ours():
        return run(torch.clone, lambda *a: linear_cross_entropy(*a, matmul_dtype=matmul, kernel="triton"))

    first, second = ours(), ours()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "another result the second time"
    exact = run(torch.Tensor.double, lambda h, w, t, o: F.cross_entropy(F.linear(h, w, o), t, reduction="sum"))
    return [((a.double() - e).abs().max() / e.abs().max()).item() for a, e in zip(first, exact, strict=True)]


def heads():
    found = {f"{case} {bias}": head_errors(*case, bias=bias) for case in HEADS for bias in (True, False)}
    found["large"] = head_errors(5, 70, 16, scale=30.0)
    hidden, weight = torch.randn(9, 20).t()[:, ::2][:3, :], torch.randn(7, 5)
    targets = torch.tensor([0, 6, 3])
    ours = linear_cross_entropy(hidden[:, :5], weight, targets, kernel="triton").item()
    # past the op, which looks at targets on a CPU only
    needs = torch.float32, 64, (False, False, False)
    unknown = [cross_entropy.forward(hidden[:, :5], weight, torch.tensor([0, 6, t]), None, *needs)[0] for t in (-1, 7)]
    return {
        "unknown_targets": torch.stack(unknown).isnan().all().item(),
        "float32": found,
        "bfloat16": head_errors(66, 70, 32, dtype=torch.bfloat16, matmul=torch.bfloat16),
        "strides": abs(ours - F.cross_entropy(hidden[:, :5] @ weight.T, targets, reduction="sum").item()),
        "empty": linear_cross_entropy(torch.randn(0, 5), weight, targets[:0], kernel="triton").item(),
    }


if __name__ == "__main__":
    print(json.dumps({"scan": scan(), "cross_entropy": heads()}))
