"""The options of a model and of its parts: which there are, and which somebody gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightrec import extensions
from lightrec.cli.command_line import CommandLine
from lightrec.configurable import Configurable, options
from lightrec.errors import InputError

# What the data tell a model, and what to do instead of telling it yourself.
TOLD_BY_DATA = {"num_items": "leave it out", "max_length": "use --data.max_length"}
_KINDS = {"objective": "objectives", "encoder": "encoders", "items": "items", "search": "searches"}


@dataclass(frozen=True)
class Given:
    """An option of the model, or of one of its parts, that somebody gave a value."""

    path: tuple[str, ...]
    """`("model", "objective", "head_dtype")`."""
    kind: type | None
    """The class that it is given to; None if that cannot be told."""
    value: Any
    file: str
    """The configuration file; empty for a flag."""


def options_of(class_path: str) -> list[str]:
    """Returns the options of a class by its dotted path, those that it passes on included; none if it is not there."""
    try:
        names = list(options(extensions.import_path(class_path)))
    except (ImportError, AttributeError, ValueError):
        return []
    return [name for name in names if name not in TOLD_BY_DATA]


def given_options(line: CommandLine) -> list[Given]:
    """Returns what was given to the model and its parts, by flags and in configuration files."""
    return [*_flags(line), *_keys(line)]


def check_classes(line: CommandLine) -> None:
    """Refuses a flag of a part whose class is not known, and says which classes have it.

    Raises:
        InputError: such a flag, where neither the command line nor the model's default names the class.
    """
    model = class_at(line, ("model",))
    known = options(model) if model else {}
    for given in _flags(line):
        part = given.path[1]
        if len(given.path) != 3 or given.kind is not None or part not in known or given.path[2] == "help":
            continue
        if isinstance(known[part].default, Configurable):  # jsonargparse begins with it
            continue
        flag, name = f"--{'.'.join(given.path)}", given.path[2]
        having = _classes_with(part, name)
        if having:
            raise InputError(
                f"{flag} needs the class of the {part}: add --model.{part} NAME; {name} is an option of "
                f"{', '.join(having)}."
            )


def _classes_with(part: str, option: str) -> list[str]:
    kind = _KINDS.get(part.rpartition("_")[2])
    builtins = [plugin for plugin in extensions.installed(kind) if plugin.builtin] if kind else []
    return [plugin.name for plugin in builtins if option in options(extensions.load(plugin))]


def class_at(line: CommandLine, path: tuple[str, ...]) -> type | None:
    """Returns the class that was named at a path, `("model", "objective")`; None if none was, or it is not there."""
    return _class(_at(line, path))


def _flags(line: CommandLine) -> Iterator[Given]:
    for flag in line.flags:
        keys = _short(flag.name.removeprefix("--").split("."))
        if keys[0] == "model" and len(keys) > 1 and flag.value is not None:
            yield Given(keys, class_at(line, keys[:-1]), flag.value, "")


def _keys(line: CommandLine) -> Iterator[Given]:
    def below(node: Any, path: tuple[str, ...], file: str) -> Iterator[Given]:
        if isinstance(node, list):
            for part in node:
                yield from below(part, path, file)
        if not isinstance(node, dict):
            return
        kind = _class(node) or (class_at(line, path) if path else None)
        arguments = node.get("init_args", {}) if "class_path" in node or "init_args" in node else node
        for key, value in arguments.items() if isinstance(arguments, dict) else ():
            if path:
                yield Given((*path, str(key)), kind, value, file)
            yield from below(value, (*path, str(key)), file)

    for file, config in line.configs:
        yield from below({"model": config.get("model")}, (), file)


def _at(line: CommandLine, path: tuple[str, ...]) -> Any:
    """Returns what was given at a path: by a flag, else in a configuration file."""
    found = None
    for _, config in line.configs:
        node: Any = config
        for key in path:
            node = node.get(key, (node.get("init_args") or {}).get(key)) if isinstance(node, dict) else None
        found = node if node is not None else found
    for flag in line.flags:
        keys = _short(flag.name.removeprefix("--").split("."))
        if keys == path and flag.value is not None:
            found = flag.value
    return found


def _short(keys: list[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if key not in ("init_args", "class_path"))


def _class(given: Any) -> type | None:
    """Returns the class that a dotted path, or a configuration with a class path, names."""
    path = given.get("class_path") if isinstance(given, dict) else given
    if not isinstance(path, str) or "." not in path:
        return None
    try:
        kind = extensions.import_path(path)
    except Exception:  # whatever a module does at import; the parser says what is wrong
        return None
    return kind if isinstance(kind, type) else None
