"""ReaRec from the command line: its recipes, and bad input."""

import json
from pathlib import Path

import pytest
import yaml

from lightrec import testing
from lightrec.cli import main

pytest.importorskip("lightrec_rearec", reason="lightrec-rearec is not installed")

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path / "cache"))
    log = testing.toy_log(num_users=40, min_length=6).write_csv(tmp_path / "purchases.csv")
    return [
        "--data.source",
        "file",
        "--data.path",
        str(log),
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_and_is_tested(path, toy):
    narrow = ["--model.encoder.hidden_size", "16", "--run_folder", "run"]
    assert main(["fit", "--config", str(path), *narrow, *toy]) == 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    assert "test/step-1/ndcg@10" in json.loads(Path("run/results.json").read_text())["metrics"]
    assert yaml.safe_load(path.read_text())["model"]["class_path"] == "ReaRec"


def test_reasoning_on_a_state_space_model_from_the_command_line(toy):
    flags = ["--model", "ReaRec", "--model.encoder", "Mamba4RecEncoder", "--model.encoder.hidden_size", "16"]
    assert main(["fit", *flags, "--model.objective", "ERL", "--data.train_windows", "prefixes", *toy]) == 0


def test_bad_input_on_the_command_line_is_one_line(toy, capsys):
    for flags, message in (
        (["--model.num_steps", "-1"], "num_steps (-1) must be at least 0"),
        (["--model.encoder", "lightrec.models.sigma.SIGMAEncoder"], "SIGMAEncoder sees the future"),
    ):
        assert main(["fit", "--model", "ReaRec", *flags, *toy]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
