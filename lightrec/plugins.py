"""Plug-ins: find, resolve and explain what is installed. Standard library only.

A name comes from entry-point metadata (`lightrec.models`, `lightrec.encoders`, ...: key = short name, value =
`module:Class`); nothing is imported until it is used, and lightrec's own classes are declared in the same way. A
built-in wins a contest of names; a plug-in's homonym is addressed as `distribution:Name`. A plug-in that is broken or
made for another lightrec disturbs nobody until it is asked for, and then says what is wrong and what to do.

`LIGHTREC_PLUGINS=none` leaves every plug-in out, `LIGHTREC_PLUGINS=a,b` all but the distributions a and b.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import re
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from lightrec.errors import InputError

KINDS = ("models", "encoders", "objectives", "datasets", "kernels", "commands")
HOME = "lightrec"  # the distribution whose entries are the built-ins


@dataclass(frozen=True)
class Plugin:
    """One declared name: what it is called, where it lives and who brought it."""

    kind: str
    """One of KINDS."""
    name: str
    """The short name."""
    value: str
    """`module:Class`, as declared."""
    distribution: str
    version: str
    origin: str
    """Folder that the distribution is installed in."""
    problem: str | None = None
    """Why it cannot be used, as far as metadata tells: made for another lightrec."""

    @property
    def builtin(self) -> bool:
        return self.distribution == HOME

    @property
    def path(self) -> str:
        """The dotted path, `module.Class`."""
        return self.value.replace(":", ".").split(" ")[0]

    @property
    def full_name(self) -> str:
        return self.name if self.builtin else f"{self.distribution}:{self.name}"


def installed(kind: str | None = None) -> list[Plugin]:
    """Lists what metadata declares, built-ins first, then by distribution; imports nothing.

    Args:
        kind: one of KINDS, or None for all of them.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    wanted = {f"lightrec.{k}": k for k in ((kind,) if kind else KINDS)}
    found, known = [], set()
    for dist in metadata.distributions():
        # Reading entry points is cheap, reading the long METADATA file is not: names and versions only where needed.
        entries = [e for e in dist.entry_points if e.group in wanted]
        if not entries:
            continue
        name = _normalised(dist.metadata["Name"])
        if name in known or not _allowed(name):  # the first on the path is the one that is imported
            continue
        known.add(name)
        problem = None if name == HOME else _incompatibility(dist)
        origin = str(dist.locate_file(""))
        found += [Plugin(wanted[e.group], e.name, e.value, name, dist.version, origin, problem) for e in entries]
    return sorted(found, key=lambda p: (KINDS.index(p.kind), not p.builtin, p.distribution, p.name.lower()))


def resolve(kind: str, name: str) -> Plugin:
    """Finds the plug-in that a short name means, without importing it.

    Args:
        kind: one of KINDS.
        name: `Name`, or `distribution:Name` where a plug-in has a homonym.

    Raises:
        InputError: nothing or more than one thing has this name, or metadata says that it cannot work.
    """
    candidates = installed(kind)
    if ":" in name:
        home, short = name.split(":", 1)
        matches = [p for p in candidates if p.name == short and p.distribution == _normalised(home)]
    else:
        matches = [p for p in candidates if p.name == name]
        matches = [p for p in matches if p.builtin] or matches
    if not matches:
        raise InputError(_unknown(kind, name, candidates))
    if len(matches) > 1:
        choices = " or ".join(p.full_name for p in matches)
        raise InputError(f"{_one(kind)} {name!r} is declared by several plug-ins: write {choices}.")
    if matches[0].problem:
        raise InputError(_broken(matches[0], matches[0].problem))
    return matches[0]


def load(plugin: Plugin):
    """Imports what a plug-in names.

    Raises:
        InputError: it cannot be imported; names distribution, version, cause and remedy.
    """
    if plugin.problem:
        raise InputError(_broken(plugin, plugin.problem))
    try:
        return metadata.EntryPoint(plugin.name, plugin.value, f"lightrec.{plugin.kind}").load()
    except Exception as error:  # whatever a stranger's module does at import
        raise InputError(_broken(plugin, _cause(error))) from error


def status(plugin: Plugin, plugins: list[Plugin], check: bool = False) -> str:
    """Says in a line whether a plug-in can be used: `ok`, or what is the matter.

    Args:
        plugin: the one asked about.
        plugins: all of its kind, as `installed` returns them.
        check: import it, too.
    """
    if plugin.problem:
        return f"incompatible: {plugin.problem}"
    if check:
        try:
            load(plugin)
        except InputError as error:
            return f"broken: {_cause(error.__cause__ or error)}"
    same = [p for p in plugins if (p.kind, p.name) == (plugin.kind, plugin.name) and p != plugin]
    if any(p.builtin for p in same):
        return f"shadowed by the built-in; use {plugin.full_name}"
    if same and not plugin.builtin:
        return f"shares its name; use {plugin.full_name}"
    return "ok"


