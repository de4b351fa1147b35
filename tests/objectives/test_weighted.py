"""Weighted sums of objectives."""

import pytest
import torch

from lightrec.checkpoint import build
from lightrec.configurable import describe
from lightrec.data.batch import Batch
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem
from lightrec.objectives.sampled import SampledSoftmax
from lightrec.objectives.weighted import Weighted


@pytest.fixture
def batch():
    return Batch(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]), torch.arange(2))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SASRec(6, max_length=4, hidden_size=8, dropout=0.0)


def test_a_weighted_sum_is_the_sum_of_its_weighted_parts(model, batch):
    whole = Weighted([NextItem(), NextItem("last")], [0.5, 2.0])(model, batch)
    assert torch.isclose(whole, 0.5 * NextItem()(model, batch) + 2 * NextItem("last")(model, batch))


def test_parts_weigh_one_if_nothing_is_said(model, batch):
    assert torch.isclose(Weighted([NextItem()])(model, batch), NextItem()(model, batch))


def test_it_is_rebuilt_from_its_description_with_its_parts():
    described = describe(Weighted([NextItem("last"), SampledSoftmax(7)], [1.0, 0.1]))
    assert describe(build(described)) == described
    assert described["init_args"]["objectives"][1]["init_args"]["num_negatives"] == 7


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_another_number_of_weights_is_refused(weights):
    with pytest.raises(ValueError, match="2 objectives need as many weights"):
        Weighted([NextItem(), NextItem()], weights)


def test_no_part_is_refused():
    with pytest.raises(ValueError, match="at least one part"):
        Weighted([])
