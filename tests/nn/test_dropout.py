"""The cheap masks have the statistics of a Bernoulli draw and follow torch's seed."""

import pytest
import torch

from lightrec.nn.dropout import Dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_share_of_zeros_and_mean_are_right(p):
    torch.manual_seed(0)
    count = 400_000
    y = Dropout(p)(torch.ones(count))
    spread = (p * (1 - p) / count) ** 0.5
    assert abs((y == 0).float().mean().item() - p) < 4 * spread
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    assert y.mean().item() == pytest.approx(1.0, abs=4 * spread / (1 - p) + 1e-4)


def test_neighbouring_elements_are_dropped_independently():
    torch.manual_seed(0)
    zero = (keep_mask(torch.Size([200_000]), 0.5, torch.float32) == 0).double()
    for lag in (1, 2, 3, 4):  # four elements share a random word
        both = (zero[lag:] * zero[:-lag]).mean().item()
        assert abs(both - 0.25) < 0.006


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7)])
def test_any_shape_is_kept_and_evaluation_changes_nothing(shape):
    layer = Dropout(0.5)
    x = torch.randn(shape)
    assert layer(x).shape == x.shape
    assert layer.eval()(x) is x


def test_the_seed_decides_the_mask():
    torch.manual_seed(7)
    first = keep_mask(torch.Size([1000]), 0.3, torch.float32)
    torch.manual_seed(7)
    assert torch.equal(first, keep_mask(torch.Size([1000]), 0.3, torch.float32))
    assert not torch.equal(first, keep_mask(torch.Size([1000]), 0.3, torch.float32))


def test_gradient_is_the_mask():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_probability_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match="dropout"):
        Dropout(p)
