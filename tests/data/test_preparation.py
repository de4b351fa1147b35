"""Cleaning, filtering, ordering and numbering, against rules that can be checked by hand."""

import json
import os
import subprocess
import sys
import threading
import zipfile

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrec.data import preparation, shorthand
from lightrec.data.encoding import Encoded
from lightrec.data.options import Cleaning, LogFile
from lightrec.data.prepared import Prepared
from lightrec.errors import InputError


def prepare(path=None, source="", mirror=None, cache_dir=None, **options):
    """Prepares a log with options by their short names."""
    groups = shorthand.nested(options)
    log, cleaning = LogFile(**groups.pop("log", {})), Cleaning(**groups.pop("cleaning", {}))
    assert not groups
    return preparation.prepare(source, path, log, cleaning, mirror, cache_dir)


def histories(prepared):
    names = prepared.catalog.item_ids
    return {
        user: [names[i - 1] for i in prepared.items[prepared.offsets[u] : prepared.offsets[u + 1]]]
        for u, user in enumerate(prepared.users)
    }


def log(folder, rows, name="log.csv", header="user,item,time,rating"):
    path = folder / name
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


T = 1_000_000_000


def test_histories_are_in_order_of_time_and_equal_times_in_order_of_rows(tmp_path):
    rows = [
        ("a", "x", T + 5, 1),
        ("b", "z", T + 1, 1),
        ("a", "y", T + 2, 1),
        ("a", "w", T + 2, 1),
        ("a", "v", T + 2, 1),
    ]
    assert histories(prepare(path=log(tmp_path, rows))) == {"a": ["y", "w", "v", "x"], "b": ["z"]}


def test_users_and_items_are_numbered_by_first_appearance(tmp_path):
    prepared = prepare(path=log(tmp_path, [("b", "x", T + 9, 1), ("a", "y", T, 1), ("b", "y", T, 1)]))
    assert prepared.users.to_list() == ["b", "a"] and prepared.catalog.item_ids == ["x", "y"]


@pytest.mark.parametrize("which,expected", [("keep", ["x", "y", "x"]), ("first", ["x", "y"]), ("last", ["y", "x"])])
def test_duplicates_follow_the_stated_rule(tmp_path, which, expected):
    rows = [("a", "x", T, 1), ("a", "y", T + 1, 1), ("a", "x", T + 2, 1)]
    assert histories(prepare(path=log(tmp_path, rows), duplicates=which))["a"] == expected


def test_order_within_a_second_is_kept_although_times_are_whole_seconds(tmp_path):
    rows = [("a", "x", "1000000001.9", 1), ("a", "y", "1000000001.2", 1), ("a", "z", "1000000001.5", 1)]
    prepared = prepare(path=log(tmp_path, rows))
    assert histories(prepared) == {"a": ["y", "z", "x"]} and set(prepared.times) == {1_000_000_001}


def test_times_in_float32_leave_the_order_of_the_file_within_a_step(tmp_path):
    """A float32 near 978,300,760 (a time of MovieLens-1M) has steps of 64: 978,300,736 and 978,300,800."""
    t = 978_300_760
    rows = [("a", "late", t, 1), ("a", "early", t - 23, 1), ("a", "next", t + 9, 1), ("a", "first", t - 64, 1)]
    exact, rounded = prepare(path=log(tmp_path, rows)), prepare(path=log(tmp_path, rows), time_precision="float32")
    assert histories(exact) == {"a": ["first", "early", "late", "next"]}
    assert histories(rounded) == {"a": ["first", "late", "early", "next"]}
    assert rounded.times.tolist() == [978_300_672, 978_300_736, 978_300_736, 978_300_800]
    assert rounded.path != exact.path and rounded.meta["settings"]["time_precision"] == "float32"


def test_days_and_what_a_float32_holds_are_not_changed_by_rounding(tmp_path):
    days = [("a", "x", 15_706 * 86_400, 1), ("a", "y", 15_705 * 86_400, 1), ("b", "x", 5, 1), ("b", "y", 4, 1)]
    exact, rounded = prepare(path=log(tmp_path, days)), prepare(path=log(tmp_path, days), time_precision="float32")
    assert rounded.times.tolist() == exact.times.tolist() and histories(rounded) == histories(exact)


