"""`lightrec predict`: recommendations as a parquet file of external ids, for users of the data or for new ones."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from lightrec.callbacks.predictions import output_file, write_lists
from lightrec.cli.options import Options
from lightrec.data.catalog import Catalog
from lightrec.data.readers import Columns, read_log
from lightrec.errors import InputError
from lightrec.serving.loaded import load_recommender

_NAMES_SHOWN = 5


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


def for_histories(argv: list[str]) -> int:
    """Runs `lightrec predict --histories FILE`: the checkpoint is enough, no data set is prepared.

    Raises:
        InputError: a wrong flag, or a file that cannot be read.
    """
    options = _options(argv)
    if options.k < 1:
        raise InputError(f"-k must be at least 1, got {options.k}.")
    output = output_file(options.output, "--output")
    loaded = load_recommender(options.ckpt_path)
    users, histories = _read_histories(options)
    exclude = options.exclude_seen
    if exclude is None:
        exclude = (loaded.protocol or {}).get("exclude_seen", True)
    lists = loaded.recommend(histories, options.k, exclude_seen=exclude)
    _report_unknown(users, lists, loaded.unknown, loaded.catalog)
    write_lists(
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
