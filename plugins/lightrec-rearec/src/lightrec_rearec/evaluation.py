"""How a reasoning is judged: by the lists of the model, of each of its steps, and of an oracle among them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightrec import Batch, Corpus
from lightrec.metrics.functional import distinct_targets, ndcg, num_targets, target_ranks
from lightrec.metrics.ranking import RankingMetrics
from lightrec.recommender import RankingEvaluation

ORACLE = "oracle(diagnostic)"


class StepEvaluation(RankingEvaluation):
    """Ranking metrics of a ReaRec's lists, and at a test those of each step and of an oracle.

    Names are `step-k/ndcg@10` and `oracle(diagnostic)/ndcg@10`. For each row the oracle takes the step that ranks the
    target best. It looks at the answer: it bounds what choosing a step could give, and is not a result of any model.

    Args:
        num_steps: K of the model.
        ks: cut-offs.
        cohorts: break the metrics down by length of history and by popularity of the target.
        beyond: coverage and popularity of what the model recommends.
        per_user: keep the rank of each user.
    """

    def __init__(
        self,
        num_steps: int,
        ks: list[int] | tuple[int, ...] = (1, 5, 10, 20),
        cohorts: bool = False,
        beyond: bool = True,
        per_user: bool = False,
    ):
        super().__init__(ks, cohorts, beyond, per_user)
        self.num_steps = num_steps
        self.steps = nn.ModuleList(RankingMetrics(ks, cohorts, beyond=False) for _ in range(num_steps + 1))
        self.oracle = RankingMetrics(ks, cohorts, beyond=False)
        self.tests = False

    def with_options(self, ks: list[int], cohorts: bool, beyond: bool, per_user: bool) -> StepEvaluation:
        return StepEvaluation(self.num_steps, ks, cohorts, beyond, per_user)

    def connect(self, corpus: Corpus) -> None:
        super().connect(corpus)
        for metrics in (*self.steps, self.oracle):
            metrics.set_catalog(corpus.item_counts, str(corpus.candidates))

    def reset(self, part: str = "val") -> None:
        super().reset(part)
        self.tests = part == "test"
        for metrics in (*self.steps, self.oracle):
            metrics.reset()

    def update(self, recommender, batch: Batch) -> None:
        super().update(recommender, batch)
        if not self.tests:
            return
        lists = recommender.recommend_by_step(batch, self.metrics.max_k + 1)
        chosen = best_of(lists, batch.target_ids, self.metrics.max_k)
        for metrics, found in zip((*self.steps, self.oracle), (*lists, chosen), strict=True):
            metrics.update(*found, batch.target_ids, batch.user_ids, batch.history_lengths)

    def compute(self) -> dict[str, Tensor]:
        found = super().compute()
        if self.tests:
            for name, metrics in (*((f"step-{k}", m) for k, m in enumerate(self.steps)), (ORACLE, self.oracle)):
                found |= {f"{name}/{metric}": value for metric, value in metrics.compute().items()}
        return found


def best_of(lists: list[tuple[Tensor, Tensor]], target_ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Takes for each row the list of the step with the best NDCG@k, by looking at the answer.

    Args:
        lists: item_ids and scores [B, K] of each step.
        target_ids: [B, T]; 0 pads.
        k: cut-off.
    """
    targets = distinct_targets(target_ids)
    gains = torch.stack([ndcg(target_ranks(*found, targets), num_targets(targets), k) for found in lists])
    best = gains.argmax(0)
    rows = torch.arange(len(best), device=best.device)
    return tuple(torch.stack(parts)[best, rows] for parts in zip(*lists, strict=True))
