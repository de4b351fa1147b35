"""Weighted: a sum of objectives, for losses that come in parts."""

from __future__ import annotations

from torch import nn

from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, Objective, Term
from lightrec.objectives.next_item import NextItemStates


class Weighted(Objective):
    """Sums objectives, each times its weight. States of the next item are encoded once for all of them.

    Args:
        objectives: the parts; each sees the same batch.
        weights: one number per part; None weighs all by 1.

    Raises:
        ValueError: no part, or another number of weights than of parts.
    """

    def __init__(self, objectives: list[Objective], weights: list[float] | None = None):
        super().__init__()
        if not objectives:
            raise ValueError("objectives is empty: Weighted needs at least one part.")
        weights = [1.0] * len(objectives) if weights is None else list(weights)
        if len(weights) != len(objectives):
            raise ValueError(f"{len(objectives)} objectives need as many weights, got {len(weights)}.")
        self.objectives, self.weights = nn.ModuleList(objectives), weights

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        states = states or NextItemStates(recommender, batch)
        losses: Losses = {}
        for weight, part in zip(self.weights, self.objectives, strict=True):
            for name, term in part(recommender, batch, states).items():
                losses[_free_name(name, losses)] = Term(term.value, weight * term.weight)
        return losses


def _free_name(name: str, taken: Losses) -> str:
    """Returns the name, or with a number behind it if another part has it already."""
    names = (name if i == 1 else f"{name}_{i}" for i in range(1, len(taken) + 2))
    return next(free for free in names if free not in taken)
