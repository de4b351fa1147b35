"""What the kernels become on GPUs that are not here: registers, stack, instructions for each state. Compiled in a
process without the interpreter."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("lightrec_triton", reason="lightrec-triton is not installed")

WORK = """
import dataclasses, json, sys
from lightrec_triton import selective_scan as scan
from lightrec_triton.compiled import compile_for
target = sys.argv[1]
bf16 = {n: "*bf16" for n in ("x_ptr", "delta_ptr", "B_ptr", "C_ptr", "z_ptr", "out_ptr", "grad_out_ptr", "dx_ptr",
                             "ddelta_ptr", "dz_ptr")} | {"resets_ptr": "*i8"}
sizes = dict(channels=128, states=16, x_st=128, delta_st=128, z_st=256, B_st=36, C_st=36, x_sd=1, delta_sd=1, z_sd=1,
             B_sn=1, C_sn=1)
flags = dict(SOFTPLUS=True, HAS_D=True, HAS_Z=True, HAS_BIAS=True, HAS_RESETS=False, EVERY=scan.CHECKPOINT_EVERY)
block_d, block_n = scan.blocks(128, 16)
flags |= dict(BLOCK_D=block_d, BLOCK_N=block_n)
forward = compile_for(target, scan.scan_forward, sizes | flags | {"HAS_INITIAL": False}, bf16, 1)
backward = compile_for(target, scan.scan_backward,
                       sizes | flags | {"HAS_GRAD_FINAL": False, "grad_st": 128, "grad_sd": 1}, bf16, 1)
states = scan.CHECKPOINT_EVERY * block_d * block_n / 32
print(json.dumps({"forward": dataclasses.asdict(forward), "backward": dataclasses.asdict(backward), "states": states}))
"""


def compiled(target):
    environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WORK, target], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_the_scan_stays_in_registers(target):
    found = compiled(target)
    limit = 512 if target == "gfx942" else 255
    for direction in ("forward", "backward"):
        assert found[direction]["stack"] == 0 and found[direction]["registers"] <= limit, found
    if target == "sm_90":  # instructions of the loop over time, for each state
        assert found["forward"]["loops"][0] / found["states"] <= 14, found
        assert found["backward"]["loops"][0] / found["states"] <= 36, found
