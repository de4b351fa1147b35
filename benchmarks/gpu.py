"""Times training steps on a GPU: every model, with the kernels of each kind, in float32 and in bfloat16.

    python benchmarks/gpu.py [--rows 128] [--length 200] [--items 3416] [--hidden-size 64] [--device cuda]

A step is the loss, its gradients and the optimiser's update on rows of exactly `--length` items, as `length.py` has it,
with the papers' other defaults. Wall time between two waits for the device, medians of rounds in which all variants
take turns; the time that a processor alone needs to launch a step is in it, as it is in a run. Peak memory is that of a
step, weights and moments included. `triton` are the kernels of lightrec-triton (the scan, the softmax over the catalog), `torch` those of lightrec itself.
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
    cases = {}
    for name in options.models:
        model = build(name, options.items, options.length, options.hidden_size)
        if model is None:
            continue
        case = Case(model.to(options.device), options.items, options.length, options.rows * options.length)
        case.batch = case.batch.to(options.device)
        for kernel in ("triton", "torch"):
            for precision in ("float32", "bfloat16"):
                cases[name, kernel, precision] = case
    found, peaks, skipped = {}, {}, {}
    for turn in range(options.rounds + 3):  # three rounds warm up
        for key, case in cases.items():
            if key in skipped:
                continue
            cast = torch.autocast(case.x.device.type if not on_gpu else "cuda", torch.bfloat16)
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            try:
                with use_kernel(key[1]), cast if key[2] == "bfloat16" else nullcontext():
                    case.step()
            except RuntimeError as error:
                skipped[key] = str(error).split("\n")[0]
                continue
            if on_gpu:
                torch.cuda.synchronize()
                peaks[key] = torch.cuda.max_memory_allocated() / 2**20
            if turn >= 3:
                found.setdefault(key, []).append(time.perf_counter() - began)
    device = torch.cuda.get_device_name() if on_gpu else options.device
    print(f"{device}, torch {torch.__version__}: {options.rows} rows of {options.length} items, catalog {options.items:,},")
    print(f"hidden size {options.hidden_size}, {options.rounds} rounds: median (quartiles)\n")
    print("| model | kernels | precision | step ms | million positions/s | peak MiB |")
    print("|---|---|---|---|---|---|")
    for (name, kernel, precision), times in found.items():
        low, middle, high = (1e3 * t for t in statistics.quantiles(times, n=4))
        rate = options.rows * options.length / middle / 1e3
        peak = peaks.get((name, kernel, precision), float("nan"))
        print(
            f"| {name} | {kernel} | {precision} | {middle:.1f} ({low:.1f} to {high:.1f}) | {rate:.2f} | {peak:,.0f} |"
        )
    for key, reason in skipped.items():
        print(f"left out: {key}: {reason}")


if __name__ == "__main__":
    main()
