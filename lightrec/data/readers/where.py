"""Conditions on rows: `event=click`, `event!=dislike`, `event=view,cart`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from lightrec.errors import InputError


@dataclass(frozen=True)
class Condition:
    """Keeps the rows whose column has one of some values, or drops them."""

    column: str
    values: tuple[str, ...]
    drop: bool = False

    @staticmethod
    def parse(text: str) -> Condition:
        """Reads `column=value,value` or `column!=value`.

        Raises:
            InputError: it is not such a text.
        """
        found = re.fullmatch(r"\s*(.+?)\s*(!?=)\s*(.*?)\s*", str(text))
        if found is None:
            raise InputError(f"--data.where {text!r} is not a condition; write COLUMN=VALUE,VALUE or COLUMN!=VALUE.")
        return Condition(found[1], tuple(value.strip() for value in found[3].split(",")), found[2] == "!=")

    def keep(self, table: pl.DataFrame, name: str) -> pl.DataFrame:
        """Filters a table by its column `name`, and drops that column; numbers agree whatever their form."""
        text = pl.col(name).cast(pl.String).str.strip_chars().fill_null("")
        inside = text.is_in(self.values)
        numbers = [float(value) for value in self.values if re.fullmatch(r"-?\d+(\.\d+)?", value)]
        if numbers:
            inside = inside | text.cast(pl.Float64, strict=False).is_in(numbers).fill_null(False)
        return table.filter(~inside if self.drop else inside).drop(name)
