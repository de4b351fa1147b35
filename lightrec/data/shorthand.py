"""Options of the data by their short names: `min_rating` for `cleaning.min_rating`, on the command line and in files.

An option of a group (`log`, `cleaning`, `protocol`) or of a built-in part (`split`, `train_windows`) may leave out the
name of that group or part. The short names are read from the classes, and descriptions in older checkpoints use them.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, NamedTuple

from lightrec import extensions
from lightrec.configurable import options
from lightrec.data import rows, splits
from lightrec.data.options import Cleaning, LogFile, Protocol
from lightrec.errors import InputError

GROUPS = {"log": LogFile, "cleaning": Cleaning, "protocol": Protocol}
PARTS = {"split": splits.BUILT_IN, "train_windows": rows.BUILT_IN}
_KINDS = {"split": "splits", "train_windows": "rows"}  # entry-point groups
_DATA = "--data."


class Place(NamedTuple):
    """Where an option belongs."""

    group: str
    """Argument of the data module: a group, or the slot of a part."""
    option: str
    """Its name there."""
    part: type | None = None
    """The part that has it; None in a group."""


@cache
def places() -> dict[str, Place]:
    """Returns the place of each short name."""
    found = {
        field.name: Place(group, field.name) for group, kind in GROUPS.items() for field in dataclasses.fields(kind)
    }
    for slot, built_in in PARTS.items():
        for kind in built_in.values():
            prefix = kind.prefix.removeprefix(_DATA)
            found |= {f"{prefix}{option}": Place(slot, option, kind) for option in options(kind)}
    return found


def names() -> list[str]:
    """Returns the short names as keys of a configuration, `data.min_rating`."""
    return [f"data.{name}" for name in places()]


def full_flag(flag: str) -> str:
    """Returns the full flag of a short one, `--data.cleaning.min_rating`; other flags as they are."""
    place = places().get(flag.removeprefix(_DATA)) if flag.startswith(_DATA) else None
    return flag if place is None else f"{_DATA}{place.group}.{place.option}"


def is_of_part(flag: str) -> bool:
    """Says whether a flag is a short one of a part, which must be read after the part itself."""
    place = places().get(flag.removeprefix(_DATA)) if flag.startswith(_DATA) else None
    return place is not None and place.part is not None


def nested(arguments: dict[str, Any]) -> dict[str, Any]:
    """Puts the short names among arguments of the data module where they belong.

    Raises:
        InputError: an option of a part stands without it, or beside another one.
    """
    out = {name: value for name, value in arguments.items() if name not in places()}
    for name, value in arguments.items():
        place = places().get(name)
        if place is None:
            continue
        if place.part is None:
            out[place.group] = {**(out.get(place.group) or {}), place.option: value}
        elif _is(out.get(place.group), place.part):
            part = out[place.group]
            init_args = {} if isinstance(part, str) else part.get("init_args") or {}
            path = f"{place.part.__module__}.{place.part.__qualname__}"
            out[place.group] = {"class_path": path, "init_args": {**init_args, place.option: value}}
        elif value != options(place.part)[place.option].default:  # a default says nothing: older descriptions hold it
            raise InputError(
                f"{_DATA}{name} ({value}) is an option of {place.part.name}: set {_DATA}{place.group} "
                f"{place.part.name} in the same place."
            )
    return out


def in_config(config: dict[str, Any]) -> dict[str, Any]:
    """Does the same with the key `data` of a configuration file."""
    data = config.get("data")
    return config | {"data": nested(data)} if isinstance(data, dict) else config


def from_checkpoint(arguments: dict[str, Any]) -> dict[str, Any]:
    """Does the same with a description out of a checkpoint, which may be a stranger's.

    Raises:
        InputError: a part in it is neither lightrec's nor that of an installed plug-in.
    """
    out = nested(arguments)
    for slot in PARTS:
        if isinstance(out.get(slot), dict):
            part_class(slot, out[slot].get("class_path"))
    return out


def part_class(slot: str, path: Any) -> type:
    """Imports the class of a part, if lightrec or an installed plug-in declares it.

    Raises:
        InputError: nobody does.
    """
    for kind in PARTS[slot].values():
        if path == f"{kind.__module__}.{kind.__qualname__}":
            return kind
    for plugin in extensions.installed(_KINDS[slot]):
        if path == plugin.path:
            return extensions.load(plugin)
    raise InputError(f"the checkpoint names {path} for {_DATA}{slot}, which nobody declares: install its plug-in.")


def _is(part: Any, kind: type) -> bool:
    """Says whether a configuration of a part, by name or by class, is of this kind."""
    name = part.get("class_path") if isinstance(part, dict) else part
    return name in (kind.name, kind.__qualname__, f"{kind.__module__}.{kind.__qualname__}")
