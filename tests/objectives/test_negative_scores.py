"""Every way to the logits of negatives gives one value, and the cheapest is chosen."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch
from lightrec.interfaces import total
from lightrec.models.sasrec import SASRec
from lightrec.objectives.negative_scores import (
    Asked,
    FetchedVectors,
    FullLogits,
    RowProducts,
    Scored,
    SharedProduct,
    choose,
)
from lightrec.objectives.negatives import Negatives
from lightrec.objectives.sampled import GBCE, BinaryCrossEntropy, SampledSoftmax

NUM_ITEMS = 12
EXACT = 1e-6  # float32 sums of a few dozen terms


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def at(objective, model, batch, ids, **options):
    """The loss with the negatives of the test instead of a draw, shared and excluded as the objective says."""
    negatives = Negatives(ids, objective.sampler.shared, objective.sampler.exclude)
    return total(objective(model, batch, negatives=negatives, **options))


def score_by_hand(items):
    def score(hidden, candidate_ids):
        logits = F.linear(hidden, items.embedding.weight)
        logits = logits if items.bias is None else logits + F.pad(items.bias, (1, 0))
        if candidate_ids.dim() == 1:
            return logits[..., candidate_ids]
        return logits.gather(-1, candidate_ids)

    return score


@pytest.mark.parametrize("shared", ["position", "row", "batch"])
@pytest.mark.parametrize("make", [SampledSoftmax, GBCE, BinaryCrossEntropy])
@pytest.mark.parametrize("bias", [False, True])
def test_every_way_of_computing_gives_the_same_value_and_gradients(monkeypatch, batch, shared, make, bias):
    model = SASRec(NUM_ITEMS, max_length=6, hidden_size=8, num_layers=1, dropout=0.0).double()
    if bias:
        model.items.bias = torch.nn.Parameter(torch.randn(NUM_ITEMS).double())
    shape = {"position": (8, 5), "row": (3, 5), "batch": (5,)}[shared]
    ids = torch.randint(1, NUM_ITEMS + 1, shape)
    ways = {
        "position": [FullLogits(), FullLogits(3), FetchedVectors(), FetchedVectors(3), Scored(), Scored(3)],
        "row": [FullLogits(), FullLogits(3), RowProducts(), RowProducts(3), Scored(), Scored(3)],
        "batch": [SharedProduct(), SharedProduct(3), Scored(), Scored(3)],
    }[shared]
    results = []
    for way in ways:  # in one block, and in blocks of three positions
        if isinstance(way, Scored):  # what an item table with another geometry offers
            monkeypatch.setattr(model.items, "linear_head", lambda hidden: None)
            monkeypatch.setattr(model.items, "score", score_by_hand(model.items))
        model.zero_grad()
        loss = at(make(5, shared=shared, exclude="target"), model, batch, ids, strategy=way)
        loss.backward()
        results.append((loss, [p.grad.clone() for p in model.parameters()]))
    for loss, grads in results[1:]:
        assert torch.allclose(loss, results[0][0], atol=EXACT)
        assert all(torch.allclose(a, b, atol=EXACT) for a, b in zip(grads, results[0][1], strict=True))


def test_row_negatives_are_split_right_when_a_block_cuts_a_row():
    big = SASRec(NUM_ITEMS, max_length=50, hidden_size=8, num_layers=1, dropout=0.0)
    items = torch.randint(1, NUM_ITEMS + 1, (5, 51))
    rows = Batch(item_ids=items, lengths=torch.full((5,), 51), user_ids=torch.arange(5))
    ids = torch.randint(1, NUM_ITEMS + 1, (5, 4))
    by_row = at(SampledSoftmax(4, shared="row"), big, rows, ids, strategy=RowProducts(64))
    by_position = at(SampledSoftmax(4), big, rows, ids.repeat_interleave(50, 0), strategy=FetchedVectors(64))
    assert abs(by_row - by_position) < EXACT


@pytest.mark.parametrize(
    "shared, num_items, strategy",
    [
        ("batch", 10**6, SharedProduct),
        ("row", 4 * 5, FullLogits),
        ("row", 4 * 5 + 1, RowProducts),
        ("position", 32 * 5, FullLogits),
        ("position", 32 * 5 + 1, FetchedVectors),
    ],
)
def test_the_way_is_chosen_by_shape(model, shared, num_items, strategy):
    shape = {"position": (8, 5), "row": (3, 5), "batch": (5,)}[shared]
    hidden, targets = torch.zeros(8, 8), torch.ones(8, dtype=torch.long)
    negatives = Negatives(torch.ones(shape, dtype=torch.long), shared)
    asked = Asked(model.items, hidden, targets, targets, negatives, model.items.linear_head(hidden))
    model.items.num_items = num_items
    assert type(choose(asked)) is strategy
    assert type(choose(asked._replace(head=None))) is Scored
