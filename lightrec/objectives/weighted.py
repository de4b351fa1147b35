"""Weighted: a sum of objectives, for losses that come in parts."""

from __future__ import annotations

from torch import Tensor, nn

from lightrec.data.batch import Batch
from lightrec.interfaces import Objective


class Weighted(Objective):
    """Sums objectives, each times its weight.

    Args:
        objectives: the parts; each sees the same batch.
        weights: one number a part; None weighs all by 1.

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

    def forward(self, recommender, batch: Batch) -> Tensor:
        parts = (weight * part(recommender, batch) for weight, part in zip(self.weights, self.objectives, strict=True))
        return sum(parts)
