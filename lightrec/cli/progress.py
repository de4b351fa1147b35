"""What a training tells while it runs, and how it is interrupted without loss."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightrec.errors import InputError
from lightrec.extensions import suggestion


class EpochLines(Callback):
    """Prints a line after each epoch and remembers the metrics of the best one.

    Args:
        monitor: the metric that decides, larger is better.
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
                f"--monitor {self.monitor!r} is not measured{suggestion(self.monitor, list(values)) or ';'} "
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


class Interruptible(Callback):
    """Lets Ctrl-C (or SIGTERM) end a training between two batches, with a checkpoint of exactly that point.

    A second one ends it at once; `last.ckpt` is then that of the last epoch. Over several processes it is always the
    last epoch: they could not agree on a batch without asking each other at every one.

    Args:
        path: the checkpoint to write.
    """

    def __init__(self, path: str):
        self.path = path
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1 or threading.current_thread() is not threading.main_thread():
            return
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        print("\nstopping after this batch; once more to stop at once", file=sys.stderr, flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After an epoch's last batch the validation comes first: its end is a cleaner place, and saved anyway.
        if self.received is not None and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise KeyboardInterrupt

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.received is not None:
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
