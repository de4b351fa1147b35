"""Plug-ins use public names of lightrec only: read from their imports and their attributes."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (*(ROOT / "plugins").glob("*/src"), *(ROOT / "plugins").glob("*/tests"), ROOT / "triton_kernels")
FILES = sorted({path for folder in FOLDERS for path in folder.rglob("*.py") if "__pycache__" not in path.parts})
SOURCES = [path for path in FILES if "tests" not in path.relative_to(ROOT).parts]
OWN = ("self", "cls")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_ours(module: str) -> bool:
    """Whether a module is of lightrec, not of a plug-in whose name begins in the same way."""
    return module.split(".")[0] == "lightrec"


def private_imports(tree: ast.AST) -> list[str]:
    """Names that begin with an underscore among what is imported from lightrec, or modules on the way to it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if is_ours(alias.name)]
        elif isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("lightrec."):
            found.append(node.value.split(":")[0])  # imported by a name in a string
    return [name for name in found if any(is_private(part) for part in name.split("."))]


def own_names(tree: ast.AST) -> set[str]:
    """Private names that a file defines itself: attributes of its classes, its functions and its constants."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in OWN:
                found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if is_private(name)}


def private_attributes(tree: ast.AST, own: set[str] = frozenset()) -> list[str]:
    """Private attributes that are read of something else than `self`, or that the file does not define itself.

    Named tuples have public methods that begin with an underscore.
    """
    public = {"_replace", "_asdict", "_fields", "_make"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in public:
            of_self = isinstance(node.value, ast.Name) and node.value.id in OWN
            if node.attr not in own or not of_self and node.attr not in own:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1] if len(node.args) > 1 else None
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and name.value not in own:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_there_are_plug_ins_to_read():
    assert len(SOURCES) > 10 and any("triton_kernels" in path.parts for path in SOURCES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_plug_in_imports_public_names_only(path):
    wrong = private_imports(ast.parse(path.read_text()))
    assert not wrong, f"{path.name} imports {', '.join(wrong)}: use a public name, or make one public in lightrec."


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_plug_in_reads_private_attributes_of_itself_only(path):
    own = set().union(*(own_names(ast.parse(other.read_text())) for other in SOURCES if other.parent == path.parent))
    wrong = private_attributes(ast.parse(path.read_text()), own)
    assert not wrong, f"{path.name} reads {'; '.join(wrong)}: use a public name, or make one public in lightrec."


def test_every_way_to_a_private_name_is_seen():
    source = """
import lightrec._hidden
from lightrec.recommender import _seed
from lightrec.nn import attention
import_module("lightrec.cli._private")
"""
    assert private_imports(ast.parse(source)) == [
        "lightrec._hidden",
        "lightrec.recommender._seed",
        "lightrec.cli._private",
    ]
    source = """
class Mine:
    def __init__(self):
        self._own = 1
    def use(self, recommender):
        self._own + self._trainer + recommender._trainer + getattr(recommender, "_seed") + pair._replace(x=1)
"""
    tree = ast.parse(source)
    found = [text.partition(": ")[2] for text in private_attributes(tree, own_names(tree))]
    assert sorted(found) == ["getattr(recommender, '_seed')", "recommender._trainer", "self._trainer"]
