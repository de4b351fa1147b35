"""Times in any form, as whole seconds and a fraction: numbers of one unit, dates, ISO text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from lightrec.data.readers.faults import place_of
from lightrec.data.readers.formats import Scan
from lightrec.errors import InputError

_SECOND = 1_000_000  # microseconds
# The present is 1.7e9 seconds, 1.7e12 milliseconds, 1.7e15 microseconds and 1.7e18 nanoseconds after 1970: no date
# of an interaction log is in doubt. Below 1e8 (March 1973) a number counts as whatever the others are.
_UNITS = (("seconds", 1e8, 1e11, 1e6), ("milliseconds", 1e11, 1e14, 1e3), ("microseconds", 1e14, 1e17, 1.0))
_UNITS += (("nanoseconds", 1e17, float("inf"), 1e-3),)
_ISO = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y%m%d %H%M%S")


def parse_times(path: Path, table: pl.DataFrame, scan: Scan) -> tuple[pl.DataFrame, str]:
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


def in_float32(seconds: np.ndarray, fraction: np.ndarray | int, unit: str | None) -> np.ndarray:
    """Returns what a float32 of the number in the file keeps of each time, as RecBole's tensors do.

    Args:
        seconds: [n] int64, whole seconds.
        fraction: [n] int32 or 0, microseconds after them.
        unit: what `parse_times` found; a time that is not a number counts in seconds.

    Returns:
        [n] float64, seconds.
    """
    of_a_second = _SECOND / next((factor for name, _, _, factor in _UNITS if name == unit), _SECOND)
    return ((seconds + fraction / _SECOND) * of_a_second).astype(np.float32).astype(np.float64) / of_a_second


def _from_numbers(path: Path, number: pl.Series, row: pl.Series, scan: Scan) -> tuple[pl.Series, str]:
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
            f"{path}: {place_of(scan, row[first])[0]} holds a time in {odd} ({number[first]:.0f}) while "
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
