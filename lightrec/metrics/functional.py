"""Ranking metrics as functions of ranks, and ranks as functions of lists. Pure, no state.

Ties are resolved against the model: the rank of a target is the number of candidates that score at least as high,
itself included. A model that scores everything alike therefore earns nothing. Values are float64, because they are
summed over millions of rows and compared to 1e-12 between processes.

Shapes: B rows, K list length, T targets a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

MISS = 2**31  # a rank beyond any list


def target_ranks(item_ids: Tensor, scores: Tensor, target_ids: Tensor) -> Tensor:
    """Finds the pessimistic rank of each target in a list of the best items.

    A target that is not listed, or that ties with the last listed score, may have any number of equals beyond the list
    and counts as a miss. Lists of k + 1 items hence give exact ranks up to k.

    Args:
        item_ids: [B, K] best first; 0 where candidates ran out.
        scores: [B, K] non-increasing; -inf where candidates ran out.
        target_ids: [B, T]; 0 pads.

    Returns:
        [B, T] int64, 1 for the best place, `MISS` where the target is not known to be in the first K - 1 places.

    Raises:
        ValueError: a score is NaN.
    """
    if scores.isnan().any():
        raise ValueError("scores hold NaN: a model that has diverged has no ranking.")
    match = (item_ids.unsqueeze(1) == target_ids.unsqueeze(2)) & (target_ids != 0).unsqueeze(2)  # [B, T, K]
    listed = match.any(2)
    place = match.to(torch.uint8).argmax(2)
    target_scores = scores.gather(1, place)  # [B, T]
    ranks = (scores.unsqueeze(1) >= target_scores.unsqueeze(2)).sum(2)
    # A list that ends in padding holds every candidate, so a tie with its end hides nothing.
    open_ended = item_ids[:, -1:] != 0
    hidden_ties = open_ended & (target_scores == scores[:, -1:])
    return torch.where(listed & ~hidden_ties, ranks, MISS)


def distinct_targets(target_ids: Tensor) -> Tensor:
    """Keeps the first of equal targets in each row and turns the others into padding: [B, T].

    An item can be found once, so a second mention of it must neither raise NDCG above 1 nor lower the recall.
    """
    if target_ids.shape[1] == 1:
        return target_ids
    equal = target_ids.unsqueeze(2) == target_ids.unsqueeze(1)  # [B, T, T]
    return target_ids.masked_fill(equal.tril(-1).any(2), 0)


def num_targets(target_ids: Tensor) -> Tensor:
    """Counts the targets of each row: [B]."""
    return (target_ids != 0).sum(1)


def hit_rate(ranks: Tensor, k: int) -> Tensor:
    """1 for each row with a target among the first k, else 0: [B] float64."""
    return (ranks <= k).any(1).double()


def recall(ranks: Tensor, counts: Tensor, k: int) -> Tensor:
    """Share of a row's targets among the first k: [B] float64; equal to the hit rate for a single target."""
    return (ranks <= k).sum(1).double() / counts.clamp_min(1)


def ndcg(ranks: Tensor, counts: Tensor, k: int) -> Tensor:
    """Sum of 1 / log2(rank + 1) over targets among the first k, by the sum of the best possible ranking: [B] float64.

    For one target this is 1 / log2(rank + 1).
    """
    gains = torch.where(ranks <= k, 1.0 / torch.log2(ranks.double() + 1.0), 0.0).sum(1)
    ideal = (1.0 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64, device=ranks.device))).cumsum(0)
    return gains / ideal[counts.clamp(1, k) - 1]


def reciprocal_rank(ranks: Tensor, k: int) -> Tensor:
    """1 / rank of the first target if it is among the first k, else 0: [B] float64."""
    first = ranks.amin(1)
    return torch.where(first <= k, 1.0 / first.double(), 0.0)
