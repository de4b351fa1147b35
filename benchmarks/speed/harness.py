"""What the scripts of the comparison share: arguments, the step meter, the harness's own metrics, the JSON line.

A script is one tool in one process: it reads the canonical file, trains, evaluates, and prints one line of JSON. Units
that make tools comparable: a *target* is a predicted position that enters the loss (a padded position or a sequence
means something else in every tool); seconds are wall clock, CPU seconds are those of the process.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import math
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path


def arguments(tool: str, variants: str = "") -> argparse.Namespace:
    """Parses the command line that all scripts share, and sets what must be set before torch is imported.

    Args:
        tool: name for the help.
        variants: what `--variant` takes here.
    """
    parser = argparse.ArgumentParser(description=f"{tool}: one JSON line of timings")
    parser.add_argument("--data", type=Path, required=True, help="FOLDER/NAME/NAME.inter written by canonical.py")
    parser.add_argument("--variant", default="", help=variants or "not used")
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2, help="at most")
    parser.add_argument("--max-steps", type=int, default=0, help="stop after so many steps; 0: no limit")
    parser.add_argument("--cpu-budget", type=float, default=0, help="stop after so many CPU seconds; 0: no limit")
    parser.add_argument("--warmup", type=int, default=3, help="first steps, left out of the throughput")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--eval-batch-size", type=int, default=256)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--num-layers", type=int, default=2)
    parser.add_argument("--num-heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--evaluation",
        choices=["none", "own", "full"],
        default="full",
        help="own: the test metrics of the tool, once; full: also top-10 lists, judged by the harness",
    )
    a = parser.parse_args()
    a.data = a.data.resolve()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(a.threads)
    os.environ["OMP_WAIT_POLICY"] = "passive"  # spinning threads collapse as soon as a core is shared
    sys.argv = sys.argv[:1]  # some tools read it
    a.scratch = tempfile.mkdtemp(prefix="bench-")
    atexit.register(shutil.rmtree, a.scratch, ignore_errors=True)
    a.load_begin = load()
    return a


def load() -> float:
    """Returns the 1-minute load average."""
    return round(os.getloadavg()[0], 2)


def process_age() -> float:
    """Returns the seconds since the kernel started this process."""
    with open("/proc/self/stat") as f:
        started = int(f.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    with open("/proc/uptime") as f:
        return float(f.read().split()[0]) - started


def peak_rss_mb() -> float:
    """Returns the largest resident size so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


