"""Every recipe in configs/ runs, on a toy log and for one epoch, and says in its header where it is from."""

from pathlib import Path

import pytest
import yaml

from lightrec.cli import main
from lightrec.data.sources import find_source
from lightrec.testing import toy_log

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = sorted(CONFIGS.glob("models/*.yaml"))
DATA = sorted(CONFIGS.glob("data/*.yaml"))
TRAINERS = sorted(CONFIGS.glob("trainer/*.yaml"))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = toy_log(num_users=40, min_length=6).write_csv(tmp_path / "purchases.csv")
    return [
        "--data.source",
        "file",
        "--data.path",
        str(log),
        "--trainer.max_epochs",
        "1",
        "--trainer.check_val_every_n_epoch",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]


def name(path):
    return path.stem


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_a_model_recipe_trains(path, toy):
    assert main(["fit", "--config", str(path), *toy, "--run_folder", "run"]) == 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0


@pytest.mark.parametrize("path", DATA, ids=name)
def test_a_data_recipe_composes_with_a_model(path, toy):
    flags = ["--model", "Popularity", "--data.train_windows", "all"]
    assert main(["fit", "--config", str(path), *flags, *toy, "--run_folder", "run"]) == 0


@pytest.mark.parametrize("path", DATA, ids=name)
def test_a_data_recipe_names_a_source_that_exists(path):
    data = yaml.safe_load(path.read_text())["data"]
    if "source" in data:
        assert find_source(data["source"]).max_length == data["max_length"]


@pytest.mark.parametrize("path", [p for p in TRAINERS if p.stem != "ddp_cpu"], ids=name)
def test_a_trainer_recipe_composes_with_a_model(path, toy):
    flags = ["--model", "SASRec", "--model.hidden_size", "8"]
    assert main(["fit", *flags, "--config", str(path), *toy, "--run_folder", "run"]) == 0


def test_all_kinds_of_recipes_are_there():
    assert len(MODELS) >= 10 and len(DATA) >= 9 and len(TRAINERS) >= 3


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_a_model_recipe_says_its_paper_command_and_result(path):
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    assert f"lightrec fit --config configs/models/{path.name}" in header
    assert "https://" in header or "floor" in header.lower()
    assert "Expected on the test part" in header or "easured" in header
