"""From a short name to the one thing that it means, or to a sentence that says why there is none."""

from __future__ import annotations

import os

from lightrec.errors import InputError
from lightrec.extensions.entry_points import Plugin, PluginError, installed, normalised, singular, suggestion
from lightrec.extensions.import_check import try_all


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
        matches = [p for p in candidates if p.name == short and p.distribution == normalised(home)]
    else:
        matches = [p for p in candidates if p.name == name]
        matches = [p for p in matches if p.builtin] or matches
    if not matches:
        raise InputError(_unknown(kind, name, candidates))
    if len(matches) > 1:
        choices = " or ".join(p.full_name for p in matches)
        raise InputError(f"{singular(kind)} {name!r} is declared by several plug-ins: write {choices}.")
    if matches[0].problem:
        raise PluginError(matches[0], matches[0].problem)
    return matches[0]


def _unknown(kind: str, name: str, candidates: list[Plugin]) -> str:
    # The user waits for an answer that names what is broken. Tried in another process: one may hang, or print.
    strangers = [plugin for plugin in candidates if not plugin.builtin]
    causes = {p: outcome.cause for p, outcome in zip(strangers, try_all(strangers, 10.0), strict=True) if outcome.cause}
    names = [p.name if sum(q.name == p.name for q in candidates) == 1 or p.builtin else p.full_name for p in candidates]
    well = [n for n, p in zip(names, candidates, strict=True) if p not in causes]
    near = suggestion(name, names) or ";"
    line = f"{singular(kind)} {name!r} is not installed{near} installed: {', '.join(well) or 'none'}"
    if causes:
        line += "; installed but broken: " + ", ".join(
            f"{p.name} of {p.distribution} {p.version} ({cause})" for p, cause in causes.items()
        )
    if os.environ.get("LIGHTREC_PLUGINS"):
        line += f"; LIGHTREC_PLUGINS={os.environ['LIGHTREC_PLUGINS']} hides others"
    return line + "."
