"""`lightrec predict`: recommendations as a parquet file of external ids, for users of the data or for new ones."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from lightrec import extensions
from lightrec.callbacks.predictions import output_file, write_lists
from lightrec.cli.command_line import CommandLine
from lightrec.data.catalog import Catalog
from lightrec.data.readers import Columns, read_log
from lightrec.errors import InputError
from lightrec.serving.loaded import load_recommender

_NAMES_SHOWN = 5
_FLAGS = [
    "--ckpt_path",
    "--histories",
    "--output",
    "--k",
    "--kernel",
    *(f"--data.{name}" for name in ("user_column", "item_column", "time_column", "format", "on_error", "exclude_seen")),
]


@dataclass(frozen=True)
class _Request:
    """What the flags of `lightrec predict --histories` say."""

    checkpoint: str
    histories: str
    output: str
    k: int
    columns: Columns
    format: str | None
    on_error: str
    exclude_seen: bool | None
    """None does as in training."""

    @classmethod
    def read(cls, line: CommandLine) -> _Request:
        """Checks and converts the flags.

        Raises:
            InputError: a flag that is unknown here, is missing or has a wrong value.
        """
        for flag in line.flags:
            if flag.name not in _FLAGS:
                word = flag.name or flag.value
                near = extensions.suggestion(word, _FLAGS) or f"; with --histories there are {', '.join(_FLAGS)}."
                raise InputError(f"{'flag' if flag.name else 'word'} {word!r} is unknown{near}")
            if flag.value is None:
                raise InputError(f"{flag.name} needs a value.")
        if line.checkpoint is None:
            raise InputError("lightrec predict needs --ckpt_path FILE, a checkpoint that `lightrec fit` wrote.")
        k, exclude = line.value("--k") or "10", line.value("--data.exclude_seen")
        if not re.fullmatch(r"[0-9]+", k) or not int(k):
            raise InputError(f"-k must be a whole number of at least 1, got {k}.")
        if exclude is not None and exclude.lower() not in ("true", "false"):
            raise InputError(f"--data.exclude_seen must be true or false, got {exclude!r}.")
        names = [line.value(f"--data.{role}_column") for role in ("user", "item", "time")]
        return cls(
            line.checkpoint,
            line.histories,
            line.value("--output") or "predictions.parquet",
            int(k),
            Columns(*(int(name) if name and name.isdigit() else name for name in names)),
            line.value("--data.format"),
            line.value("--data.on_error") or "raise",
            exclude and exclude.lower() == "true",
        )


def for_histories(line: CommandLine) -> int:
    """Runs `lightrec predict --histories FILE`: the checkpoint is enough, no data set is prepared.

    Raises:
        InputError: a wrong flag, or a file that cannot be read.
    """
    request = _Request.read(line)
    output = output_file(request.output, "--output")
    loaded = load_recommender(request.checkpoint)
    users, histories = _read_histories(request)
    exclude = request.exclude_seen
    if exclude is None:
        exclude = (loaded.protocol or {}).get("exclude_seen", True)
    lists = loaded.recommend(histories, request.k, exclude_seen=exclude)
    _report_unknown(users, lists, loaded.unknown, loaded.catalog)
    write_lists(
        output,
        pa.array(users, pa.string()),
        np.array([len(part) for part in lists], dtype=np.int64),
        pa.array([line.item_id for part in lists for line in part], pa.string()),
        pa.array([line.score for part in lists for line in part], pa.float32()),
    )
    return 0


def _read_histories(request: _Request) -> tuple[list[str], list[list[str]]]:
    log = read_log(request.histories, request.columns, request.format, request.on_error)
    frame = log.frame.collect()
    if not len(frame):
        raise InputError(f"{request.histories} holds no events.")
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
