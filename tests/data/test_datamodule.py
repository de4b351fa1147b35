"""The data module as a user meets it, and as a Trainer does."""

import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError


@pytest.fixture
def path(tmp_path):
    rows = [f"u{u},i{(u + t) % 12},{1_000_000_000 + 100 * t + u}" for u in range(9) for t in range(u + 1)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,item,time", *rows]) + "\n")
    return str(path)


def data_module(path, **options):
    """A data module with options by their short names."""
    return SequenceDataModule.from_description({"init_args": {"path": path, **options}})


def test_a_log_becomes_batches(path):
    data = SequenceDataModule(path=path, max_length=4, batch_size=3)
    assert (data.num_users, data.num_items, data.max_length) == (9, 12, 4)
    train = list(data.train_dataloader())
    assert all(b.item_ids.shape[1] <= 5 and (b.lengths >= 2).all() for b in train)
    (test,) = data.test_dataloader()
    assert len(test) == 7 and (test.history_lengths >= test.lengths).all()
    assert int(data.item_counts.sum()) == 1 + 2 + sum(range(1, 8))


def test_the_description_builds_an_equal_one(path):
    data = data_module(path, max_length=4, exclude_seen=False, candidates="uniform-100", seed=5)
    described = data.describe()
    assert json.loads(json.dumps(described)) == described
    again = SequenceDataModule.from_description(described)
    assert again.describe() == described and again.protocol() == data.protocol()


def test_the_description_of_a_relative_path_holds_in_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    described = SequenceDataModule(path="log.csv").describe()
    monkeypatch.chdir("/")
    assert SequenceDataModule.from_description(described).num_users == SequenceDataModule(path=path).num_users


def test_times_are_given_on_request_only(path):
    assert next(iter(SequenceDataModule(path=path).val_dataloader())).timestamps is None
    batch = next(iter(SequenceDataModule(path=path, with_times=True).val_dataloader()))
    assert batch.timestamps.shape == batch.item_ids.shape and (batch.target_timestamps > 1_000_000_000).all()


def test_prediction_serves_every_user_with_the_whole_history(path):
    batches = list(SequenceDataModule(path=path).predict_dataloader())
    lengths = torch.cat([b.history_lengths for b in batches])
    assert sorted(lengths.tolist()) == list(range(1, 10))


@pytest.mark.parametrize(
    "options,expected",
    [
        ({"max_length": 0}, r"--data.max_length \(0\) must be at least 1"),
        ({"max_length": 10, "batch_tokens": 5}, r"batch_tokens \(5\) must hold one row of max_length \+ 1 \(11\)"),
        ({"split": "random"}, "choose leave_one_out, global_timeline"),
        (
            {"split": "global_timeline", "timeline_targets": "some"},
            "--data.timeline_targets 'some' is unknown; choose first, all",
        ),
        ({"seed": -1}, r"--data.seed \(-1\) must be at least 0"),
        (
            {"prefixes_per_user": 4},
            r"prefixes_per_user \(4\) is an option of prefixes: set --data.train_windows prefixes",
        ),
        ({"prefixes_per_user": 0, "train_windows": "prefixes"}, r"prefixes_per_user \(0\) must be at least 1"),
    ],
)
def test_impossible_options_are_said(path, options, expected):
    with pytest.raises(InputError, match=expected):
        data_module(path, **options)


def test_a_log_too_small_to_ask_is_said(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\na,x\na,y\nb,x\n")
    data = SequenceDataModule(path=str(tmp_path / "log.csv"))
    with pytest.raises(InputError, match="of 2 users the longest history has 2 events"):
        data.test_dataloader()
    (tmp_path / "log.csv").write_text("user,item\na,x\nb,x\n")
    with pytest.raises(InputError, match="nothing to train on"):
        SequenceDataModule(path=str(tmp_path / "log.csv")).train_dataloader()


def test_a_window_that_asks_nobody_is_said(path):
    data = data_module(path, split="global_timeline", val_from=0.5, test_from=1_700_000_000_000)
    with pytest.raises(InputError, match=r"test_from is \d+ s|test_from is 5\d{4}-.*the log runs from 2001-09-09"):
        data.test_dataloader()
    data = data_module(path, split="global_timeline", val_from=2.0, test_from=0.9)
    with pytest.raises(InputError, match="validation part: 9 of 9 users have events in it .*1970-01-01 00:00:02"):
        data.val_dataloader()


def test_a_budget_below_the_length_that_the_source_suggests_is_said(path):
    with pytest.raises(InputError, match=r"batch_tokens \(40\) must hold one row of max_length \+ 1 \(51\)"):
        SequenceDataModule(path=path, batch_tokens=40).train_dataloader()


def test_times_that_the_log_lacks_are_said(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\na,x\na,y\na,z\n")
    with pytest.raises(InputError, match="log with times; .*: set it to false. No model of lightrec itself needs"):
        SequenceDataModule(path=str(tmp_path / "log.csv"), with_times=True).test_dataloader()


class Recorder(L.LightningModule):
    """Notes what it is given; breaks down in a step, on request."""

    def __init__(self, breaks_at: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.breaks_at, self.trained, self.asked = breaks_at, [], []

    def training_step(self, batch, batch_idx):
        if len(self.trained) == self.breaks_at:
            raise ConnectionAbortedError
        self.trained.append((self.current_epoch, batch_idx, batch.item_ids.tolist()))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.asked.append((self.trainer.sanity_checking, self.current_epoch, batch.user_ids.tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def run(tmp_path):
    """Fits a new module on a new data module of 3 to 29 events a user, which makes 7 batches."""
    rows = [f"u{u},i{(7 * u + t * t) % 50}" for u in range(27) for t in range(u + 3)]
    (tmp_path / "many.csv").write_text("\n".join(["user,item", *rows]) + "\n")

    def fit(breaks_at=None, start=None, callback=None, tokens=None, **options):
        data = SequenceDataModule(
            path=str(tmp_path / "many.csv"), max_length=20, batch_size=4, batch_tokens=tokens, eval_batch_size=8
        )
        model = Recorder(breaks_at)
        defaults = {"max_epochs": 3, "num_sanity_val_steps": 0, "logger": False, "enable_progress_bar": False}
        trainer = L.Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            enable_model_summary=False,
            enable_checkpointing=callback is not None,
            callbacks=callback,
            **{**defaults, **options},
        )
        try:
            trainer.fit(model, datamodule=data, ckpt_path=start)
        except ConnectionAbortedError:
            assert breaks_at is not None
        return model

    return fit


WHEN = {
    "every step": lambda folder: ModelCheckpoint(folder, every_n_train_steps=1),
    "after validation": lambda folder: ModelCheckpoint(folder, save_on_train_epoch_end=False),
    "the end of an epoch": lambda folder: ModelCheckpoint(folder, save_on_train_epoch_end=True),
    "the error": lambda folder: OnExceptionCheckpoint(folder),
}


# A resumed run here saves nothing; a first run that saves on an error looks for a checkpoint, and there is none yet.
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.filterwarnings(r"ignore:`.fit\(ckpt_path=None\)` was called without a model:UserWarning")
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available:UserWarning")
@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 5}, {"max_steps": 18, "max_epochs": -1}], ids=str)
@pytest.mark.parametrize("when", WHEN)
def test_a_run_that_broke_down_is_resumed_with_the_batches_that_were_left(run, tmp_path, when, options):
    whole = run(**options).trained
    for breaks_at in (3, 7, 9):
        folder = tmp_path / f"{breaks_at}"
        broken = run(breaks_at, callback=WHEN[when](folder), **options)
        if not folder.exists():  # nothing was saved before the error
            assert breaks_at == 3 and when in ("after validation", "the end of an epoch")
            continue
        (path,) = folder.glob("*.ckpt")
        loops = torch.load(path, weights_only=True)["loops"]["fit_loop"]
        done = loops["epoch_loop.batch_progress"]["total"]["processed"]
        assert broken.trained == whole[:breaks_at]
        if when in ("every step", "the error"):
            assert done == breaks_at
        assert run(start=path, **options).trained == whole[done:]


def test_every_epoch_has_an_order_of_its_own_and_a_limit_takes_its_beginning(run):
    whole = run().trained
    epochs = [[batch for e, _, batch in whole if e == epoch] for epoch in range(3)]
    assert [len(batches) for batches in epochs] == [7, 7, 7]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    for limit in (1, 5):
        assert run(limit_train_batches=limit).trained == [step for step in whole if step[1] < limit]


@pytest.mark.parametrize("tokens", [None, 60])
def test_every_validation_asks_every_user_whatever_came_before(run, tokens):
    asked = run(num_sanity_val_steps=2, val_check_interval=0.5, tokens=tokens).asked
    assert sum(sanity for sanity, *_ in asked) == 2
    for epoch in range(3):
        users = [user for sanity, e, rows in asked if e == epoch and not sanity for user in rows]
        assert sorted(users) == sorted(2 * list(range(27)))
    first = [rows for sanity, _, rows in asked if not sanity][0]
    assert {str(rows) for _, _, rows in run(limit_val_batches=1, tokens=tokens).asked} == {str(first)}
