"""Whether a distribution was made for the lightrec that runs: its version range and its plug-in API, from metadata."""

from __future__ import annotations

import re
from importlib import metadata

import lightrec

API_GROUP = "lightrec.api"
"""Entry-point group whose keys are the plug-in APIs that a distribution was written for: `1 = "its_package"`."""


def incompatibility(dist: metadata.Distribution) -> str | None:
    """Compares what a plug-in asks for with the lightrec that runs; None if they fit, or if it asks for nothing."""
    declared = [point.name for point in dist.entry_points if point.group == API_GROUP]
    for name in declared:
        if not name.isdecimal():
            return f"it declares plug-in API {name!r}, which is not an integer"
    if declared and lightrec.PLUGIN_API not in {int(name) for name in declared}:
        theirs = " and ".join(declared)
        return (
            f"it is written for plug-in API {theirs}, this is lightrec {lightrec.__version__} with plug-in API "
            f"{lightrec.PLUGIN_API}"
        )
    for requirement in dist.requires or []:
        match = re.match(r"\s*lightrec\s*\(?([^;)\[]*)\)?\s*(;|$)", requirement, re.IGNORECASE)
        if match and ";" not in requirement:
            clauses = [clause for clause in match[1].split(",") if clause.strip()]
            if not all(satisfies(lightrec.__version__, clause) for clause in clauses):
                return f"it requires lightrec {match[1].strip()}, this is lightrec {lightrec.__version__}"
    return None


def satisfies(version: str, clause: str) -> bool:
    """Says whether a version fits one clause of a specifier, `>=0.1` or `==0.1.*`."""
    match = re.match(r"\s*(~=|==|!=|<=|>=|<|>)\s*([0-9.]+)(\.\*)?", clause)
    if not match or version.startswith("0+"):
        return True  # an unusual specifier is the installer's business; a tree that was never installed fits all
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
