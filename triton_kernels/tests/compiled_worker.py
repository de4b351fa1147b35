"""Compiles every kernel for GPUs that are not here and prints what became of it. See conftest.py."""

import dataclasses
import json
import multiprocessing

import torch
from lightrec_triton import cross_entropy as head
from lightrec_triton import selective_scan as scan
from lightrec_triton.compiled import TARGETS, compile_for

from lightrec.ops import registry
from lightrec.ops.selective_scan import ScanSpec

CHANNELS, STATES = 128, 16
WIDE = ("x_ptr", "delta_ptr", "B_ptr", "C_ptr", "z_ptr", "out_ptr", "grad_out_ptr", "dx_ptr", "ddelta_ptr", "dz_ptr")


def scans(target):
    """Forward and backward in bfloat16, at the strides that a model has."""
    block_d, block_n = scan.blocks(256, CHANNELS, STATES)
    sizes = dict(channels=CHANNELS, states=STATES, x_st=128, delta_st=128, z_st=256, B_st=36, C_st=36)
    sizes |= dict(x_sd=1, delta_sd=1, z_sd=1, B_sn=1, C_sn=1, BLOCK_D=block_d, BLOCK_N=block_n)
    sizes |= dict(SOFTPLUS=True, HAS_D=True, HAS_Z=True, HAS_BIAS=True, HAS_RESETS=False, EVERY=scan.CHECKPOINT_EVERY)
    prefetch = {"PREFETCH": target != "gfx942"}
    kernels = {
        "forward": (scan.scan_forward, {"HAS_INITIAL": False}),
        "backward": (scan.scan_backward, {"HAS_GRAD_FINAL": False, "grad_st": 128, "grad_sd": 1} | prefetch),
    }
    pointers = dict.fromkeys(WIDE, "*bf16") | {"resets_ptr": "*i8"}
    made = {
        name: dataclasses.asdict(compile_for(target, kernel, sizes | more, pointers, 1))
        for name, (kernel, more) in kernels.items()
    }
    return made | {"states": scan.CHECKPOINT_EVERY * block_d * block_n / 32}


def heads(target):
    """The three kernels in bfloat16, at the largest hidden size of each tile; on gfx942 at the largest that fits."""
    found = {}
    for size in (64 if target == "gfx942" else 128, 256):
        sizes = dict(zip(("BLOCK_ROWS", "BLOCK_ITEMS", "BLOCK_K"), head.tiles(size), strict=True))
        sizes |= dict(size=size, HAS_BIAS=True)
        for kernel in (head.loss_kernel, head.hidden_kernel, head.weight_kernel):
            types = {"x_ptr": "*bf16", "w_ptr": "*bf16", "target_ptr": "*i64"}
            made = compile_for(target, kernel, sizes, types, head.NUM_WARPS)
            found[f"{kernel.fn.__name__} {size}"] = dataclasses.asdict(made)
    return found


def reasons():
    """Why the scan cannot run, on a CPU, in float64, and on a GPU."""
    specs = ScanSpec(), ScanSpec(device="cuda", dtype=torch.float64), ScanSpec(device="cuda")
    return [dict(registry.explain("selective_scan", spec))["triton"] for spec in specs]


def both(target):
    return {"scan": scans(target), "cross_entropy": heads(target)}


if __name__ == "__main__":
    # forked, so that torch and Triton are imported once
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = dict(zip(TARGETS, pool.map(both, TARGETS, chunksize=1), strict=True))
    print(json.dumps(found | {"reasons": reasons()}))
