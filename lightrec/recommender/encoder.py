"""EncoderRecommender: a recommender that is made of items, an encoder, an objective and a search."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.interfaces import History, ItemTable, Losses, Objective, Search, SequenceEncoder
from lightrec.recommender.contract import SequenceRecommender
from lightrec.recommender.evaluation import Evaluation
from lightrec.recommender.optimizer import AdamW, Optimizer
from lightrec.search.exact import ExactSearch


class EncoderRecommender(SequenceRecommender):
    """A recommender composed of an item table, a sequence encoder and an objective.

    Args:
        items: vectors and scores of the catalog.
        encoder: state after each item.
        objective: what is asked of a history while training.
        optimizer: how it is trained.
        search: how a state becomes a list; None scores every item. It may be replaced after training.
        evaluation: how it is judged; None is by ranking metrics.
    """

    def __init__(
        self,
        items: ItemTable,
        encoder: SequenceEncoder,
        objective: Objective,
        optimizer: Optimizer = AdamW(),
        search: Search | None = None,
        evaluation: Evaluation | None = None,
    ):
        super().__init__(optimizer, evaluation)
        if items.hidden_size != encoder.hidden_size:
            raise ValueError(
                f"items.hidden_size ({items.hidden_size}) must equal encoder.hidden_size ({encoder.hidden_size})."
            )
        self.items, self.encoder, self.objective = items, encoder, objective
        self.search: Search = search or ExactSearch()

    def history(self, batch: Batch) -> History:
        """Returns what the encoder reads of a batch."""
        return History(self.items(batch.item_ids), batch.lengths, batch.timestamps, columns=batch.position_columns())

    def encode(self, batch: Batch) -> Tensor:
        """Returns hidden [B, L, D], the state after each item of the batch."""
        return self.encoder(self.history(batch))

    def query(self, batch: Batch) -> Tensor:
        """Returns [B, D], the state that the catalog is searched with."""
        return self.encoder.last(self.history(batch))

    def loss(self, batch: Batch) -> Losses:
        return self.objective(self, batch)

    @torch.no_grad()
    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        return self.search(self.items, self.query(batch), k, batch.seen_ids, batch.candidate_ids)
