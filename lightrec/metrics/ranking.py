"""RankingMetrics: accumulates ranking metrics over batches and processes, from sums only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lightrec.errors import InputError
from lightrec.metrics.functional import (
    distinct_targets,
    hit_rate,
    ndcg,
    num_targets,
    recall,
    reciprocal_rank,
    target_ranks,
)

_HISTORY_EDGES = (5, 10, 20, 50)
_MEASURES = ("hr", "ndcg", "mrr", "recall")
_ITEM_COHORTS = ("cold", "tail", "mid", "head")


class RankingMetrics(Metric):
    """HR, NDCG and MRR at several k, coverage and popularity of what is recommended, and cohorts.

    States are sums (float64 numerators, int64 counts), so `compute` gives the same numbers for any batch size and any
    number of processes, and for a process that had no row.

    Names: `hr@10`, `ndcg@10`, `mrr@10`; `recall@10` where a row has several targets; `coverage@10`, the share of the
    catalog recommended to somebody; `popularity_rank@10`, the mean over recommended items of their place in the
    training catalog sorted by popularity, 0 for the most popular and 1 for the least, equally popular items sharing
    their mean place. With cohorts, `ndcg@10/history:5-9` and `ndcg@10/items:head`. A ranking of sampled candidates
    carries its name: `hr@10[uniform-100]`.

    Args:
        ks: cut-offs.
        cohorts: break HR and NDCG down by history length (0-4, 5-9, 10-19, 20-49, 50+) and by the popularity in
            training of a row's first target. Items are sorted by events, the most popular first, and an item is head
            if the items before it make up less than 50 % of all events, mid if less than 90 %, tail otherwise, cold
            if training never saw it. A cohort without rows has no value.
        beyond: coverage and popularity of the recommended items; known once `set_catalog` was called.
        per_user: keep the ranks of each row for significance tests, see `per_user_values`.

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
        self._user_rows: list[Tensor] = []  # no state: it is never reduced, each process writes its own rows
        self.register_buffer("item_cohort", torch.zeros(1, dtype=torch.long), persistent=False)
        self.register_buffer("popularity_rank", torch.zeros(1, dtype=torch.float64), persistent=False)

    def set_catalog(self, item_counts: Tensor, candidates: str = "full") -> None:
        """Tells what only the data know; resets the states.

        Args:
            item_counts: [V] int64, events per item in training; index 0 is padding.
            candidates: `full`, or the name of a sampled protocol, which becomes part of every metric's name.
        """
        counts = item_counts.detach().to("cpu", torch.long, copy=True)
        counts[0] = 0
        order = counts[1:].argsort(descending=True, stable=True) + 1
        before = torch.zeros(len(counts), dtype=torch.float64)
        before[order] = (counts[order].cumsum(0) - counts[order]).double() / max(1, int(counts.sum()))
        cohort = torch.where(before < 0.5, 3, torch.where(before < 0.9, 2, 1))
        cohort[counts == 0] = 0
        self.candidates = candidates
        self.item_cohort = cohort.to(self.device)
        self.popularity_rank = _mean_places(counts).to(self.device)
        self._defaults["shown"] = torch.zeros(len(self.ks), len(counts), dtype=torch.long)
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._user_rows = []

    def _apply(self, fn, exclude_state: Sequence[str] = ""):
        # A model cast to bfloat16 must not take its sums along: only the device is followed.
        def move(t: Tensor) -> Tensor:
            return t.to(fn(torch.empty(0, dtype=torch.long, device=t.device)).device)

        return super()._apply(move, exclude_state)

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
            ValueError: lists too short, a NaN score, or a row without a target.
            RuntimeError: cohorts are asked for before `set_catalog`.
        """
        if item_ids.shape[1] <= self.max_k:
            raise ValueError(
                f"lists of {item_ids.shape[1]} items cannot give exact ranks up to {self.max_k}: one more."
            )
        if self.cohorts and not self._connected:
            raise RuntimeError("cohorts need the events per item in training: call set_catalog(item_counts) first.")
        target_ids = distinct_targets(target_ids)
        ranks, counts = target_ranks(item_ids, scores, target_ids), num_targets(target_ids)
        if not counts.all():
            raise ValueError(f"row {int(counts.argmin())} of the batch has no target, so it cannot be evaluated.")
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
        if self.beyond and self._connected:
            for i, k in enumerate(self.ks):
                self.shown[i] += torch.bincount(item_ids[:, :k].flatten(), minlength=self.shown.shape[1])
        if self.per_user and user_ids is not None:
            columns = torch.cat([torch.stack([user_ids, ranks.amin(1)], 1).double(), values.flatten(1)], 1)
            self._user_rows.append(columns.cpu())

    @property
    def _connected(self) -> bool:
        return self.shown.shape[1] > 1

    def _add(self, group: int | Tensor, values: Tensor) -> None:
        if isinstance(group, int):
            group = torch.full((len(values),), group, device=values.device)
        self.totals.index_add_(0, group, values)
        self.rows.index_add_(0, group, torch.ones_like(group))

    def compute(self) -> dict[str, Tensor]:
        """Returns the metrics by name, float64 scalars; NaN where there was no row at all."""
        suffix = "" if self.candidates == "full" else f"[{self.candidates}]"
        out: dict[str, Tensor] = {}
        for i, k in enumerate(self.ks):
            for j, measure in enumerate(_MEASURES):
                if measure != "recall" or self.several:  # with one target it is the hit rate
                    out[f"{measure}@{k}{suffix}"] = self.totals[0, i, j] / self.rows[0]
            if self.beyond and self._connected:
                shown = self.shown[i, 1:].double()
                out[f"coverage@{k}{suffix}"] = (shown > 0).double().mean()
                out[f"popularity_rank@{k}{suffix}"] = (shown @ self.popularity_rank[1:]) / shown.sum()
        if self.cohorts:
            for group, name in enumerate(_cohort_names(), start=1):
                if self.rows[group]:
                    for i, k in enumerate(self.ks):
                        for j in (0, 1):
                            out[f"{_MEASURES[j]}@{k}{suffix}/{name}"] = self.totals[group, i, j] / self.rows[group]
        return out

    def per_user_ranks(self) -> Tensor:
        """Returns [R, 2] int64: user id and rank of its best target, `MISS` beyond the list; this process's rows."""
        rows = self._user_rows
        return torch.cat(rows)[:, :2].long() if rows else torch.zeros(0, 2, dtype=torch.long)

    def per_user_values(self) -> dict[str, Tensor]:
        """Returns columns for `lightrec.metrics.significance`: `user_id`, `rank`, then `hr@10` and so on, float64.

        They hold the rows of this process; no row is evaluated twice, so the files of all processes add up.
        """
        rows = torch.cat(self._user_rows) if self._user_rows else torch.zeros(0, 2 + self.totals[0].numel())
        suffix = "" if self.candidates == "full" else f"[{self.candidates}]"
        names = [f"{measure}@{k}{suffix}" for k in self.ks for measure in _MEASURES]
        columns = dict(zip(names, rows[:, 2:].double().unbind(1), strict=True))
        return {"user_id": rows[:, 0].long(), "rank": rows[:, 1].long()} | columns


def _mean_places(counts: Tensor) -> Tensor:
    """Places [V] of items by falling count, from 0 to 1; equal counts share their mean place. Index 0 is padding."""
    _, group, size = counts[1:].neg().unique(return_inverse=True, return_counts=True)
    mean = size.cumsum(0).double() - (size.double() + 1.0) / 2.0
    return torch.cat([torch.zeros(1, dtype=torch.float64), mean[group] / max(1, len(counts) - 2)])


def _cohort_names() -> list[str]:
    starts = (0, *_HISTORY_EDGES)
    lengths = [f"history:{a}-{b - 1}" for a, b in zip(starts, _HISTORY_EDGES, strict=False)]
    return [*lengths, f"history:{_HISTORY_EDGES[-1]}+", *(f"items:{name}" for name in _ITEM_COHORTS)]
