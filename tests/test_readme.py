"""What the README tells a newcomer to type works, on a toy log."""

import re
import shlex
from pathlib import Path

import pytest

from lightrec.cli import main
from lightrec.testing import toy_log

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.S)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.startswith("lightrec ")
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder as the README supposes it: the recipes, a log of purchases, a run and its best checkpoint."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "configs").symlink_to(ROOT / "configs")
    text = toy_log().write_csv(folder / "toy.csv").read_text()
    text = text.replace("user,item,time,title", "customer,sku,when,title").replace("item-", "sku-")
    (folder / "purchases.csv").write_text(text.replace("Title 3,", "Toy Story,").replace("Title 3\n", "Toy Story\n"))
    (folder / "new.csv").write_text("user,item\nsomebody,sku-1\nsomebody,sku-7\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = "runs/SASRec-purchases/TIME"
        flags = ["--model", "SASRec", "--model.hidden_size", "8", "--data.path", str(folder / "purchases.csv")]
        assert main(["fit", *flags, "--trainer.max_epochs", "1", "--run_folder", run]) == 0
        (folder / "best.ckpt").write_bytes((folder / run / "checkpoints" / "best.ckpt").read_bytes())
        assert main(["fit", *flags, "--trainer.max_epochs", "1", "--run_folder", "runs/demo"]) == 0
        for path in (run, "runs/demo"):
            assert main(["test", "--ckpt_path", f"{path}/checkpoints/best.ckpt"]) == 0
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = shlex.split(command)[1:]
    if words[0] == "fit":
        words += ["--trainer.max_epochs", "2"]
        if "--ckpt_path" not in words:
            words += ["--data.source", "file", "--data.path", str(home / "purchases.csv")]
    if words[:2] == ["data", "stats"]:
        words = ["data", "stats", "--data.path", str(home / "purchases.csv")]
    assert main(words) == 0


def test_the_snippets_of_python_run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    snippets = [block for language, block in BLOCKS if language == "python"]
    assert snippets
    for snippet in snippets:
        exec(snippet, {})
    assert "sku-" in capsys.readouterr().out


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in link or (ROOT / link).exists(), link
