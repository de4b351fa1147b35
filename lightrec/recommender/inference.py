"""Stand-ins for what a model that only recommends has no use for: its objective and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, Objective
from lightrec.recommender.optimizer import Optimizer


class LeftOutObjective(Objective):
    """Stands for the objective of a model that was loaded to recommend, and is described as that objective.

    Args:
        description: of the objective that was left out.
    """

    def __init__(self, description: Any):
        super().__init__()
        self.description = description

    def describe(self) -> Any:
        return self.description

    def forward(self, recommender, batch: Batch, states: Any = None) -> Losses:
        raise RuntimeError(_why("objective"))


class LeftOutOptimizer(Optimizer):
    """Stands for the optimizer of a model that was loaded to recommend, and is described as that optimizer.

    Args:
        description: of the optimizer that was left out.
    """

    def __init__(self, description: Any):
        self.description = description

    def describe(self) -> Any:
        return self.description

    def configure(self, model: nn.Module, last_step: Callable[[], float]) -> Any:
        raise RuntimeError(_why("optimizer"))


def _why(part: str) -> str:
    return f"this model was loaded to recommend, without its {part}: `lightrec fit --ckpt_path FILE` trains it on."
