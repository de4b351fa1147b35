"""The full softmax, its shift, and who may use it."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch, Column
from lightrec.models.bert4rec import BERT4Rec
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem, catalog_cross_entropy, mean_over_targets, next_item_pairs


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
    assert torch.isclose(NextItem()(model, batch), torch.stack(terms).mean(), atol=1e-6)


def test_what_stands_on_padding_changes_nothing(model, batch):
    filled = batch.replace(item_ids=torch.where(batch.item_ids == 0, 7, batch.item_ids))
    assert torch.isclose(NextItem()(model, batch), NextItem()(model, filled), atol=1e-6)


def test_last_asks_once_a_row(model, batch):
    inputs, _ = next_item_pairs(batch)
    logits = model.items.score(model.query(inputs))
    assert torch.isclose(NextItem("last")(model, batch), F.cross_entropy(logits, torch.tensor([7, 6, 9])), atol=1e-6)


def test_an_encoder_that_sees_the_future_is_refused_at_all_positions(batch):
    model = BERT4Rec(9, max_length=5, hidden_size=8, dropout=0.0)
    with pytest.raises(ValueError, match="would leak the target"):
        NextItem()(model, batch)
    assert NextItem("last")(model, batch).isfinite()


def test_a_head_that_is_not_linear_gives_the_same_loss_and_gradient(model, batch, monkeypatch):
    expected = NextItem()(model, batch)
    expected.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(
        model.items,
        "score",
        lambda hidden: F.pad(hidden @ model.items.embedding.weight[1:].T, (1, 0), value=-torch.inf),
    )
    monkeypatch.setattr(model.items, "linear_head", lambda hidden: None)
    loss = NextItem()(model, batch)
    loss.backward()
    assert torch.isclose(loss, expected, atol=1e-6)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-6)


def test_a_bfloat16_head_stays_near_the_exact_loss(model, batch):
    assert abs(NextItem(head_dtype="bfloat16")(model, batch) - NextItem()(model, batch)) < 0.05


def test_a_head_of_another_dtype_changes_no_sum(model):
    hidden, targets = torch.randn(20, 8), torch.randint(1, 10, (20,))
    total = catalog_cross_entropy(model.items, hidden, targets)
    assert torch.isclose(total, F.cross_entropy(model.items.score(hidden), targets, reduction="sum"), atol=1e-5)


def test_one_process_divides_by_its_own_targets():
    assert mean_over_targets(torch.tensor(6.0), 4) == 1.5
