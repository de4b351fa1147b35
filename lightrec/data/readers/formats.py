"""Formats: how a file is told to be csv, JSON lines or another, opened, and scanned lazily as columns of text."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from lightrec.data.readers.columns import USUAL_NAMES, Columns, is_header, printable
from lightrec.data.readers.unpacking import SUFFIXES, binary_lines, first_bytes
from lightrec.errors import InputError

Format = Literal["csv", "tsv", "dat", "parquet", "jsonl", "inter", "sequence", "histories"]

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


@dataclass(frozen=True)
class Form:
    """How a file is written, as far as somebody said so; None is found out."""

    separator: str | None = None
    """What stands between fields: one character or its name, `tab`, `blanks`."""
    encoding: str | None = None
    header: bool | None = None
    """Whether a table begins with column names."""
    time_format: str | None = None
    """How times are written, `%d.%m.%Y`."""
    time_zone: str | None = None
    """Zone of times that name none; None is UTC."""
    lists: bool | None = None
    """Whether a cell holds several items, each an event; None refuses cells that look so."""

    @property
    def sign(self) -> str | None:
        """The separator itself.

        Raises:
            InputError: it is neither one character nor a known name.
        """
        if self.separator is None:
            return None
        sign = _SIGNS.get(self.separator, self.separator)
        if sign != "::" and (len(sign) != 1 or len(sign.encode()) != 1 or sign in '\r\n"'):
            raise InputError(
                f"--data.separator {self.separator!r} is not a separator; give one character, or one of "
                f"{', '.join(name for name in _SIGNS if name.isalpha())}."
            )
        return sign


_SIGNS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "blanks": " ", "blank": " "}
SEPARATORS = {"csv": ",", "tsv": "\t", "inter": "\t", "dat": "::"}


def guess_format(path: Path) -> Format:
    """Decides the format of a file by its name, and by its first line where the name says nothing."""
    suffix = suffix_of(path)
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if first_bytes(path, 4) == b"PAR1":
        return "parquet"
    lines = _first_lines(path, 100)[0]
    line = lines[0] if lines else ""
    if "::" in line:
        return "dat"
    if "\t" in line:
        return "tsv"
    if line.lstrip().startswith("{"):
        return "jsonl"
    if "," in line or any(_fits(lines, sign) for sign in ";|"):
        return "csv"
    words = [text.split() for text in lines]
    _refuse_table(path, words)
    if len(line.split()) >= 2:
        return "sequence"
    raise InputError(
        f"{path}: its format cannot be told from {printable(line, 60)!r}; set --data.format csv, tsv, dat or another."
    )


def _refuse_table(path: Path, words: list[list[str]]) -> None:
    """Refuses lines that are columns between blanks.

    Raises:
        InputError: all lines have the same number of words, and the last is a time or a rating.
    """
    width = len(words[0]) if words else 0
    if width < 3 or any(len(w) != width for w in words):
        return
    last = [w[-1] for w in words]
    timed = all(re.fullmatch(r"\d{9,13}(\.\d+)?", text) for text in last)
    first = [w[0] for w in words]
    rated = (
        len(set(first)) < len(first)
        and all(re.fullmatch(r"-?\d{1,3}(\.\d+)?", text) for text in last)
        and 2 * len(set(last)) <= len(last)
    )
    if not timed and not (rated and width == 3):
        return
    role = "time" if timed else "rating"
    raise InputError(
        f"{path}: {printable(' '.join(words[0]), 60)!r} looks like columns between blanks, with a {role} at the end; "
        f"say so: lightrec data stats {shlex.quote(str(path))} --data.separator blanks --data.user_column 0 "
        f"--data.item_column 1 --data.{role}_column {width - 1}, or set --data.format sequence if it is a user and "
        "the user's items."
    )


def find_separator(lines: list[str], usual: str) -> str:
    """Returns what stands between the fields of some lines: the usual sign, or another that fits where it does not."""
    if _fits(lines, usual):
        return usual
    return next((sign for sign in ",\t;|" if _fits(lines, sign)), usual)


def _fits(lines: list[str], sign: str) -> bool:
    widths = {len(_cells(line, sign, sign != "\t")) for line in lines[:20]}
    return len(widths) == 1 and widths.pop() > 1


def suffix_of(path: Path) -> str:
    """Returns the end of a name that tells the format: of `log.csv.gz` it is `.csv`."""
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(name).suffix.lower()


def _first_lines(path: Path, count: int) -> tuple[list[str], int]:
    """Returns the first lines that hold something, and how many blank and comment lines stand before them."""
    lines, leading = [], 0
    for line in binary_lines(path):
        text = line.decode("utf-8", errors="replace").lstrip("\ufeff").rstrip("\r\n")
        if not lines and (not text.strip() or _is_comment(text)):
            leading += 1
        elif text.strip():
            lines.append(text)
        if len(lines) == count:
            break
    return lines, leading


def _is_comment(line: str) -> bool:
    """Says whether a line before the data is a comment: # or %, and a blank, the same sign, or column names."""
    if not line.startswith(("#", "%")):
        return False
    if line[1:2] in ("", " ", "\t", line[0]):
        return True
    words = re.split(r"[\s,;|]+", line[1:].lower())
    return sum(word in _ALL_NAMES or word.endswith(("id", "name")) for word in words) > 1


_ALL_NAMES = {word for words in USUAL_NAMES.values() for word in words.split()}


