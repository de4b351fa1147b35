"""One line per epoch, and the metrics of the best one."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightrec.errors import InputError
from lightrec.extensions import suggestion


class EpochLines(Callback):
    """Prints a line after each epoch and remembers the metrics of the best one.

    Args:
        monitor: the metric that decides; larger is better.

    Attributes:
        best: every validation metric of the best epoch, by name; empty before the first validation.
        best_epoch: the number of the best epoch, counted from 0; -1 before the first validation.

    Raises:
        InputError: after the first validation, if it did not measure `monitor`.
    """

    def __init__(self, monitor: str = "val/ndcg@10"):
        self.monitor = monitor
        self.best: dict[str, float] = {}
        self.best_epoch = -1
        self._since = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.monitor not in values:
            raise InputError(
                f"monitor {self.monitor!r} is not measured{suggestion(self.monitor, list(values)) or ';'} "
                f"measured: {', '.join(values)}."
            )
        if values[self.monitor] > self.best.get(self.monitor, -math.inf):
            self.best, self.best_epoch = values, trainer.current_epoch

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        known = trainer.callback_metrics
        parts = [f"epoch {trainer.current_epoch + 1:>3}"]
        if "train/loss_epoch" in known:
            parts.append(f"loss {float(known['train/loss_epoch']):.4f}")
        if self.monitor in known:
            parts.append(f"{self.monitor} {float(known[self.monitor]):.4f}")
            newest = self.best_epoch == trainer.current_epoch
            parts.append("best so far" if newest else f"best {self.best[self.monitor]:.4f}")
        parts.append(f"{time.monotonic() - self._since:.1f} s")
        trainer.print("  ".join(parts), flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best), "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_epoch = dict(state_dict["best"]), int(state_dict["best_epoch"])
