"""Formats: how a file is told to be csv, JSON lines or another, opened, and scanned lazily as columns of text."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl

from lightrec.data.readers.columns import Columns, is_header
from lightrec.errors import InputError

Format = Literal["csv", "tsv", "dat", "parquet", "jsonl", "inter", "sequence"]

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
FAILURES = (pl.exceptions.PolarsError, OSError, EOFError, zlib.error)


def guess_format(path: Path) -> Format:
    """Decides the format of a file by its name, and by its first line where the name says nothing."""
    suffix = suffix_of(path)
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


def check_file(path: Path) -> None:
    """Refuses what cannot be a log, whatever its format.

    Raises:
        InputError: a folder, no file, one that is empty or may not be opened, UTF-16 text, a zip archive.
    """
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


def suffix_of(path: Path) -> str:
    """Returns the end of a name that tells the format: of `log.csv.gz` it is `.csv`."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def binary_lines(path: Path) -> Iterator[bytes]:
    """Yields lines with their ends; unpacks gzip, which is known by its first bytes whatever the name."""
    opener = gzip.open if _magic(path)[:2] == b"\x1f\x8b" else open
    try:
        with opener(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be unpacked: {one_line(error)}; is the file complete?") from error


def _first_lines(path: Path, count: int) -> list[str]:
    lines = (line.decode("utf-8", errors="replace").lstrip("\ufeff").rstrip("\r\n") for line in binary_lines(path))
    return list(itertools.islice((line for line in lines if line.strip()), count))


class Scan:
    """How one file is scanned: its format, its column names, and whether its first line holds them."""

    def __init__(self, path: Path, kind: Format, columns: Columns, header: bool | None):
        self.path, self.kind = path, kind
        self.separator = {"csv": ",", "tsv": "\t", "inter": "\t", "dat": "::"}.get(kind)
        self.has_header = kind in ("parquet", "inter", "jsonl")
        lines = [] if kind == "parquet" else _first_lines(path, 100)
        self.leading = 0  # blank lines, before names or data
        if self.separator not in (None, "::"):
            self.leading = next(
                (i for i, line in enumerate(binary_lines(path)) if line.strip(b"\xef\xbb\xbf \t\r\n")), 0
            )
        if kind != "parquet" and not lines:
            raise InputError(f"{path}: the file has only blank lines; expected one interaction a line.")
        if kind in ("csv", "tsv"):
            rows = [_cells(line, self.separator, kind == "csv") for line in lines[:2]]
            self.has_header = is_header(rows, columns) if header is None else header
        if kind == "jsonl":
            self.keys = _json_keys(path, lines)
        self.width = len(_cells(lines[0], self.separator, kind == "csv")) if self.separator else None
        try:
            self.names = [name for name in self.frame().collect_schema().names() if name != TEXT]
        except FAILURES as error:
            raise InputError(
                f"{path}: cannot be read as {kind}: {one_line(error)}; is it complete, and --data.format right?"
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
        return lines.select(_TEXT_EXPR.alias(TEXT), **fields)


# Tells a blank line from one that has none of the fields.
TEXT = "is text"
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
        raise InputError(
            f"{path}: cannot be read as jsonl: {lines[0][:60]!r} is not an object; expected one in each line."
        )
    return list(keys)


def _json_path(key: str) -> str:
    escaped = key.replace("\\", "\\\\").replace("'", "\\'")
    return f"$['{escaped}']"


def _cells(line: str, separator: str, quoted: bool) -> list[str]:
    if quoted:
        with contextlib.suppress(csv.Error):
            return next(csv.reader(io.StringIO(line, newline=""), delimiter=separator), [])
    return line.split(separator)


def one_line(error: Exception) -> str:
    """Returns what an error says as one line, cut to 200 characters."""
    return " ".join(str(error).split())[:200]
