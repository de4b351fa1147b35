"""Runs scripts of the comparison in turn, round after round, and prints medians, spread and ratios as Markdown.

    python compare.py run --data DATA.inter --out results.jsonl --rounds 3 \\
        --job rectools=PYTHON:"bench_rectools.py --max-steps 12" \\
        --job recbole@1=PYTHON:"bench_recbole.py --max-steps 8" -- --evaluation own
    python compare.py table results.jsonl --base rectools

A round runs every job once, so that what the machine does meanwhile meets all of them; `@N` limits a job to the first N
rounds. What follows `--` goes to every script. A new tool joins with one more --job and a script that prints the same
line. `--malloc tuned` gives every job an allocator that keeps large blocks instead of returning them to the system.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TUNED = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"
FIELDS = {
    "targets_per_s": "targets/s",
    "targets_per_cpu_s": "targets/CPU-s",
    "step_ms": "step ms",
    "cpu_ms_per_step": "CPU ms/step",
    "epoch_s": "epoch s",
    "eval_users_per_s": "eval users/s",
    "eval_unseen_users_per_s": "eval users/s, seen excluded",
    "top10_users_per_s": "top-10 users/s",
    "prepare_s": "prepare s",
    "import_s": "import s",
    "startup_s": "start to 1st step s",
    "train_rss_mb": "peak MB, training",
    "peak_rss_mb": "peak MB",
    "page_faults": "page faults",
}


def busy_share(seconds: float = 0.5) -> float:
    """Returns the share of all cores that did something during the next `seconds`."""

    def ticks() -> list[int]:
        with open("/proc/stat") as f:
            return [int(x) for x in f.readline().split()[1:9]]

    before = ticks()
    time.sleep(seconds)
    spent = [b - a for a, b in zip(before, ticks(), strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))  # idle, and idle while waiting for a disk


def wait_until_quiet(limit: float, patience: float) -> float:
    """Waits for the machine to be idle, but not longer than `patience` seconds; returns the last share that was seen.

    The load average cannot tell: it forgets what ran before only after minutes.
    """
    end = time.monotonic() + patience
    while (share := busy_share()) > limit and time.monotonic() < end:
        time.sleep(1)
    return round(share, 3)


def run_job(job: str, a: argparse.Namespace, common: list[str], round_: int) -> dict | None:
    """Runs one job once; returns its line, or None after saying on stderr why there is none."""
    name, command = job.split("=", 1)
    name, _, limit = name.partition("@")
    if limit and round_ >= int(limit):
        return None
    python, command = command.split(":", 1)
    script, *options = shlex.split(command)
    environment = os.environ | ({"GLIBC_TUNABLES": TUNED} if a.malloc == "tuned" else {})
    # Options of the job come last, and so win over the common ones.
    full = [python, str(HERE / script), "--data", str(a.data.resolve()), *common, *options]
    busy = wait_until_quiet(a.quiet, a.patience)
    start = time.perf_counter()
    try:
        done = subprocess.run(full, capture_output=True, text=True, timeout=a.timeout, env=environment)
    except subprocess.TimeoutExpired:
        print(f"# {name}: stopped after {a.timeout} s", file=sys.stderr, flush=True)
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"# {name}: exit code {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
        return None
    wall = round(time.perf_counter() - start, 1)
    run = {"job": name, "round": round_, "wall_s": wall, "malloc_setting": a.malloc, "busy_before": busy}
    row = run | json.loads(lines[-1])
    print(f"# {name}: {wall} s, {row['targets_per_s']:,} targets/s", file=sys.stderr, flush=True)
    return row


def cell(values: list[float]) -> str:
    """Formats a median and its range."""
    if not values:
        return "–"

    def number(x: float) -> str:
        return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"

    middle, low, high = statistics.median(values), min(values), max(values)
    return number(middle) if low == high else f"{number(middle)} ({number(low)}–{number(high)})"


def table(rows: list[dict], base: str) -> str:
    """Returns a Markdown table with a column for each job: medians (range), then targets/s and users/s over `base`."""
    jobs = list(dict.fromkeys(row["job"] for row in rows))
    values = {
        (job, field): [row[field] for row in rows if row["job"] == job and row.get(field) is not None]
        for job in jobs
        for field in FIELDS
    }
    loads = {job: [row[k] for row in rows if row["job"] == job for k in ("load_begin", "load_end")] for job in jobs}
    out = ["| | " + " | ".join(jobs) + " |", "|---" * (len(jobs) + 1) + "|"]
    out.append("| rounds | " + " | ".join(str(sum(row["job"] == job for row in rows)) for job in jobs) + " |")
    for field, title in FIELDS.items():
        if any(values[job, field] for job in jobs):
            out.append(f"| {title} | " + " | ".join(cell(values[job, field]) for job in jobs) + " |")
    busy = {job: [row["busy_before"] for row in rows if row["job"] == job] for job in jobs}
    out.append("| busy before | " + " | ".join(f"{max(busy[job]):.0%}" for job in jobs) + " |")
    out.append("| load average | " + " | ".join(f"{min(loads[job])}–{max(loads[job])}" for job in jobs) + " |")
    ratios = [f for f in ("targets_per_s", "targets_per_cpu_s", "eval_users_per_s", "train_rss_mb") if base in jobs]
    for field in ratios:
        if not values[base, field]:
            continue
        anchor = statistics.median(values[base, field])
        cells = [f"{statistics.median(values[job, field]) / anchor:.2f}" if values[job, field] else "–" for job in jobs]
        out.append(f"| {FIELDS[field]}, times {base} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    argv, common = sys.argv[1:], []
    if "--" in argv:
        argv, common = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True, help="JSON lines are appended")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--job", action="append", required=True, metavar="NAME[@ROUNDS]=PYTHON:SCRIPT OPTIONS")
    run.add_argument("--malloc", choices=["default", "tuned"], default="default")
    run.add_argument("--quiet", type=float, default=0.05, help="begin a job when less of the machine is busy")
    run.add_argument("--patience", type=float, default=20, help="seconds to wait for that")
    run.add_argument("--timeout", type=int, default=600, help="seconds a job may take")
    show = commands.add_parser("table")
    show.add_argument("out", type=Path)
    for command in (run, show):
        command.add_argument("--base", default="", help="job that ratios refer to; default: the first")
    a = parser.parse_args(argv)
    if a.command == "run":
        a.out.parent.mkdir(parents=True, exist_ok=True)
        for round_ in range(a.rounds):
            for job in a.job:
                row = run_job(job, a, common, round_)
                if row is not None:
                    with open(a.out, "a") as f:
                        f.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out.exists() else []
    if not rows:
        sys.exit("no job gave a line.")
    print(table(rows, a.base or rows[0]["job"]))


if __name__ == "__main__":
    main()
