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

from lightrec.data.options import Protocol
from lightrec.data.prepared import Prepared
from lightrec.data.splits import Histories, Parts, Split, count_events, count_seen

TIES = "pessimistic: rank = number of candidates that score at least as high, the target included"


def protocol_record(
    prepared: Prepared, split: Split, parts: Parts, protocol: Protocol, item_counts: np.ndarray
) -> dict[str, Any]:
    """Returns what the data fix of the record; primitives.

    Args:
        prepared: the log.
        split: how it was split.
        parts: what came of it.
        protocol: what is ranked.
        item_counts: [num_items + 1], events of each item in training.
    """
    meta, test = prepared.meta, parts.test
    settings = meta["settings"]
    filters = ("duplicates", "min_rating", "min_user_events", "min_item_events", "k_core", "on_error")
    targets = count_events(prepared.items, test.history_end, test.target_end, prepared.num_items)
    record = {
        "tag": protocol_tag(split, protocol),
        "source": meta["source"],
        "title": meta["title"],
        "data_sha256": meta["data_sha256"],
        "counts": meta["counts"],
        "filters": {name: settings[name] for name in filters},
        "skipped_rows": meta["skipped_rows"],
        "columns": meta["columns"],
        "targets_sha256": targets_hash(prepared, test),
        "num_test_rows": len(test),
        "cold_test_targets": int(targets[item_counts == 0].sum()),
        "split": split.name,
        **parts.facts,
        "ties": TIES,
        "git_commit": git_commit(),
        "versions": versions(),
    }
    # What cannot be hit counts where seen items are left out of a full ranking.
    if (
        protocol.exclude_seen
        and protocol.sampled is None
        and (seen := count_seen(prepared.items, test, prepared.num_items))
    ):
        record["seen_test_targets"] = seen
        record["num_test_targets"] = int(targets.sum())
    # Only where there are such, so that other records are equal to older ones.
    if settings["time_precision"] == "float32":
        record["rounded_times"] = "float32"
    if settings.get("where"):
        record["where"] = settings["where"]
    if prepared.event_columns:
        record["event_columns"] = list(prepared.event_columns)
    return record


def protocol_tag(split: Split, protocol: Protocol) -> str:
    """Names the protocol: P1 to P5."""
    if protocol.sampled is not None:
        return {"uniform": "P1", "popularity": "P2"}[protocol.sampled.kind]
    return split.tag or ("P4" if protocol.exclude_seen else "P3")


def targets_hash(prepared: Prepared, part: Histories) -> str:
    """Hashes the targets of all rows in external ids, sorted by user: equal hashes mean the same questions."""
    names = np.array(prepared.catalog.item_ids, dtype=object)
    users = prepared.users.to_list()
    digest = hashlib.sha256()
    for row in sorted(range(len(part)), key=lambda row: users[part.user[row]]):
        targets = names[np.asarray(prepared.items[part.history_end[row] : part.target_end[row]]) - 1]
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


def seen_line(protocol: dict[str, Any]) -> str:
    """Says which share of the targets no model can hit for being in the history; empty where all can be hit."""
    seen, total = protocol.get("seen_test_targets", 0), protocol.get("num_test_targets", 0)
    if not seen or not total:
        return ""
    advice = "; compare --data.exclude_seen false, which ranks them" if seen >= 0.05 * total else ""
    return (
        f"{seen:,} of {total:,} test targets ({seen / total:.0%}) are in the history already and cannot be hit{advice}"
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
