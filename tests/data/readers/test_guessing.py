"""Guesses are right, or the file is refused with the command that would work: none is wrong in silence."""

import gzip
import json

import polars as pl
import pytest

from lightrec.data.readers import Columns, Form, read_log
from lightrec.errors import InputError

T = 1_500_000_000


def read(folder, name, text, columns=None, **options):
    path = folder / name
    path.write_text(text)
    return read_log(path, columns or Columns(), **options)


def refusal(folder, name, text, columns=None, **options):
    with pytest.raises(InputError) as caught:
        read(folder, name, text, columns, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def events(log):
    return log.frame.select("user", "item").collect().rows()


def histories(log):
    frame = log.frame.collect()
    order = [name for name in ("time", "fraction", "row") if name in frame.columns]
    found = frame.sort(order).group_by("user", maintain_order=True).agg("item")
    return dict(sorted(found.iter_rows()))


def test_a_time_is_found_whatever_its_position(tmp_path):
    text = "".join(f"{s},2014-04-0{7 - s}T10:5{n}:09.277Z,21453651{n},0\n" for s in (1, 2) for n in range(3))
    log = read(tmp_path, "clicks.dat", text)
    assert log.columns == {"user": "column_0", "item": "column_2", "time": "column_1"}
    assert log.frame.collect()["item"].unique().sort().to_list() == ["214536510", "214536511", "214536512"]


def test_times_in_the_place_of_items_are_not_items(tmp_path):
    text = "".join(f"{u}\t2010-10-{19 - n}T23:55:27Z\t30.2\t-97.7\t{22847 + n}\n" for u in (0, 1) for n in range(4))
    said = refusal(tmp_path, "checkins.txt", text)
    assert "--data.user_column 0 --data.item_column 4 --data.time_column 1" in said and "2010-10-19T23:55:27Z" in said
    log = read(tmp_path, "checkins.txt", text, Columns(user=0, item=4))
    assert histories(log)["0"] == ["22850", "22849", "22848", "22847"]


@pytest.mark.parametrize("name,sign", [("ratings.tsv", "\t"), ("ratings.csv", ","), ("ratings.dat", "::")])
def test_small_numbers_are_no_time(tmp_path, name, sign):
    text = "".join(sign.join((str(u), str(100 + i), str(5 - i))) + "\n" for u in (1, 2, 3) for i in range(5))
    assert "3 columns without names" in refusal(tmp_path, name, text)


def test_nameless_ratings_in_blocks_of_the_first_column_are_asked_for(tmp_path):
    """Files of one shop begin with the item, and those of another year with the user."""
    text = "".join(f"000{i},A{u}X,{1 + u % 5}.0,{T + 86400 * u}\n" for i in range(4) for u in range(5))
    said = refusal(tmp_path, "Software.csv", text)
    assert "4 columns without names" in said and "0 = 0000, 1 = A0X, 2 = 1.0" in said


def test_a_time_by_another_name_is_taken_and_said(tmp_path):
    text = "t_dat,customer_id,article_id\n" + "".join(f"2018-09-{28 - n},c0,066371300{n}\n" for n in range(4))
    log = read(tmp_path, "transactions.csv", text)
    assert log.columns["time"] == "t_dat" and "time" in log.read_as.guessed
    assert histories(log)["c0"] == ["0663713003", "0663713002", "0663713001", "0663713000"]


def test_the_finest_of_times_that_agree_is_taken(tmp_path):
    hours = ((7, 3), (8, 1), (9, 2), (6, 0))
    text = "user_id,item_id,date,time_ms\n" + "".join(
        f"0,{i},20220408,{(1_649_376_000 + 3600 * h) * 1000}\n" for i, h in hours
    )
    log = read(tmp_path, "log.csv", text)
    assert histories(log)["0"] == ["6", "8", "9", "7"]
    assert any("finer than date" in note for note in log.read_as.notes)


def test_several_times_that_disagree_are_asked_for(tmp_path):
    text = "user_id,item_id,born_date,seen_date\n" + "".join(f"a,{n},1990-01-0{n},2020-01-0{n}\n" for n in range(1, 5))
    assert "--data.time_column born_date" in refusal(tmp_path, "log.csv", text)


def test_seconds_spent_are_no_time_beside_one(tmp_path):
    text = "user_id,item_id,time,event_timestamp\n" + "".join(f"u,i{n},{37 * n % 91},{T + n}\n" for n in range(5))
    log = read(tmp_path, "log.csv", text)
    assert log.columns["time"] == "event_timestamp" and histories(log)["u"] == [f"i{n}" for n in range(5)]


def test_dates_without_separators_are_dates(tmp_path):
    text = "user_id,item_id,time\n" + "".join(f"u,i{n},2017112510{n}000\n" for n in range(5))
    log = read(tmp_path, "log.csv", text)
    assert log.frame.collect()["time"][0] == 1_511_604_000 and log.time_unit == "dates as yyyymmddHHMMSS"


def test_a_time_after_2100_is_refused(tmp_path):
    text = "user_id,item_id,time\n" + "".join(f"u,i{n},9{n}000000000\n" for n in range(5))
    assert "after the year 2100" in refusal(tmp_path, "log.csv", text)


@pytest.mark.parametrize("kind", ["time of day", "duration"])
def test_times_of_day_are_refused_with_another_column(tmp_path, kind):
    frame = pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "date": ["2020-01-01", "2020-01-02"]})
    frame = frame.with_columns(pl.col("date").str.to_date(), time=pl.time(pl.Series([9, 10]), 0, 0))
    if kind == "duration":
        frame = frame.with_columns(time=pl.duration(hours=pl.Series([9, 10])))
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="holds times of day; name another: --data.time_column date"):
        read_log(tmp_path / "log.parquet")
    assert len(events(read_log(tmp_path / "log.parquet", Columns(time="date")))) == 2
    with pytest.raises(InputError, match="'time' holds"):
        read_log(tmp_path / "log.parquet", Columns(time="time"))


