"""Calls what a plug-in names in this process, and leaves it behind if it does not end.

`import_check` tries imports in another process, which cannot hand an object over. A kernel must come to life here, and
everybody who uses an op waits for it.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

from lightrec.extensions.entry_points import Plugin, PluginError, load
from lightrec.extensions.import_check import LIMIT


def call_in_time(plugin: Plugin, limit: float = LIMIT) -> Any:
    """Imports the function that a plug-in names and calls it without arguments, in a thread.

    Args:
        plugin: what to call.
        limit: seconds that import and call may take. Then the thread is left behind, and standard error says so.

    Returns:
        What the function returned.

    Raises:
        PluginError: it cannot be imported, or did not end in time.
        Exception: whatever the function raised.
    """
    made: Future = Future()

    def work() -> None:
        try:
            made.set_result(load(plugin)())
        except (Exception, SystemExit) as error:
            made.set_exception(error)

    stdout = sys.stdout
    Thread(target=work, daemon=True).start()
    if not wait([made], limit).done:
        sys.stdout = stdout  # an import turns it to standard error until it ends, and this one does not
        error = PluginError(plugin, f"its import did not end within {limit:g} s")
        print(f"lightrec: {error}", file=sys.stderr, flush=True)
        raise error
    return made.result()
