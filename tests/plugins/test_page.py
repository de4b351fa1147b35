"""What docs/plugins.md tells people to type works, in its order: from nothing to a verdict."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightrec.cli import main
from lightrec.extensions import KINDS
from lightrec.testing import toy_log
from lightrec.testing.check_selection import checks_of

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.S | re.M)
QUICK = [word for name in ("learning", "two processes", "export", "speed") for word in ("--skip", name)]


@pytest.mark.slow
def test_every_command_and_snippet_works(tmp_path, monkeypatch, capfd):
    """On a toy log, without a network, and without what other tests run at length."""
    log = toy_log(num_users=20).write_csv(tmp_path / "toy.csv")
    more = {
        "fit": ["--data.source", "file", "--data.path", str(log), "--trainer.max_epochs", "1", "--run_folder", "run"],
        "list": ["--kind", "models"],
        "check": QUICK,
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTREC_PLUGINS", "lightrec-hellonet")
    commands = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
    assert len(commands) >= 9
    try:
        for command in commands:
            words = shlex.split(command)
            if words[0] == "cd":
                monkeypatch.chdir(words[1])
            elif words[0] == "lightrec":
                extra = more.get(words[2 if words[1] == "plugins" else 1], [])
                assert main(words[1:] + extra) == 0, command
            elif words[0] == "python":
                subprocess.run([sys.executable, *words[1:], "-q", "-k", "not learns"], check=True)
            else:
                assert words == ["pip", "install", "."]
                offline = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path / "site")]
                subprocess.run([sys.executable, "-m", *words, "-q", *offline], check=True)
                monkeypatch.syspath_prepend(str(tmp_path / "site"))
        assert capfd.readouterr().out.count("lightrec-hellonet:HelloNet 0.1.0 keeps the contract") == 2
        (snippet,) = (block for language, block in BLOCKS if language == "python")
        exec(snippet, {})
    finally:
        for name in [name for name in sys.modules if name.startswith("lightrec_hellonet")]:
            del sys.modules[name]


def test_the_page_names_every_kind_and_every_check():
    from lightrec import extensions

    assert all(f"| `lightrec.{kind}` |" in PAGE for kind in KINDS)
    names = [name for name, _ in checks_of(extensions.resolve("models", "SASRec"), {})]
    assert all(f"| {name} |" in PAGE for name in ["import", *names])
    assert all(f"| `{word}` |" in PAGE for word in ("ok", "shadowed", "incompatible", "broken", "disabled"))
