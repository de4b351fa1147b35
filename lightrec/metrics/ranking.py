"""RankingMetrics: accumulates ranking metrics over batches and processes, from sums only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lightrec.errors import InputError
from lightrec.metrics.functional import MISS, hit_rate, ndcg, num_targets, recall, reciprocal_rank, target_ranks

_HISTORY_EDGES = (5, 10, 20, 50)
_ITEM_COHORTS = ("cold", "tail", "mid", "head")


class RankingMetrics(Metric):
    """HR, NDCG and MRR at several k, coverage and popularity of what is recommended, and cohorts.

    States are sums (float64 numerators, int64 counts), so `compute` gives the same numbers for any batch size and any
    number of processes, and for a process that had no row.

    Names: `hr@10`, `ndcg@10`, `mrr@10`; `recall@10` where a row has several targets; `coverage@10`, the share of the
    catalog recommended to somebody; `popularity_rank@10`, the mean over recommended items of their place in the
    training catalog sorted by popularity, 0 for the most popular and 1 for the least. With cohorts,
    `ndcg@10/history:5-9` and `ndcg@10/items:head`. A ranking of sampled candidates carries its name:
    `hr@10[uniform-100]`.

    Args:
        ks: cut-offs.
        cohorts: break HR and NDCG down by history length (0-4, 5-9, 10-19, 20-49, 50+) and by the target's popularity
            in training: head holds the most popular items that make up half of all events, mid those up to 90 %, tail
            the rest, cold what training never saw.
        beyond: coverage and popularity of the recommended items.
        per_user: keep the rank of each row's first target for significance tests, see `per_user_ranks`.

    Raises:
        InputError: a cut-off below 1.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(
        self,
        ks: Sequence[int] = (1, 5, 10, 20),
        cohorts: bool = False,
        beyond: bool = True,
        per_user: bool = False,
    ):
        super().__init__(sync_on_compute=True)
        if not ks or any(int(k) < 1 for k in ks):
            raise InputError(f"evaluation.ks must be whole numbers of at least 1, got {list(ks)}.")
        self.ks = tuple(sorted({int(k) for k in ks}))
        self.max_k = self.ks[-1]
        self.cohorts, self.beyond, self.per_user = cohorts, beyond, per_user
        self.candidates = "full"
        groups = 1 + (len(_HISTORY_EDGES) + 1 + len(_ITEM_COHORTS) if cohorts else 0)
        self.add_state("totals", torch.zeros(groups, len(self.ks), 4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(groups, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("several", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("shown", torch.zeros(len(self.ks), 1, dtype=torch.long), dist_reduce_fx="sum")
        if per_user:
            self.add_state("user_rows", [], dist_reduce_fx="cat")
        self.register_buffer("item_cohort", torch.zeros(1, dtype=torch.long), persistent=False)
        self.register_buffer("popularity_rank", torch.zeros(1, dtype=torch.float64), persistent=False)

    def connect(self, item_counts: Tensor, candidates: str = "full") -> None:
        """Tells what only the data know; resets the states.

        Args:
            item_counts: [V] int64, events per item in training; index 0 is padding.
            candidates: `full`, or the name of a sampled protocol, which becomes part of every metric's name.
        """
        counts = item_counts.clone()
        counts[0] = 0
        order = counts[1:].argsort(descending=True, stable=True) + 1
        rank = torch.zeros(len(counts), dtype=torch.float64)
        rank[order] = torch.arange(len(order), dtype=torch.float64) / max(1, len(order) - 1)
        share = torch.zeros(len(counts), dtype=torch.float64)
        share[order] = (counts[order].cumsum(0) - counts[order]).double() / max(1, int(counts.sum()))
        cohort = torch.where(share < 0.5, 3, torch.where(share < 0.9, 2, 1))
        cohort[counts == 0] = 0
        self.candidates = candidates
        self.item_cohort, self.popularity_rank = cohort.to(self.device), rank.to(self.device)
        self._defaults["shown"] = torch.zeros(len(self.ks), len(counts), dtype=torch.long)
        self.reset()

    def update(
        self,
        item_ids: Tensor,
        scores: Tensor,
        target_ids: Tensor,
        user_ids: Tensor | None = None,
        history_lengths: Tensor | None = None,
    ) -> None:
        """Adds a batch of lists.

        Args:
            item_ids: [B, K] best first, 0 where candidates ran out; K is at least `max_k` + 1, or holds all candidates.
            scores: [B, K] non-increasing.
            target_ids: [B, T]; 0 pads.
            user_ids: [B], kept with `per_user`.
            history_lengths: [B], for cohorts.

        Raises:
            ValueError: lists too short, or a NaN score.
        """
        if item_ids.shape[1] <= self.max_k:
            raise ValueError(
                f"lists of {item_ids.shape[1]} items cannot give exact ranks up to {self.max_k}: one more."
            )
        ranks, counts = target_ranks(item_ids, scores, target_ids), num_targets(target_ids)
        values = torch.stack(
            [
                torch.stack(
                    [hit_rate(ranks, k), ndcg(ranks, counts, k), reciprocal_rank(ranks, k), recall(ranks, counts, k)]
                )
                for k in self.ks
            ]
        ).permute(2, 0, 1)  # [B, ks, 4]
        self.several += (counts > 1).sum()
        self._add(0, values)
        if self.cohorts:
            if history_lengths is not None:
                edges = torch.tensor(_HISTORY_EDGES, device=ranks.device)
                self._add(1 + torch.bucketize(history_lengths, edges, right=True), values)
            first = self.item_cohort[target_ids[:, 0]]
            self._add(2 + len(_HISTORY_EDGES) + first, values)
        if self.beyond:
            self._count_shown(item_ids)
        if self.per_user and user_ids is not None:
            self.user_rows.append(torch.stack([user_ids, ranks[:, 0].clamp_max(MISS)], 1))

    def _add(self, group: int | Tensor, values: Tensor) -> None:
        if isinstance(group, int):
            group = torch.full((len(values),), group, device=values.device)
        self.totals.index_add_(0, group, values)
        self.rows.index_add_(0, group, torch.ones_like(group))

    def _count_shown(self, item_ids: Tensor) -> None:
        size = int(item_ids.max()) + 1
        if size > self.shown.shape[1]:  # used without `connect`
            self.shown = torch.nn.functional.pad(self.shown, (0, size - self.shown.shape[1]))
        for i, k in enumerate(self.ks):
            self.shown[i] += torch.bincount(item_ids[:, :k].flatten(), minlength=self.shown.shape[1])

    def compute(self) -> dict[str, Tensor]:
        """Returns the metrics by name, float64 scalars; NaN where there was no row at all."""
        suffix = "" if self.candidates == "full" else f"[{self.candidates}]"
        out: dict[str, Tensor] = {}
        measures = ("hr", "ndcg", "mrr", "recall")
        for i, k in enumerate(self.ks):
            for j, measure in enumerate(measures):
                if measure != "recall" or self.several:
                    out[f"{measure}@{k}{suffix}"] = self.totals[0, i, j] / self.rows[0]
            if self.beyond:
                shown = self.shown[i, 1:].double()
                out[f"coverage@{k}{suffix}"] = (shown > 0).double().mean()
                if len(self.popularity_rank) == self.shown.shape[1]:
                    out[f"popularity_rank@{k}{suffix}"] = (shown @ self.popularity_rank[1:]) / shown.sum()
        if self.cohorts:
            for group, name in enumerate(_cohort_names(), start=1):
                if self.rows[group]:
                    for i, k in enumerate(self.ks):
                        for j in (0, 1):
                            out[f"{measures[j]}@{k}{suffix}/{name}"] = self.totals[group, i, j] / self.rows[group]
        return out

    def per_user_ranks(self) -> Tensor:
        """Returns [R, 2] int64: user id and rank of the first target, `MISS` beyond the list; this process's rows."""
        rows = self.user_rows if self.per_user else []
        if isinstance(rows, Tensor):
            return rows
        return torch.cat(rows) if rows else torch.zeros(0, 2, dtype=torch.long)


def _cohort_names() -> list[str]:
    starts = (0, *_HISTORY_EDGES)
    lengths = [f"history:{a}-{b - 1}" for a, b in zip(starts, _HISTORY_EDGES, strict=False)]
    return [*lengths, f"history:{_HISTORY_EDGES[-1]}+", *(f"items:{name}" for name in _ITEM_COHORTS)]
