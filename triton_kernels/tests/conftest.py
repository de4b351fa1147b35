"""What the tests of this folder share: Triton fixes at import whether it interprets or compiles, so each mode has a
process of its own. Both start at once, do all their work after a single import of torch and Triton, and print JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def processes():
    started = {}
    for mode, interpret in (("interpreted", "1"), ("compiled", "0")):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TRITON_INTERPRET": interpret}
        command = [sys.executable, str(Path(__file__).with_name(f"{mode}_worker.py"))]
        pipe = subprocess.PIPE
        started[mode] = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def answer(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="session")
def interpreted(processes):
    """What `interpreted_worker.py` found."""
    return answer(processes["interpreted"])


@pytest.fixture(scope="session")
def compiled(processes):
    """What `compiled_worker.py` found."""
    return answer(processes["compiled"])
