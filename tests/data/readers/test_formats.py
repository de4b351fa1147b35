"""One log, many formats; and a file that is none of them says so."""

import polars as pl
import pytest

from lightrec.data.readers import guess_format, read_log
from lightrec.errors import InputError

ROWS = [("anna", "x", 1000000001, 5.0), ("bert", "-7", 1000000002, 3.5), ("anna", "007", 1000000003, 1.0)]
HEADER = ("user_id", "item_id", "timestamp", "rating")
EXPECTED = [(user, item, time) for user, item, time, _ in ROWS]
H = "user,item,time\n"


def table(separator, header=True):
    lines = [separator.join(HEADER)] if header else []
    return "\n".join([*lines, *(separator.join(map(str, row)) for row in ROWS)]) + "\n"


def values(log):
    frame = log.frame.collect()
    return list(zip(frame["user"], frame["item"], frame["time"], strict=True))


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
def test_every_format_reads_the_same_log(tmp_path, written, name, text, suffix):
    assert values(read_log(written(tmp_path, name + suffix, text))) == EXPECTED


def test_parquet_keeps_ids_as_text_and_reads_real_times(tmp_path):
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame({"userId": [1, 2], "movieId": [10, 20], "time": [1000000001, 1000000002]})
    frame.with_columns(pl.from_epoch("time")).write_parquet(path)
    assert values(read_log(path)) == [("1", "10", 1000000001), ("2", "20", 1000000002)]


@pytest.mark.parametrize(
    "name,content,expected",
    [
        ("log.txt", "196 242 3 881250949\n186 302 3 891717742\n", "looks like columns between blanks"),
        ("log.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 3\t4\n", "holds prefixes"),
        ("log.csv", "user:item\n1:2\n", "has one column only, 'user:item'; expected columns between commas"),
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
def test_a_file_of_another_kind_is_said(tmp_path, written, name, content, expected):
    with pytest.raises(InputError, match=expected) as caught:
        read_log(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_text_of_another_encoding_is_said(tmp_path):
    (tmp_path / "log.csv").write_bytes((H + "a,x,1\n").encode("utf-16"))
    with pytest.raises(InputError, match="is UTF-16 text; save it as UTF-8"):
        read_log(tmp_path / "log.csv")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_log(tmp_path / "nothing.csv")


def test_a_truncated_archive_is_said(tmp_path, written):
    path = written(tmp_path, "log.csv.gz", table(",") * 2000)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="log.csv.gz"):
        read_log(path).frame.collect()


@pytest.mark.parametrize(
    "name,line,kind",
    [("a.csv", "x", "csv"), ("a.csv.gz", "x", "csv"), ("a.log", "1::2::3::4", "dat"), ("a.log", "1 2 3", "sequence")],
)
def test_the_format_is_guessed_by_name_then_by_the_first_line(tmp_path, written, name, line, kind):
    assert guess_format(written(tmp_path, name, line + "\n")) == kind
