"""How long, and in how much memory, a log of 20 million rows is prepared.

    python benchmarks/prepare_large.py [--rows 20000000] [--folder DIR]

Makes a csv log (seeded; activity of users and popularity of items fall off by power laws; rows in order of time, as a
shop writes them, so that sorting has work to do), prepares it in a process of its own with an iterated 5-core, and
prints one line of JSON. Peak memory is the largest resident set of that process, as the system counts it; CPU seconds
say what a busy machine hides.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

_CODE = """
import json, resource, sys, time
start = time.perf_counter()
from lightrec.data.options import Cleaning
from lightrec.data.preparation import prepare
imported = time.perf_counter()
prepared = prepare(path=sys.argv[1], cache_dir=sys.argv[2], cleaning=Cleaning(min_user_events=5, min_item_events=5))
done = time.perf_counter()
used = resource.getrusage(resource.RUSAGE_SELF)
prepare(path=sys.argv[1], cache_dir=sys.argv[2], cleaning=Cleaning(min_user_events=5, min_item_events=5))
print(json.dumps({
    "seconds": round(done - imported, 1),
    "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    "seconds_from_cache": round(time.perf_counter() - done, 1),
    "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    "counts": prepared.meta["counts"],
}))
"""


def write_log(path: Path, rows: int, users: int = 140_000, items: int = 27_000, seed: int = 0, chunk: int = 1_000_000):
    """Writes a csv log of user, item, rating and timestamp, chunk by chunk."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(users), rng.permutation(items)  # the busiest is not the first
    shares = [np.cumsum(1.0 / np.arange(1, n + 1) ** power) for n, power in ((users, 0.7), (items, 0.9))]
    now = 789_652_009
    with path.open("wb") as out:
        for start in range(0, rows, chunk):
            n = min(chunk, rows - start)
            drawn = [name[np.searchsorted(s, rng.random(n) * s[-1])] for name, s in zip(names, shares, strict=True)]
            stamps = now + np.sort(rng.integers(0, 32_000_000, n))
            now = int(stamps[-1])
            ratings = rng.integers(1, 11, n) / 2
            frame = pl.DataFrame({"userId": drawn[0], "movieId": drawn[1], "rating": ratings, "timestamp": stamps})
            frame.write_csv(out, include_header=start == 0)


def main() -> None:
    """Makes the log, prepares it and prints the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", help="where the log and the prepared set go; a temporary folder if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder, "log.csv")
        start = time.perf_counter()
        write_log(path, given.rows)
        made = time.perf_counter() - start
        command = [sys.executable, "-c", _CODE, str(path), str(Path(folder, "cache"))]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(run.stdout)
        print(
            json.dumps(
                {
                    "rows": given.rows,
                    "csv_mib": round(path.stat().st_size / 2**20),
                    "seconds_to_make_the_log": round(made, 1),
                    **found,
                    "rows_per_second": round(given.rows / found["seconds"]),
                    "polars": pl.__version__,
                    "python": platform.python_version(),
                }
            )
        )


if __name__ == "__main__":
    main()
