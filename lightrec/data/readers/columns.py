"""Which column holds what: as it was said, else by its usual name, else by its position."""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from lightrec.data.readers.sniff import Time, sniff_time
from lightrec.errors import InputError

USUAL_NAMES = {
    "user": (
        "user user_id userid uid reviewerid customerid customer_id customer visitorid session session_id sessionid "
        "case case_id username user_name member_id"
    ),
    "item": (
        "item item_id itemid iid parent_asin asin movieid movie_id movie stockcode product_id productid product sku "
        "article_id venue_id poi poi_id poiid track_id trackid video_id videoid book_id bookid isbn song_id songid "
        "news_id newsid business_id"
    ),
    "time": "timestamp time ts unixreviewtime datetime date invoicedate event_time created_at t",
    "rating": "rating overall score stars",
    "title": "title name item_name item_title description movie_title product_title",
}
_TIMELY = r"(time|date|stamp|epoch|created|updated|when|day|utc|dt|ts|at|t)"
# Where nameless columns keep what, by their number and the position of the times.
_LAYOUTS = {
    (2, None): ("user", "item"),
    (3, 1): ("user", "time", "item"),
    (3, 2): ("user", "item", "time"),
    (4, 1): ("user", "time", "item"),
    (4, 3): ("user", "item", "rating", "time"),
}


@dataclass(frozen=True)
class Columns:
    """Where a log keeps what: names, or positions counted from 0; None guesses, or says that there is none.

    Guessing knows the usual names, and times by their values. A file without a header is read as user, item, rating,
    time (four columns), user, item, time (three) or user, item (two), if times stand where these say.
    """

    user: str | int | None = None
    item: str | int | None = None
    time: str | int | None = None
    rating: str | int | None = None
    title: str | int | None = None


def is_header(rows: list[list[str]], columns: Columns) -> bool:
    """Decides whether the first of some rows holds names.

    It does if a cell is a usual name or one that was asked for, and does not if a cell is a number or a date. Two usual
    names outweigh that. Else it does if the second row has a number or a date, or if columns were not asked for by
    position.
    """
    first = [cell.strip() for cell in rows[0]]
    given = [str(c) for c in vars(columns).values() if c is not None]
    usual = {word for words in USUAL_NAMES.values() for word in words.split()}
    found = sum(cell.lower() in usual for cell in first)
    if found > 1 or any(cell in given and not cell.isdigit() for cell in first):
        return True
    if any(map(_is_value, first)):
        return False
    if found:
        return True
    return any(map(_is_value, rows[1] if len(rows) > 1 else ())) or not given or not all(c.isdigit() for c in given)


def _is_value(cell: str) -> bool:
    return (
        re.fullmatch(
            r"\s*([-+]?\d+(\.\d*)?([eE][-+]?\d+)?|\d{4}[-/]\d\d?[-/]\d\d?.*|\d\d?[/.]\d\d?[/.]\d{4}.*)\s*", cell
        )
        is not None
    )


@dataclass(frozen=True)
class Choice:
    """Which column holds what."""

    columns: dict[str, str]
    """Column of the file, for each role that has one, in the order of `Columns`."""
    guessed: tuple[str, ...]
    """Roles that nobody named."""
    notes: tuple[str, ...] = ()
    """What should be known of the guesses, a sentence each."""


def choose_columns(
    path: Path, names: list[str], columns: Columns, has_header: bool, sample: pl.DataFrame, trusted: bool = False
) -> Choice:
    """Decides which column holds what.

    Args:
        path: the file.
        names: its columns.
        columns: what was said of them.
        has_header: whether the names stand in the file.
        sample: its first rows.
        trusted: the format is one whose nameless columns always begin with user and item.

    Raises:
        InputError: a column is missing, or what the file holds fits several readings.
    """
    given = {role: value for role, value in vars(columns).items() if value is not None}
    chosen = {role: find_column(path, names, role, value) for role, value in given.items()}
    notes: list[str] = []
    found = {name: time for name in names if (time := sniff_time(sample[name])) is not None}
    if has_header:
        _by_name(path, names, chosen, found, sample, notes)
    else:
        _by_position(path, names, chosen, found, sample, notes, trusted)
    for role in ("user", "item"):
        if role not in chosen:
            raise InputError(
                f"{path}: no {role} column found among {', '.join(map(printable, names))}; name it: "
                f"--data.{role}_column NAME."
                if len(names) > 1
                else f"{path}: has one column only, {printable(names[0])!r}; expected columns between "
                f"{'commas' if names[0].count(';') else 'commas or tabs'}: convert it, or set --data.separator."
            )
    prefixes = f"{chosen['item']}_list"
    if prefixes in names:
        raise InputError(
            f"{path}: holds prefixes ({prefixes}), not events; give the log that they were made from, one event a row."
        )
    for role in ("user", "item"):
        time = found.get(chosen[role])
        if time is not None and time.is_text:
            shown_value = _first(sample[chosen[role]])
            if role not in given:
                raise InputError(
                    f"{path}: column {chosen[role]!r} would be the {role}, and holds times ({shown_value}); name "
                    f"another: --data.{role}_column NAME."
                )
            notes.append(f"column {chosen[role]} is the {role}, and its values are times ({shown_value})")
    chosen = {role: chosen[role] for role in vars(columns) if role in chosen}
    return Choice(chosen, tuple(role for role in chosen if role not in given), tuple(notes))


