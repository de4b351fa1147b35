"""Caches, records and descriptions of lightrec 0.1.0 before the options had groups: what was written then holds now."""

import dataclasses

import pytest

from lightrec.data import shorthand
from lightrec.data.datamodule import SequenceDataModule
from lightrec.errors import InputError

# Found with that version on the log below; the options are as its checkpoints hold them.
PLAIN = ({}, "log-af44c26b07c1", {"tag": "P4", "split": "leave_one_out", "prefixes_per_user": None})
NAMED = ({"item_path": "items.csv", "user_column": "user", "item_column": 1}, "log-0e22a9426c71", {"tag": "P4"})
CLEANED = (
    {
        "min_rating": 2,
        "duplicates": "last",
        "min_user_events": 3,
        "min_item_events": 2,
        "k_core": "single_pass",
        "on_error": "skip",
        "format": "csv",
        "time_precision": "float32",
    },
    "log-57c4a64f2338",
    {
        "filters": {
            "duplicates": "last",
            "k_core": "single_pass",
            "min_item_events": 2,
            "min_rating": 2,
            "min_user_events": 3,
            "on_error": "skip",
        },
        "rounded_times": "float32",
        "targets_sha256": "6616c56d69c8d96dff5fc4d513cc05d1a171fa93472113a1f04eb23bcc76acd4",
    },
)
SPLIT = (
    {
        "split": "global_timeline",
        "val_from": 0.5,
        "test_from": 0.8,
        "timeline_targets": "all",
        "train_windows": "prefixes",
        "prefixes_per_user": 3,
        "exclude_seen": False,
        "candidates": "popularity-100",
        "seed": 4,
        "max_length": 7,
    },
    "log-af44c26b07c1",
    {
        "candidates": "popularity-100",
        "cold_test_targets": 1,
        "columns": {"item": "item", "rating": "rating", "time": "time", "user": "user"},
        "counts": [{"events": 45, "items": 12, "step": "read", "users": 9}],
        "data_sha256": "5cf11cd6a91c5322dbecc2632f007d421e3bbd2ea0dd75c817c893f6fbb39008",
        "exclude_seen": False,
        "filters": {
            "duplicates": "keep",
            "k_core": "iterated",
            "min_item_events": None,
            "min_rating": None,
            "min_user_events": None,
            "on_error": "raise",
        },
        "max_length": 7,
        "num_test_rows": 3,
        "prefixes_per_user": 3,
        "seed": 4,
        "skipped_rows": 0,
        "source": "file",
        "split": "global_timeline",
        "tag": "P2",
        "targets_sha256": "051df6a02a3949ab84c6873e6a8f3ed25d9d6954341159bb946c27880e0c2124",
        "test_from": 1000000506,
        "ties": "pessimistic: rank = number of candidates that score at least as high, the target included",
        "timeline_targets": "all",
        "title": "log.csv",
        "train_windows": "prefixes",
        "users_without_history": {"test": 0, "val": 0},
        "val_from": 1000000207,
    },
)
DEFAULTS = {"split": "leave_one_out", "val_from": 0.8, "test_from": 0.9, "timeline_targets": "first"}
DEFAULTS |= {"train_windows": "last", "prefixes_per_user": None, "item_path": None, "user_column": None}


def described(folder, options):
    """What such a checkpoint says of its data; every option was in it."""
    rows = [f"u{u},i{(u + t) % 12},{1_000_000_000 + 100 * t + u},{t % 5 + 1}" for u in range(9) for t in range(u + 1)]
    (folder / "log.csv").write_text("\n".join(["user,item,time,rating", *rows]) + "\n")
    (folder / "items.csv").write_text("\n".join(["id,title", *(f"i{i},Film {i}" for i in range(12))]) + "\n")
    files = {name: str(folder / options[name]) for name in ("item_path",) if name in options}
    given = {"path": str(folder / "log.csv"), "cache_dir": str(folder / "cache")}
    return {
        "class_path": "lightrec.data.datamodule.SequenceDataModule",
        "init_args": DEFAULTS | options | given | files,
    }


@pytest.mark.parametrize(
    "options,key,facts", [PLAIN, NAMED, CLEANED, SPLIT], ids=["plain", "named", "cleaned", "split"]
)
def test_a_cache_is_found_and_a_record_is_equal(tmp_path, options, key, facts):
    data = SequenceDataModule.from_description(described(tmp_path, options))
    assert data.prepared.path.name == key
    record = data.protocol()
    assert {name: record[name] for name in facts} == facts


def test_the_whole_record_is_equal(tmp_path):
    record = SequenceDataModule.from_description(described(tmp_path, SPLIT[0])).protocol()
    assert set(record) - set(SPLIT[2]) == {"git_commit", "versions"}


def test_an_option_has_its_short_name_and_its_full_one():
    assert shorthand.nested({"min_rating": 4, "path": "x"}) == {"cleaning": {"min_rating": 4}, "path": "x"}
    assert shorthand.full_flag("--data.user_column") == "--data.log.user_column"
    assert shorthand.full_flag("--data.prefixes_per_user") == "--data.train_windows.per_user"
    assert shorthand.is_of_part("--data.val_from") and not shorthand.is_of_part("--data.min_rating")
    assert shorthand.full_flag("--data.batch_size") == "--data.batch_size"


def test_no_short_name_is_that_of_an_argument_of_the_data_module_or_of_two_options():
    arguments = set(SequenceDataModule.__init__.__annotations__)
    places = shorthand.places()
    assert not arguments & set(places)
    options = sum(len(dataclasses.fields(kind)) for kind in shorthand.GROUPS.values()) + 4  # of the two parts
    assert len(places) == options


def test_an_option_of_a_part_that_was_not_chosen_is_refused():
    with pytest.raises(InputError, match=r"val_from \(0.7\) is an option of global_timeline: set --data.split global"):
        shorthand.nested({"val_from": 0.7})


def test_a_description_may_name_declared_parts_only(tmp_path):
    description = described(tmp_path, {})
    description["init_args"]["split"] = {"class_path": "os.system", "init_args": {"command": "touch pwned"}}
    with pytest.raises(InputError, match="names os.system for --data.split, which nobody declares"):
        SequenceDataModule.from_description(description)
