"""A toy log, and the command line driven in this process."""

import os
from pathlib import Path

import pytest

from lightrec.cli import main
from lightrec.testing import toy_log


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory) -> Path:
    """64 users, 30 items, with titles."""
    return toy_log().write_csv(tmp_path_factory.mktemp("toy") / "toy.csv")


@pytest.fixture(scope="session")
def small(toy_csv, tmp_path_factory) -> list[str]:
    """Flags of a training that takes a second."""
    cache = str(tmp_path_factory.mktemp("prepared"))
    data = ["--data.path", str(toy_csv), "--data.max_length", "8", "--data.batch_size", "16", "--data.cache_dir", cache]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2"]
    return ["--model", "SASRec", "--model.hidden_size", "8", *data, *trainer]


@pytest.fixture(scope="session")
def run_folder(small, tmp_path_factory) -> Path:
    """The folder of a finished training; read it, do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["fit", *small, "--run_folder", str(folder)]) == 0
    return folder


@pytest.fixture
def best(run_folder) -> str:
    return str(run_folder / "checkpoints" / "best.ckpt")


@pytest.fixture
def complaint(capsys):
    """Runs a command that must fail for a reason the user can mend; returns the one line it says."""

    def run(*argv: str) -> str:
        capsys.readouterr()
        assert main(list(argv)) == 2
        lines = [line for line in capsys.readouterr().err.split("\n") if line.startswith("lightrec: ")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands write into a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTREC_PLUGINS", raising=False)
    assert "LIGHTREC_RUN_FOLDER" not in os.environ
