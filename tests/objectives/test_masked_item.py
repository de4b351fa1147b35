"""The cloze task: how many items are hidden, where, and that the hidden ones stay hidden."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrec.data.batch import Batch
from lightrec.interfaces import total
from lightrec.models.bert4rec import BERT4Rec
from lightrec.objectives.masked_item import Cloze


def batch_of(lengths, num_items=9):
    lengths = torch.tensor(lengths)
    items = torch.randint(1, num_items + 1, (len(lengths), int(lengths.max())))
    return Batch(items * (torch.arange(items.shape[1]) < lengths[:, None]), lengths, torch.arange(len(lengths)))


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    share=st.floats(0.01, 1.0),
    most=st.one_of(st.none(), st.integers(1, 20)),
)
@settings(max_examples=60, deadline=None)
def test_exactly_the_stated_number_is_hidden_and_never_padding(lengths, share, most):
    hidden = Cloze(share, most, last_only_share=0.0).draw(batch_of(lengths))
    for row, length in zip(hidden, lengths, strict=True):
        count = max(1, round(float(torch.tensor(length) * share)))
        assert row.sum() == (count if most is None else min(most, count))
        assert not row[length:].any()


def test_every_position_is_hidden_as_often_as_any_other():
    torch.manual_seed(0)
    batch = batch_of([10] * 4000)
    share = Cloze(0.3, last_only_share=0.0).draw(batch).float().mean(0)
    assert torch.allclose(share, torch.full((10,), 0.3), atol=0.04)


def test_masks_are_drawn_anew_at_every_step():
    batch, cloze = batch_of([30, 30]), Cloze(last_only_share=0.0)
    assert not torch.equal(cloze.draw(batch), cloze.draw(batch))


def test_last_only_rows_hide_the_last_real_item_alone():
    hidden = Cloze(last_only_share=1.0).draw(batch_of([4, 1, 7]))
    assert hidden.nonzero().tolist() == [[0, 3], [1, 0], [2, 6]]


def test_the_share_of_last_only_rows_is_kept():
    torch.manual_seed(0)
    batch = batch_of([20] * 2000)
    alone = Cloze(0.5, last_only_share=0.25).draw(batch).sum(1) == 1
    assert abs(alone.float().mean() - 0.25) < 0.04


def test_the_loss_is_the_cross_entropy_of_the_hidden_items_alone(monkeypatch):
    torch.manual_seed(0)
    batch = batch_of([5, 3])
    model = BERT4Rec(9, max_length=6, hidden_size=8, dropout=0.0)
    hidden = torch.tensor([[False, True, False, True, False], [False, False, True, False, False]])
    monkeypatch.setattr(Cloze, "draw", lambda self, b: hidden)
    inputs = batch.replace(item_ids=batch.item_ids.masked_fill(hidden, 10))
    logits = model.items.score(model.encode(inputs)[hidden])
    expected = F.cross_entropy(logits, batch.item_ids[hidden])
    assert torch.isclose(total(Cloze()(model, batch)), expected, atol=1e-6)


def test_a_hidden_item_never_enters_the_forward_pass(monkeypatch):
    torch.manual_seed(0)
    batch = Batch(torch.tensor([[1, 2, 3, 4]]), torch.tensor([4]), torch.arange(1))
    model = BERT4Rec(5, max_length=4, hidden_size=8, dropout=0.0)
    seen = []
    monkeypatch.setattr(Cloze, "draw", lambda self, b: torch.tensor([[False, False, True, False]]))
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda b: seen.append(encode(b)) or seen[-1])
    Cloze()(model, batch)
    with torch.no_grad():
        model.items.embedding.weight[3] = torch.nan
    Cloze()(model, batch)
    assert seen[1].isfinite().all() and torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_probability": 0.0}, "above 0"),
        ({"mask_probability": 1.1}, r"mask_probability \(1.1\) must be between 0 and 1"),
        ({"last_only_share": -0.1}, "between 0 and 1"),
        ({"max_masks": 0}, "at least 1"),
    ],
)
def test_shares_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Cloze(**options)
