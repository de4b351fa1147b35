"""Prepared: a log after cleaning, as memory-mapped arrays that many processes can share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from lightrec.data.catalog import Catalog
from lightrec.errors import InputError

FORMAT = 2


@dataclass(frozen=True)
class EventColumn:
    """A further column of the log, in the order of the events."""

    values: np.ndarray
    """[num_events] float32 numbers, NaN where none is given; or int32 codes of categories, 0 where none is given."""
    categories: pl.Series | None = None
    """Texts of the categories; row c - 1 for code c. None for numbers."""


@dataclass(frozen=True)
class Prepared:
    """Histories of all users, one after another, each in order of time."""

    items: np.ndarray
    """[num_events] int32, internal ids 1..num_items."""
    times: np.ndarray | None
    """[num_events] int64, seconds since the epoch; None where the log has no times."""
    offsets: np.ndarray
    """[num_users + 1] int64; user u owns items[offsets[u]:offsets[u + 1]]."""
    users: pl.Series
    """External user ids, by internal id."""
    catalog: Catalog
    meta: dict
    """Source, title, data_sha256, settings, counts at every step, licence, max_length."""
    path: Path
    event_columns: dict[str, EventColumn] = field(default_factory=dict)
    """By name, in the order that they were asked for."""

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.catalog)

    @staticmethod
    def load(folder: str | Path) -> Prepared:
        """Opens a prepared set; arrays are mapped, not read.

        Raises:
            InputError: the folder holds none, one of another format, or a damaged one.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            if meta["format"] != FORMAT:
                raise InputError(
                    f"{folder}: prepared by another version of lightrec; delete the folder to prepare again."
                )
            times = folder / "times.npy"
            prepared = Prepared(
                items=np.load(folder / "items.npy", mmap_mode="r"),
                times=np.load(times, mmap_mode="r") if times.exists() else None,
                offsets=np.load(folder / "offsets.npy"),
                users=pl.read_parquet(folder / "users.parquet")["user"],
                catalog=Catalog(pl.read_parquet(folder / "catalog.parquet")),
                meta=meta,
                path=folder,
                event_columns={
                    name: _load_event_column(folder, number)
                    for number, name in enumerate(meta.get("event_columns", []))
                },
            )
            events = len(prepared.items)
            if (
                prepared.offsets[-1] != events
                or prepared.num_users != len(prepared.users)
                or (prepared.times is not None and len(prepared.times) != events)
                or any(len(column.values) != events for column in prepared.event_columns.values())
            ):
                raise ValueError("its files do not belong together")
        except InputError:
            raise
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
            cause = " ".join(str(error).split())
            raise InputError(f"{folder}: no prepared data set: {cause}; delete the folder to prepare again.") from error
        return prepared


def _load_event_column(folder: Path, number: int) -> EventColumn:
    texts = folder / f"event-{number}.parquet"
    categories = pl.read_parquet(texts)["category"] if texts.exists() else None
    return EventColumn(np.load(folder / f"event-{number}.npy", mmap_mode="r"), categories)


def _save_event_column(folder: Path, number: int, column: EventColumn) -> None:
    np.save(folder / f"event-{number}.npy", column.values)
    if column.categories is not None:
        column.categories.alias("category").to_frame().write_parquet(folder / f"event-{number}.parquet")


def store(
    folder: Path,
    items: np.ndarray,
    times: np.ndarray | None,
    offsets: np.ndarray,
    users: pl.Series,
    catalog: pl.DataFrame,
    meta: dict,
    event_columns: dict[str, EventColumn] | None = None,
) -> Prepared:
    """Writes a prepared set in one rename, so that no other process and no crash ever sees half of it.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        part.chmod(0o755)  # mkdtemp makes it private, and a cache may be shared
        np.save(part / "items.npy", items)
        if times is not None:
            np.save(part / "times.npy", times)
        np.save(part / "offsets.npy", offsets)
        users.alias("user").to_frame().write_parquet(part / "users.parquet")
        catalog.write_parquet(part / "catalog.parquet")
        for number, column in enumerate((event_columns or {}).values()):
            _save_event_column(part, number, column)
        if event_columns:
            meta = meta | {"event_columns": list(event_columns)}
        (part / "meta.json").write_text(json.dumps({"format": FORMAT, **meta}, indent=1), encoding="utf-8")
        try:
            os.rename(part, folder)
        except OSError:
            if not (folder / "meta.json").exists():  # else another process was quicker with the same content
                raise
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = " ".join(str(error).split())
        raise InputError(
            f"{folder}: cannot be written: {cause}; free some space or choose another --data.cache_dir."
        ) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    return Prepared.load(folder)
