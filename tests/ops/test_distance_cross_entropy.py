"""The fused loss equals the textbook one, in value and in every gradient, at any block size and curvature."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.ops import distance_cross_entropy as module
from lightrec.ops.distance_cross_entropy import distance_cross_entropy


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def inputs(dtype=torch.float64, rows=7, classes=11, width=5, kappa=0.7):
    """Factors whose products are positive, as chords are."""
    x, y = torch.rand(rows, width, dtype=dtype), torch.rand(classes, width, dtype=dtype)
    scalars = torch.tensor(kappa, dtype=dtype), torch.tensor(-0.4, dtype=dtype)
    return [t.requires_grad_() for t in (x, y, *scalars)], torch.randint(0, classes, (rows,))


def textbook(x, y, kappa, log_temperature, targets, power):
    d = torch.acosh(1 + kappa * (x @ y.T)) / kappa.sqrt()
    return F.cross_entropy(-(d**power) / log_temperature.exp(), targets, reduction="sum")


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kappa", [1e-3, 0.7, 20.0])
@pytest.mark.parametrize("block_rows", [1, 3, 7, None])
def test_value_and_gradients_are_those_of_the_textbook(power, kappa, block_rows, monkeypatch):
    monkeypatch.setattr(module, "_TILE", 4)  # so that tiles do not divide the catalog
    parts, targets = inputs(kappa=kappa)
    fused = distance_cross_entropy(*parts[:2], targets, *parts[2:], power, None, block_rows)
    plain = textbook(*parts, targets, power)
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(2 * fused, parts), torch.autograd.grad(2 * plain, parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_it_passes_gradcheck(power):
    parts, targets = inputs(rows=3, classes=4)
    assert torch.autograd.gradcheck(
        lambda x, y, k, t: distance_cross_entropy(x, y, targets, k, t, power, None, 2), parts
    )


def test_flat_space_is_the_squared_euclidean_distance():
    (x, y, _, t), targets = inputs(torch.float32)
    loss = distance_cross_entropy(x, y, targets, torch.tensor(0.0), t, 2)
    expected = F.cross_entropy(-2 * (x @ y.T) / t.exp(), targets, reduction="sum")
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(loss, (x, y, t)), torch.autograd.grad(expected, (x, y, t))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_chords_that_rounding_made_zero_or_negative_give_finite_gradients():
    for power in (1, 2):
        x = torch.tensor([[1.0, 0.0], [1.0, -1e-8]], requires_grad=True)
        y = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
        kappa, t = torch.tensor(1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
        loss = distance_cross_entropy(x, y, torch.tensor([0, 1]), kappa, t, power)
        assert all(g.isfinite().all() for g in (loss, *torch.autograd.grad(loss, (x, y, kappa, t))))


@pytest.mark.parametrize("power", [1, 2])
def test_distances_beyond_the_limit_are_those_at_it_and_have_no_gradient(power):
    (x, y, kappa, t), targets = inputs()
    q = x @ y.T
    limit = 0.69 * q.median().item()
    kappa = kappa.detach()
    d = torch.acosh(1 + (kappa * q).clamp_max(limit)) / kappa.sqrt()
    plain = F.cross_entropy(-(d**power) / t.exp(), targets, reduction="sum")
    fused = distance_cross_entropy(x, y, targets, kappa, t, power, limit, 3)
    torch.testing.assert_close(fused, plain)
    for a, b in zip(torch.autograd.grad(fused, (x, y, t)), torch.autograd.grad(plain, (x, y, t)), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="kappa has no gradient"):
        distance_cross_entropy(x, y, targets, kappa.requires_grad_(), t, power, limit)


def test_float32_is_close_to_float64():
    parts, targets = inputs(torch.float32, rows=40, classes=300)
    exact = [p.detach().double().requires_grad_() for p in parts]
    loss = distance_cross_entropy(*parts[:2], targets, *parts[2:], 2)
    expected = distance_cross_entropy(*exact[:2], targets, *exact[2:], 2)
    assert abs(loss.item() / expected.item() - 1) < 1e-6
    for a, b in zip(torch.autograd.grad(loss, parts), torch.autograd.grad(expected, exact), strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_without_gradients_the_value_is_the_same_and_shapes_are_checked():
    parts, targets = inputs()
    with torch.no_grad():
        quiet = distance_cross_entropy(*parts[:2], targets, *parts[2:], 2)
    assert torch.equal(quiet, distance_cross_entropy(*parts[:2], targets, *parts[2:], 2).detach())
    with pytest.raises(ValueError, match=r"rows \[T, M\]"):
        distance_cross_entropy(parts[0][:, 1:], parts[1], targets, *parts[2:], 2)
    with pytest.raises(ValueError, match="one class for each of 7 rows"):
        distance_cross_entropy(*parts[:2], targets[1:], *parts[2:], 2)
    with pytest.raises(ValueError, match="must be 1 or 2"):
        distance_cross_entropy(*parts[:2], targets, *parts[2:], 3)
    with pytest.raises(ValueError, match="targets reach from 11 to 11; classes are 0..10"):
        distance_cross_entropy(*parts[:2], torch.full_like(targets, 11), *parts[2:], 2)


@pytest.mark.parametrize("kappa", [-0.1, float("nan"), float("inf")])
def test_a_curvature_that_makes_no_sense_is_refused(kappa):
    (x, y, _, t), targets = inputs()
    with pytest.raises(ValueError, match="must be finite and not negative"):
        distance_cross_entropy(x, y, targets, torch.tensor(kappa), t, 2)
