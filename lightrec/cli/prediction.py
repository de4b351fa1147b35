"""`lightrec predict`: recommendations as a parquet file of external ids, for users of the data or for new ones."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lightrec.checkpoint import load_recommender
from lightrec.cli.options import Options
from lightrec.data.catalog import Catalog
from lightrec.data.readers import Columns, read_log
from lightrec.errors import InputError
from lightrec.files import written_whole

_NAMES_SHOWN = 5
_ROWS_SHOWN = 3


def add_arguments(parser: Any) -> None:
    """Adds the flags that only `predict` has."""
    parser.add_argument("--output", type=str, default="predictions.parquet", help="Parquet file to write.")
    parser.add_argument("-k", "--k", type=int, default=10, help="Length of the lists.")
    parser.add_argument(
        "--histories",
        type=str | None,
        default=None,
        help="A log of other people, in any format that data.path reads, instead of those in the data.",
    )


class PredictionWriter(L.Callback):
    """Collects what each process predicts and writes one file: every user once, in the order of the data.

    Args:
        output: parquet file: user_id, item_ids (best first) and scores.
        k: length of the lists.
    """

    def __init__(self, output: str, k: int):
        if k < 1:
            raise InputError(f"-k must be at least 1, got {k}.")
        self.output, self.k = check_output(output), k
        self._parts: list[tuple[np.ndarray, ...]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.predict_step = partial(pl_module.predict_step, k=self.k)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._parts.append(tuple(t.cpu().numpy() for t in outputs))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
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
        write(self.output, names, listed.sum(1), items, pa.array(scores[listed], pa.float32()))

    def _gather(self, trainer: L.Trainer, mine: list[np.ndarray]) -> list[np.ndarray]:
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


def check_output(path: str, flag: str = "--output") -> Path:
    """Makes the folder of an output file that a flag named.

    Raises:
        InputError: it cannot be made.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() or not os.access(target.parent, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {error.strerror}.") from error
    return target


def write(path: Path, names: pa.Array, counts: np.ndarray, items: pa.Array, scores: pa.Array) -> None:
    """Writes lists of different lengths as one parquet file, which appears when it is complete.

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


def for_histories(argv: list[str]) -> int:
    """Runs `lightrec predict --histories FILE`: the checkpoint is enough, no data set is prepared.

    Raises:
        InputError: a wrong flag, or a file that cannot be read.
    """
    options = _options(argv)
    if options.k < 1:
        raise InputError(f"-k must be at least 1, got {options.k}.")
    output = check_output(options.output)
    loaded = load_recommender(options.ckpt_path)
    users, histories = _read_histories(options)
    exclude = options.exclude_seen
    if exclude is None:
        exclude = (loaded.protocol or {}).get("exclude_seen", True)
    lists = loaded.recommend(histories, options.k, exclude_seen=exclude)
    _report_unknown(users, lists, loaded.unknown, loaded.catalog)
    write(
        output,
        pa.array(users, pa.string()),
        np.array([len(part) for part in lists], dtype=np.int64),
        pa.array([line.item_id for part in lists for line in part], pa.string()),
        pa.array([line.score for part in lists for line in part], pa.float32()),
    )
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = Options("lightrec predict --histories")
    parser.add_argument("--ckpt_path", required=True, help="a checkpoint that `lightrec fit` wrote")
    parser.add_argument("--histories", required=True, help="a log of people, in any format that data.path reads")
    parser.add_argument("--output", default="predictions.parquet", help="parquet file to write")
    parser.add_argument("-k", "--k", type=int, default=10, help="length of the lists")
    parser.add_argument("--kernel", help="kernel, or op=name,op=name; see `lightrec kernels`")
    for role in ("user", "item", "time"):
        parser.add_argument(f"--data.{role}_column", dest=role, help=f"name or position of the {role} column")
    parser.add_argument("--data.format", dest="format", help="format of the file; guessed if not given")
    parser.add_argument("--data.on_error", dest="on_error", default="raise", help="`skip` leaves bad rows out")
    parser.add_argument(
        "--data.exclude_seen",
        dest="exclude_seen",
        type=lambda text: {"true": True, "false": False}[text.lower()],
        help="leave a history out of its own list; as in training if not given",
    )
    return parser.parse_args(argv)


def _read_histories(options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    names = [int(name) if name and name.isdigit() else name for name in (options.user, options.item, options.time)]
    log = read_log(options.histories, Columns(*names), options.format, options.on_error)
    frame = log.frame.collect()
    if not len(frame):
        raise InputError(f"{options.histories} holds no events.")
    order = [name for name in ("time", "fraction", "row") if name in frame.columns]
    lists = frame.sort(order).group_by("user").agg("item", pl.col("row").min()).sort("row")
    return lists["user"].to_list(), lists["item"].to_list()


def _report_unknown(users: list[str], lists: list[list], unknown: list[tuple[int, str]], catalog: Catalog) -> None:
    """Says which items were skipped and who is left without a list."""
    if unknown:
        items = list(dict.fromkeys(item for _, item in unknown))
        print(
            f"{len(unknown):,} events with {len(items):,} unknown items were skipped ({_some(items)}): "
            f"the model knows {len(catalog):,} items.",
            file=sys.stderr,
        )
    empty = [user for user, part in zip(users, lists, strict=True) if not part]
    if empty:
        print(f"{len(empty):,} users have an empty list ({_some(empty)}).", file=sys.stderr)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
