"""Which implementation of an op runs: names, reasons, and four ways to choose.

A kernel is chosen by the `kernel=` argument, else by `with use_kernel(...)`, else by the environment variable
`LIGHTREC_KERNEL` (read once, at import), else by priority among those that accept. A kernel asked for by name that
cannot run raises with its reason; an automatic choice passes on to the next.

A distribution brings a kernel by an entry point of the group `lightrec.kernels` whose value is a function without
arguments returning a `Kernel` or a list of them. Entry points are read at the first choice; one that fails is recorded
with its reason and disturbs nobody else. `LIGHTREC_PLUGINS` restricts them as it does all plug-ins.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from typing import Any

GROUP = "lightrec.kernels"
API_VERSION = 1

_FROM_ENVIRONMENT = os.environ.get("LIGHTREC_KERNEL", "").strip() or None
_chosen: ContextVar[str | None] = ContextVar("lightrec_kernel", default=None)
_kernels: dict[tuple[str, str], Kernel] = {}
_broken: dict[str, str] = {}
_loaded = False


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op.

    Args:
        op: the op's name, `selective_scan`.
        name: what a user calls the kernel.
        forward: the computation; its signature belongs to the op and is written in the op's file.
        backward: its gradient, or None where autograd differentiates `forward`.
        accepts: takes the op's spec (shapes' constants, dtypes and flags; no tensor) and returns None or the reason why
            the kernel cannot run. It must not raise.
        priority: the highest that accepts runs; reference -100, torch 0, third parties 30, native and triton 50.
        checkpoint_every: steps between two states that `forward` keeps for `backward`.
        api_version: the contract that the kernel was written for.
    """

    op: str
    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    accepts: Callable[[Any], str | None]
    priority: int = 30
    checkpoint_every: int = 16
    api_version: int = API_VERSION


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


@contextmanager
def use_kernel(name: str | None) -> Iterator[None]:
    """Runs what is inside with this kernel; None returns to the automatic choice. A compiled graph keeps the choice of
    its first run."""
    token = _chosen.set(name or "")
    try:
        yield
    finally:
        _chosen.reset(token)


def requested(argument: str | None) -> str | None:
    """The name asked for: argument, else context, else environment; None means automatic."""
    if argument is not None:
        return argument
    context = _chosen.get()
    return (context or None) if context is not None else _FROM_ENVIRONMENT


def get_kernel(op: str, name: str) -> Kernel:
    """The kernel of that name.

    Raises:
        ValueError: unknown; lists what there is and what is broken.
    """
    _load_entry_points()
    found = _kernels.get((op, name))
    if found is None:
        broken = f" Broken: {'; '.join(f'{k} ({v})' for k, v in _broken.items())}." if _broken else ""
        names = ", ".join(kernel.name for kernel in _of(op)) or "none"
        raise ValueError(f"no kernel {name!r} for {op}. Installed: {names}.{broken}")
    return found


def choose(op: str, spec: Any, kernel: str | None = None) -> Kernel:
    """The kernel that runs.

    Args:
        op: the op's name.
        spec: the op's description of a call.
        kernel: a name, or None.

    Raises:
        ValueError: a named kernel is unknown.
        RuntimeError: a named kernel cannot run, or none can.
    """
    name = requested(kernel)
    if name is not None:
        found = get_kernel(op, name)
        reason = found.accepts(spec)
        if reason is not None:
            raise RuntimeError(f"kernel {name!r} was asked for but cannot run {op}: {reason}.")
        return found
    _load_entry_points()
    for found in _of(op):
        if found.accepts(spec) is None:
            return found
    reasons = "; ".join(f"{found.name}: {found.accepts(spec)}" for found in _of(op))
    raise RuntimeError(f"no kernel can run {op}: {reasons or 'none is registered'}.")


def explain(op: str, spec: Any) -> list[tuple[str, str | None]]:
    """Each kernel of an op with None or its reason to refuse, best first."""
    _load_entry_points()
    return [(kernel.name, kernel.accepts(spec)) for kernel in _of(op)]


def describe_kernels(specs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """What `lightrec kernels` shows: a row per kernel with op, name, priority, reason (None: it can run) and chosen.

    Args:
        specs: a call per op to ask about; None asks for each op's usual training call on the CPU.
    """
    if specs is None:
        from lightrec.ops.selective_scan import ScanSpec

        specs = {"selective_scan": ScanSpec()}
    rows = []
    for op, spec in specs.items():
        answers = explain(op, spec)
        named = requested(None)
        able = [name for name, reason in answers if reason is None and named in (None, name)]
        for name, reason in answers:
            chosen = bool(able) and name == able[0]
            rows.append(
                {"op": op, "name": name, "priority": _kernels[op, name].priority, "reason": reason, "chosen": chosen}
            )
        rows += [{"op": op, "name": n, "priority": None, "reason": r, "chosen": False} for n, r in _broken.items()]
    return rows


def _of(op: str) -> list[Kernel]:
    return sorted((k for k in _kernels.values() if k.op == op), key=lambda k: (-k.priority, k.name))


def _load_entry_points() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True  # first, so that a kernel module may use the registry while it is imported
    allowed = os.environ.get("LIGHTREC_PLUGINS")
    for entry in metadata.entry_points(group=GROUP):
        owner = re.sub(r"[-_.]+", "-", entry.dist.name).lower() if entry.dist else ""
        if allowed is not None and owner not in [re.sub(r"[-_.]+", "-", a.strip()).lower() for a in allowed.split(",")]:
            continue
        try:
            made = entry.load()()
            for kernel in made if isinstance(made, (list, tuple)) else [made]:
                register_kernel(kernel)
        except Exception as error:  # whatever a stranger's import raises must not break others
            _broken[entry.name] = f"{owner or entry.value}: {type(error).__name__}: {error}"
