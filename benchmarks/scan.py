"""Times the scan kernels of this machine against each other and against the exponentials that they cannot avoid.

    OMP_NUM_THREADS=1 python benchmarks/scan.py [--shape 128,200,128,16] [--repeats 9] [--only hyperbolic]

One thread, process CPU time, all kernels interleaved in one run, median and quartiles: ratios hold on a busy machine,
times do not. The allocator is that of `lightrec fit`; without it, page faults of large tensors are a part of every
time. The hyperbolic scan is divided by the Euclidean one that ran just before it. Errors are those of a batch of 4
rows against float64, relative to the largest exact value.
Peak memory is that of allocations above the inputs (forward + backward), from torch's profiler for the torch kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from lightrec.cli.allocator import tune
from lightrec.ops.hyperbolic_selective_scan import MapSpec, hyperbolic_selective_scan
from lightrec.ops.registry import choose, explain
from lightrec.ops.selective_scan import ScanSpec, selective_scan
from lightrec.testing.kernels import compare_with_reference, scan_inputs


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
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=["kernels", "hyperbolic", "errors"])
    parser.add_argument("--skip-reference", action="store_true")
    parser.add_argument("--skip-memory", action="store_true")
    options = parser.parse_args()
    tune()
    shape = [int(n) for n in options.shape.split(",")]
    torch.set_num_threads(1)
    inputs = scan_inputs(*shape)
    inputs.pop("initial_state")
    leaves = {n: t.requires_grad_() for n, t in inputs.items()}
    upstream = torch.randn(shape[:3])
    names = [name for name, reason in explain("selective_scan", ScanSpec()) if reason is None]
    if options.skip_reference:
        names.remove("reference")
    print(f"B,L,D,N = {options.shape}, torch {torch.__version__}, 1 thread, {options.repeats} repeats after one")
    if options.only in (None, "kernels"):
        time_kernels(names, leaves, upstream, shape, options)
    if options.only in (None, "hyperbolic"):
        time_hyperbolic(names[0], leaves, upstream, options.repeats)
    if options.only in (None, "errors"):
        for name in names:
            errors = compare_with_reference(scan_inputs(4, *shape[1:]), name)
            gradients = max(error for n, error in errors.items() if n not in ("out", "final_state"))
            print(f"{name:12} output {errors['out']:.1e}, worst gradient {gradients:.1e} off float64")


def time_kernels(names, leaves, upstream, shape, options) -> None:
    """Each kernel, forward alone and with gradients, beside the exponentials."""

    def forward(name):
        with torch.no_grad():
            selective_scan(**leaves, kernel=name)

    def both(name):
        torch.autograd.grad(selective_scan(**leaves, kernel=name), list(leaves.values()), upstream)

    calls = {(name, kind.__name__): (lambda k=kind, n=name: k(n)) for name in names for kind in (forward, both)}
    if "native" in names:
        from lightrec_native import exp_floor

        states = shape[0] * shape[1] * shape[2] * shape[3]
        calls["exp floor", "forward"] = lambda: exp_floor(states)
        calls["exp floor", "both"] = lambda: exp_floor(2 * states)
    times = interleaved(calls, options.repeats)
    medians = {key: statistics.median(values) for key, values in times.items()}
    for (name, kind), seconds in medians.items():
        floor = medians.get(("exp floor", kind))
        note = f"  {seconds / floor:5.2f} x exp floor" if floor else ""
        if kind == "both" and name in names and not options.skip_memory:
            note += f"  peak {peak_bytes(calls[name, kind]) / 2**20:7.0f} MiB"
        print(f"{name:12} {kind:8} {seconds * 1e3:9.1f} ms CPU{note}")
    for slow, fast in (("reference", "torch"), ("torch", "native")):
        if slow in names and fast in names:
            ratios = [a / b for a, b in zip(times[slow, "both"], times[fast, "both"], strict=True)]
            print(f"{fast} against {slow} (both): {spread(ratios)} x faster")


def time_hyperbolic(kernel, leaves, upstream, repeats) -> None:
    """The hyperbolic scan over the Euclidean one, forward and gradients, with and without its maps."""
    curvature = torch.tensor(0.7, requires_grad=True)

    def flat():
        torch.autograd.grad(selective_scan(**leaves, kernel=kernel), list(leaves.values()), upstream)

    def curved(**maps):
        out = hyperbolic_selective_scan(**leaves, kappa=curvature, kernel=kernel, **maps)
        torch.autograd.grad(out, [*leaves.values(), curvature], upstream)

    variants = {
        "Euclidean again": flat,
        "curvature": curved,
        "curvature, log0 of the input": lambda: curved(map_input=True),
        "curvature, exp0 of the output": lambda: curved(map_output=True),
        "curvature, both maps": lambda: curved(map_input=True, map_output=True),
    }
    calls = {}
    for name, call in variants.items():
        calls |= {("flat", name): flat, ("curved", name): call}
    times = interleaved(calls, repeats)
    maps = choose("radial_map", MapSpec()).name
    print(f"over the Euclidean scan before it, kernel {kernel}, maps {maps}: median (quartiles)")
    for name in variants:
        ratios = [a / b for a, b in zip(times["curved", name], times["flat", name], strict=True)]
        print(f"{name:30} {spread(ratios)}")


def interleaved(calls, repeats) -> dict:
    """CPU seconds of each call in each repeat; the first, which warms up, is left out."""
    times = {key: [] for key in calls}
    for repeat in range(repeats + 1):
        for key, call in calls.items():
            start = time.process_time()
            call()
            if repeat:
                times[key].append(time.process_time() - start)
    return times


def spread(values) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
