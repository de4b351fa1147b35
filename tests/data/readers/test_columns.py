"""Which column holds what, with a header or without."""

import pytest

from lightrec.data.readers import Columns, read_log
from lightrec.errors import InputError


def values(log):
    frame = log.frame.collect()
    return list(zip(frame["user"], frame["item"], frame["time"], strict=True))


def test_columns_are_chosen_by_name_or_position(tmp_path, written):
    path = written(tmp_path, "log.csv", "a,b,c\nu,i,1000000001\n")
    for columns in (Columns("a", "b", "c"), Columns(0, 1, 2), Columns("0", "b", 2)):
        assert values(read_log(path, columns)) == [("u", "i", 1000000001)]


@pytest.mark.parametrize("header", [True, False])
def test_a_table_without_names_is_user_item_rating_time(tmp_path, written, header):
    text = "u,i,4.0,1000000001\n"
    log = read_log(written(tmp_path, "log.csv", ("user,item,rating,time\n" if header else "") + text))
    assert values(log) == [("u", "i", 1000000001)]


def test_titles_are_taken_by_position_of_the_name_not_by_chance(tmp_path, written):
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
def test_a_first_line_of_names_is_told_from_one_of_data(tmp_path, written, text, columns, first):
    assert read_log(written(tmp_path, "log.csv", text), columns).frame.collect()["user"][0] == first


def test_columns_that_are_there_are_listed_with_the_nearest_first(tmp_path, written):
    path = written(tmp_path, "log.csv", "time,user_name,item\n1,a,x\n")
    with pytest.raises(InputError, match="did you mean 'user_name'. columns: user_name, time, item"):
        read_log(path, Columns(user="user_nam"))


@pytest.mark.parametrize(
    "content,columns,expected",
    [
        ("user,thing\na,x\n", Columns(), "no item column found among user, thing"),
        ("user,item\na,x\n", Columns(user="usr"), "did you mean 'user'"),
        ("", Columns(), "empty"),
    ],
)
def test_what_is_missing_is_said(tmp_path, written, content, columns, expected):
    with pytest.raises(InputError, match=expected):
        read_log(written(tmp_path, "log.csv", content), columns)
