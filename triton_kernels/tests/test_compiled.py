"""What the kernels become on GPUs that are not here: registers, stack, instructions for each state."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("lightrec_triton", reason="lightrec-triton is not installed")
pytestmark = pytest.mark.xdist_group("triton")  # its processes are started once
TARGETS = ["sm_80", "sm_90", "gfx942"]


def assert_in_registers(target, made):
    assert made["stack"] == 0 and made["registers"] <= (512 if target == "gfx942" else 255), made


@pytest.mark.parametrize("target", TARGETS)
def test_the_scan_stays_in_registers(compiled, target):
    found = compiled[target]["scan"]
    for direction in ("forward", "backward"):
        assert_in_registers(target, found[direction])
    if target == "sm_90":  # instructions of the loop over time, for each state
        assert found["forward"]["loops"][0] / found["states"] <= 14, found
        assert found["backward"]["loops"][0] / found["states"] <= 36, found


@pytest.mark.parametrize("target", TARGETS)
def test_tiles_of_the_cross_entropy_stay_in_registers(compiled, target):
    found = compiled[target]["cross_entropy"]
    assert len(found) == 6
    for made in found.values():
        assert_in_registers(target, made)