@pytest.mark.parametrize("given", ["NA", "NaN", "nan", "null", "NULL", "None", "\\N", ""])
def test_a_missing_user_is_one_whatever_it_is_written_as(tmp_path, given):
    text = "sessionId,userId,itemId,timestamp\n" + "".join(f"s{n},u{n},i0,{T}\n" for n in range(3))
    said = refusal(tmp_path, "views.csv", text + f"s3,{given},i0,{T}\n")
    assert "line 5" in said and "expected a user" in said and "--data.user_column sessionId" in said
    log = read(tmp_path, "views.csv", text + f"s3,{given},i0,{T}\n", on_error="skip")
    assert log.skipped == 1 and len(events(log)) == 3


def test_the_publishers_item_is_preferred_to_its_colours(tmp_path):
    rows = [{"asin": f"B{n}", "parent_asin": "P", "user_id": "u", "timestamp": (T + n) * 1000} for n in range(3)]
    log = read(tmp_path, "reviews.jsonl", "\n".join(map(json.dumps, rows)))
    assert events(log) == [("u", "P")] * 3


# Lines of words


@pytest.mark.parametrize("mark", ["# FromNodeId ToNodeId time\n", "% bip posweighted\n% 12 3 4\n"])
def test_comments_before_the_data_do_not_hide_columns_between_blanks(tmp_path, mark):
    text = "".join(f"{u} {i} {T + i}\n" for u in (1, 2) for i in range(3))
    said = refusal(tmp_path, "out.txt", mark + text)
    assert "--data.separator blanks --data.user_column 0 --data.item_column 1 --data.time_column 2" in said
    log = read(tmp_path, "out.txt", mark + text, Columns(0, 1, 2), form=Form(separator="blanks"))
    assert histories(log) == {"1": ["0", "1", "2"], "2": ["0", "1", "2"]}


