"""UniRec: time features, counting from the training part, the three terms, and what must not change."""

import datetime as dt
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightrec import testing
from lightrec.cli import main
from lightrec.data.batch import Batch
from lightrec.data.corpus import TrainingLog
from lightrec.errors import InputError
from lightrec.interfaces import total
from lightrec.objectives.next_item import NextItemStates
from lightrec.recommender import AdamW

unirec = pytest.importorskip("lightrec_unirec.model", reason="lightrec-unirec is not installed")
from lightrec_unirec.statistics import Counting, count_items  # noqa: E402
from lightrec_unirec.time import (  # noqa: E402
    CalendarFeatures,
    IntervalFeatures,
    Mercer,
    calendar,
    gap_spread,
    gaps_in_hours,
    quarter_sine,
)

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
HOUR = 3600


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_calendar_is_that_of_the_standard_library():
    draw = np.random.default_rng(0)
    seconds = np.concatenate([draw.integers(-(2**31), 2**32, 3000), [0, -1, 951782400, 1230768000, 1609459199]])
    found = calendar(torch.from_numpy(seconds))
    for row, second in zip(found.tolist(), seconds.tolist(), strict=True):
        t = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=second)
        _, week, weekday = t.isocalendar()
        assert row == [t.year, t.month, t.day, weekday, t.timetuple().tm_yday, week, t.hour]


def test_a_mercer_basis_is_the_written_out_sum_and_only_its_bias_without_weights():
    basis = Mercer(4, 3)
    with torch.no_grad():
        basis.bias.normal_()
    t = torch.tensor([0.0, 3.0, 12.5])
    period = 10**basis.exponents
    for j in range(4):
        expected = basis.bias[j] + sum(
            basis.weight[j, m] * torch.sin((m + 1) * t / period[j])
            + basis.weight[j, 3 + m] * torch.cos((m + 1) * t / period[j])
            for m in range(3)
        )
        assert torch.allclose(basis(t)[:, j], expected, atol=1e-6)
    with torch.no_grad():
        basis.weight.zero_()
    assert torch.equal(basis(t), basis.bias.expand(3, 4))


@pytest.mark.parametrize("features", [CalendarFeatures(8), IntervalFeatures(8)], ids=["calendar", "interval"])
def test_padding_has_no_time(features):
    found = features(torch.randint(0, 2**31, (2, 5)), torch.tensor([5, 2]))
    assert not found[1, 2:].any() and found[1, :2].any()


def test_moving_all_times_leaves_the_interval_view_and_changes_the_calendar():
    times, lengths = torch.randint(10**9, 10**9 + 10**6, (3, 6)).sort(1).values, torch.tensor([6, 6, 4])
    moved = times + 12345 * HOUR
    interval, days = IntervalFeatures(8), CalendarFeatures(8)
    assert torch.equal(interval(times, lengths), interval(moved, lengths))
    assert not torch.allclose(days(times, lengths), days(moved, lengths))


def test_gaps_are_whole_hours_and_capped_by_the_table():
    times = torch.tensor([[0, 3599, 3 * HOUR, 3 * HOUR + 10**9, 0]])
    assert gaps_in_hours(times, torch.tensor([4])).tolist() == [[0, 0, 2, 277777, 0]]
    assert IntervalFeatures(4)(times, torch.tensor([4])).isfinite().all()


def test_even_gaps_have_no_spread_whatever_their_length():
    slow, fast = torch.arange(6) * 86400, torch.arange(6) * 60
    uneven = torch.tensor([0, 1, 2, 100, 101, 5000])
    spread = gap_spread(torch.stack([slow, fast, uneven]), torch.tensor([6, 6, 6]))
    assert spread[:2].tolist() == [0, 0] and spread[2] > 1
    gaps = np.diff(uneven.numpy())
    assert spread[2].item() == pytest.approx(gaps.std() / gaps.mean())


