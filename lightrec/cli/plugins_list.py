"""`lightrec plugins`: what is installed, by whom, and whether it works; `check` and `new` have files of their own."""

from __future__ import annotations

import json
from importlib import import_module

from lightrec import cli, extensions
from lightrec.cli.command_line import CommandLine
from lightrec.cli.options import Options
from lightrec.errors import InputError
from lightrec.extensions import Plugin, Status

_ACTIONS = {
    "list": "[--json] [--check] [--kind models]",
    "check": "NAME [--json] [--set hidden_size=16]",
    "new": "NAME [--kind model] [--path DIR]",
}


def run(line: CommandLine) -> int:
    """Runs `list`, which is also what no word means, `check` or `new`. Returns the exit code.

    Raises:
        InputError: anything that the user can mend.
    """
    argv = list(line.words)
    if argv[:1] in (["-h"], ["--help"]):
        print("\n".join(f"lightrec plugins {action:<5} {flags}" for action, flags in _ACTIONS.items()))
        return 0
    action, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("list", argv)
    if action not in _ACTIONS:
        near = extensions.suggestion(action, list(_ACTIONS)) or f"; choose {', '.join(_ACTIONS)}."
        raise InputError(f"lightrec plugins {action} is unknown{near}")
    if action == "list":
        return _list(rest)
    return import_module(f"lightrec.cli.{'scaffold' if action == 'new' else 'plugins_check'}").run(rest)


def _list(argv: list[str]) -> int:
    parser = Options(
        "lightrec plugins list", description="List what is installed: models, encoders, objectives, data sources."
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--kind", choices=extensions.KINDS, help="of this kind only")
    parser.add_argument(
        "--check", action="store_true", help="import each one, in another process, to see whether it works"
    )
    parser.add_argument(
        "--timeout", type=float, default=extensions.LIMIT, help="seconds that an import may take (%(default)g)"
    )
    options = parser.parse_args(argv)
    found = [plugin for plugin in extensions.everything() if options.kind in (None, plugin.kind)]
    states = [_status(plugin, found) for plugin in found]
    if options.check:
        states = _tried(found, states, options.timeout)
    rows = [
        {
            "name": plugin.name,
            "kind": plugin.kind,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "origin": "built-in" if plugin.builtin else "installed",
            "status": state.word,
            "reason": state.reason,
            "full_name": plugin.full_name,
            "value": plugin.value,
            "location": plugin.location,
        }
        for plugin, state in zip(found, states, strict=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = [["name", "kind", "distribution", "version", "origin", "status"]]
    for row, state in zip(rows, states, strict=True):
        table.append([*(row[column] for column in table[0][:-1]), str(state)])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _status(plugin: Plugin, found: list[Plugin]) -> Status:
    state = extensions.status(plugin, found)
    if state.word == "ok" and plugin.kind == "commands" and plugin.name in cli.COMMANDS:
        return Status("shadowed", f"by lightrec's own command; use {plugin.full_name}")
    return state


def _tried(found: list[Plugin], states: list[Status], timeout: float) -> list[Status]:
    """Adds what the import did to what metadata say, for those that these let pass."""
    states = list(states)
    usable = [i for i, state in enumerate(states) if state.word in ("ok", "shadowed")]
    for i, outcome in zip(usable, extensions.try_all([found[i] for i in usable], timeout), strict=True):
        if outcome.cause:
            states[i] = Status("broken", outcome.cause)
        elif outcome.printed:
            note = f"writes {outcome.printed} bytes when it is imported"
            states[i] = Status(states[i].word, "; ".join(filter(None, (states[i].reason, note))))
    return states
