"""Laws of the sampled objectives: what they estimate, and that every way of computing them gives one value."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare

from lightrec.data.batch import Batch
from lightrec.models.sasrec import SASRec
from lightrec.objectives import sampled
from lightrec.objectives.next_item import NextItem, next_item_rows
from lightrec.objectives.sampled import GBCE, BinaryCrossEntropy, NegativeSampler, SampledSoftmax, gbce_beta

NUM_ITEMS = 12
EXACT = 1e-6  # float32 sums of a few dozen terms
COUNTS = torch.tensor([0, 50, 1, 5, 9, 20, 3, 7, 40, 2, 30, 4, 60])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    items = torch.tensor([[1, 5, 3, 7, 2], [4, 6, 0, 0, 0], [9, 8, 10, 12, 0]])
    return Batch(item_ids=items, lengths=torch.tensor([5, 2, 4]), user_ids=torch.arange(3))


@pytest.fixture
def model():
    model = SASRec(NUM_ITEMS, max_length=6, hidden_size=8, num_layers=1, dropout=0.0)
    with torch.no_grad():
        model.items.embedding.weight[1:] *= 3  # logits of different sizes
    return model


def log_sigmoid_terms(model, batch, negatives):
    hidden, targets = next_item_rows(model, batch)
    logits = model.items.score(hidden)
    return logits.gather(1, targets[:, None]).squeeze(1), logits.gather(1, negatives)


def fixed(objective, ids, seen=None):
    """Gives an objective the negatives of the test instead of a draw."""
    objective.sampler.draw = lambda *a, **k: sampled.Negatives(ids, seen)
    return objective


def score_by_hand(items):
    def score(hidden, candidate_ids):
        logits = F.linear(hidden, items.embedding.weight)
        logits = logits if items.bias is None else logits + F.pad(items.bias, (1, 0))
        if candidate_ids.dim() == 1:
            return logits[..., candidate_ids]
        return logits.gather(-1, candidate_ids)

    return score


def others(targets):
    """[T, V - 1], all items but the target."""
    return torch.stack([torch.tensor([i for i in range(1, NUM_ITEMS + 1) if i != t]) for t in targets.tolist()])


def test_all_other_items_as_negatives_make_the_full_softmax(model, batch):
    _, targets = next_item_rows(model, batch)
    loss = fixed(SampledSoftmax(NUM_ITEMS - 1), others(targets))(model, batch)
    assert abs(loss - NextItem()(model, batch)) < EXACT


def test_the_whole_catalog_shared_by_the_batch_without_the_target_makes_the_full_softmax(model, batch):
    objective = SampledSoftmax(NUM_ITEMS, shared="batch", distinct=True, exclude="target")
    assert abs(objective(model, batch) - NextItem()(model, batch)) < EXACT


@pytest.mark.parametrize("shared", ["position", "row", "batch"])
@pytest.mark.parametrize("make", [SampledSoftmax, GBCE, BinaryCrossEntropy])
@pytest.mark.parametrize("bias", [False, True])
def test_every_way_of_computing_gives_the_same_value_and_gradients(monkeypatch, batch, shared, make, bias):
    model = SASRec(NUM_ITEMS, max_length=6, hidden_size=8, num_layers=1, dropout=0.0).double()
    if bias:
        model.items.bias = torch.nn.Parameter(torch.randn(NUM_ITEMS).double())
    shape = {"position": (8, 5), "row": (3, 5), "batch": (5,)}[shared]
    ids = torch.randint(1, NUM_ITEMS + 1, shape)
    results = []
    for way in ("dense", "fetched", "scored"):
        ratio = 100 if way == "dense" else 0
        monkeypatch.setattr(sampled, "_DENSE_RATIO", {"position": ratio, "row": ratio})
        monkeypatch.setattr(sampled, "_GATHER_BYTES", 4 * 8 * 5 * 3)  # blocks of a few rows
        if way == "scored":  # what an item table with another geometry offers
            monkeypatch.setattr(model.items, "linear_head", lambda hidden: None)
            monkeypatch.setattr(model.items, "score", score_by_hand(model.items))
        objective = fixed(make(5, shared=shared, exclude="target"), ids)
        model.zero_grad()
        loss = objective(model, batch)
        loss.backward()
        results.append((loss, [p.grad.clone() for p in model.parameters()]))
    for loss, grads in results[1:]:
        assert torch.allclose(loss, results[0][0], atol=EXACT)
        assert all(torch.allclose(a, b, atol=EXACT) for a, b in zip(grads, results[0][1], strict=True))


def test_row_negatives_are_split_right_when_a_block_cuts_a_row(monkeypatch):
    monkeypatch.setattr(sampled, "_GATHER_BYTES", 0)  # blocks of 64 positions
    monkeypatch.setattr(sampled, "_DENSE_RATIO", {"row": 0, "position": 0})
    big = SASRec(NUM_ITEMS, max_length=50, hidden_size=8, num_layers=1, dropout=0.0)
    items = torch.randint(1, NUM_ITEMS + 1, (5, 51))
    rows = Batch(item_ids=items, lengths=torch.full((5,), 51), user_ids=torch.arange(5))
    ids = torch.randint(1, NUM_ITEMS + 1, (5, 4))
    by_row = fixed(SampledSoftmax(4, shared="row"), ids)(big, rows)
    by_position = fixed(SampledSoftmax(4), ids.repeat_interleave(50, 0))(big, rows)
    assert abs(by_row - by_position) < EXACT


def test_gbce_with_t_0_is_bce(model, batch):
    ids = torch.randint(1, NUM_ITEMS + 1, (8, 5))
    gbce = fixed(GBCE(5, t=0.0), ids)(model, batch)
    bce = fixed(BinaryCrossEntropy(5, exclude="nothing"), ids)(model, batch)
    positive, negative = log_sigmoid_terms(model, batch, ids)
    by_hand = -(F.logsigmoid(positive) + F.logsigmoid(-negative).sum(1)).mean() / 6
    assert abs(gbce - bce) < EXACT and abs(bce - by_hand) < EXACT


def test_gbce_with_t_1_weighs_the_positive_by_the_sampling_rate():
    assert gbce_beta(256, 3416, 1.0) == pytest.approx(256 / 3415)
    assert gbce_beta(256, 3416, 0.0) == pytest.approx(1.0)
    assert gbce_beta(256, 3416, 0.75) == pytest.approx(0.30622, abs=1e-5)  # the authors' ML-1M setting


def test_gbce_equals_the_authors_transformed_logit(model, batch):
    ids = torch.randint(1, NUM_ITEMS + 1, (8, 5))
    positive, negative = log_sigmoid_terms(model, batch, ids)
    beta = gbce_beta(5, NUM_ITEMS, 0.75)
    transformed = torch.log(1 / (torch.sigmoid(positive.double()) ** -beta - 1))
    logits = torch.cat([transformed[:, None], negative.double()], 1)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    assert abs(fixed(GBCE(5), ids)(model, batch) - expected) < EXACT


@pytest.mark.parametrize("proposal", ["uniform", "popularity"])
@pytest.mark.parametrize("shared", ["position", "batch"])
def test_log_q_makes_the_partition_function_unbiased(batch, proposal, shared):
    """exp(loss) of a position is an estimate of Z / exp(s+): its mean over many draws is the full softmax's."""
    model = SASRec(NUM_ITEMS, max_length=6, hidden_size=8, num_layers=1, dropout=0.0)  # mild logits: less variance
    hidden, targets = next_item_rows(model, batch)
    row = torch.repeat_interleave(torch.arange(3), batch.lengths - 1)
    logits = model.items.score(hidden)
    truth = (logits.logsumexp(1) - logits.gather(1, targets[:, None]).squeeze(1)).exp()
    sampler = NegativeSampler(4, proposal, shared, "target", alpha=0.75)
    sampler.connect(COUNTS)
    estimates = []

    def keep_each(positive, negative, taken):
        rest = (negative.masked_fill(taken, -torch.inf).logsumexp(1) - positive).exp()
        estimates.append(rest.masked_fill(taken.all(1), torch.nan))  # a draw of nothing but the target says nothing
        return positive.sum() + negative.sum()

    for _ in range(1500):
        negatives = sampler.draw(model, batch, row, targets)
        sampled._sum_of_terms(
            model.items, hidden.detach(), targets, row, negatives, sampler, keep_each, None, sampler.log_q(model)
        )
    estimates = torch.stack(estimates).detach()
    drawn = (~estimates.isnan()).sum(0)
    mean = estimates.nanmean(0)
    error = ((estimates - mean).square().nansum(0) / drawn).sqrt() / drawn.sqrt()
    assert (error < 0.1 * mean).all()  # enough draws to notice a bias
    assert ((mean - (truth - 1)).abs() < 4 * error).all()


