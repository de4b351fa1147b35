"""Evaluation under Lightning over 1, 2 and 3 processes: each row once, and one answer.

Two faults are usual and independent: a sampler that gives rows twice when they do not divide evenly, and averaging the
averages of processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXACT = 1e-12  # float64 sums: only their order differs
WORKER = Path(__file__).parent / "ddp_worker.py"

pytestmark = pytest.mark.xdist_group("metrics of processes")  # its fixture is worked out once


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """{(run, world size): [what each process saw]}."""
    folder = tmp_path_factory.mktemp("ddp")
    env = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", LIGHTREC_CACHE=str(folder / "cache"))
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder), "2", "3", "1"], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for run in ("sasrec", "fixed-7", "fixed-1"):
        for world in (1, 2, 3):
            found[run, world] = [json.loads((folder / f"{run}-{world}-{r}.json").read_text()) for r in range(world)]
    for world in (1, 2):
        found["weights", world] = torch.load(folder / f"even-{world}.ckpt", weights_only=True)["state_dict"]
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_seven_users_have_the_hit_rate_of_seven_users(reports, world):
    for report in reports["fixed-7", world]:
        assert report["values"]["test/hr@10"] == pytest.approx(4 / 7, abs=EXACT)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("run", ["sasrec", "fixed-7", "fixed-1"])
def test_every_user_is_asked_once_on_one_process(reports, run, world):
    users = [user for report in reports[run, world] for user in report["users"]]
    assert sorted(users) == list(range({"sasrec": 37, "fixed-7": 7, "fixed-1": 1}[run]))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("run", ["sasrec", "fixed-7", "fixed-1"])
def test_every_process_logs_what_one_process_logs(reports, run, world):
    (single,) = reports[run, 1]
    assert "test/ndcg@10" in single["values"] and "test/coverage@10" in single["values"]
    for report in reports[run, world]:
        assert report["values"].keys() == single["values"].keys()
        for name, value in single["values"].items():
            assert abs(report["values"][name] - value) < EXACT, name


@pytest.mark.parametrize("world", [2, 3])
def test_averaging_the_processes_would_have_been_wrong(reports, world):
    parts = reports["fixed-7", world]
    assert sum(part["hits"] for part in parts) == 4
    average = sum(part["hits"] / len(part["users"]) for part in parts) / world
    assert abs(average - 4 / 7) > 0.01


def test_a_process_without_a_row_takes_part(reports):
    assert [len(report["users"]) for report in reports["fixed-1", 3]] == [1, 0, 0]
    assert reports["fixed-1", 3][2]["values"]["test/hr@10"] == 1


def test_two_processes_train_a_model_that_learns(reports):
    assert reports["sasrec", 1][0]["values"]["test/ndcg@10"] > 0.2


def test_two_processes_take_the_steps_of_one_with_the_joined_batches(reports):
    """Rows differ in length, so a mean of the processes' means would go elsewhere."""
    one, two = reports["weights", 1], reports["weights", 2]
    assert one.keys() == two.keys()
    for name, weight in one.items():
        if not name.endswith("key_value.bias"):  # a key bias changes no softmax: Adam follows the rounding of its zeros
            assert torch.allclose(weight, two[name], rtol=1e-3, atol=1e-4), name
