"""Times the scan kernels of this machine against each other and against the exponentials that they cannot avoid.

    OMP_NUM_THREADS=1 python benchmarks/scan.py [--shape 128,200,128,16] [--repeats 5]

One thread, process CPU time, medians, all kernels interleaved in one run: ratios hold on a busy machine, times do not.
Peak memory is that of allocations above the inputs (forward + backward), from torch's profiler for the torch kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from lightrec.ops.hyperbolic_selective_scan import hyperbolic_selective_scan
from lightrec.ops.registry import explain
from lightrec.ops.selective_scan import ScanSpec, selective_scan
from lightrec.testing.kernels import scan_inputs


def peak_bytes(call) -> int:
    """Highest sum of live allocations made by torch during the call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="128,200,128,16", help="B,L,D,N")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-reference", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    options = parser.parse_args()
    shape = [int(n) for n in options.shape.split(",")]
    torch.set_num_threads(1)
    inputs = scan_inputs(*shape)
    inputs.pop("initial_state")
    leaves = {n: t.requires_grad_() for n, t in inputs.items()}
    upstream = torch.randn(shape[:3])
    curvature = torch.tensor(0.7, requires_grad=True)
    names = [name for name, reason in explain("selective_scan", ScanSpec()) if reason is None]
    if options.skip_reference:
        names.remove("reference")

    def forward(name):
        with torch.no_grad():
            selective_scan(**leaves, kernel=name)

    def both(name):
        torch.autograd.grad(selective_scan(**leaves, kernel=name), list(leaves.values()), upstream)

    def hyperbolic():
        out = hyperbolic_selective_scan(**leaves, kappa=curvature, kernel=names[0])
        torch.autograd.grad(out, [*leaves.values(), curvature], upstream)

    # next to what it is compared with: the reference's allocations slow whatever runs after it
    calls = {(names[0], "both"): lambda: both(names[0]), ("hyperbolic", "both"): hyperbolic}
    calls |= {(name, kind.__name__): (lambda k=kind, n=name: k(n)) for name in names for kind in (forward, both)}
    if "native" in names:
        from lightrec_native import exp_floor

        states = shape[0] * shape[1] * shape[2] * shape[3]
        calls["exp floor", "forward"] = lambda: exp_floor(states)
        calls["exp floor", "both"] = lambda: exp_floor(2 * states)
    times = {key: [] for key in calls}
    for repeat in range(options.repeats + 1):
        for key, call in calls.items():
            start = time.process_time()
            call()
            if repeat:  # the first warms up
                times[key].append(time.process_time() - start)
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(f"B,L,D,N = {options.shape}, torch {torch.__version__}, 1 thread, median of {options.repeats}")
    for (name, kind), seconds in medians.items():
        floor = medians.get(("exp floor", kind))
        note = f"  {seconds / floor:5.2f} x exp floor" if floor else ""
        if (name, kind) in calls and kind == "both" and name in names and not options.skip_memory:
            note += f"  peak {peak_bytes(calls[name, kind]) / 2**20:7.0f} MiB"
        print(f"{name:12} {kind:8} {seconds * 1e3:9.1f} ms CPU{note}")
    for slow, fast in (("reference", "torch"), ("torch", "native")):
        if (slow, "both") in medians and (fast, "both") in medians:
            print(f"{fast} is {medians[slow, 'both'] / medians[fast, 'both']:.2f} x faster than {slow} (both)")
    print(f"hyperbolic / Euclidean ({names[0]}, both): {medians['hyperbolic', 'both'] / medians[names[0], 'both']:.3f}")


if __name__ == "__main__":
    main()
