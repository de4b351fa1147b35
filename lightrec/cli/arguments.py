"""What was typed, made ready for jsonargparse: short names become dotted paths, on the command line and in YAML.

LightningCLI knows a short name only if its class happens to be imported, and an imported plug-in that reuses the name
of a built-in makes it ambiguous for everybody. So names are resolved here, before anything is parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightrec import extensions
from lightrec.errors import InputError

# The word that ends a slot's name says which kind of part goes in: `objective`, `base_encoder`.
_SLOTS = {"model": "models", "encoder": "encoders", "objective": "objectives"}
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass
class Given:
    """The command line with names resolved and configuration files read."""

    args: list[str]
    """For jsonargparse; configuration files stand in it as text."""
    configs: list[dict] = field(default_factory=list)
    """The configuration files, in order."""
    files: list[str] = field(default_factory=list)
    """Their names."""

    def insert(self, name: str, config: dict) -> None:
        """Puts a configuration before all others."""
        self.configs.insert(0, config)
        self.files.insert(0, name)
        self.args.insert(0, f"--config={as_text(config)}")

    def typed(self, flag: str) -> bool:
        """Says whether a flag stands on the command line itself."""
        return any(arg == flag or arg.startswith(f"{flag}=") for arg in self.args)

    def value(self, flag: str) -> str | None:
        """Returns the last value of a flag (`--a.b`), or of its key in the configuration files; None if not given."""
        found = None
        for config in self.configs:
            node: Any = config
            for key in flag.removeprefix("--").split("."):
                node = node.get(key) if isinstance(node, dict) else None
            found = node if node is not None else found
        for i, arg in enumerate(self.args):
            if arg == flag and i + 1 < len(self.args):
                found = self.args[i + 1]
            elif arg.startswith(f"{flag}="):
                found = arg.split("=", 1)[1]
        return found

    def names(self, prefix: str) -> bool:
        """Says whether a flag or key below `prefix` (`model`) was given."""
        flags = (f"--{prefix}", f"--{prefix}=", f"--{prefix}.")
        return any(config.get(prefix) for config in self.configs) or any(
            arg == flags[0] or arg.startswith(flags[1:]) for arg in self.args
        )


def read(argv: list[str]) -> Given:
    """Resolves the names in a command line and in the configuration files that it names.

    Raises:
        InputError: an unknown or broken name; a file that is missing or no YAML.
    """
    given = Given([])
    waiting = list(argv)
    while waiting:
        arg = waiting.pop(0)
        if not arg.startswith("-"):
            given.args.append(arg)
            continue
        flag, joined, value = arg.partition("=")
        if not joined and waiting and not waiting[0].startswith("--"):
            value, joined = waiting.pop(0), " "
        if flag in ("-c", "--config") and joined:
            config = read_yaml(value)
            given.configs.append(config)
            given.files.append(value)
            given.args.append(f"--config={as_text(config)}")
        elif joined:
            given.args += _pair(flag, joined, value)
        else:
            given.args.append(flag)
    return given


def read_yaml(path: str) -> dict:
    """Reads a configuration file and resolves the names in it.

    Raises:
        InputError: it is missing, no YAML, or no mapping; or a name in it is unknown.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"configuration file {path} cannot be read: {reason}.") from error
    try:
        config = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where} is no YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold keys such as model:, data: and trainer:, it holds {type(config).__name__}.")
    return resolved(config)


def as_text(config: dict) -> str:
    """Writes a configuration on one line, as jsonargparse takes it in place of a file."""
    return yaml.safe_dump(config, default_flow_style=True, width=float("inf"), sort_keys=False).strip()


def resolved(node: Any, slot: str = "") -> Any:
    """Replaces short names by dotted paths in a configuration; `slot` is the key that the node stands under."""
    if isinstance(node, dict):
        return {
            key: _dotted(slot, value) if key == "class_path" else resolved(value, str(key))
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [resolved(part, slot.removesuffix("s")) for part in node]
    if isinstance(node, str) and _kind(slot):
        return _dotted(slot, node)
    return node


def _pair(flag: str, joined: str, value: str) -> list[str]:
    keys = flag.lstrip("-").removesuffix("+").split(".")
    slot = keys[-1]
    if slot == "help" and len(keys) > 1:  # --model.help SASRec
        value = _dotted(keys[-2], value)
    elif slot == "class_path":
        value = _dotted(keys[-2] if len(keys) > 1 else "", value)
    elif _kind(slot) and keys[0] == "model":
        if value.endswith(_CONFIG_SUFFIXES):
            value = as_text(read_yaml(value))
        elif not value.lstrip().startswith(("{", "[")):
            value = _dotted(slot, value)
        else:
            value = as_text(resolved(yaml.load(value, _Loader), slot))
    return [f"{flag}={value}"] if joined == "=" else [flag, value]


def _kind(slot: str) -> str | None:
    return _SLOTS.get(slot.rpartition("_")[2])


def _dotted(slot: str, name: Any) -> Any:
    """Returns the dotted path of a short name; paths that are dotted already stay as they are."""
    if not isinstance(name, str) or name in ("null", "None", "") or ("." in name and ":" not in name):
        return name
    kind = _kind(slot)
    if kind:
        return _path(kind, name)
    for kind in _SLOTS.values():  # a slot whose name does not tell, such as a list of parts
        if any(name in (plugin.name, plugin.full_name) for plugin in extensions.installed(kind)):
            return _path(kind, name)
    return name  # a class of Lightning's own, such as a callback: jsonargparse knows those


def _path(kind: str, name: str) -> str:
    plugin = extensions.resolve(kind, name)
    if not plugin.builtin:
        extensions.load(plugin)  # jsonargparse would import it anyway, but not say whose it is if that fails
    return plugin.path


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, 2000-12-31 is the text that was written."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
