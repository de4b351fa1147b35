"""Four published systems as strangers get them: wheels in a fresh environment, used as their READMEs say, on real data.

What is short are the training (a few batches of one epoch) and the data: people and items of Amazon Beauty with many
events, real all the same. Nothing here asks how good a model is.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import polars as pl
import pytest

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.xdist_group("readmes of plug-ins"),  # its environment is made once
]

ROOT = Path(__file__).parents[2]
PLUGINS = ("rearec", "sracl", "unirec", "idnp")
SHORT = "--trainer.max_epochs 1 --trainer.limit_train_batches 3 --trainer.limit_val_batches 1 --data.min_user_events 20"
# What follows a fit, in one process: what takes long is to import torch. Reads a JSON list of lines and snippets.
SESSION = """import json, runpy, sys
from lightrec.cli import main
for given in json.load(sys.stdin):
    if isinstance(given, str):
        exec(given, {})
    elif given[0] == "lightrec":
        assert main(given[1:]) == 0, given
    else:
        sys.argv = given[2:]
        runpy.run_module(given[2], run_name="__main__")
"""


class Newcomer:
    """Somebody with an environment and a folder, who does what a README says."""

    def __init__(self, python: Path, home: Path, cache: Path, mirror: str):
        self.python, self.home = python, home
        self.env = {name: value for name, value in os.environ.items() if not re.match("PYTHONPATH|LIGHTREC_", name)}
        self.env |= {"LIGHTREC_CACHE": str(cache), "LIGHTREC_DATA_MIRROR": mirror, "OMP_NUM_THREADS": "1"}

    def run(self, *command: str, given: str = "") -> str:
        """Runs a program of the environment and returns what it prints."""
        command = [str(self.python.with_name(command[0])), *command[1:]]
        done = subprocess.run(
            command, cwd=self.home, env=self.env, input=given, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def dated(self, line: str) -> str:
        """Puts the run that is there for the TIME in a line: the README must name its folder rightly."""
        place = re.search(r"(runs/\S+)/TIME/", line)
        if place is None:
            return line
        (made,) = (self.home / place[1]).iterdir()
        return line.replace("/TIME/", f"/{made.name}/")


@pytest.fixture(scope="module")
def python(mirror, tmp_path_factory, build_wheels) -> Path:
    """Python of an environment that has what this one has, but for lightrec: it has the wheels of this checkout."""
    work = tmp_path_factory.mktemp("environment")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    folders = [work / "lightrec", *(work / f"lightrec-{name}" for name in PLUGINS)]
    shutil.copytree(ROOT / "lightrec", folders[0] / "lightrec", ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folders[0])
    for folder in folders[1:]:
        shutil.copytree(ROOT / "plugins" / folder.name, folder, ignore=ignored)
    wheels = build_wheels(work / "wheels", [str(folder) for folder in folders])

    venv.create(work / "venv", symlinks=True)
    python = work / "venv" / "bin" / "python"
    others = work / "others"
    others.mkdir()
    for path in map(Path, sys.path):
        for entry in path.iterdir() if path.name in ("site-packages", "dist-packages") else ():
            if not re.match("lightrec|__editable__", entry.name) and not (others / entry.name).exists():
                (others / entry.name).symlink_to(entry)
    (site,) = (work / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{others}\n")
    alone = [str(python), "-I"]  # neither the current folder nor PYTHONPATH
    assert subprocess.run([*alone, "-c", "import lightrec"], capture_output=True).returncode == 1
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*alone, "-m", "pip", "install", *options, *wheels], check=True)
    return python


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plug_in_does_what_its_readme_says(name, python, cache, mirror, tmp_path):
    folder = ROOT / "plugins" / f"lightrec-{name}"
    shutil.copytree(folder / "configs", tmp_path / "configs")
    somebody = Newcomer(python, tmp_path, cache, mirror)
    blocks = re.findall(r"```(\w+)\n(.*?)```", (folder / "README.md").read_text(), re.S)
    lines = [line for language, block in blocks if language == "sh" for line in block.splitlines()]
    assert lines.pop(0) == f"pip install {folder.name}"
    assert {line.split()[1] for line in lines} >= {"fit", "test", "predict"}
    for line in (line for line in lines if line.startswith("lightrec fit ")):
        assert "best: epoch 1 of 1" in somebody.run(*shlex.split(line), *SHORT.split())
    (best, *_) = sorted(tmp_path.glob("runs/*/*/checkpoints/best.ckpt"), key=os.path.getmtime)
    shutil.copy(best, tmp_path)  # which snippets of Python read
    rest = [shlex.split(somebody.dated(line)) for line in lines if not line.startswith("lightrec fit ")]
    snippets = [block for language, block in blocks if language == "python"]
    assert snippets
    somebody.run("python", "-c", SESSION, given=json.dumps(rest + snippets))

    found = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/results*.json")]
    assert len(found) == sum(words[1] == "test" for words in rest)
    for result in found:
        assert result["protocol"]["source"] == "amazon-beauty"
        assert all(0 <= value for value in result["metrics"].values()) and result["metrics"]
    predicted = pl.read_parquet(tmp_path / "predictions.parquet")
    assert predicted["user_id"].n_unique() > 100
