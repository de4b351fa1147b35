"""The Triton scan in the interpreter, against float64. In a process of its own: the mode is fixed at import."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("lightrec_triton", reason="lightrec-triton is not installed")
pytestmark = pytest.mark.xdist_group("interpreted scan")  # its fixture is worked out once

CASES = [(1, 3, 12, 5, False), (2, 17, 12, 5, True), (1, 9, 40, 16, True)]  # what the conformance suite leaves out
WORK = """
import json, sys, torch
from lightrec.ops import registry
from lightrec.ops.selective_scan import ScanSpec
from lightrec.testing.kernels import check_kernel, compare_with_reference, scan_inputs
found = {"errors": {}}
for *case, resets in json.loads(sys.argv[1]):
    torch.manual_seed(0)
    flags = torch.rand(case[0], case[1]) < 0.3 if resets else None
    found["errors"][f"{case} {resets}"] = compare_with_reference(scan_inputs(*case), "triton", resets=flags)
found["bf16"] = compare_with_reference(scan_inputs(2, 9, 12, 5, dtype=torch.bfloat16), "triton")
found["automatic"] = registry.choose("selective_scan", ScanSpec()).name
found["named"] = registry.choose("selective_scan", ScanSpec(), "triton").name
check_kernel("triton", budget="small")
found["conformance"] = "passed"
print(json.dumps(found))
"""


def run(script, *arguments, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment
    done = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def found():
    return json.loads(run(WORK, json.dumps(CASES), TRITON_INTERPRET="1").splitlines()[-1])


def test_output_and_all_gradients_agree_with_float64(found):
    for case, errors in found["errors"].items():
        for name, error in errors.items():
            assert error <= (1e-6 if name in ("out", "final_state") else 5e-6), (case, name, error)


def test_bfloat16_tensors_keep_float32_states(found):
    assert max(found["bf16"].values()) <= 1e-2, found["bf16"]


def test_it_passes_the_conformance_suite(found):
    assert found["conformance"] == "passed"


def test_the_interpreter_runs_if_named_and_is_never_chosen_otherwise(found):
    assert found["named"] == "triton" and found["automatic"] != "triton"


def test_on_a_cpu_without_the_interpreter_it_says_what_it_needs():
    script = """
from lightrec.ops import registry
from lightrec.ops.selective_scan import ScanSpec
import torch
print(dict(registry.explain("selective_scan", ScanSpec()))["triton"])
print(dict(registry.explain("selective_scan", ScanSpec(device="cuda", dtype=torch.float64)))["triton"])
print(dict(registry.explain("selective_scan", ScanSpec(device="cuda")))["triton"])
"""
    cpu, double, gpu = run(script, TRITON_INTERPRET="0").splitlines()
    assert "TRITON_INTERPRET=1" in cpu and "float64" in double and gpu == "None"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_passes_the_conformance_suite_on_a_gpu():
    from lightrec.testing.kernels import check_kernel

    check_kernel("triton", device="cuda")
