"""Cloze: hide some items of a window and predict them from both sides."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrec.configurable import AtLeast, Between
from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, Objective, Term
from lightrec.nn.sequence import valid_mask
from lightrec.objectives.next_item import NextItemStates, mean_over_targets


class Cloze(Objective):
    """Cross-entropy of hidden items over the full catalog, averaged over hidden positions.

    Masks are drawn anew at every step (the original writes ten fixed copies to disk). Every hidden item becomes the
    mask, as in the original code: there is no 80 / 10 / 10 rule.

    Args:
        mask_probability: p; a row of n items hides min(max_masks, max(1, round(n * p))) of them.
        max_masks: at most so many per row; None sets no limit.
        last_only_share: share of rows where only the last item is hidden, which is what the model is asked later.

    Raises:
        ValueError: a share outside its range.
    """

    limits = {"mask_probability": Between(0, 1), "last_only_share": Between(0, 1), "max_masks": AtLeast(1)}

    def __init__(
        self,
        mask_probability: float = 0.2,
        max_masks: int | None = None,
        last_only_share: float = 0.1,
    ):
        super().__init__()
        if not mask_probability:
            raise ValueError(f"mask_probability ({mask_probability}) must be above 0 and at most 1.")
        self.mask_probability, self.max_masks, self.last_only_share = mask_probability, max_masks, last_only_share

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        hidden_places = self.draw(batch)
        mask_id = recommender.items.num_items + 1
        inputs = batch.replace(item_ids=batch.item_ids.masked_fill(hidden_places, mask_id))
        hidden = recommender.encode(inputs).flatten(0, 1)
        places = hidden_places.flatten().nonzero().squeeze(1)
        targets = batch.item_ids.flatten().index_select(0, places)
        total = recommender.items.cross_entropy(hidden.index_select(0, places), targets)
        return {"cloze": Term(mean_over_targets(total, len(targets)))}

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