def test_curriculum_weights_stay_between_nothing_and_one_and_grow():
    ease = torch.rand(100)
    weights = torch.stack([quarter_sine(p, ease) for p in np.linspace(0, 1, 11).tolist()])
    assert weights.min() >= 0 and weights.max() <= 1 and (weights.diff(dim=0) >= 0).all()
    assert torch.allclose(weights[-1], torch.ones(100)) and weights[0].argsort().equal(ease.argsort())


def test_items_are_counted_from_the_training_part_only():
    items = np.array([1, 2, 1, 2, 3, 9, 1, 2, 4, 9], np.int32)
    times = np.arange(10) * HOUR
    facts = count_items(TrainingLog(items, times, np.array([0, 6]), np.array([5, 9])), 9)
    assert not facts.neighbours[9].any() and not (facts.neighbours == 9).any() and not facts.frequent[9]
    assert facts.frequent.nonzero().flatten().tolist() == [1, 2]
    assert facts.neighbours[1, 0] == 2 and facts.neighbours[2, 0] == 1 and not facts.neighbours[0].any()


def test_neighbours_are_ranked_by_the_written_out_score():
    draw = np.random.default_rng(1)
    items, times = draw.integers(1, 7, 60).astype(np.int32), np.sort(draw.integers(0, 10**6, 60))
    facts = count_items(
        TrainingLog(items, times, np.array([0, 30]), np.array([30, 60])), 6, Counting(num_neighbours=5, reach=1)
    )
    counts, gaps, before = np.bincount(items, minlength=7), {}, {}
    for b, e in ((0, 30), (30, 60)):
        for i in range(b + 1, e):
            hours = (times[i] - times[i - 1]) / 3600
            before.setdefault(items[i], []).append(hours)
            if items[i] != items[i - 1]:
                gaps.setdefault((items[i - 1], items[i]), []).append(hours)
                gaps.setdefault((items[i], items[i - 1]), []).append(hours)
    for i in range(1, 7):
        score = {}
        for j in range(1, 7):
            if (i, j) in gaps:
                s = len(gaps[i, j]) / np.sqrt(counts[i] * counts[j])
                g, v = np.mean(gaps[i, j]), np.var(before[j])
                score[j] = 0.4 * s / (1 + s) + 0.8 / (1 + np.log(1 + g)) + 0.5 / (1 + np.log(1 + v))
        expected = sorted(score, key=lambda j: -score[j])[:5]
        assert [n for n in facts.neighbours[i].tolist() if n] == expected


def batch_of(rows=6, length=9, num_items=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, length + 1, (rows,), generator=draw)
    lengths[0] = length
    inside = torch.arange(length) < lengths[:, None]
    ids = torch.randint(1, num_items + 1, (rows, length), generator=draw) * inside
    times = (10**9 + torch.randint(1, 10**5, (rows, length), generator=draw).cumsum(1)) * inside
    times[0] = 10**9 + torch.arange(length) * 86400  # the most uniform of all
    return Batch(ids, lengths, torch.arange(rows), timestamps=times)


def model(use_times=True, **options):
    objective = unirec.DualEnhancement(**options)
    return unirec.UniRec(12, hidden_size=8, max_length=9, dropout=0.0, use_times=use_times, objective=objective)


def counted(network, batch):
    """Lets the objective count in a batch, as it does outside of a run."""
    lengths, real = batch.lengths.numpy(), batch.item_ids > 0
    events = batch.item_ids[real].numpy(), batch.timestamps[real].numpy()
    network.objective.count(TrainingLog(*events, lengths.cumsum() - lengths, lengths.cumsum()), 12)


def still(network):
    """Without the noise of attention, which training adds."""
    for block in network.encoder.blocks:
        torch.nn.init.zeros_(block.attention.noise)
    return network


