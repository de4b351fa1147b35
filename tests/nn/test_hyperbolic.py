"""Points lie on the hyperboloid, distances are distances, and gradients are finite."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightrec.nn.hyperbolic import (
    CAP,
    Curvature,
    cap_norm,
    distance,
    distance_power,
    item_rows,
    lift,
    minkowski,
    state_rows,
)
from lightrec.ops.hyperbolic_selective_scan import exp0, log0

KAPPAS = [1e-3, 0.1, 1.0, 10.0]
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vectors(radius, kappa=1.0, dtype=torch.float64, rows=12, dim=6):
    """Random directions with sqrt(kappa)|v| = radius."""
    v = torch.randn(rows, dim, dtype=torch.float64)
    return (v / v.norm(dim=-1, keepdim=True) * radius / math.sqrt(kappa)).to(dtype)


def chord(x, y, kappa):
    return (state_rows(x, kappa) * item_rows(y, kappa)).sum(-1)


def close(a, b, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.5, 2.0, 5.0])
def test_points_lie_on_the_hyperboloid(kappa, radius):
    for dtype in (torch.float64, torch.float32):
        point = lift(exp0(vectors(radius, kappa, dtype), kappa), kappa)
        off = (kappa * minkowski(point, point) + 1).abs()
        # what is left over is the rounding of x_0^2, which grows with the point
        assert (off <= 8 * torch.finfo(dtype).eps * (kappa * point[..., 0] ** 2 + 1)).all()
        if dtype == torch.float64:
            assert (off < 1e-9).all()


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("radius", [1e-4, 0.5, 2.0, 5.0])
def test_the_maps_are_inverse_and_the_distance_to_the_origin_is_the_length(kappa, radius):
    v = vectors(radius, kappa)
    x = exp0(v, kappa)
    close(log0(x, kappa), v)
    close(distance(torch.zeros_like(x), x, kappa), v.norm(dim=-1))
    close(distance_power(chord(torch.zeros_like(x), x, kappa), kappa, 1), v.norm(dim=-1))


@pytest.mark.parametrize("kappa", KAPPAS)
def test_all_forms_of_the_distance_agree(kappa):
    x, y = exp0(vectors(1.5, kappa), kappa), exp0(vectors(0.7, kappa), kappa)
    textbook = torch.acosh(-kappa * minkowski(lift(x, kappa), lift(y, kappa))) / math.sqrt(kappa)
    close(distance(x, y, kappa), textbook)
    close(distance_power(chord(x, y, kappa), kappa, 1), textbook)
    close(distance_power(chord(x, y, kappa), kappa, 2), textbook.square())


@pytest.mark.parametrize("radius", [1.0, 4.0, 8.0])
def test_the_chord_keeps_near_points_apart_in_float32_where_the_textbook_form_does_not(radius):
    v = vectors(radius, rows=200, dim=64)
    w = v + vectors(0.05, rows=200, dim=64)
    # both start from the same float32 points, so that only the distance is judged
    x, y = exp0(v, 1.0).float(), exp0(w, 1.0).float()
    exact = distance(x.double(), y.double(), 1.0)
    off = ((distance(x, y, 1.0).double() - exact) / exact).abs().max()
    textbook = torch.acosh((-minkowski(lift(x, 1.0), lift(y, 1.0))).clamp_min(1.0))
    off_textbook = ((textbook.double() - exact) / exact).abs().max()
    assert off < 2e-5 and off_textbook > 5 * off


@pytest.mark.parametrize("kappa", KAPPAS)
def test_a_distance_is_symmetric_and_keeps_the_triangle_inequality(kappa):
    x, y, z = (exp0(vectors(1.0, kappa, rows=100) * torch.rand(100, 1, dtype=torch.float64) * 4, kappa) for _ in "xyz")
    close(distance(x, y, kappa), distance(y, x, kappa))
    assert (distance(x, z, kappa) <= distance(x, y, kappa) + distance(y, z, kappa) + 1e-9).all()
    assert not distance(x, x, kappa).any()


def test_flat_space_is_the_limit_and_no_special_case():
    x, y = torch.randn(20, 6), torch.randn(20, 6)
    flat = (x - y).square().sum(-1)
    for kappa in (0.0, 1e-12, 1e-6):
        close(distance_power(chord(x, y, kappa), kappa, 2), flat, rtol=1e-5, atol=1e-5)
        close(distance(x, y, kappa), flat.sqrt(), rtol=1e-5, atol=1e-5)
    x, y = x.double(), y.double()
    off = [(distance(x, y, k) - (x - y).norm(dim=-1)).abs().max() for k in (1e-4, 1e-6)]
    assert 80 < off[0] / off[1] < 125  # linear in kappa


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kappa", [1e-4, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("q", [1e-3, 0.5, 30.0])
def test_powers_of_the_distance_pass_gradcheck_in_the_chord_and_in_curvature(power, kappa, q):
    q = torch.tensor([q, 2 * q], dtype=torch.float64, requires_grad=True)
    k = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k: distance_power(q, k, power), (q, k), eps=1e-8, atol=1e-5)


def test_the_slope_in_curvature_joins_its_series():
    for dtype, switch, tolerance in ((torch.float64, 1e-3, 1e-9), (torch.float32, 2e-2, 2e-5)):
        q = torch.tensor([switch * 0.999, switch * 1.001], dtype=dtype)
        k = torch.ones((), dtype=dtype, requires_grad=True)
        slopes = [torch.autograd.grad(distance_power(p, k, 2), k)[0] / p**2 for p in q]
        assert abs(slopes[0] - slopes[1] - 8 / 45 * (q[0] - q[1])) < tolerance


def test_gradients_are_finite_where_points_meet_and_in_flat_space():
    for kappa in (0.0, 1.0):
        for power in (1, 2):
            q = torch.tensor([0.0, -1e-8, 1e-20], requires_grad=True)
            k = torch.tensor(kappa, requires_grad=True)
            distance_power(q, k, power).sum().backward()
            assert q.grad.isfinite().all() and k.grad.isfinite()
            if power == 2:
                close(q.grad, torch.full((3,), 2.0), rtol=1e-6)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    distance(x, x.detach(), 1.0).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.0799, 0.0801, 1.0, 8.0, 20.0])
def test_the_way_from_vectors_to_squared_distance_passes_gradcheck(radius):
    """At zero, where both points are one, around the switch of the series, and at the cap and beyond."""
    v = vectors(radius, rows=2, dim=3).requires_grad_()
    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def squared(v, k):
        x = exp0(cap_norm(v, k), k)
        return distance_power(chord(x, exp0(vectors(0.3, rows=2, dim=3), k), k), k, 2)

    def one_place(v, k):
        torch.manual_seed(3)
        return squared(v, k)

    assert torch.autograd.gradcheck(one_place, (v, k), eps=1e-6, atol=1e-5)
    same = exp0(cap_norm(v, k), k)
    (grad,) = torch.autograd.grad(distance_power(chord(same, same.detach(), k), k, 2).sum(), v)
    assert grad.isfinite().all() and grad.abs().max() < 1e-3


def test_the_cap_is_a_bound_that_keeps_directions_order_and_gradients():
    direction = vectors(1.0, rows=1, dtype=torch.float32)
    for kappa in KAPPAS:
        v = direction * torch.tensor([[1e-3], [1.0], [6.0], [20.0], [60.0]]) / math.sqrt(kappa)
        v.requires_grad_()
        capped = cap_norm(v, kappa)
        radii = capped.norm(dim=-1) * math.sqrt(kappa)
        assert (radii <= CAP * (1 + 1e-6)).all() and (radii.diff() >= 0).all()
        close(F.cosine_similarity(v, capped), torch.ones(5), rtol=1e-5)
        close(radii[0], torch.tensor(1e-3), rtol=1e-5)
        (grad,) = torch.autograd.grad(exp0(capped, kappa).square().sum(), v)
        assert grad.isfinite().all()
    v = torch.randn(3, 4)
    assert torch.equal(cap_norm(v, 0.0), v)


def test_curvature_is_learned_by_its_softplus_or_stays_what_it_is():
    for kappa in (1e-4, 0.1, 1.0, 30.0):
        assert math.isclose(Curvature(kappa)().item(), kappa, rel_tol=1e-3)
        fixed = Curvature(kappa, learn=False)
        assert fixed().item() == torch.tensor(kappa).item() and not list(fixed.parameters()) and not fixed.state_dict()
    assert Curvature(0.0, learn=False)().item() == 0
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            Curvature(wrong)
    with pytest.raises(ValueError, match="positive if it is learned"):
        Curvature(0.0)
