"""Imports plug-ins in another process, where one that hangs, prints or dies does no harm.

A plug-in that takes too long, or takes the process down, is noted, and another process goes on with the next one. Where
all is well there is one process, because torch takes seconds to import.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module

from lightrec.extensions.entry_points import BASES, Plugin, PluginError, load
from lightrec.extensions.worker import Worker, serve

LIMIT = 60.0
"""Seconds that the import of a plug-in may take; torch and lightrec are there already and do not count."""
_START = 300.0  # seconds for Python, torch and lightrec, on a machine with much to do
_WITH_TORCH = (*BASES, "kernels")


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
    outcomes: list[Outcome] = []
    job = {"plugins": [asdict(p) for p in plugins]}
    with Worker("from lightrec.extensions.import_check import answer; answer()", job) as worker:
        try:
            ready = worker.answer(_START)
            while ready and len(outcomes) < len(plugins) and (found := worker.answer(limit)):
                outcomes.append(Outcome(**found))
            if len(outcomes) < len(plugins):
                outcomes.append(Outcome(worker.obituary()))
        except TimeoutError:
            outcomes.append(Outcome(f"its import did not end within {limit:g} s"))
    return outcomes


def answer() -> None:
    """What the other process runs."""
    job, say = serve()
    plugins = [Plugin(**fields) for fields in job["plugins"]]
    if any(plugin.kind in _WITH_TORCH for plugin in plugins):
        import_module("lightning")  # what takes long is not the plug-in's to answer for
    say({"ready": True})
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
            os.dup2(kept, 1)
            os.dup2(kept, 2)
            os.close(kept)
            say({"cause": cause, "printed": noise.seek(0, os.SEEK_END)})
