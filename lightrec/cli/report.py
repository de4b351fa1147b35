"""What a command leaves behind and prints: results with their protocol, the next command, a log that goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import polars as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from lightrec.callbacks.predictions import output_file
from lightrec.data.protocol import protocol_line, seen_line
from lightrec.data.sources import file_hash
from lightrec.files import written_whole
from lightrec.metrics.ranking import RankingMetrics

_HEADLINE = ("hr@10", "ndcg@10", "mrr@10")


@dataclass(frozen=True)
class Outcome:
    """What a training or a measurement ended with."""

    best: Path | None
    """The checkpoint that the metrics are of; None if a training had no validation."""
    metrics: dict[str, float]
    """By name: `val/ndcg@10` of a training, `ndcg@10` of a measurement."""
    protocol: dict[str, Any]
    """How they were made."""
    folder: Path
    """Of the run."""


def metrics_before(folder: Path, step: int) -> list[dict[str, str]]:
    """Reads what a run logged up to a step; what came after it is done again."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(float(row.get("step") or 0)) < step]


@rank_zero_only
def continue_csv(logger: CSVLogger, before: list[dict[str, str]]) -> None:
    """Lets a CSV log go on; on its own, Lightning's begins again and drops the earlier rows."""
    writer = logger.experiment
    writer.metrics_keys = sorted(before[0])
    with open(writer.metrics_file_path, "w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=writer.metrics_keys)
        table.writeheader()
        table.writerows(before)


def after_fit(outcome: Outcome, monitor: str, epoch: int, epochs: int) -> None:
    """Says which checkpoint is the best, how good it is, and what to do next.

    Args:
        outcome: of the training.
        monitor: the metric that decided.
        epoch: the best one, counted from 1.
        epochs: how many there were.
    """
    if outcome.best is None:
        print("no best checkpoint: there was no validation.", flush=True)
        return
    metrics = outcome.metrics
    shown = [f"{name} {metrics[name]:.4f}" for name in metrics if name.split("/", 1)[1] in _HEADLINE]
    monitored = f"{monitor} {metrics.get(monitor, float('nan')):.4f}"
    print(f"best: epoch {epoch} of {epochs}: {', '.join(shown) or monitored}")
    print(f"next: lightrec test --ckpt_path {short(outcome.best)}", flush=True)


def write_results(
    outcome: Outcome, part: str, model: dict[str, Any], epochs: int, target: str | Path | None = None
) -> None:
    """Prints the metrics with their protocol, and writes them.

    Args:
        outcome: of the measurement.
        part: `test` or `val`.
        model: what describes the model.
        epochs: how long it was trained.
        target: the file; None puts it into the folder of the run.
    """
    record: dict[str, Any] = {
        "model": model,
        "part": part,
        "metrics": {f"{part}/{name}": value for name, value in outcome.metrics.items()},
        "protocol": outcome.protocol,
        "checkpoint": str(outcome.best),
        "checkpoint_sha256": file_hash(outcome.best),
        "epochs": epochs,
    }
    target = Path(target or outcome.folder / ("results.json" if part == "test" else "results-val.json"))
    _keep_other(target, record)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as unfinished:
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
    seen = [line for line in (seen_line(outcome.protocol),) if line and part == "test"]
    for line in (*_table(outcome.metrics), "", protocol_line(outcome.protocol), *seen, f"written: {short(target)}"):
        print(line)
    sys.stdout.flush()


def _keep_other(target: Path, record: dict[str, Any]) -> None:
    """Moves a result of another checkpoint or protocol aside, instead of writing over it."""
    try:
        before = json.loads(target.read_text())
        same = all(_what(before)[key] == value for key, value in _what(record).items())
        name = f"{target.stem}-{before['protocol']['tag']}-{before['checkpoint_sha256'][:8]}.json"
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not same:
        os.replace(target, target.with_name(name))


def _what(record: dict[str, Any]) -> dict[str, Any]:
    protocol = {k: v for k, v in record["protocol"].items() if k not in ("versions", "git_commit")}
    return {"checkpoint": record["checkpoint_sha256"], "protocol": protocol}


def _table(values: dict[str, float]) -> list[str]:
    """Lays metrics out with one row a measure and one column a cut-off; cohorts below."""
    rows: dict[str, dict[int, float]] = {}
    for name, value in values.items():
        measure, _, rest = name.partition("@")
        cut = re.match(r"\d+", rest)
        label = measure + rest[len(cut[0]) :]
        rows.setdefault(label, {})[int(cut[0])] = value
    cuts = sorted({k for row in rows.values() for k in row})
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{'@' + str(k):>9}" for k in cuts)]
    for label, row in rows.items():
        lines.append(label.ljust(width) + "".join(f"{row[k]:9.4f}" if k in row else " " * 9 for k in cuts))
    return lines


def write_per_user(path: str, metrics: RankingMetrics, users: pl.Series, trainer: L.Trainer) -> None:
    """Writes the rank and the metrics of each user: what `lightrec.metrics.significance` reads.

    Every process takes part.

    Args:
        path: the parquet file.
        metrics: what was accumulated.
        users: [U] external id of each user.
        trainer: of the measurement.
    """
    values = {name: column.cpu() for name, column in metrics.per_user_values().items()}
    if trainer.world_size > 1:
        everybody: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everybody, values)
        values = {name: torch.cat([part[name] for part in everybody]) for name in values}
    if not trainer.is_global_zero:
        return
    order = values["user_id"].argsort(stable=True)
    columns = {name: column[order].numpy() for name, column in values.items()}
    columns["user_id"] = users.gather(columns["user_id"])
    # Beyond the list a rank is not known: null, which every measure up to max_k counts as a miss.
    known = pl.when(pl.col("rank") <= metrics.max_k).then(pl.col("rank").cast(pl.Int64))
    frame = pl.DataFrame(columns).with_columns(rank=known)
    target = output_file(path, "--evaluation.per_user")
    frame.write_parquet(target)
    print(f"rank and metrics of each of {len(frame):,} users (rank is null beyond {metrics.max_k}): {target}")


def short(path: str | Path) -> str:
    """Returns a path as one would type it here."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
