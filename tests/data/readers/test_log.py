"""What a log is once it is read: any text is an id, and rows that mean nothing are named."""

import polars as pl
import pytest

from lightrec.data.readers import read_log
from lightrec.errors import InputError

H = "user,item,time\n"


def values(log):
    frame = log.frame.collect()
    return list(zip(frame["user"], frame["item"], frame["time"], strict=True))


@pytest.mark.parametrize("text", ["1 10\n1 20\n2 10\n", "1 10 20\n2 10\n", "1  10 20 \n\n2 10\n"])
def test_lines_of_a_user_and_items_are_histories(tmp_path, written, text):
    frame = read_log(written(tmp_path, "log.txt", text)).frame.collect()
    assert list(zip(frame["user"], frame["item"], strict=True)) == [("1", "10"), ("1", "20"), ("2", "10")]


def test_a_row_that_cannot_be_read_is_named_and_can_be_skipped(tmp_path, written):
    path = written(tmp_path, "log.csv", "user,item,time\na,x,1000000001\na,y,soon\nb,x,1000000002\n")
    with pytest.raises(InputError, match=r"line 3 cannot be read \('a,y,soon'\): expected a time") as caught:
        read_log(path)
    assert "on_error skip" in str(caught.value) and "\n" not in str(caught.value)
    log = read_log(path, on_error="skip")
    assert log.skipped == 1 and len(values(log)) == 2


def test_any_text_is_an_id(tmp_path, written):
    ids = ["-1", "007", "7", "7.0", "nil", "Nan", "Ünï çode", "a b", "1e5", "\u2028", "#x"]
    path = written(tmp_path, "log.tsv", "user\titem\n" + "".join(f"{i}\t{i}\n" for i in ids))
    frame = read_log(path).frame.collect()
    assert frame["user"].to_list() == ids and frame["item"].to_list() == ids


def test_an_unknown_format_is_said(tmp_path, written):
    with pytest.raises(InputError, match="--data.format 'xls' is unknown; choose csv"):
        read_log(written(tmp_path, "log.csv", H + "a,x,1\n"), format="xls")


def test_lists_in_a_cell_are_said(tmp_path):
    pl.DataFrame({"user": ["a"], "item": [["x", "y"]]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(InputError, match="column 'item' holds lists; expected one item a row"):
        read_log(tmp_path / "log.parquet")


def test_rows_may_go_without_user_and_be_void_where_the_source_says_so(tmp_path, written):
    path = written(tmp_path, "log.csv", "invoice,user,item\n1,a,x\nC2,a,y\n3,,z\n")
    frame = read_log(path, missing_user=True, void=("invoice", "C")).frame.collect()
    assert frame["user"].to_list() == ["a", "a", None] and frame["void"].to_list() == [False, True, False]
