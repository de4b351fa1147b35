"""Names, contests of names, broken and incompatible plug-ins: with distributions as an installer leaves them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightrec import extensions
from lightrec.cli import main
from lightrec.errors import InputError

GOOD = '''
from lightrec.models.sasrec import SASRec as Base


class Gadget(Base):
    """A model of somebody else."""
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution on the path: metadata as an installer writes it, and one module."""
    monkeypatch.delenv("LIGHTREC_PLUGINS", raising=False)

    def put(distribution, entries, source, version="1.2", requires="lightrec", module=None):
        site = tmp_path / distribution
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Dist: {requires}\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(entries)
        module = module or distribution.replace("-", "_")
        (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, module)
        return module

    return put


@pytest.fixture
def gadget(install):
    return install("lightrec-gadget", "[lightrec.models]\nGadget = lightrec_gadget:Gadget\n", GOOD)


def _message(kind, name):
    with pytest.raises(InputError) as caught:
        extensions.load(extensions.resolve(kind, name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_built_ins_are_declared_like_plug_ins_and_can_be_loaded():
    for plugin in extensions.installed():
        if plugin.builtin:
            assert extensions.load(plugin).__name__ == plugin.path.rpartition(".")[2]


def test_a_plug_in_is_found_by_name_without_being_imported(gadget):
    found = extensions.resolve("models", "Gadget")
    assert (found.path, found.distribution, found.version) == ("lightrec_gadget.Gadget", "lightrec-gadget", "1.2")
    assert gadget not in sys.modules
    assert extensions.summary(found) == "A model of somebody else."
    assert gadget not in sys.modules


def test_built_in_wins_and_the_homonym_has_a_full_name(install):
    install("lightrec-rival", "[lightrec.models]\nSASRec = lightrec_rival:Gadget\n", GOOD)
    assert extensions.resolve("models", "SASRec").builtin
    assert extensions.resolve("models", "lightrec-rival:SASRec").path == "lightrec_rival.Gadget"
    assert extensions.resolve("models", "Lightrec_Rival:SASRec").path == "lightrec_rival.Gadget"
    (rival,) = (p for p in extensions.installed("models") if p.distribution == "lightrec-rival")
    state = extensions.status(rival, extensions.installed("models"))
    assert state.word == "shadowed" and "built-in" in state.reason and "lightrec-rival:SASRec" in state.reason


def test_a_name_that_two_plug_ins_declare_is_never_guessed(install):
    for name in ("lightrec-a", "lightrec-b"):
        install(name, f"[lightrec.models]\nTwin = {name.replace('-', '_')}:Gadget\n", GOOD)
    message = _message("models", "Twin")
    assert "lightrec-a:Twin" in message and "lightrec-b:Twin" in message
    found = extensions.installed("models")
    twins = [p for p in found if p.name == "Twin"]
    assert [extensions.status(p, found).word for p in twins] == ["shadowed", "shadowed"]
    assert extensions.resolve("models", "lightrec-b:Twin").distribution == "lightrec-b"


def test_unknown_name_lists_near_matches_what_is_installed_and_what_is_broken(gadget, install):
    install("lightrec-sick", "[lightrec.models]\nSick = lightrec_sick:Sick\n", "import a_module_that_is_not_there\n")
    message = _message("models", "Gagdet")
    assert "did you mean Gadget?" in message
    assert "SASRec" in message
    assert "installed but broken: Sick of lightrec-sick 1.2 (ModuleNotFoundError" in message


@pytest.mark.parametrize(
    ("source", "cause", "remedy"),
    [
        ("import a_module_that_is_not_there\n", "a_module_that_is_not_there", "install the module"),
        ("raise RuntimeError('wrong\\nmoon')\n", "RuntimeError: wrong", "pip uninstall lightrec-sick"),
        ("x = 1\n", "AttributeError", "pip uninstall lightrec-sick"),
        ("def broken(:\n", "SyntaxError", "LIGHTREC_PLUGINS=none"),
    ],
)
def test_broken_plug_in_names_distribution_version_cause_and_remedy(install, source, cause, remedy):
    install("lightrec-sick", "[lightrec.models]\nSick = lightrec_sick:Sick\n", source)
    message = _message("models", "Sick")
    assert "lightrec-sick 1.2" in message
    assert cause in message and remedy in message


def test_broken_plug_in_does_not_disturb_others(install):
    install("lightrec-sick", "[lightrec.models]\nSick = lightrec_sick:Sick\n", "raise RuntimeError\n")
    assert extensions.load(extensions.resolve("models", "SASRec")).__name__ == "SASRec"
    assert main(["--help"]) == 0
    assert main(["plugins", "list"]) == 0


@pytest.mark.parametrize("requires", ["lightrec>=99", "lightrec (<0.0.1)", "lightrec==99.*", "lightrec ~=99.1"])
def test_plug_in_for_another_lightrec_is_refused_with_both_versions(install, requires):
    install("lightrec-old", "[lightrec.models]\nOld = lightrec_old:Gadget\n", GOOD, requires=requires)
    assert "this is lightrec" in _message("models", "Old")


@pytest.mark.parametrize(
    "requires", ["lightrec", "lightrec>=0.0.1,<99", "lightrec !=0.0.0", "lightrec>=99; extra == 'x'"]
)
def test_plug_in_for_this_lightrec_is_accepted(install, requires):
    install("lightrec-fine", "[lightrec.models]\nFine = lightrec_fine:Gadget\n", GOOD, requires=requires)
    assert extensions.resolve("models", "Fine").problem is None


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ("3 = lightrec_new", "it is written for plug-in API 3, this is lightrec"),
        ("3 = lightrec_new\n4 = lightrec_new", "plug-in API 3 and 4"),
        ("next = lightrec_new", "plug-in API 'next', which is not an integer"),
        ("2 = lightrec_new", None),
        ("1 = lightrec_new\n2 = lightrec_new", None),
        ("", None),
    ],
)
def test_a_plug_in_for_another_plug_in_api_is_refused(install, declared, reason):
    entries = f"[lightrec.models]\nNew = lightrec_new:Gadget\n[lightrec.api]\n{declared}\n"
    module = install("lightrec-new", entries, GOOD)
    if reason is None:
        assert extensions.load(extensions.resolve("models", "New")).__name__ == "Gadget"
    else:
        assert reason in _message("models", "New")
        assert module not in sys.modules


