"""What a command leaves behind and prints: results with their protocol, the next command, a log that goes on."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from lightrec.callbacks.predictions import output_file
from lightrec.data.protocol import protocol_line
from lightrec.data.sources import file_hash
from lightrec.files import written_whole

if TYPE_CHECKING:
    from lightrec.cli.training import LightrecCLI

_HEADLINE = ("hr@10", "ndcg@10", "mrr@10")


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


def after_fit(cli: LightrecCLI) -> str:
    """Says which checkpoint is the best, how good it is, and what to do next.

    Returns:
        The path of the best checkpoint; empty if there was no validation.
    """
    checkpoints = [c for c in cli.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    best = next((c.best_model_path for c in checkpoints), "")
    if not cli.trainer.is_global_zero:
        return best
    if not best:
        print("no best checkpoint: there was no validation.", flush=True)
        return best
    shown = [f"{name} {cli.lines.best[name]:.4f}" for name in cli.lines.best if name.split("/", 1)[1] in _HEADLINE]
    monitored = f"{cli.lines.monitor} {cli.lines.best.get(cli.lines.monitor, float('nan')):.4f}"
    print(f"best: epoch {cli.lines.best_epoch + 1} of {cli.trainer.current_epoch}: {', '.join(shown) or monitored}")
    print(f"next: lightrec test --ckpt_path {short(best)}", flush=True)
    return best


def write_results(cli: LightrecCLI) -> None:
    """Prints the metrics with their protocol and writes them beside the checkpoint; every process takes part."""
    metrics = cli.model.evaluation.metrics
    values = {name: float(value) for name, value in metrics.compute().items()}
    if cli.config[cli.command].evaluation.per_user:
        _write_per_user(cli)
    if cli.trainer.is_global_zero:
        _write_results(cli, values)


def _write_results(cli: LightrecCLI, values: dict[str, float]) -> None:
    part = {"test": "test", "validate": "val"}[cli.command]
    about, config, protocol = cli.about, cli.config[cli.command], cli.datamodule.protocol()
    record: dict[str, Any] = {
        "model": about.description,
        "part": part,
        "metrics": {f"{part}/{name}": value for name, value in values.items()},
        "protocol": protocol,
        "checkpoint": str(about.path),
        "checkpoint_sha256": file_hash(about.path),
        "epochs": about.content.get("epoch", -1) + 1,
    }
    name = "results.json" if part == "test" else "results-val.json"
    target = Path(config.results) if config.results else (about.run_folder or about.path.parent) / name
    _keep_other(target, record)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")
    for line in (*_table(values), "", protocol_line(protocol), f"written: {short(target)}"):
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


def _write_per_user(cli: LightrecCLI) -> None:
    """Writes the rank and the metrics of each user, from all processes: what `lightrec.metrics.significance` reads."""
    values = {name: column.cpu() for name, column in cli.model.evaluation.metrics.per_user_values().items()}
    if cli.trainer.world_size > 1:
        everybody: list[Any] = [None] * cli.trainer.world_size
        torch.distributed.all_gather_object(everybody, values)
        values = {name: torch.cat([part[name] for part in everybody]) for name in values}
    if not cli.trainer.is_global_zero:
        return
    order = values["user_id"].argsort(stable=True)
    columns = {name: column[order].numpy() for name, column in values.items()}
    max_k = cli.model.evaluation.metrics.max_k
    columns["user_id"] = cli.datamodule.prepared.users.gather(columns["user_id"])
    # Beyond the list a rank is not known: null, which every measure up to max_k counts as a miss.
    frame = pl.DataFrame(columns).with_columns(
        rank=pl.when(pl.col("rank") <= max_k).then(pl.col("rank").cast(pl.Int64))
    )
    target = output_file(cli.config[cli.command].evaluation.per_user, "--evaluation.per_user")
    frame.write_parquet(target)
    print(f"rank and metrics of each of {len(frame):,} users (rank is null beyond {max_k}): {target}")


def short(path: str | Path) -> str:
    """Returns a path as one would type it here."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
