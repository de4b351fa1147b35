"""Imports plug-ins in another process, where one that hangs, prints or dies does no harm.

The process answers on a duplicate of its standard output, a line of JSON for each plug-in, and sends what else is
written there into a file that is counted. A plug-in that takes too long, or takes the process down, is noted, and
another process goes on with the next one. Where all is well there is one process, because torch takes seconds to import.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from importlib import import_module

from lightrec.plugins.declared import Plugin, PluginError, load

LIMIT = 60.0
"""Seconds that the import of a plug-in may take; torch and lightrec are there already and do not count."""
_START = 300.0  # seconds for Python, torch and lightrec, on a machine with much to do
_WITH_TORCH = ("models", "encoders", "objectives", "kernels")


@dataclass(frozen=True)
class Outcome:
    """What the import of a plug-in did."""

    cause: str | None
    """Why it cannot be used; None if it can."""
    printed: int = 0
    """Bytes that it wrote to standard output or standard error."""


def try_all(plugins: list[Plugin], limit: float = LIMIT) -> list[Outcome]:
    """Imports plug-ins, one after the other, in another process.

    Args:
        plugins: what to import.
        limit: seconds that each may take.

    Returns:
        One outcome a plug-in.
    """
    outcomes: dict[int, Outcome] = {i: Outcome(p.problem) for i, p in enumerate(plugins) if p.problem}
    while waiting := [i for i in range(len(plugins)) if i not in outcomes]:
        outcomes.update(zip(waiting, _process([plugins[i] for i in waiting], limit), strict=False))
    return [outcomes[i] for i in range(len(plugins))]


def _process(plugins: list[Plugin], limit: float) -> list[Outcome]:
    """Returns outcomes up to the first plug-in that ends or stops the process, at least one."""
    job = json.dumps({"path": sys.path, "plugins": [asdict(p) for p in plugins]})
    code = "from lightrec.plugins.trial import answer; answer()"
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys, json; sys.path[:] = json.loads(sys.argv[1])['path']; {code}", job],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        outcomes: list[Outcome] = []
        try:
            ready = lines.get(timeout=_START)
            while ready and len(outcomes) < len(plugins) and (line := lines.get(timeout=limit)):
                outcomes.append(Outcome(**json.loads(line)))
            if len(outcomes) < len(plugins):
                code, last = process.wait(), _last_line(errors)
                outcomes.append(Outcome(f"the process died with code {code}{': ' + last if last else ''}"))
        except queue.Empty:
            outcomes.append(Outcome(f"its import did not end within {limit:g} s"))
        finally:
            process.kill()
            process.wait()
    return outcomes


def _pump(stream, lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _last_line(file) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip().split("\n")[-1]


def answer() -> None:
    """What the other process runs."""
    plugins = [Plugin(**fields) for fields in json.loads(sys.argv[1])["plugins"]]
    said = os.fdopen(os.dup(1), "w")
    if any(plugin.kind in _WITH_TORCH for plugin in plugins):
        import_module("lightrec.recommender")
    print("ready", file=said, flush=True)
    with tempfile.TemporaryFile() as noise:
        for plugin in plugins:
            noise.seek(0)
            noise.truncate()
            kept = os.dup(2)
            os.dup2(noise.fileno(), 1)
            os.dup2(noise.fileno(), 2)
            cause = None
            try:
                load(plugin, patience=3600.0)  # whoever waits has a limit of his own
            except PluginError as error:
                cause = error.cause
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            print(json.dumps({"cause": cause, "printed": noise.seek(0, os.SEEK_END)}), file=said, flush=True)
