"""Readers: one interaction log in any common format, as a lazy table of user, item, time, rating and row.

Everything is read as text first: any string is a valid id, and "007" is not "7".
"""

from __future__ import annotations

import difflib
import gzip
import re
from dataclasses import dataclass, field
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
    "title": "title name item_name description movie_title",
}
_MILLISECONDS = 10**11  # seconds reach this in the year 5138, milliseconds passed it in 1973


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
    """user str, item str, time int64 seconds | absent, rating float64 | absent, row uint32 from 0, title | absent."""
    columns: dict[str, str]
    """What each was read from."""
    format: Format
    skipped: int = 0
    extra: dict = field(default_factory=dict)


def read_log(
    path: str | Path,
    columns: Columns = Columns(),
    format: Format | None = None,
    on_error: OnError = "raise",
    header: bool | None = None,
) -> Log:
    """Opens a log.

    Args:
        path: csv, tsv, `::`-separated .dat, parquet, JSON lines, RecBole .inter, or lines of "user item" or "user item
            item item"; text formats may be gzipped.
        columns: where it keeps what.
        format: None decides by name and first line.
        on_error: `raise` names the first row that cannot be read; `skip` leaves such rows out and counts them.
        header: whether a csv or tsv begins with column names; None decides by the first line.

    Raises:
        InputError: missing, empty or unreadable file, missing column, a row that cannot be read, mixed time units.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an interaction log.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; expected one interaction a line.")
    kind = format or guess_format(path)
    try:
        raw, has_header = _scan(path, kind, header)
        names = raw.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as {kind}: {_one_line(error)}; see --data.format.") from error
    if kind == "sequence":
        return Log(raw, {"user": "first word", "item": "other words"}, kind)
    chosen = _choose(path, names, columns, has_header)
    frame = raw.select(*(pl.col(source).alias(name) for name, source in chosen.items())).with_row_index("row")
    return _parse(path, frame, chosen, kind, on_error, first_line=2 if has_header else 1)


def guess_format(path: Path) -> Format:
    """Decides the format of a file by its name, and by its first line where the name says nothing."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    by_name = {
        ".csv": "csv",
        ".tsv": "tsv",
        ".parquet": "parquet",
        ".pq": "parquet",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "jsonl",
        ".inter": "inter",
    }
    if suffix in by_name:
        return by_name[suffix]
    line = _first_line(path)
    if "::" in line:
        return "dat"
    if "\t" in line:
        return "tsv"
    if "," in line:
        return "csv"
    if line.lstrip().startswith("{"):
        return "jsonl"
    if len(line.split()) >= 2:
        return "sequence"
    raise InputError(
        f"{path}: its format cannot be told from {line[:60]!r}; set --data.format csv, tsv, dat or another."
    )


def _first_line(path: Path) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.strip()), "").rstrip("\n")
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be unpacked: {_one_line(error)}; is the file complete?") from error


def _scan(path: Path, kind: Format, header: bool | None) -> tuple[pl.LazyFrame, bool]:
    if kind == "parquet":
        return pl.scan_parquet(path), True
    if kind == "jsonl":
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return pl.read_ndjson(file.read(), infer_schema_length=10_000).lazy(), True
        return pl.scan_ndjson(path, infer_schema_length=10_000), True
    if kind in ("csv", "tsv", "inter"):
        if header is None:
            header = kind == "inter" or not _looks_like_data(_first_line(path), "," if kind == "csv" else "\t")
        options = {} if kind == "csv" else {"quote_char": None}
        separator = "," if kind == "csv" else "\t"
        frame = pl.scan_csv(path, separator=separator, has_header=header, infer_schema=False, **options)
        if kind == "inter":  # RecBole writes name:type
            frame = frame.rename(lambda name: name.split(":")[0])
        return frame, header
    lines = pl.scan_csv(
        path, separator="\x01", has_header=False, infer_schema=False, quote_char=None, new_columns=["line"]
    )
    if kind == "dat":
        width = _first_line(path).count("::") + 1
        parts = pl.col("line").str.split_exact("::", width - 1)
        return lines.select(parts.struct.rename_fields([f"column_{i + 1}" for i in range(width)])).unnest("line"), False
    frame = lines.filter(pl.col("line").str.strip_chars() != "").select(
        pl.col("line").str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ").alias("words")
    )
    frame = frame.select(user=pl.col("words").list.first(), item=pl.col("words").list.slice(1)).explode("item")
    return frame.filter(pl.col("item").is_not_null()).with_row_index("row"), False


def _looks_like_data(line: str, separator: str) -> bool:
    """A header has words in every cell; a line of data has a number in one of the later ones, as names rarely have."""
    cells = [cell.strip().strip('"') for cell in line.split(separator)]
    return any(re.fullmatch(r"-?\d+(\.\d+)?", cell) for cell in cells)


