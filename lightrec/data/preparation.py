"""From a raw log to a prepared one: clean, filter, order, number; written once, keyed by content and settings."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from lightrec.data import sources
from lightrec.data.prepared import FORMAT, Prepared, store
from lightrec.data.readers import Columns, Log, OnError, in_float32, read_log, read_table, usual_column
from lightrec.errors import InputError

Duplicates = Literal["keep", "first", "last"]
KCore = Literal["iterated", "single_pass"]
TimePrecision = Literal["exact", "float32"]

log = logging.getLogger(__name__)


def prepare(
    *,
    source: str = "",
    path: str | None = None,
    mirror: str | None = None,
    cache_dir: str | None = None,
    user_column: str | int | None = None,
    item_column: str | int | None = None,
    time_column: str | int | None = None,
    rating_column: str | int | None = None,
    title_column: str | int | None = None,
    item_path: str | None = None,
    format: str | None = None,
    on_error: OnError = "raise",
    duplicates: Duplicates = "keep",
    min_rating: float | None = None,
    min_user_events: int | None = None,
    min_item_events: int | None = None,
    k_core: KCore = "iterated",
    time_precision: TimePrecision = "exact",
) -> Prepared:
    """Returns the prepared form of a log, from the cache if the same content was prepared in the same way before.

    Steps, each counted in `meta["counts"]`: rows without a user and void rows (named sources that have such), rating,
    duplicates, k-core. The order of a history is stable by (user, time, row of the file). Users and items are numbered
    by first appearance in the file, and those that were dropped leave no gap.

    Args:
        source: name of a known data set, or "" or "file" for `path`.
        path: an interaction log of one's own.
        mirror: folder or URL that has the files of known data sets.
        cache_dir: where downloads and prepared sets are kept.
        user_column: name or position of the user column; guessed if None. So the next four.
        item_column: item column.
        time_column: time column.
        rating_column: rating column.
        title_column: title column, of the item file if there is one that has it.
        item_path: a second file with one row an item: its id, title and whatever else is known.
        format: format of `path`; guessed if None.
        on_error: `raise` or `skip` rows that cannot be read.
        duplicates: of several events of one user with one item keep all, the first, or the last.
        min_rating: drop events rated below, or not rated.
        min_user_events: drop users with fewer events.
        min_item_events: drop items with fewer events.
        k_core: repeat the two filters until nothing changes, or count once and drop, as SASRec's file was made.
        time_precision: `float32` rounds times as RecBole does, which keeps them so: to 64 seconds in the years 1987 to
            2003, to 128 until 2038. Events of one step stand in the order of the file.

    Raises:
        InputError: whatever the user can mend.
    """
    for name, value, known_values in (
        ("duplicates", duplicates, Duplicates),
        ("k_core", k_core, KCore),
        ("time_precision", time_precision, TimePrecision),
    ):
        if value not in known_values.__args__:
            raise InputError(f"--data.{name} {value!r} is unknown; choose {', '.join(known_values.__args__)}.")
    for name, value in (("min_user_events", min_user_events), ("min_item_events", min_item_events)):
        if value is not None and value < 1:
            raise InputError(f"--data.{name} ({value}) must be at least 1.")
    cache = sources.cache_folder(cache_dir)
    columns = Columns(user_column, item_column, time_column, rating_column, title_column)
    known = layout = None
    if source not in ("", "file"):
        if path is not None or item_path is not None:
            raise InputError(f"--data.source {source} and --data.path or item_path exclude each other; give one.")
        if any(value is not None for value in (*vars(columns).values(), format)):
            raise InputError(f"--data.source {source} knows its own columns and format; leave those flags out.")
        known = sources.find_source(source)
        layout, files = sources.locate(known, cache, mirror)
    elif path is None:
        raise InputError("no data: give --data.source NAME (see `lightrec data list`) or --data.path FILE.")
    else:
        files = {"log": Path(path)} | ({"items": Path(item_path)} if item_path else {})
        for one in files.values():
            if not one.is_file():
                raise InputError(f"{one}: {'is a folder' if one.is_dir() else 'no such file'}; give a file's path.")
    settings = {
        "source": source or "file",
        "columns": list(vars(columns).values()),
        "format": format,
        "on_error": on_error,
        "duplicates": duplicates,
        "min_rating": min_rating,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "k_core": k_core,
        "time_precision": time_precision,
    }
    try:
        hashes = {name: sources.file_hash(file) for name, file in files.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be opened: {error.strerror}; check its permissions.") from error
    key = hashlib.sha256(json.dumps([FORMAT, settings, hashes]).encode()).hexdigest()[:12]
    name = source if known else re.sub(r"[^\w-]+", "-", Path(path).name.split(".")[0])[:40] or "log"
    folder = cache / "prepared" / f"{name}-{key}"
    if (folder / "meta.json").exists():
        return Prepared.load(folder)

    def make() -> Prepared:
        nonlocal columns
        tables = []
        if known:
            read = _read_known(known, layout, files[layout.log.path], cache, on_error)
            tables.append(_texts(known.catalog(files) if known.catalog else {}))
        else:
            if item_path:
                table, columns = _item_table(item_path, columns)
                tables.append(table)
            read = read_log(path, columns, format, on_error)
            if read.guessed:
                found = ", ".join(f"{role} from {read.columns[role]}" for role in read.guessed)
                log.info("%s: read as %s, %s (guessed)", path, read.format, found)
        main = files[layout.log.path] if known else Path(path)
        if read.skipped:
            log.warning("%s: left out %d rows that cannot be read", main, read.skipped)
        encoded = _encode(read, main)
        if known:
            _check_counts(known, encoded.counts[0], main)
        encoded.drop_void(known.void[0] if known and known.void else "")
        if time_precision == "float32":
            encoded.round_times(read.time_unit, main)
        encoded.filter(duplicates, min_rating, min_user_events, min_item_events, k_core)
        items, times, offsets, users, item_ids = encoded.finish()
        catalog = _catalog(item_ids, encoded.titles, tables, item_path)
        notes = [known.note, layout.note] if known else []
        if known and known.catalog and "title" not in catalog.columns:
            missing = [file.path for file in known.companions if file.path not in files]
            notes.append("no titles" + (f", for want of {' and '.join(missing)}" if missing else ""))
        meta = {
            "source": settings["source"],
            "title": known.title if known else Path(path).name,
            "note": "; ".join(note for note in notes if note),
            "licence": known.licence if known else None,
            "max_length": known.max_length if known else 50,
            "data_sha256": next(iter(hashes.values())),
            "files": {file.name: hashes[name] for name, file in files.items()},
            "settings": settings,
            "columns": read.columns,
            "guessed_columns": list(read.guessed),
            "format_read": read.format,
            "time_unit": read.time_unit,
            "skipped_rows": read.skipped,
            "counts": encoded.counts,
        }
        return store(folder, items, times, offsets, users, catalog, meta)

    with sources.writing(cache), sources.locked(cache, folder.name):
        if (folder / "meta.json").exists():  # another process was preparing it
            return Prepared.load(folder)
        return make()


def _read_known(known: sources.Source, layout: sources.Layout, file: Path, cache: Path, on_error: OnError) -> Log:
    """Reads the log of a named source, out of its archive if it is in one."""
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=cache) as folder:
        if layout.member:
            file = sources.unpack(file, layout.member, Path(folder))
        return read_log(
            file,
            Columns(**layout.columns),
            layout.format,
            on_error,
            layout.header,
            missing_user=known.drop_missing_user,
            void=known.void,
        )


class _Encoded:
    """A log as integer arrays in file order; filters drop rows and note what is left."""

    def __init__(self, columns: dict[str, np.ndarray], users: pl.Series, items: pl.Series, titles: pl.DataFrame | None):
        self.columns = columns
        """Each [num_events]: user and item int32 codes; time, fraction, rating, void where the log has them."""
        self.users, self.items, self.titles = users, items, titles
        self.counts: list[dict] = []
        self.note("read")

    @property
    def user(self) -> np.ndarray:
        return self.columns["user"]

    @property
    def item(self) -> np.ndarray:
        return self.columns["item"]

    def note(self, step: str) -> None:
        self.counts.append(
            {
                "step": step,
                "users": int(np.count_nonzero(np.bincount(self.user, minlength=1))),
                "items": int(np.count_nonzero(np.bincount(self.item, minlength=1))),
                "events": len(self.user),
            }
        )
        if not len(self.user):
            steps = "; ".join(
                f"{c['step']}: {c['users']} users, {c['items']} items, {c['events']} events" for c in self.counts
            )
            raise InputError(f"no user is left after the filters ({steps}); lower the thresholds.")

    def keep(self, mask: np.ndarray) -> None:
        if not mask.all():
            self.columns = {name: values[mask] for name, values in self.columns.items()}

    def drop_void(self, column: str) -> None:
        void = self.columns.pop("void", None)
        if void is not None:
            self.keep(~void)
            self.note(f"not void by {column}")

    def round_times(self, unit: str | None, path: Path) -> None:
        """Rounds times as `in_float32` says."""
        if "time" not in self.columns:
            raise InputError(
                f"{path}: --data.time_precision float32 rounds times, and this log has none that was read; name its "
                "--data.time_column, or leave the flag out."
            )
        rounded = in_float32(self.columns["time"], self.columns.pop("fraction", 0), unit)
        self.columns["time"] = np.floor(rounded).astype(np.int64)
        fraction = ((rounded - self.columns["time"]) * 1e6).astype(np.int32)
        if fraction.any():
            self.columns["fraction"] = fraction

    def filter(self, duplicates, min_rating, min_user_events, min_item_events, k_core) -> None:
        if min_rating is not None:
            if "rating" not in self.columns:
                raise InputError("--data.min_rating needs a rating column; name it with --data.rating_column.")
            self.keep(self.columns["rating"] >= min_rating)  # false for a missing rating
            self.note(f"rating >= {min_rating:g}")
        if duplicates != "keep":
            self._drop_duplicates(duplicates)
            self.note(f"{duplicates} of each user and item")
        minimum = min_user_events or 0, min_item_events or 0
        if any(minimum):
            self._drop_rare(*minimum, once=k_core == "single_pass")
            self.note(f"{k_core} core of {minimum[0]} a user, {minimum[1]} an item")

    def _in_time(self) -> tuple[np.ndarray, ...]:
        """Returns the keys of time, least significant first, as lexsort wants them."""
        return tuple(self.columns[name] for name in ("fraction", "time") if name in self.columns)

    def _drop_duplicates(self, which: Duplicates) -> None:
        key = self.user.astype(np.int64) * len(self.items) + self.item
        order = np.lexsort((*self._in_time(), key))  # stable: file order within equal times
        key = key[order]
        change = key[1:] != key[:-1]
        chosen = np.append(True, change) if which == "first" else np.append(change, True)
        mask = np.zeros(len(key), dtype=bool)
        mask[order[chosen]] = True
        self.keep(mask)

    def _drop_rare(self, min_user: int, min_item: int, once: bool) -> None:
        while len(self.user):
            keep = (np.bincount(self.user) >= min_user)[self.user] & (np.bincount(self.item) >= min_item)[self.item]
            if keep.all():
                return
            self.keep(keep)
            if once:
                return

    def finish(self):
        """Numbers what stayed by first appearance and sorts by (user, time, row)."""
        user, users = _renumber(self.user, self.users)
        item, items = _renumber(self.item, self.items)
        order = np.lexsort((*self._in_time(), user))
        offsets = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(np.bincount(user, minlength=len(users)), out=offsets[1:])
        times = self.columns["time"][order] if "time" in self.columns else None
        return (item[order] + 1).astype(np.int32), times, offsets, users, items


def _renumber(codes: np.ndarray, names: pl.Series) -> tuple[np.ndarray, pl.Series]:
    used = np.bincount(codes, minlength=len(names)) > 0
    new = np.cumsum(used) - 1
    return new[codes].astype(np.int32), names.filter(pl.Series(used))


def _encode(read: Log, path: Path) -> _Encoded:
    """Turns ids into codes by first appearance; one column at a time, so that little text is held twice."""
    table = read.frame.collect()
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction.")
    total = len(table)
    table = table.filter(pl.col("user").is_not_null() & (pl.col("user") != ""))
    if not len(table):
        raise InputError(f"{path}: no row has a user.")
    titles = _titles(table, read) if "title" in table.columns else None
    columns, names = {}, {}
    for column in ("user", "item", "time", "fraction", "rating", "void"):
        if column in table.columns:
            values = table.drop_in_place(column)
            if column in ("user", "item"):
                # An Enum numbers its categories in the order they are given: here, of first appearance.
                names[column] = values.unique(maintain_order=True)
                values = values.cast(pl.Enum(names[column])).to_physical().cast(pl.Int32)
            columns[column] = values.to_numpy()
    encoded = _Encoded(columns, names["user"], names["item"], titles)
    if len(table) < total:
        encoded.counts[0]["events"] = total
        encoded.note("rows with a user")
    return encoded


def _titles(table: pl.DataFrame, read: Log) -> pl.DataFrame | None:
    """Returns item and title, the last one of the file where an item has several.

    What looks like a title may be that of a review: if nobody named the column, it must be a property of the item.
    """
    pairs = table.lazy().select("item", "title").filter(pl.col("title").is_not_null() & (pl.col("title") != ""))
    titles = pairs.unique("item", keep="last", maintain_order=True).collect()
    if "title" in read.guessed:
        count = pairs.unique().select(pl.len()).collect().item()
        if count > 1.5 * len(titles):
            log.info("column %s has many values an item and is not taken as the title", read.columns["title"])
            read.columns.pop("title")
            read.guessed = tuple(role for role in read.guessed if role != "title")
            return None
    return titles


def _check_counts(known: sources.Source, found: dict, path: Path) -> None:
    for what, expected in known.expect.items():
        if found[what] != expected:
            raise InputError(
                f"{path}: {known.name} must have {expected} {what}, this file has {found[what]}: it is another file; "
                "delete it or give another --data.mirror."
            )


def _item_table(path: str, columns: Columns) -> tuple[pl.DataFrame, Columns]:
    """Reads a table with one row an item; returns it with columns `item` and `title`, and the columns of the log.

    The id is in the column that is named as in the log, or by a usual name, or the first.
    """
    table = read_table(path)
    names = table.columns
    named = [str(c) for c in (columns.item,) if c is not None and str(c) in names]
    key = next(iter(named), None) or usual_column(names, "item") or names[0]
    title = columns.title
    if title is not None and str(title) in names:
        title, columns = str(title), Columns(columns.user, columns.item, columns.time, columns.rating)
    else:
        title = usual_column([n for n in names if n != key], "title")
    others = [n for n in names if n not in (key, title) and n not in ("item", "title")]
    chosen = [pl.col(key).alias("item"), *([pl.col(title).alias("title")] if title else []), *map(pl.col, others)]
    return table.select(chosen).filter(pl.col("item").is_not_null()).unique("item", keep="last"), columns


def _texts(columns: dict[str, dict[str, str]]) -> pl.DataFrame:
    """Turns {column: {item: text}} into a table."""
    table = pl.DataFrame({"item": []}, schema={"item": pl.String})
    for name, texts in columns.items():
        column = pl.DataFrame(
            {"item": list(texts), name: list(texts.values())}, schema=dict.fromkeys(("item", name), pl.String)
        )
        table = table.join(column, on="item", how="full", coalesce=True)
    return table


def _catalog(
    items: pl.Series, titles: pl.DataFrame | None, tables: list[pl.DataFrame], item_path: str | None
) -> pl.DataFrame:
    """Joins what is known of the items that are there; a title of an item file goes before one of the log."""
    catalog = items.alias("item").to_frame()
    for table in tables + ([titles] if titles is not None else []):
        new = [name for name in table.columns if name not in catalog.columns]
        if new and len(table):
            catalog = catalog.join(table.select("item", *new), on="item", how="left", maintain_order="left")
    if item_path and not items.is_in(tables[0]["item"].implode()).any():
        raise InputError(
            f"{item_path}: none of the {len(items)} items of the log is in it ({items[0]!r} for one; its ids are like "
            f"{tables[0]['item'][0]!r}); name the id's column as in the log."
        )
    empty = [name for name in catalog.columns[1:] if catalog[name].null_count() == len(catalog)]
    return catalog.drop(empty)
