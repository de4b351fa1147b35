"""How long it takes an author from `lightrec plugins new` to green tests and a first training, and how many lines.

    python benchmarks/author.py [--data.source ml-100k]

The author writes a model that the template does not have, a short causal convolution, below; everything else of the
distribution stays as the template wrote it. The second part installs ten plug-ins and times the commands that list
them. Everything happens in a temporary folder, offline; pip and setuptools are those of this Python. Flags are for
`lightrec fit`; without any, a toy log is trained on.

Goals: under five minutes, at most 60 lines, lists within a second, and nothing imported.
"""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = '''"""ShortConv: a causal convolution over the last few items."""

import torch.nn.functional as F
from lightrec import EncoderRecommender, History, Optimizer, SequenceEncoder
from lightrec.items.embedding import ItemEmbedding
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import AdamW
from torch import Tensor, nn


class ShortConvEncoder(SequenceEncoder):
    """State = gated depthwise convolution of the last `width` items, then a feed-forward layer.

    Args:
        hidden_size: D.
        width: items that a state sees.
    """

    causal = True

    def __init__(self, hidden_size: int = 64, width: int = 4):
        super().__init__()
        self.hidden_size, self.width = hidden_size, width
        self.conv = nn.Conv1d(hidden_size, hidden_size, width, groups=hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def enter(self, history: History) -> History:
        return history

    def mix(self, history: History) -> Tensor:
        x = history.x
        past = F.pad(x.transpose(1, 2), (self.width - 1, 0))
        return self.norm(x + self.conv(past).transpose(1, 2) * self.gate(x).sigmoid())


class ShortConv(EncoderRecommender):
    """A short convolution, trained with the full softmax.

    Args:
        num_items: size of the catalog; told by the data.
        hidden_size: D.
        optimizer: how it is trained.
    """

    network = ShortConvEncoder

    def __init__(self, num_items: int, hidden_size: int = 64, optimizer: Optimizer = AdamW(), **network):
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size),
            encoder=ShortConvEncoder(hidden_size, **network),
            objective=NextItem(),
            optimizer=optimizer,
        )
'''
LIGHTREC = [sys.executable, "-m", "lightrec"]
_BUILD = """import os, sys
from setuptools import build_meta
target, *folders = sys.argv[1:]  # which the first build changes
for folder in folders:
    os.chdir(folder)
    build_meta.build_wheel(target)
"""


def timed(what: str, command: list[str], folder: Path, site: Path | None = None) -> tuple[float, str]:
    """Runs a command that must succeed; prints and returns its seconds on the clock, and its output."""
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if site:
        env["PYTHONPATH"] = str(site)
    began, used = time.perf_counter(), _processor()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(f"{what:<42} {seconds:7.2f} s   {_processor() - used:6.2f} s of the processor", flush=True)
    return seconds, done.stdout


def lines_of_code(source: str) -> int:
    """Counts lines that are neither blank nor comment nor docstring."""
    tree = ast.parse(source)
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docs.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in docs for i, line in lines)


def install(folders: list[Path], site: Path, work: Path) -> list[list[str]]:
    """Returns the commands that build wheels and install them into a folder."""
    wheels = work / f"wheels-{site.name}"
    return [
        [sys.executable, "-c", _BUILD, str(wheels), *map(str, folders)],
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"),
            *("--target", str(site), "--find-links", str(wheels), *(folder.name for folder in folders)),
        ],
    ]


def main(flags: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="author-") as name:
        work = Path(name)
        if not flags:
            from lightrec.testing import toy_log

            flags = ["--data.path", str(toy_log().write_csv(work / "toy.csv"))]
        home, site = work / "lightrec-shortconv", work / "one"
        total = timed("lightrec plugins new ShortConv", [*LIGHTREC, "plugins", "new", "ShortConv"], work)[0]
        (home / "src" / "lightrec_shortconv" / "model.py").write_text(MODEL)
        total += timed("pytest", [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], home)[0]
        for what, command in zip(("build the wheel", "install it"), install([home], site, work), strict=True):
            total += timed(what, command, work)[0]
        fit = [*LIGHTREC, "fit", "--model", "ShortConv", *flags, "--trainer.accelerator", "cpu"]
        total += timed("first training, 3 epochs", [*fit, "--trainer.max_epochs", "3"], work, site)[0]
        written = len(MODEL.splitlines())
        print(f"from nothing to a trained model: {total:.0f} s; {written} lines, {lines_of_code(MODEL)} of them code\n")

        folders = []
        for number in range(10):
            timed(f"plugins new Number{number}", [*LIGHTREC, "plugins", "new", f"Number{number}"], work)
            folders.append(work / f"lightrec-number{number}")
        ten = work / "ten"
        for what, command in zip(("build ten wheels", "install them"), install(folders, ten, work), strict=True):
            timed(what, command, work)
        for argv in (["--help"], ["plugins", "list"]):
            best = min(timed(f"lightrec {' '.join(argv)}", [*LIGHTREC, *argv], work, ten)[0] for _ in range(5))
            code = (
                f"import sys; from lightrec.cli import main; main({argv}); "
                "print([m for m in sys.modules if m.startswith('lightrec_') or m == 'torch'])"
            )
            _, out = timed("  the same, and who was imported", [sys.executable, "-c", code], work, ten)
            assert "Number9" in out
            print(f"lightrec {' '.join(argv)} with ten plug-ins: {best:.2f} s; imported: {out.splitlines()[-1]}")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
