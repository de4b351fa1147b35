"""Times in any form, as whole seconds and a fraction: numbers of one unit, dates, text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from lightrec.data.readers.faults import place_of
from lightrec.data.readers.formats import Scan
from lightrec.data.readers.sniff import LATEST, UNITS, compact_form, forms_that_fit, parse_compact, parse_text
from lightrec.errors import InputError

_SECOND = 1_000_000  # microseconds
# The present is 1.7e9 seconds, 1.7e12 milliseconds, 1.7e15 microseconds and 1.7e18 nanoseconds after 1970: no date
# of an interaction log is in doubt. Below 1e8 (March 1973) a number counts as whatever the others are.
_UNITS = (("seconds", 1e8, 1e11, 1e6), ("milliseconds", 1e11, 1e14, 1e3), ("microseconds", 1e14, 1e17, 1.0))
_UNITS += (("nanoseconds", 1e17, float("inf"), 1e-3),)
EXPECTED = "a time (epoch seconds, milliseconds or ISO text)"


def parse_times(
    path: Path,
    table: pl.DataFrame,
    scan: Scan,
    name: str = "time",
    form: str | None = None,
    zone: str | None = None,
) -> tuple[pl.DataFrame, str]:
    """Replaces `time` by whole seconds, and adds `fraction` if some time lies between two.

    Args:
        path: the file.
        table: has `time` and `row`.
        scan: how the file is scanned.
        name: what the column is called in the file.
        form: how the times are written, `%d.%m.%Y`; None takes what can be read in one way only.
        zone: of times that name none, `Europe/Berlin`; None is UTC.

    Returns:
        The table, and how the times are written.

    Raises:
        InputError: times of day, mixed units, times after 2100, a form that needs to be told.
    """
    column = table["time"]
    if column.dtype in (pl.Time, pl.Duration):
        what = "times of day" if column.dtype == pl.Time else "durations"
        raise InputError(f"{path}: column {name!r} holds {what}; name another: --data.time_column NAME.")
    if column.dtype.is_temporal():
        if zone and getattr(column.dtype, "time_zone", None) is None:
            column = _in_zone(column.cast(pl.Datetime("us")), zone)
        micros, unit = column.cast(pl.Datetime("us")).dt.epoch("us"), str(column.dtype)
    elif form is not None:
        micros, unit = _parse_form(path, column, form), f"text as {form}"
    else:
        number = column.cast(pl.Float64, strict=False).fill_nan(None)
        known = len(number) - number.null_count()
        if known >= (len(column) - column.null_count()) - known:
            micros, unit = _from_numbers(path, number, table["row"], scan)
        else:
            text = column.cast(pl.String)
            micros, unit = parse_text(text), "ISO text"
            if micros.null_count() - text.null_count() > len(text) // 2:
                _refuse_text(path, name, text)
    if zone and not column.dtype.is_temporal() and unit not in UNITS:
        micros = _in_zone(pl.from_epoch(micros, "us"), zone).dt.epoch("us")
    seconds = micros // _SECOND
    if (seconds.max() or 0) > LATEST:
        worst = int(seconds.arg_max())
        raise InputError(
            f"{path}: {place_of(scan, table['row'][worst])[0]} holds the time {column[worst]}, read as {unit}: it is "
            "after the year 2100; name another --data.time_column, or say its form with --data.time_format."
        )
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
    if len(number) and (form := compact_form(number)) is not None:
        return parse_compact(number, form), f"dates as {form}"
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


def _parse_form(path: Path, column: pl.Series, form: str) -> pl.Series:
    try:
        return parse_text(column.cast(pl.String), form)
    except pl.exceptions.PolarsError as error:
        cause = " ".join(str(error).split())[:120]
        raise InputError(
            f"--data.time_format {form!r} cannot be used: {cause}; write it like %d.%m.%Y %H:%M."
        ) from error


def _in_zone(column: pl.Series, zone: str) -> pl.Series:
    try:
        return column.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC")
    except pl.exceptions.PolarsError as error:
        raise InputError(f"--data.time_zone {zone!r} is unknown; expected a name like Europe/Berlin.") from error


def _refuse_text(path: Path, name: str, text: pl.Series) -> None:
    """Raises an error that names the form to give, if most texts are no time that can be read in one way."""
    fitting = forms_that_fit(text)
    shown = text.drop_nulls()[0] if text.null_count() < len(text) else ""
    if fitting:
        raise InputError(
            f"{path}: column {name!r} holds times like {shown[:60]!r}, whose day and month may be in either order; "
            f"say which: --data.time_format {' or '.join(repr(form) for form in fitting[:2])}."
        )