class Watch:
    """Names the seconds of `with watch("name"):` blocks; `seconds[name]` adds up."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Meter:
    """Counts what training steps did, and how fast, leaving the first steps out."""

    def __init__(self, a: argparse.Namespace):
        self.warmup, self.max_steps, self.cpu_budget = a.warmup, a.max_steps, a.cpu_budget
        self.rows: list[tuple] = []
        self.first_step_age = None

    def begin(self) -> None:
        """Marks the beginning of training."""
        self.rows = [(time.perf_counter(), time.process_time(), 0, 0, 0, 0)]

    def step(self, sequences: int, padded: int, real: int, targets: int) -> bool:
        """Notes the end of an optimizer step.

        Args:
            sequences: rows of the batch.
            padded: positions of the batch, padding included.
            real: input positions that are not padding.
            targets: predicted positions in the loss.

        Returns:
            Whether to stop here.
        """
        self.rows.append((time.perf_counter(), time.process_time(), sequences, padded, real, targets))
        if self.first_step_age is None:
            self.first_step_age = process_age()
        spent = self.rows[-1][1] - self.rows[0][1]
        return self.max_steps == len(self.rows) - 1 or 0 < self.cpu_budget <= spent

    def report(self, epoch_targets: float) -> dict:
        """Returns the rates over the steps after the warm-up; `epoch_s` is estimated from `epoch_targets`."""
        rows, timed = self.rows, self.rows[self.warmup + 1 :]
        if not timed:
            raise SystemExit(f"{len(rows) - 1} steps were made, and the first {self.warmup} do not count.")
        start = rows[self.warmup]
        wall, cpu = rows[-1][0] - start[0], rows[-1][1] - start[1]
        sequences, padded, real, targets = (sum(row[k] for row in timed) for k in range(2, 6))
        walls = sorted(b[0] - a[0] for a, b in zip(rows[self.warmup :], timed, strict=False))
        cpus = sorted(b[1] - a[1] for a, b in zip(rows[self.warmup :], timed, strict=False))
        return {
            "startup_s": round(self.first_step_age, 2),
            "train_s": round(rows[-1][0] - rows[0][0], 2),
            "steps": len(rows) - 1,
            "timed_steps": len(timed),
            "step_ms": round(1e3 * walls[len(walls) // 2], 3),
            "cpu_ms_per_step": round(1e3 * cpus[len(cpus) // 2], 3),
            "targets_per_step": round(targets / len(timed), 1),
            "sequences_per_s": round(sequences / wall, 1),
            "padded_positions_per_s": round(padded / wall),
            "real_positions_per_s": round(real / wall),
            "targets_per_s": round(targets / wall),
            "targets_per_cpu_s": round(targets / cpu),
            "epochs_done": round(sum(row[5] for row in rows) / epoch_targets, 3),
            "epoch_s": round(epoch_targets * wall / targets, 2),
        }


class Answers:
    """The held-out item of every user, and the facts of the data; read from the canonical file, untimed."""

    def __init__(self, a: argparse.Namespace):
        import numpy as np

        events = np.loadtxt(a.data, skiprows=1, usecols=(0, 1, 3), delimiter="\t", dtype=np.int64)
        events = events[events[:, 2].argsort(kind="stable")]
        last = np.flatnonzero(np.diff(np.append(events[:, 0], -1)))  # ranks sort by user first
        self.target: dict[int, int] = dict(events[last, :2].tolist())
        train = np.unique(events[:, 0], return_counts=True)[1] - 2  # the last two events are held out
        cut = np.minimum(train - 1, a.max_length)
        self.epoch_targets = int(cut.sum())
        """Targets of an epoch where a user is one sequence of at most max_length inputs."""
        self.all_targets = int((train - 1).sum())
        self.facts = {
            "num_users": len(train),
            "num_items": len(np.unique(events[:, 1])),
            "num_events": len(events),
            "epoch_targets": self.epoch_targets,
        }

    def quality(self, lists: dict[int, list[int]], suffix: str = "") -> dict:
        """Returns HR@10 and NDCG@10 of lists of item ids, best first, of external ids; every user counts."""
        hits = gain = 0.0
        for user, target in self.target.items():
            best = list(lists.get(user, ()))[:10]
            if target in best:
                hits += 1
                gain += 1 / math.log2(best.index(target) + 2)
        return {
            f"hr10{suffix}": round(hits / len(self.target), 4),
            f"ndcg10{suffix}": round(gain / len(self.target), 4),
        }

    def rate(self, seconds: float) -> float:
        """Returns users per second."""
        return round(len(self.target) / seconds, 1)


def emit(a: argparse.Namespace, tool: str, version: str, watch: Watch, **values) -> None:
    """Prints the JSON line.

    Args:
        a: the parsed command line.
        tool: its name.
        version: its version.
        watch: with seconds for at least `import` and `prepare`.
        values: measured fields.
    """
    import torch

    line = {
        "tool": tool,
        "variant": a.variant,
        "version": version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "data": a.data.stem,
        "max_length": a.max_length,
        "batch_size": a.batch_size,
        "threads": torch.get_num_threads(),
        "malloc": os.environ.get("GLIBC_TUNABLES", ""),
        **{f"{name}_s": round(seconds, 2) for name, seconds in watch.seconds.items()},
        **values,
        "peak_rss_mb": peak_rss_mb(),
        "page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
        "load_begin": a.load_begin,
        "load_end": load(),
    }
    print(json.dumps(line), flush=True)
