"""Distributions as strangers make them, built into wheels and installed: a good one and all kinds of faulty ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightrec import PLUGIN_API
from lightrec.cli import scaffold

# What every one of them does when it is imported, so that a test sees who was.
MARK = """import os
if os.environ.get("LIGHTREC_TEST_MARK"):
    with open(os.environ["LIGHTREC_TEST_MARK"], "a") as file:
        file.write(__name__ + chr(10))
"""
MODEL = "from lightrec.models.sasrec import SASRec\n\n\nclass Mine(SASRec):\n    '''A model of somebody else.'''\n"
# distribution: (name of its model, source of its module, what it requires of lightrec, plug-in API)
FAULTY = {
    "lightrec-twin-a": ("Twin", MODEL, "lightrec", PLUGIN_API),
    "lightrec-twin-b": ("Twin", MODEL, "lightrec", PLUGIN_API),
    "lightrec-rival": ("SASRec", MODEL, "lightrec", PLUGIN_API),
    "lightrec-crash": ("Crash", "raise RuntimeError('wrong moon')\n", "lightrec", PLUGIN_API),
    "lightrec-exit": ("Exit", "raise SystemExit(5)\n", "lightrec", PLUGIN_API),
    "lightrec-hang": ("Hang", "import time\ntime.sleep(600)\n", "lightrec", PLUGIN_API),
    "lightrec-loud": ("Loud", "print('look at me')\n" + MODEL, "lightrec", PLUGIN_API),
    "lightrec-wrong": (
        "Wrong",
        "import torch\n\n\nclass Mine(torch.nn.Module):\n    pass\n",
        "lightrec",
        PLUGIN_API,
    ),
    "lightrec-future": ("Future", MODEL, "lightrec", PLUGIN_API + 1),
    "lightrec-range": ("Range", MODEL, "lightrec>=99", PLUGIN_API),
}
_PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "1.2"
dependencies = ["{requires}"]
[project.entry-points."lightrec.models"]
{model} = "{module}:Mine"
[project.entry-points."lightrec.api"]
{api} = "{module}"
[tool.setuptools]
py-modules = ["{module}"]
"""
# One process builds all: what takes long is to start Python and to import setuptools.
_BUILD = """import os, sys
from setuptools import build_meta
target, *folders = sys.argv[1:]  # which the first build changes
for folder in folders:
    os.chdir(folder)
    build_meta.build_wheel(target)
"""


@pytest.fixture(scope="session")
def build_wheels():
    """Returns what builds the projects in `folders` into wheels in `target`, and names them."""

    def build(target: Path, folders: list[str]) -> list[str]:
        _run([sys.executable, "-c", _BUILD, str(target), *folders])
        wheels = [str(path) for path in target.glob("*.whl")]
        assert len(wheels) == len(folders)
        return wheels

    return build


@pytest.fixture(scope="session")
def site(tmp_path_factory, build_wheels) -> Path:
    """A folder that wheels are installed in: one made by `plugins new`, and the faulty ones."""
    work = tmp_path_factory.mktemp("wheels")
    hello = work / "lightrec-hello"
    scaffold.write(hello, scaffold.names_of("Hello", "model"), "model")
    init = hello / "src" / "lightrec_hello" / "__init__.py"
    init.write_text(init.read_text() + MARK)
    for name, (model, source, requires, api) in FAULTY.items():
        module = name.replace("-", "_")
        (work / name).mkdir()
        (work / name / f"{module}.py").write_text(MARK + source)
        text = _PYPROJECT.format(name=name, requires=requires, model=model, module=module, api=api)
        (work / name / "pyproject.toml").write_text(text)
    folders = [str(work / name) for name in ("lightrec-hello", *FAULTY)]
    wheels = build_wheels(work / "built", folders)
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "pip", "install", *options, "--target", str(work / "site"), *wheels])
    return work / "site"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def lightrec(site, tmp_path, monkeypatch):
    """Runs the command line in a process that has the wheels; returns it, and who was imported."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        mark = tmp_path / "mark"
        mark.unlink(missing_ok=True)
        env = {**os.environ, "PYTHONPATH": str(site), "LIGHTREC_TEST_MARK": str(mark), "OMP_NUM_THREADS": "1"}
        env.pop("LIGHTREC_PLUGINS", None)
        command = [sys.executable, "-m", "lightrec", *argv]
        done = subprocess.run(command, capture_output=True, text=True, env=env | environment, timeout=500)
        return done, mark.read_text().split() if mark.exists() else []

    return run
