"""Counts what lightrec spends on plumbing: options written again, wide constructors, circles of imports.

    python benchmarks/plumbing.py               # the checkout that this file is in
    python benchmarks/plumbing.py --root DIR    # another one

It reads source, imports nothing of lightrec's, and prints a table. Definitions:

* Plumbing is counted in `lightrec/models/*.py`, without `__init__.py` and the files of counting models (`floors.py`,
  `counting.py`). Three things count, of every class with a constructor of its own: the text under `Args:` of its
  docstring, the signature of `__init__`, and the call of `super().__init__` with all that is built inside of it. A line
  counts once. The share is of all lines of the file.
* Written again is the part of it that says what is said elsewhere. It is the calls, and the lines of options that an
  earlier constructor of the same file has under the same name.
* A constructor is wide if it has more than eight parameters, `self` not counted. Every `.py` file of `lightrec/`,
  `plugins/` and `triton_kernels/` is read, but for tests and benchmarks.
* Rooms are the files and folders directly in `lightrec/`. A room imports another if any of its files does. Imports in
  functions and under `TYPE_CHECKING` count. A string counts if it is a module's name or code that begins by importing
  one. A circle is a strongly connected set of rooms. Every folder is also read file by file.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

NOT_LEARNED = {"__init__.py", "floors.py", "counting.py"}
WIDE = 8
_IN_A_STRING = re.compile(r"(lightrec(?:\.[a-z_0-9]+)+)$|^from (lightrec(?:\.[a-z_0-9]+)+) import ")
_SECTION = re.compile(r"^\s*(Args|Returns|Raises|Yields|Example|Note|Attributes|Source)s?:\s*$")


def files_below(folder: Path) -> list[Path]:
    """Returns our Python files, tests and caches left out."""
    skipped = {"__pycache__", "tests", ".venv", "build", "benchmarks"}
    return sorted(path for path in folder.rglob("*.py") if not skipped & set(path.relative_to(folder).parts))


def constructor_of(node: ast.ClassDef) -> ast.FunctionDef | None:
    """Returns `__init__` if the class has one of its own."""
    return next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)


def documented(node: ast.ClassDef | ast.FunctionDef) -> Iterator[int]:
    """Yields the lines of the `Args:` section of a docstring."""
    first = node.body[0]
    if not (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    ):
        return
    inside = False
    for offset, text in enumerate(first.value.value.split("\n")):
        if _SECTION.match(text):
            inside = text.strip() == "Args:"
        elif inside and text.strip():
            yield first.lineno + offset


def parameters_of(function: ast.FunctionDef) -> list[str]:
    """Returns the names of all parameters but `self`."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name != "self"]


def handed_on(function: ast.FunctionDef) -> Iterator[int]:
    """Yields the lines of `super().__init__` calls, with all that is built inside of them."""
    for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "super().__init__":
            yield from range(call.lineno, call.end_lineno + 1)


def plumbing(path: Path) -> dict[str, int]:
    """Returns lines of a file by kind: docs, signatures and calls of constructors; written again; all."""
    text = path.read_text()
    found: dict[str, set[int]] = {"docs": set(), "signatures": set(), "calls": set(), "again": set()}
    known: set[str] = set()
    for node in ast.parse(text).body:
        init = constructor_of(node) if isinstance(node, ast.ClassDef) else None
        if init:
            parts = {
                "docs": {*documented(node), *documented(init)},
                "signatures": set(range(init.lineno, init.body[0].lineno)),
                "calls": set(handed_on(init)),
            }
            for kind, lines in parts.items():
                found[kind] |= lines
            rows = text.splitlines()
            option = re.compile(r"^\s*(" + "|".join(known & set(parameters_of(init))) + r")\s*:") if known else None
            once = parts["docs"] | parts["signatures"]
            found["again"] |= parts["calls"] | {n for n in once if option and option.match(rows[n - 1])}
            known |= set(parameters_of(init))
    plumb = found["docs"] | found["signatures"] | found["calls"]
    return {kind: len(lines) for kind, lines in found.items()} | {
        "plumbing": len(plumb),
        "lines": len(text.splitlines()),
    }


