"""A log as integer arrays: ids become codes, filters drop rows and count what is left, histories are put in order."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from lightrec.data.options import Cleaning, Duplicates
from lightrec.data.prepared import EventColumn
from lightrec.data.readers import EVENT, LogTable, in_float32
from lightrec.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ordered:
    """What is left of a log, sorted by user, time and row of the file."""

    items: np.ndarray
    """[E] int32, internal ids from 1."""
    times: np.ndarray | None
    """[E] int64, seconds; None where the log has none."""
    offsets: np.ndarray
    """[num_users + 1] int64."""
    users: pl.Series
    """External user ids, by internal id."""
    item_ids: pl.Series
    """External item ids; row i - 1 for internal id i."""
    event_columns: dict[str, EventColumn]
    equal_times: float | None = None
    """Share of events, the first of each user aside, with the exact time of the one before; None without times."""


class Encoded:
    """A log as integer arrays in file order; filters drop rows and note what is left."""

    def __init__(
        self,
        columns: dict[str, np.ndarray],
        users: pl.Series,
        items: pl.Series,
        titles: pl.DataFrame | None = None,
        categories: dict[str, pl.Series] | None = None,
    ):
        self.columns = columns
        """Each [num_events]: user and item int32 codes; time, fraction, rating, void and `event:name` where there are
        such. Categories of an event column are int32 codes from 1; 0 is missing."""
        self.users, self.items, self.titles = users, items, titles
        self.categories = categories or {}
        """Texts of the categories, by name of the event column."""
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

    def filter(self, cleaning: Cleaning) -> None:
        """Drops what `cleaning` says, and counts after each step."""
        if cleaning.min_rating is not None:
            if "rating" not in self.columns:
                raise InputError("--data.min_rating needs a rating column; name it with --data.rating_column.")
            self.keep(self.columns["rating"] >= cleaning.min_rating)  # false for a missing rating
            self.note(f"rating >= {cleaning.min_rating:g}")
        if cleaning.duplicates != "keep":
            self._drop_duplicates(cleaning.duplicates)
            self.note(f"{cleaning.duplicates} of each user and item")
        minimum = cleaning.min_user_events or 0, cleaning.min_item_events or 0
        if any(minimum):
            self._drop_rare(*minimum, once=cleaning.k_core == "single_pass")
            self.note(f"{cleaning.k_core} core of {minimum[0]} a user, {minimum[1]} an item")

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

    def finish(self) -> Ordered:
        """Numbers what stayed by first appearance and sorts by (user, time, row)."""
        user, users = _renumber(self.user, self.users)
        item, items = _renumber(self.item, self.items)
        order = np.lexsort((*self._in_time(), user))
        offsets = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(np.bincount(user, minlength=len(users)), out=offsets[1:])
        times = self.columns["time"][order] if "time" in self.columns else None
        events = {name.removeprefix(EVENT): values for name, values in self.columns.items() if name.startswith(EVENT)}
        return Ordered(
            items=(item[order] + 1).astype(np.int32),
            times=times,
            offsets=offsets,
            users=users,
            item_ids=items,
            event_columns={name: self._event_column(name, values[order]) for name, values in events.items()},
            equal_times=self._equal_times(order, offsets),
        )

    def _equal_times(self, order: np.ndarray, offsets: np.ndarray) -> float | None:
        """Counts on the times that decide the order, which may be finer than the seconds that are kept."""
        keys = self._in_time()
        if not keys:
            return None
        inside = np.ones(len(order), bool)
        inside[offsets[:-1]] = False  # the first event of a user has none before it
        equal = np.ones(len(order), bool)
        for key in keys:
            ordered = key[order]
            equal[1:] &= ordered[1:] == ordered[:-1]
        return float(equal[inside].mean()) if inside.any() else 0.0

    def _event_column(self, name: str, values: np.ndarray) -> EventColumn:
        """Numbers the categories that stayed, of a column in its last order."""
        if name not in self.categories:
            return EventColumn(values)
        used = np.bincount(values, minlength=len(self.categories[name]) + 1)[1:] > 0
        new = np.concatenate([[0], np.cumsum(used)])  # 0 stays: missing
        return EventColumn(new[values].astype(np.int32), self.categories[name].filter(pl.Series(used)))


def _renumber(codes: np.ndarray, names: pl.Series) -> tuple[np.ndarray, pl.Series]:
    used = np.bincount(codes, minlength=len(names)) > 0
    new = np.cumsum(used) - 1
    return new[codes].astype(np.int32), names.filter(pl.Series(used))


def encode(read: LogTable, path: Path) -> Encoded:
    """Turns ids into codes by first appearance; one column at a time, so that little text is held twice."""
    table = read.frame.collect()
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction.")
    total = len(table)
    table = table.filter(pl.col("user").is_not_null() & (pl.col("user") != ""))
    if not len(table):
        raise InputError(f"{path}: no row has a user.")
    titles = _titles(table, read) if "title" in table.columns else None
    columns, names, categories = {}, {}, {}
    events = [name for name in table.columns if name.startswith(EVENT)]
    for column in ("user", "item", "time", "fraction", "rating", "void", *events):
        if column not in table.columns:
            continue
        values = table.drop_in_place(column)
        if column in ("user", "item"):
            values, names[column] = _codes(values)
        elif values.dtype == pl.String:  # only an event column is text still
            codes, categories[column.removeprefix(EVENT)] = _codes(values)
            values = (codes + 1).fill_null(0)
        columns[column] = values.to_numpy()
    encoded = Encoded(columns, names["user"], names["item"], titles, categories)
    if len(table) < total:
        encoded.counts[0]["events"] = total
        encoded.note("rows with a user")
    return encoded


def _codes(texts: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Numbers texts by first appearance, from 0; null stays null. Returns the int32 codes, and the texts in order."""
    # An Enum numbers its categories in the order they are given.
    names = texts.drop_nulls().unique(maintain_order=True)
    return texts.cast(pl.Enum(names)).to_physical().cast(pl.Int32), names


def _titles(table: pl.DataFrame, read: LogTable) -> pl.DataFrame | None:
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
