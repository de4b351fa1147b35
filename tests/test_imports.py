"""Who may import whom, read from the source of every file; and what must stay free of torch."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

import lightrec
from lightrec.extensions import import_path
from lightrec.extensions.entry_points import BASES

ROOT = Path(lightrec.__file__).parent
ALL_BUT_CLI = (
    "errors files configurable part data metrics ops extensions interfaces items search nn objectives recommender "
    "models checkpoint serving callbacks tracking testing"
).split()

# The table of docs/architecture.md. A dotted name allows that module only; "lightrec" is the version and public names.
MAY_IMPORT = {
    "__init__": ALL_BUT_CLI,  # the homes of the public names, each imported when it is first used
    "__main__": ["cli"],
    "errors": [],
    "files": [],
    "configurable": ["errors"],
    "extensions": ["errors", "lightrec"],
    "data": ["errors", "files", "configurable", "extensions"],
    "metrics": ["errors"],
    "ops": ["extensions", "errors"],
    "part": ["configurable", "data.corpus"],
    "interfaces": ["part", "data.batch", "ops"],
    "nn": ["ops", "interfaces"],
    "items": ["interfaces", "nn", "ops", "configurable"],
    "search": ["interfaces", "ops.blocks", "errors"],
    "objectives": ["interfaces", "part", "configurable", "ops", "nn", "data.batch", "data.corpus"],
    "recommender": [
        "interfaces",
        "part",
        "configurable",
        "search",
        "metrics",
        "data.batch",
        "data.corpus",
        "lightrec",
    ],  # fmt: skip
    "models": [
        "interfaces",
        "items",
        "nn",
        "objectives",
        "recommender",
        "search",
        "ops",
        "configurable",
        "data.batch",
        "errors",
    ],  # fmt: skip
    "checkpoint": ["recommender", "configurable", "extensions", "data", "errors", "lightrec"],
    "serving": ["checkpoint", "recommender", "interfaces", "configurable", "extensions", "data", "errors", "files"],
    "callbacks": ["recommender", "data", "extensions", "errors", "files"],
    "tracking": ["errors"],
    "testing": [*ALL_BUT_CLI, "lightrec"],
    "cli": [*ALL_BUT_CLI, "cli", "lightrec"],
}

FILES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def modules_imported(source: str) -> list[str]:
    """Absolute names of our modules that a source imports, without the leading `lightrec.`.

    Imports within functions, for annotations and in strings count too: `import_module("lightrec.x")`, and code that is
    run in another process.
    """
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; ours are absolute."
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}: a star import."
            if node.module == "lightrec":
                found.extend(f"lightrec.{alias.name}" for alias in node.names)
            else:
                found.append(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := IN_A_STRING.match(node.value):
                found.append(match[1] or match[2])
    ours = [name for name in found if name == "lightrec" or name.startswith("lightrec.")]
    rooms = {path.stem for path in ROOT.iterdir()}
    below = [name.partition(".")[2] for name in ours]
    return [name if name.split(".")[0] in rooms else "lightrec" for name in below]


# the whole string is a module of ours, or it is code that begins by importing one
IN_A_STRING = re.compile(r"(lightrec(?:\.[a-z_]+)+)$|^from (lightrec(?:\.[a-z_]+)+) import ")


def allowed(room: str, module: str) -> bool:
    if module.split(".")[0] == room:
        return True
    return any(module == entry or module.startswith(f"{entry}.") for entry in MAY_IMPORT[room])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_the_rooms_that_its_own_may(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is a new room: say in docs/architecture.md and here what it may import."
    wrong = [name for name in modules_imported(path.read_text()) if not allowed(room, name)]
    assert not wrong, f"{room} imports {', '.join(wrong)}; it may import {', '.join(MAY_IMPORT[room]) or 'nothing'}."


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=lambda path: path.name)
def test_a_model_never_imports_another_model(path):
    others = [name for name in modules_imported(path.read_text()) if name.startswith("models")]
    assert not others, f"{path.name} imports {', '.join(others)}: what two models share belongs in nn or objectives."


def test_rooms_stand_above_each_other_without_a_circle():
    below: dict[str, set[str]] = {}
    for path in FILES:
        room = room_of(path)
        if room != "__init__":
            others = {name.split(".")[0] for name in modules_imported(path.read_text())} - {room, "lightrec"}
            below.setdefault(room, set()).update(others)
    try:
        floors = list(TopologicalSorter(below).static_order())
    except CycleError as error:
        pytest.fail(f"rooms import each other in a circle: {' -> '.join(error.args[1])}.")
    assert floors.index("errors") < floors.index("interfaces") < floors.index("models") < floors.index("cli")


def test_the_reader_of_imports_sees_every_form():
    source = '''
"""Docstrings may name lightrec.models.sasrec."""
import lightrec
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from lightrec.models.sasrec import SASRec
else:
    import lightrec.nn.attention
from lightrec import Batch, extensions
def f():
    from lightrec.cli.training import run
    import_module("lightrec.data.sources")
    Worker("from lightrec.testing.shipping import answer; answer()")
    "lightrec.recommender.contract.SequenceRecommender"  # a class, named and not imported
'''
    seen = ["lightrec", "models.sasrec", "nn.attention", "lightrec", "extensions", "cli.training", "data.sources"]
    assert sorted(modules_imported(source)) == sorted([*seen, "testing.shipping"])
    assert allowed("interfaces", "data.batch") and not allowed("interfaces", "data.datamodule")
    assert not allowed("data", "interfaces") and not allowed("interfaces", "data.batches")
    with pytest.raises(AssertionError, match="relative"):
        modules_imported("from . import nn")


def test_the_bases_of_plug_ins_are_what_their_names_say():
    for kind, path in BASES.items():
        base = import_path(path)
        assert f"{base.__module__}.{base.__qualname__}" == path, f"{kind}: {path} lives elsewhere."


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=sys.prefix)


@pytest.mark.parametrize("module", ["lightrec", "lightrec.extensions", "lightrec.data.sources", "lightrec.cli"])
def test_what_answers_help_and_lists_never_imports_torch(module):
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed here")
    done = run_python(f"import sys, {module}; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_public_names_come_from_their_homes_and_others_are_refused():
    assert lightrec.Batch.__module__ == "lightrec.data.batch"
    assert lightrec.RankingMetrics.__module__ == "lightrec.metrics.ranking"
    for name in lightrec.__all__:
        assert getattr(lightrec, name) is not None
    assert set(dir(lightrec)) == set(lightrec.__all__)
    with pytest.raises(AttributeError, match="public names: Batch"):
        _ = lightrec.NoSuchThing


def test_importing_lightrec_loads_no_plugin():
    code = "import sys, lightrec; print([m for m in sys.modules if m.startswith('lightrec')])"
    assert run_python(code).stdout.strip() == "['lightrec']"
