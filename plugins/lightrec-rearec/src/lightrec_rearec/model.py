"""ReaRec: a sequence encoder that thinks for a few steps before it recommends.

Jiakai Tang, Sunhao Dai, Teng Shi, Jun Xu, Xu Chen, Wen Chen, Jian Wu and Yuning Jiang, "Think Before Recommend:
Unleashing the Latent Reasoning Power for Sequential Recommendation", 2025, https://arxiv.org/abs/2503.22675; code:
TangJiakai/ReaRec.

Differences from the released code, and why:

* Any encoder: attention (keys and values kept), recurrent and state-space (a step), bidirectional attention (the
  paper's prefix mask, of which the release has nothing).
* `positions: all` reasons after every item of a window in one pass; the release has a row for each prefix, which is
  `positions: last` with `train_windows: prefixes`.
* LayerNorm and dropout of reasoning tokens are their own, since an encoder's `prepare` also adds item positions.
* Padding is no class of the softmax, and its vector is zero.
* Its defects are not here: ERL and PRL work in every epoch and with K = 0, and a cached step computes one row.
"""

from __future__ import annotations

import torch
from lightrec.nn.item_embedding import ItemEmbedding
from torch import Tensor

from lightrec import Batch, EncoderRecommender, InputError, ItemTable, Objective, RankingMetrics, SequenceEncoder
from lightrec.metrics.functional import distinct_targets, ndcg, num_targets, target_ranks
from lightrec.models.sasrec import SASRecEncoder
from lightrec.recommender import Decay
from lightrec_rearec.objectives import ERL, PRL
from lightrec_rearec.reasoning import Aggregate, reason_with

ORACLE = "oracle(diagnostic)"


class StepMetrics(RankingMetrics):
    """The metrics of a model and, under `step-k/`, those of each of its steps; under `oracle(diagnostic)/` an oracle.

    The oracle takes, for each row, the step that ranks the target best. It looks at the answer: it bounds what choosing
    a step could give, and is no result of any model.
    """

    @classmethod
    def like(cls, metrics: RankingMetrics, num_steps: int) -> StepMetrics:
        """Returns fresh metrics with the options of others."""
        made = cls(metrics.ks, metrics.cohorts, metrics.beyond, metrics.per_user)
        parts = [RankingMetrics(metrics.ks, metrics.cohorts, beyond=False) for _ in range(num_steps + 2)]
        made.steps, made.oracle = torch.nn.ModuleList(parts[:-1]), parts[-1]
        return made

    def set_catalog(self, item_counts: Tensor, candidates: str = "full") -> None:
        super().set_catalog(item_counts, candidates)
        for metrics in (*self.steps, self.oracle):
            metrics.set_catalog(item_counts, candidates)

    def reset(self) -> None:
        super().reset()
        for metrics in (*getattr(self, "steps", ()), *filter(None, (getattr(self, "oracle", None),))):
            metrics.reset()

    def update_steps(self, lists: list[tuple[Tensor, Tensor]], batch: Batch) -> None:
        """Adds the lists of each step for a batch that `update` was given before."""
        chosen = best_of(lists, batch.target_ids, self.max_k)
        for metrics, found in zip((*self.steps, self.oracle), (*lists, chosen), strict=True):
            metrics.update(*found, batch.target_ids, batch.user_ids, batch.history_lengths)

    def compute(self) -> dict[str, Tensor]:
        """Returns the model's metrics, then those of its steps and of the oracle."""
        out = super().compute()
        for name, metrics in (*((f"step-{k}", m) for k, m in enumerate(self.steps)), (ORACLE, self.oracle)):
            out |= {f"{name}/{metric}": value for metric, value in metrics.compute().items()}
        return out


def _plain(metrics: RankingMetrics) -> RankingMetrics:
    return RankingMetrics(metrics.ks, metrics.cohorts, metrics.beyond, metrics.per_user)


class ReaRec(EncoderRecommender):
    """Latent reasoning around an encoder: its last state goes in again, num_steps times.

    Args:
        num_items: size of the catalog.
        max_length: longest history of the default encoder; read only if `encoder` is not given. So hidden_size.
        hidden_size: D of the default encoder.
        encoder: what is reasoned with; None is a SASRecEncoder.
        num_steps: K; 0 is the encoder without reasoning.
        objective: what is trained; None is PRL.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`; None is what the objective wants:
            the mean for ERL, otherwise the last.
        dropout: of the reasoning tokens.
        repeat: encode the whole sequence again for each step: for causal encoders that have no other way.
        items: an item table for num_items; None is a tied embedding.
        item_scale: the tied embedding is multiplied by this where it enters; None is sqrt(hidden_size), as in SASRec.
        item_std: standard deviation of its initialisation; None is Xavier normal.
        step_metrics: `test` reports each step, and the oracle step as a diagnostic, too.
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay on matrices.
        warmup_steps: steps of linear warm-up.
        decay: how the learning rate falls until the last step.

    Raises:
        InputError: a negative number of steps, or an encoder that cannot be reasoned with.
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
        step_metrics: bool = True,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        if items is not None and items.num_items != num_items:
            raise InputError(f"items has {items.num_items} items, the data have {num_items}: they must be the same.")
        objective = objective or PRL()
        if aggregate is None:
            aggregate = "mean" if any(isinstance(part, ERL) for part in objective.modules()) else "last"
        width = hidden_size if encoder is None else encoder.hidden_size
        if items is None:
            items = ItemEmbedding(
                num_items, width, scale=width**0.5 if item_scale is None else item_scale, std=item_std
            )
        encoder = encoder or SASRecEncoder(max_length, hidden_size)
        super().__init__(
            items=items,
            encoder=reason_with(encoder, num_steps, aggregate, dropout, repeat),
            objective=objective,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )
        self.step_metrics = step_metrics

    def reason(self, batch: Batch) -> Tensor:
        """Returns [B, K + 1, D], the states after the last item: r_0 to r_K."""
        return self.encoder.reason(self.vectors(batch), batch.lengths)[:, 0]

    @torch.no_grad()
    def recommend_by_step(self, batch: Batch, k: int) -> list[tuple[Tensor, Tensor]]:
        """Returns the lists of each step 0 to K, as `recommend` would give them: item_ids and scores [B, k]."""
        return [
            self.items.top_k(state.contiguous(), k, batch.seen_ids, batch.candidate_ids)
            for state in self.reason(batch).unbind(1)
        ]

    def on_test_epoch_start(self) -> None:
        if self.step_metrics and self.encoder.num_steps:
            # here and not before, because the command line gives a model its metrics after it was built
            self.metrics = StepMetrics.like(self.metrics, self.encoder.num_steps).to(self.device)
        super().on_test_epoch_start()

    def on_validation_epoch_start(self) -> None:
        if isinstance(self.metrics, StepMetrics):
            self.metrics = _plain(self.metrics).to(self.device)
        super().on_validation_epoch_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        if isinstance(self.metrics, StepMetrics) and len(batch):
            self.metrics.update_steps(self.recommend_by_step(batch, self.metrics.max_k + 1), batch)


def best_of(lists: list[tuple[Tensor, Tensor]], target_ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Takes for each row the list of the step with the best NDCG@k.

    This looks at the answer. It bounds what choosing a step could ever give, and is no result of any model.

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