def test_with_all_weights_zero_it_is_the_base_model():
    network, batch = still(model(sequence_weight=0, item_weight=0, tail_weight=0)), batch_of()
    inputs = batch.replace(
        item_ids=batch.item_ids[:, :-1], lengths=batch.lengths - 1, timestamps=batch.timestamps[:, :-1]
    )
    history = network.encoder.enter(network.history(inputs))
    rows = torch.arange(8) < inputs.lengths[:, None]
    expected = sum(
        network.items.cross_entropy(
            network.encoder.view(history, view)[..., :8][rows],
            batch.item_ids[:, 1:][rows],
        )
        for view in unirec.VIEWS
    ) / int(rows.sum())
    assert torch.allclose(total(network.loss(batch)), expected, atol=1e-5)
    assert network.objective.facts is None  # nothing is counted for nothing


@pytest.mark.parametrize("term", ["sequence_weight", "item_weight", "tail_weight"])
def test_each_term_adds_something_with_finite_gradients(term):
    weights = dict(sequence_weight=0.0, item_weight=0.0, tail_weight=0.0)
    base, network = still(model(**weights)), still(model(**weights | {term: 1.0}))
    network.load_state_dict(base.state_dict())
    batch = batch_of()
    more = total(network.loss(batch)) - total(base.loss(batch))
    assert more > 0
    total(network.loss(batch)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_the_frozen_map_is_not_taught_by_rare_items():
    network, batch = model(), batch_of()
    counted(network, batch)
    _, tail = network.objective.item_terms(network, batch)
    tail.backward()
    assert network.from_neighbours.weight.grad is None and network.items.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("stop", [True, False])
def test_the_whole_history_is_held_still_only_if_asked_for(stop):
    network, batch = model(stop_gradient=stop, uniform_share=1.0), batch_of()
    counted(network, batch)
    whole = [torch.randn(6, 16, requires_grad=True) for _ in unirec.VIEWS]
    network.objective.sequence_term(network, batch, whole, 1.0).backward()
    assert (whole[0].grad is None) == stop


def test_even_histories_are_the_uniform_ones():
    network, batch = model(uniform_share=0.2), batch_of()
    counted(network, batch)
    flags = network.objective.is_uniform(batch)
    assert flags[0] and flags.float().mean() <= 0.4
    assert not network.objective.is_uniform(batch.replace(lengths=torch.full((6,), 2))).any()


def test_an_irregular_part_keeps_the_last_two_and_its_own_times():
    network, batch = model(), batch_of()
    counted(network, batch)
    part = network.objective.irregular_part(batch)
    irregular = network.objective.facts.irregular
    for i in range(6):
        n = int(batch.lengths[i])
        kept = [t for t in range(n) if t >= n - 2 or irregular[batch.item_ids[i, t]]]
        assert part.item_ids[i].tolist()[: len(kept)] == batch.item_ids[i, kept].tolist()
        assert part.timestamps[i].tolist()[: len(kept)] == batch.timestamps[i, kept].tolist()
        assert part.lengths[i] == len(kept) and not part.item_ids[i, len(kept) :].any()


def test_ranking_is_the_same_twice_and_noise_is_for_training():
    network, batch = model(), batch_of()
    network.train()
    assert not torch.equal(network.encode(batch), network.encode(batch))
    network.eval()
    assert torch.equal(network.encode(batch), network.encode(batch))


def test_times_matter_and_the_future_does_not():
    network, batch = model().eval(), batch_of()
    changed = batch.replace(timestamps=batch.timestamps.clone(), item_ids=batch.item_ids.clone())
    changed.timestamps[:, 5:] += 86400 * 40
    changed.item_ids[0, 5:] = 3
    one, other = network.encode(batch), network.encode(changed)
    assert torch.allclose(one[0, :5], other[0, :5], atol=1e-6) and not torch.allclose(one[0, 5:], other[0, 5:])


def test_times_that_are_missing_are_asked_for():
    batch = batch_of().replace(timestamps=None)
    with pytest.raises(InputError, match="set --data.with_times true"):
        model().loss(batch)
    with pytest.raises(InputError, match="set --data.with_times true"):
        model().eval().query(batch)
    assert total(model(use_times=False).loss(batch)).isfinite()


def test_both_ways_to_rank_are_offered_under_their_own_names():
    """Sampled ranking, which the authors report, is the data module's affair: the model scores any candidates."""
    network, batch = model(use_times=False).eval(), batch_of()
    candidates = torch.tensor([[1, 5, 9]] * 6)
    ids, scores = network.recommend(batch.replace(candidate_ids=candidates), 3)
    full_ids, full = network.recommend(batch, 12)
    for row in range(6):
        assert set(ids[row].tolist()) == {1, 5, 9}
        order = [i for i in full_ids[row].tolist() if i in (1, 5, 9)]
        assert ids[row].tolist() == order


def test_the_loss_rows_are_those_of_next_item():
    """The shared helper and our own cut agree on what is a target."""
    network, batch = model(use_times=False).eval(), batch_of()
    _, targets = NextItemStates(network, batch).rows()
    assert len(targets) == int((batch.lengths - 1).sum())


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"sequence_weight \(-1\) must be at least 0"):
        unirec.DualEnhancement(sequence_weight=-1)
    with pytest.raises(ValueError, match=r"uniform_share \(2\) must be between 0 and 1"):
        unirec.DualEnhancement(uniform_share=2)


