"""Options of the data: how a log file is read, which events stay, what is asked. Each is written here and nowhere else.

They are values. What a prepared log is kept under and what a protocol record says are these values as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lightrec.configurable import AtLeast, check
from lightrec.data.readers import Columns, Condition, Form, Format, OnError
from lightrec.errors import InputError

Duplicates = Literal["keep", "first", "last"]
KCore = Literal["iterated", "single_pass"]
TimePrecision = Literal["exact", "float32"]
SampledOrFull = Literal["full", "uniform-100", "popularity-100"]


@dataclass(frozen=True)
class _Options:
    """Options that are checked when they are made."""

    prefix: ClassVar[str] = "--data."

    def __post_init__(self):
        check(type(self), vars(self))


@dataclass(frozen=True)
class LogFile(_Options):
    """What is in a log of one's own, and how it is read.

    Args:
        user_column: name or position of the user column; guessed if not given. The next four work the same way.
        item_column: name or position of the item column.
        time_column: name or position of the time column: epoch seconds, milliseconds or ISO text.
        rating_column: name or position of the rating column.
        title_column: name or position of the title column.
        event_columns: names of further columns, given to the model with each event: numbers, or text as categories.
        item_path: a table with one row per item: its id, its title and any other columns.
        format: format of `path`; guessed by name and first line.
        on_error: `raise` names the first row that cannot be read, `skip` leaves such rows out and counts them.
        separator: what stands between fields: one character, or `tab`, `semicolon`, `pipe`, `blanks`; found out if not
            given.
        encoding: of the text, `latin-1` or `cp1252`; UTF-8 if not given.
        header: whether a table begins with column names; told by its first line if not given.
        time_format: how times are written, `%d.%m.%Y %H:%M`; for those that can be read in two ways.
        time_zone: zone of times that name none, `Europe/Berlin`; UTC if not given.
        lists: true makes an event of each item in a cell, false takes a cell as one item; cells that look like lists
            are refused if not given.
        where: rows to keep, `event=click`, `event=view,cart` or `event!=dislike`; several in brackets.

    Raises:
        InputError: an unknown format, an event column that is named twice, or no condition.
    """

    user_column: str | int | None = None
    item_column: str | int | None = None
    time_column: str | int | None = None
    rating_column: str | int | None = None
    title_column: str | int | None = None
    event_columns: list[str] | None = None
    item_path: str | None = None
    format: Format | None = None
    on_error: OnError = "raise"
    separator: str | None = None
    encoding: str | None = None
    header: bool | None = None
    time_format: str | None = None
    time_zone: str | None = None
    lists: bool | None = None
    where: str | list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        _ = self.form.sign
        for text in self.conditions:
            Condition.parse(text)
        names = self.event_columns or []
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"--data.event_columns names {twice[0]!r} twice; name each column once.")

    @property
    def columns(self) -> Columns:
        """Where the log keeps what."""
        return Columns(self.user_column, self.item_column, self.time_column, self.rating_column, self.title_column)

    @property
    def form(self) -> Form:
        """How the log is written."""
        return Form(self.separator, self.encoding, self.header, self.time_format, self.time_zone, self.lists)

    @property
    def conditions(self) -> list[str]:
        """Rows to keep."""
        return [self.where] if isinstance(self.where, str) else list(self.where or ())

    @property
    def settings(self) -> dict[str, Any]:
        """What a prepared log depends on, beside the content of the files; primitives."""
        settings: dict[str, Any] = {
            "columns": list(vars(self.columns).values()),
            "format": self.format,
            "on_error": self.on_error,
        }
        if self.event_columns:  # only where there are some, so that older logs keep their keys
            settings["event_columns"] = list(self.event_columns)
        settings |= {name: value for name, value in vars(self.form).items() if value is not None}
        if self.conditions:
            settings["where"] = self.conditions
        return settings


@dataclass(frozen=True)
class Cleaning(_Options):
    """Which events of a log stay.

    Args:
        duplicates: of several events of one user with one item keep all, the first, or the last.
        min_rating: drop events rated below, or not rated.
        min_user_events: drop users with fewer events.
        min_item_events: drop items with fewer events.
        k_core: repeat the two filters until nothing changes, or count once and drop, as SASRec's file was made.
        time_precision: `float32` rounds times as RecBole does, to 64 seconds or more. It is for comparing with what
            was published with RecBole (docs/protocols.md).

    Raises:
        InputError: an unknown choice, or a number below 1.
    """

    duplicates: Duplicates = "keep"
    min_rating: float | None = None
    min_user_events: int | None = None
    min_item_events: int | None = None
    k_core: KCore = "iterated"
    time_precision: TimePrecision = "exact"

    limits: ClassVar[dict] = {"min_user_events": AtLeast(1), "min_item_events": AtLeast(1)}

    @property
    def settings(self) -> dict[str, Any]:
        """What a prepared log depends on: all of it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Candidates:
    """Items that a target is ranked among, drawn for each row."""

    kind: Literal["uniform", "popularity"]
    """How they are drawn: with equal chances, or by their events in training."""
    number: int

    @staticmethod
    def parse(text: str) -> Candidates | None:
        """Reads `uniform-100`; None for `full`, the whole catalog."""
        if text == "full":
            return None
        kind, _, number = text.partition("-")
        return Candidates(kind, int(number))

    def __str__(self) -> str:
        return f"{self.kind}-{self.number}"


@dataclass(frozen=True)
class Protocol(_Options):
    """What is ranked when a model is measured.

    Args:
        exclude_seen: leave the whole history out of the ranking (protocol P4); false keeps it (P3).
        candidates: rank the full catalog, or the target among 100 sampled items. The names of sampled metrics say so.

    Raises:
        InputError: unknown candidates.
    """

    exclude_seen: bool = True
    candidates: SampledOrFull = "full"

    @property
    def sampled(self) -> Candidates | None:
        """The candidates in parts; None where the full catalog is ranked."""
        return Candidates.parse(self.candidates)
