"""Recommendations as a parquet file of external ids."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer

from lightrec.errors import InputError
from lightrec.files import written_whole

_ROWS_SHOWN = 3


class PredictionWriter(Callback):
    """Collects what each process predicts and writes one file: every user once, in the order of the data.

    Args:
        output: parquet file with the columns user_id, item_ids (best first) and scores.
        k: length of the lists.

    Raises:
        InputError: k is below 1, or the file cannot be written.
    """

    def __init__(self, output: str | Path, k: int = 10):
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}.")
        self.output, self.k = output_file(output), k
        self._parts: list[tuple[np.ndarray, ...]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []
        pl_module.predict_step = partial(pl_module.predict_step, k=self.k)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._parts.append(tuple(t.cpu().numpy() for t in outputs))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module.predict_step  # the method of the class shows again
        mine = [np.concatenate(arrays) for arrays in zip(*self._parts, strict=True)]
        if trainer.world_size > 1:
            mine = self._gather(trainer, mine)
        if not trainer.is_global_zero:
            return
        user_ids, item_ids, scores = mine
        order = np.argsort(user_ids, kind="stable")
        user_ids, item_ids, scores = user_ids[order], item_ids[order], scores[order]
        listed = item_ids > 0
        data = trainer.datamodule
        names = pa.array(data.prepared.users.to_list(), pa.string()).take(pa.array(user_ids))
        items = pa.array(data.catalog.item_ids, pa.string()).take(pa.array(item_ids[listed] - 1))
        write_lists(self.output, names, listed.sum(1), items, pa.array(scores[listed], pa.float32()))

    def _gather(self, trainer: Trainer, mine: list[np.ndarray]) -> list[np.ndarray]:
        # Through files beside the output: no process need hold or send everything, and any backend will do.
        part = f"{self.output}.part-{{}}.npz".format
        np.savez(part(trainer.global_rank), *mine)
        trainer.strategy.barrier("predictions written")
        if not trainer.is_global_zero:
            return mine
        shards = []
        for rank in range(trainer.world_size):
            with np.load(part(rank)) as shard:
                shards.append([shard[name] for name in shard.files])
            os.remove(part(rank))
        return [np.concatenate(arrays) for arrays in zip(*shards, strict=True)]


def output_file(path: str | Path, name: str = "output") -> Path:
    """Makes the folder of a file that is to be written.

    Args:
        path: the file.
        name: what an error calls it, such as the flag that gave it.

    Raises:
        InputError: the folder cannot be made, or cannot be written to.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() or not os.access(target.parent, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise InputError(f"{name} {path} cannot be written: {error.strerror}.") from error
    return target


def write_lists(path: Path, names: pa.Array, counts: np.ndarray, items: pa.Array, scores: pa.Array) -> None:
    """Writes lists of different lengths as one parquet file, which appears when it is complete, and prints the first.

    Args:
        path: the file.
        names: [R] external user ids.
        counts: [R] length of each list.
        items: [sum of counts] external item ids, list after list.
        scores: [sum of counts].
    """
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    table = pa.table(
        {
            "user_id": names,
            "item_ids": pa.ListArray.from_arrays(offsets, items),
            "scores": pa.ListArray.from_arrays(offsets, scores),
        }
    )
    with written_whole(path) as part:
        pq.write_table(table, part)
    print(f"{len(table):,} users, {len(items):,} recommendations: {path}")
    for row in table.slice(0, _ROWS_SHOWN).to_pylist():
        best = ", ".join(f"{i} ({s:.2f})" for i, s in zip(row["item_ids"][:5], row["scores"][:5], strict=True))
        print(f"  {row['user_id']}: {best}{', ...' if len(row['item_ids']) > 5 else ''}")
    sys.stdout.flush()
