"""Weighted sums of objectives."""

import pytest
import torch

from lightrec.checkpoint import build
from lightrec.configurable import describe
from lightrec.data.batch import Batch
from lightrec.interfaces import total
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem
from lightrec.objectives.sampled import BinaryCrossEntropy, SampledSoftmax
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
    every, last = total(NextItem()(model, batch)), total(NextItem("last")(model, batch))
    assert torch.isclose(total(whole), 0.5 * every + 2 * last)


def test_parts_weigh_one_if_nothing_is_said(model, batch):
    assert torch.isclose(total(Weighted([NextItem()])(model, batch)), total(NextItem()(model, batch)))


def test_terms_keep_their_names_and_parts_of_one_name_are_numbered(model, batch):
    parts = [NextItem(), SampledSoftmax(4), NextItem("last"), NextItem()]
    losses = Weighted(parts, [1.0, 0.5, 0.0, 2.0])(model, batch)
    assert list(losses) == ["next_item", "sampled_softmax", "next_item_2", "next_item_3"]
    assert [term.weight for term in losses.values()] == [1.0, 0.5, 0.0, 2.0]


def test_weights_of_nested_sums_multiply(model, batch):
    inner = Weighted([NextItem(), NextItem("last")], [1.0, 3.0])
    losses = Weighted([inner, NextItem()], [0.5, 1.0])(model, batch)
    assert [term.weight for term in losses.values()] == [0.5, 1.5, 1.0]


def test_a_batch_is_encoded_once_for_all_parts(model, batch):
    passes = []
    model.encoder.register_forward_hook(lambda *_: passes.append(1))
    parts = [NextItem(), Weighted([SampledSoftmax(4), NextItem()]), BinaryCrossEntropy()]
    total(Weighted(parts)(model, batch)).backward()
    assert len(passes) == 1


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
