"""A log in any common format, as a table of user, item, time, rating and row; and small tables beside a log."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from lightrec.data.readers.columns import Choice, Columns, choose_columns, find_column, printable
from lightrec.data.readers.faults import OnError, collect, explain, place_of, skip_advice
from lightrec.data.readers.formats import FAILURES, TEXT, Form, Format, Scan, guess_format, suffix_of
from lightrec.data.readers.read_as import ReadAs, moment
from lightrec.data.readers.sequences import read_histories, read_sequence
from lightrec.data.readers.sniff import MISSING, parts_of_cells
from lightrec.data.readers.times import EXPECTED, parse_times
from lightrec.data.readers.unpacking import check_file, plain_copy
from lightrec.data.readers.where import Condition
from lightrec.errors import InputError

EVENT = "event:"
"""Begins the names of event columns, which a file may call anything."""
_EXPECTED = {
    "user": "a user",
    "item": "an item",
    "time": EXPECTED,
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
    read_as: ReadAs | None = None
    """What it was read as."""


def read_log(
    path: str | Path,
    columns: Columns = Columns(),
    format: Format | None = None,
    on_error: OnError = "raise",
    header: bool | None = None,
    missing_user: bool = False,
    void: tuple[str, str] | None = None,
    event_columns: Sequence[str] = (),
    form: Form | None = None,
    where: Sequence[str] = (),
) -> LogTable:
    """Reads a log.

    Args:
        path: csv with any separator, tsv, `::`-separated .dat, parquet, JSON lines or an array, RecBole .inter, lines
            of "user item" or "user item item item"; text may be packed by gzip, bzip2, xz, zstd or zip.
        columns: where it keeps what.
        format: None decides by name and first line.
        on_error: `raise` names the first row that cannot be read; `skip` leaves such rows out and counts them.
        header: whether a csv or tsv begins with column names; None decides by the first line.
        missing_user: keep rows that have no user, with null.
        void: (column, prefix): rows whose text in that column begins so get `void` true.
        event_columns: further columns to read: of the file, or `rating` and the like for what was read as such.
        form: how the file is written.
        where: rows to keep, `column=value,value` or `column!=value`.

    Raises:
        InputError: missing, empty or unreadable file, missing column, a row that cannot be read, mixed time units, or a
            file that can be read in several ways.
    """
    path, form = Path(path), form or Form()
    check_file(path)
    for name, value, known in (("format", format, Format), ("on_error", on_error, OnError)):
        if value is not None and value not in known.__args__:
            raise InputError(f"--data.{name} {value!r} is unknown; choose {', '.join(known.__args__)}.")
    if header is not None:
        form = replace(form, header=header)
    options = _Options(columns, format, on_error, missing_user, void, tuple(event_columns), form, tuple(where))
    with tempfile.TemporaryDirectory(prefix="lightrec-") as folder:
        item = columns.item if isinstance(columns.item, str) else None
        copy, done = plain_copy(path, Path(folder), form.encoding, form.sign == " ", item)
        try:
            log = _read(copy, options, done)
        except InputError as error:
            if copy == path:
                raise
            raise InputError(str(error).replace(str(copy), str(path))) from error
    return log


@dataclass(frozen=True)
class _Options:
    """How a log is to be read."""

    columns: Columns
    format: Format | None
    on_error: OnError
    missing_user: bool
    void: tuple[str, str] | None
    event_columns: tuple[str, ...]
    form: Form
    where: tuple[str, ...]


def _read(path: Path, options: _Options, done: list[str]) -> LogTable:
    """Reads a file that polars can scan."""
    form, columns = options.form, options.columns
    sign = {" ": "\t"}.get(form.sign, form.sign)
    by_sign = None if sign is None else {"::": "dat", "\t": "tsv"}.get(sign, "csv")
    document = next((what for what in done if what.startswith("lines of item")), None)
    kind = options.format or by_sign or ("csv" if document else guess_format(path))
    if any(what.startswith(("an array", "lines of Python", "one event")) for what in done):
        kind = "jsonl"
    if kind in ("sequence", "histories"):
        return _read_lines(path, kind, options, done)
    if document and not any(vars(columns).values()):  # user, rating, date, and the item that was put at the end
        columns, form = Columns(0, 3, 2, 1), replace(form, header=False)
    scan = Scan(path, kind, columns, form.header, sign)
    sample = scan.sample()
    choice = choose_columns(path, scan.names, columns, scan.has_header, sample, trusted=kind == "dat")
    chosen, wanted = choice.columns, dict(choice.columns)
    if options.void is not None:
        wanted["void"] = find_column(path, scan.names, "void", options.void[0])
    for name in options.event_columns:
        known_as = chosen.get(name) if name not in scan.names else None
        wanted[EVENT + name] = known_as or find_column(path, scan.names, name, name, "event_columns")
    conditions = [Condition.parse(text) for text in options.where]
    for number, condition in enumerate(conditions):
        wanted[f"where:{number}"] = find_column(path, scan.names, "where", condition.column, "where")
    explode = _check_cells(path, scan, sample, choice, form.lists)
    table, skipped = collect(scan, wanted, options.on_error)
    notes = [*done, *choice.notes, *_notes(scan, sample, choice, len(table))]
    if scan.leading and any(line.lstrip().startswith((b"#", b"%")) for line in scan.head()):
        notes.append(f"{scan.leading} lines before the data are comments or blank")
    if conditions:
        before = len(table)
        for number, condition in enumerate(conditions):
            table = condition.keep(table, f"where:{number}")
        if not len(table):
            raise InputError(f"{path}: --data.where keeps none of {before:,} rows; look at the values of the column.")
        notes.append(f"--data.where {', '.join(options.where)} keeps {len(table):,} of {before:,} rows")
    if explode:
        table = _explode(path, table, chosen, explode)
    if options.void is not None:
        table = table.with_columns(void=pl.col("void").str.starts_with(options.void[1]).fill_null(False))
    log = LogTable(table.lazy(), {k: str(v) for k, v in chosen.items()}, scan.kind, skipped, choice.guessed)
    log = _parse(path, table, log, scan, options)
    head = log.frame.head(1).collect()
    log.read_as = ReadAs(
        format=scan.kind,
        separator=None if scan.kind in ("parquet", "jsonl") else (" " if form.sign == " " else scan.separator),
        encoding=None if scan.kind == "parquet" else form.encoding or "utf-8",
        header=scan.has_header if scan.kind not in ("parquet", "jsonl", "dat") else None,
        columns=dict(log.columns),
        values={role: [_shown(value) for value in sample[name].head(3).to_list()] for role, name in chosen.items()},
        unused=[printable(name, 40) for name in scan.names if name not in wanted.values() and "." not in name],
        time_unit=log.time_unit,
        time_zone=form.time_zone,
        first_event=_first_event(head),
        guessed=[*log.guessed, *(["format"] if options.format is None and scan.kind != "parquet" else [])],
        notes=notes + _time_notes(log),
    )
    return log


def _shown(value: object) -> str:
    return printable(str(value), 30)


def _first_event(head: pl.DataFrame) -> dict[str, str | None]:
    if not len(head):
        return {}
    row = head.row(0, named=True)
    event = {"user": _shown(row["user"]), "item": _shown(row["item"])}
    return event | ({"time": moment(row["time"], row.get("fraction", 0))} if "time" in row else {})


def _notes(scan: Scan, sample: pl.DataFrame, choice: Choice, rows: int) -> list[str]:
    """Says what the columns that are not used may mean."""
    notes, used = [], set(choice.columns.values())
    if "time" not in choice.columns:
        notes.append("no time column: the order of a history is that of the file")
    for name in sample.columns:
        if name in used or "." in name or name.lower().endswith("id"):
            continue
        values = sample[name]
        if values.dtype.is_nested() or values.dtype.is_temporal():
            continue
        counts = values.drop_nulls().value_counts(sort=True)
        if 2 <= len(counts) <= 8 and len(values) >= 3 * len(counts) and values.null_count() == 0:
            shown = ", ".join(f"{_shown(value)} {count}" for value, count in counts.iter_rows())
            kept = next(value for value in counts[name].to_list() if str(value).lower() not in ("0", "false"))
            where = f"{name}={kept}"
            of = "" if len(sample) == rows else f" of the first {len(sample):,} rows"
            notes.append(f"{printable(name, 40)}: {shown}{of}; all are used (--data.where {where} keeps some)")
    return notes[:6]


def _time_notes(log: LogTable) -> list[str]:
    """Says what is odd about the times."""
    if log.time_unit is None:
        return []
    low, high = log.frame.select(low=pl.col("time").min(), high=pl.col("time").max()).collect().row(0)
    if low is None:
        return []
    if high < 100_000_000:
        return [f"column {log.columns['time']} holds small numbers, taken as seconds from an unknown beginning"]
    middle, tenth, rest = (
        log.frame.select(
            pl.col("time").median().alias("a"),
            pl.col("time").quantile(0.001).alias("b"),
            pl.col("time").quantile(0.999).alias("c"),
        )
        .collect()
        .row(0)
    )
    decades = 20 * 365 * 86_400
    if middle - low > decades or high - middle > decades:
        return [
            f"some times lie decades away from the rest: {moment(low)} to {moment(high)}, half {moment(int(middle))}"
        ]
    return []


def _check_cells(path: Path, scan: Scan, sample: pl.DataFrame, choice: Choice, lists: bool | None) -> dict[str, str]:
    """Returns the roles whose cells are to be exploded, and what stands between their ids.

    Raises:
        InputError: cells of several ids, which nobody said to take as they are.
    """
    explode = {}
    for role in ("user", "item"):
        name = choice.columns[role]
        kind = "list" if sample[name].dtype in (pl.List, pl.Array) else parts_of_cells(sample[name])
        declared = scan.types.get(name, "").endswith("_seq")
        if declared and role == "item":
            kind = "blanks"
        if kind is None:
            if lists and role == "item":
                raise InputError(f"{path}: --data.lists true, and the cells of {name!r} hold no lists; leave it out.")
            continue
        if lists is False and not declared and kind != "object" and not sample[name].dtype.is_nested():
            continue
        shown = printable(str(next(iter(sample[name].drop_nulls().head(1).to_list()), "")), 60)
        if role == "user":
            if kind == "object":
                raise InputError(_objects(path, scan, name, role, shown))
            raise InputError(
                f"{path}: column {name!r} would be the user and holds several words a cell ({shown!r}): it looks like "
                "prefixes, not events; give the log that they were made from, one event a row, or name another "
                "--data.user_column. Where such a cell is one id: --data.lists false."
            )
        if kind == "object":
            raise InputError(_objects(path, scan, name, role, shown))
        if re.search(r"\S-[01](\s|$)", shown) and kind == "blanks":
            raise InputError(
                f"{path}: column {name!r} holds several items a cell, marked -1 and -0 as clicked and not ({shown!r}); "
                "make one row an event of those with -1."
            )
        if not lists:
            either = "" if kind == "list" or declared else ", or take a cell as one id with --data.lists false"
            raise InputError(
                f"{path}: column {name!r} holds lists; expected one item a row, found {shown!r}; explode them with "
                f"--data.lists true{either}."
            )
        explode[name] = kind
    return explode


def _objects(path: Path, scan: Scan, name: str, role: str, shown: str) -> str:
    inside = [other for other in scan.names if other.startswith(f"{name}.")]
    keys = re.findall(r'"([^"]+)"\s*:', shown)
    field = inside[0] if inside else f"{name}.{keys[0] if keys else 'FIELD'}"
    what = "lists of objects" if shown.startswith("[") else "objects"
    return (
        f"{path}: column {name!r} holds {what} ({shown}); name what in it is the {role}: --data.{role}_column {field}."
    )


def _explode(path: Path, table: pl.DataFrame, chosen: dict[str, str], explode: dict[str, str]) -> pl.DataFrame:
    """Makes an event of each id in a cell; times in a list of the same length go with them."""
    kind = explode[chosen["item"]]
    roles = ["item"]
    if "time" in chosen:
        time = table["time"]
        inside = time.dtype.is_nested() or (
            time.dtype == pl.String and parts_of_cells(time.head(1000)) == kind and kind != "blanks"
        )
        roles += ["time"] if inside else []
    table = table.with_columns(
        pl.col(role) if table.schema[role].is_nested() else _split(pl.col(role), kind).alias(role) for role in roles
    )
    if len(roles) > 1 and not table.select((pl.col("item").list.len() == pl.col("time").list.len()).all()).item():
        raise InputError(
            f"{path}: lists of items and of times have different lengths; expected equal ones in each row."
        )
    return table.explode(roles).filter(pl.col("item").is_not_null())


def _split(cells: pl.Expr, kind: str) -> pl.Expr:
    if kind == "blanks":
        return cells.str.extract_all(r"\S+")
    if kind == "list":
        inner = cells.str.strip_chars().str.replace(r"^[\[(]\s*", "").str.replace(r"[,\s]*[\])]$", "")
        parts = (
            pl.when(inner.str.contains(",", literal=True))
            .then(inner.str.split(","))
            .otherwise(inner.str.extract_all(r"\S+"))
        )
    else:
        parts = cells.str.split(kind)
    return parts.list.eval(pl.element().str.strip_chars().str.strip_chars("'\""))


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


def _parse(path: Path, table: pl.DataFrame, log: LogTable, scan: Scan, options: _Options) -> LogTable:
    """Turns the columns of text into what they mean, and finds the rows that mean nothing."""
    on_error, missing_user, form = options.on_error, options.missing_user, options.form
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
        words = pl.col("time").str.strip_chars().is_in(MISSING)
        if table.schema["time"] == pl.String:
            table = table.with_columns(time=pl.when(~words).then(pl.col("time")))
        table, log.time_unit = parse_times(path, table, scan, log.columns["time"], form.time_format, form.time_zone)
    table = table.with_columns(parse_event_column(path, table[n]) for n in table.columns if n.startswith(EVENT))
    if "rating" in names:
        table = table.with_columns(rating=pl.col("rating").cast(pl.Float64, strict=False))
    empty = {
        name: pl.col(name).is_null() | pl.col(name).str.strip_chars(" \t").is_in(MISSING) for name in ("user", "item")
    }
    if missing_user:
        table = table.with_columns(user=pl.when(~empty["user"]).then(pl.col("user")))
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
        without = int(flags["user"].sum())
        session = next((name for name in scan.names if "session" in name.lower() and name != log.columns["user"]), None)
        if without and session is not None:
            advice = f"take sessions: --data.user_column {session} ({without:,} of {len(table):,} rows have no user)"
        else:
            advice = skip_advice(f"{count:,} of {len(table):,} rows", count, len(table))
        raise InputError(
            f"{path}: {place} cannot be read ({printable(shown, 200)}): expected {expected}; mend it, or {advice}."
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


def _read_lines(path: Path, kind: Format, options: _Options, done: list[str]) -> LogTable:
    """Reads lines of words: of a user and items, or of items only."""
    if options.event_columns or options.where:
        name = (*options.event_columns, *options.where)[0]
        raise InputError(f"{path}: lines of users and items have no column {name!r}; leave it out.")
    if kind == "histories":
        table, skipped = read_histories(path, options.on_error)
        columns = {"user": "number of the line", "item": "each word"}
    else:
        table, skipped = read_sequence(path, options.on_error, options.format is None)
        columns = {"user": "first word", "item": "other words"}
    log = LogTable(table.lazy(), columns, kind, skipped)
    log.read_as = ReadAs(
        format=kind,
        encoding=options.form.encoding or "utf-8",
        columns=columns,
        values={role: [_shown(value) for value in table[role].head(3).to_list()] for role in columns},
        first_event=_first_event(table.head(1)),
        guessed=[] if options.format else ["format"],
        notes=[*done, "no time column: the order of a history is that of the file"],
    )
    return log
