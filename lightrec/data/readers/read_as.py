"""What a log was read as: made by the reader, kept with the prepared log, and printed by one function."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

_SIGNS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes", " ": "blanks"}


@dataclass(frozen=True)
class ReadAs:
    """What a log was read as; primitives."""

    format: str
    separator: str | None = None
    encoding: str | None = None
    """None for what is not text."""
    header: bool | None = None
    """Whether a table has column names; None for what is not a table."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """Column of the file for each role."""
    values: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """First values of each of these columns, by role."""
    unused: list[str] = dataclasses.field(default_factory=list)
    time_unit: str | None = None
    """How times are written; None where there is no time."""
    time_zone: str | None = None
    first_event: dict[str, Any] = dataclasses.field(default_factory=dict)
    """User, item and time of the first row."""
    guessed: list[str] = dataclasses.field(default_factory=list)
    """What nobody named: roles, and `format`."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What should be known, a sentence each."""

    def with_notes(self, *notes: str) -> ReadAs:
        """Returns the same with further notes."""
        return dataclasses.replace(self, notes=[*self.notes, *notes])

    def primitives(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> ReadAs:
        """Returns what the record of a prepared log says, which may be of an older version that knew less."""
        if "read_as" in meta:
            return cls(**meta["read_as"])
        return cls(
            format=str(meta.get("format_read")),
            columns=dict(meta.get("columns", {})),
            time_unit=meta.get("time_unit"),
            guessed=list(meta.get("guessed_columns", [])),
        )

    def lines(self) -> list[str]:
        """Says it in a line, and each note in one of its own."""
        form = self.format
        if self.separator:
            form += f" with {_SIGNS.get(self.separator, self.separator)}"
        if self.encoding and self.encoding.lower().replace("_", "-") != "utf-8":
            form += f" in {self.encoding}"
        if self.header is not None:
            form += ", with header" if self.header else ", without header"
        roles = []
        for role, name in self.columns.items():
            shown = ", ".join(self.values.get(role, []))
            more = f" ({shown})" if shown else ""
            if role == "time" and self.time_unit:
                zone = f", {self.time_zone}" if self.time_zone else ""
                more = f" ({self.time_unit}{zone}{': ' + shown if shown else ''})"
            roles.append(f"{role} {name}{more}")
        if "time" not in self.columns:
            roles.append("no time")
        parts = [form, ", ".join(roles)]
        if self.unused:
            rest = len(self.unused) - 12
            parts.append(f"not used: {', '.join(self.unused[:12])}" + (f" and {rest} more" if rest > 0 else ""))
        if self.first_event:
            parts.append(f"first event: {', '.join(str(value) for value in self.first_event.values())}")
        if self.guessed:
            parts.append(f"guessed: {', '.join(self.guessed)}")
        return [f"read as: {'; '.join(parts)}", *(f"note: {note}" for note in self.notes)]


def moment(seconds: int | None, micros: int = 0) -> str | None:
    """Returns a time as ISO text; None where there is none."""
    if seconds is None:
        return None
    try:
        time = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=micros)
    except (OverflowError, OSError, ValueError):
        return str(seconds)
    return time.isoformat(timespec="milliseconds" if micros else "seconds").removesuffix("+00:00")
