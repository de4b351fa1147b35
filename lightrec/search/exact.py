"""Exact search: every item is scored, block by block; and the ranking of scores that are there already."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from lightrec.errors import InputError
from lightrec.interfaces import ItemTable, Search
from lightrec.ops.blocks import rows_that_fit


class ExactSearch(Search):
    """Ranks the catalog by float32 scores and in blocks of items, so that memory is bounded for any catalog.

    The product of a linear head is summed in float32 (float64 for float64 weights), whatever the dtype of the weights.
    Other scores are made in the dtype of the weights.
    """

    def forward(
        self,
        items: ItemTable,
        states: Tensor,
        k: int,
        exclude_ids: Tensor | None = None,
        candidate_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(_dtype_of_weights(items))
            best = _Best(len(states), k, states.device)
            if candidate_ids is not None:
                scores = items.score(states, candidate_ids).float()
                best.add(without(scores, candidate_ids, exclude_ids), candidate_ids)
            else:
                _rank_all(items, states, k, exclude_ids, best)
        if best.scores.isnan().any():
            raise InputError(
                "the model scored NaN: it has diverged; lower --model.optimizer.learning_rate or set "
                "--trainer.gradient_clip_val."
            )
        return best.item_ids.masked_fill(best.scores == -torch.inf, 0), best.scores


class _Best:
    """The best k items of each row among those that were added."""

    def __init__(self, num_rows: int, k: int, device: torch.device):
        self.k = k
        self.scores = torch.full((num_rows, k), -torch.inf, dtype=torch.float32, device=device)
        self.item_ids = torch.zeros(num_rows, k, dtype=torch.long, device=device)

    def add(self, scores: Tensor, item_ids: Tensor) -> None:
        """Adds scores [B, C] of items [C] or [B, C]."""
        # NaN sorts first, so that the check at the end sees every one
        scores, column = scores.topk(min(self.k, scores.shape[1]))
        all_scores = torch.cat([self.scores, scores], 1)
        all_ids = torch.cat([self.item_ids, item_ids.expand(len(scores), -1).gather(1, column)], 1)
        self.scores, column = all_scores.topk(self.k)
        self.item_ids = all_ids.gather(1, column)


def _rank_all(items: ItemTable, states: Tensor, k: int, exclude_ids: Tensor | None, best: _Best) -> None:
    """Adds the whole catalog, in blocks of items."""
    size = rows_that_fit(4 * len(states), states.device, "search", least=k)
    head = items.linear_head(states)
    if head is not None:
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        state = head.hidden.to(wide)
    for start in range(1, items.num_items + 1, size):
        stop = min(start + size, items.num_items + 1)
        ids = torch.arange(start, stop, device=states.device)
        if head is None:
            scores = items.score(states, ids).float()
        else:
            bias = None if head.bias is None else head.bias[start - 1 : stop - 1].to(wide)
            scores = F.linear(state, head.weight[start - 1 : stop - 1].to(wide), bias).float()
        if exclude_ids is not None:
            row, place = ((exclude_ids >= start) & (exclude_ids < stop)).nonzero(as_tuple=True)
            scores[row, exclude_ids[row, place] - start] = -torch.inf
        best.add(scores, ids)


def without(scores: Tensor, item_ids: Tensor, exclude_ids: Tensor | None) -> Tensor:
    """Returns scores [B, C] of items [B, C], -inf for those among exclude_ids [B, S]."""
    if exclude_ids is None or not exclude_ids.shape[1]:
        return scores
    left_out = exclude_ids.sort(1).values
    place = torch.searchsorted(left_out, item_ids).clamp_max(left_out.shape[1] - 1)
    return scores.masked_fill(left_out.gather(1, place) == item_ids, -torch.inf)


def ranked(
    scores: Tensor, k: int, exclude_ids: Tensor | None = None, candidate_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Ranks scores of the whole catalog that a model has at hand.

    Args:
        scores: [B, V], one column per item id; column 0 does not count. They are overwritten.
        k: length of the lists.
        exclude_ids: [B, S] items to leave out; 0 pads.
        candidate_ids: [B, C] the only items to rank; 0 pads.

    Returns:
        item_ids [B, K] best first, 0 where candidates ran out; scores [B, K] in float32, -inf there.
    """
    scores[:, 0] = -torch.inf
    if exclude_ids is not None:
        scores.scatter_(1, exclude_ids, -torch.inf)
    ids = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    if candidate_ids is not None:
        ids, scores = candidate_ids, scores.gather(1, candidate_ids)
    best, place = scores.topk(min(k, scores.shape[1]))
    missing = k - best.shape[1]
    best = F.pad(best, (0, missing), value=-torch.inf)
    ids = F.pad(ids.gather(1, place), (0, missing))
    return ids.masked_fill(best == -torch.inf, 0), best.float()


def _dtype_of_weights(items: ItemTable) -> torch.dtype:
    """What a table can multiply a state with: float32 under autocast too, bfloat16 where the whole model is."""
    tensors = list(items.parameters()) or list(items.buffers())
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32
