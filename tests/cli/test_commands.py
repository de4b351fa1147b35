"""`lightrec recommend` and `lightrec data`."""

import json

import numpy as np
import pytest

from lightrec.cli import main
from lightrec.testing import toy_log


def test_recommend_prints_history_and_list_with_titles(best, capsys):
    assert main(["recommend", best, "--items", "item-1,item-2", "-k", "3"]) == 0
    out = capsys.readouterr().out
    assert out.index("Title 1") < out.index("Title 2") < out.index("recommended next")
    assert out.count("Title") == 5


def test_recommend_finds_items_by_title(best, capsys):
    assert main(["recommend", best, "--title", "title 7", "-k", "2"]) == 0
    assert "item-7" in capsys.readouterr().out


def test_recommend_reports_unknown_items_and_goes_on_with_the_rest(best, capsys):
    assert main(["recommend", best, "--items", "item-1,nowhere"]) == 0
    assert "unknown and skipped: nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--items", "itm-12"], "did you mean item-12"),
        ([], "--items"),
        (["--title", "Title"], "fits several items"),
        (["--title", "Solaris"], "fits no item"),
        (["--items", "item-1", "-k", "0"], "k must be at least 1"),
        (["--itmes", "item-1"], "did you mean --items"),
    ],
)
def test_recommend_explains_what_it_cannot_do(complaint, best, flags, said):
    assert said in complaint("recommend", best, *flags)


def test_data_list_names_every_source_with_its_licence(capsys):
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert "ml-100k: MovieLens-100K" in out and "GroupLens licence" in out


def test_data_stats_are_those_of_the_log(toy_csv, capsys):
    assert main(["data", "stats", str(toy_csv), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    histories = toy_log().histories
    lengths = [len(history) for history in histories]
    assert (facts["users"], facts["items"], facts["events"]) == (64, 30, sum(lengths))
    assert facts["events per user"]["p50"] == np.median(lengths)
    assert facts["sparsity"] == pytest.approx(1 - sum(lengths) / (64 * 30))
    assert facts["share of equal timestamps"] == 0
    assert facts["from, to"][0] == "2001-09-09"


def test_equal_timestamps_are_counted_within_users(tmp_path, capsys):
    rows = ["user,item,time", "a,x,1000000000", "a,y,1000000000", "a,z,1000000020", "b,x,1000000060", "b,y,1000000060"]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    assert main(["data", "stats", "log.csv", "--json"]) == 0
    # Three events follow another one of their user; two of them at the same moment, and the third 20 seconds later,
    # which a float32 of that size cannot hold.
    facts = json.loads(capsys.readouterr().out)
    assert facts["share of equal timestamps"] == pytest.approx(2 / 3) and facts["the same in float32"] == 1


def test_data_stats_show_the_counts_at_each_step(toy_csv, capsys):
    assert main(["data", "stats", str(toy_csv), "--data.min_user_events", "6"]) == 0
    out = capsys.readouterr().out
    assert out.count("counts: ") >= 2


def test_data_prepare_says_where_and_takes_a_recipe_for_fit(toy_csv, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(f"model: {{class_path: SASRec}}\ndata: {{path: {toy_csv}}}\n")
    assert main(["data", "prepare", "--config", "recipe.yaml"]) == 0
    assert "64 users, 30 items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lsit"], "did you mean list"),
        (["stats", "ml-100kk"], "ml-100k"),
        (["prepare"], "no data"),
        (["stats", "--data.sorce", "x"], "did you mean --data.source"),
    ],
)
def test_data_explains_what_it_cannot_do(complaint, argv, said):
    assert said in complaint("data", *argv)


def test_what_a_log_was_read_as_is_shown_from_the_cache_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = ["visitorid,itemid,event,timestamp", *(f"u,i{n},view,14332213320{n}0" for n in range(4))]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    line = "read as: csv with commas, with header; user visitorid (u, u, u), item itemid (i0, i1, i2), time timestamp"
    for _ in range(2):
        for action in ("stats", "prepare"):
            assert main(["data", action, "log.csv", "--data.cache_dir", "cache"]) == 0
            assert line in capsys.readouterr().out
        assert main(["data", "stats", "log.csv", "--data.cache_dir", "cache", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["read as"]["columns"] == {"user": "visitorid", "item": "itemid", "time": "timestamp"}
        assert facts["read as"]["first_event"] == {"user": "u", "item": "i0", "time": "2015-06-02T05:02:12"}
        assert facts["share of equal timestamps"] == 0 and facts["the same in seconds"] == 1
