"""The inner side of `lightrec plugins check`: imports a plug-in, runs its checks, and tells what came of each.

torch is imported after the plug-in, so that one which cannot be imported is told at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lightrec import extensions
from lightrec.errors import InputError
from lightrec.extensions import Plugin
from lightrec.extensions.worker import serve


def answer() -> None:
    """What the other process of `lightrec plugins check` runs."""
    job, say = serve()
    plugin = Plugin(**job["plugin"])
    if "import" not in job["done"]:
        say({"running": "import"})
        began = time.monotonic()
        try:
            extensions.load(plugin, patience=3600.0)
            result = {"status": "ok", "reason": plugin.value}
        except extensions.PluginError as error:
            result = {"status": "failed", "reason": error.cause}
        say({"check": "import", **result, "seconds": time.monotonic() - began})
        if result["status"] == "failed":
            say({"end": True})
            return
    say({"running": "construction"})
    import torch

    from lightrec.testing.check_selection import PARTS, arguments, checks_of, shown

    torch.set_num_threads(1)
    try:
        checks = checks_of(plugin, job["given"], job["within"])
        names = [name for name, _ in checks]
        if unknown := [name for name in job["skip"] if name not in names]:
            near = extensions.suggestion(unknown[0], names) or f"; checks: {', '.join(names)}."
            raise InputError(f"--skip {unknown[0]!r} is not a check of {plugin.kind}{near}")
        given = arguments(extensions.load(plugin), job["given"]) if plugin.kind in PARTS else {}
        say({"built": {name: shown(value) for name, value in given.items()}})
    except InputError as error:
        say({"error": str(error)})
        return
    for name, check in checks:
        if name in job["done"]:
            continue
        say({"running": name})
        if name in job["skip"]:
            check = "left out by --skip"
        began = time.monotonic()
        status, reason = _run(check)
        seconds = None if status == "skipped" else time.monotonic() - began
        say({"check": name, "status": status, "reason": reason, "seconds": seconds})
    say({"end": True})


def _run(check: Callable[[], str | None] | str) -> tuple[str, str]:
    if isinstance(check, str):
        return "skipped", check
    from lightrec.testing.check_selection import Skip

    try:
        return "ok", check() or ""
    except AssertionError as error:
        return "failed", str(error)
    except Skip as reason:
        return "skipped", str(reason)
    except (Exception, SystemExit) as error:  # whatever a stranger's class does
        return "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
