"""Which implementation of an op runs: names, reasons, and four ways to choose.

A kernel is chosen by the `kernel=` argument, else by `with use_kernel(...)` (which is what `--kernel` does), else by
the environment variable `LIGHTREC_KERNEL` (read once, at import), else by priority among those that accept. A kernel
asked for by name that cannot run raises with its reason; an automatic choice passes on to the next.

The argument names a kernel of its op. Context and environment speak for all ops: `native` means the kernel of that
name in each op that has one and leaves the other ops alone; `selective_scan=native,linear_cross_entropy=torch` names
ops; both forms go together. A name that no op knows raises, with near matches.

A kernel that can run where nobody would want it to, such as Triton's interpreter on a CPU, says so with `only_by_name`:
then no automatic choice takes it, and whoever asks for it by name gets it.

A distribution brings a kernel by an entry point of the group `lightrec.kernels` whose value is a function without
arguments returning a `Kernel` or a list of them. Entry points are read at the first choice; one that fails is recorded
with its reason and disturbs nobody else, and one that hangs is left behind after a while. `LIGHTREC_PLUGINS` restricts
them as it does all plug-ins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from lightrec import extensions
from lightrec.errors import InputError

API_VERSION = 1
VARIABLE = "LIGHTREC_KERNEL"

_OWN_OPS = tuple(
    f"lightrec.ops.{name}" for name in ("selective_scan", "hyperbolic_selective_scan", "linear_cross_entropy")
)
_FROM_ENVIRONMENT = os.environ.get(VARIABLE, "").strip() or None
_chosen: ContextVar[str | None] = ContextVar("lightrec_kernel", default=None)
_kernels: dict[tuple[str, str], Kernel] = {}
_usual: dict[str, Callable[[str], Any]] = {}
_owners: dict[tuple[str, str], str] = {}
_broken: dict[str, str] = {}
_loaded = False


class KernelRefused(InputError, RuntimeError):
    """A kernel asked for by name cannot run this call, or no kernel can."""


def _wanted_always(spec: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op.

    Args:
        op: the op's name, `selective_scan`.
        name: what a user calls the kernel.
        forward: the computation; its signature belongs to the op and is written in the op's file.
        backward: its gradient, or None where autograd differentiates `forward`.
        accepts: takes the op's spec (shapes' constants, dtypes and flags; no tensor) and returns None or the reason why
            the kernel cannot run. It should not raise; what it raises counts as the reason.
        priority: the highest that accepts runs; reference -100, torch 0, third parties 30, native and triton 50.
        checkpoint_every: steps between two states that `forward` keeps for `backward`.
        api_version: the contract that the kernel was written for.
        only_by_name: takes the spec of a call that `accepts` let pass and returns None, or the reason why the kernel
            should run it only if asked for by name.
    """

    op: str
    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    accepts: Callable[[Any], str | None]
    priority: int = 30
    checkpoint_every: int = 16
    api_version: int = API_VERSION
    only_by_name: Callable[[Any], str | None] = _wanted_always


