"""`lightrec compare RUN RUN ...`: results side by side if one protocol made them; seeds in one line; paired tests."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lightrec.cli.command_line import CommandLine
from lightrec.cli.options import Options
from lightrec.errors import InputError

PER_USER = "per-user.parquet"
_OF_A_USER = ("hr", "recall", "ndcg", "mrr")  # coverage and popularity are of all lists together
# What two numbers must share to stand in one table. Seeds, training rows and versions may differ.
_SHARED = (
    "tag",
    "data_sha256",
    "counts",
    "filters",
    "rounded_times",
    "split",
    "targets_sha256",
    "num_test_rows",
    "exclude_seen",
    "candidates",
    "ties",
)


@dataclass(frozen=True)
class Row:
    """One line of the table: the runs of one model, which differ by their seeds."""

    name: str
    folders: list[Path]
    records: list[dict[str, Any]]

    def values(self, metric: str) -> list[float]:
        """The metric of each run.

        Raises:
            InputError: a run was not measured by it.
        """
        found = []
        for folder, record in zip(self.folders, self.records, strict=True):
            name = f"{record['part']}/{metric}"
            if name not in record["metrics"]:
                known = ", ".join(key.partition("/")[2] for key in record["metrics"])
                raise InputError(f"{folder} has no {metric}; it has {known}.")
            found.append(record["metrics"][name])
        return found


def run(line: CommandLine) -> int:
    """Prints the table, and tests if asked for; returns the exit code.

    Raises:
        InputError: a wrong flag, a run without results, protocols that differ, or no file of users to test with.
    """
    parser = Options("lightrec compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders; NAME=RUN,RUN,... puts the seeds of one model in one line")
    parser.add_argument("--metrics", default="hr@10,ndcg@10", help="columns, separated by commas (hr@10,ndcg@10)")
    parser.add_argument("--against", help=f"test each line against this one, user by user, by the {PER_USER} of runs")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(line.words)
    metrics = [name.strip() for name in options.metrics.split(",") if name.strip()]
    rows = [_read_row(word) for word in options.runs]
    names = [row.name for row in rows]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two lines are named {twice}: give them names of their own, as in NAME=RUN.")
    _check_shared(rows)
    if options.against is not None and options.against not in names:
        raise InputError(f"--against {options.against} is none of the lines: {', '.join(names)}.")
    table = [_line(row, metrics) for row in rows]
    tests = [] if options.against is None else _tests(rows, options.against, metrics)
    if options.json:
        protocol = {name: rows[0].records[0]["protocol"].get(name) for name in _SHARED}
        print(json.dumps({"protocol": protocol, "rows": table, "tests": [vars(t) | {"row": n} for n, t in tests]}))
    else:
        _show(rows, table, tests, metrics)
    return 0


def _read_row(word: str) -> Row:
    name, given, paths = word.partition("=")
    folders = [Path(path) for path in (paths if given else word).split(",")]
    return Row(name if given else folders[0].name, folders, [_read(folder) for folder in folders])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "results.json" if folder.is_dir() else folder
    try:
        record = json.loads(path.read_text())
        return {name: record[name] for name in ("part", "metrics", "protocol", "epochs", "model")}
    except OSError as error:
        remedy = f"lightrec test --ckpt_path {folder / 'checkpoints' / 'best.ckpt'}"
        raise InputError(f"{path}: {error.strerror}; `{remedy}` writes it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a file of results ({type(error).__name__}: {error}).") from error


def _check_shared(rows: list[Row]) -> None:
    """Refuses to put two protocols into one table."""
    (first, record), *others = [pair for row in rows for pair in zip(row.folders, row.records, strict=True)]
    for folder, other in others:
        if other["part"] != record["part"]:
            raise InputError(f"{first} is of the {record['part']} part, {folder} of the {other['part']} part.")
        for name in _SHARED:
            ours, theirs = record["protocol"].get(name), other["protocol"].get(name)
            if ours != theirs:
                raise InputError(
                    f"two protocols never share a table: {name} is {_brief(ours)} in {first} and {_brief(theirs)} in "
                    f"{folder}; measure one of them again as the other was."
                )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(row: Row, metrics: list[str]) -> dict[str, Any]:
    return {
        "row": row.name,
        "model": row.records[0]["model"]["class_path"].rpartition(".")[2],
        "runs": len(row.records),
        "epochs": [record["epochs"] for record in row.records],
        "metrics": {metric: row.values(metric) for metric in metrics},
    }


def _tests(rows: list[Row], against: str, metrics: list[str]) -> list[tuple[str, Any]]:
    from lightrec.metrics.significance import compare

    metrics = [metric for metric in metrics if metric.partition("@")[0] in _OF_A_USER]
    if not metrics:
        raise InputError(f"--against tests {', '.join(_OF_A_USER)} at a cut-off: name one with --metrics.")
    base = next(row for row in rows if row.name == against)
    first = [_per_user(folder) for folder in base.folders]
    others = [(row.name, [_per_user(folder) for folder in row.folders]) for row in rows if row is not base]
    return [(name, compare(first, second, metric)) for name, second in others for metric in metrics]


def _per_user(folder: Path) -> Path:
    path = (folder if folder.is_dir() else folder.parent) / PER_USER
    if not path.is_file():
        best = path.parent / "checkpoints" / "best.ckpt"
        raise InputError(f"{path} is not there: lightrec test --ckpt_path {best} --evaluation.per_user {path}")
    return path


def _show(rows: list[Row], table: list[dict[str, Any]], tests: list[tuple[str, Any]], metrics: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lightrec.data.protocol import protocol_line

    # wide enough for all columns where nobody's window limits it
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    shown = Table()
    for column in ("", "model", *metrics, "runs", "epochs"):
        shown.add_column(column, justify="right" if column in metrics else "left", no_wrap=True)
    for line in table:
        values = [_spread(line["metrics"][metric]) for metric in metrics]
        epochs = ", ".join(str(epochs) for epochs in dict.fromkeys(line["epochs"]))
        shown.add_row(line["row"], line["model"], *values, str(line["runs"]), epochs)
    console.print(shown)
    for name, test in tests:
        console.print(f"{name}, {test}", markup=False, soft_wrap=True)
    protocols = [record["protocol"] for row in rows for record in row.records]
    seeds = [protocol["seed"] for protocol in protocols]
    console.print(protocol_line(protocols[0], seeds), markup=False, soft_wrap=True)


def _spread(values: list[float]) -> str:
    """The mean, and below it from where to where it goes over several runs."""
    text = f"{fmean(values):.4f}"
    return text if len(values) == 1 else f"{text}\n{min(values):.4f}-{max(values):.4f}"