def test_ratings_between_blanks_are_refused(tmp_path):
    text = "".join(f"{u} {100 + i} {4 - i / 2}\n" for u in (1, 2, 3) for i in range(5))
    said = refusal(tmp_path, "ratings.txt", text)
    assert "--data.rating_column 2" in said and "--data.format sequence" in said


def test_sessions_without_a_user_are_asked_for_and_can_be_read(tmp_path):
    text = "11 12\n13 14 15\n11 14\n16 13\n12 16 11 13\n13 11\n"
    assert "--data.format histories" in refusal(tmp_path, "train.txt", text)
    log = read(tmp_path, "train.txt", text, format="histories")
    assert len(histories(log)) == 6 and histories(log)["5"] == ["12", "16", "11", "13"]


@pytest.mark.parametrize("text", ["1 7 8 9\n2 7 1\n3 2 9 8\n", "a x y z\nb x\nc y z\n", "1 10\n1 20\n2 10\n"])
def test_lines_of_a_user_and_items_are_still_read(tmp_path, text):
    assert read(tmp_path, "log.txt", text).format == "sequence"


def test_prefixes_with_a_target_are_refused(tmp_path):
    text = "21 20 87 21\t63\n21 20 87\t21\n21 20\t87\n21\t20\n44 13\t21\n44\t13\n"
    assert "prefixes, not events" in refusal(tmp_path, "test.txt", text)


# Cells of several ids


@pytest.mark.parametrize(
    "name,text",
    [
        ("lists.csv", "user_id,item_id\nu0,\"['i1', 'i2', 'i0']\"\nu1,\"['i1', 'i2']\"\n"),
        ("outfits.csv", "user_id,item_id\nu0,i1;i2;i0\nu1,i1;i2\n"),
        ("pipes.csv", "user_id,item_id\nu0,i1|i2|i0\nu1,i1|i2\n"),
        ("seq.inter", "user_id:token\titem_id:token_seq\nu0\ti1 i2 i0\nu1\ti1 i2\n"),
        (
            "lists.jsonl",
            '{"user_id": "u0", "item_id": ["i1", "i2", "i0"]}\n{"user_id": "u1", "item_id": ["i1", "i2"]}\n',
        ),
    ],
)
def test_lists_in_cells_are_refused_and_exploded_where_asked_for(tmp_path, name, text):
    assert "holds lists; expected one item a row" in refusal(tmp_path, name, text)
    log = read(tmp_path, name, text, form=Form(lists=True))
    assert histories(log) == {"u0": ["i1", "i2", "i0"], "u1": ["i1", "i2"]}


def test_lists_of_parquet_are_exploded_with_their_times(tmp_path):
    frame = pl.DataFrame({"user": ["a", "b"], "item": [["x", "y"], ["z"]], "time": [[T + 1, T], [T]]})
    frame.write_parquet(tmp_path / "log.parquet")
    assert histories(read_log(tmp_path / "log.parquet", form=Form(lists=True))) == {"a": ["y", "x"], "b": ["z"]}


def test_ids_with_a_separator_in_them_can_be_taken_as_they_are(tmp_path):
    text = "user_id,item_id\nu0,a1;b2\nu1,a1;b3\n"
    assert events(read(tmp_path, "log.csv", text, form=Form(lists=False))) == [("u0", "a1;b2"), ("u1", "a1;b3")]


def test_titles_with_blanks_are_items(tmp_path):
    text = "user_id,item_id\nu0,Toy Story 2\nu1,The Matrix\nu2,Se7en\n"
    assert len(events(read(tmp_path, "log.csv", text))) == 3


def test_clicked_and_not_clicked_are_not_taken_apart(tmp_path):
    text = "user_id\titem_id\nu0\tN20-1 N30-0\nu1\tN21-1 N31-0\n"
    assert "marked -1 and -0" in refusal(tmp_path, "mind.tsv", text, form=Form(lists=True))


