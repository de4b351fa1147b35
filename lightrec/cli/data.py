"""`lightrec data list | prepare | stats`: which data there are, what becomes of them, and what they look like."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightrec import extensions
from lightrec.cli.command_line import CommandLine
from lightrec.cli.options import Options
from lightrec.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from lightrec.data.datamodule import SequenceDataModule

_PERCENTILES = (0, 10, 25, 50, 75, 90, 99, 100)
_ACTIONS = ("list", "prepare", "stats")


def run(line: CommandLine) -> int:
    """Runs one of the three; returns the exit code.

    Raises:
        InputError: anything that the user can mend.
    """
    argv = list(line.words)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: lightrec data list")
        print("       lightrec data prepare | stats  NAME or FILE  [--json]  [--data.split ...: the flags of fit]")
        return 0
    action, rest = argv[0], argv[1:]
    if action not in _ACTIONS:
        near = extensions.suggestion(action, list(_ACTIONS)) or f"; choose {', '.join(_ACTIONS)}."
        raise InputError(f"lightrec data {action} is unknown{near}")
    if action == "list":
        return _list(rest)
    return _describe(action, rest)


def _list(argv: list[str]) -> int:
    Options("lightrec data list", "List known data sets; nothing is downloaded.").parse_args(argv)
    found = extensions.installed("datasets")
    for plugin in found:
        state = extensions.status(plugin, found)
        if not plugin.builtin:  # whose module may hang, or print: its docstring has to do
            said = extensions.summary(plugin) if state.word == "ok" else state
            print(f"{plugin.full_name}: {said} ({plugin.distribution} {plugin.version})")
            continue
        try:
            source = extensions.load(plugin)()
        except Exception as error:  # one broken source must not hide the others
            print(f"{plugin.full_name}: broken: {error}")
            continue
        print(f"{plugin.full_name}: {source.title}; max_length {source.max_length}")
        for line in (source.note, source.licence):
            if line:
                print(f"    {line}")
    print("\nyour own: lightrec fit --data.path FILE (csv, tsv, dat, parquet, JSON lines, .inter, sequences)")
    return 0


def _describe(action: str, argv: list[str]) -> int:
    from lightrec.cli.log_filter import quiet
    from lightrec.data.readers import ReadAs

    quiet()
    as_json = "--json" in argv
    data = _data_module(action, [arg for arg in argv if arg != "--json"])
    began = time.monotonic()
    prepared = data.prepared
    if action == "prepare":
        seconds = time.monotonic() - began
        size = f"{data.num_users:,} users, {data.num_items:,} items, {len(prepared.items):,} events"
        print(f"{prepared.meta['title']}: {size}; {seconds:.1f} s; {prepared.path}")
        print(*ReadAs.from_meta(prepared.meta).lines(), sep="\n")
        return 0
    facts = statistics(data)
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        if name == "read as":
            print(*ReadAs(**value).lines(), sep="\n")
        else:
            _print(name, value)
    return 0


def _data_module(action: str, argv: list[str]) -> SequenceDataModule:
    """Builds the data module from the flags that `fit` has, or from a bare name or file."""
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    from lightrec.cli import arguments, parser_errors
    from lightrec.data.datamodule import SequenceDataModule

    if argv and not argv[0].startswith("-"):
        known = [plugin.name for plugin in extensions.installed("datasets")]
        flag = "--data.path" if os.path.exists(argv[0]) and argv[0] not in known else "--data.source"
        argv = [flag, *argv]
    parser = ArgumentParser(f"lightrec data {action}", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_class_arguments(SequenceDataModule, "data")
    line = arguments.resolve(CommandLine.read("data", argv))
    # A recipe for fit will do: what it says of model and trainer is not for us.
    flags = [f if f.config is None else replace(f, config={"data": f.config.get("data", {})}) for f in line.flags]
    line = replace(line, flags=tuple(flags))
    try:
        config = parser.parse_args(arguments.for_parser(line))
    except ArgumentError as error:
        raise InputError(parser_errors.explain(str(error), list(parser.get_defaults().keys()), line.configs)) from error
    return parser.instantiate(config).data


def statistics(data: SequenceDataModule) -> dict[str, Any]:
    """Describes data in numbers.

    Returns:
        What the log was read as, counts at every step of the preparation, sparsity, date range, percentiles of history
        length and of events per item, share of events with the time of the one before, in whole seconds and in float32
        too, licence and hashes; primitives.
    """
    import numpy as np

    from lightrec.data.readers import ReadAs, in_float32
    from lightrec.data.splits import count_seen

    prepared, meta = data.prepared, data.prepared.meta
    items, offsets = np.asarray(prepared.items), np.asarray(prepared.offsets)
    lengths = np.diff(offsets)
    popularity = np.sort(np.bincount(items, minlength=data.num_items + 1)[1:])
    head = int(np.searchsorted(np.cumsum(popularity[::-1]), len(items) / 2)) + 1
    facts: dict[str, Any] = {
        "title": meta["title"],
        "read as": ReadAs.from_meta(meta).primitives(),
        "counts": meta["counts"],
        "skipped rows": meta["skipped_rows"],
        "users": data.num_users,
        "items": data.num_items,
        "events": len(items),
        "sparsity": 1.0 - len(items) / (data.num_users * data.num_items),
        "events per user": _percentiles(lengths),
        "events per item": _percentiles(popularity),
        "half of all events": f"on {head:,} items ({head / data.num_items:.1%})",
    }
    if prepared.times is not None:
        times = np.asarray(prepared.times)
        inside = np.ones(len(times), bool)
        inside[offsets[:-1]] = False  # the first event of a user has none before it
        rounded = in_float32(times, 0, meta["time_unit"])
        equal, level = (np.diff(t, prepend=t[:1])[inside] == 0 for t in (times, rounded))
        days = [np.datetime64(int(t), "s").item().date().isoformat() for t in (times.min(), times.max())]
        facts["from, to"] = days
        whole = float(equal.mean()) if len(equal) else 0.0
        facts["share of equal timestamps"] = meta.get("equal_times", whole)
        facts["the same in seconds"] = whole
        facts["the same in float32"] = float(level.mean()) if len(equal) else 0.0
    else:
        facts["from, to"] = None
        facts["share of equal timestamps"] = facts["the same in float32"] = None
    parts = {name: len(getattr(data.parts, name)) for name in ("train", "val", "test")}
    test = data.parts.test
    targets = int((test.target_end - test.history_end).sum())
    seen = count_seen(prepared.items, test, data.num_items)
    advice = "; they cannot be hit unless --data.exclude_seen is false" if data.exclude_seen and seen else ""
    facts |= {
        "users in parts": parts,
        "test targets seen before": f"{seen:,} of {targets:,} ({seen / max(targets, 1):.1%}){advice}",
        "max_length": data.max_length,
        "licence": meta["licence"],
        "data sha256": meta["data_sha256"],
        "targets sha256": data.protocol()["targets_sha256"],
        "prepared in": str(prepared.path),
    }
    return facts


def _percentiles(values: np.ndarray) -> dict[str, float]:
    import numpy as np

    found = {f"p{p}": float(np.percentile(values, p)) for p in _PERCENTILES}
    return {"mean": round(float(values.mean()), 2), **found}


def _print(name: str, value: Any) -> None:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for step in value:
            step = dict(step)
            label = step.pop("step", "")
            print(f"{name + ': ' + label:<28} {_text(step)}")
        return
    print(f"{name:<28} {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) and abs(value) > 1 else f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "not known" if value is None else str(value)