def test_a_group_that_nobody_reads_is_shown_with_the_right_one(install, capsys):
    install("lightrec-typo", "[lightrec.model]\nTypo = lightrec_typo:Gadget\n", GOOD)
    assert main(["plugins", "list", "--json"]) == 0
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["name"] == "Typo")
    assert row["status"] == "incompatible" and "did it mean lightrec.models?" in row["reason"]


@pytest.mark.parametrize(
    ("kind", "source", "cause"),
    [
        ("models", "def X():\n    pass\n", "X is a function, not a class that inherits from lightrec.Sequence"),
        ("models", "class X:\n    pass\n", "X does not inherit from lightrec.SequenceRecommender"),
        ("models", "from lightrec import EncoderRecommender as X\n", None),
        ("models", "from lightrec import SequenceRecommender as X\n", "leaves loss, recommend undefined"),
        ("encoders", "from lightrec.models.sasrec import SASRec as X\n", "does not inherit from lightrec.SequenceEnc"),
        ("objectives", "from lightrec.models.sasrec import SASRecEncoder as X\n", "from lightrec.Objective"),
        ("datasets", "X = 'path'\n", "X is a str, not a function"),
        ("models", "raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_name_of_the_wrong_kind_is_refused(install, kind, source, cause):
    install("lightrec-wrong", f"[lightrec.{kind}]\nX = lightrec_wrong:X\n", source)
    if cause is None:
        assert extensions.load(extensions.resolve(kind, "X"))
    else:
        assert cause in _message(kind, "X")


def test_what_a_plug_in_prints_when_it_is_imported_stays_out_of_the_output(install, capsys):
    install("lightrec-loud", "[lightrec.models]\nLoud = lightrec_loud:Gadget\n", "print('hello')\n" + GOOD)
    extensions.load(extensions.resolve("models", "Loud"))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")


def test_an_import_that_takes_long_is_named(install, capsys):
    install("lightrec-slow", "[lightrec.datasets]\nslow = lightrec_slow:f\n", "import time\ntime.sleep(.5)\nf = int\n")
    extensions.load(extensions.resolve("datasets", "slow"), patience=0.1)
    assert "still importing lightrec-slow:slow 1.2" in capsys.readouterr().err


def test_a_trial_survives_what_hangs_dies_and_prints(install):
    sources = {
        "hang": "import time\ntime.sleep(600)\n",
        "die": "import os\nos._exit(7)\n",
        "loud": "print('x' * 10)\nimport os\nos.write(1, b'y' * 5)\nask = int\n",
        "ask": "input()\n",
    }
    for name, source in sources.items():
        more = f"{name}2 = lightrec_fine_{name}:f\n"
        site = install(f"lightrec-{name}", f"[lightrec.datasets]\n{name} = lightrec_{name}:ask\n{more}", source)
        (Path(sys.path[0]) / f"lightrec_fine_{name}.py").write_text("f = int\n")
        assert site not in sys.modules
    found = [p for p in extensions.installed("datasets") if not p.builtin]
    outcomes = {p.name: o for p, o in zip(found, extensions.try_all(found, limit=1.5), strict=True)}
    assert outcomes["hang"].cause == "its import did not end within 1.5 s"
    assert outcomes["die"].cause == "the process died with code 7"
    assert outcomes["ask"].cause.startswith("EOFError")
    assert outcomes["loud"] == extensions.Outcome(None, 16)
    assert all(outcomes[f"{name}2"].cause is None for name in sources)


def test_what_a_plug_in_names_is_called_and_what_it_raises_is_handed_on(install):
    install("lightrec-made", "[lightrec.kernels]\nmade = lightrec_made:f\n", "def f():\n    return 7\n")
    install("lightrec-odd", "[lightrec.kernels]\nodd = lightrec_odd:f\n", "def f():\n    raise SystemExit(3)\n")
    assert extensions.call_in_time(extensions.resolve("kernels", "made")) == 7
    with pytest.raises(SystemExit):
        extensions.call_in_time(extensions.resolve("kernels", "odd"))


def test_a_call_that_does_not_end_is_left_behind_and_named(install, capsys):
    install(
        "lightrec-hung",
        "[lightrec.kernels]\nhung = lightrec_hung:f\n",
        "import threading\nleave = threading.Event()\ndef f():\n    leave.wait()\n",
    )
    plugin = extensions.resolve("kernels", "hung")
    with pytest.raises(extensions.PluginError, match="did not end within 0.3 s"):
        extensions.call_in_time(plugin, limit=0.3)
    print("a result")
    out, err = capsys.readouterr()
    assert out == "a result\n" and "did not end within 0.3 s" in err
    sys.modules["lightrec_hung"].leave.set()


def test_a_data_source_of_a_plug_in_never_takes_the_name_of_a_built_in(install):
    from lightrec.data.sources import find_source

    source = "from lightrec.data.sources import ml_1m as mine\n"
    install("lightrec-thief", "[lightrec.datasets]\nml-100k = lightrec_thief:mine\n", source)
    assert find_source("ml-100k").name == "ml-100k"
    assert find_source("lightrec-thief:ml-100k").name == "ml-1m"


def test_help_survives_any_source(install):
    for name, entry in (
        ("binary", "lightrec_binary:X"),
        ("plain", "lightrec_plain.sub:X"),
        ("none", "no_such.thing:X"),
    ):
        module = install(f"lightrec-{name}", f"[lightrec.models]\n{name} = {entry}\n", "")
        (Path(sys.path[0]) / f"{module}.py").write_bytes(b"\x00\xff")
    assert main([]) == 0


def test_an_installation_that_was_cut_off_disturbs_nobody(install, tmp_path):
    install("lightrec-fine", "[lightrec.models]\nFine = lightrec_fine:Gadget\n", GOOD)
    for name, entries in (("half", "[lightrec.models]\nHalf = half:X\n"), ("odd", "lightrec.models\n= = =\n")):
        info = Path(sys.path[0]) / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_text(entries)
    assert "Fine" in {p.name for p in extensions.installed("models")}


def test_environment_variable_restricts_plug_ins_but_not_built_ins(gadget, monkeypatch):
    monkeypatch.setenv("LIGHTREC_PLUGINS", "none")
    assert all(plugin.builtin for plugin in extensions.installed())
    assert "LIGHTREC_PLUGINS=none hides others" in _message("models", "Gadget")
    monkeypatch.setenv("LIGHTREC_PLUGINS", "lightrec_gadget, other")
    assert extensions.resolve("models", "Gadget").distribution == "lightrec-gadget"
    monkeypatch.setenv("LIGHTREC_PLUGINS", "other")
    assert "lightrec-gadget" not in {plugin.distribution for plugin in extensions.installed()}
    (hidden,) = (plugin for plugin in extensions.everything() if plugin.distribution == "lightrec-gadget")
    state = extensions.status(hidden, extensions.everything())
    assert (state.word, state.reason) == ("disabled", "LIGHTREC_PLUGINS=other leaves it out")


def test_list_shows_each_with_its_state_and_checks_on_request(gadget, install, capsys):
    install("lightrec-sick", "[lightrec.models]\nSick = lightrec_sick:Sick\n", "raise RuntimeError('no')\n")
    assert main(["plugins", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["Sick"]["status"] == "ok"  # nobody asked to import it
    assert {row["origin"] for row in rows.values()} == {"built-in", "installed"}
    assert (rows["SASRec"]["origin"], rows["Sick"]["origin"]) == ("built-in", "installed")
    assert main(["plugins", "list", "--json", "--check", "--kind", "models"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["Sick"]["status"], rows["Sick"]["reason"]) == ("broken", "RuntimeError: no")
    assert rows["Gadget"]["status"] == "ok"
    assert Path(rows["Gadget"]["location"]).name == "lightrec-gadget"


def test_plugins_alone_lists_with_status_and_reason(install, capsys):
    install("lightrec-old", "[lightrec.models]\nOld = lightrec_old:Gadget\n", GOOD, requires="lightrec>=99")
    assert main(["plugins"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Old "))
    assert line.split()[:6] == ["Old", "models", "lightrec-old", "1.2", "installed", "incompatible:"]
    assert "it requires lightrec >=99, this is lightrec" in line


def test_a_command_of_a_plug_in_runs_and_is_listed(install, capsys):
    source = 'def bench(argv):\n    """Measure something."""\n    print("bench", *argv)\n    return 3\n'
    install("lightrec-bench", "[lightrec.commands]\nbench = lightrec_bench:bench\n", source)
    assert main(["bench", "a", "b"]) == 3
    assert capsys.readouterr().out == "bench a b\n"
    assert main([]) == 0
    assert "Measure something. (lightrec-bench)" in capsys.readouterr().out


def test_a_command_with_the_name_of_our_own_is_reached_by_its_full_name(install, capsys):
    source = 'def mine(argv):\n    """Do otherwise."""\n    print("mine", *argv)\n'
    install("lightrec-bold", "[lightrec.commands]\nplugins = lightrec_bold:mine\n", source)
    assert main(["plugins", "list", "--kind", "commands"]) == 0
    assert "shadowed: by lightrec's own command; use lightrec-bold:plugins" in capsys.readouterr().out
    assert main(["lightrec-bold:plugins", "a"]) == 0
    assert capsys.readouterr().out == "mine a\n"


def test_plugins_module_needs_the_standard_library_only():
    code = "import sys; from lightrec.extensions import installed; installed(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_kind_is_a_programming_error():
    with pytest.raises(ValueError, match="kind 'model' is unknown"):
        extensions.installed("model")
