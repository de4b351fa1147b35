"""Ranks and metrics as functions: hand-made cases, laws, and two second implementations."""

import ir_measures
import pytest
import torch
from ir_measures import RR, R, Success, nDCG
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg, retrieval_recall

from lightrec.metrics.functional import (
    MISS,
    distinct_targets,
    hit_rate,
    ndcg,
    num_targets,
    recall,
    reciprocal_rank,
    target_ranks,
)

EXACT = 1e-12  # float64 sums of at most a hundred terms
TREC = 1e-9  # ir-measures goes through trec_eval, which prints nothing but accumulates in its own order


def ranks_of(scores, targets, k):
    """Ranks the columns 1.. of scores [B, V] by their k + 1 best, as a recommender lists them."""
    scores, targets = torch.tensor(scores), torch.tensor(targets)
    best, column = scores.topk(min(k + 1, scores.shape[1]))
    return target_ranks(column + 1, best, targets)


def random_case(seed, num_items=40, rows=25, targets=1, ties=False):
    gen = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, num_items, generator=gen) + 0.01
    if ties:
        scores = (scores * 6).round() / 6
    target_ids = torch.stack([torch.randperm(num_items, generator=gen)[:targets] + 1 for _ in range(rows)])
    return scores, target_ids


def test_a_perfect_list_scores_one():
    ranks = ranks_of([[9.0, 1.0, 2.0, 3.0], [0.0, 1.0, 7.0, 3.0]], [[1], [3]], k=2)
    counts = torch.ones(2, dtype=torch.long)
    assert ranks.tolist() == [[1], [1]]
    for value in (hit_rate(ranks, 1), recall(ranks, counts, 1), ndcg(ranks, counts, 1), reciprocal_rank(ranks, 1)):
        assert value.dtype == torch.float64 and value.tolist() == [1.0, 1.0]


def test_the_second_place_is_discounted_as_published():
    ranks = ranks_of([[5.0, 9.0, 1.0]], [[1]], k=2)
    assert ranks.tolist() == [[2]]
    assert hit_rate(ranks, 1).item() == 0 and hit_rate(ranks, 2).item() == 1
    assert ndcg(ranks, torch.tensor([1]), 2).item() == pytest.approx(0.6309297535714575, abs=EXACT)
    assert reciprocal_rank(ranks, 2).item() == 0.5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_constant_model_earns_nothing(k):
    ranks = ranks_of([[1.0] * 6] * 3, [[1], [3], [6]], k)
    assert (ranks == MISS).all()
    assert hit_rate(ranks, k).sum() == 0


def test_ties_within_the_list_count_against_the_target():
    # Items 1 and 2 share the first place, item 3 is below: both are second.
    assert ranks_of([[4.0, 4.0, 3.0, 1.0]] * 3, [[1], [2], [3]], k=3).tolist() == [[2], [2], [3]]


def test_a_target_tied_with_what_is_not_listed_is_a_miss():
    # Lists of two: items 2, 3 and 4 tie for the second place, so nobody knows how many equals are beyond the list.
    assert ranks_of([[9.0, 4.0, 4.0, 4.0]] * 2, [[1], [2]], k=1).tolist() == [[1], [MISS]]


def test_a_list_that_ran_out_of_candidates_hides_no_ties():
    item_ids, scores = torch.tensor([[2, 5, 3, 0, 0]]), torch.tensor([[3.0, 2.0, 2.0, -torch.inf, -torch.inf]])
    for target, rank in ((2, 1), (5, 3), (3, 3), (4, MISS)):
        assert target_ranks(item_ids, scores, torch.tensor([[target]])).item() == rank


def test_padding_is_never_found():
    item_ids, scores = torch.tensor([[2, 0, 0]]), torch.tensor([[1.0, -torch.inf, -torch.inf]])
    assert target_ranks(item_ids, scores, torch.tensor([[2, 0]])).tolist() == [[1, MISS]]


