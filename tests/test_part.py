"""Part: fitted buffers, whose shape a checkpoint gives back, and the moment at which parts hear of the data."""

import pytest
import torch
from torch import nn

from lightrec.models.counting import Markov
from lightrec.part import Part


class Fitted(Part):
    """Owns neighbours that only the data know, and a weight of known size."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_fitted("neighbours", torch.zeros(0, 3, dtype=torch.long))
        self.register_fitted("counts", torch.zeros(0))


def fitted():
    part = Fitted()
    part.neighbours, part.counts = torch.arange(12).view(4, 3), torch.rand(7)
    return part


def test_a_fitted_buffer_takes_its_shape_and_content_from_a_checkpoint():
    one, other = fitted(), Fitted()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.neighbours, one.neighbours) and other.neighbours.dtype == torch.long
    assert torch.equal(other.counts, one.counts) and other.counts is not one.counts
    assert set(dict(other.named_buffers())) == {"neighbours", "counts"}


def test_it_does_so_inside_other_modules_and_after_it_was_filled_otherwise():
    one, other = nn.Sequential(nn.Sequential(fitted())), nn.Sequential(nn.Sequential(Fitted()))
    other[0][0].counts = torch.rand(100)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other[0][0].counts, one[0][0].counts)


def test_a_checkpoint_without_it_is_refused_as_for_any_buffer():
    weights = fitted().state_dict()
    del weights["counts"]
    with pytest.raises(RuntimeError, match="Missing key.*counts"):
        Fitted().load_state_dict(weights)
    part = fitted()
    before = part.counts.clone()
    part.load_state_dict(weights, strict=False)
    assert torch.equal(part.counts, before)


def test_what_is_not_fitted_keeps_its_shape():
    weights = fitted().state_dict() | {"weight": torch.zeros(3)}
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        Fitted().load_state_dict(weights)


def test_the_transitions_of_a_markov_chain_are_fitted():
    one = Markov(5)
    one.count(torch.tensor([1, 2, 2]), torch.tensor([2, 3, 3]))
    one.scores_after(torch.tensor([2]))
    other = Markov(5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.transitions, one.transitions) and other.transition_counts.tolist() == [1, 2]
    assert torch.equal(other.scores_after(torch.tensor([2, 1])), one.scores_after(torch.tensor([2, 1])))


def test_a_part_needs_nothing_of_the_data_if_nothing_is_said():
    assert Fitted().connect(None) is None
