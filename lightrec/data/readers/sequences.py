"""Lines of a user and the user's items, and lines of items only."""

from __future__ import annotations

import shlex
from pathlib import Path

import polars as pl

from lightrec.data.readers.columns import USUAL_NAMES, Columns, printable
from lightrec.data.readers.faults import OnError, collect, skip_advice
from lightrec.data.readers.formats import Scan
from lightrec.errors import InputError


def read_histories(path: Path, on_error: OnError) -> tuple[pl.DataFrame, int]:
    """Reads lines of items; each line is a history, and its number is the user.

    Returns:
        user, item and row; and how many lines were left out.
    """
    scan = Scan(path, "histories", Columns(), header=False)
    lines, skipped = collect(scan, {"line": "line"}, on_error)
    table = lines.select(
        user=(pl.col("row") + scan.first_line).cast(pl.String), item=pl.col("line").str.extract_all(r"\S+")
    )
    table = table.filter(pl.col("item").list.len() > 0)
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction; expected items in each line.")
    return table.explode("item").with_row_index("row"), skipped


def read_sequence(path: Path, on_error: OnError, guessed: bool) -> tuple[pl.DataFrame, int]:
    """Reads lines of a user and one or more of the user's items, in order.

    Args:
        path: the file.
        on_error: what becomes of a line of one word.
        guessed: nobody said that the file is such a one, so that what it could be as well is refused.

    Returns:
        user, item and row; and how many lines were left out.

    Raises:
        InputError: no event, a line of one word, or lines that may be histories of items only.
    """
    scan = Scan(path, "sequence", Columns(), header=False)
    lines, skipped = collect(scan, {"line": "line"}, on_error)
    words = pl.col("line").str.extract_all(r"\S+")
    table = lines.select("row", user=words.list.first(), item=words.list.slice(1)).filter(pl.col("user").is_not_null())
    if not len(table):
        raise InputError(f"{path}: the log holds no interaction; expected a user and items in each line.")
    usual = {role: set(USUAL_NAMES[role].split()) for role in ("user", "item")}
    first, items = table["user"][0], table["item"][0].to_list()
    if first.lower() in usual["user"] and items and items[0].lower() in usual["item"]:
        table = table[1:]
    empty = table["item"].list.len() == 0
    count = int(empty.sum())
    if count and on_error == "raise":
        number, user = table.row(int(empty.arg_max()))[:2]
        advice = skip_advice(f"{count:,} of {len(table):,} rows", count, len(table))
        raise InputError(
            f"{path}: line {number + scan.first_line} cannot be read ({printable(user)!r}): expected a user and one or "
            f"more items; mend it, or {advice}."
        )
    table = table.filter(~empty) if count else table
    if guessed:
        _refuse_histories(path, table)
    return table.select("user", "item").explode("item").with_row_index("row"), skipped + count


def _refuse_histories(path: Path, table: pl.DataFrame) -> None:
    """Refuses lines whose first word may be an item, not a user.

    Pairs of a user and an item repeat the user. Lines of histories do not, and their users are not items. A file whose
    first words count up numbers its users.

    Raises:
        InputError: the lines are of several lengths, and their first words repeat or are items.
    """
    if not len(table) or (table["item"].list.len() <= 1).all():
        return
    user = table["user"]
    number = user.cast(pl.Int64, strict=False)
    if number.null_count() == 0 and len(number) > 1 and bool((number.diff().drop_nulls() > 0).all()):
        return
    repeated = len(user) - user.n_unique()
    items = table["item"].explode().drop_nulls().unique()
    shared = int(user.unique().is_in(items.implode()).sum())
    apart = user.rle_id().n_unique() > user.n_unique()
    if not (apart or (shared and 2 * shared >= user.n_unique())):
        return
    why = (
        f"{repeated:,} of {len(table):,} lines begin with a word that begins another line too"
        if apart
        else f"{shared:,} of {user.n_unique():,} first words are items of other lines"
    )
    command = f"lightrec data stats {shlex.quote(str(path))}"
    raise InputError(
        f"{path}: the first word of a line may be a user or an item: {why}; if each line is a history of items: "
        f"{command} --data.format histories; if the first word is the user: {command} --data.format sequence."
    )
