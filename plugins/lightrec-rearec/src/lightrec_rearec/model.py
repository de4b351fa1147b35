"""ReaRec: a sequence encoder that thinks for a few steps before it recommends.

Jiakai Tang, Sunhao Dai, Teng Shi, Jun Xu, Xu Chen, Wen Chen, Jian Wu and Yuning Jiang, "Think Before Recommend:
Unleashing the Latent Reasoning Power for Sequential Recommendation", 2025, https://arxiv.org/abs/2503.22675; code:
TangJiakai/ReaRec.

Differences from the released code, and why:

* Any encoder can reason: attention by a cache of keys and values, recurrent and state-space networks by a step. A
  bidirectional encoder gets the paper's prefix mask, which the release does not have.
* `positions: all` reasons after every item of a window in one pass. The release has one row per prefix, which is
  `positions: last` with `train_windows: prefixes`.
* Reasoning tokens have a LayerNorm and a dropout of their own, since an encoder's `enter` also adds item positions.
* Padding is not a class of the softmax, and its vector is zero.
* The defects of the release are not here. ERL and PRL work in every epoch and with K = 0. A cached step computes one
  row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightrec import Batch, EncoderRecommender, InputError, ItemTable, Objective, SequenceEncoder
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.models.sasrec import SASRecEncoder
from lightrec.recommender import AdamW, Optimizer
from lightrec_rearec.evaluation import StepEvaluation
from lightrec_rearec.objectives import ERL, PRL
from lightrec_rearec.reasoning import Aggregate, reason_with


class ReaRec(EncoderRecommender):
    """Latent reasoning around an encoder: its last state goes in again, num_steps times.

    Args:
        num_items: size of the catalog.
        max_length: longest history of the default encoder; not read where an encoder is given.
        hidden_size: D of the default encoder; not read where an encoder is given.
        encoder: what is reasoned with; None is a SASRecEncoder.
        num_steps: K; 0 is the encoder without reasoning.
        objective: what is trained; None is PRL.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`; None is the mean for ERL, otherwise
            the last.
        dropout: of the reasoning tokens.
        repeat: encode the whole sequence again for each step, for causal encoders that have no other way.
        items: an item table for num_items; None is a tied embedding.
        item_scale: the tied embedding is multiplied by this where it enters; None is sqrt(hidden_size), as in SASRec.
        item_std: standard deviation of its initialisation; None is Xavier normal.
        head_dtype: dtype of its products with the catalog while training; None is float32, or that of autocast.
        step_metrics: `test` reports each step, and the oracle step as a diagnostic, too.
        optimizer: how it is trained.

    Raises:
        InputError: items for another catalog, or an encoder that cannot be reasoned with.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int = 50,
        hidden_size: int = 64,
        encoder: SequenceEncoder | None = None,
        num_steps: int = 2,
        objective: Objective | None = None,
        aggregate: Aggregate | None = None,
        dropout: float = 0.2,
        repeat: bool = False,
        items: ItemTable | None = None,
        item_scale: float | None = None,
        item_std: float | None = None,
        head_dtype: HeadDtype | None = None,
        step_metrics: bool = True,
        optimizer: Optimizer = AdamW(),
    ):
        if items is not None and items.num_items != num_items:
            raise InputError(f"items has {items.num_items} items, the data have {num_items}: they must be the same.")
        objective = objective or PRL()
        if aggregate is None:
            aggregate = "mean" if _holds_erl(objective.describe()) else "last"
        width = hidden_size if encoder is None else encoder.hidden_size
        if items is None:
            scale = width**0.5 if item_scale is None else item_scale
            items = ItemEmbedding(num_items, width, scale=scale, std=item_std, head_dtype=head_dtype)
        encoder = encoder or SASRecEncoder(max_length, hidden_size)
        super().__init__(
            items=items,
            encoder=reason_with(encoder, num_steps, aggregate, dropout, repeat),
            objective=objective,
            optimizer=optimizer,
            evaluation=StepEvaluation(num_steps) if step_metrics and num_steps else None,
        )

    def reason(self, batch: Batch) -> Tensor:
        """Returns [B, K + 1, D], the states after the last item: r_0 to r_K."""
        return self.encoder.reason(self.history(batch))[:, 0]

    @torch.no_grad()
    def recommend_by_step(self, batch: Batch, k: int) -> list[tuple[Tensor, Tensor]]:
        """Returns the lists of each step 0 to K, as `recommend` would give them: item_ids and scores [B, k]."""
        return [
            self.search(self.items, state.contiguous(), k, batch.seen_ids, batch.candidate_ids)
            for state in self.reason(batch).unbind(1)
        ]


def _holds_erl(description: Any) -> bool:
    """Says whether an objective is ERL or a sum with ERL in it, from its description.

    A model that was loaded to recommend has no objective, but still knows how that is described.
    """
    if isinstance(description, dict):
        if description.get("class_path") == f"{ERL.__module__}.{ERL.__qualname__}":
            return True
        description = list(description.values())
    return isinstance(description, list) and any(map(_holds_erl, description))
