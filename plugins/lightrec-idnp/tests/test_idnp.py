"""IDNP: what a neural process over short windows must show."""

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
from lightrec.interfaces import total
from lightrec.models.sasrec import SASRec
from lightrec.recommender import AdamW

idnp = pytest.importorskip("lightrec_idnp.model", reason="lightrec-idnp is not installed")
from lightrec_idnp.calibration import reliability  # noqa: E402
from lightrec_idnp.process import InterestProcess, Latent, kullback_leibler, wasserstein  # noqa: E402
from lightrec_idnp.windows import ShortTermEncoder, short_windows  # noqa: E402

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
D, Z = 8, 4


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def process(**options):
    return InterestProcess(D, Z, 8, **options).eval()


def observations(n=6, batch=2):
    return torch.randn(batch, n, D), torch.sort(torch.rand(batch, n) * 300).values


def test_windows_hold_the_last_items_and_nothing_else():
    x = torch.arange(1.0, 11.0).view(1, 5, 2).repeat(2, 1, 1)
    windows, inside = short_windows(x, torch.tensor([5, 3]), 3)
    assert inside[0, 0].tolist() == [False, False, True] and inside[0, 4].all()
    assert windows[0, 4, :, 0].tolist() == [5.0, 7.0, 9.0] and windows[0, 1, :, 0].tolist() == [0.0, 1.0, 3.0]
    assert not inside[1, 3:].any() and not windows[1, 3:].any()


def test_a_window_is_not_influenced_by_what_was_before_it():
    encoder = ShortTermEncoder(D, 3)
    x, lengths = torch.randn(1, 9, D), torch.tensor([9])
    changed = x.clone()
    changed[:, :4] = torch.randn(1, 4, D)
    one, other = (encoder(*short_windows(v, lengths, 4)) for v in (x, changed))
    assert torch.equal(one[:, 7:], other[:, 7:]) and not torch.allclose(one[:, 6], other[:, 6])


def test_padding_gets_no_attention_and_empty_windows_are_zero():
    encoder = ShortTermEncoder(D, 2)
    windows, inside = short_windows(torch.randn(2, 5, D), torch.tensor([5, 2]), 4)
    weights = encoder.weights(windows, inside)
    assert (weights.movedim(-2, -1)[~inside] == 0).all()
    assert torch.allclose(weights.sum((-2, -1))[inside.any(-1)], torch.ones(7))
    assert not encoder(windows, inside)[1, 2:].any()


def test_the_order_of_observations_does_not_matter():
    net, (made, times) = process(), observations()
    context = torch.tensor([[[1, 1, 0, 1, 0, 1]]]).bool().expand(2, 1, 6)
    at = torch.full((2, 1), 400.0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = made[:, order], times[:, order], context[..., order]
    z, again = net.global_interest(made, context), net.global_interest(moved[0], moved[2])
    assert torch.allclose(z.mean, again.mean, atol=1e-6) and torch.allclose(z.std, again.std, atol=1e-6)
    assert torch.allclose(net.interest_at(made, times, context, at), net.interest_at(*moved, at), atol=1e-6)


def test_observations_that_are_there_twice_change_nothing_global():
    net, (made, _) = process(), observations()
    once = net.global_interest(made, torch.ones(2, 1, 6, dtype=torch.bool))
    twice = net.global_interest(torch.cat([made, made], 1), torch.ones(2, 1, 12, dtype=torch.bool))
    assert torch.allclose(once.mean, twice.mean, atol=1e-6) and torch.allclose(once.std, twice.std, atol=1e-6)


def test_without_observations_there_is_the_prior_and_no_interest_at_a_time():
    net, (made, times) = process(), observations()
    nothing = torch.zeros(2, 3, 6, dtype=torch.bool)
    prior = net.global_interest(made, nothing)
    assert not prior.mean.any() and (prior.std == 1).all()
    assert not net.interest_at(made, times, nothing, torch.rand(2, 3)).any()


def test_distances_are_zero_between_equals_and_the_written_out_formulas_otherwise():
    one = Latent(torch.randn(3, Z), torch.rand(3, Z) + 0.1)
    other = Latent(torch.randn(3, Z), torch.rand(3, Z) + 0.1)
    for distance in (wasserstein, kullback_leibler):
        assert torch.equal(distance(one, one), torch.zeros(3)) and (distance(one, other) > 0).all()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(*one), normal(*other)).sum(-1)
    assert torch.allclose(kullback_leibler(one, other), expected, atol=1e-5)
    expected = ((one.mean - other.mean) ** 2).sum(-1) + ((one.std - other.std) ** 2).sum(-1)
    assert torch.allclose(wasserstein(one, other), expected)


def batch_of(rows=3, length=7, num_items=12):
    lengths = torch.tensor([length, 3, 2])[:rows]
    ids = torch.randint(1, num_items + 1, (rows, length)) * (torch.arange(length) < lengths[:, None])
    times = torch.arange(length) * 86400 * 3 * (torch.arange(length) < lengths[:, None])
    return Batch(ids, lengths, torch.arange(rows), timestamps=times)


