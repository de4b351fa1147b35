"""What cannot be read says where and why, and can be left out."""

import polars as pl
import pytest

from lightrec.data.readers import read_log
from lightrec.errors import InputError

H = "user,item,time\n"


def values(log):
    frame = log.frame.collect()
    return list(zip(frame["user"], frame["item"], frame["time"], strict=True))


@pytest.mark.parametrize(
    "text,place",
    [
        (H + "a,x,1\n\n\nb,y,soon\n", "line 5 "),
        (H + 'a,"x\n\ny",1\nb,y,soon\n', "line 5 "),
        (H.replace("\n", "\r\n") + "a,x,1\r\nb,y,soon\r\n", "line 3 "),
        ("a,x,1000000001\nb,y,soon\n", "line 2 "),
        ("\n \n" + H + "a,x,1\nb,y,soon\n", "line 5 "),
        ("\n\na,x,1000000001\nb,y,soon\n", "line 4 "),
    ],
)
def test_the_line_is_counted_as_an_editor_counts(tmp_path, written, text, place):
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
        ("log.dat", "a::x::3::1000000005", "a::x"),
        ("log.dat", "a::x::3::1000000005", "a::x::3::1000000005::7"),
        ("log.inter", "user_id:token\titem_id:token", "a"),
        ("log.txt", "a x y", "b"),
    ],
)
def test_faulty_lines_of_other_formats_are_found_too(tmp_path, written, name, good, bad):
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
