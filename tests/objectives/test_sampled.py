"""Laws of the sampled objectives: what they estimate."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch
from lightrec.interfaces import total
from lightrec.models.sasrec import SASRec
from lightrec.objectives.negative_scores import Asked, choose
from lightrec.objectives.negatives import Negatives, NegativeSampler
from lightrec.objectives.next_item import NextItem, NextItemStates
from lightrec.objectives.sampled import GBCE, BinaryCrossEntropy, SampledSoftmax, gbce_beta, log_expected

NUM_ITEMS = 12
EXACT = 1e-6  # float32 sums of a few dozen terms
COUNTS = torch.tensor([0, 50, 1, 5, 9, 20, 3, 7, 40, 2, 30, 4, 60])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def log_sigmoid_terms(model, batch, negatives):
    hidden, targets = NextItemStates(model, batch).rows()
    logits = model.items.score(hidden)
    return logits.gather(1, targets[:, None]).squeeze(1), logits.gather(1, negatives)


def at(objective, model, batch, ids, **options):
    """The loss with the negatives of the test instead of a draw, shared and excluded as the objective says."""
    negatives = Negatives(ids, objective.sampler.shared, objective.sampler.exclude)
    return total(objective(model, batch, negatives=negatives, **options))


def others(targets):
    """[T, V - 1], all items but the target."""
    return torch.stack([torch.tensor([i for i in range(1, NUM_ITEMS + 1) if i != t]) for t in targets.tolist()])


def test_all_other_items_as_negatives_make_the_full_softmax(model, batch):
    _, targets = NextItemStates(model, batch).rows()
    loss = at(SampledSoftmax(NUM_ITEMS - 1), model, batch, others(targets))
    assert abs(loss - total(NextItem()(model, batch))) < EXACT


def test_the_whole_catalog_shared_by_the_batch_without_the_target_makes_the_full_softmax(model, batch):
    objective = SampledSoftmax(NUM_ITEMS, shared="batch", distinct=True, exclude="target")
    assert abs(total(objective(model, batch)) - total(NextItem()(model, batch))) < EXACT


def test_gbce_with_t_0_is_bce(model, batch):
    ids = torch.randint(1, NUM_ITEMS + 1, (8, 5))
    gbce = at(GBCE(5, t=0.0), model, batch, ids)
    bce = at(BinaryCrossEntropy(5, exclude="nothing"), model, batch, ids)
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
    assert abs(at(GBCE(5), model, batch, ids) - expected) < EXACT


@pytest.mark.parametrize("proposal", ["uniform", "popularity"])
@pytest.mark.parametrize("shared", ["position", "batch"])
def test_log_q_makes_the_partition_function_unbiased(batch, proposal, shared):
    """exp(loss) of a position is an estimate of Z / exp(s+): its mean over many draws is the full softmax's."""
    model = SASRec(NUM_ITEMS, max_length=6, hidden_size=8, num_layers=1, dropout=0.0)  # mild logits: less variance
    hidden, targets = NextItemStates(model, batch).rows()
    row = torch.repeat_interleave(torch.arange(3), batch.lengths - 1)
    logits = model.items.score(hidden)
    truth = (logits.logsumexp(1) - logits.gather(1, targets[:, None]).squeeze(1)).exp()
    sampler = NegativeSampler(4, proposal, shared, "target", alpha=0.75)
    sampler.item_counts = COUNTS
    estimates = []

    def keep_each(logits):
        negative = logits.negative - log_expected(sampler.log_q(model.items), logits)
        rest = (negative.masked_fill(logits.taken, -torch.inf).logsumexp(1) - logits.positive).exp()
        estimates.append(rest.masked_fill(logits.taken.all(1), torch.nan))  # nothing but the target says nothing
        return logits.positive.sum() + negative.sum()

    for _ in range(1500):
        negatives = sampler.draw(model.items, batch, row, targets)
        head = model.items.linear_head(hidden.detach())
        asked = Asked(model.items, hidden.detach(), targets, row, negatives, head)
        choose(asked).sum(asked, keep_each)
    estimates = torch.stack(estimates).detach()
    drawn = (~estimates.isnan()).sum(0)
    mean = estimates.nanmean(0)
    error = ((estimates - mean).square().nansum(0) / drawn).sqrt() / drawn.sqrt()
    assert (error < 0.1 * mean).all()  # enough draws to notice a bias
    assert ((mean - (truth - 1)).abs() < 4 * error).all()


def test_without_the_correction_popular_negatives_do_not_estimate_the_full_softmax(model, batch):
    objective = SampledSoftmax(2000, proposal="popularity", log_q=True)
    objective.sampler.item_counts = COUNTS
    plain = SampledSoftmax(2000, proposal="popularity")
    plain.sampler.item_counts = COUNTS
    full = total(NextItem()(model, batch))
    assert abs(total(objective(model, batch)) - full) < 0.2 < 1 < abs(total(plain(model, batch)) - full)


def test_in_batch_negatives_are_the_targets_of_the_batch(model, batch):
    objective = SampledSoftmax(100, proposal="in-batch")
    hidden, targets = NextItemStates(model, batch).rows()
    logits = (hidden @ model.items.linear_head(hidden).weight.T)[:, targets - 1]
    logits = logits.masked_fill(targets[None, :] == targets[:, None], -torch.inf)
    logits[range(8), range(8)] = (hidden * model.items.linear_head(hidden).weight[targets - 1]).sum(-1)
    assert abs(total(objective(model, batch)) - F.cross_entropy(logits, torch.arange(8))) < EXACT


@pytest.mark.parametrize("make", [SampledSoftmax, GBCE, BinaryCrossEntropy])
def test_a_step_down_the_gradient_lowers_the_loss(model, batch, make):
    torch.manual_seed(1)
    objective = make(6)
    loss = total(objective(model, batch))
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-2 * p.grad
    torch.manual_seed(1)
    assert total(objective(model, batch)) < loss


def test_a_bfloat16_head_stays_near_and_gives_float32_gradients(model, batch):
    for shared in ("position", "row", "batch"):
        model.items.head_dtype = None
        torch.manual_seed(2)
        exact = total(SampledSoftmax(6, shared=shared)(model, batch))
        torch.manual_seed(2)
        model.items.head_dtype = torch.bfloat16
        model.zero_grad()
        near = total(SampledSoftmax(6, shared=shared)(model, batch))
        near.backward()
        assert abs(exact - near) < 0.05 and near.dtype == torch.float32
        assert model.items.embedding.weight.grad.dtype == torch.float32


def test_a_row_without_targets_is_legal(model):
    rows = Batch(item_ids=torch.tensor([[3, 0], [4, 5]]), lengths=torch.tensor([1, 2]), user_ids=torch.arange(2))
    assert total(SampledSoftmax(3)(model, rows)).isfinite()


def test_positions_last_asks_once_a_row(model, batch):
    hidden, targets = NextItemStates(model, batch).rows("last")
    ids = torch.randint(1, NUM_ITEMS + 1, (3, 4))
    logits = model.items.score(hidden)
    loss = F.cross_entropy(
        torch.cat([logits.gather(1, targets[:, None]), logits.gather(1, ids)], 1), torch.zeros(3).long()
    )
    assert abs(at(SampledSoftmax(4, positions="last"), model, batch, ids) - loss) < EXACT


def test_t_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="between 0"):
        GBCE(t=1.5)
