"""How a model is judged: a part that looks at each batch and sums up what it saw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightrec.metrics.ranking import RankingMetrics
from lightrec.part import Part

if TYPE_CHECKING:
    from lightrec.data.batch import Batch
    from lightrec.data.corpus import Corpus


class Evaluation(Part, ABC):
    """Numbers of a validation or a test, accumulated over batches and processes."""

    def with_options(self, ks: list[int], cohorts: bool, beyond: bool, per_user: bool) -> Evaluation:
        """Returns a fresh evaluation of this kind with the options of the command line; itself if it has none."""
        return self

    @abstractmethod
    def reset(self, part: str = "val") -> None:
        """Forgets what was seen, before a validation (`val`) or a test (`test`)."""

    @abstractmethod
    def update(self, recommender, batch: Batch) -> None:
        """Looks at a batch of histories with their targets; every row is in one batch of one process."""

    @abstractmethod
    def compute(self) -> Mapping[str, Tensor]:
        """Returns scalars by name, the same on every process."""


class RankingEvaluation(Evaluation):
    """Ranking metrics of the recommender's lists.

    Args:
        ks: cut-offs.
        cohorts: break the metrics down by length of history and by popularity of the target.
        beyond: coverage and popularity of what is recommended.
        per_user: keep the rank of each user.
    """

    def __init__(
        self,
        ks: list[int] | tuple[int, ...] = (1, 5, 10, 20),
        cohorts: bool = False,
        beyond: bool = True,
        per_user: bool = False,
    ):
        super().__init__()
        self.metrics = RankingMetrics(ks, cohorts, beyond, per_user)

    def connect(self, corpus: Corpus) -> None:
        self.metrics.set_catalog(item_counts=corpus.item_counts, candidates=str(corpus.candidates))

    def with_options(self, ks: list[int], cohorts: bool, beyond: bool, per_user: bool) -> RankingEvaluation:
        return RankingEvaluation(ks, cohorts, beyond, per_user)

    def reset(self, part: str = "val") -> None:
        self.metrics.reset()

    def update(self, recommender, batch: Batch) -> None:
        # One item more than is measured: a target tied with it is known to be tied beyond the list.
        item_ids, scores = recommender.recommend(batch, self.metrics.max_k + 1)
        self.metrics.update(item_ids, scores, batch.target_ids, batch.user_ids, batch.history_lengths)

    def compute(self) -> dict[str, Tensor]:
        return self.metrics.compute()
