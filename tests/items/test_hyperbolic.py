"""The hyperbolic table scores by distances, and its loss is the loss of its scores."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightrec.items.hyperbolic import HyperbolicItems
from lightrec.nn.hyperbolic import cap_norm, distance
from lightrec.ops.hyperbolic_selective_scan import exp0
from lightrec.search.exact import ExactSearch


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def close(a, b, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def table(**options):
    return HyperbolicItems(9, 6, **({"std": 0.7} | options))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("state", ["tangent", "space"])
@pytest.mark.parametrize("kappa", [0.05, 1.0])
def test_a_score_is_minus_the_distance_of_two_points(power, state, kappa):
    items = table(power=power, state=state, kappa=kappa, temperature=0.3)
    hidden, k = torch.randn(4, 6), items.curvature().detach()
    x = hidden if state == "space" else exp0(cap_norm(hidden, k), k)
    y = exp0(cap_norm(items.embedding.weight[1:], k), k)
    expected = -(distance(x[:, None], y, k) ** power) / 0.3
    scores = items.score(hidden)
    assert scores.shape == (4, 10) and (scores[:, 0] == -torch.inf).all()
    close(scores[:, 1:], expected, rtol=1e-4, atol=1e-4)


def test_candidates_score_as_in_the_catalog_whatever_their_form():
    items = table()
    hidden = torch.randn(2, 3, 6)
    full = items.score(hidden)
    shared = torch.tensor([0, 7, 1, 9])
    close(items.score(hidden, shared), full[..., shared], rtol=1e-5, atol=1e-6)
    own = torch.randint(0, 10, (2, 3, 5))
    close(items.score(hidden, own), full.gather(-1, own), rtol=1e-5, atol=1e-6)
    assert (items.score(hidden, own)[own == 0] == -torch.inf).all()
    ids, scores = ExactSearch()(items, hidden[:, 0], 4, exclude_ids=torch.tensor([[3, 0], [5, 2]]))
    allowed = full[:, 0].clone()
    allowed[0, 3] = allowed[1, 5] = allowed[1, 2] = -torch.inf
    assert torch.equal(ids, allowed.topk(4).indices)
    ids, _ = ExactSearch()(items, hidden[:, 0], 3, candidate_ids=torch.tensor([[4, 6, 0], [1, 2, 3]]))
    assert set(ids[0].tolist()) == {4, 6, 0} and set(ids[1].tolist()) == {1, 2, 3}


def test_in_flat_space_a_squared_distance_is_an_inner_product_with_a_bias_of_each_item():
    items = table(kappa=0.0, learn_kappa=False, temperature=2.0)
    hidden, v = torch.randn(4, 6), items.embedding.weight[1:]
    expected = hidden @ v.T - v.square().sum(-1) / 2 - hidden.square().sum(-1, keepdim=True) / 2
    close(items.score(hidden)[:, 1:], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_the_fused_loss_is_the_loss_of_the_scores_with_all_its_gradients(power):
    items = table(power=power, kappa=0.4).double()
    hidden, targets = torch.randn(5, 6, dtype=torch.float64, requires_grad=True), torch.tensor([1, 9, 4, 4, 2])
    parameters = [hidden, items.embedding.weight, items.curvature.rho, items.log_temperature]
    fused = items.cross_entropy(hidden, targets)
    plain = F.cross_entropy(items.score(hidden)[:, 1:], targets - 1, reduction="sum")
    close(fused, plain)
    for a, b in zip(torch.autograd.grad(fused, parameters), torch.autograd.grad(plain, parameters), strict=True):
        close(a, b)


def test_no_logit_of_the_table_is_saturated_even_far_beyond_the_cap():
    items = table(std=5.0)
    assert items.saturated(100 * torch.randn(8, 6)) == 0


def test_autocast_scores_in_float32():
    items, hidden = table(), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        scores = items.score(hidden)
        loss = items.cross_entropy(hidden, torch.tensor([1, 2, 3]))
    assert torch.equal(scores, items.score(hidden)) and scores.dtype == loss.dtype == torch.float32


def test_padding_is_the_origin_and_forward_gives_tangent_vectors():
    items = table()
    assert not items(torch.tensor([0])).any()
    assert torch.equal(items(torch.tensor([3, 9])), items.embedding.weight[[3, 9]])


def test_impossible_options_are_refused():
    for options, message in (
        (dict(power=3), "power 3 is unknown; choose 1, 2"),
        (dict(temperature=0.0), r"temperature \(0.0\) must be above 0"),
        (dict(state="ball"), "state 'ball' is unknown; choose tangent, space"),
        (dict(temperature=math.inf), r"temperature \(inf\) must be finite"),
        (dict(cap=80.0), "cosh overflows"),
        (dict(kappa=-1.0), "not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            table(**options)
    with pytest.raises(ValueError, match=r"num_items \(0\)"):
        HyperbolicItems(0, 4)


@pytest.mark.parametrize("temperature", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
def test_a_temperature_divides_every_distance(temperature):
    items, hidden, targets = table(), torch.randn(5, 6), torch.tensor([1, 9, 4, 4, 2])
    expected = F.cross_entropy(items.score(hidden)[:, 1:] / 0.3, targets - 1, reduction="sum")
    close(items.cross_entropy(hidden, targets, temperature), expected, rtol=1e-5, atol=1e-5)
