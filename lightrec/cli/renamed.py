"""Options that have another name now. Whoever types the old one reads the new one, in one line."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightrec.cli.command_line import CommandLine
from lightrec.cli.model_options import Given, class_at, given_options
from lightrec.configurable import options
from lightrec.errors import InputError


@dataclass(frozen=True)
class Renamed:
    """An option, and what took its place."""

    old: str
    new: str
    """Its name now: of the same class, of the class's own part (`optimizer.decay`) or of the model (`model.x`)."""
    values: dict[str, str] = field(default_factory=dict)
    """Values that have another name, too."""
    only_values: bool = False
    """Whether the old option still exists, and only these of its values moved."""


RENAMED = (
    *(
        Renamed(name, f"optimizer.{name}")
        for name in ("learning_rate", "weight_decay", "betas", "warmup_steps", "decay", "momentum")
    ),
    Renamed("head_dtype", "model.head_dtype"),
    Renamed("head_dtype", "model.items.head_dtype"),
    Renamed("use_times", "model.use_times"),
    Renamed("compat", "fidelity", {"algorithm1": "paper"}),
    Renamed("form", "fidelity", {"code": "released"}),
    Renamed("init", "fidelity", {"mamba": "ours"}),
    Renamed("init", "init", {"released": "normal"}, only_values=True),
    Renamed("variant", "fidelity", {"original2018": "released"}, only_values=True),
)


def refuse(line: CommandLine) -> None:
    """Refuses options that have another name now, on the command line and in the configuration files that it names.

    Raises:
        InputError: the old name was given; the message says the new one.
    """
    model = class_at(line, ("model",))
    for given in given_options(line):
        for renamed in RENAMED:
            if new := successor(renamed, given.path, given.kind or (model if len(given.path) == 2 else None), model):
                if renamed.only_values and str(given.value) not in renamed.values:
                    continue
                raise InputError(_sentence(renamed, given, new))


def successor(renamed: Renamed, path: tuple[str, ...], kind: type | None, model: type | None) -> str | None:
    """Returns the path of what took an option's place; None if this is not such an option.

    Args:
        renamed: a row of the table.
        path: of the option that was given.
        kind: the class that it was given to.
        model: the class of the model.
    """
    if path[0] != "model" or path[-1] != renamed.old or kind is None:
        return None
    if renamed.only_values != (renamed.old in options(kind)):
        return None
    of_model = renamed.new.startswith("model.")
    owner, new = (model, renamed.new.removeprefix("model.")) if of_model else (kind, renamed.new)
    if not _has(owner, new):
        return None
    return ".".join((*(("model",) if of_model else path[:-1]), new))


def _has(kind: type | None, name: str) -> bool:
    """Says whether a class has an option, or has it in a part: one whose default is known, or whose class is open."""
    if kind is None:
        return False
    part, dot, below = name.partition(".")
    known = options(kind)
    if not dot or part not in known:
        return name in known
    default = known[part].default
    return part == "items" or below in options(type(default))


def _sentence(renamed: Renamed, given: Given, new: str) -> str:
    old, value = ".".join(given.path), str(given.value)
    now = renamed.values.get(value, value)
    if now != value:
        old, new = f"{old} {value}", f"{new} {now}"
    if given.file:
        return f"key {old!r} in {given.file} is now {new!r}."
    return f"--{old} is now --{new}."
