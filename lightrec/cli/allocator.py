"""glibc's allocator, told to keep big blocks.

By default glibc maps every block above 32 MiB anew and gives it back, and a training step pays for the page faults of
all its large temporaries: on two cores nearly half the time of a padded full-softmax step. The thresholds are read when
a process starts, hence the one re-execution.
"""

from __future__ import annotations

import os
import sys

TUNABLES = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


def tune() -> None:
    """Starts this process over with the tuned allocator, unless there is nothing to gain or it was done before.

    Call it before torch is imported. It does nothing without glibc, or where the thresholds are set already. Nor does
    it in a process that another one launched, which inherited the setting.
    """
    before = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc." in before or "LOCAL_RANK" in os.environ or not _glibc():
        return
    os.environ["GLIBC_TUNABLES"] = f"{before}:{TUNABLES}" if before else TUNABLES
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:  # slower, not wrong
        return


def _glibc() -> bool:
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False
