"""Columns of events that the user names, from the file to the batch and to the corpus."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch

from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.options import Cleaning, LogFile
from lightrec.errors import InputError

PLACES = ["home", "search", "ad"]


def dwell_of(user: int, t: int) -> float:
    return 100.0 * user + t + 0.5


@pytest.fixture
def folder(tmp_path):
    """Users u3 to u8 with as many events; the last has no place, the first no dwell. Rows are not in order of time."""
    events = [
        (f"u{u}", f"i{(5 * u + t) % 12}", 1_000_000_000 + t, "" if t == u - 1 else PLACES[t % 3], dwell_of(u, t), "x")
        for u in range(3, 9)
        for t in range(u)
    ]
    lines = [",".join("" if name == dwell_of(3, 0) else str(name) for name in event) for event in reversed(events)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time,place,dwell,other", *lines]) + "\n")
    return tmp_path


def data_of(folder, columns=("place", "dwell"), **options) -> SequenceDataModule:
    log = LogFile(event_columns=list(columns))
    return SequenceDataModule(path=str(folder / "log.csv"), log=log, cache_dir=str(folder / "cache"), **options)


def test_numbers_are_float32_and_text_is_codes_with_its_vocabulary(folder):
    columns = data_of(folder).corpus.event_columns
    place, dwell = columns["place"], columns["dwell"]
    assert list(columns) == ["place", "dwell"]
    assert dwell.values.dtype == np.float32 and dwell.categories is None
    assert place.values.dtype == np.int32 and set(place.categories) == set(PLACES)
    assert isinstance(place.values, np.memmap) and isinstance(dwell.values, np.memmap)


def check_rows(batch, corpus, users):
    """Every position of a batch has the columns of its own event, and padding is 0."""
    place, dwell = batch.columns["place"], batch.columns["dwell"]
    assert place.per == dwell.per == "position"
    assert place.values.shape == dwell.values.shape == batch.item_ids.shape
    names = [None, *corpus.event_columns["place"].categories]
    for row, user in enumerate(batch.user_ids.tolist()):
        count, number = int(batch.lengths[row]), int(users[user][1:])
        for place_code, dwell_value, time in zip(
            place.values[row, :count].tolist(),
            dwell.values[row, :count].tolist(),
            batch.timestamps[row, :count].tolist(),
            strict=True,
        ):
            t = time - 1_000_000_000
            assert names[place_code] == (None if t == number - 1 else PLACES[t % 3])
            assert math.isnan(dwell_value) if (number, t) == (3, 0) else dwell_value == dwell_of(number, t)
        assert not place.values[row, count:].any() and not dwell.values[row, count:].any()


@pytest.mark.parametrize("rows", ["last", "all", "prefixes", "sessions"])
def test_columns_go_with_their_events_into_every_batch(folder, rows):
    data = data_of(folder, train_windows=rows, with_times=True, max_length=4, batch_size=4)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    for loader in loaders:
        for batch in loader:
            assert batch.columns["place"].values.dtype == torch.int64
            assert batch.columns["dwell"].values.dtype == torch.float32
            check_rows(batch, data.corpus, data.prepared.users)
            check_rows(batch.cut(2), data.corpus, data.prepared.users)
            check_rows(batch.rows(slice(0, 2)), data.corpus, data.prepared.users)


def test_filters_keep_columns_with_their_events_and_leave_no_gap_among_categories(folder):
    text = (folder / "log.csv").read_text() + "new,rare,1000000000,nowhere,7,x\n"
    (folder / "log.csv").write_text(text)
    assert "nowhere" in set(data_of(folder).corpus.event_columns["place"].categories)
    data = data_of(folder, cleaning=Cleaning(min_user_events=2), with_times=True)
    assert set(data.corpus.event_columns["place"].categories) == set(PLACES)
    for batch in data.predict_dataloader():
        check_rows(batch, data.corpus, data.prepared.users)


def test_columns_are_part_of_what_a_cache_is_kept_under_and_of_the_record(folder):
    plain, with_columns = SequenceDataModule(path=str(folder / "log.csv")), data_of(folder)
    assert plain.prepared.path != with_columns.prepared.path
    assert "event_columns" not in plain.protocol() and not plain.corpus.event_columns
    record = with_columns.protocol()
    assert record["event_columns"] == ["place", "dwell"] and json.loads(json.dumps(record)) == record
    again = SequenceDataModule.from_description(with_columns.describe())
    assert again.prepared.path == with_columns.prepared.path


def test_a_column_of_a_parquet_file_is_read_by_what_it_holds(tmp_path):
    frame = pl.DataFrame(
        {"user": ["a"] * 4, "item": list("wxyz"), "price": [1, None, 3, 4], "kind": ["b", "a", None, "b"]}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    data = SequenceDataModule(path=str(tmp_path / "log.parquet"), log=LogFile(event_columns=["price", "kind"]))
    price, kind = data.corpus.event_columns.values()
    assert [None if math.isnan(x) else x for x in price.values.tolist()] == [1.0, None, 3.0, 4.0]
    assert kind.values.tolist() == [1, 2, 0, 1] and kind.categories.to_list() == ["b", "a"]


def test_what_was_read_as_rating_may_be_asked_for_by_that_name(tmp_path):
    (tmp_path / "log.csv").write_text("a,x,5,1000000000\nb,x,3,1000000001\na,z,4,1000000002\n")
    data = SequenceDataModule(path=str(tmp_path / "log.csv"), log=LogFile(event_columns=["rating"]))
    assert data.corpus.event_columns["rating"].values.tolist() == [5.0, 4.0, 3.0]


@pytest.mark.parametrize(
    "columns,expected",
    [
        (["plce"], "no column 'plce' for --data.event_columns; did you mean 'place'?"),
        (["place", "place"], "--data.event_columns names 'place' twice"),
    ],
)
def test_columns_that_cannot_be_had_are_said(folder, columns, expected):
    with pytest.raises(InputError, match=expected):
        _ = data_of(folder, columns).prepared


def test_lines_of_users_and_items_have_no_columns(tmp_path):
    (tmp_path / "log.txt").write_text("a x y z\n")
    with pytest.raises(InputError, match="lines of users and items have no column 'place'"):
        _ = SequenceDataModule(path=str(tmp_path / "log.txt"), log=LogFile(event_columns=["place"])).prepared


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_columns_go_to_a_device_with_the_batch(folder):
    batch = next(iter(data_of(folder).val_dataloader())).pin_memory().to("cuda", non_blocking=True)
    assert all(column.values.is_cuda for column in batch.columns.values())
