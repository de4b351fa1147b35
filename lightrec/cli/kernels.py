"""`lightrec kernels`: what runs each operation on this machine, who chose it, and why the others do not."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import groupby
from typing import Any

from lightrec.cli.command_line import CommandLine
from lightrec.cli.options import Options

_CHOSEN_BY = {"priority": "the highest priority", "context": "--kernel", "environment": "LIGHTREC_KERNEL"}


def run(line: CommandLine) -> int:
    """Explains the choice of kernels; returns the exit code.

    Raises:
        InputError: a wrong flag; LIGHTREC_KERNEL or --kernel name what nobody knows.
    """
    parser = Options("lightrec kernels", description=__doc__)
    parser.add_argument("--kernel", help="show the choice with this name, or op=name,op=name")
    parser.add_argument("--device", help="cpu, cuda, ...; default: each that is here")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(line.words)
    # after the flags have been read, because torch takes a while to import
    import torch

    from lightrec.ops import registry

    devices = [options.device] if options.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with registry.use_kernel(options.kernel) if options.kernel else nullcontext():
        choice = registry.requested(None)
        rows = [{"device": device, **row} for device in devices for row in registry.describe_kernels(device=device)]
    broken = registry.broken_kernels()
    if options.json:
        print(json.dumps({"asked_for": choice, "kernels": rows, "broken": broken}, indent=2))
    else:
        _show(rows, broken, choice)
    return 0


def _show(rows: list[dict[str, Any]], broken: dict[str, str], choice: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for (op, device), kernels in groupby(rows, key=lambda row: (row["op"], row["device"])):
        table = Table(title=f"{op} on {device}", title_justify="left")
        for column in ("kernel", "priority", "from"):
            table.add_column(column, no_wrap=True)
        table.add_column("on this machine", overflow="fold")
        for row in kernels:
            style = "bold" if row["chosen"] else "dim" if row["reason"] else None
            table.add_row(row["name"], str(row["priority"]), row["distribution"], _status(row), style=style)
        console.print(table)
    console.print(f"asked for: {choice or 'nothing, so the highest priority that can run is taken'}")
    for name, reason in broken.items():
        console.print(f"broken: {name}: {reason}", markup=False)


def _status(row: dict[str, Any]) -> str:
    by = _CHOSEN_BY.get(row["chosen_by"])
    if row["chosen"]:
        return f"runs, by {by}"
    if row["reason"]:
        return f"{f'asked for by {by}, but ' if by else ''}cannot run: {row['reason']}"
    return f"only by name: {row['only_by_name']}" if row["only_by_name"] else "can run"
