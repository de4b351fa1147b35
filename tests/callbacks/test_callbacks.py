"""The callbacks in a script of one's own, without the command line."""

import signal

import polars as pl
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightrec.callbacks import EpochLines, ExampleTable, Interruptible, PredictionWriter
from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError
from lightrec.models.sasrec import SASRec
from lightrec.testing import toy_log

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    path = toy_log().write_csv(folder / "toy.csv")
    return SequenceDataModule(path=str(path), max_length=8, batch_size=16, cache_dir=str(folder / "prepared"))


def model():
    torch.manual_seed(0)
    return SASRec(30, max_length=8, hidden_size=8)


def trainer(*callbacks, epochs=2):
    options = {"max_epochs": epochs, "num_sanity_val_steps": 0, "enable_checkpointing": False, **QUIET}
    return Trainer(callbacks=list(callbacks), use_distributed_sampler=False, log_every_n_steps=1, **options)


def test_a_line_per_epoch_and_the_best_are_told(data, capsys):
    lines = EpochLines()
    trainer(lines).fit(model(), data)
    out = capsys.readouterr().out
    assert [line[:9] for line in out.splitlines() if line.startswith("epoch")] == ["epoch   1", "epoch   2"]
    assert lines.best_epoch in (0, 1) and f"val/ndcg@10 {lines.best['val/ndcg@10']:.4f}" in out
    again = EpochLines()
    again.load_state_dict(lines.state_dict())
    assert (again.best, again.best_epoch) == (lines.best, lines.best_epoch)


def test_a_metric_that_nobody_measures_is_said(data):
    with pytest.raises(InputError, match="'val/ndgc@10' is not measured; did you mean val/ndcg@10"):
        trainer(EpochLines("val/ndgc@10")).fit(model(), data)


def test_a_signal_ends_the_training_between_two_batches_with_a_checkpoint_of_that_point(data, tmp_path):
    class Signal(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stop = Interruptible(tmp_path / "last.ckpt")
    with pytest.raises(SystemExit):
        trainer(stop, Signal()).fit(model(), data)
    assert stop.received == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6


def test_predictions_are_written_by_external_id_and_the_model_is_left_as_it_was(data, tmp_path):
    ours = model()
    trainer(PredictionWriter(tmp_path / "lists.parquet", k=3)).predict(ours, data, return_predictions=False)
    frame = pl.read_parquet(tmp_path / "lists.parquet")
    assert frame["user_id"].to_list() == [f"user-{i}" for i in range(64)]
    assert set(frame["item_ids"].list.len()) == {3}
    assert "predict_step" not in vars(ours)


@pytest.mark.parametrize(
    ("name", "k", "said"), [("x.parquet", 0, "k must be at least 1"), (".", 5, "cannot be written")]
)
def test_what_cannot_be_written_is_said_before_anything_is_computed(tmp_path, monkeypatch, name, k, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        PredictionWriter(name, k)


def test_examples_are_rows_of_titles_and_the_mode_of_the_model_is_kept(data):
    ours = model().train()
    rows = ExampleTable(num_users=3, k=2, history=4).rows(data, ours)
    users = [row[0] for row in rows]
    assert len(set(users)) == 3 and all(user.startswith("user-") for user in users) and ours.training
    assert all(1 <= row[1].count("Title ") <= 4 and row[3].count("Title ") == 2 for row in rows)
