"""SRA-CL from the command line."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from lightrec.cli import main

pytest.importorskip("lightrec_sracl.objective", reason="lightrec-sracl is not installed")

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.fixture
def shop(log, tmp_path, monkeypatch):
    """Flags of one epoch over the log."""
    monkeypatch.chdir(tmp_path)
    files = ["--data.path", str(log / "log.csv"), "--data.item_path", str(log / "items.csv")]
    return [*files, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run_folder", "run"]


def logged(name: str) -> list[float]:
    (path,) = Path("run").rglob("metrics.csv")
    return pl.read_csv(path)[name].drop_nulls().to_list()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_and_is_tested(path, shop):
    recipe = yaml.safe_load(path.read_text())
    assert recipe["model"]["init_args"]["objective"]["class_path"] == "SRACL"
    offline = ["--model.objective.text", "tfidf", "--data.source", "file", "--trainer.log_every_n_steps", "1"]
    assert main(["fit", "--config", str(path), *offline, *shop]) == 0
    assert min(logged("train/between_histories")) > 0 and min(logged("train/between_views")) > 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    assert not json.loads(Path("run/results.json").read_text())["protocol"]["exclude_seen"]


COMBINED = """
model:
  class_path: ReaRec
  init_args:
    num_steps: 2
    encoder:
      class_path: Mamba4RecEncoder
      init_args: {hidden_size: 16}
    objective:
      class_path: SRACL
      init_args:
        hidden_size: 16
        text_size: 8
        num_neighbours: 3
        objective:
          class_path: PRL
          init_args: {positions: all, warmup_epochs: 0}
data: {max_length: 6, train_windows: all}
trainer: {log_every_n_steps: 1}
"""


def test_rearec_on_mamba4rec_is_trained_with_it_by_a_recipe_tested_and_asked(shop):
    pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
    Path("combined.yaml").write_text(COMBINED)
    assert main(["fit", "--config", "combined.yaml", *shop]) == 0
    assert min(logged("train/between_histories")) > 0 and min(logged("train/between_views")) > 0
    for command in ("test", "predict"):
        assert main([command, "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    assert "test/step-1/ndcg@10" in json.loads(Path("run/results.json").read_text())["metrics"]
    assert pl.read_parquet("predictions.parquet")["user_id"].n_unique() == 40


def test_a_log_without_text_is_told_what_to_choose_on_the_command_line(log, shop, capsys):
    flags = ["--model", "GRU4Rec", "--model.objective", "SRACL", "--data.path", str(log / "log.csv"), *shop[4:]]
    assert main(["fit", *flags]) == 2
    err = capsys.readouterr().err
    assert "has no text about its items" in err and "collaborative" in err and err.count("lightrec: ") == 1
