"""HMamba: its limits, what it shares with Mamba4Rec, streaming, padding, the published variants, and saturation."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import History, total
from lightrec.models.hmamba import (
    HMamba,
    HMambaEncoder,
    HMambaFull,
    HMambaHalf,
    HyperbolicMixer,
    PointNorm,
    ReleasedHyperbolicItems,
)
from lightrec.models.mamba4rec import Mamba4Rec, Mamba4RecEncoder
from lightrec.nn.hyperbolic import Curvature, lift
from lightrec.nn.mamba import MambaMixer
from lightrec.objectives.next_item import NextItem
from lightrec.ops.hyperbolic_selective_scan import exp0
from lightrec.testing import toy_data

FACTORS = ["flat-limit", "paper", "none"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def histories(num_items=30, rows=4, width=12):
    lengths = torch.tensor([width, 5, 1, 9])[:rows]
    ids = torch.randint(1, num_items + 1, (rows, width))
    real = torch.arange(width) < lengths[:, None]
    return Batch(ids.where(real, 0), lengths, torch.arange(rows)), Batch(ids, lengths, torch.arange(rows))


def with_weights_of(model, other):
    """Loads the weights of another model of the same graph; both must have the same names."""
    model.load_state_dict(other.state_dict())
    return model.eval()


def curved(kappa, factor, **options):
    return HMambaEncoder(8, state_size=4, dropout=0.0, factor=factor, kappa=kappa, learn_kappa=False, **options)


def flat(**options):
    """Mamba4Rec's encoder, with weights under which what passes the state is not small beside the skip."""
    encoder = Mamba4RecEncoder(8, state_size=4, dropout=0.0, **options)
    with torch.no_grad():
        for layer in encoder.layers:
            layer.mixer.x_proj.weight.mul_(4)
            layer.mixer.dt_proj.bias.normal_()
    return encoder


X = torch.randn(3, 15, 8, generator=torch.Generator().manual_seed(7))
HISTORY = History(X, torch.tensor([15, 15, 15]))


