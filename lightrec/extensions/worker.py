"""Another Python process that answers in lines of JSON, whatever the code that it runs prints."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """Starts `python -c code` with this process's import path; the code calls `serve` first. Use it in a `with`.

    Args:
        code: what to run.
        job: what `serve` hands to it; JSON.
    """

    def __init__(self, code: str, job: dict):
        self._errors = tempfile.TemporaryFile()
        start = "import sys, json; sys.path[:] = json.loads(sys.argv[1])['path']; "
        self._process = subprocess.Popen(
            [sys.executable, "-c", start + code, json.dumps({"path": sys.path, "job": job})],
            stdin=subprocess.DEVNULL,  # whoever asks for input gets an end of file
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def answer(self, limit: float) -> dict | None:
        """Waits for the next answer; None if the process ended instead.

        Args:
            limit: seconds to wait.

        Raises:
            TimeoutError: no answer in time.
        """
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise TimeoutError(f"no answer within {limit:g} s") from None
        return json.loads(line) if line else None

    def obituary(self) -> str:
        """Says how the process ended: its exit code, and its last line on standard error."""
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().split("\n")[-1]
        return f"the process died with code {code}{': ' + last if last else ''}"

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


def serve() -> tuple[dict, Callable[[Any], None]]:
    """In the process of a Worker: returns its job, and a function that answers; standard output goes to standard error
    from now on, so that nothing else stands between the answers."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=said, flush=True)

    return json.loads(sys.argv[1])["job"], say
