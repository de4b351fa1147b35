"""A log in any common format, as a table of user, item, time, rating and row; and small tables beside a log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from lightrec.data.readers.columns import USUAL_NAMES, Columns, choose_columns, find_column
from lightrec.data.readers.faults import OnError, collect, explain, place_of
from lightrec.data.readers.formats import FAILURES, TEXT, Format, Scan, check_file, guess_format, suffix_of
from lightrec.data.readers.times import parse_times
from lightrec.errors import InputError

EVENT = "event:"
"""Begins the names of event columns, which a file may call anything."""
_EXPECTED = {
    "user": "a user",
    "item": "an item",
    "time": "a time (epoch seconds, milliseconds or ISO text)",
    "rating": "a number as rating",
}


@dataclass
class LogTable:
    """A log as it was read."""

    frame: pl.LazyFrame
    """user str, item str, row uint32 from 0, in file order; where there are such columns: time int64 seconds, fraction
    int32 microseconds (only if some time is between two seconds), rating float64, title str, void bool, and for each
    event column `event:name`, float32 or str."""
    columns: dict[str, str]
    """What each was read from."""
    format: Format
    skipped: int = 0
    """Rows left out because they cannot be read."""
    guessed: tuple[str, ...] = ()
    """Which of the columns nobody named."""
    time_unit: str | None = None
    """How the times are written."""


def read_log(
    path: str | Path,
    columns: Columns = Columns(),
    format: Format | None = None,
    on_error: OnError = "raise",
    header: bool | None = None,
    missing_user: bool = False,
    void: tuple[str, str] | None = None,
    event_columns: Sequence[str] = (),
) -> LogTable:
    """Reads a log.

    Args:
        path: csv, tsv, `::`-separated .dat, parquet, JSON lines, RecBole .inter, or lines of "user item" or "user item
            item item"; text formats may be gzipped.
        columns: where it keeps what.
        format: None decides by name and first line.
        on_error: `raise` names the first row that cannot be read; `skip` leaves such rows out and counts them.
        header: whether a csv or tsv begins with column names; None decides by the first line.
        missing_user: keep rows that have no user, with null.
        void: (column, prefix): rows whose text in that column begins so get `void` true.
        event_columns: further columns to read: of the file, or `rating` and the like for what was read as such.

    Raises:
        InputError: missing, empty or unreadable file, missing column, a row that cannot be read, mixed time units.
    """
    path = Path(path)
    check_file(path)
    for name, value, known in (("format", format, Format), ("on_error", on_error, OnError)):
        if value is not None and value not in known.__args__:
            raise InputError(f"--data.{name} {value!r} is unknown; choose {', '.join(known.__args__)}.")
    kind = format or guess_format(path)
    if kind == "sequence":
        if event_columns:
            raise InputError(f"{path}: lines of users and items have no column {event_columns[0]!r}; leave it out.")
        return _read_sequence(path, on_error)
    scan = Scan(path, kind, columns, header)
    chosen, guessed = choose_columns(path, scan.names, columns, scan.has_header)
    wanted = dict(chosen)
    if void is not None:
        wanted["void"] = find_column(path, scan.names, "void", void[0])
    for name in event_columns:
        known_as = chosen.get(name) if name not in scan.names else None
        wanted[EVENT + name] = known_as or find_column(path, scan.names, name, name, "event_columns")
    table, skipped = collect(scan, wanted, on_error)
    if void is not None:
        table = table.with_columns(void=pl.col("void").str.starts_with(void[1]).fill_null(False))
    log = LogTable(table.lazy(), {k: str(v) for k, v in chosen.items()}, kind, skipped, guessed)
    return _parse(path, table, log, scan, on_error, missing_user)


def read_table(path: str | Path) -> pl.DataFrame:
    """Reads a small table with column names, all of it text: csv, tsv, parquet, JSON lines or RecBole .item.

    Raises:
        InputError: missing, empty or unreadable file.
    """
    path = Path(path)
    check_file(path)
    kind = guess_format(path) if suffix_of(path) != ".item" else "inter"
    if kind in ("dat", "sequence"):
        raise InputError(f"{path}: expected a table with column names: csv, tsv, parquet, JSON lines or .item.")
    scan = Scan(path, kind, Columns(), header=True)
    try:
        table = scan.frame().collect(engine="streaming")
    except FAILURES as error:
        explain(scan, error)
    text = [c for c, dtype in table.schema.items() if not dtype.is_nested()]
    return table.select(pl.col(text).cast(pl.String))


def _parse(
    path: Path, table: pl.DataFrame, log: LogTable, scan: Scan, on_error: OnError, missing_user: bool
) -> LogTable:
    """Turns the columns of text into what they mean, and finds the rows that mean nothing."""
    names = [name for name in ("user", "item", "time", "rating", "title") if name in table.columns]
    for name in names:
        if table.schema[name].is_nested():
            raise InputError(f"{path}: column {log.columns[name]!r} holds lists; expected one {name} a row.")
    if TEXT in table.columns:
        table = table.filter(TEXT).drop(TEXT)
    elif scan.kind != "parquet":  # polars makes a row without any field of a blank line
        table = table.filter(~pl.all_horizontal(pl.col(names).is_null()))
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction; expected one a line.")
    raw = table.select(names)
    table = table.with_columns(pl.col(n).cast(pl.String) for n in names if n in ("user", "item", "title"))
    if "time" in names:
        table, log.time_unit = parse_times(path, table, scan)
    table = table.with_columns(parse_event_column(path, table[n]) for n in table.columns if n.startswith(EVENT))
    if "rating" in names:
        table = table.with_columns(rating=pl.col("rating").cast(pl.Float64, strict=False))
    empty = {name: pl.col(name).is_null() | (pl.col(name) == "") for name in ("user", "item")}
    flags = table.select(
        user=empty["user"] & (not missing_user),
        item=empty["item"],
        time=pl.col("time").is_null() if "time" in names else False,
        # A rating may be missing; it may not be a word.
        rating=pl.col("rating").is_null() & pl.lit(raw["rating"].is_not_null()) if "rating" in names else False,
    )
    bad = flags.select(pl.any_horizontal(pl.all())).to_series()
    count = int(bad.sum())
    if count and on_error == "raise":
        first = int(bad.arg_max())
        place, text = place_of(scan, table["row"][first])
        shown = text or ", ".join(
            f"{log.columns[name]}={value!r}" for name, value in raw.row(first, named=True).items()
        )
        expected = " and ".join(_EXPECTED[k] for k, faulty in flags.row(first, named=True).items() if faulty)
        raise InputError(
            f"{path}: {place} cannot be read ({shown[:120]}): expected {expected}; mend it, or pass "
            f"--data.on_error skip to leave out {count} such row{'s' if count > 1 else ''}."
        )
    if count:
        table = table.filter(~bad)
    log.frame, log.skipped = table.lazy(), log.skipped + count
    return log


def parse_event_column(path: Path, values: pl.Series) -> pl.Series:
    """Reads a column as float32 if each value that is there is a number, else as text.

    Returns:
        Numbers with NaN where none is given, or texts with null where none is given.

    Raises:
        InputError: the column holds lists.
    """
    if values.dtype.is_nested():
        raise InputError(f"{path}: column {values.name.removeprefix(EVENT)!r} holds lists; expected one value a row.")
    texts = values.cast(pl.String)
    given = texts.is_not_null() & (texts != "")
    numbers = values.cast(pl.Float64, strict=False) if not values.dtype.is_temporal() else pl.Series([None])
    if numbers.is_not_null().sum() == given.sum():
        return numbers.cast(pl.Float32).fill_null(float("nan")).alias(values.name)
    return texts.set(~given, None)


def _read_sequence(path: Path, on_error: OnError) -> LogTable:
    """Reads lines of a user and one or more of the user's items, in order."""
    lines, skipped = collect(Scan(path, "sequence", Columns(), header=False), {"line": "line"}, on_error)
    words = pl.col("line").str.extract_all(r"\S+")
    table = lines.select("row", user=words.list.first(), item=words.list.slice(1)).filter(pl.col("user").is_not_null())
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction; expected a user and items in each line.")
    usual = {role: set(USUAL_NAMES[role].split()) for role in ("user", "item")}
    first, items = table["user"][0], table["item"][0].to_list()
    if first.lower() in usual["user"] and items and items[0].lower() in usual["item"]:
        table = table[1:]
    empty = table["item"].list.len() == 0
    count = int(empty.sum())
    if count and on_error == "raise":
        number, user = table.row(int(empty.arg_max()))[:2]
        raise InputError(
            f"{path}: line {number + 1} cannot be read ({user!r}): expected a user and one or more items; mend it, or "
            f"pass --data.on_error skip to leave out {count} such row{'s' if count > 1 else ''}."
        )
    table = table.filter(~empty) if count else table
    events = table.select("user", "item").explode("item").with_row_index("row")
    return LogTable(events.lazy(), {"user": "first word", "item": "other words"}, "sequence", skipped=skipped + count)
