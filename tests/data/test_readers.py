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
    with pytest.raises(InputError, match=r"line 3 cannot be read \('a,y,soon'\): expected a time") as caught:
        read_log(path)
    assert "on_error skip" in str(caught.value) and "\n" not in str(caught.value)
    log = read_log(path, on_error="skip")
    assert log.skipped == 1 and len(values(log)) == 2


H = "user,item,time\n"


@pytest.mark.parametrize(
    "text,place",
    [
        (H + "a,x,1\n\n\nb,y,soon\n", "line 5 "),
        (H + 'a,"x\n\ny",1\nb,y,soon\n', "line 5 "),
        (H.replace("\n", "\r\n") + "a,x,1\r\nb,y,soon\r\n", "line 3 "),
        ("a,x,1\nb,y,soon\n", "line 2 "),
        ("\n \n" + H + "a,x,1\nb,y,soon\n", "line 5 "),
        ("\n\na,x,1\nb,y,soon\n", "line 4 "),
    ],
)
def test_the_line_is_counted_as_an_editor_counts(tmp_path, text, place):
    with pytest.raises(InputError, match=place):
        read_log(written(tmp_path, "log.csv", text))


@pytest.mark.parametrize(
    "line,cause",
    [
        (b"a,x,1,9", "expected 3 fields, found 4"),
        (b'a,"x,1', "a quotation mark is not closed"),
        (b'a,5" disk,1', "a quotation mark stands in a field that has none around it"),
        (b"a,\xff\xfe,1", "not UTF-8"),
        (b",x,1", "expected a user"),
        (b"a,,1", "expected an item"),
        (b"a,x", "expected a time"),
        (b"a,x,nan", "expected a time"),
        (b"a", "expected an item and a time"),
    ],
)
def test_each_fault_has_its_line_and_cause_and_can_be_skipped(tmp_path, line, cause):
    path = tmp_path / "log.csv"
    path.write_bytes(H.encode() + b"a,p,1\n" + line + b"\nb,q,2\nc,r,3\n")
    with pytest.raises(InputError, match=f"line 3 .*{cause}") as caught:
        read_log(path)
    assert "\n" not in str(caught.value)
    log = read_log(path, on_error="skip")
    assert values(log) == [("a", "p", 1), ("b", "q", 2), ("c", "r", 3)] and log.skipped == 1


@pytest.mark.parametrize(
    "name,good,bad",
    [
        ("log.jsonl", '{"user": "a", "item": "x"}', '{"user": "a", "it'),
        ("log.jsonl", '{"user": "a", "item": "x"}', '{"user": "a"}'),
        ("log.dat", "a::x::3::5", "a::x"),
        ("log.dat", "a::x::3::5", "a::x::3::5::7"),
        ("log.inter", "user_id:token\titem_id:token", "a"),
        ("log.txt", "a x y", "b"),
    ],
)
def test_faulty_lines_of_other_formats_are_found_too(tmp_path, name, good, bad):
    second = "a\tx" if name.endswith("inter") else good
    path = written(tmp_path, name, f"{good}\n{second}\n{bad}\n{second}\n")
    with pytest.raises(InputError, match="line 3 "):
        read_log(path)
    assert read_log(path, on_error="skip").skipped == 1


@pytest.mark.parametrize(
    "name,line",
    [
        ("log.txt", b"a x y"),
        ("log.dat", b"a::x"),
        ("log.tsv", b"1\tx"),
        ("log.jsonl", b'{"user": "a", "item": "x"}'),
    ],
)
@pytest.mark.parametrize("damage", [b"\xff", b"\xc3("])
def test_bytes_that_are_no_text_are_a_fault_in_every_format(tmp_path, name, line, damage):
    path = tmp_path / name
    path.write_bytes(line + b"\n" + line.replace(b"x", damage) + b"\n" + line + b"\n")
    with pytest.raises(InputError, match="line 2 cannot be read .*not UTF-8"):
        read_log(path)
    log = read_log(path, on_error="skip")
    assert log.skipped == 1 and set(log.frame.collect()["item"]) <= {"x", "y"}


