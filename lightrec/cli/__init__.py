"""The command line. This file answers `--help` and `--version` and picks a command; none of that imports torch."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

import lightrec
from lightrec import extensions
from lightrec.cli import allocator
from lightrec.cli.command_line import CommandLine
from lightrec.errors import InputError

# name: module with `run(line) -> exit code`, what it does, and an example.
COMMANDS = {
    "fit": ("training", "train a model, keep the best checkpoint", "--model SASRec --data.source ml-100k"),
    "validate": ("training", "measure a checkpoint on the validation part", "--ckpt_path F"),
    "test": ("training", "measure a checkpoint on the test part", "--ckpt_path F"),
    "predict": ("training", "write recommendations for all users to a file", "--ckpt_path F --output F.parquet"),
    "compare": ("compare", "results side by side, if one protocol made them", "RUN RUN | NAME=RUN,RUN ..."),
    "recommend": ("recommend", "show recommendations for a few items, by title", "F --items a,b,c -k 10"),
    "data": ("data", "list, prepare and describe data", "list | prepare | stats"),
    "kernels": ("kernels", "explain what computes each operation here", "[--json] [--kernel NAME]"),
    "plugins": ("plugins_list", "list, check and begin plug-ins", "list | check NAME | new NAME"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: words after `lightrec`; None takes the process's own.

    Returns:
        The exit code: 0; 2 for what the user can mend, told in one line; 130 after Ctrl-C.
    """
    own_process = argv is None
    if own_process:
        # Read once, when torch loads its OpenMP: idle threads that spin slow everything down on cores that are shared.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = sys.argv[1:] if own_process else list(argv)
    try:
        code = _run(argv, own_process)
        sys.stdout.flush()  # a reader that left, or a full disk, is to be noticed here and not while the process ends
        return code
    except InputError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was being trained, so there is nothing to resume.", 130)
    except BrokenPipeError:  # `lightrec ... | head`
        _silence()
        return 1
    except SystemExit as stop:  # argparse, after it has printed its help or its complaint
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if _disk_full(error):
            _silence()
            return _fail("no space left on the disk: free some, or choose another folder; earlier files are intact.", 2)
        raise


def _run(argv: list[str], own_process: bool) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"lightrec {lightrec.__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    if command in COMMANDS:
        line = CommandLine.read(command, rest)
        if command == "fit" and own_process and not line.keeps_allocator:
            allocator.tune()
        return import_module(f"lightrec.cli.{COMMANDS[command][0]}").run(line) or 0
    extra = {name: p for p in extensions.installed("commands") for name in (p.name, p.full_name)}
    if command in extra:
        return extensions.load(extensions.resolve("commands", command))(rest) or 0
    known = [*COMMANDS, *extra]
    what = "option" if command.startswith("-") else "command"
    raise InputError(
        f"{what} {command!r} is unknown{extensions.suggestion(command, known) or ';'} commands: {', '.join(known)}."
    )


def _help() -> str:
    lines = [
        f"lightrec {lightrec.__version__}: sequential recommendation on PyTorch Lightning",
        "",
        "usage: lightrec COMMAND ...          lightrec COMMAND --help for its options",
        "",
        "commands:",
    ]
    lines += [f"  {name:<10} {what:<46} {example}" for name, (_, what, example) in COMMANDS.items()]
    found = extensions.installed()
    lines += [f"  {p.name:<10} {extensions.summary(p)} ({p.distribution})" for p in found if p.kind == "commands"]
    for kind, title in (("models", "models"), ("datasets", "data sources")):
        named = [p for p in found if p.kind == kind]
        width = max((len(p.full_name) for p in named), default=0)
        lines += ["", f"{title}:"]
        for plugin in named:
            home = "" if plugin.builtin else f" ({plugin.distribution} {plugin.version})"
            lines.append(f"  {plugin.full_name:<{width}}  {extensions.summary(plugin)}{home}")
    lines += ["", "try: lightrec fit --model SASRec --data.source ml-100k"]
    return "\n".join(lines)


def _fail(message: str, code: int) -> int:
    print(f"lightrec: {' '.join(message.split())}", file=sys.stderr)
    return code


def _silence() -> None:
    """Lets what is still buffered for standard output go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is no file, as in a notebook
        return


def _disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
