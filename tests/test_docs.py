"""What the pages of the site tell people to type works: every command and every snippet, on a toy log."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightrec.cli import main
from lightrec.testing import toy_log

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# These pages have tests of their own, which know what they suppose.
ELSEWHERE = {"streaming.md", "plugins.md"}
PAGES = sorted(page for page in DOCS.glob("*.md") if page.name not in ELSEWHERE)
BLOCKS = {
    page.stem: re.findall(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", page.read_text(), re.S | re.M)
    for page in PAGES
}
COMMANDS = [
    pytest.param(page, line.split("  #")[0].strip(), id=f"{page}: {line.strip()[:60]}")
    for page, blocks in BLOCKS.items()
    for language, _, block in blocks
    if language == "sh"
    for line in block.splitlines()
    if line.startswith("lightrec ")
]
SNIPPETS = [page for page, blocks in BLOCKS.items() if any(language == "python" for language, _, _ in blocks)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder as the pages suppose it: the recipes, a log of purchases, a run, its checkpoint, two files of ranks."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    text = toy_log().write_csv(folder / "toy.csv").read_text()
    (folder / "purchases.csv").write_text(
        text.replace("user,item,time,title", "customer,sku,when,title").replace("item-", "sku-")
    )
    for blocks in BLOCKS.values():
        for language, title, block in blocks:
            if language == "python" and title:
                (folder / title).write_text(block)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = "runs/SASRec-purchases/TIME"
        flags = ["--model", "SASRec", "--model.hidden_size", "8", "--data.path", str(folder / "purchases.csv")]
        assert main(["fit", *flags, "--trainer.max_epochs", "1", "--run_folder", run]) == 0
        shutil.copy(folder / run / "checkpoints" / "best.ckpt", folder / "best.ckpt")
        assert main(["fit", *flags, "--trainer.max_epochs", "1", "--run_folder", "runs/demo"]) == 0
        for path in (run, "runs/demo"):
            users = ["--evaluation.per_user", f"{path}/per-user.parquet"]
            assert main(["test", "--ckpt_path", f"{path}/checkpoints/best.ckpt", *users]) == 0
        for name in ("first", "second"):
            assert main(["test", "--ckpt_path", "best.ckpt", "--evaluation.per_user", f"{name}.parquet"]) == 0
    return folder


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_works(page, command, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = shlex.split(command)[1:]
    if words[0] == "fit":
        words += ["--trainer.max_epochs", "2"]
        if any("ddp" in word for word in words):  # which would start this test in every process
            words += ["--trainer.devices", "1", "--trainer.strategy", "auto"]
        if "--ckpt_path" not in words:
            words += ["--data.source", "file", "--data.path", str(home / "purchases.csv")]
    if words[:2] == ["data", "stats"] and "--data.path" not in words:
        words = ["data", "stats", "--data.path", str(home / "purchases.csv")]
    assert main(words) == 0


@pytest.mark.parametrize("page", SNIPPETS)
def test_the_snippets_of_a_page_run_one_after_another(page, home):
    """In a process of its own, where nothing is left over from other tests."""
    parts = [block for language, _, block in BLOCKS[page] if language == "python"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(home), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_there_is_something_to_test():
    assert len(COMMANDS) > 20 and len(SNIPPETS) >= 5


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install 'lightrec[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'id="lightrec.models.sasrec.SASRec"' in (tmp_path / "site" / "api" / "models" / "index.html").read_text()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in navigation, page