def summary(plugin: Plugin) -> str:
    """Returns the first line of the docstring, read from the source without importing it; empty if there is none."""
    module, _, target = plugin.value.split(" ")[0].partition(":")
    try:
        tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, ImportError, AttributeError):
        return ""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == target:
            return (ast.get_docstring(node) or "").split("\n")[0]
    return ""


def suggestion(word: str, known: list[str]) -> str:
    """Returns `; did you mean X?` for near matches of a misspelt word, else nothing."""
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower(), list(folded), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(folded[n] for n in near)}?" if near else ""


def _source(module: str) -> Path:
    """Finds the file of a module without running its packages."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        raise ImportError(module)
    if not rest:
        return Path(spec.origin)
    for place in spec.submodule_search_locations:
        base = Path(place, *rest)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    raise ImportError(module)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _allowed(distribution: str) -> bool:
    choice = os.environ.get("LIGHTREC_PLUGINS", "").strip()
    if distribution == HOME or choice in ("", "all"):
        return True
    return choice != "none" and distribution in {_normalised(part.strip()) for part in choice.split(",")}


def _incompatibility(dist: metadata.Distribution) -> str | None:
    """Compares what a plug-in requires of lightrec with the lightrec that runs."""
    try:
        ours = metadata.version(HOME)
    except metadata.PackageNotFoundError:
        return None
    for requirement in dist.requires or []:
        match = re.match(r"\s*lightrec\s*\(?([^;)\[]*)\)?\s*(;|$)", requirement, re.IGNORECASE)
        if match and ";" not in requirement and not all(_satisfies(ours, c) for c in match[1].split(",") if c.strip()):
            return f"it requires lightrec {match[1].strip()}, this is lightrec {ours}"
    return None


def _satisfies(version: str, clause: str) -> bool:
    match = re.match(r"\s*(~=|==|!=|<=|>=|<|>)\s*([0-9.]+)(\.\*)?", clause)
    if not match:  # an unusual specifier is the installer's business
        return True
    operator, wanted, wildcard = match[1], _release(match[2]), bool(match[3])
    have = _release(version)
    if wildcard:
        same = have[: len(wanted)] == wanted
        return same if operator == "==" else not same
    if operator == "~=":
        return have >= wanted and have[: len(wanted) - 1] == wanted[:-1]
    size = max(len(have), len(wanted))
    a, b = have + (0,) * (size - len(have)), wanted + (0,) * (size - len(wanted))
    return {"==": a == b, "!=": a != b, "<=": a <= b, ">=": a >= b, "<": a < b, ">": a > b}[operator]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[0-9]+(\.[0-9]+)*", version.strip(".") or "0")[0].split("."))


def _one(kind: str) -> str:
    return {"datasets": "data source"}.get(kind, kind.removesuffix("s"))


def _cause(error: BaseException) -> str:
    line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _broken(plugin: Plugin, cause: str) -> str:
    remedy = f"upgrade or uninstall it (pip uninstall {plugin.distribution}), or hide it with LIGHTREC_PLUGINS=none"
    missing = re.search(r"No module named '([^'.]+)", cause)
    if missing and not plugin.path.startswith(missing[1] + "."):
        remedy = f"install the module {missing[1]}, or {remedy}"
    if plugin.builtin:
        remedy = "the installation is damaged: pip install --force-reinstall lightrec"
    what = f"{_one(plugin.kind)} {plugin.name!r} of {plugin.distribution} {plugin.version}"
    return f"{what} cannot be used ({cause}); {remedy}."


def _unknown(kind: str, name: str, candidates: list[Plugin]) -> str:
    broken = []
    for plugin in candidates:
        if not plugin.builtin:
            try:
                load(plugin)  # the user waits for an answer that names what is broken: the one place that tries
            except InputError as error:
                broken.append((plugin, plugin.problem or _cause(error.__cause__ or error)))
    sick = {p for p, _ in broken}
    names = [p.name if sum(q.name == p.name for q in candidates) == 1 or p.builtin else p.full_name for p in candidates]
    well = [n for n, p in zip(names, candidates, strict=True) if p not in sick]
    line = (
        f"{_one(kind)} {name!r} is not installed{suggestion(name, names) or ';'} installed: {', '.join(well) or 'none'}"
    )
    if broken:
        line += "; installed but broken: " + ", ".join(
            f"{p.name} of {p.distribution} {p.version} ({cause})" for p, cause in broken
        )
    if os.environ.get("LIGHTREC_PLUGINS"):
        line += f"; LIGHTREC_PLUGINS={os.environ['LIGHTREC_PLUGINS']} hides others"
    return line + "."


def import_path(path: str):
    """Imports `package.module.Name`.

    Raises:
        ImportError, AttributeError: there is no such thing.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
