"""The data module as a user meets it."""

import json

import pytest
import torch

from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError


@pytest.fixture
def path(tmp_path):
    rows = [f"u{u},i{(u + t) % 12},{1_000_000_000 + 100 * t + u}" for u in range(9) for t in range(u + 1)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,item,time", *rows]) + "\n")
    return str(path)


def test_a_log_becomes_batches(path):
    data = SequenceDataModule(path=path, max_length=4, batch_size=3)
    assert (data.num_users, data.num_items, data.max_length) == (9, 12, 4)
    train = list(data.train_dataloader())
    assert all(b.item_ids.shape[1] <= 5 and (b.lengths >= 2).all() for b in train)
    (test,) = data.test_dataloader()
    assert len(test) == 7 and (test.history_lengths >= test.lengths).all()
    assert int(data.item_counts.sum()) == 1 + 2 + sum(range(1, 8))


def test_the_description_builds_an_equal_one(path):
    data = SequenceDataModule(path=path, max_length=4, exclude_seen=False, candidates="uniform-100", seed=5)
    described = data.describe()
    assert json.loads(json.dumps(described)) == described
    again = SequenceDataModule(**described["init_args"])
    assert again.describe() == described and again.protocol() == data.protocol()


@pytest.mark.parametrize(
    "options,tag",
    [
        ({}, "P4"),
        ({"exclude_seen": False}, "P3"),
        ({"candidates": "uniform-100"}, "P1"),
        ({"candidates": "popularity-100"}, "P2"),
        ({"split": "global_timeline", "val_from": 0.5, "test_from": 0.8}, "P5"),
    ],
)
def test_the_record_names_the_protocol(path, options, tag):
    record = SequenceDataModule(path=path, **options).protocol()
    assert record["tag"] == tag and json.loads(json.dumps(record)) == record
    assert {"data_sha256", "targets_sha256", "counts", "versions", "ties", "exclude_seen", "seed"} <= set(record)


def test_the_hash_of_targets_depends_on_targets_and_not_on_numbering(path, tmp_path):
    lines = open(path).read().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    one, other = (SequenceDataModule(path=str(p)).protocol() for p in (path, turned))
    assert one["targets_sha256"] == other["targets_sha256"] and one["data_sha256"] != other["data_sha256"]
    turned.write_text("\n".join([*lines[:-1], lines[-1].replace("i", "j")]) + "\n")
    assert SequenceDataModule(path=str(turned)).protocol()["targets_sha256"] != one["targets_sha256"]


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
        ({"with_times": True, "time_column": None}, None),
    ],
)
def test_impossible_options_are_said(path, options, expected):
    if expected is None:
        SequenceDataModule(path=path, **options)
        return
    with pytest.raises(InputError, match=expected):
        SequenceDataModule(path=path, **options)


def test_a_log_too_small_to_ask_is_said(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\na,x\na,y\nb,x\n")
    data = SequenceDataModule(path=str(tmp_path / "log.csv"))
    with pytest.raises(InputError, match="the longest history has 2 events"):
        data.test_dataloader()
    (tmp_path / "log.csv").write_text("user,item\na,x\nb,x\n")
    with pytest.raises(InputError, match="nothing to train on"):
        SequenceDataModule(path=str(tmp_path / "log.csv")).train_dataloader()