def test_nan_raises_wherever_it_stands():
    for place in range(3):
        scores = torch.tensor([[3.0, 2.0, 1.0]])
        scores[0, place] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            target_ranks(torch.tensor([[1, 2, 3]]), scores, torch.tensor([[1]]))


def test_several_targets_by_hand():
    # Ranks 1 and 3 of three targets at k = 3: recall 2/3, gain (1 + 1/2) by the ideal (1 + 1/log2(3) + 1/2).
    ranks, counts = torch.tensor([[3, MISS, 1, MISS]]), torch.tensor([3])
    assert hit_rate(ranks, 3).item() == 1
    assert recall(ranks, counts, 3).item() == pytest.approx(2 / 3, abs=EXACT)
    assert ndcg(ranks, counts, 3).item() == pytest.approx(1.5 / (1.5 + 0.6309297535714575), abs=EXACT)
    assert reciprocal_rank(ranks, 3).item() == 1


def test_more_targets_than_places_can_still_be_perfect():
    ranks, counts = torch.tensor([[1, 2, MISS, MISS]]), torch.tensor([4])
    assert ndcg(ranks, counts, 2).item() == pytest.approx(1.0, abs=EXACT)
    assert recall(ranks, counts, 2).item() == 0.5


def test_a_repeated_target_counts_once():
    targets = distinct_targets(torch.tensor([[4, 7, 4, 0, 7, 0], [1, 2, 3, 0, 0, 0]]))
    assert targets.tolist() == [[4, 7, 0, 0, 0, 0], [1, 2, 3, 0, 0, 0]]
    assert num_targets(targets).tolist() == [2, 3]


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 5, 10])
def test_agrees_with_ir_measures(seed, targets, k):
    scores, target_ids = random_case(seed, targets=targets)
    ranks, counts = ranks_of(scores.tolist(), target_ids.tolist(), k), num_targets(target_ids)
    qrels = {str(u): {str(i): 1 for i in row} for u, row in enumerate(target_ids.tolist())}
    run = {str(u): {str(i + 1): s for i, s in enumerate(row)} for u, row in enumerate(scores.tolist())}
    ours = {
        Success @ k: hit_rate(ranks, k),
        R @ k: recall(ranks, counts, k),
        nDCG @ k: ndcg(ranks, counts, k),
        RR @ k: reciprocal_rank(ranks, k),
    }
    seen = 0
    for value in ir_measures.iter_calc(list(ours), qrels, run):
        assert ours[value.measure][int(value.query_id)].item() == pytest.approx(value.value, abs=TREC)
        seen += 1
    assert seen == 4 * len(scores)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_agrees_with_torchmetrics_on_positive_scores(targets, k):
    scores, target_ids = random_case(7, targets=targets)
    ranks, counts = ranks_of(scores.tolist(), target_ids.tolist(), k), num_targets(target_ids)
    relevant = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, target_ids - 1, True)
    pairs = (
        (retrieval_hit_rate, hit_rate(ranks, k)),
        (retrieval_recall, recall(ranks, counts, k)),
        (retrieval_normalized_dcg, ndcg(ranks, counts, k)),
    )
    for theirs, ours in pairs:
        for row in range(len(scores)):
            assert ours[row].item() == pytest.approx(theirs(scores[row], relevant[row], top_k=k).item(), abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [1, 3, 10, 39, 40])
def test_short_lists_give_the_ranks_of_full_ones_with_ties(seed, k):
    scores, target_ids = random_case(seed, ties=True, targets=2)
    target_scores = scores.gather(1, target_ids - 1)
    exact = (scores.unsqueeze(1) >= target_scores.unsqueeze(2)).sum(2)
    # A recommender lists k + 1 items, and pads where there are fewer.
    best, column = torch.nn.functional.pad(scores, (0, 5), value=-torch.inf).topk(k + 1)
    item_ids = (column + 1).masked_fill(best == -torch.inf, 0)
    ranks = target_ranks(item_ids, best, target_ids)
    assert torch.equal(ranks <= k, exact <= k)
    assert torch.equal(ranks[ranks <= k], exact[exact <= k])
