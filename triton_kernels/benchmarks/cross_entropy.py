"""Times the cross-entropy over a catalog on a GPU: loss and gradients, beside the torch kernel and plain torch.

    python triton_kernels/benchmarks/cross_entropy.py

The floor is the arithmetic: three products of rows and catalog, which the torch kernel makes, at the rate of a large
product in the same dtype in the same run; the Triton kernel keeps no logits and makes five. Medians of 30 calls after
warm-up, CUDA events; peak memory is what a call takes beyond its inputs.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from selective_scan import median_us

SHAPES = [(256, 12101, 64), (2048, 12101, 64), (25600, 3416, 64), (25600, 12101, 64), (8192, 100_000, 128)]
LARGEST = 2**34  # bytes of logits that plain torch is asked for


def plain(hidden, weight, targets, dtype):
    logits = F.linear(hidden.to(dtype), weight.to(dtype))
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def products_a_second(dtype: torch.dtype) -> float:
    a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
    return 2 * 8192**3 / (median_us(lambda: a @ b, 10) * 1e-6)


def measure(rows: int, items: int, size: int, dtype: torch.dtype) -> tuple[dict, dict]:
    """Microseconds and peak MiB of loss and gradients, by what computes them."""
    from lightrec.ops.linear_cross_entropy import linear_cross_entropy

    hidden = torch.randn(rows, size, device="cuda").mul_(0.3).requires_grad_()
    weight = torch.randn(items, size, device="cuda").mul_(0.3).requires_grad_()
    targets = torch.randint(items, (rows,), device="cuda")

    def ours(kernel):
        return lambda: linear_cross_entropy(hidden, weight, targets, matmul_dtype=dtype, kernel=kernel)

    calls = {"triton": ours("triton"), "torch": ours("torch")}
    if 4 * rows * items <= LARGEST:
        calls["plain"] = lambda: plain(hidden, weight, targets, dtype)
    times, peaks = {}, {}
    for name, call in calls.items():

        def both(call=call):
            torch.autograd.grad(call(), (hidden, weight))

        both()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        times[name] = median_us(both, 30)
    return times, peaks


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU; there is none here.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| T, V, D, products in | triton us | torch us | plain us | triton over floor | MiB: triton, torch, plain |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        rate = products_a_second(dtype)
        for rows, items, size in SHAPES:
            times, peaks = measure(rows, items, size, dtype)
            floor = 2 * 3 * rows * items * size / rate * 1e6
            cells = [f"{times[n]:.0f}" if n in times else "-" for n in ("triton", "torch", "plain")]
            cells += [f"{times['triton'] / floor:.1f}", ", ".join(f"{p:.0f}" for p in peaks.values())]
            print(f"| {rows}, {items}, {size}, {str(dtype).split('.')[1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
