"""Stand-ins for what a model that only recommends has no use for: its objective and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, Objective
from lightrec.recommender.optimizer import Optimizer


class _LeftOutObjective(Objective):
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


class _LeftOutOptimizer(Optimizer):
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


LEFT_OUT = {"objective": _LeftOutObjective, "optimizer": _LeftOutOptimizer}
"""{argument of a recommender: what makes its stand-in of a description}. A user cannot choose them."""


def is_left_out(part: Any) -> bool:
    """Says whether a part is a stand-in."""
    return isinstance(part, tuple(LEFT_OUT.values()))