def test_a_row_of_parquet_without_an_item_is_named(tmp_path):
    pl.DataFrame({"user": ["a", "b"], "item": ["x", None]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"row 2 cannot be read \(user='b', item=None\): expected an item"):
        read_log(tmp_path / "log.parquet")


def test_any_text_is_an_id(tmp_path):
    ids = ["-1", "007", "7", "7.0", "null", "NaN", "Ünï çode", "a b", "1e5", "\u2028", "#x"]
    path = written(tmp_path, "log.tsv", "user\titem\n" + "".join(f"{i}\t{i}\n" for i in ids))
    frame = read_log(path).frame.collect()
    assert frame["user"].to_list() == ids and frame["item"].to_list() == ids


@pytest.mark.parametrize(
    "given,expected",
    [
        ("2001-09-09T03:46:41+02:00", 1000000001),
        ("2001-09-09 01:46", 1000000001 - 41),
        ("2001-09-09", 1000000001 - 6401),
        ("20010909", 1000000001 - 6401),
        ("1000000001000000", 1000000001),
        ("-5", -5),
        ("1.000000001e9", 1000000001),
    ],
)
def test_less_usual_times_are_understood(tmp_path, given, expected):
    assert values(read_log(written(tmp_path, "log.csv", f"{H}u,i,{given}\n")))[0][2] == expected


def test_forms_of_iso_times_may_be_mixed(tmp_path):
    text = H + "a,x,2001-09-09\na,x,2001-09-09T01:46:41.5Z\na,x,2001-09-09 01:46\na,x,yesterday\n"
    log = read_log(written(tmp_path, "log.csv", text), on_error="skip")
    frame = log.frame.collect()
    assert frame["time"].to_list() == [999993600, 1000000001, 999999960] and log.skipped == 1
    assert frame["fraction"].to_list() == [0, 500_000, 0]


def test_titles_are_taken_by_position_of_the_name_not_by_chance(tmp_path):
    log = read_log(written(tmp_path, "log.csv", "title,user,item\nGood,u,i\n"))
    assert log.columns == {"user": "user", "item": "item", "title": "title"}
    assert log.guessed == ("user", "item", "title")
    named = read_log(tmp_path / "log.csv", Columns(user="title", item="item"))
    assert named.columns == {"user": "title", "item": "item"} and named.guessed == ()


@pytest.mark.parametrize(
    "text,columns,first",
    [
        ("alice,apple\nbob,pear\n", Columns(0, 1), "alice"),
        ("alice,apple,2001-09-09\nbob,pear,2001-09-10\n", Columns(), "alice"),
        ("who,what,when\nalice,apple,2001-09-09\n", Columns(0, 1, 2), "alice"),
        ("who,what\nalice,apple\n", Columns("who", 1), "alice"),
        ("\ufeffuser,item\nalice,apple\n", Columns(), "alice"),
    ],
)
def test_a_first_line_of_names_is_told_from_one_of_data(tmp_path, text, columns, first):
    assert read_log(written(tmp_path, "log.csv", text), columns).frame.collect()["user"][0] == first


def test_columns_that_are_there_are_listed_with_the_nearest_first(tmp_path):
    path = written(tmp_path, "log.csv", "time,user_name,item\n1,a,x\n")
    with pytest.raises(InputError, match="did you mean 'user_name'. columns: user_name, time, item"):
        read_log(path, Columns(user="user_nam"))


@pytest.mark.parametrize(
    "name,content,expected",
    [
        ("log.txt", "196 242 3 881250949\n186 302 3 891717742\n", "looks like columns between blanks"),
        ("log.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 3\t4\n", "holds prefixes"),
        ("log.csv", "user;item\n1;2\n", "has one column only, 'user;item'; expected columns between commas"),
        ("log.csv", "a,b,c,d,e\n1,2,3,4,5\n", "no user column found among a, b, c, d, e"),
        ("log.csv", "1,2,3,4,5\n", "5 columns without names; say which is which"),
        ("log.csv", "user,item\n", "holds no interaction"),
        ("log.csv", "\n \n\n", "only blank lines"),
        ("log.csv", "PK\x03\x04", "zip archive; unpack it"),
        ("log.json", "[1, 2]\n", "expected one in each line"),
        ("log.parquet", "user,item\n", "cannot be read as parquet"),
        ("log.txt", "word\n", "its format cannot be told"),
    ],
)
def test_a_file_of_another_kind_is_said(tmp_path, name, content, expected):
    with pytest.raises(InputError, match=expected) as caught:
        read_log(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_text_of_another_encoding_is_said(tmp_path):
    (tmp_path / "log.csv").write_bytes((H + "a,x,1\n").encode("utf-16"))
    with pytest.raises(InputError, match="is UTF-16 text; save it as UTF-8"):
        read_log(tmp_path / "log.csv")


def test_an_unknown_format_is_said(tmp_path):
    with pytest.raises(InputError, match="--data.format 'xls' is unknown; choose csv"):
        read_log(written(tmp_path, "log.csv", H + "a,x,1\n"), format="xls")


def test_lists_in_a_cell_are_said(tmp_path):
    pl.DataFrame({"user": ["a"], "item": [["x", "y"]]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="column 'item' holds lists; expected one item a row"):
        read_log(tmp_path / "log.parquet")


def test_rows_may_go_without_user_and_be_void_where_the_source_says_so(tmp_path):
    path = written(tmp_path, "log.csv", "invoice,user,item\n1,a,x\nC2,a,y\n3,,z\n")
    frame = read_log(path, missing_user=True, void=("invoice", "C")).frame.collect()
    assert frame["user"].to_list() == ["a", "a", None] and frame["void"].to_list() == [False, True, False]


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
