"""What is known of items: columns of an item file, of a source's companions and of the log, joined into a catalog."""

from __future__ import annotations

import polars as pl

from lightrec.data.readers import Columns, read_table, usual_column
from lightrec.errors import InputError


def read_item_file(path: str, columns: Columns) -> tuple[pl.DataFrame, Columns]:
    """Reads a table with one row per item.

    The id is in the column that is named as in the log, or by a usual name, or the first.

    Args:
        path: the table.
        columns: where the log keeps what; its title may be meant for this table.

    Returns:
        The table with columns `item`, `title` if there is one, and all others; and the columns of the log.
    """
    table = read_table(path)
    names = table.columns
    named = [str(c) for c in (columns.item,) if c is not None and str(c) in names]
    key = next(iter(named), None) or usual_column(names, "item") or names[0]
    title = columns.title
    if title is not None and str(title) in names:
        title, columns = str(title), Columns(columns.user, columns.item, columns.time, columns.rating)
    else:
        title = usual_column([n for n in names if n != key], "title")
    others = [n for n in names if n not in (key, title) and n not in ("item", "title")]
    chosen = [pl.col(key).alias("item"), *([pl.col(title).alias("title")] if title else []), *map(pl.col, others)]
    return table.select(chosen).filter(pl.col("item").is_not_null()).unique("item", keep="last"), columns


def texts_of_items(columns: dict[str, dict[str, str]]) -> pl.DataFrame:
    """Turns {column: {item: text}} into a table."""
    table = pl.DataFrame({"item": []}, schema={"item": pl.String})
    for name, texts in columns.items():
        column = pl.DataFrame(
            {"item": list(texts), name: list(texts.values())}, schema=dict.fromkeys(("item", name), pl.String)
        )
        table = table.join(column, on="item", how="full", coalesce=True)
    return table


def join_catalog(
    items: pl.Series, titles: pl.DataFrame | None, tables: list[pl.DataFrame], item_path: str | None
) -> pl.DataFrame:
    """Joins what is known of the items that are there; a title of an item file goes before one of the log.

    Args:
        items: external ids of the items that are there, in internal order.
        titles: item and title of the log, if it has titles.
        tables: further columns, each with a column `item`.
        item_path: file that the first table was read from, if it was.

    Raises:
        InputError: the item file knows none of the items.
    """
    catalog = items.alias("item").to_frame()
    for table in tables + ([titles] if titles is not None else []):
        new = [name for name in table.columns if name not in catalog.columns]
        if new and len(table):
            catalog = catalog.join(table.select("item", *new), on="item", how="left", maintain_order="left")
    if item_path and not items.is_in(tables[0]["item"].implode()).any():
        raise InputError(
            f"{item_path}: none of the {len(items)} items of the log is in it ({items[0]!r} for one; its ids are like "
            f"{tables[0]['item'][0]!r}); name the id's column as in the log."
        )
    empty = [name for name in catalog.columns[1:] if catalog[name].null_count() == len(catalog)]
    return catalog.drop(empty)
