"""The laws of drawing negatives: what is drawn how often, and what does not count."""

import pytest
import torch
from scipy.stats import chisquare

from lightrec import SequenceDataModule, testing
from lightrec.models.sasrec import SASRec
from lightrec.objectives.negatives import NegativeSampler
from lightrec.objectives.next_item import NextItemStates
from lightrec.objectives.sampled import SampledSoftmax

NUM_ITEMS = 12


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_popular_items_are_drawn_in_proportion_to_count_to_the_alpha(model, batch, alpha):
    counts = torch.tensor([0, 50, 1, 0, 9, 20, 3, 7, 100, 2, 30, 4, 60])
    sampler = NegativeSampler(1000, "popularity", alpha=alpha)
    sampler.item_counts = counts
    targets = torch.ones(50, dtype=torch.long)
    ids = sampler.draw(model.items, batch, torch.zeros(50, dtype=torch.long), targets).ids
    observed = torch.bincount(ids.flatten(), minlength=NUM_ITEMS + 1)
    weights = counts.double() ** alpha * (counts > 0)
    assert observed[weights == 0].sum() == 0
    drawn = weights > 0
    expected = weights[drawn] / weights.sum() * observed.sum()
    assert chisquare(observed[drawn].double(), expected).pvalue > 1e-3


def test_uniform_draws_reach_every_item_and_never_padding(model, batch):
    sampler = NegativeSampler(5000)
    ids = sampler.draw(model.items, batch, torch.arange(3), torch.tensor([1, 2, 3])).ids
    observed = torch.bincount(ids.flatten(), minlength=NUM_ITEMS + 1)
    assert observed[0] == 0 and len(observed) == NUM_ITEMS + 1
    assert chisquare(observed[1:]).pvalue > 1e-3


@pytest.mark.parametrize("exclude", ["target", "window"])
@pytest.mark.parametrize("shared", ["position", "row", "batch"])
def test_excluded_negatives_never_count(model, batch, exclude, shared):
    sampler = NegativeSampler(30, shared=shared, exclude=exclude)
    row = torch.repeat_interleave(torch.arange(3), batch.lengths - 1)
    _, targets = NextItemStates(model, batch).rows()
    negatives = sampler.draw(model.items, batch, row, targets)
    ids = negatives.of(slice(None), row)
    taken = negatives.taken(ids, row, targets)
    ids = ids.expand(8, -1)
    for t in range(8):
        forbidden = {targets[t].item()} if exclude == "target" else set(batch.item_ids[row[t]].tolist()) - {0}
        counted = set(ids[t][~taken[t]].tolist())
        assert counted and not counted & forbidden
    if shared == "position":
        assert not taken.any()  # drawn anew instead of masked


def test_distinct_negatives_of_a_row_are_distinct_and_outside_the_window(model, batch):
    sampler, nobody = NegativeSampler(7, shared="row", exclude="window", distinct=True), torch.zeros(0).long()
    ids = sampler.draw(model.items, batch, nobody, nobody).ids
    for b in range(3):
        assert len(set(ids[b].tolist())) == 7
        assert not set(ids[b].tolist()) & set(batch.item_ids[b].tolist())


def test_popularity_is_taken_from_the_corpus(model, batch, tmp_path):
    objective = SampledSoftmax(4, proposal="popularity")
    with pytest.raises(RuntimeError, match="item_counts"):
        objective(model, batch)
    log = testing.toy_log(num_users=30, num_items=NUM_ITEMS, min_length=3).write_csv(tmp_path / "log.csv")
    data = SequenceDataModule(path=str(log))
    model = SASRec(data.num_items, max_length=6, hidden_size=8, objective=objective)
    model.connect(data.corpus)
    weights = objective.sampler.weights()
    assert torch.equal(weights, data.item_counts.double() / data.item_counts.sum())
    assert not objective.state_dict()  # a fact of the data, not of the model


def test_counts_survive_a_model_of_another_dtype():
    sampler = NegativeSampler(4, "popularity")
    sampler.item_counts = torch.tensor([0, 1, 2**24 + 1])
    exact = sampler.weights()
    assert torch.equal(sampler.bfloat16().weights(), exact) and exact.dtype == torch.float64


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_negatives": 0}, "at least 1"),
        ({"proposal": "zipf"}, "unknown"),
        ({"shared": "user"}, "unknown"),
        ({"exclude": "history"}, "unknown"),
        ({"distinct": True}, "distinct=True needs"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SampledSoftmax(**options)
