"""`lightrec plugins new NAME`: a complete small distribution, whose tests pass at once."""

from __future__ import annotations

import ast
import hashlib
import keyword
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template

import lightrec
from lightrec import extensions
from lightrec.cli.options import Options
from lightrec.errors import InputError

TEMPLATE = Path(lightrec.__file__).parent / "template"
# What is made: the group of its entry point, and what it is called in a sentence.
KINDS = {
    "model": ("models", "a sequential recommender"),
    "encoder": ("encoders", "a sequence encoder"),
    "objective": ("objectives", "a training objective"),
    "dataset": ("datasets", "a data source"),
    "kernel": ("kernels", "a kernel of the selective scan"),
}
_CLASSES = ("model", "encoder", "objective")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Names:
    """All that follows from the name that was typed."""

    name: str
    """What users will type: `HelloNet` for classes, `hello-net` for data sources, `hello_net` for kernels."""
    slug: str
    """`hello-net`."""

    @property
    def distribution(self) -> str:
        return f"lightrec-{self.slug}"

    @property
    def package(self) -> str:
        return self.distribution.replace("-", "_")


def run(argv: list[str]) -> int:
    """Writes the distribution and says what to do next. Returns the exit code.

    Raises:
        InputError: the name is invalid or taken, or the folder exists or cannot be written.
    """
    parser = Options("lightrec plugins new", description="Write a small complete plug-in to start from.")
    parser.add_argument("name", help="its name, HelloNet or hello-net")
    parser.add_argument("--kind", choices=list(KINDS), default="model", help="what it brings (default: model)")
    parser.add_argument("--path", default=".", metavar="DIR", help="folder to put it in (default: here)")
    options = parser.parse_args(argv)
    names = names_of(options.name, options.kind)
    _check_free(names, options.kind)
    folder = Path(options.path).expanduser() / names.distribution
    written = write(folder, names, options.kind)
    code = next(path for path in written if path.parent.name == names.package and path.name != "__init__.py")
    print(f"{folder}: {len(written)} files; yours to write is {code.relative_to(folder)}")
    print(f"next:\n  cd {folder}\n  python -m pytest\n  pip install .\n  {_first_use(names, options.kind)}")
    return 0


def names_of(word: str, kind: str) -> Names:
    """Derives names of distribution, package and class.

    Raises:
        InputError: no class or package can have such a name.
    """
    bare = re.sub(r"^lightrec[-_]", "", word, flags=re.IGNORECASE)
    if not _NAME.fullmatch(bare):
        raise InputError(
            f"{word!r} cannot be the name of a plug-in: letters and digits, beginning with a letter, as in HelloNet; "
            "words may be joined by - as in hello-net."
        )
    parts = re.split("[-_]", bare)
    slug = "-".join(part.lower() for part in parts)
    if kind in _CLASSES:
        name = "".join(part[0].upper() + part[1:] for part in parts)
    else:
        name = slug if kind == "dataset" else slug.replace("-", "_")
    if keyword.iskeyword(name) or keyword.iskeyword(slug):
        raise InputError(f"{word!r} is a word of Python's own: choose another name.")
    return Names(name, slug)


def write(folder: Path, names: Names, kind: str) -> list[Path]:
    """Fills the template of a kind in.

    Args:
        folder: the new folder of the distribution; must not exist.
        names: of the plug-in.
        kind: a key of KINDS.

    Returns:
        The files that were written.

    Raises:
        InputError: the folder exists or cannot be written; or the name is one that the template itself uses.
    """
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists already: choose another name, or another folder with --path DIR.")
    texts = rendered(names, kind)
    try:
        folder.mkdir(parents=True)
        for where, text in texts.items():
            path = folder / where
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}; choose another --path.") from error
    return [folder / where for where in texts]


def rendered(names: Names, kind: str) -> dict[str, str]:
    """Returns the files of a new distribution, by path below its folder.

    Raises:
        InputError: the name is one that the template itself uses.
    """
    if not (TEMPLATE / kind).is_dir():
        raise InputError(
            f"{TEMPLATE} has no {kind}: the installation is damaged; pip install --force-reinstall lightrec."
        )
    group, what = KINDS[kind]
    target = names.name if kind in _CLASSES else names.slug.replace("-", "_")
    values = {
        "name": names.name,
        "slug": names.slug,
        "distribution": names.distribution,
        "package": names.package,
        "module": kind,
        "target": target,
        "kind": group,
        "what": what,
        "api": str(lightrec.PLUGIN_API),
        "requirement": requirement(lightrec.__version__),
        "log_sha256": hashlib.sha256((TEMPLATE / "dataset" / "log.csv.in").read_bytes()).hexdigest(),
        "data": f'\n\n[tool.setuptools.package-data]\n{names.package} = ["*.csv"]' if kind == "dataset" else "",
    }
    texts = {}
    for source in sorted((TEMPLATE / "common").iterdir()) + sorted((TEMPLATE / kind).iterdir()):
        if source.suffix != ".in":
            continue
        where = _place(source.name.removesuffix(".in"), names)
        texts[where] = Template(source.read_text(encoding="utf-8")).substitute(values)
        if where.endswith(".py"):
            _check_not_imported(texts[where], names.name, target)
    return texts


def requirement(version: str) -> str:
    """Returns the range of lightrec versions to ask for: `lightrec>=0.1,<0.2`, or `lightrec>=1.4,<2` from 1.0 on."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers:
        return "lightrec"
    major, minor = int(numbers[1]), int(numbers[2])
    return f"lightrec>={major}.{minor},<" + (f"0.{minor + 1}" if major == 0 else str(major + 1))


def _place(name: str, names: Names) -> str:
    if name == "gitignore":
        return ".gitignore"
    if name == "config.yaml":
        return f"configs/{names.slug}.yaml"
    if name.startswith("test_"):
        return f"tests/{name}"
    return f"src/{names.package}/{name}" if name.endswith((".py", ".csv")) else name


def _check_not_imported(source: str, *words: str) -> None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            used = {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightrec_"):
                continue  # the test imports what is being made
            if clash := used & {*words, *(f"{word}Encoder" for word in words)}:
                raise InputError(f"{clash.pop()} is a name that every such file imports: choose another name.")


def _check_free(names: Names, kind: str) -> None:
    """Makes sure that nothing installed has this name.

    Raises:
        InputError: a plug-in or a built-in has it; or there is a distribution or a package of this name.
    """
    for plugin in extensions.installed(KINDS[kind][0]):
        if plugin.name.lower() == names.name.lower():
            whose = "a built-in" if plugin.builtin else f"installed already, by {plugin.distribution} {plugin.version}"
            raise InputError(f"{kind} {plugin.name!r} is {whose}: choose another name.")
    if find_spec(names.package) is not None:
        raise InputError(f"a package {names.package} is installed already: choose another name.")


def _first_use(names: Names, kind: str) -> str:
    return {
        "model": f"lightrec fit --model {names.name} --data.source ml-100k",
        "encoder": f"lightrec plugins check {names.name}",
        "objective": f"lightrec fit --model SASRec --model.objective {names.name} --data.source ml-100k",
        "dataset": f"lightrec fit --model SASRec --data.source {names.name}",
        "kernel": f"lightrec kernels --kernel {names.name}",
    }[kind]