def test_objects_are_refused_and_their_fields_read(tmp_path):
    text = '{"user": {"id": 0}, "item": {"id": 5}, "timestamp": 1500000000}\n'
    assert "--data.user_column user.id" in refusal(tmp_path, "nested.jsonl", text)
    assert events(read(tmp_path, "nested.jsonl", text, Columns("user.id", "item.id"))) == [("0", "5")]


def test_lists_of_objects_become_an_event_each_where_asked_for(tmp_path):
    rows = [
        {"session": s, "events": [{"aid": s + n, "ts": (T - n) * 1000, "type": "clicks"} for n in range(3)]}
        for s in (0, 9)
    ]
    text = "\n".join(map(json.dumps, rows))
    assert "--data.item_column events.aid" in refusal(tmp_path, "otto.jsonl", text, Columns(item="events"))
    log = read(tmp_path, "otto.jsonl", text, Columns(item="events.aid", time="events.ts"))
    assert histories(log) == {"0": ["2", "1", "0"], "9": ["11", "10", "9"]}
    assert read(tmp_path, "otto.jsonl", text, Columns(item="events.aid")).columns["time"] == "events.ts"


# What it was read as


def test_what_was_read_is_said(tmp_path):
    text = "visitorid,itemid,event,timestamp,price\n" + "".join(f"0,{n},view,{T}{n:03},3\n" for n in range(4))
    lines = read(tmp_path, "log.csv", text).read_as.lines()
    assert lines[0] == (
        "read as: csv with commas, with header; user visitorid (0, 0, 0), item itemid (0, 1, 2), time timestamp "
        f"(milliseconds: {T}000, {T}001, {T}002); not used: event, price; first event: 0, 0, 2017-07-14T02:40:00; "
        "guessed: user, item, time, format"
    )


def test_a_log_without_a_time_says_so(tmp_path):
    log = read(tmp_path, "log.csv", "user,item\na,x\n")
    assert "no time column: the order of a history is that of the file" in log.read_as.notes


def test_a_column_of_few_values_is_mentioned_and_rows_can_be_kept_by_it(tmp_path):
    kinds = ("listen", "dislike", "listen", "unlike")
    text = "user,item,event_type\n" + "".join(f"{u},{n},{kind}\n" for u in "abc" for n, kind in enumerate(kinds))
    note = next(n for n in read(tmp_path, "log.csv", text).read_as.notes if n.startswith("event_type"))
    assert "listen 6, unlike 3, dislike 3" in note or "listen 6, dislike 3, unlike 3" in note
    kept = read(tmp_path, "log.csv", text, where=["event_type=listen"])
    assert histories(kept)["a"] == ["0", "2"]
    assert histories(read(tmp_path, "log.csv", text, where=["event_type!=dislike,unlike"])) == histories(kept)
    assert "keeps none of 12 rows" in refusal(tmp_path, "log.csv", text, where=["event_type=click"])


# Forms


@pytest.mark.parametrize("sign", [";", "|", "\t", ","])
def test_a_csv_of_any_separator_is_read(tmp_path, sign):
    text = "".join(
        sign.join(row) + "\n" for row in (("user", "item", "time"), ("a", '"x"', str(T)), ("b", "y", str(T)))
    )
    text = text.replace('"', "") if sign == "\t" else text
    assert events(read(tmp_path, "log.csv", text)) == [("a", "x"), ("b", "y")]


def test_a_separator_can_be_named(tmp_path):
    assert events(read(tmp_path, "log.csv", "user~item\na~x\n", form=Form(separator="~"))) == [("a", "x")]
    assert "is not a separator" in refusal(tmp_path, "log.csv", "user~item\na~x\n", form=Form(separator="~~"))