def _by_name(
    path: Path,
    names: list[str],
    chosen: dict[str, str],
    found: dict[str, Time],
    sample: pl.DataFrame,
    notes: list[str],
) -> None:
    """Adds the columns that have usual names, and the times."""
    for role in USUAL_NAMES:
        if role in chosen or role == "time":
            continue
        texts = {name for name, time in found.items() if time.is_text} if role in ("user", "item") else set()
        match = usual_column([name for name in names if name not in {*chosen.values(), *texts}], role)
        if match is not None:
            chosen[role] = match
    if chosen.get("item", "").lower() == "parent_asin" and "asin" in map(str.lower, names):
        notes.append("item parent_asin was preferred to asin, which is a colour or size of it")
    if "time" not in chosen:
        left = [name for name in names if name not in chosen.values()]
        _add_time(path, left, chosen, found, sample, notes)


def _add_time(
    path: Path,
    left: list[str],
    chosen: dict[str, str],
    found: dict[str, Time],
    sample: pl.DataFrame,
    notes: list[str],
) -> None:
    """Chooses among the columns that are left the one with the times: of those that agree the finest."""
    usual = usual_column(left, "time")
    times = {
        name: found[name]
        for name in left
        if name in found
        and found[name].form != "time of day"
        and (found[name].is_text or name == usual or _sounds_like_time(name))
    }
    unsure = [name for name in left if name in found and name not in times and not found[name].is_text]
    if usual is not None and usual not in times:
        clock = usual in found
        if not times and not clock:  # small numbers, or words that the parser will name
            chosen["time"] = usual
            return
        if clock:
            other = f"--data.time_column {next(iter(times))}" if times else "--data.time_column NAME"
            raise InputError(f"{path}: column {usual!r} holds times of day; name another: {other}.")
        notes.append(f"column {usual} has the name of a time and holds none, so it was not taken")
        usual = None
    if not times:
        if unsure:
            notes.append(
                f"no time column was found; {', '.join(unsure)} could be times: name one with --data.time_column"
            )
        return
    first = usual or next(iter(times))
    same = [name for name in times if name == first or _agree(times[first], times[name])]
    others = [name for name in times if name not in same]
    if usual is None and others:
        raise InputError(
            f"{path}: no column has the usual name of a time, and {len(times)} hold times: {', '.join(times)}; choose "
            f"one: --data.time_column {first}."
        )
    chosen["time"] = max(same, key=lambda name: (_steps(times[name]), name == first))
    if chosen["time"] != first:
        notes.append(f"time {chosen['time']} is finer than {first}, and was taken")
    if others:
        notes.append(f"further columns hold times and were not taken: {', '.join(others)}")


