"""One log, many formats; and what cannot be read says where and why."""

import gzip

import polars as pl
import pytest

from lightrec.data.readers import Columns, guess_format, read_log
from lightrec.errors import InputError

ROWS = [("anna", "x", 1000000001, 5.0), ("bert", "-7", 1000000002, 3.5), ("anna", "007", 1000000003, 1.0)]
HEADER = ("user_id", "item_id", "timestamp", "rating")


def table(separator, header=True):
    lines = [separator.join(HEADER)] if header else []
    return "\n".join([*lines, *(separator.join(map(str, row)) for row in ROWS)]) + "\n"


def written(folder, name, text):
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def values(log):
    frame = log.frame.collect()
    return list(zip(frame["user"], frame["item"], frame["time"], strict=True))


EXPECTED = [(user, item, time) for user, item, time, _ in ROWS]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "name,text",
    [
        ("log.csv", table(",")),
        ("log.tsv", table("\t")),
        ("log.txt", table("\t")),
        ("log.inter", table("\t").replace("user_id", "user_id:token").replace("timestamp", "timestamp:float")),
        ("log.dat", "\n".join(f"{u}::{i}::{r}::{t}" for u, i, t, r in ROWS) + "\n"),
        ("log.jsonl", "\n".join(f'{{"user": "{u}", "asin": "{i}", "ts": {t}}}' for u, i, t, _ in ROWS) + "\n"),
    ],
)
def test_every_format_reads_the_same_log(tmp_path, name, text, suffix):
    assert values(read_log(written(tmp_path, name + suffix, text))) == EXPECTED


def test_parquet_keeps_ids_as_text_and_reads_real_times(tmp_path):
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame({"userId": [1, 2], "movieId": [10, 20], "time": [1000000001, 1000000002]})
    frame.with_columns(pl.from_epoch("time")).write_parquet(path)
    assert values(read_log(path)) == [("1", "10", 1000000001), ("2", "20", 1000000002)]


@pytest.mark.parametrize("text", ["1 10\n1 20\n2 10\n", "1 10 20\n2 10\n", "1  10 20 \n\n2 10\n"])
def test_lines_of_a_user_and_items_are_histories(tmp_path, text):
    frame = read_log(written(tmp_path, "log.txt", text)).frame.collect()
    assert list(zip(frame["user"], frame["item"], strict=True)) == [("1", "10"), ("1", "20"), ("2", "10")]


def test_columns_are_chosen_by_name_or_position(tmp_path):
    path = written(tmp_path, "log.csv", "a,b,c\nu,i,1000000001\n")
    for columns in (Columns("a", "b", "c"), Columns(0, 1, 2), Columns("0", "b", 2)):
        assert values(read_log(path, columns)) == [("u", "i", 1000000001)]


@pytest.mark.parametrize("header", [True, False])
def test_a_table_without_names_is_user_item_rating_time(tmp_path, header):
    text = "u,i,4.0,1000000001\n"
    log = read_log(written(tmp_path, "log.csv", ("user,item,rating,time\n" if header else "") + text))
    assert values(log) == [("u", "i", 1000000001)]


@pytest.mark.parametrize(
    "given",
    [
        "1000000001",
        "1000000001000",
        "1000000001.7",
        "2001-09-09T01:46:41",
        "2001-09-09 01:46:41",
        "2001-09-09T01:46:41Z",
    ],
)
def test_times_are_seconds_whatever_their_form(tmp_path, given):
    assert values(read_log(written(tmp_path, "log.csv", f"user,item,time\nu,i,{given}\n")))[0][2] == 1000000001


def test_mixed_units_name_the_odd_line(tmp_path):
    text = "user,item,time\na,x,1000000001\na,y,1000000002\na,z,1000000003000\n"
    with pytest.raises(InputError, match="line 4 holds a time in milliseconds"):
        read_log(written(tmp_path, "log.csv", text))


def test_a_row_that_cannot_be_read_is_named_and_can_be_skipped(tmp_path):
    path = written(tmp_path, "log.csv", "user,item,time\na,x,1000000001\na,y,soon\nb,x,1000000002\n")
    with pytest.raises(InputError, match=r"line 3 .*time='soon'|line 3 cannot be read") as caught:
        read_log(path)
    assert "on_error skip" in str(caught.value) and "\n" not in str(caught.value)
    log = read_log(path, on_error="skip")
    assert log.skipped == 1 and len(values(log)) == 2


@pytest.mark.parametrize(
    "content,columns,expected",
    [
        ("user,thing\na,x\n", Columns(), "no item column found among user, thing"),
        ("user,item\na,x\n", Columns(user="usr"), "did you mean 'user'"),
        ("", Columns(), "empty"),
    ],
)
def test_what_is_missing_is_said(tmp_path, content, columns, expected):
    with pytest.raises(InputError, match=expected):
        read_log(written(tmp_path, "log.csv", content), columns)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_log(tmp_path / "nothing.csv")


def test_a_truncated_archive_is_said(tmp_path):
    path = written(tmp_path, "log.csv.gz", table(",") * 2000)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="log.csv.gz"):
        read_log(path).frame.collect()


@pytest.mark.parametrize(
    "name,line,kind",
    [("a.csv", "x", "csv"), ("a.csv.gz", "x", "csv"), ("a.log", "1::2::3::4", "dat"), ("a.log", "1 2 3", "sequence")],
)
def test_the_format_is_guessed_by_name_then_by_the_first_line(tmp_path, name, line, kind):
    assert guess_format(written(tmp_path, name, line + "\n")) == kind
