"""What the values of a column look like: times and of what form, times of day, cells of several ids."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

EARLIEST, LATEST = 788_918_400, 4_102_444_800  # 1995 and 2100: no log of interactions lies outside
MISSING = ("", "NA", "NaN", "nan", "null", "NULL", "None", "\\N", "<NA>")
"""What a missing user or item is written as."""
UNITS = {"seconds": 1_000_000.0, "milliseconds": 1_000.0, "microseconds": 1.0, "nanoseconds": 0.001}
"""Microseconds of one, for each unit of a number."""
COMPACT = {"yyyymmdd": "%Y%m%d", "yyyymmddHHMM": "%Y%m%d%H%M", "yyyymmddHHMMSS": "%Y%m%d%H%M%S"}
TEXT_FORMS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y%m%d %H%M%S",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%b %d %H:%M:%S %z %Y",
    "%d %b %Y %H:%M:%S %z",
)
"""Forms that can be read in one way only; a time without a zone counts as UTC."""
_CLOCK = r"^\d{1,2}:\d\d(:\d\d(\.\d+)?)?$"
_UNSURE = r"^\d{1,2}[/.-]\d{1,2}[/.-]\d{4}(\s.*)?$"
_UNSURE_FORMS = tuple(
    day + clock
    for clock in ("", " %H:%M", " %H:%M:%S", " %I:%M:%S %p", " %I:%M %p")
    for day in ("%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y")
)


@dataclass(frozen=True)
class Time:
    """How the times of a column are written."""

    form: str
    """A unit of `UNITS`, a key of `COMPACT`, `text`, `days`, `time of day`, or `day and month in unknown order`."""
    micros: pl.Series | None = None
    """Int64, microseconds since 1970, null where there is none; None where the form does not tell."""

    @property
    def is_text(self) -> bool:
        """Whether no id could be written like this."""
        return self.form not in UNITS and self.form not in COMPACT


def sniff_time(values: pl.Series) -> Time | None:
    """Returns how the times are written if at least half of the values that are given are such, else None."""
    if values.dtype in (pl.Time, pl.Duration):
        return Time("time of day")
    if values.dtype.is_nested() or values.dtype == pl.Boolean:
        return None
    if values.dtype.is_temporal():
        return Time("days" if values.dtype == pl.Date else "text", values.cast(pl.Datetime("us")).dt.epoch("us"))
    text = values.cast(pl.String).str.strip_chars()
    text = text.set(text.is_in(MISSING), None)
    given = len(text) - text.null_count()
    if not given:
        return None

    def most(mask: pl.Series) -> bool:
        return 2 * int(mask.sum() or 0) >= given

    number = text.cast(pl.Float64, strict=False)
    if most(number.is_not_null()):
        if most(text.str.contains(r"^0\d")):  # an id: no number begins with 0
            return None
        if (form := compact_form(number)) is not None:
            return Time(form, parse_compact(number, form))
        for unit, factor in UNITS.items():
            micros = number * factor
            if most(micros.is_between(EARLIEST * 1e6, LATEST * 1e6)):
                return Time(unit, micros.round().cast(pl.Int64, strict=False))
        return None
    if most(text.str.contains(_CLOCK)):
        return Time("time of day")
    if most(text.str.contains(_UNSURE)):
        return Time("day and month in unknown order")
    micros = parse_text(text)
    if most(micros.is_not_null()):
        return Time("text" if most(text.str.contains(r"\d:\d\d")) else "days", micros)
    return None


def compact_form(number: pl.Series) -> str | None:
    """Returns the form of numbers that are all dates without separators, 20171125 or 20171125100000."""
    for form in COMPACT:
        low, high = (int(f"{year}{'0' * (len(form) - 4)}") for year in (1900, 2101))
        if number.is_between(low, high).all() and number.is_not_null().any():
            if parse_compact(number, form).null_count() == number.null_count():
                return form
    return None


def parse_compact(number: pl.Series, form: str) -> pl.Series:
    """Returns microseconds since 1970 of dates without separators."""
    text = number.cast(pl.Int64, strict=False).cast(pl.String)
    if form == "yyyymmdd":
        return text.str.to_date("%Y%m%d", strict=False).cast(pl.Datetime("us")).dt.epoch("us")
    padded = text + ("00" if form == "yyyymmddHHMM" else "")
    # A separator keeps polars from reading four digits as more.
    padded = padded.str.replace(r"^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)$", "$1-$2-$3 $4:$5:$6")
    return padded.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us").dt.epoch("us")


def parse_text(column: pl.Series, form: str | None = None) -> pl.Series:
    """Returns microseconds since 1970; the form of the first values is tried first. Null where no form fits."""

    def parse(values: pl.Series, form: str) -> pl.Series:
        return values.str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us")

    text = column.str.strip_chars()
    if form is not None:
        return parse(text, form)
    text = text.str.replace(r"(\d)T(\d)", "$1 $2").str.replace(r"\s*(Z|UTC)$", "+00:00")
    text = text.str.replace(r"^(Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+", "")  # it may be wrong, and tells nothing
    sample = text.drop_nulls().head(1000)
    forms = sorted(TEXT_FORMS, key=lambda form: parse(sample, form).null_count())
    micros = parse(text, forms[0])
    for form in forms[1:]:
        if micros.null_count() == text.null_count():
            break
        micros = micros.fill_null(parse(text, form))
    return micros


def forms_that_fit(column: pl.Series) -> list[str]:
    """Returns the forms with day and month before the year that all texts have."""
    text = column.drop_nulls().str.strip_chars().head(10_000)
    return [
        form
        for form in _UNSURE_FORMS
        if len(text) and text.str.to_datetime(form, strict=False, time_unit="us").null_count() == 0
    ]


def parts_of_cells(values: pl.Series) -> str | None:
    """Returns what stands between the ids if most cells hold several: a sign, `blanks`, `list` or `object`; else None.

    Words count as ids if each has a digit, so that a title with blanks in it is one id.
    """
    if values.dtype != pl.String:
        return None
    text = values.str.strip_chars()
    text = text.filter(text.is_not_null() & ~text.is_in(MISSING))

    def most(pattern: str) -> bool:
        return len(text) > 0 and 2 * int(text.str.contains(pattern).sum()) > len(text)

    if most(r"^\s*\{.*\}\s*$") or most(r"^\s*\[\s*\{"):
        return "object"
    if most(r"^[\[(].*[\])]$"):
        return "list"
    for name, sign in ((";", ";"), ("|", r"\|"), (",", ",")):
        if most(rf"^[^\s{sign}]+(\s*{sign}\s*[^\s{sign}]+)+$"):
            return name
    return "blanks" if most(r"^[^\s\d]*\d\S*(\s+[^\s\d]*\d\S*)+$") else None
