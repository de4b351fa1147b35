"""The contrast is the written-out sum, and the weights are those of the paper."""

import pytest
import torch
import torch.nn.functional as F

losses = pytest.importorskip("lightrec_sracl.losses", reason="lightrec-sracl is not installed")
from lightrec_sracl.losses import Mixture, info_nce  # noqa: E402

WIDTH, TEXT = 16, 8


@pytest.mark.parametrize("fidelity", ["released", "paper"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_info_nce_is_the_written_out_sum(fidelity, temperature):
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    if fidelity == "paper":
        expected = [
            -torch.log(torch.exp(one[i] @ other[i] / temperature) / torch.exp(one[i] @ other.T / temperature).sum())
            for i in range(5)
        ]
    else:
        both, expected = torch.cat([one, other]), []
        for i in range(10):
            others = [j for j in range(10) if j != i]
            above = torch.exp(both[i] @ both[(i + 5) % 10] / temperature)
            expected.append(-torch.log(above / sum(torch.exp(both[i] @ both[j] / temperature) for j in others)))
    assert torch.allclose(info_nce(one, other, temperature, fidelity), torch.stack(expected).mean(), atol=1e-5)


@pytest.mark.parametrize("fidelity", ["released", "paper"])
def test_a_batch_of_one_has_nothing_to_contrast(fidelity):
    assert info_nce(torch.randn(1, 4), torch.randn(1, 4), 1.0, fidelity).item() == 0
    assert info_nce(torch.randn(0, 4), torch.randn(0, 4), 1.0, fidelity).item() == 0


def test_info_nce_stays_finite_where_exponentials_do_not():
    big = torch.randn(6, 4) * 100
    assert info_nce(big, big).isfinite()


def test_weights_sum_to_one_and_follow_their_neighbours():
    mixture = Mixture(WIDTH, TEXT).eval()
    anchors, near = torch.randn(4, TEXT), torch.randn(4, 5, TEXT)
    present = torch.ones(4, 5, dtype=torch.bool)
    weights = mixture(anchors, near, present)
    assert torch.allclose(weights.sum(1), torch.ones(4), atol=1e-6)
    order = torch.randperm(5)
    assert torch.allclose(mixture(anchors, near[:, order], present), weights[:, order], atol=1e-6)


def test_weights_are_the_attention_of_the_paper():
    mixture = Mixture(WIDTH, TEXT).eval()
    anchors, near = torch.randn(2, TEXT), torch.randn(2, 3, TEXT)
    W, a = mixture.adapter.weight, mixture.attention.flatten()
    for row in range(2):
        scores = torch.stack([F.leaky_relu(a @ torch.cat([W @ anchors[row], W @ h]), 0.2) for h in near[row]])
        expected = scores.softmax(0)
        found = mixture(anchors, near, torch.ones(2, 3, dtype=torch.bool))[row]
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_neighbour_that_is_not_there_has_no_weight():
    mixture = Mixture(WIDTH, TEXT).eval()
    present = torch.tensor([[True, False, True], [False, False, False]])
    weights = mixture(torch.randn(2, TEXT), torch.randn(2, 3, TEXT), present)
    assert weights[0, 1] == 0 and torch.allclose(weights[0].sum(), torch.tensor(1.0))
    assert not weights[1].any()


def test_dropout_of_weights_is_not_made_up_for():
    mixture = Mixture(WIDTH, TEXT, dropout=0.5).train()
    present = torch.ones(200, 4, dtype=torch.bool)
    total = mixture(torch.randn(200, TEXT), torch.randn(200, 4, TEXT), present).sum(1)
    assert total.min() < 0.5 and total.max() > 1.5 and abs(total.mean() - 1) < 0.15
