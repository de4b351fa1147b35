"""Cleaning, filtering, ordering and numbering, against rules that can be checked by hand."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrec.data.interactions import _Encoded, prepare
from lightrec.data.prepared import Prepared
from lightrec.errors import InputError


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
    import polars as pl

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
    encoded = _Encoded(user, item, None, np.arange(len(pairs)), names, names, {})
    if not rows:
        with pytest.raises(InputError, match="no user is left"):
            encoded.filter("keep", None, k, k, "iterated")
    else:
        encoded.filter("keep", None, k, k, "iterated")
        assert set(encoded.rating) == rows


def test_nobody_left_shows_the_counts_of_every_step(tmp_path):
    with pytest.raises(InputError, match=r"read: 4 users, 3 items, 7 events, .*0 events"):
        prepare(path=chain(tmp_path), min_user_events=9)


def test_the_second_time_comes_from_the_cache_and_a_changed_file_does_not(tmp_path):
    path = log(tmp_path, [("a", "x", T, 1)])
    first = prepare(path=path)
    stamp = (first.path / "items.npy").stat().st_mtime_ns
    assert (prepare(path=path).path / "items.npy").stat().st_mtime_ns == stamp
    log(tmp_path, [("a", "y", T, 1)])
    assert histories(prepare(path=path)) == {"a": ["y"]}
    assert prepare(path=path, duplicates="last").path != prepare(path=path).path


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


def test_several_processes_may_prepare_the_same_log(tmp_path):
    path, results = log(tmp_path, [(f"u{i % 50}", f"i{i % 30}", T + i, 1) for i in range(3000)]), []
    threads = [threading.Thread(target=lambda: results.append(prepare(path=path))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 4 and len({str(r.path) for r in results}) == 1
    assert not [p for p in results[0].path.parent.iterdir() if p.name.startswith(".")]


def test_a_disk_that_refuses_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="No space left.*cache_dir"):
        prepare(path=log(tmp_path, [("a", "x", T, 1)]), cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache" / "prepared").iterdir())


def test_a_damaged_prepared_set_is_said(tmp_path):
    prepared = prepare(path=log(tmp_path, [("a", "x", T, 1)]))
    (prepared.path / "offsets.npy").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="delete the folder"):
        Prepared.load(prepared.path)


@pytest.mark.parametrize(
    "arguments,expected",
    [
        ({}, "no data: give --data.source"),
        ({"path": "/nowhere.csv"}, "no such file"),
        ({"source": "ml-100k", "path": "x"}, "exclude each other"),
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
        ("online-retail", 4372, 3684, 406_829, None),
    ],
)
def test_real_data_sets_have_their_published_counts(mirror, name, users, items, events, title):
    prepared = prepare(source=name, mirror=mirror)
    assert (prepared.num_users, prepared.num_items, len(prepared.items)) == (users, items, events)
    assert title is None or prepared.catalog.title(1) == title


@pytest.mark.real_data
def test_equal_times_do_not_reorder_beauty(mirror):
    """The two files of one data set, one with times and one without, give the same histories."""
    timed = prepare(source="amazon-beauty", mirror=mirror)
    plain = prepare(path=f"{mirror}/amazon-beauty/Beauty.txt")
    assert np.array_equal(timed.offsets, plain.offsets) and np.array_equal(timed.items, plain.items)
