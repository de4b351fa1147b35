"""How a training is interrupted without loss."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Interruptible(Callback):
    """Lets Ctrl-C (or SIGTERM) end a training between two batches, with a checkpoint of exactly that point.

    A second signal ends it at once, and the checkpoint is then that of the last epoch. Over several processes it is
    always that of the last epoch: they could not agree on a batch without asking each other at every one.

    Args:
        path: the checkpoint to write, such as `last.ckpt`.

    Attributes:
        received: the number of the signal that ended the training; None if none did.
    """

    def __init__(self, path: str | Path):
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
