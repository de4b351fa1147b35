"""From a raw log to a prepared one: clean, filter, order, number; written once, keyed by content and settings."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from lightrec.data import sources
from lightrec.data.prepared import FORMAT, Prepared, store
from lightrec.data.readers import Columns, Log, OnError, read_log
from lightrec.errors import InputError

Duplicates = Literal["keep", "first", "last"]
KCore = Literal["iterated", "single_pass"]

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
) -> Prepared:
    """Returns the prepared form of a log, from the cache if the same content was prepared in the same way before.

    The order of a history is stable by (user, time, row of the file). Users and items are numbered by first appearance
    in the file among those that stay.

    Args:
        source: name of a known data set, or "" or "file" for `path`.
        path: an interaction log of one's own.
        mirror: folder or URL that has the files of known data sets.
        cache_dir: where downloads and prepared sets are kept.
        user_column: name or position of the user column; guessed if None. So the next four.
        item_column: item column.
        time_column: time column.
        rating_column: rating column.
        title_column: title column.
        item_path: a second file with one row an item: its id and title.
        format: format of `path`; guessed if None.
        on_error: `raise` or `skip` rows that cannot be read.
        duplicates: of several events of one user with one item keep all, the first, or the last.
        min_rating: drop events rated below.
        min_user_events: drop users with fewer events.
        min_item_events: drop items with fewer events.
        k_core: repeat the two filters until nothing changes, or count once and drop, as SASRec's file was made.

    Raises:
        InputError: whatever the user can mend.
    """
    cache = sources.cache_folder(cache_dir)
    known = None
    if source not in ("", "file"):
        if path is not None:
            raise InputError(f"--data.source {source} and --data.path {path} exclude each other; give one.")
        known = sources.find_source(source)
        layout, files = sources.locate(known, cache, mirror)
        paths = list(files.values())
    elif path is None:
        raise InputError("no data: give --data.source NAME (see `lightrec data list`) or --data.path FILE.")
    else:
        paths = [Path(path)] + ([Path(item_path)] if item_path else [])
        for one in paths:
            if not one.is_file():
                raise InputError(f"{one}: no such file.")
    settings = {
        "source": source or "file",
        "columns": [user_column, item_column, time_column, rating_column, title_column],
        "format": format,
        "on_error": on_error,
        "duplicates": duplicates,
        "min_rating": min_rating,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "k_core": k_core,
    }
    hashes = [sources.file_hash(p) for p in paths]
    key = hashlib.sha256(json.dumps([FORMAT, settings, hashes]).encode()).hexdigest()[:12]
    name = source if known else Path(path).name.split(".")[0]
    folder = cache / "prepared" / f"{name}-{key}"
    if (folder / "meta.json").exists():
        return Prepared.load(folder)

    columns = Columns(user_column, item_column, time_column, rating_column, title_column)
    if known:
        file = files[layout.log.path]
        if layout.member:
            file = sources.unpack(file, layout.member, cache)
        read = read_log(
            file, Columns(**layout.columns) if layout.columns else columns, layout.format, on_error, layout.header
        )
        texts = known.catalog(files) if known.catalog else {}
    else:
        read = read_log(path, columns, format, on_error)
        texts = _item_file(item_path) if item_path else {}
    encoded = _encode(read, paths[0], drop_missing_user=known is not None and known.drop_missing_user)
    if known:
        _check_counts(known, encoded.counts[0], paths[0])
    encoded.filter(duplicates, min_rating, min_user_events, min_item_events, k_core)
    items, times, offsets, users, item_ids = encoded.finish()
    meta = {
        "source": settings["source"],
        "title": known.title if known else Path(path).name,
        "note": known.note if known else "",
        "licence": known.licence if known else None,
        "max_length": known.max_length if known else 50,
        "data_sha256": hashes[0],
        "files": {p.name: h for p, h in zip(paths, hashes, strict=True)},
        "settings": settings,
        "columns": read.columns,
        "format_read": read.format,
        "skipped_rows": read.skipped,
        "counts": encoded.counts,
    }
    return store(folder, items, times, offsets, users, _catalog(item_ids, encoded.titles, texts), meta)


class _Encoded:
    """A log as integer arrays in file order; filters drop rows and note what is left."""

    def __init__(self, user, item, time, rating, users: pl.Series, items: pl.Series, titles: dict[str, str]):
        self.user, self.item, self.time, self.rating = user, item, time, rating
        self.users, self.items, self.titles = users, items, titles
        self.counts: list[dict] = []
        self.note("read")

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
            steps = ", ".join(
                f"{c['step']}: {c['users']} users, {c['items']} items, {c['events']} events" for c in self.counts
            )
            raise InputError(f"no user is left after the filters ({steps}); lower the thresholds.")

    def keep(self, mask: np.ndarray) -> None:
        self.user, self.item = self.user[mask], self.item[mask]
        self.time = None if self.time is None else self.time[mask]
        self.rating = None if self.rating is None else self.rating[mask]

    def filter(self, duplicates, min_rating, min_user_events, min_item_events, k_core) -> None:
        if min_rating is not None:
            if self.rating is None:
                raise InputError("--data.min_rating needs a rating column; name it with --data.rating_column.")
            self.keep(self.rating >= min_rating)
            self.note(f"rating >= {min_rating:g}")
        if duplicates != "keep":
            self._drop_duplicates(duplicates)
            self.note(f"{duplicates} of each user and item")
        minimum = min_user_events or 0, min_item_events or 0
        if any(minimum):
            self._drop_rare(*minimum, once=k_core == "single_pass")
            self.note(f"{k_core} core of {minimum[0]} a user, {minimum[1]} an item")

    def _drop_duplicates(self, which: Duplicates) -> None:
        key = self.user.astype(np.int64) * len(self.items) + self.item
        order = np.arange(len(key)) if self.time is None else np.argsort(self.time, kind="stable")
        if which == "last":
            order = order[::-1]
        _, first = np.unique(key[order], return_index=True)
        mask = np.zeros(len(key), dtype=bool)
        mask[order[first]] = True
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
        order = np.argsort(user, kind="stable") if self.time is None else np.lexsort((self.time, user))
        offsets = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(np.bincount(user, minlength=len(users)), out=offsets[1:])
        times = None if self.time is None else self.time[order]
        return (item[order] + 1).astype(np.int32), times, offsets, users, items


def _renumber(codes: np.ndarray, names: pl.Series) -> tuple[np.ndarray, pl.Series]:
    used = np.bincount(codes, minlength=len(names)) > 0
    new = np.cumsum(used) - 1
    return new[codes].astype(np.int32), names.filter(pl.Series(used))


def _encode(read: Log, path: Path, drop_missing_user: bool) -> _Encoded:
    frame = read.frame
    titled = "title" in frame.collect_schema().names()
    wanted = [n for n in ("user", "item", "time", "rating", "title") if n in frame.collect_schema().names()]
    missing = pl.col("user").is_null() | (pl.col("user") == "")
    try:
        table = frame.select(wanted).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read: {cause}; is the file complete?") from error
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction.")
    total = len(table)
    lost = table.select(missing.sum()).item()
    if lost and not drop_missing_user:
        raise InputError(f"{path}: {lost} rows have no user; fill them, or drop them before.")
    table = table.filter(~missing) if lost else table
    if not len(table):
        raise InputError(f"{path}: no row has a user.")
    codes, names = {}, {}
    for column in ("user", "item"):
        # An Enum numbers its categories in the order they are given: here, of first appearance.
        names[column] = table[column].unique(maintain_order=True)
        codes[column] = table[column].cast(pl.Enum(names[column])).to_physical().to_numpy().astype(np.int32)
    titles = {}
    if titled:
        last = table.select("item", "title").drop_nulls().unique("item", keep="last", maintain_order=True)
        titles = dict(zip(last["item"], last["title"], strict=True))
    time = table["time"].to_numpy() if "time" in wanted else None
    rating = table["rating"].to_numpy() if "rating" in wanted else None
    encoded = _Encoded(codes["user"], codes["item"], time, rating, names["user"], names["item"], titles)
    if lost:
        encoded.counts[0]["events"] = total
        encoded.note("rows with a user")
    return encoded


def _check_counts(known: sources.Source, found: dict, path: Path) -> None:
    for what, expected in known.expect.items():
        if found[what] != expected:
            raise InputError(
                f"{path}: {known.name} must have {expected} {what}, this file has {found[what]}: it is another file; "
                "delete it or give another --data.mirror."
            )


def _item_file(path: str) -> dict[str, dict[str, str]]:
    """Reads {column: {item: text}} from a table with one row an item, its id in the first guessed column."""
    read = pl.read_csv(path, infer_schema=False, separator="\t" if path.endswith((".tsv", ".item")) else ",")
    read = read.rename({name: name.split(":")[0] for name in read.columns})
    known = ("item", "item_id", "itemid", "asin", "movieid", "id", "stockcode", "product_id")
    key = next((n for n in read.columns if n.lower() in known), read.columns[0])
    others = [n for n in read.columns if n != key]
    title = next((n for n in others if n.lower() in ("title", "name", "item_name", "movie_title", "description")), None)
    return {("title" if n == title else n): dict(zip(read[key], read[n], strict=True)) for n in others}


def _catalog(items: pl.Series, titles: dict[str, str], texts: dict[str, dict[str, str]]) -> pl.DataFrame:
    frame = items.alias("item").to_frame()
    columns = {**({"title": titles} if titles else {}), **texts}
    return frame.with_columns(
        *(
            pl.Series(name, [values.get(i) for i in frame["item"]], dtype=pl.String)
            for name, values in columns.items()
            if values
        )
    )
