"""Times training steps on a GPU: every model, with the kernels of each kind, in float32 and in bfloat16.

    python benchmarks/gpu.py [--rows 128] [--length 200] [--items 3416] [--hidden-size 64] [--device cuda]

A step is the loss, its gradients and the optimizer's update on rows of exactly `--length` items, as `length.py` has it,
with the papers' other defaults. Wall time between two waits for the device: what a processor needs to launch a step is
in it, as it is in a run. Peak memory is that of a step, weights and moments included. `triton` are the kernels of
lightrec-triton (the scan, the softmax over the catalog), `torch` those of lightrec itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import nullcontext

import torch
from length import Case, build

from lightrec.ops.registry import use_kernel

MODELS = ("SASRec", "ESASRec", "BERT4Rec", "GRU4Rec", "Mamba4Rec", "HMamba", "SIGMA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 128), ("length", 200), ("items", 3416), ("hidden-size", 64), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU; there is none here.")
    device = torch.cuda.get_device_name() if on_gpu else options.device
    print(f"{device}, torch {torch.__version__}: {options.rows} rows of {options.length} items,")
    print(f"catalog {options.items:,}, hidden size {options.hidden_size}, median (quartiles) of {options.rounds}\n")
    print("| model | kernels | precision | step ms | million positions/s | peak MiB |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        model = build(name, options.items, options.length, options.hidden_size)
        if model is None:
            continue
        case = Case(model.to(options.device), options.items, options.length, options.rows * options.length)
        case.batch = case.batch.to(options.device)
        for kernel in ("triton", "torch"):
            for precision in ("float32", "bfloat16"):
                cast = nullcontext() if precision == "float32" else torch.autocast(options.device, torch.bfloat16)
                try:
                    with use_kernel(kernel), cast:
                        times, peak = measure(case, options.rounds, on_gpu)
                except RuntimeError as error:
                    print(f"left out: {name}, {kernel}: {str(error).splitlines()[0]}", file=sys.stderr)
                    continue
                low, middle, high = (1e3 * t for t in statistics.quantiles(times, n=4))
                rate = case.positions / middle / 1e3
                print(
                    f"| {name} | {kernel} | {precision} | {middle:.1f} ({low:.1f} to {high:.1f}) | {rate:.2f} "
                    f"| {peak / 2**20:,.0f} |",
                    flush=True,
                )


def measure(case: Case, rounds: int, on_gpu: bool) -> tuple[list[float], int]:
    """Seconds of each step after three that warm up, and the most bytes that a step held."""
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    for _ in range(3):
        case.step()
    wait()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        case.step()
        wait()
        times.append(time.perf_counter() - began)
    return times, torch.cuda.max_memory_allocated() if on_gpu else 0


if __name__ == "__main__":
    main()
