"""Plug-ins as real wheels, good and faulty: each has its outcome, and none disturbs a command that does not name it."""

import json
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightrec import extensions
from lightrec.cli import main
from lightrec.testing import toy_log

TEN = ["Twin", "SASRec", "Crash", "Exit", "Hang", "Loud", "Wrong", "Future", "Range", "Hello"]


@pytest.fixture
def here(site, tmp_path, monkeypatch):
    """The wheels on the path of this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("LIGHTREC_PLUGINS", raising=False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("lightrec_"):
            del sys.modules[name]


@pytest.fixture
def toy(tmp_path):
    log = toy_log(num_users=20).write_csv(tmp_path / "toy.csv")
    trainer = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run_folder", "run"]
    return ["--data.path", str(log), "--data.cache_dir", str(tmp_path / "cache"), *trainer]


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_wheel_of_lightrec_brings_the_templates(tmp_path):
    root = Path(__file__).parents[2]
    shutil.copytree(root / "lightrec", tmp_path / "lightrec", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, tmp_path)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, "built"], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "built").glob("*.whl")
    there = {path.relative_to(root).as_posix() for path in (root / "lightrec" / "template").rglob("*.in")}
    assert len(there) > 20 and there <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("argv", [["--help"], ["plugins", "list"], ["plugins"], ["data", "list"]])
def test_with_ten_plug_ins_a_list_takes_less_than_a_second_and_imports_none(lightrec, argv):
    before = processor_seconds()
    done, imported = lightrec(*argv)
    # Of the processor, because others may use it: alone on a machine that is what passes on the clock.
    assert processor_seconds() - before < 1.0
    assert done.returncode == 0 and done.stderr == ""
    assert imported == []
    assert all(name in done.stdout for name in TEN) or argv == ["data", "list"]


def rows(done):
    assert done.returncode == 0, done.stderr
    return {row["full_name"]: row for row in json.loads(done.stdout)}


def test_metadata_tell_who_is_shadowed_or_incompatible(lightrec):
    found = rows(lightrec("plugins", "list", "--json", "--kind", "models")[0])
    assert found["lightrec-hello:Hello"]["status"] == "ok"
    assert found["lightrec-hello:Hello"]["origin"] == "installed" and found["SASRec"]["origin"] == "built-in"
    rival = found["lightrec-rival:SASRec"]
    assert (rival["status"], rival["reason"]) == (
        "shadowed",
        "by the built-in of this name; use lightrec-rival:SASRec",
    )
    assert (
        found["lightrec-twin-a:Twin"]["reason"] == "shares its name with lightrec-twin-b:Twin; use lightrec-twin-a:Twin"
    )
    assert found["SASRec"]["status"] == "ok"
    assert found["lightrec-future:Future"]["status"] == "incompatible"
    assert "plug-in API 3, this is lightrec" in found["lightrec-future:Future"]["reason"]
    assert "it requires lightrec >=99" in found["lightrec-range:Range"]["reason"]
    hidden = rows(lightrec("plugins", "list", "--json", LIGHTREC_PLUGINS="lightrec-hello")[0])
    assert hidden["lightrec-hello:Hello"]["status"] == "ok"
    assert hidden["lightrec-loud:Loud"]["status"] == "disabled"


def test_a_check_imports_each_and_survives_what_hangs_prints_and_exits(lightrec):
    done, imported = lightrec("plugins", "list", "--json", "--check", "--kind", "models", "--timeout", "3")
    found = {row["full_name"]: (row["status"], row["reason"]) for row in rows(done).values()}
    assert found["lightrec-hello:Hello"] == ("ok", "")
    assert found["lightrec-crash:Crash"] == ("broken", "RuntimeError: wrong moon")
    assert found["lightrec-exit:Exit"] == ("broken", "SystemExit: 5")
    assert found["lightrec-hang:Hang"] == ("broken", "its import did not end within 3 s")
    assert found["lightrec-loud:Loud"] == ("ok", "writes 11 bytes when it is imported")
    assert found["lightrec-wrong:Wrong"][1].startswith("Mine does not inherit from lightrec.SequenceRecommender")
    assert found["lightrec-twin-b:Twin"][0] == "shadowed"
    assert "lightrec_future" not in imported and "lightrec_range" not in imported


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "Crash",
            "model 'Crash' of lightrec-crash 1.2 cannot be used (RuntimeError: wrong moon); upgrade or uninstall",
        ),
        ("Exit", "model 'Exit' of lightrec-exit 1.2 cannot be used (SystemExit: 5)"),
        ("Wrong", "(Mine does not inherit from lightrec.SequenceRecommender, as a name in lightrec.models must)"),
        ("Future", "cannot be used (it is written for plug-in API 3"),
        ("Range", "cannot be used (it requires lightrec >=99"),
        ("Twin", "is declared by several plug-ins: write lightrec-twin-a:Twin or lightrec-twin-b:Twin"),
    ],
)
def test_asking_for_a_faulty_one_says_whose_it_is_and_what_to_do(here, toy, capsys, name, said):
    assert main(["fit", "--model", name, *toy]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("lightrec: ") == 1


def test_a_name_that_nobody_has_names_the_broken_ones_and_does_not_hang(here, toy, capsys, monkeypatch):
    monkeypatch.setenv("LIGHTREC_PLUGINS", "lightrec-hello,lightrec-crash,lightrec-loud")
    assert main(["fit", "--model", "Helo", *toy]) == 2
    out, err = capsys.readouterr()
    assert "did you mean Hello?" in err and "Crash of lightrec-crash 1.2 (RuntimeError: wrong moon)" in err
    assert "look at me" not in out + err


def test_a_plug_in_trains_by_its_name_and_no_other_is_imported(lightrec, toy):
    done, imported = lightrec("fit", "--model", "Hello", "--model.hidden_size", "8", *toy)
    assert done.returncode == 0, done.stderr
    assert set(imported) == {"lightrec_hello"}
    assert "Hello," in done.stdout


def test_homonyms_are_chosen_by_distribution_and_what_they_print_is_not_in_the_output(here, toy, capsys):
    small = ["--model.hidden_size", "8", "--model.num_layers", "1"]
    assert main(["fit", "--model", "lightrec-rival:SASRec", *small, *toy]) == 0
    assert "lightrec_rival" in sys.modules and "lightrec_loud" not in sys.modules
    capsys.readouterr()
    assert extensions.load(extensions.resolve("models", "Loud")).__name__ == "Mine"
    assert capsys.readouterr() == ("", "look at me\n")


def test_a_check_gives_a_verdict_line_by_line_and_in_json(lightrec):
    slow = [word for name in ("learning", "two processes", "export", "speed") for word in ("--skip", name)]
    done, imported = lightrec("plugins", "check", "Hello", "--json", "--set", "hidden_size=8", *slow)
    verdict = json.loads(done.stdout)
    assert done.returncode == 0 and verdict["ok"]
    assert verdict["built_with"] == {"hidden_size": 8, "dropout": 0.1, "optimizer": "AdamW(learning_rate=0.01)"}
    found = {check["check"]: (check["status"], check["reason"]) for check in verdict["checks"]}
    assert {name for name, (status, _) in found.items() if status == "ok"} == {
        "import",
        "configuration",
        "padding",
        "rows",
        "seen items",
        "causality",
        "top-k",
        "gradients",
        "checkpoint",
    }
    assert found["steps"] == ("skipped", "it has no step form")
    assert found["speed"] == ("skipped", "left out by --skip")
    assert set(imported) == {"lightrec_hello"}


def test_a_check_of_one_that_cannot_be_imported_fails_and_says_why(lightrec):
    done, _ = lightrec("plugins", "check", "Crash")
    assert done.returncode == 1
    first, last = done.stdout.splitlines()
    assert first.split()[:2] == ["failed", "import"] and first.endswith("RuntimeError: wrong moon")
    assert last == "lightrec-crash:Crash 1.2 does not keep the contract: 0 ok, 1 failed, 0 skipped"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["check", "Helo"], "no plug-in is called 'Helo'; did you mean"),
        (["check", "Future"], "cannot be used (it is written for plug-in API 3"),
        (["check", "Hello", "--set", "8"], "--set '8' must be an argument and its value"),
        (["chek"], "lightrec plugins chek is unknown; did you mean check?"),
        (["new", "Hello"], "model 'Hello' is installed already, by lightrec-hello 0.1.0"),
    ],
)
def test_wrong_usage_is_explained_in_a_line(here, capsys, argv, said):
    assert main(["plugins", *argv]) == 2
    assert said in capsys.readouterr().err
