"""Times the scan on a GPU: forward and backward, against the floor of the machine and against mamba_ssm if installed.

    python triton_kernels/benchmarks/selective_scan.py

The floor is the exponentials: one for each state in each pass, at the rate that a kernel of nothing but exp2 reaches in
the same run. Medians of 50 calls after warm-up, CUDA events.
"""

from __future__ import annotations

import statistics
import sys

import torch
import triton
import triton.language as tl

SHAPES = [(256, 200, 128, 16), (256, 200, 128, 32), (256, 200, 256, 16), (256, 200, 512, 16), (8, 4096, 512, 16)]


def median_us(call, repeats: int = 50) -> float:
    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times)


@triton.jit
def _exponentials(pointer, STEPS: tl.constexpr):
    place = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    x = tl.load(pointer + place)
    for _ in range(STEPS):
        x = tl.exp2(-x)
    tl.store(pointer + place, x)


def exponentials_a_second(steps: int = 1024) -> float:
    """Rate of a kernel of nothing but exp2, eight independent chains a thread."""
    x = torch.rand(2**22, device="cuda")
    return steps * x.numel() / (median_us(lambda: _exponentials[(x.numel() // 1024,)](x, steps)) * 1e-6)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU; there is none here.")
    from lightrec.ops.selective_scan import selective_scan
    from lightrec.testing.kernels import scan_inputs

    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        selective_scan_fn = None
    rate = exponentials_a_second()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rate / 1e12:.2f} Texp/s\n")
    print(
        "| B, L, D, N | forward us | over floor | both us | backward over floor | peak MiB | mamba_ssm forward, both |"
    )
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        inputs = scan_inputs(*shape, dtype=torch.bfloat16, device="cuda")
        del inputs["initial_state"]
        leaves = {name: t.requires_grad_() for name, t in inputs.items()}
        up = torch.randn_like(inputs["x"])

        def forward(leaves=leaves):
            with torch.no_grad():
                return selective_scan(**leaves, kernel="triton")

        def both(leaves=leaves, up=up):
            torch.autograd.grad(selective_scan(**leaves, kernel="triton"), list(leaves.values()), up)

        floor = shape[0] * shape[1] * shape[2] * shape[3] / rate * 1e6
        torch.cuda.reset_peak_memory_stats()
        one, two = median_us(forward), median_us(both)
        peak = torch.cuda.max_memory_allocated() / 2**20
        theirs = "not installed"
        if selective_scan_fn is not None:
            moved = {n: t.detach().transpose(1, 2).contiguous() for n, t in inputs.items() if t.dim() == 3}
            moved = {n: t.requires_grad_() for n, t in moved.items()}
            flat = {n: inputs[n] for n in ("A", "D", "delta_bias")}

            def other(moved=moved, flat=flat):
                arguments = (moved["x"], moved["delta"], flat["A"], moved["B"], moved["C"], flat["D"], moved["z"])
                return selective_scan_fn(*arguments, delta_bias=flat["delta_bias"], delta_softplus=True)

            def their_forward(other=other):
                with torch.no_grad():
                    other()

            def their_both(other=other, moved=moved, up=up):
                torch.autograd.grad(other(), list(moved.values()), up.transpose(1, 2).contiguous())

            theirs = f"{median_us(their_forward):.0f}, {median_us(their_both):.0f}"
        print(
            f"| {', '.join(map(str, shape))} | {one:.0f} | {one / floor:.2f} | {two:.0f} | {(two - one) / floor:.2f} "
            f"| {peak:.0f} | {theirs} |"
        )


if __name__ == "__main__":
    main()
