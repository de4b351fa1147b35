"""The maps are inverse and differentiable everywhere; the factor rules meet the Euclidean scan where they say."""

import math

import pytest
import torch

from lightrec.ops.hyperbolic_selective_scan import exp0, hyperbolic_selective_scan, log0
from lightrec.ops.selective_scan import selective_scan
from lightrec.testing.kernels import relative_error, scan_inputs

# a round trip rounds twice
ROUND_TRIP_TOLERANCE = 1e-6


def vectors(radius, dtype=torch.float32, rows=7, dim=16):
    v = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (v / v.norm(dim=-1, keepdim=True) * radius).to(dtype)


@pytest.mark.parametrize("radius", [0.0, 1e-6, 1e-3, 0.05, 0.1, 1.0, 4.0, 10.0, 30.0])
@pytest.mark.parametrize("kappa", [1e-3, 0.5, 1.0])
def test_log_undoes_exp(radius, kappa):
    v = vectors(radius)
    back = log0(exp0(v, kappa), kappa)
    assert torch.equal(back, v) if radius == 0 else relative_error(back, v) < ROUND_TRIP_TOLERANCE


@pytest.mark.parametrize("radius", [1e-4, 0.099, 0.101, 0.99, 1.01, 5.0])
def test_the_maps_equal_their_definitions_in_float64(radius):
    v = vectors(radius, torch.float64)
    torch.testing.assert_close(exp0(v, 1.0), v * math.sinh(radius) / radius, rtol=1e-13, atol=0)
    torch.testing.assert_close(log0(v, 1.0), v * math.asinh(radius) / radius, rtol=1e-13, atol=0)


def test_flat_space_leaves_vectors_alone():
    v = vectors(3.0)
    assert torch.equal(exp0(v, 0.0), v) and torch.equal(log0(v, 0.0), v)


@pytest.mark.parametrize("function", [exp0, log0])
@pytest.mark.parametrize("kappa", [1e-6, 0.5, 2.0])
@pytest.mark.parametrize("radius", [0.0, 0.05, 0.8, 2.0])
def test_maps_pass_gradcheck(function, kappa, radius):
    v = vectors(radius, torch.float64, rows=2, dim=3).requires_grad_()
    k = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    # kappa is stepped by less than its size, so that it stays positive
    assert torch.autograd.gradcheck(function, (v, k), eps=1e-7, atol=1e-6)


def test_the_gradient_at_the_origin_is_one():
    v = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(exp0(v, 1.0).sum(), v)
    assert torch.equal(grad, torch.ones_like(v))


def test_only_scale_and_curvature_together_matter():
    v = vectors(2.0, torch.float64)
    torch.testing.assert_close(exp0(v, 4.0), exp0(2 * v, 1.0) / 2)


@pytest.mark.parametrize("factor,kappa", [("paper", 1.0), ("flat-limit", 0.0), ("none", 3.0)])
@pytest.mark.parametrize("kernel", ["reference", "torch"])
def test_the_scan_is_bitwise_euclidean_where_its_rule_says(factor, kappa, kernel):
    i = scan_inputs(2, 9, 5, 4)
    flat = selective_scan(**i, kernel=kernel)
    assert torch.equal(hyperbolic_selective_scan(**i, kappa=kappa, factor=factor, kernel=kernel), flat)


def test_the_flat_limit_is_reached_linearly():
    i = scan_inputs(2, 9, 5, 4, dtype=torch.float64)
    flat = selective_scan(**i)
    off = [relative_error(hyperbolic_selective_scan(**i, kappa=k), flat) for k in (1e-4, 1e-6)]
    assert 50 < off[0] / off[1] < 200


def test_a_rate_absorbs_the_papers_factor():
    i = scan_inputs(2, 9, 5, 4, dtype=torch.float64)
    absorbed = i["A"] * torch.tensor([4.0**-0.5, 1, 1, 1], dtype=torch.float64)
    curved = hyperbolic_selective_scan(**i, kappa=4.0, factor="paper")
    torch.testing.assert_close(curved, hyperbolic_selective_scan(**(i | {"A": absorbed}), factor="paper"))


@pytest.mark.parametrize("factor", ["paper", "flat-limit"])
@pytest.mark.parametrize("maps", [False, True])
def test_every_gradient_and_that_of_curvature_pass_gradcheck(factor, maps):
    tensors = [t.requires_grad_() for t in scan_inputs(1, 3, 2, 2, dtype=torch.float64).values()][:8]
    kappa = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def scan(*args):
        return hyperbolic_selective_scan(*args, factor=factor, map_input=maps, map_output=maps)

    assert torch.autograd.gradcheck(scan, (*tensors, kappa))


