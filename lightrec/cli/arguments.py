"""What was typed, made ready for jsonargparse: short names become dotted paths, on the command line and in YAML.

LightningCLI knows a short name only if its class happens to be imported, and an imported plug-in that reuses the name
of a built-in makes it ambiguous for everybody. So names are resolved here, before anything is parsed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lightrec import extensions
from lightrec.cli.command_line import CommandLine, Flag
from lightrec.data import shorthand
from lightrec.errors import InputError

# The word that ends a slot's name says which kind of part goes in: `objective`, `base_encoder`.
_SLOTS = {
    "model": "models",
    "encoder": "encoders",
    "items": "items",
    "objective": "objectives",
    "optimizer": "optimizers",
    "search": "searches",
    "evaluation": "evaluations",
    "split": "splits",
    "windows": "rows",
}
_PARTS = ("model", "search", "evaluation", "data")  # the flags that take parts, or hold them
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def resolve(line: CommandLine) -> CommandLine:
    """Resolves the names in a command line and reads the configuration files that it names.

    Raises:
        InputError: a name is unknown or broken; a file is missing or is not YAML.
    """
    flags = sorted(line.flags, key=lambda flag: shorthand.is_of_part(flag.name))  # an option comes after its part
    return replace(line, flags=tuple(_resolve(replace(f, name=shorthand.full_flag(f.name))) for f in flags))


def for_parser(line: CommandLine) -> list[str]:
    """Returns the words for jsonargparse; configuration files stand in them as text."""
    words: list[str] = []
    for flag in _judged(line):
        if flag.config is not None:
            words.append(f"--config={as_text(flag.config)}")
        elif not flag.name:
            words.append(flag.value or "")
        elif flag.value is None:
            words.append(flag.name)
        else:
            words += [f"{flag.name}={flag.value}"] if flag.joined == "=" else [flag.name, flag.value]
    return words


def _judged(line: CommandLine) -> list[Flag]:
    """Names the class of `--evaluation.ks` and the like, and makes a switch of `--evaluation.per_user FILE`."""
    default = {"class_path": _dotted("evaluation", "RankingEvaluation")}
    flags: list[Flag] = []
    named = False
    for flag in line.flags:
        about = flag.config and flag.config.get("evaluation")
        if flag.name.startswith("--evaluation.") and not flag.name.endswith(".help") and not named:
            flags.append(Flag("--evaluation", default["class_path"]))
        named = named or bool(about) or flag.name.startswith("--evaluation")
        if isinstance(about, dict):
            about = about if "class_path" in about else default | {"init_args": about}
            if line.ranks:
                about = about | {"init_args": {**(about.get("init_args") or {}), "per_user": True}}
            flag = replace(flag, config={**flag.config, "evaluation": about})
        elif flag.name == "--evaluation.per_user" and line.ranks:
            flag = replace(flag, value="true")
        flags.append(flag)
    return flags


def read_yaml(path: str) -> dict:
    """Reads a configuration file and resolves the names in it.

    Raises:
        InputError: it is missing, is not YAML or is not a mapping; or a name in it is unknown.
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
        raise InputError(f"{path}{where} is not YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold keys such as model:, data: and trainer:, it holds {type(config).__name__}.")
    return resolved(shorthand.in_config(config))


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


def _resolve(flag: Flag) -> Flag:
    name, value = flag.name, flag.value
    if not name or value is None:
        return flag
    if name == "--config":
        return replace(flag, config=read_yaml(value))
    keys = name.lstrip("-").removesuffix("+").split(".")
    slot = keys[-1]
    if slot == "help" and len(keys) > 1:  # --model.help SASRec
        value = _dotted(keys[-2], value)
    elif slot == "class_path":
        value = _dotted(keys[-2] if len(keys) > 1 else "", value)
    elif _kind(slot) and keys[0] in _PARTS:
        if value.endswith(_CONFIG_SUFFIXES):
            value = as_text(read_yaml(value))
        elif not value.lstrip().startswith(("{", "[")):
            value = _dotted(slot, value)
        else:
            value = as_text(resolved(yaml.load(value, _Loader), slot))
    return replace(flag, value=value)


def _kind(slot: str) -> str | None:
    return None if slot.startswith("num_") else _SLOTS.get(slot.rpartition("_")[2])  # num_items counts


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
