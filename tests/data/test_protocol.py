"""The record of how a number was made."""

import json

import pytest

from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.protocol import git_commit, protocol_line, seen_line


@pytest.fixture
def path(tmp_path):
    rows = [f"u{u},i{(u + t) % 12},{1_000_000_000 + 100 * t + u}" for u in range(9) for t in range(u + 1)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user,item,time", *rows]) + "\n")
    return path


def data_module(path, **options):
    """A data module with options by their short names."""
    return SequenceDataModule.from_description({"init_args": {"path": str(path), **options}})


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
    record = data_module(path, **options).protocol()
    assert record["tag"] == tag and json.loads(json.dumps(record)) == record
    assert {"data_sha256", "targets_sha256", "counts", "versions", "ties", "exclude_seen", "seed"} <= set(record)


def test_rounded_times_stand_in_the_record_and_in_its_line(path):
    exact, rounded = (data_module(path, time_precision=p).protocol() for p in ("exact", "float32"))
    assert rounded["rounded_times"] == "float32" and "rounded_times" not in exact
    assert "times rounded to float32, as in RecBole" in protocol_line(rounded)
    assert "rounded" not in protocol_line(exact)


def test_the_hash_of_targets_depends_on_targets_and_not_on_numbering(path, tmp_path):
    lines = path.read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    one, other = (SequenceDataModule(path=str(p)).protocol() for p in (path, turned))
    assert one["targets_sha256"] == other["targets_sha256"] and one["data_sha256"] != other["data_sha256"]
    turned.write_text("\n".join([*lines[:-1], lines[-1].replace("i", "j")]) + "\n")
    assert SequenceDataModule(path=str(turned)).protocol()["targets_sha256"] != one["targets_sha256"]


def test_what_a_model_cannot_have_learned_is_counted(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\na,1\na,2\na,new\nb,2\nb,1\nb,1\nc,3\n")
    record = SequenceDataModule(path=str(path)).protocol()
    assert record["num_test_rows"] == 2 and record["cold_test_targets"] == 1
    assert record["users_trained_on_only"] == 1


def test_the_record_of_a_timeline_says_where_it_was_cut_and_who_was_left_out(path):
    options = {"split": "global_timeline", "val_from": "2001-09-09T01:48:20", "test_from": "2001-09-09T01:51:40"}
    record = data_module(path, **options).protocol()
    assert (record["val_from"], record["test_from"]) == (1_000_000_100, 1_000_000_300)
    assert record["users_without_history"] == {"val": 0, "test": 0} and record["timeline_targets"] == "first"


def test_targets_that_were_in_the_history_are_counted_where_they_cannot_be_hit(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\na,1\na,2\na,3\na,1\nb,2\nb,3\nb,4\nb,5\n")
    record = data_module(path).protocol()
    assert (record["seen_test_targets"], record["num_test_targets"]) == (1, 2)
    assert "1 of 2 test targets (50%) are in the history already" in seen_line(record)
    assert "--data.exclude_seen false" in seen_line(record)
    kept = data_module(path, exclude_seen=False).protocol()
    assert "seen_test_targets" not in kept and seen_line(kept) == ""


def test_there_is_no_commit_outside_a_work_tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