@pytest.mark.parametrize("kappa", [-1.0, float("nan"), float("inf"), torch.tensor(-0.1)])
def test_a_curvature_that_makes_no_sense_is_refused(kappa):
    with pytest.raises(ValueError, match="must be finite and not negative"):
        hyperbolic_selective_scan(**scan_inputs(1, 2, 3, 2), kappa=kappa)
    for function in (exp0, log0):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            function(vectors(1.0), kappa)


def test_an_unknown_factor_and_a_vector_of_curvatures_are_refused():
    with pytest.raises(ValueError, match="must be one of paper, flat-limit, none"):
        hyperbolic_selective_scan(**scan_inputs(1, 2, 3, 2), factor="printed")
    with pytest.raises(ValueError, match="must be a scalar"):
        hyperbolic_selective_scan(**scan_inputs(1, 2, 3, 2), kappa=torch.ones(3))
    with pytest.raises(TypeError, match="must be floating, got torch.int64"):
        exp0(torch.ones(2, 3, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match="paper.*positive"):
        hyperbolic_selective_scan(**scan_inputs(1, 2, 3, 2), kappa=0.0, factor="paper")


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"A": torch.zeros(5)}, ValueError, r"A \[D, N\], got"),
        ({"A": torch.zeros(5, 3, dtype=torch.int64)}, TypeError, "A must be floating"),
        ({"A": torch.zeros(5, 3, device="meta")}, ValueError, "A is on meta, x on cpu"),
        ({"A": torch.full((5, 3), 0.5)}, ValueError, "must not be above zero"),
        ({"x": torch.zeros(2, 5)}, ValueError, r"expected x \[B, L, D\]"),
        ({"x": torch.zeros(2, 9, 5, dtype=torch.int64)}, TypeError, "x must be floating"),
        ({"resets": torch.zeros(2, 9)}, TypeError, "resets must be bool"),
        ({"kernel": "nonsense"}, ValueError, "no kernel 'nonsense' for selective_scan"),
    ],
)
@pytest.mark.parametrize("map_input", [False, True])
def test_inputs_that_do_not_fit_are_refused_as_by_the_scan(change, error, words, map_input):
    with pytest.raises(error, match=words):
        hyperbolic_selective_scan(**(scan_inputs(2, 9, 5, 3) | change), map_input=map_input)


@pytest.mark.parametrize("factor", ["paper", "flat-limit", "none"])
def test_with_maps_a_packed_row_equals_its_sequences_apart_and_a_scan_goes_on_from_its_state(factor):
    i = scan_inputs(1, 12, 5, 4) | {"initial_state": None}
    options = dict(kappa=0.7, factor=factor, map_input=True, map_output=True, return_final_state=True)

    def scan(start, stop, **given):
        part = {n: t[:, start:stop] if n in ("x", "delta", "B", "C", "z") else t for n, t in i.items()}
        return hyperbolic_selective_scan(**(part | given), **options)

    first, state = scan(0, 5)
    second, end = scan(5, 12)
    resets = torch.zeros(1, 12, dtype=torch.bool)
    resets[0, 5] = True
    packed, final = scan(0, 12, resets=resets)
    assert relative_error(packed, torch.cat([first, second], 1)) < ROUND_TRIP_TOLERANCE
    assert relative_error(final, end) < ROUND_TRIP_TOLERANCE
    whole, last = scan(0, 12)
    rest, again = scan(5, 12, initial_state=state)
    assert relative_error(torch.cat([first, rest], 1), whole) < ROUND_TRIP_TOLERANCE
    assert relative_error(again, last) < ROUND_TRIP_TOLERANCE
    assert relative_error(packed, whole) > 1e-3  # the reset did something


def test_autocast_keeps_the_scan_and_its_maps_in_float32():
    i = scan_inputs(2, 9, 5, 3)

    def scan():
        kappa = torch.tensor(0.7, requires_grad=True)
        out = hyperbolic_selective_scan(**i, kappa=kappa, map_input=True, map_output=True)
        return out, torch.autograd.grad(out.square().sum(), kappa)[0]

    plain = scan()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(scan(), plain, strict=True))


def test_a_compiled_graph_is_whole_and_agrees():
    i = scan_inputs(2, 6, 4, 3)
    kappa = torch.tensor(0.5)

    def scan(x):
        return hyperbolic_selective_scan(**(i | {"x": x}), kappa=kappa, map_input=True, map_output=True)

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")(i["x"])
    assert relative_error(compiled, scan(i["x"])) < ROUND_TRIP_TOLERANCE
