"""Over 1, 2 and 3 processes under Lightning: who is given which rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "shares_worker.py"
RUNS = (1, 58)  # users with a test item, beside one with 140 events and one with two; the first leaves a process idle

pytestmark = pytest.mark.xdist_group("shares of processes")  # its fixture is worked out once


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """{(users, stage, world size): [what each process was given]}."""
    folder = tmp_path_factory.mktemp("shares")
    env = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", LIGHTREC_CACHE=str(folder / "cache"))
    command = [sys.executable, str(WORKER), str(folder), "2", "3", "1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        (users, stage, world): [
            json.loads((folder / f"{users}-{stage}-{world}-{rank}.json").read_text()) for rank in range(world)
        ]
        for users in RUNS
        for stage in ("fit", "test", "predict")
        for world in (1, 2, 3)
    }


def users_of(batches):
    return [user for _, users in batches for user in users]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("users", RUNS)
def test_evaluation_asks_every_user_once_and_every_process_takes_part(given, users, world):
    expected = {"test": users + 1, "predict": users + 2}  # prediction has the user with two events as well
    for stage, count in expected.items():
        parts = [report[stage] for report in given[users, stage, world]]
        assert all(parts)
        asked = [user for part in parts for user in users_of(part)]
        assert len(asked) == count and len(set(asked)) == count
    for epoch in (0, 1):
        parts = [[b for b in report["validate"] if b[0] == epoch] for report in given[users, "fit", world]]
        assert all(parts) and sorted(u for p in parts for u in users_of(p)) == sorted(set(users_of(sum(parts, []))))
        assert sum(len(users_of(part)) for part in parts) == users + 1


def test_a_process_without_rows_is_given_one_batch_without_rows(given):
    sizes = [[len(users) for _, users in report["test"]] for report in given[1, "test", 3]]
    assert sizes == [[1], [1], [0]]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_train_together_on_the_batches_of_one(given, world):
    (alone,) = (report["fit"] for report in given[58, "fit", 1])
    parts = [report["fit"] for report in given[58, "fit", world]]
    assert {len(part) for part in parts} == {len(alone)} == {10}
    for (epoch, whole), *shares in zip(alone, *parts, strict=True):
        assert {e for e, _ in shares} == {epoch}
        assert sorted(user for _, share in shares for user in share) == sorted(whole)
    assert [sorted(rows) for epoch, rows in alone if epoch == 0] != [sorted(rows) for e, rows in alone if e == 1]


@pytest.mark.parametrize("world", [2, 3])
def test_candidates_depend_neither_on_batches_nor_on_processes(given, world):
    def drawn(world):
        found = {}
        for report in given[58, "test", world]:
            for batch in report["candidates"]:
                found.update(batch)
        return found

    assert len(drawn(1)) == 59 and drawn(world) == drawn(1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_columns_stay_with_their_events_in_every_process(given, world):
    for users in RUNS:
        reports = [report for stage in ("fit", "test", "predict") for report in given[users, stage, world]]
        pairs = {tuple(pair) for report in reports for _, found in report["kinds"] for pair in found}
        items, kinds = zip(*pairs, strict=True)
        assert len(set(items)) == len(set(kinds)) == len(pairs) > 50  # each item has one kind, and padding has 0
        assert all((item == 0) == (kind == 0) for item, kind in pairs)
