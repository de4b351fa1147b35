"""What a command leaves behind and prints: results with their protocol, the next command, a log that goes on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

if TYPE_CHECKING:
    from lightrec.cli.training import LightrecCLI


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


@rank_zero_only
def after_fit(cli: LightrecCLI) -> None:
    """Says which checkpoint is the best, how good it is, and what to do next."""
    best = next((c.best_model_path for c in cli.trainer.callbacks if isinstance(c, ModelCheckpoint)), "")
    if not best:
        print("no checkpoint was written: there was no validation.")
        return
    best = os.path.relpath(best)
    shown = ", ".join(
        f"{name} {value:.4f}" for name, value in cli.lines.best.items() if "@10" in name and "/" not in name[4:]
    )
    print(f"best of {cli.trainer.current_epoch} epochs: epoch {cli.lines.best_epoch + 1}: {shown}")
    print(f"next: lightrec test --ckpt_path {best}", flush=True)


def write_results(cli: LightrecCLI) -> None:
    """Prints the metrics with their protocol and writes them beside the checkpoint, on the first process."""
    values = {name: float(value) for name, value in cli.model.metrics.compute().items()}
    rows = int(cli.trainer.strategy.reduce(cli.model.metrics.rows[0].clone(), reduce_op="sum"))
    _write(cli, values, rows)


@rank_zero_only
def _write(cli: LightrecCLI, values: dict[str, float], rows: int) -> None:
    part = {"test": "test", "validate": "val"}[cli.command]
    protocol = cli.datamodule.protocol()
    path = cli.about.path
    record: dict[str, Any] = {
        "model": cli.about.description,
        "part": part,
        "num_rows": rows,
        "metrics": {f"{part}/{name}": value for name, value in values.items()},
        "protocol": protocol,
        "checkpoint": str(path),
        "checkpoint_sha256": _sha256(path),
        "epoch": cli.about.content.get("epoch"),
    }
    name = "results.json" if part == "test" else "results-val.json"
    config = cli.config[cli.command]
    target = Path(config.results) if config.results else (cli.about.run_folder or path.parent) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["metrics"], indent=1))
    print("wrote", target, flush=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
