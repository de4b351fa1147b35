"""What metadata declares: names, who brought them, which one a word means; and the import of the one that is used."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import inspect
import os
import re
import sys
import threading
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lightrec.errors import InputError
from lightrec.extensions.compatibility import API_GROUP, incompatibility

KINDS = (
    "models",
    "encoders",
    "items",
    "objectives",
    "optimizers",
    "searches",
    "evaluations",
    "datasets",
    "splits",
    "rows",
    "kernels",
    "commands",
)
HOME = "lightrec"  # the distribution whose entries are the built-ins

# What a name of these kinds must be; the others are functions. Compared by name: this package never imports torch.
BASES = {
    "models": "lightrec.recommender.contract.SequenceRecommender",
    "encoders": "lightrec.interfaces.SequenceEncoder",
    "objectives": "lightrec.interfaces.Objective",
    "items": "lightrec.interfaces.ItemTable",
    "searches": "lightrec.interfaces.Search",
    "optimizers": "lightrec.recommender.optimizer.Optimizer",
    "evaluations": "lightrec.recommender.evaluation.Evaluation",
    "splits": "lightrec.data.splits.Split",
    "rows": "lightrec.data.rows.Rows",
}


class PluginError(InputError):
    """A plug-in cannot be used; the message names distribution, version, cause and remedy.

    Args:
        plugin: which one.
        cause: the cause alone, in a line.
    """

    def __init__(self, plugin: Plugin, cause: str):
        super().__init__(_broken(plugin, cause))
        self.cause = cause


@dataclass(frozen=True)
class Plugin:
    """One declared name: what it is called, where it lives and who brought it."""

    kind: str
    """One of KINDS; what else stands behind `lightrec.` has a problem, too."""
    name: str
    """The short name."""
    value: str
    """`module:Class`, as declared."""
    distribution: str
    version: str
    location: str
    """Folder that the distribution is installed in."""
    problem: str | None = None
    """Why it cannot be used, as far as metadata tells: made for another lightrec."""
    hidden: bool = False
    """Left out by LIGHTREC_PLUGINS."""

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


class Status(NamedTuple):
    """Whether a plug-in can be used."""

    word: str
    """ok, shadowed, incompatible, broken or disabled."""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}" if self.reason else self.word


def installed(kind: str | None = None) -> list[Plugin]:
    """Lists what metadata declares, built-ins first, then by distribution; imports nothing.

    Args:
        kind: one of KINDS, or None for all of them.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}.")
    wanted = {f"lightrec.{k}" for k in ((kind,) if kind else KINDS)}
    return [plugin for plugin in _declared(wanted) if not plugin.hidden]


def everything() -> list[Plugin]:
    """Lists what `installed` lists, what LIGHTREC_PLUGINS hides, and what is declared in a group that nobody reads."""
    return _declared(None)


def load(plugin: Plugin, patience: float = 10.0):
    """Imports what a plug-in names, and makes sure that it is what it says it is.

    What a plug-in prints while it is imported goes to standard error, so that it is in nobody's output.

    Args:
        plugin: what to import.
        patience: seconds after which standard error names the plug-in that keeps the user waiting.

    Raises:
        PluginError: it cannot be imported, or is of the wrong kind.
    """
    if plugin.problem:
        raise PluginError(plugin, plugin.problem)
    slow = threading.Timer(patience, _tell_slow, [plugin])
    slow.daemon = True
    slow.start()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = metadata.EntryPoint(plugin.name, plugin.value, f"lightrec.{plugin.kind}").load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does at import
        line = str(error).strip().split("\n")[0]
        raise PluginError(plugin, f"{type(error).__name__}: {line}".removesuffix(": ")) from error
    finally:
        slow.cancel()
    if wrong := _wrong_kind(plugin, found):
        raise PluginError(plugin, wrong)
    return found


def status(plugin: Plugin, plugins: list[Plugin]) -> Status:
    """Says whether a plug-in can be used, as far as metadata tells.

    Args:
        plugin: the one asked about.
        plugins: all of its kind, as `installed` returns them.
    """
    if plugin.hidden:
        return Status("disabled", f"LIGHTREC_PLUGINS={os.environ.get('LIGHTREC_PLUGINS', '')} leaves it out")
    if plugin.problem:
        return Status("incompatible", plugin.problem)
    same = [p for p in plugins if (p.kind, p.name) == (plugin.kind, plugin.name) and p != plugin and not p.hidden]
    if any(p.builtin for p in same):
        return Status("shadowed", f"by the built-in of this name; use {plugin.full_name}")
    if same and not plugin.builtin:
        others = ", ".join(p.full_name for p in same)
        return Status("shadowed", f"shares its name with {others}; use {plugin.full_name}")
    return Status("ok")


