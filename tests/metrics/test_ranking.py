"""RankingMetrics: the same numbers for any batch size and any number of processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightrec.errors import InputError
from lightrec.metrics.ranking import RankingMetrics

EXACT = 1e-12  # float64 sums: only their order differs
NUM_ITEMS = 30
WORKER = Path(__file__).parent / "gloo_worker.py"


def random_rows(rows, targets=1, seed=0):
    """Lists of 11 of 30 items as an `update` takes them."""
    gen = torch.Generator().manual_seed(seed)
    scores, column = torch.randn(rows, NUM_ITEMS, generator=gen).topk(11)
    target_ids = torch.stack([torch.randperm(NUM_ITEMS, generator=gen)[:targets] + 1 for _ in range(rows)])
    lengths = torch.randint(1, 70, (rows,), generator=gen)
    return column + 1, scores, target_ids.view(rows, targets), torch.arange(rows), lengths


def counts():
    return torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(NUM_ITEMS).square()])


def metrics_of(rows, batch_size, device="cpu", **options):
    metrics = RankingMetrics(ks=(1, 5, 10), **options).to(device)
    metrics.set_catalog(counts())
    for start in range(0, len(rows[0]), batch_size):
        metrics.update(*(t[start : start + batch_size].to(device) for t in rows))
    return metrics


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("targets", [1, 3])
def test_batch_size_changes_nothing(batch_size, targets):
    rows = random_rows(57, targets)
    whole = metrics_of(rows, 57, cohorts=True).compute()
    cut = metrics_of(rows, batch_size, cohorts=True).compute()
    assert whole.keys() == cut.keys() and ("recall@10" in whole) == (targets > 1)
    for name, value in whole.items():
        assert value.dtype == torch.float64 and value.dim() == 0
        assert abs(value - cut[name]) < EXACT, name


def test_a_seven_row_example_by_hand():
    metrics = RankingMetrics(ks=(1, 2))
    metrics.set_catalog(torch.tensor([0, 5, 4, 3, 2]))
    item_ids, scores = torch.tensor([[1, 2, 3]] * 7), torch.tensor([[3.0, 2.0, 1.0]] * 7)
    metrics.update(item_ids, scores, torch.tensor([[1], [1], [2], [2], [3], [4], [4]]))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["hr@1"] == 2 / 7 and values["hr@2"] == pytest.approx(0.571429, abs=1e-6)
    assert values["mrr@2"] == pytest.approx(3 / 7, abs=EXACT)
    assert values["ndcg@2"] == pytest.approx((2 + 2 / math.log2(3)) / 7, abs=EXACT)
    assert values["coverage@1"] == 0.25 and values["coverage@2"] == 0.5
    # Places by popularity are 0, 1/3, 2/3, 1 for items 1 to 4.
    assert values["popularity_rank@1"] == 0 and values["popularity_rank@2"] == pytest.approx(1 / 6, abs=EXACT)


def test_equally_popular_items_share_their_mean_place():
    metrics = RankingMetrics(ks=(1,))
    metrics.set_catalog(torch.tensor([99, 3, 8, 3, 0, 3]))  # padding has no popularity
    assert metrics.popularity_rank.tolist() == [0, 0.5, 0, 0.5, 1, 0.5]


def test_cohorts_by_history_length_have_stated_edges():
    metrics = RankingMetrics(ks=(1,), cohorts=True)
    metrics.set_catalog(counts())
    lengths = torch.tensor([1, 4, 5, 9, 10, 19, 20, 49, 50, 900])
    hit = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1, 1])
    item_ids, scores = torch.tensor([[7, 8]] * 10), torch.tensor([[2.0, 1.0]] * 10)
    target_ids = torch.where(hit == 1, 7, 9).unsqueeze(1)
    metrics.update(item_ids, scores, target_ids, None, lengths)
    values = {name: value.item() for name, value in metrics.compute().items() if "history" in name}
    shares = {"0-4": 0.5, "5-9": 1.0, "10-19": 0.0, "20-49": 0.0, "50+": 1.0}
    assert values == {f"{m}@1/history:{name}": share for name, share in shares.items() for m in ("hr", "ndcg")}


def test_cohorts_by_popularity_hold_half_four_tenths_and_the_rest_of_the_events():
    metrics = RankingMetrics(ks=(1,), cohorts=True)
    item_counts = torch.tensor([0, 10, 50, 30, 9, 1, 0])
    metrics.set_catalog(item_counts)
    expected = {2: "head", 3: "mid", 1: "mid", 4: "tail", 5: "tail", 6: "cold"}
    for item, cohort in expected.items():
        metrics.reset()
        other = item % 6 + 1
        metrics.update(torch.tensor([[item, other]]), torch.tensor([[2.0, 1.0]]), torch.tensor([[item]]))
        names = [name for name in metrics.compute() if "items:" in name]
        assert names == [f"hr@1/items:{cohort}", f"ndcg@1/items:{cohort}"]
        assert metrics.compute()[names[0]] == 1


def test_cohorts_average_back_to_the_whole():
    rows = random_rows(200)
    metrics = metrics_of(rows, 50, cohorts=True)
    first, last = 1, 6  # history cohorts stand in groups 1 to 5
    assert metrics.rows[first:last].sum() == 200 and metrics.rows[last:].sum() == 200
    assert torch.allclose(metrics.totals[first:last].sum(0), metrics.totals[0], atol=EXACT)
    assert torch.allclose(metrics.totals[last:].sum(0), metrics.totals[0], atol=EXACT)


def test_sampled_candidates_are_part_of_every_name():
    metrics = RankingMetrics(ks=(10,), cohorts=True)
    metrics.set_catalog(counts(), candidates="uniform-100")
    metrics.update(*random_rows(5, targets=2))
    names = list(metrics.compute())
    assert names and all("@10[uniform-100]" in name for name in names)


def test_reset_and_connect_forget_what_was_counted():
    rows = random_rows(20)
    metrics = metrics_of(rows, 5, cohorts=True, per_user=True)
    first = metrics.compute()
    metrics.reset()
    assert metrics.rows.sum() == 0 and len(metrics.per_user_ranks()) == 0
    metrics.update(*rows)
    assert all(abs(metrics.compute()[name] - value) < EXACT for name, value in first.items())
    metrics.set_catalog(torch.ones(NUM_ITEMS + 1, dtype=torch.long))
    assert metrics.rows.sum() == 0 and metrics.shown.sum() == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric RankingMetrics was called before")
def test_no_row_at_all_is_not_a_number_rather_than_zero():
    metrics = RankingMetrics()
    metrics.set_catalog(counts())
    assert metrics.compute()["hr@10"].isnan()


def test_a_batch_without_rows_adds_nothing():
    metrics = metrics_of(random_rows(9), 4, cohorts=True)
    before = metrics.compute()
    metrics.update(*(t[:0] for t in random_rows(9)))
    assert all(metrics.compute()[name] == value for name, value in before.items())


def test_without_a_catalog_only_what_needs_no_counts_is_computed():
    metrics = RankingMetrics(ks=(5,))
    metrics.update(*random_rows(5))
    assert set(metrics.compute()) == {"hr@5", "ndcg@5", "mrr@5"}
    with pytest.raises(RuntimeError, match="set_catalog"):
        RankingMetrics(ks=(5,), cohorts=True).update(*random_rows(5))


def test_repeated_targets_never_lift_ndcg_above_one():
    metrics = RankingMetrics(ks=(2,))
    metrics.update(torch.tensor([[4, 5, 6]]), torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[4, 4, 4]]))
    values = metrics.compute()
    assert values["ndcg@2"] == 1 and values["hr@2"] == 1


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        RankingMetrics(ks=(0, 5))
    with pytest.raises(InputError, match="at least 1"):
        RankingMetrics(ks=())
    metrics = RankingMetrics(ks=(11,))
    item_ids, scores, target_ids, *_ = random_rows(3)
    with pytest.raises(ValueError, match="lists of 11 items cannot give exact ranks up to 11"):
        metrics.update(item_ids, scores, target_ids)
    metrics = RankingMetrics(ks=(5,))
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(item_ids, scores * torch.nan, target_ids)
    with pytest.raises(ValueError, match="row 1 of the batch has no target"):
        metrics.update(item_ids, scores, torch.tensor([[1], [0], [2]]))


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_casting_the_model_leaves_the_sums_in_float64(cast):
    metrics = metrics_of(random_rows(31), 10, cohorts=True)
    before = metrics.compute()
    cast(torch.nn.ModuleDict({"metrics": metrics, "layer": torch.nn.Linear(2, 2)}))
    assert metrics.totals.dtype == torch.float64 and metrics.popularity_rank.dtype == torch.float64
    metrics._computed = None
    assert all(metrics.compute()[name] == value for name, value in before.items())


def test_metrics_add_nothing_to_a_checkpoint():
    assert metrics_of(random_rows(3), 3).state_dict() == {}


def test_per_user_values_average_to_the_metrics():
    rows = random_rows(33, targets=2)
    metrics = metrics_of(rows, 10, per_user=True)
    columns, values = metrics.per_user_values(), metrics.compute()
    assert columns["user_id"].tolist() == list(range(33))
    assert torch.equal(metrics.per_user_ranks()[:, 1], columns["rank"])
    for name in ("hr@1", "ndcg@5", "mrr@10", "recall@10"):
        assert abs(columns[name].mean() - values[name]) < EXACT
    assert torch.equal(columns["hr@5"] == 1, columns["rank"] <= 5)


def test_processes_agree_with_one_process_even_when_one_has_no_row(tmp_path):
    """Worlds of 2 and 3 processes over 7 rows and over 1 row, in every state there is."""
    cases = {"seven": 7, "one": 1, "many": 101}
    env = dict(os.environ, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for name, rows in cases.items():
        single = metrics_of(random_rows(rows, targets=2, seed=rows), 2, cohorts=True).compute()
        for world in (2, 3):
            for rank in range(world):
                values = json.loads((tmp_path / f"{name}-{world}-{rank}.json").read_text())
                assert values.keys() == single.keys()
                for metric, value in single.items():
                    assert abs(values[metric] - value.item()) < EXACT, (name, world, rank, metric)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("targets", [1, 3])
def test_a_gpu_measures_what_a_cpu_measures(targets):
    rows = random_rows(57, targets)
    here, there = (metrics_of(rows, 20, device, cohorts=True, per_user=True) for device in ("cpu", "cuda"))
    found, columns = there.compute(), there.per_user_values()
    for name, value in here.compute().items():
        assert found[name].device.type == "cuda" and abs(value - found[name].cpu()) < EXACT, name
    for name, column in here.per_user_values().items():
        assert torch.allclose(column, columns[name], atol=EXACT), name