def test_latin_1_is_named_and_read(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_bytes("user\titem\nanna\tcafé\nbert\tbar\n".encode("latin-1"))
    with pytest.raises(InputError, match="--data.encoding cp1252 .*1 of 2 rows"):
        read_log(path)
    assert events(read_log(path, form=Form(encoding="latin-1"))) == [("anna", "café"), ("bert", "bar")]


@pytest.mark.parametrize("kind", ["bz2", "xz", "zst", "zip", "gz"])
def test_packed_logs_are_unpacked(tmp_path, kind):
    text = "user\titem\na\tx\nb\ty\n"
    path = tmp_path / f"log.tsv.{kind}"
    if kind == "zst":
        pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"]}).lazy().sink_csv(path, separator="\t", compression="zstd")
    elif kind == "zip":
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("log.tsv", text)
    else:
        import bz2
        import lzma

        path.write_bytes({"bz2": bz2.compress, "xz": lzma.compress, "gz": gzip.compress}[kind](text.encode()))
    assert events(read_log(path)) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    "start,said",
    [
        (b"MATLAB 5.0 MAT-file, Platform", "is a MATLAB file"),
        (b"SQLite format 3\x00", "is an SQLite database"),
        (b"\x80\x04\x95abc", "is a pickle.*never loaded"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"<?xml version='1.0'?><log xes.version='1.0'>", "is XML"),
        (b"a,b\x00c\n", "is a binary file"),
        (b"ARROW1\x00\x00", "is an Arrow or Feather file"),
    ],
)
def test_what_is_no_log_is_named_and_refused(tmp_path, start, said):
    whole = start + b"\n" * 300
    for path, content in ((tmp_path / "log.csv", whole), (tmp_path / "log.csv.gz", gzip.compress(whole))):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_log(path)


def test_documents_of_json_python_and_netflix_are_read(tmp_path):
    rows = [{"user_id": "u", "item_id": f"i{n}", "timestamp": T + n} for n in range(3)]
    expected = [("u", "i0"), ("u", "i1"), ("u", "i2")]
    assert events(read(tmp_path, "array.json", json.dumps(rows))) == expected
    assert events(read(tmp_path, "pretty.json", json.dumps(rows, indent=2))) == expected
    assert events(read(tmp_path, "steam.json", "".join(f"{row}\n" for row in rows))) == expected
    text = "1:\n1000,2,2005-01-10\n1001,3,2005-02-11\n2:\n1000,4,2005-01-09\n"
    log = read(tmp_path, "combined.txt", text)
    assert histories(log) == {"1000": ["2", "1"], "1001": ["1"]}


def test_one_document_over_many_lines_names_its_lists(tmp_path):
    text = json.dumps({"info": {}, "playlists": [{"pid": 0, "tracks": [{"track_uri": "t"}]}]}, indent=2)
    assert "playlists[].tracks[] must become one line an event" in refusal(tmp_path, "slice.json", text)


def test_a_date_whose_order_is_unknown_needs_its_form(tmp_path):
    text = "user,item,date\n" + "".join(f"a,{n},11/{n}/2000\n" for n in range(1, 4))
    said = refusal(tmp_path, "log.csv", text)
    assert "'%m/%d/%Y' or '%d/%m/%Y'" in said and "on_error" not in said
    frame = read(tmp_path, "log.csv", text, form=Form(time_format="%m/%d/%Y")).frame.collect()
    assert frame["time"].to_list() == [973_036_800 + 86_400 * n for n in range(3)]


def test_a_zone_moves_times_that_name_none(tmp_path):
    text = "user,item,date\na,x,2020-07-01 12:00:00\n"
    utc = read(tmp_path, "log.csv", text).frame.collect()["time"][0]
    assert (
        read(tmp_path, "log.csv", text, form=Form(time_zone="Europe/Berlin")).frame.collect()["time"][0] == utc - 7200
    )


def test_skip_is_not_advised_where_most_rows_would_go(tmp_path):
    assert "on_error skip" not in refusal(tmp_path, "log.csv", "user,item,time\na,x,soon\na,y,late\n")