def summary(plugin: Plugin) -> str:
    """Returns the first line of the docstring, read from the source without importing it; empty if there is none."""
    module, _, target = plugin.value.split(" ")[0].partition(":")
    try:
        tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    except Exception:  # a stranger's file may be missing, binary, or no Python at all; help must not fail on it
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


def import_path(path: str):
    """Imports `package.module.Name`.

    Raises:
        ImportError, AttributeError: there is no such thing.
    """
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _declared(groups: set[str] | None) -> list[Plugin]:
    """Reads metadata; groups None is every group that begins with `lightrec.`."""
    found, known = [], set()
    for dist in metadata.distributions():
        try:
            # Reading entry points is cheap, reading the long METADATA file is not: names and versions where needed.
            entries = [e for e in dist.entry_points if _reads(e.group, groups)]
            name = normalised(dist.metadata["Name"]) if entries else ""
            if not name or name in known:  # the first on the path is the one that is imported
                continue
            version, location = dist.version, str(dist.locate_file(""))
            problem = None if name == HOME else incompatibility(dist)
        except Exception:  # an installation that was cut off leaves metadata that cannot be read
            continue
        known.add(name)
        hidden = not _allowed(name)
        for entry in {(e.group, e.name): e for e in entries}.values():
            kind = entry.group.removeprefix("lightrec.")
            wrong = problem if kind in KINDS else _unread(kind)
            found.append(Plugin(kind, entry.name, entry.value, name, version, location, wrong, hidden))
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(
        found, key=lambda p: (order.get(p.kind, len(KINDS)), not p.builtin, p.distribution, p.name.lower(), p.name)
    )


def _reads(group: str, groups: set[str] | None) -> bool:
    if groups is None:
        return group.startswith("lightrec.") and group != API_GROUP
    return group in groups


def _unread(kind: str) -> str:
    near = suggestion(kind, list(KINDS)).replace("did you mean ", "did it mean lightrec.") or ";"
    return f"nobody reads the entry-point group lightrec.{kind}{near} groups: {', '.join(KINDS)}"


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


def normalised(name: str) -> str:
    """Returns the name of a distribution as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _allowed(distribution: str) -> bool:
    choice = os.environ.get("LIGHTREC_PLUGINS", "").strip()
    if distribution == HOME or choice in ("", "all"):
        return True
    return choice != "none" and distribution in {normalised(part.strip()) for part in choice.split(",")}


def _wrong_kind(plugin: Plugin, found: object) -> str | None:
    """Says how what was imported differs from what it was declared as."""
    base = BASES.get(plugin.kind)
    what = plugin.path.rpartition(".")[2]
    if base is None:
        return None if callable(found) else f"{what} is a {type(found).__name__}, not a function"
    expected = base.rpartition(".")[2]
    if not isinstance(found, type):
        return f"{what} is a {type(found).__name__}, not a class that inherits from lightrec.{expected}"
    if base not in {f"{kind.__module__}.{kind.__qualname__}" for kind in found.__mro__}:
        return f"{what} does not inherit from lightrec.{expected}, as a name in lightrec.{plugin.kind} must"
    if inspect.isabstract(found):
        return f"{what} leaves {', '.join(sorted(found.__abstractmethods__))} undefined"
    return None


def _tell_slow(plugin: Plugin) -> None:
    print(
        f"lightrec: still importing {plugin.full_name} {plugin.version}; if it hangs, leave it out with "
        "LIGHTREC_PLUGINS=none.",
        file=sys.stderr,
        flush=True,
    )


def singular(kind: str) -> str:
    """Returns what one thing of a kind is called."""
    return {"datasets": "data source", "items": "item table", "searches": "search"}.get(kind, kind.removesuffix("s"))


def _broken(plugin: Plugin, cause: str) -> str:
    remedy = f"upgrade or uninstall it (pip uninstall {plugin.distribution}), or hide it with LIGHTREC_PLUGINS=none"
    missing = re.search(r"No module named '([^'.]+)", cause)
    if missing and not plugin.path.startswith(missing[1] + "."):
        remedy = f"install the module {missing[1]}, or {remedy}"
    if plugin.builtin:
        remedy = "the installation is damaged: pip install --force-reinstall lightrec"
    what = f"{singular(plugin.kind)} {plugin.name!r} of {plugin.distribution} {plugin.version}"
    return f"{what} cannot be used ({cause}); {remedy}."
