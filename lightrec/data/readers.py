"""Readers: one interaction log in any common format, as a table of user, item, time, rating and row.

Everything is read as text first: any string is a valid id, and "007" is not "7". Files are scanned lazily, so that only
the columns in use are ever held. Where polars gives up on a text file, a slow second reading finds the line at fault.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import io
import itertools
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from lightrec.errors import InputError

Format = Literal["csv", "tsv", "dat", "parquet", "jsonl", "inter", "sequence"]
OnError = Literal["raise", "skip"]

_GUESSES = {
    "user": (
        "user user_id userid uid reviewerid customerid customer_id customer visitorid session session_id sessionid "
        "case case_id"
    ),
    "item": (
        "item item_id itemid iid asin parent_asin movieid movie_id movie stockcode product_id productid product sku "
        "article_id venue_id poi"
    ),
    "time": "timestamp time ts unixreviewtime datetime date invoicedate event_time created_at t",
    "rating": "rating overall score stars",
    "title": "title name item_name item_title description movie_title product_title",
}
_WITHOUT_NAMES = {2: ("user", "item"), 3: ("user", "item", "time"), 4: ("user", "item", "rating", "time")}
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".inter": "inter",
}
_EXPECTED = {
    "user": "a user",
    "item": "an item",
    "time": "a time (epoch seconds, milliseconds or ISO text)",
    "rating": "a number as rating",
}
_SECOND = 1_000_000  # microseconds
# The present is 1.7e9 seconds, 1.7e12 milliseconds, 1.7e15 microseconds and 1.7e18 nanoseconds after 1970: no date
# of an interaction log is in doubt. Below 1e8 (March 1973) a number counts as whatever the others are.
_UNITS = (("seconds", 1e8, 1e11, 1e6), ("milliseconds", 1e11, 1e14, 1e3), ("microseconds", 1e14, 1e17, 1.0))
_UNITS += (("nanoseconds", 1e17, float("inf"), 1e-3),)
_ISO = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y%m%d %H%M%S")
_FAILURES = (pl.exceptions.PolarsError, OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Columns:
    """Where a log keeps what: names, or positions counted from 0; None guesses, or says that there is none.

    Guessing knows the usual names; a file without a header is read as user, item, rating, time (four columns), user,
    item, time (three) or user, item (two).
    """

    user: str | int | None = None
    item: str | int | None = None
    time: str | int | None = None
    rating: str | int | None = None
    title: str | int | None = None


@dataclass
class Log:
    """A log as it was read."""

    frame: pl.LazyFrame
    """user str, item str, row uint32 from 0, in file order; where there are such columns: time int64 seconds, fraction
    int32 microseconds (only if some time is between two seconds), rating float64, title str, void bool."""
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
) -> Log:
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

    Raises:
        InputError: missing, empty or unreadable file, missing column, a row that cannot be read, mixed time units.
    """
    path = Path(path)
    _check_file(path)
    for name, value, known in (("format", format, Format), ("on_error", on_error, OnError)):
        if value is not None and value not in known.__args__:
            raise InputError(f"--data.{name} {value!r} is unknown; choose {', '.join(known.__args__)}.")
    kind = format or guess_format(path)
    if kind == "sequence":
        return _read_sequence(path, on_error)
    scan = _Scan(path, kind, columns, header)
    chosen, guessed = _choose(path, scan.names, columns, scan.has_header)
    wanted = dict(chosen)
    if void is not None:
        wanted["void"] = _column(path, scan.names, "void", void[0])
    table, skipped = _collect(scan, wanted, on_error)
    if void is not None:
        table = table.with_columns(void=pl.col("void").str.starts_with(void[1]).fill_null(False))
    log = Log(table.lazy(), {k: str(v) for k, v in chosen.items()}, kind, skipped, guessed)
    return _parse(path, table, log, scan, on_error, missing_user)


