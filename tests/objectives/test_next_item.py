"""The full softmax, its shift, and who may use it."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch, Column
from lightrec.interfaces import total
from lightrec.models.bert4rec import BERT4Rec
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem, NextItemStates, mean_over_targets, next_item_pairs


@pytest.fixture
def batch():
    items = torch.tensor([[1, 5, 3, 7], [4, 6, 0, 0], [2, 8, 9, 0]])
    times = items * 10
    return Batch(
        items,
        torch.tensor([4, 2, 3]),
        torch.arange(3),
        timestamps=times,
        columns={"age": Column(torch.tensor([20, 30, 40]), "row")},
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SASRec(9, max_length=5, hidden_size=8, dropout=0.0)


def test_the_shift_asks_for_the_next_item_at_every_position(batch):
    inputs, targets = next_item_pairs(batch)
    assert inputs.item_ids.tolist() == [[1, 5, 3], [4, 6, 0], [2, 8, 9]]
    assert inputs.lengths.tolist() == [3, 1, 2]
    assert targets.tolist() == [[5, 3, 7], [6, 0, 0], [8, 9, 0]]
    assert inputs.timestamps.tolist() == (inputs.item_ids * 10).tolist()
    assert inputs.columns["age"].values.tolist() == [20, 30, 40]


def test_the_loss_is_the_cross_entropy_averaged_over_real_positions(model, batch):
    inputs, targets = next_item_pairs(batch)
    logits = model.items.score(model.encode(inputs))
    terms = [
        F.cross_entropy(logits[b, t], targets[b, t]) for b, n in enumerate(inputs.lengths.tolist()) for t in range(n)
    ]
    assert len(terms) == 6
    assert torch.isclose(total(NextItem()(model, batch)), torch.stack(terms).mean(), atol=1e-6)


def test_what_stands_on_padding_changes_nothing(model, batch):
    filled = batch.replace(item_ids=torch.where(batch.item_ids == 0, 7, batch.item_ids))
    assert torch.isclose(total(NextItem()(model, batch)), total(NextItem()(model, filled)), atol=1e-6)


def test_last_asks_once_a_row(model, batch):
    inputs, _ = next_item_pairs(batch)
    logits = model.items.score(model.query(inputs))
    assert torch.isclose(
        total(NextItem("last")(model, batch)), F.cross_entropy(logits, torch.tensor([7, 6, 9])), atol=1e-6
    )


def test_an_encoder_that_sees_the_future_is_refused_at_all_positions(batch):
    model = BERT4Rec(9, max_length=5, hidden_size=8, dropout=0.0)
    with pytest.raises(ValueError, match="would leak the target"):
        NextItem()(model, batch)
    assert total(NextItem("last")(model, batch)).isfinite()


def test_a_head_that_is_not_linear_gives_the_same_loss_and_gradient(model, batch, monkeypatch):
    expected = total(NextItem()(model, batch))
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(
        model.items,
        "score",
        lambda hidden: F.pad(hidden @ model.items.embedding.weight[1:].T, (1, 0), value=-torch.inf),
    )
    monkeypatch.setattr(model.items, "linear_head", lambda hidden: None)
    loss = total(NextItem()(model, batch))
    loss.backward()
    assert torch.isclose(loss, expected, atol=1e-6)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-6)


def test_a_bfloat16_head_stays_near_the_exact_loss(model, batch):
    exact = total(NextItem()(model, batch))
    rounded = SASRec(9, max_length=5, hidden_size=8, dropout=0.0, head_dtype="bfloat16")
    rounded.load_state_dict(model.state_dict())
    near = total(NextItem()(rounded, batch))
    assert 0 < abs(near - exact) < 0.05


def test_a_head_of_another_dtype_changes_no_sum(model):
    hidden, targets = torch.randn(20, 8), torch.randint(1, 10, (20,))
    summed = model.items.cross_entropy(hidden, targets)
    assert torch.isclose(summed, F.cross_entropy(model.items.score(hidden), targets, reduction="sum"), atol=1e-5)


def test_one_process_divides_by_its_own_targets():
    assert mean_over_targets(torch.tensor(6.0), 4) == 1.5


def test_states_are_made_when_they_are_first_needed_and_once(model, batch, monkeypatch):
    encoded, asked = counted(monkeypatch, model, "encode"), counted(monkeypatch, model, "query")
    states = NextItemStates(model, batch)
    assert not encoded and not asked
    first, again = states.rows("all"), states.rows("all")
    assert all(a is b for a, b in zip(first, again, strict=True)) and len(encoded) == 1 and not asked
    assert states.rows("last")[0] is states.query and len(encoded) == len(asked) == 1


def test_states_are_those_of_the_written_out_shift(model, batch):
    states = NextItemStates(model, batch)
    inputs, targets = next_item_pairs(batch)
    hidden = model.encode(inputs)
    real = torch.arange(3) < inputs.lengths[:, None]
    rows, ids = states.rows("all")
    assert torch.equal(rows, hidden[real]) and torch.equal(ids, targets[real])
    assert torch.equal(states.last_hidden, hidden[torch.arange(3), inputs.lengths - 1])
    assert torch.allclose(states.rows("last")[0], states.last_hidden, atol=1e-6)
    assert states.rows("last")[1].tolist() == [7, 6, 9]


def counted(monkeypatch, model, name):
    """Notes the calls of a method; returns the list that grows with them."""
    calls, method = [], getattr(model, name)
    monkeypatch.setattr(model, name, lambda batch: calls.append(batch) or method(batch))
    return calls
