"""What UniRec needs to know of the items: how frequent they are, how irregular, and which are bought near one another.

Counted from the training part only. (The released tables count the whole log, test events included.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightrec.data.corpus import TrainingLog
from lightrec_unirec.time import gap_spread


class ItemFacts(NamedTuple):
    """Facts of the V = num_items + 1 ids; row 0 is padding."""

    frequent: Tensor
    """[V] bool, the most frequent items."""
    irregular: Tensor
    """[V] bool, items that come after gaps of very different lengths."""
    neighbours: Tensor
    """[V, K] int64, items that stand beside an item in histories, nearest first; 0 pads."""

    def to(self, device: torch.device) -> ItemFacts:
        """Returns the facts on another device."""
        return ItemFacts(*(fact.to(device) for fact in self))


@dataclass(frozen=True)
class Counting:
    """How facts are counted."""

    frequent_share: float = 0.3
    """Share of the items that were seen and count as frequent, the most frequent first."""
    regular_share: float = 0.3
    """Share of them that count as regular, the least spread of gaps first."""
    num_neighbours: int = 10
    """K."""
    reach: int = 2
    """Events apart that still are neighbours."""


def count_items(train: TrainingLog, num_items: int, counting: Counting = Counting()) -> ItemFacts:
    """Counts facts from training histories.

    A neighbour j of i scores 0.4 s / (1 + s) + 0.8 / (1 + log(1 + g)) + 0.5 / (1 + log(1 + v_j)), with s the cosine of
    their co-occurrence, g the mean gap between the two in hours, and v_j the variance of the gaps before j.

    Args:
        train: the training part. Without times every gap is an hour.
        num_items: size of the catalog.
        counting: shares and sizes.
    """
    items, times, begin, end = train.items, train.times, train.begin, train.end
    place = np.concatenate([np.arange(b, e) for b, e in zip(begin, end, strict=True)] or [np.arange(0)])
    owner = np.repeat(np.arange(len(begin)), end - begin)
    ids = items[place].astype(np.int64)
    when = np.arange(len(place)) * 3600 if times is None else times[place]
    size = num_items + 1
    counts = np.bincount(ids, minlength=size)

    same = owner[1:] == owner[:-1]
    hours = np.maximum(0, when[1:] - when[:-1])[same] / 3600
    after = ids[1:][same]
    seen = np.maximum(1, np.bincount(after, minlength=size))
    mean = np.bincount(after, hours, size) / seen
    variance = np.maximum(0, np.bincount(after, hours**2, size) / seen - mean**2)

    known = np.flatnonzero(counts[1:]) + 1
    frequent, irregular = np.zeros(size, bool), np.zeros(size, bool)
    by_count = known[np.argsort(-counts[known], kind="stable")]
    frequent[by_count[: int(np.ceil(counting.frequent_share * len(known)))]] = True
    by_spread = known[np.argsort(variance[known], kind="stable")]
    irregular[by_spread[int(np.floor(counting.regular_share * len(known))) :]] = True

    one, other, gap = [], [], []
    for step in range(1, counting.reach + 1):
        near = (owner[step:] == owner[:-step]) & (ids[step:] != ids[:-step])
        a, b = ids[:-step][near], ids[step:][near]
        hours = np.maximum(0, when[step:] - when[:-step])[near] / 3600
        one += [a, b]
        other += [b, a]
        gap += [hours, hours]
    one, other, gap = np.concatenate(one), np.concatenate(other), np.concatenate(gap)
    pair, inverse = np.unique(one * size + other, return_inverse=True)
    together = np.bincount(inverse, minlength=len(pair))
    gap = np.bincount(inverse, gap, len(pair)) / np.maximum(1, together)
    one, other = pair // size, pair % size
    cosine = together / np.sqrt(np.maximum(1, counts[one]) * np.maximum(1, counts[other]))
    score = 0.4 * cosine / (1 + cosine) + 0.8 / (1 + np.log1p(gap)) + 0.5 / (1 + np.log1p(variance[other]))
    order = np.lexsort((other, -score, one))
    one, other = one[order], other[order]
    starts = np.searchsorted(one, np.arange(size))
    rank = np.arange(len(one)) - starts[one]
    neighbours = np.zeros((size, counting.num_neighbours), np.int64)
    keep = rank < counting.num_neighbours
    neighbours[one[keep], rank[keep]] = other[keep]
    return ItemFacts(torch.from_numpy(frequent), torch.from_numpy(irregular), torch.from_numpy(neighbours))


def spread_limit(train: TrainingLog, share: float) -> float:
    """Returns the spread of gaps that a `share` of the histories with two gaps or more stay below."""
    if train.times is None:
        return float("inf")
    long = train.end - train.begin >= 3
    found = []
    for b, e in zip(train.begin[long], train.end[long], strict=True):
        row = torch.as_tensor(train.times[b:e].copy())[None]
        found.append(gap_spread(row, torch.tensor([row.shape[1]])))
    return torch.cat(found).quantile(share).item() if found else float("inf")