def test_without_the_correction_popular_negatives_do_not_estimate_the_full_softmax(model, batch):
    objective = SampledSoftmax(2000, proposal="popularity", log_q=True)
    objective.sampler.connect(COUNTS)
    plain = SampledSoftmax(2000, proposal="popularity")
    plain.sampler.connect(COUNTS)
    full = NextItem()(model, batch)
    assert abs(objective(model, batch) - full) < 0.2 < 1 < abs(plain(model, batch) - full)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0])
def test_popular_items_are_drawn_in_proportion_to_count_to_the_alpha(model, batch, alpha):
    counts = torch.tensor([0, 50, 1, 0, 9, 20, 3, 7, 100, 2, 30, 4, 60])
    sampler = NegativeSampler(1000, "popularity", alpha=alpha)
    sampler.connect(counts)
    targets = torch.ones(50, dtype=torch.long)
    ids = sampler.draw(model, batch, torch.zeros(50, dtype=torch.long), targets).ids
    observed = torch.bincount(ids.flatten(), minlength=NUM_ITEMS + 1)
    weights = counts.double() ** alpha * (counts > 0)
    assert observed[weights == 0].sum() == 0
    drawn = weights > 0
    expected = weights[drawn] / weights.sum() * observed.sum()
    assert chisquare(observed[drawn].double(), expected).pvalue > 1e-3


