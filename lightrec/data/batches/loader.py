"""BatchLoader: cuts windows out of the long array when a batch is asked for. Nothing is copied before.

It is a plain iterable on purpose. A batch costs a few vectorised calls, less than handing it between processes would.
Lightning leaves iterables alone, while it would shard a DataLoader with a sampler that counts rows twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lightrec.data.batch import Batch
from lightrec.data.batches.plans import Plan
from lightrec.errors import InputError


class BatchLoader:
    """Iterates over batches; knows its length, its epoch and where it stands.

    A pass begins at the first batch of its epoch, however the pass before ended (a limit, a sanity check, an error),
    unless `load_state_dict` told it where to go on.

    Args:
        make: builds a batch from row numbers.
        plan: gives the row numbers of every batch of an epoch, for this process; equally many in every epoch.
        epoch: the epoch to begin with; a callable is asked at every start (the Trainer knows best).
        done: how many batches of this epoch were learned from; None counts those that were handed out. An error can
            fall between the two, and a checkpoint of that moment must not skip the batch.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Batch],
        plan: Plan,
        epoch: int | Callable[[], int] = 0,
        done: Callable[[], int] | None = None,
    ):
        self._make, self._plan, self._epoch, self._done = make, plan, epoch, done
        self._taken = 0
        self._resume: dict | None = None
        self._planned: tuple[int, list[np.ndarray]] | None = None

    @property
    def epoch(self) -> int:
        return self._epoch() if callable(self._epoch) else self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next pass has."""
        self._epoch = epoch

    def batches(self) -> list[np.ndarray]:
        """Returns the rows of every batch of the current epoch."""
        epoch = self.epoch
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        return self._planned[1]

    def __len__(self) -> int:
        return len(self.batches())

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that nothing happens before the first batch is taken: the Trainer asks for an iterator when it
        # does not know its epoch yet, and may ask again.
        planned, resume, self._resume = self.batches(), self._resume, None
        start = resume["next"] if resume and resume.get("epoch", self.epoch) == self.epoch else 0
        for i in range(start, len(planned)):
            batch = self._make(planned[i])
            self._taken = (i + 1) % len(planned)
            yield batch

    def state_dict(self) -> dict:
        """Returns where the pass stands, so that a new loader goes on with the next batch."""
        taken = self._taken if self._done is None else self._done()
        return {"epoch": self.epoch, "next": taken, "batches": len(self)}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            InputError: it was taken within an epoch of another number of batches.
        """
        if not callable(self._epoch):
            self._epoch = state.get("epoch", self._epoch)
        batches = state.get("batches", len(self))
        if 0 < state["next"] < batches != len(self):
            raise InputError(
                f"the checkpoint stands at batch {state['next']} of {batches} in its epoch, but an epoch now has "
                f"{len(self)} batches: resume with the --data flags and --trainer.devices of that run, or from an "
                "epoch's end."
            )
        self._resume, self._taken = state, state["next"]