def read_table(path: str | Path) -> pl.DataFrame:
    """Reads a small table with column names, all of it text: csv, tsv, parquet, JSON lines or RecBole .item.

    Raises:
        InputError: missing, empty or unreadable file.
    """
    path = Path(path)
    _check_file(path)
    kind = guess_format(path) if _suffix(path) != ".item" else "inter"
    if kind in ("dat", "sequence"):
        raise InputError(f"{path}: expected a table with column names: csv, tsv, parquet, JSON lines or .item.")
    scan = _Scan(path, kind, Columns(), header=True)
    try:
        table = scan.frame().collect(engine="streaming")
    except _FAILURES as error:
        _explain(scan, error)
    text = [c for c, dtype in table.schema.items() if not dtype.is_nested()]
    return table.select(pl.col(text).cast(pl.String))


def guess_format(path: Path) -> Format:
    """Decides the format of a file by its name, and by its first line where the name says nothing."""
    suffix = _suffix(path)
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if _magic(path) == b"PAR1":
        return "parquet"
    lines = _first_lines(path, 100)
    line = lines[0] if lines else ""
    if "::" in line:
        return "dat"
    if "\t" in line:
        return "tsv"
    if line.lstrip().startswith("{"):
        return "jsonl"
    if "," in line:
        return "csv"
    words = [text.split() for text in lines]
    if all(len(w) in (3, 4) and re.fullmatch(r"\d{9,13}(\.\d+)?", w[-1]) for w in words) and words:
        raise InputError(
            f"{path}: {line[:60]!r} looks like columns between blanks, with a time at the end; separate them with tabs "
            "or commas, or set --data.format sequence if it is a user and the user's items."
        )
    if len(line.split()) >= 2:
        return "sequence"
    raise InputError(
        f"{path}: its format cannot be told from {line[:60]!r}; set --data.format csv, tsv, dat or another."
    )


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file in it.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an interaction log.")
    try:
        start = _magic(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}; check its permissions.") from error
    if not start:
        raise InputError(f"{path}: the file is empty; expected one interaction a line.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}: is UTF-16 text; save it as UTF-8.")
    if start[:2] == b"PK":
        raise InputError(f"{path}: is a zip archive; unpack it and give the path of the log in it.")


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _binary_lines(path: Path) -> Iterator[bytes]:
    """Yields lines with their ends; unpacks gzip, which is known by its first bytes whatever the name."""
    opener = gzip.open if _magic(path)[:2] == b"\x1f\x8b" else open
    try:
        with opener(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked: {_one_line(error)}; is the file complete?") from error


def _first_lines(path: Path, count: int) -> list[str]:
    lines = (line.decode("utf-8", errors="replace").lstrip("\ufeff").rstrip("\r\n") for line in _binary_lines(path))
    return list(itertools.islice((line for line in lines if line.strip()), count))


class _Scan:
    """How one file is scanned: its format, its column names, and whether its first line holds them."""

    def __init__(self, path: Path, kind: Format, columns: Columns, header: bool | None):
        self.path, self.kind = path, kind
        self.separator = {"csv": ",", "tsv": "\t", "inter": "\t", "dat": "::"}.get(kind)
        self.has_header = kind in ("parquet", "inter", "jsonl")
        lines = [] if kind == "parquet" else _first_lines(path, 100)
        self.leading = 0  # blank lines, before names or data
        if self.separator not in (None, "::"):
            self.leading = next(
                (i for i, line in enumerate(_binary_lines(path)) if line.strip(b"\xef\xbb\xbf \t\r\n")), 0
            )
        if kind != "parquet" and not lines:
            raise InputError(f"{path}: the file has only blank lines; expected one interaction a line.")
        if kind in ("csv", "tsv"):
            rows = [_cells(line, self.separator, kind == "csv") for line in lines[:2]]
            self.has_header = _is_header(rows, columns) if header is None else header
        if kind == "jsonl":
            self.keys = _json_keys(path, lines)
        self.width = len(_cells(lines[0], self.separator, kind == "csv")) if self.separator else None
        try:
            self.names = [name for name in self.frame().collect_schema().names() if name != _TEXT]
        except _FAILURES as error:
            raise InputError(
                f"{path}: cannot be read as {kind}: {_one_line(error)}; is it complete, and --data.format right?"
            ) from error

    @property
    def first_line(self) -> int:
        """Line number, from 1, of row 0."""
        return self.leading + (2 if self.has_header and self.kind not in ("parquet", "jsonl") else 1)

    def frame(self, path: Path | None = None) -> pl.LazyFrame:
        """Scans the file, or a cleaned copy of it."""
        path = path or self.path
        if self.kind == "parquet":
            return pl.scan_parquet(path)
        if self.kind in ("csv", "tsv", "inter"):
            frame = pl.scan_csv(
                path,
                separator=self.separator,
                has_header=self.has_header,
                skip_lines=self.leading,
                infer_schema=False,
                quote_char='"' if self.kind == "csv" else None,
                schema=None if self.has_header else {f"column_{i}": pl.String for i in range(self.width)},
            )
            if self.kind == "inter":  # RecBole writes name:type
                frame = frame.rename(lambda name: name.split(":")[0])
            return frame
        lines = _scan_lines(path)
        if self.kind == "sequence":
            return lines
        if self.kind == "jsonl":
            fields = {key: pl.col("line").str.json_path_match(_json_path(key)) for key in self.keys}
        else:
            whole = pl.col("line").str.count_matches("::", literal=True) == self.width - 1
            parts = pl.when(whole).then(pl.col("line")).str.split_exact("::", self.width - 1)
            fields = {f"column_{i}": parts.struct.field(f"field_{i}") for i in range(self.width)}
        return lines.select(_TEXT_EXPR.alias(_TEXT), **fields)


# Tells a blank line from one that has none of the fields.
_TEXT = "is text"
_TEXT_EXPR = (pl.col("line").str.strip_chars() != "").fill_null(False)


def _scan_lines(path: Path) -> pl.LazyFrame:
    # No text file holds the byte 1, so that each line is one field; blank lines are null.
    return pl.scan_csv(path, separator="\x01", has_header=False, schema={"line": pl.String}, quote_char=None)


def _json_keys(path: Path, lines: list[str]) -> list[str]:
    keys: dict[str, None] = {}
    for line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            keys |= dict.fromkeys(value)
    if not keys:
        raise InputError(f"{path}: cannot be read as jsonl: {lines[0][:60]!r} is no object; expected one in each line.")
    return list(keys)


def _json_path(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace("'", "\\'")
    return f"$['{escaped}']"


def _cells(line: str, separator: str, quoted: bool) -> list[str]:
    if quoted:
        with contextlib.suppress(csv.Error):
            return next(csv.reader(io.StringIO(line, newline=""), delimiter=separator), [])
    return line.split(separator)


def _is_header(rows: list[list[str]], columns: Columns) -> bool:
    """Decides whether the first of some rows holds names.

    It does if a cell is a usual name or one that was asked for, and does not if a cell is a number or a date. Else it
    does if the second row has a number or a date, or if columns were not asked for by position.
    """
    first = [cell.strip() for cell in rows[0]]
    given = [str(c) for c in vars(columns).values() if c is not None]
    usual = {word for words in _GUESSES.values() for word in words.split()}
    if any(cell.lower() in usual or (cell in given and not cell.isdigit()) for cell in first):
        return True
    if any(map(_is_value, first)):
        return False
    return any(map(_is_value, rows[1] if len(rows) > 1 else ())) or not given or not all(c.isdigit() for c in given)


def _is_value(cell: str) -> bool:
    return re.fullmatch(r"\s*([-+]?\d+(\.\d*)?([eE][-+]?\d+)?|\d{4}-\d\d-\d\d.*)\s*", cell) is not None


def _choose(path: Path, names: list[str], columns: Columns, has_header: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """Maps user, item, time, rating, title to column names of the file; says which of them were guessed."""
    given = {role: value for role, value in vars(columns).items() if value is not None}
    chosen = {role: _column(path, names, role, value) for role, value in given.items()}
    if not has_header and len(names) not in _WITHOUT_NAMES and not {"user", "item"} <= set(given):
        raise InputError(
            f"{path}: {len(names)} columns without names; say which is which: --data.user_column 0 "
            "--data.item_column 1."
        )
    for position, role in enumerate(_WITHOUT_NAMES.get(len(names), ()) if not has_header else ()):
        if role not in chosen and names[position] not in chosen.values():
            chosen[role] = names[position]
    for role in _GUESSES if has_header else ():
        match = usual_column([name for name in names if name not in chosen.values()], role)
        if role not in chosen and match is not None:
            chosen[role] = match
    for role in ("user", "item"):
        if role not in chosen:
            raise InputError(
                f"{path}: no {role} column found among {', '.join(names)}; name it: --data.{role}_column NAME."
                if len(names) > 1
                else f"{path}: has one column only, {names[0][:80]!r}; expected columns between "
                f"{'commas' if names[0].count(';') else 'commas or tabs'}: convert it, or set --data.format."
            )
    prefixes = f"{chosen['item']}_list"
    if prefixes in names:
        raise InputError(
            f"{path}: holds prefixes ({prefixes}), not events; give the log that they were made from, one event a row."
        )
    return chosen, tuple(role for role in chosen if role not in given)


def usual_column(names: list[str], role: str) -> str | None:
    """Returns the column that has the most usual name for user, item, time, rating or title."""
    return next((name for word in _GUESSES[role].split() for name in names if name.lower().strip() == word), None)


def _column(path: Path, names: list[str], role: str, given: str | int) -> str:
    if str(given) in names:
        return str(given)
    if str(given).isdigit() and int(given) < len(names):
        return names[int(given)]
    near = difflib.get_close_matches(str(given), names, n=1)
    if not near:
        near = [name for name in names if name.lower() == str(given).lower()]
    hint = f"did you mean {near[0]!r}? " if near else ""
    ordered = near + [name for name in names if name not in near]
    raise InputError(f"{path}: no column {given!r} for --data.{role}_column; {hint}columns: {', '.join(ordered)}.")


def _collect(scan: _Scan, chosen: dict[str, str], on_error: OnError) -> tuple[pl.DataFrame, int]:
    """Reads the chosen columns; when polars stops at a line, finds it, or goes on with a copy without such lines."""

    def pick(frame: pl.LazyFrame) -> pl.LazyFrame:
        columns = [pl.col(source).alias(name) for name, source in chosen.items()]
        return frame.select(*columns, *([_TEXT] if scan.kind in ("jsonl", "dat") else [])).with_row_index("row")

    try:
        return pick(scan.frame()).collect(engine="streaming"), 0
    except _FAILURES as error:
        if on_error == "raise" or scan.kind == "parquet":
            _explain(scan, error)
        with tempfile.TemporaryDirectory(prefix="lightrec-") as folder:
            copy, skipped = Path(folder, "log"), 0
            with copy.open("wb") as out:
                for number, record, fault in _records(scan):
                    skipped += fault is not None
                    is_names = number == scan.leading + 1 and scan.has_header
                    out.write(record if fault is None or is_names else b"\n" * record.count(b"\n"))  # keeps numbers
            try:
                return pick(scan.frame(copy)).collect(engine="streaming"), skipped
            except _FAILURES as error:
                _explain(scan, error)


def _explain(scan: _Scan, error: Exception):
    """Raises an InputError that names the line that polars could not read.

    Raises:
        InputError: always.
    """
    if scan.kind != "parquet":
        for number, record, fault in _records(scan):
            if fault is not None:
                text = record.decode("utf-8", errors="replace").strip()
                raise InputError(
                    f"{scan.path}: line {number} cannot be read ({text[:80]!r}): {fault}; mend it, or pass "
                    "--data.on_error skip to leave such rows out."
                ) from error
    raise InputError(
        f"{scan.path}: cannot be read as {scan.kind}: {_one_line(error)}; is it complete, and --data.format right?"
    ) from error


def _records(scan: _Scan) -> Iterator[tuple[int, bytes, str | None]]:
    """Yields (line number from 1, text, what is wrong with it or None) for each record of a text file.

    A record of a csv file goes on over several lines while a quotation mark is open, if it then has the right number of
    fields; else its first line is at fault and reading goes on after that line.
    """
    lines = enumerate(_binary_lines(scan.path), start=1)
    waiting: list[tuple[int, bytes]] = []
    while True:
        if not waiting:
            waiting = list(itertools.islice(lines, 1))
        if not waiting:
            return
        number, record = waiting.pop(0)
        fault = _fault(scan, record)
        if fault == _OPEN_QUOTE:
            used = 0
            for used in range(1, 100):  # no title is longer
                if len(waiting) < used:
                    waiting += itertools.islice(lines, 1)
                if len(waiting) < used:
                    break
                whole = record + b"".join(line for _, line in waiting[:used])
                if (now := _fault(scan, whole)) != _OPEN_QUOTE:
                    if now is None:
                        record, fault, waiting = whole, None, waiting[used:]
                    break
        yield number, record, fault


_OPEN_QUOTE = "a quotation mark is not closed"


def _fault(scan: _Scan, record: bytes) -> str | None:
    try:
        text = record.decode("utf-8").strip("\r\n\ufeff")
    except UnicodeDecodeError:
        return "it is not UTF-8 text"
    if scan.kind in ("jsonl", "dat", "sequence") and b"\x01" in record:
        return "it holds the control character 1"
    if scan.width is None or not text.strip():
        return None
    if scan.kind == "csv":
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error as error:
            return _OPEN_QUOTE if "unexpected end of data" in str(error) else str(error)
        if len(rows) > 1:
            return _OPEN_QUOTE  # the lines after the first are none of its own
        if text.count('"') % 2:
            return "a quotation mark stands in a field that has none around it"
        cells = rows[0]
    else:
        cells = text.split(scan.separator)
    return f"expected {scan.width} fields, found {len(cells)}" if len(cells) > scan.width else None


def _place(scan: _Scan, row: int) -> tuple[str, str]:
    """Names a row of the table as a user finds it, with its text: a line of a text file, a row of a parquet file."""
    if scan.kind == "parquet":
        return f"row {row + 1}", ""
    index = row + scan.first_line - 1
    if scan.kind == "csv":  # a quoted field may hold line ends
        records = ((number, record) for number, record, _ in _records(scan))
    else:
        records = enumerate(_binary_lines(scan.path), start=1)
    number, record = next(itertools.islice(records, index, None))
    return f"line {number}", repr(record.decode("utf-8", errors="replace").strip("\r\n"))


def _parse(path: Path, table: pl.DataFrame, log: Log, scan: _Scan, on_error: OnError, missing_user: bool) -> Log:
    """Turns the columns of text into what they mean, and finds the rows that mean nothing."""
    names = [name for name in ("user", "item", "time", "rating", "title") if name in table.columns]
    for name in names:
        if table.schema[name].is_nested():
            raise InputError(f"{path}: column {log.columns[name]!r} holds lists; expected one {name} a row.")
    if _TEXT in table.columns:
        table = table.filter(_TEXT).drop(_TEXT)
    elif scan.kind != "parquet":  # polars makes a row without any field of a blank line
        table = table.filter(~pl.all_horizontal(pl.col(names).is_null()))
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction; expected one a line.")
    raw = table.select(names)
    table = table.with_columns(pl.col(n).cast(pl.String) for n in names if n in ("user", "item", "title"))
    if "time" in names:
        table, log.time_unit = _parse_times(path, table, scan)
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
        place, text = _place(scan, table["row"][first])
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


def _parse_times(path: Path, table: pl.DataFrame, scan: _Scan) -> tuple[pl.DataFrame, str]:
    """Replaces `time` by whole seconds, and adds `fraction` if some time lies between two."""
    column = table["time"]
    if column.dtype.is_temporal():
        micros, unit = column.cast(pl.Datetime("us")).dt.epoch("us"), str(column.dtype)
    else:
        number = column.cast(pl.Float64, strict=False).fill_nan(None)
        known = len(number) - number.null_count()
        if known >= (len(column) - column.null_count()) - known:
            micros, unit = _from_numbers(path, number, table["row"], scan)
        else:
            micros, unit = _from_text(column.cast(pl.String)), "ISO text"
    seconds = micros // _SECOND
    fraction = (micros - seconds * _SECOND).cast(pl.Int32)
    table = table.with_columns(seconds.alias("time"))
    return (table.with_columns(fraction.alias("fraction")) if (fraction != 0).any() else table), unit


def _from_numbers(path: Path, number: pl.Series, row: pl.Series, scan: _Scan) -> tuple[pl.Series, str]:
    if len(number) and 19000101 <= (number.min() or 0) and (number.max() or 0) <= 21001231:
        dates = number.cast(pl.Int64).cast(pl.String).str.to_date("%Y%m%d", strict=False)
        if dates.null_count() == number.null_count():
            return dates.cast(pl.Datetime("us")).dt.epoch("us"), "dates as yyyymmdd"
    size = number.abs()
    found = [(name, low, high, factor) for name, low, high, factor in _UNITS if ((size >= low) & (size < high)).any()]
    if len(found) > 1:
        shares = {name: int(((size >= low) & (size < high)).sum()) for name, low, high, _ in found}
        odd = min(shares, key=shares.get)
        low, high = next((low, high) for name, low, high, _ in found if name == odd)
        first = int(((size >= low) & (size < high)).fill_null(False).arg_max())
        usual = max(shares, key=shares.get)
        raise InputError(
            f"{path}: {_place(scan, row[first])[0]} holds a time in {odd} ({number[first]:.0f}) while "
            f"{shares[usual]} rows hold {usual}; expected one unit in the whole file; convert one of them."
        )
    name, _, _, factor = found[0] if found else _UNITS[0]
    return (number * factor).round().cast(pl.Int64, strict=False), name


def _from_text(column: pl.Series) -> pl.Series:
    """Reads ISO 8601; a time without a zone counts as UTC. The form of the first values is tried first."""
    text = column.str.strip_chars().str.replace(r"(\d)T(\d)", "$1 $2").str.replace(r"\s*(Z|UTC)$", "+00:00")
    sample = text.drop_nulls().head(1000)

    def parse(values: pl.Series, form: str) -> pl.Series:
        return values.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us")

    forms = sorted(_ISO, key=lambda form: parse(sample, form).null_count())
    micros = parse(text, forms[0])
    for form in forms[1:]:
        if micros.null_count() == text.null_count():
            break
        micros = micros.fill_null(parse(text, form))
    return micros


def _read_sequence(path: Path, on_error: OnError) -> Log:
    """Reads lines of a user and one or more of the user's items, in order."""
    lines, skipped = _collect(_Scan(path, "sequence", Columns(), header=False), {"line": "line"}, on_error)
    words = pl.col("line").str.extract_all(r"\S+")
    table = lines.select("row", user=words.list.first(), item=words.list.slice(1)).filter(pl.col("user").is_not_null())
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction; expected a user and items in each line.")
    usual = {role: set(_GUESSES[role].split()) for role in ("user", "item")}
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
    return Log(events.lazy(), {"user": "first word", "item": "other words"}, "sequence", skipped=skipped + count)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