def wide_constructors(root: Path) -> list[tuple[int, str]]:
    """Returns width and name of every constructor that is wide, widest first."""
    found = []
    for folder in ("lightrec", "plugins", "triton_kernels"):
        for path in files_below(root / folder):
            for node in ast.walk(ast.parse(path.read_text())):
                init = constructor_of(node) if isinstance(node, ast.ClassDef) else None
                if init and len(parameters_of(init)) > WIDE:
                    rest = " and **" + init.args.kwarg.arg if init.args.kwarg else ""
                    found.append((len(parameters_of(init)), f"{path.relative_to(root)}: {node.name}{rest}"))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def modules_named(source: str) -> Iterator[str]:
    """Yields every module of lightrec that a source names, without the leading `lightrec.`; strings included."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            names = [match[1] or match[2] for match in [_IN_A_STRING.match(node.value)] if match]
        yield from (name.partition(".")[2] for name in names if name.startswith("lightrec."))


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Returns the strongly connected sets of more than one node, each sorted."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for following in arrows.get(waiting.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return seen

    ways = {node: reached(node) for node in arrows}
    sets = {tuple(sorted({node, *(n for n in ways[node] if node in ways.get(n, ()))})) for node in arrows}
    return [list(found) for found in sorted(sets) if len(found) > 1]


def room_arrows(package: Path) -> dict[str, set[str]]:
    """Returns which rooms each room imports."""
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__init__"}
    arrows: dict[str, set[str]] = {room: set() for room in rooms}
    for path in files_below(package):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room in rooms and room != "template":
            named = {name.split(".")[0] for name in modules_named(path.read_text())}
            arrows[room] |= (named & rooms) - {room}
    return arrows


def file_arrows(package: Path, room: str) -> dict[str, set[str]]:
    """Returns which files of one room each of its files imports."""
    files = {path.stem: path for path in (package / room).glob("*.py") if path.stem != "__init__"}
    arrows = {}
    for stem, path in files.items():
        named = [name.split(".") for name in modules_named(path.read_text())]
        arrows[stem] = {parts[1] for parts in named if len(parts) > 1 and parts[0] == room and parts[1] in files} - {
            stem
        }
    return arrows


def print_all() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="a checkout of lightrec")
    root = parser.parse_args().root.resolve()
    package = root / "lightrec"

    print("| file | docs | signatures | calls | plumbing | lines | share | written again | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    counts = {p.name: plumbing(p) for p in sorted((package / "models").glob("*.py")) if p.name not in NOT_LEARNED}
    counts["all"] = {kind: sum(found[kind] for found in counts.values()) for kind in next(iter(counts.values()))}
    for name, n in counts.items():
        shares = [f"{n[kind] / n['lines']:.0%}" for kind in ("plumbing", "again")]
        cells = [n["docs"], n["signatures"], n["calls"], n["plumbing"], n["lines"], shares[0], n["again"], shares[1]]
        print(f"| {name} | {' | '.join(map(str, cells))} |")

    wide = wide_constructors(root)
    print(f"\n{len(wide)} constructors have more than {WIDE} parameters.\n\n| parameters | constructor |\n|---|---|")
    for width, name in wide:
        print(f"| {width} | {name} |")

    arrows = room_arrows(package)
    found = circles(arrows)
    print(f"\n{len(arrows)} rooms, {sum(map(len, arrows.values()))} arrows, {len(found)} circles of rooms.")
    for circle in found:
        inner = [f"{a} -> {b}" for a in circle for b in sorted(arrows[a]) if b in circle]
        print(f"* {', '.join(circle)}: {'; '.join(inner)}")
    for room in sorted(path.name for path in package.iterdir() if (path / "__init__.py").exists()):
        for circle in circles(file_arrows(package, room)):
            print(f"* within {room}/: {', '.join(circle)}")


if __name__ == "__main__":
    print_all()