def register_kernel(kernel: Kernel) -> None:
    """Adds a kernel.

    Raises:
        TypeError: not a Kernel.
        ValueError: the name is taken, or the kernel was written for another contract.
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"expected a Kernel, got {type(kernel).__name__}.")
    if kernel.api_version != API_VERSION:
        raise ValueError(
            f"kernel {kernel.name!r} was written for kernel contract {kernel.api_version}; this is {API_VERSION}."
        )
    if (kernel.op, kernel.name) in _kernels:
        raise ValueError(f"a kernel {kernel.name!r} for {kernel.op} is registered already.")
    _kernels[kernel.op, kernel.name] = kernel


def register_op(op: str, usual: Callable[[str], Any]) -> None:
    """Tells how an op is usually called, so that `describe_kernels` can ask its kernels.

    Args:
        op: the op's name.
        usual: takes a device type, `cpu`, and returns the spec of a usual training call there.
    """
    _usual[op] = usual


@contextmanager
def use_kernel(name: str | None) -> Iterator[None]:
    """Runs what is inside with this kernel, or these (`op=name,op=name`); None returns to the automatic choice. A
    compiled graph keeps the choice of its first run."""
    token = _chosen.set(name or "")
    try:
        yield
    finally:
        _chosen.reset(token)


def requested(argument: str | None) -> str | None:
    """What was asked for, as written: argument, else context, else environment; None means automatic."""
    return _request(argument)[0]


def asked_for(op: str, argument: str | None = None) -> tuple[str | None, str]:
    """The kernel asked for and by what.

    Args:
        op: the op's name.
        argument: the op's `kernel` argument.

    Returns:
        A name or None for the automatic choice; and "argument", "context", "environment" or "priority".

    Raises:
        InputError: context or environment name an op or a kernel that nobody knows.
    """
    text, source = _request(argument)
    if text is None or source == "argument":
        return text, source
    _load()
    choice = parse_choice(text)
    ops = {key[0] for key in _kernels}
    for other in choice:
        if other and other not in ops:
            near = extensions.suggestion(other, sorted(ops)) or f"; ops: {', '.join(sorted(ops))}."
            raise InputError(f"there is no op {other!r} to choose a kernel for ({text}){near}{_blame(source)}")
    if op in choice:
        if (op, choice[op]) not in _kernels:
            raise InputError(_unknown(op, choice[op]) + _blame(source))
        return choice[op], source
    name = choice.get("")
    if name is None or (op, name) in _kernels:
        return name, source if name else "priority"
    if any(key[1] == name for key in _kernels):
        return None, "priority"
    raise InputError(_unknown(None, name) + _blame(source))


@lru_cache
def parse_choice(text: str) -> dict[str, str]:
    """Reads `native`, `selective_scan=native,linear_cross_entropy=torch` or a mixture.

    Returns:
        Names of kernels by op; what holds for all other ops is under "".

    Raises:
        InputError: neither of the two forms, or an op named twice.
    """
    choice: dict[str, str] = {}
    for part in text.split(","):
        op, equals, name = (word.strip() for word in part.rpartition("="))
        if not name or (equals and not op) or op in choice:
            raise InputError(f"kernel choice {text!r} must be a name, or op=name with commas between, each op once.")
        choice[op] = name
    return choice


def get_kernel(op: str, name: str) -> Kernel:
    """The kernel of that name.

    Raises:
        InputError: unknown; lists near matches, what there is and what is broken.
    """
    _load()
    found = _kernels.get((op, name))
    if found is None:
        raise InputError(_unknown(op, name))
    return found


def registered(op: str, name: str) -> Kernel:
    """The kernel of a name that `choose` gave: a look-up, which a compiled graph may contain."""
    return _kernels[op, name]


def choose(op: str, spec: Any, kernel: str | None = None) -> Kernel:
    """The kernel that runs.

    Args:
        op: the op's name.
        spec: the op's description of a call.
        kernel: a name, or None.

    Raises:
        InputError: a named kernel is unknown.
        KernelRefused: a named kernel cannot run, or none can.
    """
    name, source = asked_for(op, kernel)
    if name is not None:
        found = get_kernel(op, name)
        reason = _refusal(found, spec)
        if reason is not None:
            raise KernelRefused(f"kernel {name!r} was asked for but cannot run {op}: {reason}.{_blame(source)}")
        return found
    _load()
    for found in _of(op):
        if _refusal(found, spec) is None and _reserve(found, spec) is None:
            return found
    reasons = "; ".join(f"{k.name}: {_refusal(k, spec) or _reserve(k, spec)}" for k in _of(op))
    raise KernelRefused(f"no kernel can run {op}: {reasons or 'none is registered'}.")


def explain(op: str, spec: Any) -> list[tuple[str, str | None]]:
    """Each kernel of an op with None or its reason to refuse, best first."""
    _load()
    return [(kernel.name, _refusal(kernel, spec)) for kernel in _of(op)]


def describe_kernels(specs: dict[str, Any] | None = None, device: str = "cpu") -> list[dict[str, Any]]:
    """What `lightrec kernels` shows: a row per kernel, ops in order, best first.

    Args:
        specs: a call per op to ask about; None asks for each op's usual training call.
        device: where the usual call runs.

    Returns:
        Rows with op, name, priority, distribution, reason (None: it can run), only_by_name (None, or why an automatic
        choice leaves it out), chosen, and chosen_by: what asked for it, or "priority".
    """
    _load()
    if specs is None:
        specs = {op: usual(device) for op, usual in sorted(_usual.items())}
    rows = []
    for op, spec in specs.items():
        name, source = asked_for(op)
        try:
            running = choose(op, spec).name
        except KernelRefused:
            running = None
        for kernel in _of(op):
            reason, chosen = _refusal(kernel, spec), kernel.name == running
            rows.append(
                {
                    "op": op,
                    "name": kernel.name,
                    "priority": kernel.priority,
                    "distribution": _owners.get((op, kernel.name), extensions.HOME),
                    "reason": reason,
                    "only_by_name": _reserve(kernel, spec) if reason is None else None,
                    "chosen": chosen,
                    "chosen_by": source if kernel.name == (name or running) else None,
                }
            )
    return rows


def check_choice(text: str | None) -> None:
    """Tells at once what the first call of an op would: that a choice names what nobody knows.

    Args:
        text: as of `use_kernel`; None for what context or environment say, and nothing is imported if they say nothing.

    Raises:
        InputError: it does, or is neither a name nor `op=name,op=name`.
    """
    with use_kernel(text) if text else nullcontext():
        if requested(None) is not None:
            _load()
            for op in {key[0] for key in _kernels}:
                asked_for(op)


def broken_kernels() -> dict[str, str]:
    """Entry points that brought no kernel, `distribution:name`, with the reason."""
    _load()
    return dict(_broken)


def _request(argument: str | None) -> tuple[str | None, str]:
    if argument is not None:
        return argument, "argument"
    context = _chosen.get()
    if context is not None:
        return (context, "context") if context else (None, "priority")
    return (_FROM_ENVIRONMENT, "environment") if _FROM_ENVIRONMENT else (None, "priority")


def _blame(source: str) -> str:
    return f" {VARIABLE} asks for it." if source == "environment" else ""


def _of(op: str) -> list[Kernel]:
    return sorted((k for k in _kernels.values() if k.op == op), key=lambda k: (-k.priority, k.name))


def _refusal(kernel: Kernel, spec: Any) -> str | None:
    return _ask(kernel.accepts, spec)


def _reserve(kernel: Kernel, spec: Any) -> str | None:
    return _ask(kernel.only_by_name, spec)


def _ask(check: Callable[[Any], str | None], spec: Any) -> str | None:
    try:
        return check(spec)
    except Exception as error:  # a stranger's check must not take the choice down with it
        return f"its check failed ({type(error).__name__}: {error})"


def _unknown(op: str | None, name: str) -> str:
    known = list(dict.fromkeys(k.name for k in (_of(op) if op else sorted(_kernels.values(), key=lambda k: k.name))))
    line = f"no kernel {name!r}{f' for {op}' if op else ' for any op'}{extensions.suggestion(name, known) or '.'}"
    line += f" Installed: {', '.join(known) or 'none'}."
    return line + (f" Broken: {'; '.join(f'{k} ({v})' for k, v in _broken.items())}." if _broken else "")


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True  # first, so that a kernel module may use the registry while it is imported
    for module in _OWN_OPS:
        import_module(module)
    for plugin in extensions.installed("kernels"):
        try:
            made = extensions.call_in_time(plugin)
            for kernel in made if isinstance(made, (list, tuple)) else [made]:
                register_kernel(kernel)
                _owners[kernel.op, kernel.name] = f"{plugin.distribution} {plugin.version}"
        except InputError as error:  # tells distribution, cause and remedy
            _broken[f"{plugin.distribution}:{plugin.name}"] = str(error).rstrip(".")
        except (Exception, SystemExit) as error:  # whatever a stranger's function raises must not break others
            _broken[f"{plugin.distribution}:{plugin.name}"] = f"{type(error).__name__}: {error}".rstrip(".")
