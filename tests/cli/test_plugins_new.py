"""`lightrec plugins new`: what it writes works at once, for every kind; what it refuses, and why."""

import ast
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from lightrec import PLUGIN_API
from lightrec.cli import main, scaffold
from lightrec.errors import InputError

KINDS = list(scaffold.KINDS)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A distribution of every kind, by kind."""
    work = tmp_path_factory.mktemp("new")
    found = {}
    for kind in KINDS:
        names = scaffold.names_of(f"my-{kind}", kind)
        scaffold.write(work / names.distribution, names, kind)
        found[kind] = work / names.distribution
    return found


@pytest.mark.slow
def test_the_tests_of_all_kinds_pass_at_once(made):
    """All in one process, which imports torch once."""
    sources = os.pathsep.join(str(folder / "src") for folder in made.values())
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", str(made["model"].parent)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(f / "tests") for f in made.values())],
        cwd=made["model"].parent,
        env={**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "33 passed" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_distribution_is_complete_and_consistent(made, kind):
    folder = made[kind]
    here = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    package = f"lightrec_my_{kind}"
    expected = {"pyproject.toml", "README.md", "LICENSE", ".gitignore", f"src/{package}/__init__.py"}
    expected |= {f"src/{package}/{kind}.py", f"tests/test_{kind}.py"}
    assert expected <= {path for path in here if "__pycache__" not in path}
    assert kind == "kernel" or f"configs/my-{kind}.yaml" in here
    project = (folder / "pyproject.toml").read_text()
    target = {"dataset": "my_dataset", "kernel": "my_kernel"}.get(kind, f"My{kind.title()}")
    assert f':{target}"' in project and f'{PLUGIN_API} = "{package}"' in project
    assert f'dependencies = ["{scaffold.requirement(version("lightrec"))}"]' in project
    tree = ast.parse((folder / "src" / package / f"{kind}.py").read_text())
    assert target in {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    for path in here:
        if not path.endswith(".csv") and "__pycache__" not in path:
            assert "$" not in (folder / path).read_text(), f"{path}: a place of the template was not filled in"


@pytest.mark.parametrize(
    ("word", "kind", "name", "distribution"),
    [
        ("HelloNet", "model", "HelloNet", "lightrec-hellonet"),
        ("hello-net", "model", "HelloNet", "lightrec-hello-net"),
        ("lightrec-hello", "encoder", "Hello", "lightrec-hello"),
        ("my_shop", "dataset", "my-shop", "lightrec-my-shop"),
        ("my-scan", "kernel", "my_scan", "lightrec-my-scan"),
    ],
)
def test_one_word_gives_all_names(word, kind, name, distribution):
    names = scaffold.names_of(word, kind)
    assert (names.name, names.distribution, names.package) == (name, distribution, distribution.replace("-", "_"))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["9lives"], "'9lives' cannot be the name of a plug-in"),
        (["a/b"], "cannot be the name"),
        (["Ünder"], "cannot be the name"),
        (["class"], "a word of Python's own"),
        (["SASRec"], "model 'SASRec' is a built-in: choose another name"),
        (["sasrec"], "model 'SASRec' is a built-in"),
        (["ml-100k", "--kind", "dataset"], "dataset 'ml-100k' is a built-in"),
        (["Sequence"], "SequenceEncoder is a name that every such file imports"),
        (["Tensor", "--kind", "encoder"], "Tensor is a name that every such file imports"),
        (["There"], "lightrec-there exists already: choose another name, or another folder with --path DIR"),
        (["Fine", "--path", "file"], "file/lightrec-fine cannot be written: Not a directory"),
        (["Fine", "--kind", "modell"], "invalid choice: 'modell'"),
    ],
)
def test_what_cannot_be_made_is_refused_and_nothing_is_written(complaint, argv, said):
    Path("lightrec-there").mkdir()
    Path("file").write_text("")
    assert said in complaint("plugins", "new", *argv)
    assert sorted(path.name for path in Path().iterdir()) == ["file", "lightrec-there"]


def test_the_command_says_what_is_yours_to_write_and_what_to_do_next(capsys):
    assert main(["plugins", "new", "HelloNet", "--path", "deep/down"]) == 0
    out = capsys.readouterr().out
    assert Path("deep/down/lightrec-hellonet/src/lightrec_hellonet/model.py").is_file()
    assert "yours to write is src/lightrec_hellonet/model.py" in out
    assert "lightrec fit --model HelloNet" in out and "pip install ." in out


def test_a_template_without_its_files_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(scaffold, "TEMPLATE", tmp_path / "gone")
    with pytest.raises(InputError, match="the installation is damaged"):
        scaffold.rendered(scaffold.names_of("X", "model"), "model")


@pytest.mark.parametrize(
    ("ours", "asked"),
    [("0.1.0", "lightrec>=0.1,<0.2"), ("0.12.3.dev1", "lightrec>=0.12,<0.13"), ("2.5", "lightrec>=2.5,<3")],
)
def test_the_range_of_versions_ends_before_what_may_break(ours, asked):
    assert scaffold.requirement(ours) == asked


def test_a_tree_that_was_never_installed_asks_for_no_version():
    assert scaffold.requirement("0+unknown") == "lightrec"


def test_a_first_model_fits_in_sixty_lines_of_code(made):
    source = (made["model"] / "src" / "lightrec_my_model" / "model.py").read_text()
    docs = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            docs.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code = [line for i, line in enumerate(source.splitlines(), 1) if line.strip() and i not in docs]
    assert len(code) <= 60
