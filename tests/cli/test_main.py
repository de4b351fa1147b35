"""The front of the command line: help, version, unknown commands; quick, and without torch."""

import os
import subprocess
import sys

import pytest

import lightrec
from lightrec.cli import main


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["plugins", "list"], ["data", "list"], ["data"]])
def test_quick_commands_do_not_import_torch(argv):
    code = (
        "import sys; from lightrec.cli import main; rc = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'jsonargparse', 'polars'} & set(sys.modules); sys.exit(rc or bool(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code, *argv], stdout=subprocess.DEVNULL).returncode == 0


def test_help_answers_in_under_a_second():
    before = os.times()
    subprocess.run([sys.executable, "-m", "lightrec", "--help"], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    # Processor time: the clock on the wall also measures who else uses the machine.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0


def test_help_lists_commands_and_installed_models_with_a_summary(capsys):
    assert main([]) == 0
    nothing = capsys.readouterr().out
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text == nothing
    for word in ("fit", "predict", "recommend", "SASRec", "ml-100k", "Self-attention over the history"):
        assert word in text


def test_version_is_that_of_the_distribution(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lightrec {lightrec.__version__}"


def test_unknown_command_names_the_nearest(complaint):
    assert "did you mean fit?" in complaint("fti")


def test_module_and_function_are_the_same_command():
    done = subprocess.run([sys.executable, "-m", "lightrec", "fti"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_full_disk_is_one_line(monkeypatch, capsys):
    def full(command, argv):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightrec.cli.installed.run", full)
    assert main(["plugins", "list"]) == 2
    assert "no space left" in capsys.readouterr().err
