"""A kernel from outside of the repository: packed, installed, found, checked and chosen by its name."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.xdist_group("outside kernel")  # its fixture is worked out once

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "scan-from-elsewhere"
version = "2.5"
requires-python = ">=3.10"
dependencies = ["lightrec>=0.1"]

[project.entry-points."lightrec.kernels"]
elsewhere = "scan_from_elsewhere:kernels"

[tool.setuptools]
py-modules = ["scan_from_elsewhere"]
"""

# Nothing of ours but what the contract names: the recurrence as a matrix of decays, which autograd differentiates.
MODULE = '''
"""The selective scan as one product with a [L, L] matrix a state: quadratic, and without a loop over time."""

import torch
import torch.nn.functional as F

from lightrec.ops.registry import Kernel


def forward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    u, A, B, C = x.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)
    step = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    if softplus:
        step = F.softplus(step, threshold=40.0)
    batch, length, channels = x.shape
    began = torch.zeros(batch, length, dtype=torch.long, device=x.device) if resets is None else resets.cumsum(1)
    same = torch.tril(began[:, :, None] == began[:, None, :])  # [B, L, L]: no reset between the two steps
    entered = (step * u).unsqueeze(-1) * B.unsqueeze(2)
    # sums of the steps between, without taking differences of long sums
    later = torch.tril(torch.ones(length, length, device=x.device, dtype=torch.bool), -1)
    spread = torch.where(later[None, :, :, None], step.unsqueeze(2), 0.0).cumsum(1)  # [B, t, s, D]
    # chosen, not multiplied by zero, and before exp as well: a NaN of another sequence, or one that comes later, must
    # stay where it is, in gradients too
    decay = torch.exp(torch.where(same[..., None], spread, 0.0).unsqueeze(-1) * A)
    h = torch.where(same[..., None, None], decay * entered.unsqueeze(1), 0.0).sum(2)
    state = x.new_zeros(batch, *A.shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    first = (began == 0)[..., None]
    reach = torch.exp(torch.where(first, step.cumsum(1), 0.0).unsqueeze(-1) * A) * state.unsqueeze(1)
    h = h + torch.where(first[..., None], reach, 0.0)
    y = (h * C.unsqueeze(2)).sum(-1)
    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), h[:, -1] if length else state, None


def accepts(spec):
    return "it is quadratic in length and not for compiled graphs" if spec.compiling else None


def kernels():
    return Kernel("selective_scan", "elsewhere", forward, None, accepts, priority=-50)
'''


def python(site, code, *argv, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("LIGHTREC_PLUGINS", "LIGHTREC_KERNEL")}
    clean |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *(["-c", textwrap.dedent(code)] if code else []), *argv]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("elsewhere")
    source, wheels, target = folder / "source", folder / "wheels", folder / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "scan_from_elsewhere.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(target), str(wheel)], check=True)
    return target


def test_it_passes_the_conformance_suite_and_is_chosen_by_name(site):
    code = """
        import json
        from lightrec.ops.registry import asked_for, choose, use_kernel
        from lightrec.ops.selective_scan import ScanSpec, selective_scan
        from lightrec.testing import check_kernel
        from lightrec.testing.kernels import relative_error, scan_inputs

        def chosen(**options):
            return choose("selective_scan", ScanSpec(), **options).name

        i = scan_inputs(2, 9, 5, 3)
        found = {"environment": chosen(), "argument": chosen(kernel="torch"), "by": asked_for("selective_scan")[1]}
        with use_kernel(None):
            found["automatic"] = chosen()
            found["named"] = chosen(kernel="elsewhere")
            # another order of sums: that the two differ says that it was really this one that ran
            exact = selective_scan(**i, kernel="reference")
            found["difference"] = relative_error(selective_scan(**i, kernel="elsewhere"), exact)
            found["worst"] = check_kernel("elsewhere")
        print(json.dumps(found))
    """
    found = python(site, code, LIGHTREC_KERNEL="selective_scan=elsewhere")
    assert (found["environment"], found["by"], found["argument"]) == ("elsewhere", "environment", "torch")
    assert found["automatic"] != "elsewhere" and found["named"] == "elsewhere"
    assert 0 < found["difference"] < 1e-6
    assert len(found["worst"]) == 8 and found["worst"]["float32 output"] < 1e-6


def test_the_command_line_shows_it_and_who_brought_it(site):
    argv = ["-m", "lightrec", "kernels", "--json", "--device", "cpu"]
    rows = python(site, None, *argv, LIGHTREC_KERNEL="elsewhere")["kernels"]
    (row,) = [row for row in rows if row["name"] == "elsewhere"]
    assert row["distribution"] == "scan-from-elsewhere 2.5" and row["reason"] is None
    assert row["chosen"] and row["chosen_by"] == "environment"