def _choose(path: Path, names: list[str], columns: Columns, has_header: bool) -> dict[str, str]:
    """Maps user, item, time, rating, title to column names of the file."""
    wanted = vars(columns)
    guessed = {2: ("user", "item"), 3: ("user", "item", "time"), 4: ("user", "item", "rating", "time")}
    chosen: dict[str, str] = {}
    for role, given in wanted.items():
        if given is not None:
            chosen[role] = _column(path, names, role, given)
        elif has_header:
            known = _GUESSES[role].split()
            match = next((n for k in known for n in names if n.lower().strip() == k and n not in chosen.values()), None)
            if match is not None:
                chosen[role] = match
    if not has_header and not {"user", "item"} & {r for r, g in wanted.items() if g is not None}:
        if len(names) not in guessed:
            raise InputError(
                f"{path}: {len(names)} columns without names; say which is which: --data.user_column 0 "
                "--data.item_column 1."
            )
        chosen = dict(zip(guessed[len(names)], names, strict=True))
    for role in ("user", "item"):
        if role not in chosen:
            raise InputError(
                f"{path}: no {role} column found among {', '.join(names)}; name it: --data.{role}_column NAME."
            )
    return chosen


def _column(path: Path, names: list[str], role: str, given: str | int) -> str:
    if str(given) in names:
        return str(given)
    if str(given).isdigit() and int(given) < len(names):
        return names[int(given)]
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"{path}: no column {given!r} for --data.{role}_column; {hint}columns: {', '.join(names)}.")


def _parse(path: Path, frame: pl.LazyFrame, chosen: dict, kind: Format, on_error: OnError, first_line: int) -> Log:
    schema = frame.collect_schema()
    exprs = [pl.col(name).cast(pl.String) for name in ("user", "item", "title") if name in chosen]
    frame = frame.with_columns(exprs)
    if "rating" in chosen:
        frame = frame.with_columns(rating=pl.col("rating").cast(pl.Float64, strict=False), _rating=pl.col("rating"))
    if "time" in chosen:
        frame = _parse_time(path, frame, schema["time"], first_line)
    bad = pl.col("item").is_null() | (pl.col("item") == "")
    if "time" in chosen:
        bad |= pl.col("time").is_null()
    if "rating" in chosen:
        bad |= pl.col("rating").is_null() & pl.col("_rating").is_not_null()
    try:
        faults = frame.filter(bad).select("row").head(1).collect(engine="streaming")
        count = frame.filter(bad).select(pl.len()).collect(engine="streaming").item() if len(faults) else 0
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as {kind}: {_one_line(error)}; is the file complete?") from error
    if count and on_error == "raise":
        row = faults["row"][0]
        content = frame.filter(pl.col("row") == row).drop("row", strict=False).collect().row(0)
        raise InputError(
            f"{path}: line {row + first_line} cannot be read ({_show(chosen, content)}): expected an item"
            f"{', a time (epoch seconds, milliseconds or ISO text)' if 'time' in chosen else ''}; mend it, or pass "
            f"--data.on_error skip to leave out {count} such row{'s' if count > 1 else ''}."
        )
    if count:
        frame = frame.filter(~bad)
    return Log(frame.drop("_rating", strict=False), {k: str(v) for k, v in chosen.items()}, kind, skipped=count)


def _show(chosen: dict, content: tuple) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in zip(chosen, content, strict=False))


def _parse_time(path: Path, frame: pl.LazyFrame, dtype: pl.DataType, first_line: int) -> pl.LazyFrame:
    if dtype.is_temporal():
        return frame.with_columns(time=pl.col("time").cast(pl.Datetime("us")).dt.epoch("s"))
    number = pl.col("time").cast(pl.Float64, strict=False)
    stats = frame.select(
        numbers=number.is_not_null().sum(),
        large=(number.abs() >= _MILLISECONDS).sum(),
        small=((number.abs() < _MILLISECONDS) & (number.abs() > 10**8)).sum(),
        first_large=pl.col("row").filter(number.abs() >= _MILLISECONDS).first(),
        first_small=pl.col("row").filter((number.abs() < _MILLISECONDS) & (number.abs() > 10**8)).first(),
        texts=(number.is_null() & pl.col("time").is_not_null()).sum(),
    )
    try:
        row = stats.collect(engine="streaming").row(0, named=True)
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {_one_line(error)}; is the file complete?") from error
    if row["large"] and row["small"]:
        odd, unit = ("first_large", "milliseconds") if row["large"] < row["small"] else ("first_small", "seconds")
        raise InputError(
            f"{path}: line {row[odd] + first_line} holds a time in {unit} while most rows do not; "
            "expected one unit for the whole file."
        )
    if row["numbers"] >= row["texts"]:
        seconds = (number / 1000).floor() if row["large"] else number.floor()
        return frame.with_columns(time=seconds.cast(pl.Int64, strict=False))
    text = pl.col("time").cast(pl.String).str.strip_chars().str.replace("T", " ").str.replace(r"(Z|\+00:00)$", "")
    formats = (
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%d %H:%M",
        "%Y-%m-%d",
        "%m/%d/%Y %H:%M",
        "%d.%m.%Y %H:%M",
    )
    parsed = pl.coalesce(*(text.str.to_datetime(f, strict=False, time_unit="us") for f in formats))
    return frame.with_columns(time=parsed.dt.epoch("s"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