def test_without_both_paths_it_is_an_attentive_convolution_over_the_window():
    model = idnp.IDNP(12, D, window=3, latent=False, deterministic=False, dropout=0.0).eval()
    batch = batch_of()
    changed = batch.replace(item_ids=batch.item_ids.clone())
    changed.item_ids[0, :3] = torch.tensor([1, 2, 3])
    one, other = model.encode(batch), model.encode(changed)
    assert torch.equal(one[0, 6], other[0, 6])  # nothing older than the window is known
    history = model.history(batch)
    short = model.encoder.short_term(*short_windows(history.x, batch.lengths, 3))
    nothing, times = torch.zeros(3, 7, D), idnp.days_of(history)
    expected = model.encoder.process.decode(nothing, torch.zeros(3, 7, D // 2), short, times)
    assert torch.allclose(one[0], expected[0], atol=1e-6)


def test_the_bound_without_distance_or_context_is_the_next_item_loss_of_its_targets():
    """With both paths off, the objective must equal the plain cross-entropy at the drawn positions."""
    model = idnp.IDNP(12, D, latent=False, deterministic=False, dropout=0.0, objective=idnp.NeuralProcess(beta=0.0))
    batch = batch_of()
    torch.manual_seed(5)
    loss = total(model.loss(batch))
    torch.manual_seed(5)
    targets, context = model.objective.draw(batch.lengths - 1, 6)
    asked = targets & ~context
    logits = model.items.score(model.encode(batch))[:, :-1][asked][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits, batch.item_ids[:, 1:][asked] - 1)
    assert torch.allclose(loss, expected, atol=1e-5)


def test_contexts_are_random_parts_that_leave_something_to_guess():
    objective = idnp.NeuralProcess(max_targets=5)
    lengths = torch.tensor([1, 2, 9]).repeat(500)
    targets, context = objective.draw(lengths, 9)
    assert (targets.sum(1) == lengths.clamp_max(5)).all() and not (context & ~targets).any()
    sizes = context.sum(1).view(-1, 3)
    assert (
        (sizes[:, 0] == 0).all() and set(sizes[:, 1].tolist()) == {0, 1} and set(sizes[:, 2].tolist()) == set(range(5))
    )
    share = context.view(-1, 3, 9)[:, 2].float().mean(0)
    assert share.std() < 0.1  # anywhere, not the first ones


def test_gradients_flow_through_z():
    model = idnp.IDNP(12, D, deterministic=False, objective=idnp.NeuralProcess(beta=0.0))
    total(model.loss(batch_of())).backward()
    weight = model.encoder.process.to_gaussian.weight.grad
    assert weight.isfinite().all() and weight.abs().sum() > 0


def test_the_state_after_the_last_event_is_that_of_the_full_pass():
    model = idnp.IDNP(12, D, dropout=0.3).eval()
    batch = batch_of()
    whole = model.encode(batch)[torch.arange(3), batch.lengths - 1]
    assert torch.allclose(model.query(batch), whole, atol=1e-5)


def test_the_next_time_is_used_where_it_is_known_and_only_if_asked_for():
    batch = batch_of().replace(target_timestamps=torch.tensor([[86400 * 400], [86400 * 9], [86400 * 4]]))
    later = batch.replace(target_timestamps=batch.target_timestamps + 86400 * 50)
    last, following = (idnp.IDNP(12, D, query_time=q).eval() for q in ("last", "next"))
    assert torch.equal(last.query(batch), last.query(later))
    assert not torch.allclose(following.query(batch), following.query(later))


def test_the_interest_is_asked_for_at_the_time_of_the_next_event():
    batch = batch_of().replace(target_timestamps=torch.tensor([[900], [800], [700]]))
    model = idnp.IDNP(12, D, query_time="next")
    asked = model.history(batch).query_times
    assert asked[0].tolist() == [*batch.timestamps[0, 1:].tolist(), 900]
    assert asked[1, :3].tolist() == [*batch.timestamps[1, 1:3].tolist(), 800]
    untold = model.history(batch.replace(target_timestamps=None)).query_times
    assert untold[1, 2] == batch.timestamps[1, 2] and torch.equal(untold[:, 0], asked[:, 0])
    timeless = model.history(batch.replace(timestamps=None, target_timestamps=None))
    assert (timeless.query_times[0] / 86400).tolist() == [1, 2, 3, 4, 5, 6, 6]


def drifting(num_users, length, generator):
    """Users whose favourite of 12 items moves on by their own speed: what comes next is known once the speed is."""
    start = torch.randint(0, 12, (num_users, 1), generator=generator)
    speed = torch.randint(1, 4, (num_users, 1), generator=generator)
    steps = torch.arange(length)
    noise = torch.randint(0, 12, (num_users, length), generator=generator)
    noisy = torch.rand(num_users, length, generator=generator) < 0.1
    ids = torch.where(noisy, noise, (start + speed * steps) % 12) + 1
    return Batch(
        ids, torch.full((num_users,), length), torch.arange(num_users), timestamps=steps.expand(num_users, -1) * 86400
    )


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = idnp.IDNP(12, hidden_size=32, window=1, num_layers=1, dropout=0.0, objective=idnp.NeuralProcess(beta=0.1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        loss = total(model.loss(drifting(64, 9, generator)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def negative_log_likelihood(model, batch, known):
    """Of the last item, when the first `known` observations are the context."""
    encoder, width = model.encoder, batch.item_ids.shape[1]
    history = model.history(batch)
    seen, at = encoder.observe(history), idnp.asked_days_of(history)
    context = (torch.arange(width) < known).expand(len(batch), 1, width)
    place = torch.full((len(batch), 1), width - 2)
    hidden = encoder.interest(seen, context, place, at[:, width - 2 : width - 1])[:, 0]
    logits = model.items.score(hidden)[:, 1:]
    return torch.nn.functional.cross_entropy(logits, batch.item_ids[:, -1] - 1).item()


def test_more_context_makes_the_next_item_likelier(trained):
    batch = drifting(500, 9, torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = [negative_log_likelihood(trained, batch, known) for known in (0, 1, 3, 7)]
    assert found[0] > found[1] > found[2] > found[3] - 0.02 and found[0] - found[3] > 0.2, found


def test_doubt_shrinks_with_what_is_known(trained):
    batch = drifting(300, 9, torch.Generator().manual_seed(3))
    std = [
        trained.recommend_with_uncertainty(batch.replace(lengths=torch.full((300,), n)), 3, 64).std.mean().item()
        for n in (2, 9)
    ]
    assert std[1] > 0 and std[0] > std[1], std
    latent = [trained.global_interest(batch.replace(lengths=torch.full((300,), n))).std.mean() for n in (1, 2, 9)]
    assert latent[0] == 1 and latent[0] > latent[1] > latent[2], latent


def test_uncertain_lists_leave_out_what_was_seen_and_are_probabilities(trained):
    batch = Batch.from_histories([[1, 2, 3], [4, 5, 6, 7]])
    found = trained.recommend_with_uncertainty(batch, 9, 8)
    assert not set(found.item_ids[0].tolist()) & {0, 1, 2, 3}
    assert (found.probability[:, :-1] >= found.probability[:, 1:]).all()
    assert torch.allclose(found.probability[0].sum(), torch.tensor(1.0), atol=1e-5)  # 9 of 12 are left


def test_reliability_finds_a_forecaster_who_knows_and_one_who_boasts():
    draw = np.random.default_rng(0)
    stated = draw.random(20000)
    happened = draw.random(20000) < stated
    rows, error = reliability(stated, happened)
    assert error < 0.02 and sum(r.count for r in rows) == 20000
    assert reliability(np.sqrt(stated), happened)[1] > 0.1


def test_other_encoders_and_wrong_options_are_refused():
    with pytest.raises(ValueError, match="NeuralProcess trains an IDNPEncoder, not SASRecEncoder"):
        SASRec(12, hidden_size=8, max_length=9, objective=idnp.NeuralProcess()).loss(batch_of())
    with pytest.raises(ValueError, match="distance 'l1' is unknown; choose wasserstein, kl"):
        idnp.NeuralProcess(distance="l1")
    with pytest.raises(ValueError, match="query_time 'now' is unknown"):
        idnp.IDNP(12, query_time="now")


def factory(num_items, max_length):
    return idnp.IDNP(num_items, hidden_size=32, dropout=0.0, optimizer=AdamW(learning_rate=1e-2))


@pytest.mark.parametrize("check", testing.applicable_checks(factory(20, 10)), ids=lambda c: c.__name__)
def test_it_keeps_the_contract_of_a_recommender(check):
    check(partial(factory))


def test_it_is_exported_with_its_windows_and_without_what_is_padding():
    testing.check_export(lambda n, m: idnp.IDNP(n, 16))


# from YAML


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path / "cache"))
    log = testing.toy_log(num_users=40, min_length=6).write_csv(tmp_path / "purchases.csv")
    (tmp_path / "timeless.csv").write_text(
        "\n".join(",".join(row.split(",")[:2]) for row in log.read_text().splitlines())
    )
    narrow = ["--model.hidden_size", "16", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
    return [*narrow, "--data.source", "file", "--data.path"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_and_is_tested(path, toy):
    assert main(["fit", "--config", str(path), "--run_folder", "run", *toy, "purchases.csv"]) == 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    assert "test/ndcg@10" in json.loads(Path("run/results.json").read_text())["metrics"]
    recipe = yaml.safe_load(path.read_text())
    assert recipe["model"]["class_path"] == "IDNP" and recipe["data"]["with_times"]
    assert recipe["data"]["source"] == path.stem.replace("idnp", "amazon")


def test_a_log_without_times_is_told_what_to_leave_out_and_then_trains(toy, capsys):
    timeless = ["fit", "--config", str(CONFIGS[0]), *toy, "timeless.csv"]
    assert main(timeless) == 2
    assert "this one has none: set it to false" in " ".join(capsys.readouterr().err.split())
    assert main([*timeless, "--data.with_times", "false"]) == 0
