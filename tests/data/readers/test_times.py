"""Times in any form are seconds."""

import pytest

from lightrec.data.readers import read_log
from lightrec.errors import InputError

H = "user,item,time\n"


def values(log):
    frame = log.frame.collect()
    return list(zip(frame["user"], frame["item"], frame["time"], strict=True))


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
def test_times_are_seconds_whatever_their_form(tmp_path, written, given):
    assert values(read_log(written(tmp_path, "log.csv", f"user,item,time\nu,i,{given}\n")))[0][2] == 1000000001


def test_mixed_units_name_the_odd_line(tmp_path, written):
    text = "user,item,time\na,x,1000000001\na,y,1000000002\na,z,1000000003000\n"
    with pytest.raises(InputError, match="line 4 holds a time in milliseconds"):
        read_log(written(tmp_path, "log.csv", text))


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
def test_less_usual_times_are_understood(tmp_path, written, given, expected):
    assert values(read_log(written(tmp_path, "log.csv", f"{H}u,i,{given}\n")))[0][2] == expected


def test_forms_of_iso_times_may_be_mixed(tmp_path, written):
    text = H + "a,x,2001-09-09\na,x,2001-09-09T01:46:41.5Z\na,x,2001-09-09 01:46\na,x,yesterday\n"
    log = read_log(written(tmp_path, "log.csv", text), on_error="skip")
    frame = log.frame.collect()
    assert frame["time"].to_list() == [999993600, 1000000001, 999999960] and log.skipped == 1
    assert frame["fraction"].to_list() == [0, 500_000, 0]
