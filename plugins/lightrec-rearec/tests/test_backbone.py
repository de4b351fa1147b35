"""ReaRec without steps is its backbone."""

import copy

import pytest
import torch

from lightrec.interfaces import total
from lightrec.models.sasrec import SASRec, SASRecEncoder
from lightrec.objectives.next_item import NextItem

pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
from lightrec_rearec.objectives import ERL, PRL  # noqa: E402
from lightrec_rearec.reasoning import reason_with  # noqa: E402

D, ITEMS, LENGTH = 8, 12, 9


def test_without_steps_states_are_those_of_the_encoder_bit_for_bit(make_any, history):
    encoder = make_any().double()
    wrapped = reason_with(copy.deepcopy(encoder), 0)
    assert [name.removeprefix("encoder.") for name in wrapped.state_dict()] == list(encoder.state_dict())
    for draw in range(2):  # with the dropout of training, too
        for call in (lambda e: e(history), lambda e: e.last(history)):
            torch.manual_seed(draw)
            expected = call(encoder)
            torch.manual_seed(draw)
            assert torch.equal(call(wrapped), expected)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("objective", [ERL, PRL])
def test_without_steps_loss_and_gradients_are_those_of_the_backbone(objective, positions, windows, rearec):
    options = dict(max_length=LENGTH, hidden_size=D, num_layers=2, num_heads=2, dropout=0.3)
    plain = SASRec(ITEMS, objective=NextItem(positions), **options)
    wrapped = rearec(0, objective(temperature=1.0, positions=positions), SASRecEncoder(**options))
    wrapped.items.load_state_dict(plain.items.state_dict())
    wrapped.encoder.encoder.load_state_dict(plain.encoder.state_dict())
    found = []
    for each in (plain, wrapped):
        torch.manual_seed(1)
        loss = total(each.loss(windows()))
        loss.backward()
        found.append([loss, *(p.grad for p in each.parameters())])
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))
    batch = windows(seed=1)
    for expected, got in zip(*(m.eval().recommend(batch, 5) for m in (plain, wrapped)), strict=True):
        assert torch.equal(expected, got)


def test_without_steps_nothing_is_nan(make_any, windows, rearec):
    for objective in (ERL(), PRL(warmup_epochs=0)):
        assert total(rearec(0, objective, make_any()).loss(windows())).isfinite()
