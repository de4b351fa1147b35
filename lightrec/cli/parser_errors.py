"""Turns what jsonargparse says about a wrong command line into one line: the flag, what was expected, a near match."""

from __future__ import annotations

import re

from lightrec import extensions
from lightrec.cli.model_options import options_of
from lightrec.data import shorthand

_UNKNOWN_OPTION = re.compile(r"given class_path '([^']+)':\s+Option '([^']+)' is not accepted")
_UNKNOWN_KEY = re.compile(r"(?:Group '([^']+)' does not accept option|^Option) '([^']+)'")
_UNRECOGNISED = re.compile(r"unrecognized arguments: (\S+)")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_NO_SUBCLASS = re.compile(r"Import path (\S+)? ?does not correspond to a subclass of (\w+)")
_NO_IMPORT = re.compile(r"given class_path '([^']+)':\s+((?:No module|module '|cannot import)[^\n]*)")
_KEY = re.compile(r'Parser key "([^"]+)"')
_SUBTYPES = re.compile(r"Subtypes: \[((?:[^\[\]]|\[[^\[\]]*\])*)\]")
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value|\n|$)")
_GIVEN = re.compile(r"(?:Got value|Given value): (.*?)\s*$", re.MULTILINE)
_NESTED = re.compile(r"NestedArg\(key='[^']*', val='?(.*?)'?\)$")
_REQUIRED = re.compile(r"following arguments are required: (\S+)|Key \"([^\"]+)\" is required")


def explain(message: str, flags: list[str], configs: list[tuple[str, dict]]) -> str:
    """Returns the line for a message of jsonargparse.

    Args:
        message: what it said, often over many lines.
        flags: all flags of the command, without dashes: `data.source`.
        configs: the configuration files by name, to say which of them has a wrong key.
    """
    if found := _DENIED.search(message):
        return (
            f"a configuration names {found[1]}, which it may not: class paths are for models, their parts, callbacks "
            "and loggers, never for what touches the system."
        )
    if found := _last(_UNKNOWN_OPTION, message):
        path, option = found.groups()
        known = options_of(path)
        near = extensions.suggestion(option, known) or ";"
        return f"{path.rpartition('.')[2]} has no option {option!r}{near} it has: {', '.join(known) or 'none'}."
    if found := _UNKNOWN_KEY.search(message):
        key = ".".join(filter(None, found.groups()))
        where = next((f" in {name}" for name, config in configs if _has(config, key)), "")
        return f"key {key!r}{where} is unknown{_near(key, flags)}"
    if found := _UNRECOGNISED.search(message):
        flag = found[1].split("=")[0]
        if not flag.startswith("-"):
            return f"word {flag!r} belongs to no flag; a flag takes one value: quote values with spaces."
        return f"flag {flag!r} is unknown{_near(flag.lstrip('-'), flags)}"
    if found := _REQUIRED.search(message):
        key = (found[1] or found[2]).split(".", 1)[-1]
        if key == "model":
            names = ", ".join(plugin.full_name for plugin in extensions.installed("models"))
            return f"--model is missing; choose one of {names}."
        return f"--{key} is missing."
    if found := _last(_NO_IMPORT, message):
        return f"{found[1]} cannot be imported: {found[2]}; see `lightrec plugins list` for what is installed."
    if found := _NO_SUBCLASS.search(message):
        return f"--{_flag(message)} {_value(message)} is not a {found[2]}; see `lightrec plugins list`."
    if _KEY.search(message) and (expected := _expected(message)):
        return f"--{_flag(message)} cannot be {_value(message)}; expected {expected}."
    return " ".join(message.split())[:400]


def _near(key: str, flags: list[str]) -> str:
    flags = [*flags, *shorthand.names()]
    # The last word is what people misspell; names of the same group are the better guess.
    group = key.rpartition(".")[0]
    same = [name for name in flags if name.rpartition(".")[0] == group]
    near = extensions.suggestion(key, same) or extensions.suggestion(key, flags)
    return near.replace("did you mean ", "did you mean --").replace(" or ", " or --") or "; see --help for all."


def _has(config: dict, key: str) -> bool:
    node = config
    for word in key.split("."):
        if not isinstance(node, dict) or word not in node:
            return False
        node = node[word]
    return True


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    return next(iter(reversed(list(pattern.finditer(text)))), None)


def _flag(message: str) -> str:
    return ".".join(dict.fromkeys(_KEY.findall(message)))


def _value(message: str) -> str:
    values = _GIVEN.findall(message)
    if not values:
        return "that"
    value = values[0].strip()
    nested = _NESTED.match(value)
    return repr(nested[1] if nested else value)[:120]


def _expected(message: str) -> str:
    inner = message[_last(_KEY, message).start() :]
    union = _SUBTYPES.search(inner)
    text = union[1] if union else (_EXPECTED.search(inner) or [None, ""])[1]
    text = re.sub(r"<class '([^']+)'>", lambda m: m[1].rpartition(".")[2], text).replace("typing.", "")
    return re.sub(r"Literal\[([^\]]*)\]", r"one of \1", text).replace("NoneType", "null").strip().rstrip(".")
