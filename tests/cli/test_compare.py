"""`lightrec compare`: one protocol in a table, seeds in a line, tests user by user."""

import json
import shutil

import pytest

from lightrec.cli import main
from lightrec.metrics.significance import compare


@pytest.fixture(scope="module")
def runs(run_folder, small, tmp_path_factory):
    """Two tested runs of one model with other seeds, a third of another model, each with its file of users."""
    home = tmp_path_factory.mktemp("compared")
    shutil.copytree(run_folder, home / "one")
    assert main(["fit", *small, "--seed_everything", "1", "--run_folder", str(home / "two")]) == 0
    assert main(["fit", *small, "--model", "Popularity", "--run_folder", str(home / "floor")]) == 0
    for name in ("one", "two", "floor"):
        best = str(home / name / "checkpoints" / "best.ckpt")
        assert main(["test", "--ckpt_path", best, "--evaluation.per_user", str(home / name / "per-user.parquet")]) == 0
    return home


def measured(folder, metric="ndcg@10"):
    return json.loads((folder / "results.json").read_text())["metrics"][f"test/{metric}"]


def test_runs_stand_side_by_side_with_their_protocol(runs, capsys):
    assert main(["compare", str(runs / "one"), str(runs / "floor"), "--metrics", "ndcg@10"]) == 0
    out = capsys.readouterr().out
    first, floor = (next(line for line in out.splitlines() if f"│ {name} " in line) for name in ("one", "floor"))
    assert "SASRec" in first and f"{measured(runs / 'one'):.4f}" in first
    assert "Popularity" in floor and f"{measured(runs / 'floor'):.4f}" in floor
    assert "protocol P4: " in out


def test_seeds_of_one_model_share_a_line_with_mean_and_range(runs, capsys):
    both = f"ours={runs / 'one'},{runs / 'two'}"
    assert main(["compare", both, str(runs / "floor"), "--metrics", "ndcg@10"]) == 0
    values = sorted(measured(runs / name) for name in ("one", "two"))
    mean, span = f"{sum(values) / 2:.4f}", f"{values[0]:.4f}-{values[1]:.4f}"
    out = capsys.readouterr().out
    assert "; seeds 0, 1; " in out
    lines = out.splitlines()
    place = next(i for i, line in enumerate(lines) if "│ ours " in line)
    assert mean in lines[place] and "│ 2 " in lines[place] and span in lines[place + 1]


def test_a_line_is_tested_against_another_user_by_user(runs, capsys):
    both = f"ours={runs / 'one'},{runs / 'two'}"
    words = [str(runs / "floor"), both, "--against", "floor", "--metrics", "ndcg@10,coverage@10", "--json"]
    assert main(["compare", *words]) == 0
    (test,) = json.loads(capsys.readouterr().out)["tests"]
    files = [runs / name / "per-user.parquet" for name in ("one", "two", "floor")]
    expected = compare(files[2], files[:2], "ndcg@10")
    assert test["row"] == "ours" and test["t_test"] == expected.t_test and test["users"] == expected.users
    assert test["second"] == pytest.approx((measured(runs / "one") + measured(runs / "two")) / 2, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "value"), [("exclude_seen", False), ("targets_sha256", "0" * 64), ("candidates", "uniform-100")]
)
def test_two_protocols_never_share_a_table(runs, tmp_path, complaint, name, value):
    record = json.loads((runs / "two" / "results.json").read_text())
    record["protocol"][name] = value
    (tmp_path / "other.json").write_text(json.dumps(record))
    said = complaint("compare", str(runs / "one"), str(tmp_path / "other.json"))
    assert f"two protocols never share a table: {name} is " in said and "other.json" in said


def test_what_is_missing_is_said_with_the_command_that_makes_it(runs, tmp_path, complaint):
    (tmp_path / "empty").mkdir()
    assert "lightrec test --ckpt_path" in complaint("compare", str(tmp_path / "empty"))
    (tmp_path / "results.json").write_text("[]")
    assert "is not a file of results" in complaint("compare", str(tmp_path / "results.json"))
    assert "has no ndcg@7; it has hr@1" in complaint("compare", str(runs / "one"), "--metrics", "ndcg@7")
    shutil.copytree(runs / "one", tmp_path / "bare")
    (tmp_path / "bare" / "per-user.parquet").unlink()
    said = complaint("compare", str(runs / "one"), str(tmp_path / "bare"), "--against", "one")
    assert "--evaluation.per_user" in said and "bare" in said
    said = complaint("compare", str(runs / "one"), "--against", "one", "--metrics", "coverage@10")
    assert "--against tests hr, recall, ndcg, mrr at a cut-off" in said
    assert "is none of the lines: one" in complaint("compare", str(runs / "one"), "--against", "two")
    said = complaint("compare", str(runs / "one"), f"one={runs / 'two'}")
    assert "two lines are named one" in said and "NAME=RUN" in said
