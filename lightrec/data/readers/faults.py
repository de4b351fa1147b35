"""Where polars gives up on a text file, a slow second reading finds the line at fault, or leaves such lines out."""

from __future__ import annotations

import csv
import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl

from lightrec.data.readers.columns import printable
from lightrec.data.readers.formats import FAILURES, TEXT, Scan, one_line
from lightrec.data.readers.unpacking import binary_lines
from lightrec.errors import InputError

OnError = Literal["raise", "skip"]


def collect(scan: Scan, chosen: dict[str, str], on_error: OnError) -> tuple[pl.DataFrame, int]:
    """Reads the chosen columns; when polars stops at a line, finds it, or goes on with a copy without such lines."""

    def pick(frame: pl.LazyFrame) -> pl.LazyFrame:
        columns = [pl.col(source).alias(name) for name, source in chosen.items()]
        return frame.select(*columns, *([TEXT] if scan.kind in ("jsonl", "dat") else [])).with_row_index("row")

    try:
        return pick(scan.frame()).collect(engine="streaming"), 0
    except FAILURES as error:
        if on_error == "raise" or scan.kind == "parquet":
            explain(scan, error)
        with tempfile.TemporaryDirectory(prefix="lightrec-") as folder:
            copy, skipped = Path(folder, "log"), 0
            with copy.open("wb") as out:
                for number, record, fault in _records(scan):
                    skipped += fault is not None
                    is_names = number == scan.leading + 1 and scan.has_header
                    out.write(record if fault is None or is_names else b"\n" * record.count(b"\n"))  # keeps numbers
            try:
                return pick(scan.frame(copy)).collect(engine="streaming"), skipped
            except FAILURES as error:
                explain(scan, error)


def explain(scan: Scan, error: Exception):
    """Raises an InputError that names the line that polars could not read.

    Raises:
        InputError: always.
    """
    if scan.kind != "parquet":
        for number, record, fault in _records(scan):
            if fault is not None:
                text = printable(record.decode("utf-8", errors="replace").strip())
                raise InputError(
                    f"{scan.path}: line {number} cannot be read ('{text}'): {fault}; {_remedy(scan, fault)}."
                ) from error
    raise InputError(
        f"{scan.path}: cannot be read as {scan.kind}: {one_line(error)}; is it complete, and --data.format right?"
    ) from error


def _remedy(scan: Scan, fault: str) -> str:
    """Says what can be done about a fault, and how many rows skipping would cost."""
    faulty = total = 0
    for number, record, found in _records(scan):
        total += bool(record.strip()) and number >= scan.first_line
        faulty += found is not None
    rows = f"{faulty:,} of {total:,} rows"
    if fault == NOT_UTF8:
        where = "the text may be in another encoding: --data.encoding cp1252 (or latin-1)"
        return f"{where}; or {skip_advice(rows, faulty, total)}"
    return f"mend it, or {skip_advice(rows, faulty, total)}"


def skip_advice(rows: str, faulty: int, total: int) -> str:
    """Advises --data.on_error skip unless most rows would go."""
    if 10 * faulty > 3 * total and faulty > 1:
        return f"read the file as another format or by other columns ({rows} are so)"
    return f"pass --data.on_error skip to leave such rows out: {rows}"


NOT_UTF8 = "it is not UTF-8 text"


def _records(scan: Scan) -> Iterator[tuple[int, bytes, str | None]]:
    """Yields (line number from 1, text, what is wrong with it or None) for each record of a text file.

    A record of a csv file goes on over several lines while a quotation mark is open, if it then has the right number of
    fields; else its first line is at fault and reading goes on after that line.
    """
    lines = enumerate(binary_lines(scan.path), start=1)
    waiting: list[tuple[int, bytes]] = []
    while True:
        if not waiting:
            waiting = list(itertools.islice(lines, 1))
        if not waiting:
            return
        number, record = waiting.pop(0)
        fault = _fault(scan, record) if number > scan.leading else None
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


def _fault(scan: Scan, record: bytes) -> str | None:
    try:
        text = record.decode("utf-8").strip("\r\n\ufeff")
    except UnicodeDecodeError:
        return NOT_UTF8
    if scan.kind in ("jsonl", "dat", "sequence", "histories") and b"\x01" in record:
        return "it holds the control character 1"
    if scan.width is None or not text.strip():
        return None
    if scan.kind == "csv":
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=scan.separator, strict=True))
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


def place_of(scan: Scan, row: int) -> tuple[str, str]:
    """Names a row of the table as a user finds it, with its text: a line of a text file, a row of a parquet file."""
    if scan.kind == "parquet":
        return f"row {row + 1}", ""
    index = row + scan.first_line - 1
    if scan.kind == "csv":  # a quoted field may hold line ends
        records = ((number, record) for number, record, _ in _records(scan))
    else:
        records = enumerate(binary_lines(scan.path), start=1)
    number, record = next(itertools.islice(records, index, None))
    return f"line {number}", f"'{printable(record.decode('utf-8', errors='replace').strip(chr(13) + chr(10)), 120)}'"