def test_uniform_draws_reach_every_item_and_never_padding(model, batch):
    sampler = NegativeSampler(5000)
    ids = sampler.draw(model, batch, torch.arange(3), torch.tensor([1, 2, 3])).ids
    observed = torch.bincount(ids.flatten(), minlength=NUM_ITEMS + 1)
    assert observed[0] == 0 and len(observed) == NUM_ITEMS + 1
    assert chisquare(observed[1:]).pvalue > 1e-3


@pytest.mark.parametrize("exclude", ["target", "window"])
@pytest.mark.parametrize("shared", ["position", "row", "batch"])
def test_excluded_negatives_never_count(model, batch, exclude, shared):
    sampler = NegativeSampler(30, shared=shared, exclude=exclude)
    row = torch.repeat_interleave(torch.arange(3), batch.lengths - 1)
    _, targets = next_item_rows(model, batch)
    ids, seen = sampler.draw(model, batch, row, targets)
    ids = {"position": lambda: ids, "row": lambda: ids[row], "batch": lambda: ids.expand(8, -1)}[shared]()
    taken = sampler._taken(ids, seen, row, targets)
    for t in range(8):
        forbidden = {targets[t].item()} if exclude == "target" else set(batch.item_ids[row[t]].tolist()) - {0}
        counted = set(ids[t][~taken[t]].tolist())
        assert counted and not counted & forbidden
    if shared == "position":
        assert not taken.any()  # drawn anew instead of masked


def test_distinct_negatives_of_a_row_are_distinct_and_outside_the_window(model, batch):
    ids, seen = NegativeSampler(7, shared="row", exclude="window", distinct=True).draw(
        model, batch, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    )
    for b in range(3):
        assert len(set(ids[b].tolist())) == 7
        assert not set(ids[b].tolist()) & set(batch.item_ids[b].tolist())


def test_in_batch_negatives_are_the_targets_of_the_batch(model, batch):
    objective = SampledSoftmax(100, proposal="in-batch")
    hidden, targets = next_item_rows(model, batch)
    logits = (hidden @ model.items.linear_head(hidden).weight.T)[:, targets - 1]
    logits = logits.masked_fill(targets[None, :] == targets[:, None], -torch.inf)
    logits[range(8), range(8)] = (hidden * model.items.linear_head(hidden).weight[targets - 1]).sum(-1)
    assert abs(objective(model, batch) - F.cross_entropy(logits, torch.arange(8))) < EXACT


def test_popularity_is_taken_from_the_data_module_of_the_trainer(model, batch):
    class Data:
        item_counts = torch.arange(NUM_ITEMS + 1)

    class Trainer:
        datamodule = Data()

    objective = SampledSoftmax(4, proposal="popularity")
    with pytest.raises(RuntimeError, match="item_counts"):
        objective(model, batch)
    object.__setattr__(model, "_trainer", Trainer())
    assert objective(model, batch).isfinite()
    assert objective.sampler.weights[2] == pytest.approx(2 / 78)
    assert not objective.state_dict()  # a fact of the data, not of the model


@pytest.mark.parametrize("make", [SampledSoftmax, GBCE, BinaryCrossEntropy])
def test_a_step_down_the_gradient_lowers_the_loss(model, batch, make):
    torch.manual_seed(1)
    objective = make(6)
    loss = objective(model, batch)
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-2 * p.grad
    torch.manual_seed(1)
    assert objective(model, batch) < loss


def test_a_bfloat16_head_stays_near_and_gives_float32_gradients(model, batch):
    for shared in ("position", "row", "batch"):
        torch.manual_seed(2)
        exact = SampledSoftmax(6, shared=shared)(model, batch)
        torch.manual_seed(2)
        model.zero_grad()
        near = SampledSoftmax(6, shared=shared, head_dtype="bfloat16")(model, batch)
        near.backward()
        assert abs(exact - near) < 0.05 and near.dtype == torch.float32
        assert model.items.embedding.weight.grad.dtype == torch.float32


def test_a_row_without_targets_is_legal(model):
    rows = Batch(item_ids=torch.tensor([[3, 0], [4, 5]]), lengths=torch.tensor([1, 2]), user_ids=torch.arange(2))
    assert SampledSoftmax(3)(model, rows).isfinite()


def test_positions_last_asks_once_a_row(model, batch):
    hidden, targets = next_item_rows(model, batch, "last")
    ids = torch.randint(1, NUM_ITEMS + 1, (3, 4))
    logits = model.items.score(hidden)
    loss = F.cross_entropy(
        torch.cat([logits.gather(1, targets[:, None]), logits.gather(1, ids)], 1), torch.zeros(3).long()
    )
    assert abs(fixed(SampledSoftmax(4, positions="last"), ids)(model, batch) - loss) < EXACT


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


def test_t_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="between 0"):
        GBCE(t=1.5)
