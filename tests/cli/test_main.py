"""The front of the command line: help, version, unknown commands; quick, and without torch."""

import os
import subprocess
import sys

import pytest

import lightrec
from lightrec.cli import allocator, main
from lightrec.cli.command_line import CommandLine


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full is Linux's")
def test_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "lightrec", "plugins", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "no space left" in done.stderr


def test_reader_that_leaves_early_is_no_error_message():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "lightrec", "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""


class TestAllocator:
    """The process starts over once, with glibc's thresholds raised."""

    CODE = "import os, sys; from lightrec.cli.allocator import tune; tune(); print(os.environ.get('GLIBC_TUNABLES'))"

    def run(self, *argv, **environment):
        clean = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LOCAL_RANK")}
        command = [sys.executable, "-c", self.CODE, *argv]
        done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
        (line,) = done.stdout.splitlines()  # once: nothing ran before the process started over
        return line

    @pytest.mark.skipif(not allocator._glibc(), reason="not glibc")
    def test_thresholds_are_set_and_other_tunables_kept(self):
        assert self.run() == allocator.TUNABLES
        assert self.run(GLIBC_TUNABLES="glibc.rtld.nns=4") == f"glibc.rtld.nns=4:{allocator.TUNABLES}"

    def test_nothing_happens_where_it_is_not_wanted(self):
        for words in (["--tune_allocator", "off"], ["--tune_allocator=off"], ["--tune_allocator", "false"], ["--help"]):
            assert CommandLine.read("fit", words).keeps_allocator
        assert not CommandLine.read("fit", ["--model", "SASRec", "--tune_allocator", "auto"]).keeps_allocator
        assert self.run(LOCAL_RANK="1") == "None"
        mine = "glibc.malloc.mmap_threshold=1000000"
        assert self.run(GLIBC_TUNABLES=mine) == mine
