"""Cloze: hide some items of a window and predict them from both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.interfaces import Objective
from lightrec.nn.sequence import valid_mask
from lightrec.objectives.next_item import HeadDtype, catalog_cross_entropy, mean_over_targets


class Cloze(Objective):
    """Cross-entropy of hidden items over the full catalog, averaged over hidden positions.

    Masks are drawn anew at every step (the original writes ten fixed copies to disk). Every hidden item becomes the
    mask, as in the original code: there is no 80 / 10 / 10 rule.

    Args:
        mask_probability: p; a row of n items hides min(max_masks, max(1, round(n * p))) of them.
        max_masks: at most so many a row; None is no limit.
        last_only_share: share of rows where only the last item is hidden, which is what the model is asked later.
        head_dtype: dtype of the matrix products with the catalog; None is float32, or the dtype of autocast.

    Raises:
        ValueError: a share outside its range.
    """

    def __init__(
        self,
        mask_probability: float = 0.2,
        max_masks: int | None = None,
        last_only_share: float = 0.1,
        head_dtype: HeadDtype | None = None,
    ):
        super().__init__()
        if not 0 < mask_probability <= 1:
            raise ValueError(f"mask_probability ({mask_probability}) must be above 0 and at most 1.")
        if not 0 <= last_only_share <= 1:
            raise ValueError(f"last_only_share ({last_only_share}) must be between 0 and 1.")
        if max_masks is not None and max_masks < 1:
            raise ValueError(f"max_masks ({max_masks}) must be at least 1, or None for no limit.")
        self.mask_probability, self.max_masks, self.last_only_share = mask_probability, max_masks, last_only_share
        self.head_dtype = head_dtype

    def forward(self, recommender, batch: Batch) -> Tensor:
        hidden_places = self.draw(batch)
        mask_id = recommender.items.num_items + 1
        inputs = batch.replace(item_ids=batch.item_ids.masked_fill(hidden_places, mask_id))
        states = recommender.encode(inputs).flatten(0, 1)
        places = hidden_places.flatten().nonzero().squeeze(1)
        targets = batch.item_ids.flatten().index_select(0, places)
        dtype = None if self.head_dtype is None else getattr(torch, self.head_dtype)
        total = catalog_cross_entropy(recommender.items, states.index_select(0, places), targets, dtype)
        return mean_over_targets(total, len(targets))

    def draw(self, batch: Batch) -> Tensor:
        """Returns [B, L] bool, the positions to hide."""
        lengths, device = batch.lengths, batch.item_ids.device
        valid = valid_mask(lengths, batch.item_ids.shape[1])
        counts = (lengths * self.mask_probability).round().long().clamp_min(1)
        if self.max_masks is not None:
            counts = counts.clamp_max(self.max_masks)
        keys = torch.rand(valid.shape, device=device).masked_fill(~valid, 2.0)  # padding comes after all that is real
        chosen = keys.argsort(1).argsort(1) < counts[:, None]
        if not self.last_only_share:
            return chosen
        last = torch.arange(valid.shape[1], device=device) == lengths[:, None] - 1
        last_only = torch.rand(len(lengths), 1, device=device) < self.last_only_share
        return torch.where(last_only, last, chosen)
