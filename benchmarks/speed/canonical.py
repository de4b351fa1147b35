"""Writes the file that every tool of the comparison reads.

The canonical file is a RecBole atomic file (`NAME/NAME.inter`, tab separated, `user_id item_id rating timestamp`) whose
timestamps are 1..N, the rank of each event by (user, time, row of the source). Nobody can break ties differently then,
and everybody has the same order, the same targets and the same histories; RecBole, which keeps times as float32, still
tells them apart below 2**24 events. Rows stay in the order of the source, so that sorting remains the tools' work.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np


def read_events(path: Path, kind: str) -> np.ndarray:
    """Reads a log.

    Args:
        path: text, gzipped or not.
        kind: `pairs`: lines "user item", in time order for each user; `sequences`: lines "user item item ..."; `dat`:
            user::item::rating::time; `inter`: a RecBole atomic file.

    Returns:
        [N, 3] int64: user, item, time.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="latin-1") as lines:
        if kind == "pairs":
            rows = [(*map(int, line.split()[:2]), n) for n, line in enumerate(lines)]
        elif kind == "sequences":
            split = (list(map(int, line.split())) for line in lines)
            rows = [(user, item, n) for user, *items in split for n, item in enumerate(items)]
        elif kind == "dat":
            split = (line.split("::") for line in lines)
            rows = [(int(user), int(item), int(time)) for user, item, _, time in split]
        else:
            names = [name.split(":")[0] for name in next(lines).rstrip("\n").split("\t")]
            user, item, time = map(names.index, ("user_id", "item_id", "timestamp"))
            split = (line.rstrip("\n").split("\t") for line in lines)
            rows = [(int(c[user]), int(c[item]), int(float(c[time]))) for c in split]
    return np.array(rows, dtype=np.int64)


def canonical(events: np.ndarray, min_user_events: int = 5, min_item_events: int = 0) -> np.ndarray:
    """Filters once (items, then users) and replaces times by ranks; rows stay in their order: [N, 3] int64."""
    _, item, count = np.unique(events[:, 1], return_inverse=True, return_counts=True)
    events = events[count[item] >= min_item_events]
    _, user, count = np.unique(events[:, 0], return_inverse=True, return_counts=True)
    events = events[count[user] >= min_user_events]
    order = np.lexsort((np.arange(len(events)), events[:, 2], events[:, 0]))
    ranked = events.copy()
    ranked[order, 2] = np.arange(1, len(events) + 1)
    return ranked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("kind", choices=["pairs", "sequences", "dat", "inter"])
    parser.add_argument("folder", type=Path, help="writes FOLDER/NAME.inter, where NAME is the name of the folder")
    parser.add_argument("--min-user-events", type=int, default=5)
    parser.add_argument("--min-item-events", type=int, default=0)
    a = parser.parse_args()
    events = canonical(read_events(a.source, a.kind), a.min_user_events, a.min_item_events)
    a.folder.mkdir(parents=True, exist_ok=True)
    with open(a.folder / f"{a.folder.name}.inter", "w") as f:
        f.write("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
        f.writelines(f"{user}\t{item}\t1\t{time}\n" for user, item, time in events.tolist())
    users, items = (len(np.unique(events[:, k])) for k in (0, 1))
    print(f"{len(events):,} events of {users:,} users with {items:,} items")


if __name__ == "__main__":
    main()