def _by_position(
    path: Path,
    names: list[str],
    chosen: dict[str, str],
    found: dict[str, Time],
    sample: pl.DataFrame,
    notes: list[str],
    trusted: bool,
) -> None:
    """Adds what nameless columns can only be, and asks for the rest."""
    times = [name for name in names if name in found and name not in chosen.values() and found[name].micros is not None]
    if {"user", "item"} <= chosen.keys():
        if "time" not in chosen and times:
            first = times[0]
            same = [name for name in times if name == first or _agree(found[first], found[name])]
            if len(same) < len(times):
                columns = ", ".join(str(names.index(name)) for name in times)
                raise InputError(
                    f"{path}: columns {columns} hold times; choose one: --data.time_column {names.index(first)}."
                )
            chosen["time"] = max(same, key=lambda name: _steps(found[name]))
        return
    if len(names) == 1:
        return
    texts = [name for name in times if found[name].is_text]
    where = chosen.get("time") or (texts[0] if len(texts) == 1 else None)
    if where is None and times:
        where = times[0] if len(times) == 1 else next((name for name in times if name == names[-1]), None)
    layout = _LAYOUTS.get((len(names), None if where is None else names.index(where)), ())
    placed = dict(zip(layout, names, strict=False))
    free = [name for name in chosen.values() if name not in placed.values()]
    fits = placed and not free and all(placed.get(role, name) == name for role, name in chosen.items())
    if fits and not any(found[name].is_text for name in placed.values() if name in found and name != where):
        rated = "rating" not in placed or _is_rating(sample[placed["rating"]])
        # The ratings of a shop begin with the user in some files and with the item in others.
        swapped = not trusted and "rating" in placed and not {"user", "item"} & chosen.keys()
        swapped = (
            swapped and _in_blocks(sample[placed["user"]]) and _in_more_values(sample, placed["item"], placed["user"])
        )
        if rated and not swapped:
            chosen |= placed
            notes.append("columns without names: user and item are told by their position only")
            return
    rest = [name for name in names if name != where]
    likely = [name for name in rest[1:] if not sample[name].cast(pl.String).str.contains(r"^-?\d+\.\d+$").all()]
    flags = {
        "user": chosen.get("user", rest[0]),
        "item": chosen.get("item", (likely or rest[1:] or rest)[0]),
        "time": chosen.get("time", where),
    }
    words = " ".join(f"--data.{role}_column {names.index(name)}" for role, name in flags.items() if name)
    row = ", ".join(f"{i} = {_first(sample[name])}" for i, name in enumerate(names[:20]))
    raise InputError(
        f"{path}: {len(names)} columns without names; say which is which, as in: lightrec data stats "
        f"{shlex.quote(str(path))} {words}; the first row is {row}."
    )


def _first(values: pl.Series) -> str:
    value = next(iter(values.drop_nulls().head(1).to_list()), None)
    return "''" if value is None else printable(str(value), 40)


def printable(text: str, length: int = 80) -> str:
    """Returns a text as one that a terminal can show, cut to a length."""
    shown = "".join(
        c if c.isprintable() and c != "\ufffd" else c.encode("unicode_escape").decode() for c in text[:length]
    )
    return shown + ("..." if len(text) > length else "")


def _sounds_like_time(name: str) -> bool:
    words = re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    return any(re.fullmatch(_TIMELY, word) for word in words) or any(w in name.lower() for w in ("time", "date"))


def _agree(one: Time, other: Time) -> bool:
    """Says whether two columns hold the same moments, as far as a day and a zone tell them apart."""
    if one.micros is None or other.micros is None:
        return False
    near = ((one.micros - other.micros).abs() <= 39 * 3600 * 1_000_000).drop_nulls()
    return len(near) > 0 and int(near.sum()) >= 0.9 * len(near)


def _steps(time: Time) -> int:
    return 0 if time.micros is None else time.micros.n_unique()


def _is_rating(values: pl.Series) -> bool:
    number = values.cast(pl.Float64, strict=False).drop_nulls()
    return (
        len(number) == len(values.drop_nulls()) and number.n_unique() <= 21 and float(number.abs().max() or 0) <= 1000
    )


def _in_blocks(values: pl.Series) -> bool:
    """Says whether equal values stand together, several of them more than once."""
    return values.rle_id().n_unique() == values.n_unique() < len(values)


def _in_more_values(sample: pl.DataFrame, more: str, fewer: str) -> bool:
    return sample[more].n_unique() > sample[fewer].n_unique() and not _in_blocks(sample[more])


def usual_column(names: list[str], role: str) -> str | None:
    """Returns the column that has the most usual name for user, item, time, rating or title."""
    return next((name for word in USUAL_NAMES[role].split() for name in names if name.lower().strip() == word), None)


def find_column(path: Path, names: list[str], role: str, given: str | int, flag: str | None = None) -> str:
    """Returns the column of a file that a name or a position means.

    Args:
        path: the file.
        names: its columns.
        role: what the column is for.
        given: its name or position.
        flag: the flag that names it; None is that of the role.

    Raises:
        InputError: there is none; lists the columns, the nearest first.
    """
    if str(given) in names:
        return str(given)
    if str(given).isdigit() and int(given) < len(names):
        return names[int(given)]
    near = difflib.get_close_matches(str(given), names, n=1)
    if not near:
        near = [name for name in names if name.lower() == str(given).lower()]
    hint = f"did you mean {near[0]!r}? " if near else ""
    ordered = near + [name for name in names if name not in near]
    flag = flag or f"{role}_column"
    raise InputError(
        f"{path}: no column {given!r} for --data.{flag}; {hint}columns: {', '.join(map(printable, ordered))}."
    )