def factory(num_items, max_length):
    options = dict(hidden_size=16, num_layers=1, dropout=0.0, use_times=False, optimizer=AdamW(learning_rate=1e-2))
    return unirec.UniRec(num_items, max_length=max_length, **options)


@pytest.mark.parametrize("check", testing.applicable_checks(factory(20, 10)), ids=lambda c: c.__name__)
def test_it_keeps_the_contract_of_a_recommender(check):
    check(partial(factory))


# from YAML


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path / "cache"))
    log = testing.toy_log(num_users=40, num_items=120, min_length=6).write_csv(tmp_path / "purchases.csv")
    (tmp_path / "timeless.csv").write_text(
        "\n".join(",".join(row.split(",")[:2]) for row in log.read_text().splitlines())
    )
    narrow = ["--model.hidden_size", "16", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    return [*narrow, "--data.source", "file", "--data.path"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_and_is_tested_in_both_ways(path, toy):
    assert main(["fit", "--config", str(path), "--run_folder", "run", *toy, "purchases.csv"]) == 0
    for flags in ([], ["--data.candidates", "uniform-100"]):
        assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt", *flags]) == 0
    full, sampled = (json.loads(p.read_text()) for p in sorted(Path("run").glob("results*.json"))[::-1])
    assert {full["protocol"]["candidates"], sampled["protocol"]["candidates"]} == {"full", "uniform-100"}
    assert full["metrics"].keys().isdisjoint(sampled["metrics"])
    recipe = yaml.safe_load(path.read_text())
    assert recipe["model"]["class_path"] == "UniRec" and recipe["data"]["with_times"]
    assert recipe["data"]["source"] == path.stem.replace("unirec", "amazon")


def test_a_log_without_times_is_told_what_to_choose_and_then_trains(toy, capsys):
    timeless = ["fit", "--config", str(CONFIGS[0]), *toy, "timeless.csv"]
    for flags, said in (
        ([], "--data.with_times needs a log with times; this one has none"),
        (["--data.with_times", "false"], "--model.use_times false"),
    ):
        assert main([*timeless, *flags]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main([*timeless, "--data.with_times", "false", "--model.use_times", "false"]) == 0


def test_the_old_place_of_use_times_is_answered_with_the_new(toy, capsys):
    flags = ["--model", "UniRec", "--model.objective", "DualEnhancement", "--model.objective.use_times", "false"]
    assert main(["fit", *flags, *toy, "timeless.csv"]) == 2
    assert "--model.objective.use_times is now --model.use_times" in " ".join(capsys.readouterr().err.split())