@pytest.mark.parametrize("kappa", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_without_a_factor_the_encoder_is_that_of_mamba4rec_at_every_curvature(kappa, num_layers):
    euclidean = flat(num_layers=num_layers)
    encoder = with_weights_of(curved(kappa, "none", num_layers=num_layers), euclidean)
    assert torch.equal(encoder(HISTORY), euclidean(HISTORY))


@pytest.mark.parametrize("factor, kappa", [("paper", 1.0), ("flat-limit", 0.0)])
def test_where_the_factor_is_one_the_encoder_is_bitwise_that_of_mamba4rec(factor, kappa):
    euclidean = flat()
    assert torch.equal(with_weights_of(curved(kappa, factor), euclidean)(HISTORY), euclidean(HISTORY))


@pytest.mark.parametrize("factor, kappa", [("paper", 0.1), ("paper", 10.0), ("flat-limit", 10.0)])
def test_elsewhere_the_factor_changes_the_encoder(factor, kappa):
    euclidean = flat()
    out = with_weights_of(curved(kappa, factor), euclidean)(HISTORY)
    assert (out - euclidean(HISTORY)).abs().max() > 1e-3


def test_flat_limit_curvature_fades_to_mamba4rec():
    euclidean = flat()
    off = []
    for kappa in (1e-1, 1e-3):
        out = with_weights_of(curved(kappa, "flat-limit"), euclidean)(HISTORY)
        off.append((out - euclidean(HISTORY)).abs().max())
    assert off[1] < off[0] / 20 and off[1] < 1e-3


def test_under_the_papers_factor_the_first_state_forgets_at_once_as_curvature_fades():
    """Documented, not wanted: K(kappa) sends its rate to infinity in flat space. The other states are left alone."""
    mixer = HyperbolicMixer(4, 3, 1, 1, Curvature(1e-12, False), "paper")
    x, delta = torch.randn(1, 6, 4), torch.zeros(1, 6, 4)
    ones = torch.ones(1, 6, 3)
    _, state = mixer.scan(
        x, delta, -torch.ones(4, 3), ones, ones, torch.zeros(4), None, torch.zeros(4), None, True, None
    )
    last = F.softplus(torch.zeros(4)) * x[0, -1]
    assert torch.allclose(state[0, :, 0], last) and not torch.allclose(state[0, :, 1], last)


@pytest.mark.parametrize("kappa", [0.25, 4.0])
def test_the_rates_absorb_the_papers_factor(kappa):
    """A fixed K(kappa) adds nothing that training could not: it only begins elsewhere."""
    encoder, at_one = curved(kappa, "paper"), curved(1.0, "paper")
    weights = encoder.state_dict()
    weights["layers.0.mixer.A_log"] = weights["layers.0.mixer.A_log"].clone()
    weights["layers.0.mixer.A_log"][:, 0] -= 0.5 * torch.tensor(kappa).log()
    at_one.load_state_dict(weights)
    assert torch.allclose(encoder(HISTORY), at_one(HISTORY), atol=1e-6)


def test_curvature_to_zero_gives_squared_euclidean_distances_as_logits():
    for kappa, tolerance in ((1e-2, 0.1), (1e-6, 1e-4)):
        torch.manual_seed(1)
        model = HMamba(30, hidden_size=8, state_size=4, kappa=kappa, temperature=0.7, factor="none").eval()
        batch, _ = histories()
        hidden, v = model.query(batch), model.items.embedding.weight[1:]
        expected = -(hidden[:, None] - v).square().sum(-1) / 0.7
        assert (model.items.score(hidden)[:, 1:] - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("inputs", ["tangent", "points", "normed-points"])
def test_going_on_event_by_event_equals_the_full_pass(factor, inputs):
    encoder = HMambaEncoder(8, state_size=4, factor=factor, inputs=inputs, kappa=0.3, dropout=0.5).eval()
    entered = encoder.enter(HISTORY).x
    state, steps = encoder.init_state(3), []
    for t in range(15):
        hidden, state = encoder.step(entered[:, t], state)
        steps.append(hidden)
    assert torch.allclose(torch.stack(steps, 1), encoder(HISTORY), atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_what_comes_later_changes_nothing_before_to_the_bit(factor):
    encoder, changed = curved(0.3, factor, num_layers=2), X.clone()
    changed[:, 9:] = 50 * torch.randn(3, 6, 8)
    before, after = encoder(HISTORY), encoder(HISTORY._replace(x=changed))
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.allclose(before[:, 9:], after[:, 9:])


MODELS = [
    *[(HMamba, dict(factor=factor, kappa=0.3)) for factor in FACTORS],
    (HMamba, dict(power=1, num_layers=2)),
    *[(kind, dict(fidelity=fidelity)) for kind in (HMambaFull, HMambaHalf) for fidelity in ("released", "paper")],
]
every_model = pytest.mark.parametrize(
    "kind, options", MODELS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v)
)


@every_model
def test_padding_changes_no_query_to_the_bit_and_its_last_state_is_that_of_the_full_pass(kind, options):
    model = kind(30, hidden_size=8, state_size=4, **options).eval()
    padded, junk = histories()
    assert torch.equal(model.query(padded), model.query(junk))
    full = model.encode(padded)[torch.arange(4), padded.lengths - 1]
    assert torch.allclose(model.query(padded), full, atol=1e-6)


@every_model
def test_the_scorer_gives_the_same_twice_and_changes_nothing(kind, options):
    """The released scorer flips the sign of a coordinate of its argument."""
    model = kind(30, hidden_size=8, state_size=4, **options).eval()
    batch, _ = histories()
    hidden = model.query(batch)
    before = hidden.clone()
    first = model.items.score(hidden)
    assert torch.equal(first, model.items.score(hidden)) and torch.equal(hidden, before)
    one_each = model.items.score(hidden, torch.tensor([[3], [1], [30], [2]]))
    assert one_each.shape == (4, 1)  # the released `predict` of Half gives B x B
    assert torch.allclose(one_each[:, 0], first[torch.arange(4), torch.tensor([3, 1, 30, 2])], rtol=1e-5, atol=1e-6)


@every_model
def test_every_parameter_learns_from_the_loss(kind, options):
    model = kind(30, hidden_size=8, state_size=4, **options)
    batch, _ = histories()
    batch = batch.rows(torch.tensor([0, 1, 3]))
    total(model.loss(batch)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_items_scan_and_score_share_one_curvature():
    model = HMamba(30, hidden_size=8, state_size=4)
    assert model.encoder.layers[0].mixer.curvature is model.items.curvature is model.encoder.curvature
    assert sum(name.endswith("rho") for name, _ in model.named_parameters()) == 1
    assert HMamba(30, learn_kappa=False, kappa=0.0).items.curvature() == 0  # flat space is a model too


def test_the_first_curvature_puts_normed_states_at_radius_two_whatever_the_width():
    for size in (8, 64, 256):
        items = HMamba(30, hidden_size=size, state_size=4).items
        radius = (items.curvature() * size).sqrt()  # of a state sqrt(D) long
        assert abs(radius - 2) < 1e-3
    assert abs(HMamba(30, hidden_size=8, kappa=0.3).items.curvature() - 0.3) < 1e-4


def test_half_of_the_listing_is_mamba4rec_to_the_letter():
    """Taken literally, the Half branch of the paper's algorithm has no hyperbolic operation."""
    mamba = Mamba4Rec(30, hidden_size=8, state_size=4, fidelity="released").eval()
    half = with_weights_of(HMambaHalf(30, hidden_size=8, state_size=4, fidelity="paper"), mamba)
    batch, _ = histories()
    assert torch.equal(half.items.score(half.query(batch)), mamba.items.score(mamba.query(batch)))
    assert torch.equal(total(half.loss(batch.rows(slice(2)))), total(mamba.loss(batch.rows(slice(2)))))


def released_score(h, e):
    """The published formula on coordinates: h [B, 1 + D], e [V, 1 + D]."""
    angle = (h[:, :1] * e[:, 0] - h[:, 1:] @ e[:, 1:].T).clamp(1 + 1e-7, 10.0)
    return -2 - 2 * (angle + (angle.square() - 1).sqrt()).log().square().clamp_max(30.0)


def test_full_as_released_is_the_published_formulas():
    model = HMambaFull(30, hidden_size=8, state_size=4).eval()
    with torch.no_grad():
        model.items.embedding.weight[1:] += 0.3 * torch.randn(30, 8)  # so that some products are beyond the clip
    batch, _ = histories()
    e = model.items.embedding.weight
    norm = e.norm(dim=-1, keepdim=True).clamp_min(1e-15)
    points = torch.cat([norm.cosh(), norm.sinh() * e / norm], -1)
    x = F.layer_norm(points[batch.item_ids], (9,), eps=1e-12)
    layer = model.encoder.layers[0]
    y = F.layer_norm(MambaMixer.forward(layer.mixer, x), (8,), eps=1e-12)
    y = F.layer_norm(layer.feed_forward(y) + y, (8,), eps=1e-12)
    out = y[torch.arange(4), batch.lengths - 1]
    h = torch.cat([(1 + out.square().sum(-1, keepdim=True)).sqrt(), out], -1)
    expected = released_score(h, points[1:])
    scores = model.items.score(model.query(batch))[:, 1:]
    assert torch.allclose(scores, expected, atol=1e-4)
    assert (scores == scores.min()).any() and scores.min() > -19.95 and scores.max() <= -2


def test_the_fused_loss_of_full_as_released_is_that_of_its_scores():
    items = ReleasedHyperbolicItems(50, 8)
    with torch.no_grad():
        items.embedding.weight[1:] = 0.6 * torch.randn(50, 8)
    hidden, targets = torch.randn(20, 8, requires_grad=True), torch.randint(1, 51, (20,))
    assert 0.1 < items.saturated(hidden) < 0.9
    fused = items.cross_entropy(hidden, targets)
    plain = F.cross_entropy(items.score(hidden)[:, 1:], targets - 1, reduction="sum")
    torch.testing.assert_close(fused, plain)
    parts = hidden, items.embedding.weight
    for a, b in zip(torch.autograd.grad(fused, parts), torch.autograd.grad(plain, parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_full_as_released_draws_its_items_to_the_origin():
    model = HMambaFull(30, hidden_size=8, state_size=4, dropout=0.0)
    batch, _ = histories()
    batch = batch.rows(torch.tensor([0, 1, 3]))
    inputs = batch.item_ids[:, :-1]
    pull = lift(exp0(model.items(inputs), 1.0), 1.0).norm(dim=-1).mean()  # padding is the origin, of norm 1
    plain = total(NextItem()(model, batch))
    assert torch.allclose(total(model.loss(batch)), plain + pull, atol=1e-5)
    assert torch.allclose(total(PointNorm()(model, batch)), pull)
    without = HMambaFull(30, hidden_size=8, state_size=4, norm_reg=0.0)
    assert isinstance(without.objective, NextItem)


def test_full_as_released_begins_as_published():
    model = HMambaFull(3416, hidden_size=64, state_size=32)
    table = model.items.embedding.weight
    assert abs(table.abs().max() - (6 / (3417 + 64)) ** 0.5) < 1e-3 and not table[0].any()
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            assert not module.bias.any()
    assert model.encoder.layers[0].mixer.in_proj.weight.shape == (256, 65)
    # The norm over all coordinates leaves an almost constant vector: the time part is 40 times the spread of the rest.
    x = model.encoder.eval().enter(History(table[1:101, None], torch.ones(100))).x[:, 0]
    assert 7.7 < x[:, 0].mean() < 8.0 and x[:, 1:].std() < 0.25
    assert F.cosine_similarity(x[:50], x[50:]).mean() > 0.95


def test_full_of_the_listing_reads_points_and_scores_by_distance():
    model = HMambaFull(30, hidden_size=8, state_size=4, fidelity="paper", kappa=0.5).eval()
    batch, _ = histories()
    x = model.encoder.enter(model.history(batch)).x
    off = -x[..., 0].square() + x[..., 1:].square().sum(-1) + 2.0  # <x, x> = -1 / kappa
    assert x.shape[-1] == 9 and off.abs().max() < 1e-5
    hidden = model.query(batch)
    h, e = lift(hidden, 0.5), lift(model.items.points(), 0.5)
    inner = h[:, 1:] @ e[:, 1:].T - h[:, :1] * e[:, 0]
    expected = -2 * 2**0.5 * torch.acosh(-0.5 * inner)
    assert torch.allclose(model.items.score(hidden)[:, 1:], expected, atol=1e-3)
    assert model.encoder.layers[0].mixer.factor == "paper"


def test_half_as_released_takes_states_to_tangent_vectors_before_its_inner_product():
    model = HMambaHalf(30, hidden_size=8, state_size=4).eval()
    hidden = torch.randn(3, 8)
    hidden = hidden / hidden.norm(dim=-1, keepdim=True) * torch.tensor([[0.5], [8.0], [20.0]])
    radius = torch.tensor([[0.5], [8.0], [20.0]])
    length = torch.acosh((1 + radius.square()).sqrt())
    tangent = hidden / radius.clamp_max(10.0) * length  # beyond 10 it is twice as long as it should be
    expected = tangent @ model.items.embedding.weight[1:].T
    assert torch.allclose(model.items.score(hidden)[:, 1:], expected, atol=1e-5)
    assert model.items.score(torch.zeros(1, 8))[:, 1:].abs().max() == 0
    assert 0.015 < model.items.embedding.weight[1:].std() < 0.025


def test_the_clip_of_the_released_score_saturates_and_the_default_never_does():
    """With states of norm 8, as a norm over 64 coordinates gives, growing items lose their gradients."""
    hidden = F.normalize(torch.randn(40, 64), dim=-1) * 8
    shares = []
    for norm in (0.19, 0.57, 0.77, 0.96):
        released = ReleasedHyperbolicItems(500, 64)
        default = HMamba(500).items
        for items in (released, default):
            with torch.no_grad():
                items.embedding.weight[1:] = F.normalize(torch.randn(500, 64), dim=-1) * norm
        shares.append(released.saturated(hidden).item())
        assert default.saturated(hidden) == 0
    assert shares[0] < 0.01 and 0.1 < shares[1] < 0.3 and 0.6 < shares[2] < 0.85 and shares[3] > 0.9


def test_the_released_full_is_refused_at_widths_at_which_nothing_has_a_gradient():
    hidden = F.layer_norm(torch.randn(20, 128), (128,))
    assert ReleasedHyperbolicItems(200, 128).saturated(hidden) > 0.99
    with pytest.raises(InputError, match=r"hidden_size \(128\): from 99 on"):
        HMambaFull(200, hidden_size=128)
    HMambaFull(200, hidden_size=128, fidelity="paper")


@pytest.mark.parametrize("kind", [HMamba, HMambaFull])
def test_training_logs_the_share_of_saturated_logits(kind, tmp_path):
    data = toy_data(tmp_path, max_length=10)
    model = kind(data.num_items, hidden_size=8, state_size=4)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=data)
    share = trainer.callback_metrics["train/saturated_logits"]
    assert 0 <= share <= 1 and (kind is HMambaFull or share < 0.01)


@pytest.mark.parametrize("options", [dict(), dict(power=1, temperature=0.25)])
def test_the_first_loss_is_that_of_chance(options):
    model = HMamba(5000, dropout=0.0, **options)
    batch = Batch(torch.randint(1, 5001, (32, 9)), torch.full((32,), 9), torch.arange(32))
    assert abs(total(model.loss(batch)).item() - torch.tensor(5000.0).log()) < 0.1


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="factor 'other' is unknown; choose flat-limit, paper, none"):
        HMamba(9, factor="other")
    with pytest.raises(ValueError, match="inputs 'other' is unknown; choose tangent, points, normed-points"):
        HMambaEncoder(8, inputs="other")
    with pytest.raises(ValueError, match="one layer, got num_layers"):
        HMambaEncoder(8, num_layers=2, inputs="points")
    with pytest.raises(ValueError, match=r"num_layers \(0\)"):
        HMamba(9, num_layers=0)
    with pytest.raises(ValueError, match="fidelity 'ours' is unknown; choose released, paper"):
        HMambaHalf(9, fidelity="ours")
    with pytest.raises(InputError, match="curvature 1 only, got kappa=0.5"):
        HMambaFull(9, kappa=0.5)
