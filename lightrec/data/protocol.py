"""The protocol record: how a number was made. Two numbers may stand in one table only if their records agree.

Tags follow the literature (which mixes five protocols under the same metric names): P1 100 uniform negatives, P2 100
negatives by popularity, P3 full ranking with seen items kept, P4 full ranking with seen items removed, P5 a global
split in time.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lightrec.data.prepared import Prepared
from lightrec.data.splits import Part

TIES = "pessimistic: rank = number of candidates that score at least as high, the target included"


def protocol_tag(split: str, exclude_seen: bool, candidates: str) -> str:
    """Names the protocol: P1 to P5."""
    if candidates.startswith("uniform"):
        return "P1"
    if candidates.startswith("popularity"):
        return "P2"
    if split == "global_timeline":
        return "P5"
    return "P4" if exclude_seen else "P3"


def targets_hash(prepared: Prepared, part: Part) -> str:
    """Hashes the targets of all rows in external ids, sorted by user: equal hashes mean the same questions."""
    names = np.array(prepared.catalog.item_ids, dtype=object)
    users = prepared.users.to_list()
    digest = hashlib.sha256()
    for row in sorted(range(len(part)), key=lambda row: users[part.user[row]]):
        targets = names[np.asarray(prepared.items[part.end[row] : part.stop[row]]) - 1]
        digest.update(f"{users[part.user[row]]}\t{' '.join(targets)}\n".encode())
    return digest.hexdigest()


def protocol_line(protocol: dict[str, Any], seeds: Sequence[int] = ()) -> str:
    """Says in a line how a number was made, or how several were that differ by their seeds."""
    seeds = sorted(set(seeds)) or [protocol["seed"]]
    counts = (protocol.get("counts") or [{}])[-1]
    size = ", ".join(f"{counts[name]:,} {name}" for name in ("users", "items", "events") if name in counts)
    kept = "removed" if protocol["exclude_seen"] else "kept"
    order = "; times rounded to float32, as in RecBole" if protocol.get("rounded_times") else ""
    whom = "all items" if protocol["candidates"] == "full" else f"the target among {protocol['candidates']}"
    return (
        f"protocol {protocol['tag']}: {protocol.get('title') or protocol['source']}"
        f"{f' ({size})' if size else ''}{order}; {protocol['split'].replace('_', '-')}, "
        f"{protocol.get('num_test_rows', 0):,} test users; ranking of {whom}, seen items {kept}; ties against us; "
        f"max_length {protocol['max_length']}; seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}; data {str(protocol.get('data_sha256'))[:8]}, "
        f"targets {str(protocol.get('targets_sha256'))[:8]}"
    )


def versions() -> dict[str, str]:
    """Returns the versions of what took part."""
    found = {"python": platform.python_version()}
    for name in ("lightrec", "torch", "lightning", "torchmetrics", "numpy", "polars"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """Returns the commit of the work tree that the process runs in, with `-dirty` after uncommitted changes."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            cwd=Path.cwd(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