class Scan:
    """How one file is scanned: its format, its column names, and whether its first line holds them."""

    def __init__(self, path: Path, kind: Format, columns: Columns, header: bool | None, sign: str | None = None):
        self.path, self.kind = path, kind
        self.separator = sign or SEPARATORS.get(kind)
        self.has_header = kind in ("parquet", "inter", "jsonl")
        lines, self.leading = ([], 0) if kind == "parquet" else _first_lines(path, 100)
        if kind == "csv" and sign is None:
            self.separator = find_separator(lines, ",")
        if self.separator == "\t" and kind == "csv":
            self.kind = kind = "tsv"
        if kind != "parquet" and not lines:
            raise InputError(f"{path}: the file has only blank lines; expected one interaction a line.")
        if kind in ("csv", "tsv"):
            rows = [_cells(line, self.separator, kind == "csv") for line in lines[:2]]
            self.has_header = is_header(rows, columns) if header is None else header
        if kind == "jsonl":
            self.keys = _json_keys(path, lines)
        self.width = len(_cells(lines[0], self.separator, kind == "csv")) if self.separator else None
        self.types: dict[str, str] = {}
        """Types that the names of an .inter file carry."""
        if kind == "inter":
            self.types = dict(cell.partition(":")[::2] for cell in lines[0].split("\t"))
        self._check_width(lines)
        try:
            self.names = [name for name in self.frame().collect_schema().names() if name != TEXT]
        except FAILURES as error:
            raise InputError(
                f"{path}: cannot be read as {kind}: {one_line(error)}; is it complete, and --data.format right?"
            ) from error

    def _check_width(self, lines: list[str]) -> None:
        """Refuses a table of one column, and names the separator that would make it several."""
        if self.kind not in ("csv", "tsv", "dat", "inter") or self.width != 1:
            return
        other = next((sign for sign in ",\t;|" if _fits(lines, sign)), None)
        remedy = f"set --data.separator {_name(other)} and leave --data.format out" if other else "set --data.separator"
        raise InputError(
            f"{self.path}: has one column only, {printable(lines[0])!r}; expected columns between "
            f"{_name(self.separator)}s: {remedy}."
        )

    def sample(self, count: int = 1000) -> pl.DataFrame:
        """Reads the first rows, [count], as far as they can be read."""
        if self.kind == "parquet":
            return self.frame().head(count).collect()
        lines = itertools.islice(binary_lines(self.path), self.leading + 1 + count)
        text = io.BytesIO(b"".join(line.decode("utf-8", "replace").encode() for line in lines))
        try:
            return self.frame(text, ragged=True).select(self.names).collect()
        except FAILURES:  # the reader of the whole file says more
            return pl.DataFrame({name: pl.Series([], dtype=pl.String) for name in self.names})

    def head(self) -> list[bytes]:
        """Returns the lines before the data."""
        return list(itertools.islice(binary_lines(self.path), self.leading)) if self.leading else []

    @property
    def first_line(self) -> int:
        """Line number, from 1, of row 0."""
        return self.leading + (2 if self.has_header and self.kind not in ("parquet", "jsonl") else 1)

    def frame(self, path: Path | io.BytesIO | None = None, ragged: bool = False) -> pl.LazyFrame:
        """Scans the file, or a cleaned copy of it; `ragged` takes what fits of lines with too many fields."""
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
                truncate_ragged_lines=ragged,
                schema=None if self.has_header else {f"column_{i}": pl.String for i in range(self.width)},
            )
            if self.kind == "inter":  # RecBole writes name:type
                frame = frame.rename(lambda name: name.split(":")[0])
            return frame
        lines = _scan_lines(path, self.leading)
        if self.kind in ("sequence", "histories"):
            return lines
        if self.kind == "jsonl":
            fields = {key: pl.col("line").str.json_path_match(place) for key, place in self.keys.items()}
        else:
            whole = pl.col("line").str.count_matches("::", literal=True) == self.width - 1
            parts = pl.when(whole).then(pl.col("line")).str.split_exact("::", self.width - 1)
            fields = {f"column_{i}": parts.struct.field(f"field_{i}") for i in range(self.width)}
        return lines.select(_TEXT_EXPR.alias(TEXT), **fields)


# Tells a blank line from one that has none of the fields.
TEXT = "is text"
_TEXT_EXPR = (pl.col("line").str.strip_chars() != "").fill_null(False)


def _scan_lines(path: Path | io.BytesIO, leading: int) -> pl.LazyFrame:
    # No text file holds the byte 1, so that each line is one field; blank lines are null.
    return pl.scan_csv(
        path, separator="\x01", has_header=False, schema={"line": pl.String}, quote_char=None, skip_lines=leading
    )


def _name(sign: str) -> str:
    return {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe", " ": "blank"}.get(sign, repr(sign))


def _json_keys(path: Path, lines: list[str]) -> dict[str, str]:
    """Returns the names of the fields, of objects in objects as `user.id`, and the path of each."""
    keys: dict[str, str] = {}
    for line in lines:
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(value, dict):
            _add_keys(keys, value, "", "$")
    if not keys:
        raise InputError(
            f"{path}: cannot be read as jsonl: {printable(lines[0], 60)!r} is not an object; expected one in each line."
        )
    return keys


def _add_keys(keys: dict[str, str], value: dict, prefix: str, path: str) -> None:
    for key, part in value.items():
        escaped = key.replace("\\", "\\\\").replace("'", "\\'")
        keys.setdefault(prefix + key, f"{path}['{escaped}']")
        if isinstance(part, dict) and prefix.count(".") < 3:
            _add_keys(keys, part, f"{prefix}{key}.", keys[prefix + key])


def _cells(line: str, separator: str, quoted: bool) -> list[str]:
    if quoted:
        with contextlib.suppress(csv.Error):
            return next(csv.reader(io.StringIO(line, newline=""), delimiter=separator), [])
    return line.split(separator)


def one_line(error: Exception) -> str:
    """Returns what an error says as one line, cut to 200 characters."""
    return " ".join(str(error).split())[:200]
