"""Which column holds what: as it was said, else by its usual name, else by its position."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from lightrec.errors import InputError

USUAL_NAMES = {
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


def is_header(rows: list[list[str]], columns: Columns) -> bool:
    """Decides whether the first of some rows holds names.

    It does if a cell is a usual name or one that was asked for, and does not if a cell is a number or a date. Else it
    does if the second row has a number or a date, or if columns were not asked for by position.
    """
    first = [cell.strip() for cell in rows[0]]
    given = [str(c) for c in vars(columns).values() if c is not None]
    usual = {word for words in USUAL_NAMES.values() for word in words.split()}
    if any(cell.lower() in usual or (cell in given and not cell.isdigit()) for cell in first):
        return True
    if any(map(_is_value, first)):
        return False
    return any(map(_is_value, rows[1] if len(rows) > 1 else ())) or not given or not all(c.isdigit() for c in given)


def _is_value(cell: str) -> bool:
    return re.fullmatch(r"\s*([-+]?\d+(\.\d*)?([eE][-+]?\d+)?|\d{4}-\d\d-\d\d.*)\s*", cell) is not None


def choose_columns(
    path: Path, names: list[str], columns: Columns, has_header: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Maps user, item, time, rating, title to column names of the file; says which of them were guessed."""
    given = {role: value for role, value in vars(columns).items() if value is not None}
    chosen = {role: find_column(path, names, role, value) for role, value in given.items()}
    if not has_header and len(names) not in _WITHOUT_NAMES and not {"user", "item"} <= set(given):
        raise InputError(
            f"{path}: {len(names)} columns without names; say which is which: --data.user_column 0 "
            "--data.item_column 1."
        )
    for position, role in enumerate(_WITHOUT_NAMES.get(len(names), ()) if not has_header else ()):
        if role not in chosen and names[position] not in chosen.values():
            chosen[role] = names[position]
    for role in USUAL_NAMES if has_header else ():
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
    raise InputError(f"{path}: no column {given!r} for --data.{flag}; {hint}columns: {', '.join(ordered)}.")