def test_milliseconds_are_rounded_as_the_numbers_that_they_are(tmp_path):
    rows = [("a", "x", 1_700_000_000_123, 1), ("a", "y", 1_700_000_000_124, 1), ("a", "z", 1_700_000_300_000, 1)]
    prepared = prepare(path=log(tmp_path, rows), time_precision="float32")
    expected = [int(np.float32(t).astype(np.float64) // 1000) for _, _, t, _ in rows]
    assert prepared.times.tolist() == expected and expected[0] == expected[1] != expected[2]


def test_a_log_without_times_has_none_to_round(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("a x y\n")
    with pytest.raises(InputError, match="--data.time_precision float32 rounds times, and this log has none"):
        prepare(path=str(path), time_precision="float32")


@pytest.mark.parametrize("which,expected", [("first", ["x", "y"]), ("last", ["y", "x"])])
def test_the_first_and_last_of_duplicates_go_by_time_not_by_row(tmp_path, which, expected):
    rows = [("a", "x", T + 2, 1), ("a", "x", T, 1), ("a", "y", T + 1, 1)]
    assert histories(prepare(path=log(tmp_path, rows), duplicates=which))["a"] == expected


def test_duplicates_without_times_go_by_row(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("a x y x\n")
    assert histories(prepare(path=str(path), duplicates="first"))["a"] == ["x", "y"]
    assert histories(prepare(path=str(path), duplicates="last"))["a"] == ["y", "x"]


def test_an_unrated_event_is_below_every_threshold(tmp_path):
    path = log(tmp_path, [("a", "x", T, 5), ("a", "y", T, "")])
    assert histories(prepare(path=path)) == {"a": ["x", "y"]}
    assert histories(prepare(path=path, min_rating=-9)) == {"a": ["x"]}


def test_skipped_rows_and_guessed_columns_are_recorded(tmp_path):
    meta = prepare(path=log(tmp_path, [("a", "x", T, 5), ("a", "y", "soon", 4)]), on_error="skip").meta
    assert meta["skipped_rows"] == 1 and meta["guessed_columns"] == ["user", "item", "time", "rating"]
    assert meta["counts"] == [{"step": "read", "users": 1, "items": 1, "events": 1}]
    assert meta["time_unit"] == "seconds" and meta["settings"]["on_error"] == "skip"


def test_ratings_below_the_threshold_are_dropped_and_counted(tmp_path):
    prepared = prepare(path=log(tmp_path, [("a", "x", T, 5), ("a", "y", T, 2), ("b", "x", T, 3)]), min_rating=3)
    assert histories(prepared) == {"a": ["x"], "b": ["x"]}
    assert [c["events"] for c in prepared.meta["counts"]] == [3, 2]


def chain(tmp_path):
    """Dropping b leaves y with one event, which leaves c with one: a single pass keeps what iteration drops."""
    pairs = [("a", "x"), ("a", "z"), ("d", "x"), ("d", "z"), ("b", "y"), ("c", "y"), ("c", "x")]
    return log(tmp_path, [(u, i, T + n, 1) for n, (u, i) in enumerate(pairs)])


def test_the_iterated_core_reaches_a_fixed_point_and_the_single_pass_does_not(tmp_path):
    path = chain(tmp_path)
    both = {"min_user_events": 2, "min_item_events": 2}
    assert set(histories(prepare(path=path, k_core="iterated", **both))) == {"a", "d"}
    assert set(histories(prepare(path=path, k_core="single_pass", **both))) == {"a", "d", "c"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60), st.integers(1, 4))
def test_the_iterated_core_is_the_largest_that_satisfies_both_counts(pairs, k):
    user, item = (np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True))
    names = pl.Series([str(i) for i in range(9)])
    rows = set(range(len(pairs)))
    while True:  # the definition, one row at a time
        bad = {
            r for r in rows if sum(user[s] == user[r] for s in rows) < k or sum(item[s] == item[r] for s in rows) < k
        }
        if not bad:
            break
        rows -= bad
    encoded = Encoded({"user": user, "item": item, "rating": np.arange(len(pairs))}, names, names, None)
    if not rows:
        with pytest.raises(InputError, match="no user is left"):
            encoded.filter(Cleaning(min_user_events=k, min_item_events=k))
    else:
        encoded.filter(Cleaning(min_user_events=k, min_item_events=k))
        assert set(encoded.columns["rating"]) == rows


def test_nobody_left_shows_the_counts_of_every_step(tmp_path):
    with pytest.raises(InputError, match=r"read: 4 users, 3 items, 7 events; iterated core .*0 events"):
        prepare(path=chain(tmp_path), min_user_events=9)


def test_the_second_time_comes_from_the_cache_and_a_changed_file_does_not(tmp_path):
    path = log(tmp_path, [("a", "x", T, 1)])
    first = prepare(path=path)
    stamp = (first.path / "items.npy").stat().st_mtime_ns
    assert (prepare(path=path).path / "items.npy").stat().st_mtime_ns == stamp
    log(tmp_path, [("a", "y", T, 1)])
    assert histories(prepare(path=path)) == {"a": ["y"]}
    assert prepare(path=path, duplicates="last").path != prepare(path=path).path


def test_what_an_older_version_guessed_is_read_again(tmp_path):
    """Its guesses may have been wrong, and nothing in what it kept shows them."""
    path = log(tmp_path, [("a", "x", T, 1)])
    first = prepare(path=path)
    meta = json.loads((first.path / "meta.json").read_text())
    del meta["read_as"], meta["equal_times"]
    (first.path / "meta.json").write_text(json.dumps(meta | {"title": "by guesses"}))
    again = prepare(path=path)
    assert again.path == first.path and "read_as" in again.meta and again.meta["title"] == "log.csv"
    (first.path / "meta.json").write_text(json.dumps(meta | {"guessed_columns": [], "title": "as it was told"}))
    assert prepare(path=path).meta["title"] == "as it was told"


def test_flags_that_are_not_used_change_no_key(tmp_path):
    path = log(tmp_path, [("a", "x", T, 1), ("a", "y", T, 2)])
    assert prepare(path=path, separator=None, where=None).path == prepare(path=path).path
    kept = prepare(path=path, where="rating=2")
    assert kept.path != prepare(path=path).path and histories(kept) == {"a": ["y"]}


def test_a_user_of_more_than_a_tenth_of_all_events_is_named(tmp_path):
    rows = [("robot", f"x{n}", T + n, 1) for n in range(50)] + [(f"u{n}", "x", T, 1) for n in range(50)]
    notes = prepare(path=log(tmp_path, rows)).meta["read_as"]["notes"]
    assert any("user robot holds 50% of all events" in note for note in notes)


def test_arrays_are_mapped_not_read(tmp_path):
    prepared = prepare(path=log(tmp_path, [("a", "x", T, 1)]))
    assert isinstance(prepared.items, np.memmap) and isinstance(prepared.times, np.memmap)


def test_titles_come_from_the_log_or_from_a_second_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,title\na,x,The X\na,y,\n")
    catalog = prepare(path=str(path)).catalog
    assert [catalog.title(1), catalog.title(2)] == ["The X", "y"]
    (tmp_path / "items.csv").write_text("item,title,kind\nx,New X,film\ny,New Y,book\n")
    catalog = prepare(path=str(path), item_path=str(tmp_path / "items.csv")).catalog
    assert catalog.titles == ["New X", "New Y"] and catalog.frame["kind"].to_list() == ["film", "book"]


def test_the_title_of_a_review_is_not_taken_for_that_of_an_item(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,title\na,x,Bad\nb,x,Good\nc,x,Great\n")
    assert prepare(path=str(path)).catalog.titles is None
    assert prepare(path=str(path), title_column="title").catalog.titles == ["Great"]


def test_an_item_file_may_be_of_recbole_and_incomplete(tmp_path):
    items = tmp_path / "log.item"
    items.write_text("item_id:token\tmovie_title:token_seq\tyear:float\ny\tThe Y\t1999\nq\tThe Q\t\n")
    catalog = prepare(path=log(tmp_path, [("a", "x", T, 1), ("a", "y", T, 1)]), item_path=str(items)).catalog
    assert catalog.titles == [None, "The Y"] and catalog.frame["year"].to_list() == [None, "1999"]


def test_an_item_file_of_other_items_is_said(tmp_path):
    items = tmp_path / "items.csv"
    items.write_text("id,title\n1,One\n")
    with pytest.raises(InputError, match="items.csv: none of the 1 items of the log is in it .'x' for one; .*'1'"):
        prepare(path=log(tmp_path, [("a", "x", T, 1)]), item_path=str(items))


def test_processes_that_start_together_make_one_set(tmp_path):
    path = log(tmp_path, [(f"u{i % 50}", f"i{i % 30}", T + i, 1) for i in range(3000)])
    code = "import sys; from lightrec.data.preparation import prepare; print(prepare(path=sys.argv[1]).path)"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(3)
    ]
    folders = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0] and len(folders) == 1
    prepared = Prepared.load(folders.pop())
    assert len(prepared.items) == 3000 and [p.name for p in prepared.path.parent.iterdir()] == [prepared.path.name]


def test_preparing_imports_no_torch(tmp_path):
    code = (
        "import sys; from lightrec.data.preparation import prepare; prepare(path=sys.argv[1]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, log(tmp_path, [("a", "x", T, 1)])]).returncode == 0


def test_several_threads_may_prepare_the_same_log(tmp_path):
    path, results = log(tmp_path, [(f"u{i % 50}", f"i{i % 30}", T + i, 1) for i in range(3000)]), []
    threads = [threading.Thread(target=lambda: results.append(prepare(path=path))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4 and len({str(r.path) for r in results}) == 1
    assert not [p for p in results[0].path.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ({}, "no data: give --data.source"),
        ({"path": "/nowhere.csv"}, "no such file"),
        ({"source": "ml-100k", "path": "x"}, "exclude each other"),
        ({"source": "ml-100k", "user_column": "x"}, "knows its own columns"),
        ({"path": "x", "duplicates": "some"}, "--data.duplicates 'some' is unknown; choose keep, first, last"),
        ({"path": "x", "k_core": "twice"}, "--data.k_core 'twice' is unknown"),
        ({"path": "x", "time_precision": "day"}, "--data.time_precision 'day' is unknown; choose exact, float32"),
        ({"path": "x", "min_user_events": 0}, "min_user_events .0. must be at least 1"),
        ({"path": "."}, "is a folder"),
    ],
)
def test_what_cannot_be_is_said(arguments, expected):
    with pytest.raises(InputError, match=expected):
        prepare(**arguments)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name,users,items,events,title",
    [
        ("ml-100k", 943, 1682, 100_000, "Kolya (1996)"),
        ("ml-1m-sasrec", 6040, 3416, 999_611, "Raiders of the Lost Ark (1981)"),
        ("amazon-beauty", 22_363, 12_101, 198_502, None),
        ("online-retail", 4339, 3665, 397_924, None),
    ],
)
def test_real_data_sets_have_their_published_counts(mirror, name, users, items, events, title):
    prepared = prepare(source=name, mirror=mirror)
    assert (prepared.num_users, prepared.num_items, len(prepared.items)) == (users, items, events)
    assert title is None or prepared.catalog.title(1) == title


@pytest.mark.real_data
def test_a_single_pass_over_the_whole_of_movielens_1m_gives_the_file_of_sasrec(tmp_path, mirror):
    lists = pl.read_parquet(f"{mirror}/ml-1m/sequences_full.parquet").with_row_index("user", offset=1)
    path = tmp_path / "ml-1m.parquet"
    lists.explode("item_ids").rename({"item_ids": "item"}).write_parquet(path)
    core = {"min_user_events": 5, "min_item_events": 5}
    prepared = prepare(path=str(path), k_core="single_pass", **core)
    assert [c["events"] for c in prepared.meta["counts"]] == [1_000_209, 999_611]
    assert (prepared.num_users, prepared.num_items) == (6040, 3416)
    original = dict(line.split() for line in open(f"{mirror}/ml-1m/sas_to_original_users.txt"))
    sasrec = prepare(source="ml-1m-sasrec", mirror=mirror)
    lengths = dict(zip(prepared.users, np.diff(prepared.offsets), strict=True))
    theirs = zip(sasrec.users, np.diff(sasrec.offsets), strict=True)
    assert all(lengths[original[user]] == length for user, length in theirs)


@pytest.mark.real_data
def test_times_in_float32_move_half_of_movielens_1m(tmp_path, mirror):
    """Why numbers of RecBole on MovieLens-1M are of other histories: exact times give the file of SASRec's authors."""
    path, half = tmp_path / "ratings.dat", f"{mirror}/ml-1m/ml-1m-users-1-2999.zip"
    path.write_bytes(zipfile.ZipFile(half).read("ml-1m/ratings.dat"))
    columns = {"user_column": 0, "item_column": 1, "rating_column": 2, "time_column": 3}
    exact, rounded = (histories(prepare(path=str(path), time_precision=p, **columns)) for p in ("exact", "float32"))

    names = {}
    for what in ("users", "items"):
        names[what] = dict(line.split() for line in open(f"{mirror}/ml-1m/sas_to_original_{what}.txt"))
    sasrec = {
        names["users"][user]: [names["items"][item] for item in items]
        for user, items in histories(prepare(source="ml-1m-sasrec", mirror=mirror)).items()
    }
    kept = set(names["items"].values())
    exact, rounded = ({u: [i for i in s if i in kept] for u, s in h.items()} for h in (exact, rounded))
    assert all(exact[user] == sasrec[user] for user in exact)

    same = [a == b for user in exact for a, b in zip(exact[user], rounded[user], strict=True)]
    assert 0.50 < np.mean(same) < 0.51
    assert 0.80 < np.mean([exact[user][-1] == rounded[user][-1] for user in exact]) < 0.81


@pytest.mark.real_data
def test_equal_times_do_not_reorder_beauty(mirror):
    """The two files of one data set, one with times and one without, give the same histories."""
    timed = prepare(source="amazon-beauty", mirror=mirror)
    plain = prepare(path=f"{mirror}/amazon-beauty/Beauty.txt")
    assert np.array_equal(timed.offsets, plain.offsets) and np.array_equal(timed.items, plain.items)
