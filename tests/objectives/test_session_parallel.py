"""The session-parallel objective: state, candidates and losses of the official GRU4Rec."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch
from lightrec.data.batches import Batching, Events, TrainingBatches
from lightrec.data.rows import Sessions
from lightrec.data.splits import Histories
from lightrec.interfaces import History, total
from lightrec.models.gru4rec import GRU4RecSession
from lightrec.objectives.session_parallel import SessionParallel

NUM_ITEMS = 30
LENGTHS = np.array([5, 1, 9, 3, 2, 6])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sessions():
    """Items [26], and the windows and batches of six sessions, three side by side."""
    stop = np.cumsum(LENGTHS)
    items = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, stop[-1]).astype(np.int32)
    windows = Sessions().windows(Histories(np.arange(6), stop - LENGTHS, stop, stop), 50)
    make, plan = TrainingBatches(Events(items), windows), Sessions().plan(windows, None, Batching(3))
    return items, stop, [make(rows) for rows in plan(0)]


def model(**options):
    options = dict(hidden_size=8, num_negatives=0, log_q=0.0, embedding_dropout=0.0) | options
    made = GRU4RecSession(NUM_ITEMS, **options)
    counts = torch.arange(NUM_ITEMS + 1)
    for sampler in (made.objective.sampler, made.objective.counts):
        if sampler is not None:
            sampler.item_counts = counts
    return made


def first_states(recommender, batch):
    """The state after the first event of each row, [B, D]."""
    vectors = recommender.items(batch.item_ids[:, :1])
    return recommender.encoder(History(vectors, torch.ones_like(batch.lengths)))[:, 0]


def test_the_state_is_carried_through_a_session_and_forgotten_where_the_next_begins():
    items, stop, batches = sessions()
    recommender = model()
    for batch in batches:
        recommender.loss(batch)
        state = recommender.objective._state[0]
        for user, row in zip(batch.user_ids.tolist(), range(len(batch)), strict=True):
            own = torch.from_numpy(items[stop[user] - LENGTHS[user] : stop[user]]).long()
            step = (own[:-1] == batch.item_ids[row, 0]).nonzero().flatten().tolist()
            hidden = recommender.encoder(History(recommender.items(own[None]), torch.tensor([len(own)])))[0]
            assert any(torch.allclose(state[row], hidden[t], atol=1e-6) for t in step)


def test_no_gradient_goes_back_through_time():
    _, _, batches = sessions()
    recommender = model()
    recommender.loss(batches[0])
    weight = recommender.items.embedding.weight
    total(recommender.loss(batches[1])).backward()
    assert not recommender.objective._state[0].requires_grad
    touched = set(weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert touched <= set(batches[1].item_ids.flatten().tolist())


def test_the_order_of_slots_does_not_matter():
    _, _, batches = sessions()
    one, other = model(), model()
    other.load_state_dict(one.state_dict())
    for batch in batches:
        shuffle = torch.randperm(len(batch))
        assert torch.allclose(total(one.loss(batch)), total(other.loss(batch.rows(shuffle))), atol=1e-6)


def test_without_samples_the_others_of_the_batch_are_the_candidates():
    _, _, batches = sessions()
    recommender, batch = model(), batches[0]
    hidden = first_states(recommender, batch)
    logits = recommender.items.score(hidden, batch.item_ids[:, 1])
    assert torch.allclose(total(recommender.loss(batch)), F.cross_entropy(logits, torch.arange(3)), atol=1e-6)


def test_samples_join_the_targets_and_are_shared_by_the_batch():
    _, _, batches = sessions()
    recommender, batch = model(num_negatives=7), batches[0]
    torch.manual_seed(3)
    loss = total(recommender.loss(batch))
    torch.manual_seed(3)
    drawn = recommender.objective.sampler.draw(recommender.items, batch, torch.ones(3), batch.item_ids[:, 1]).ids
    hidden = first_states(recommender, batch)
    logits = recommender.items.score(hidden, torch.cat([batch.item_ids[:, 1], drawn]))
    assert len(drawn) == 7 and torch.allclose(loss, F.cross_entropy(logits, torch.arange(3)), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_full_correction_estimates_the_softmax_over_the_catalog(alpha):
    """The mean of the corrected sum over samples is the sum over the catalog."""
    recommender = model(num_negatives=512, alpha=alpha, log_q=1.0)
    objective = recommender.objective
    scores = torch.randn(NUM_ITEMS + 1)
    target, sums = torch.tensor([5]), []
    for _ in range(400):
        ids = objective.sampler.draw(recommender.items, [None], torch.ones(1), target).ids
        log_p = objective._log_popularity(recommender, target, torch.cat([target, ids]))[1:]
        sums.append((scores[ids] - log_p).exp().sum())
    assert torch.stack(sums).mean().item() == pytest.approx(scores[1:].exp().sum().item(), rel=1e-2)


def test_bpr_max_with_one_other_is_bpr_and_a_penalty():
    objective = SessionParallel(loss="bpr-max", num_negatives=0, bpreg=0.7)
    scores = torch.randn(2, 2)
    (a, b), (c, d) = scores
    expected = (-F.logsigmoid(a - b) + 0.7 * b**2 - F.logsigmoid(d - c) + 0.7 * c**2) / 2
    assert torch.allclose(objective._bpr_max(scores), expected)


def test_bpr_max_is_the_written_out_formula():
    objective = SessionParallel(loss="bpr-max", bpreg=1.3, elu=0.5)
    scores = torch.randn(3, 6)
    r, expected = F.elu(scores, 0.5), 0.0
    for i in range(3):
        others = [j for j in range(6) if j != i]
        s = torch.softmax(r[i, others], 0)
        expected -= torch.log((s * torch.sigmoid(r[i, i] - r[i, others])).sum())
        expected += 1.3 * (s * r[i, others] ** 2).sum()
    assert torch.allclose(objective._bpr_max(scores), expected / 3)


def test_whole_sessions_give_the_mean_over_their_events():
    batch = Batch(torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]), torch.tensor([4, 2]), torch.arange(2))
    recommender = model()  # in-batch only: a lone session has no other candidate and no loss
    hidden = first_states(recommender, batch)
    logits = recommender.items.score(hidden, torch.tensor([4, 8]))
    first = F.cross_entropy(logits, torch.arange(2), reduction="sum")
    assert torch.allclose(total(recommender.loss(batch)), first / 4, atol=1e-6)


def test_the_state_goes_into_a_checkpoint_and_comes_back():
    _, _, batches = sessions()
    one, other = model(), model()
    for batch in batches[:3]:
        one.loss(batch)
    other.load_state_dict(one.state_dict())
    assert torch.equal(total(one.loss(batches[3])), total(other.loss(batches[3])))


def test_unknown_losses_and_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="loss 'top1' is unknown; choose cross-entropy, bpr-max"):
        SessionParallel(loss="top1")
    with pytest.raises(ValueError, match=r"num_negatives \(-1\) must be at least 0"):
        SessionParallel(num_negatives=-1)
