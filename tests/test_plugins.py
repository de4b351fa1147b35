"""Names, contests of names, broken and incompatible plug-ins: with distributions as an installer leaves them."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightrec import plugins
from lightrec.cli import main
from lightrec.errors import InputError

GOOD = '''
from lightrec.models.sasrec import SASRec as Base


class HMamba(Base):
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
def hmamba(install):
    return install("lightrec-hmamba", "[lightrec.models]\nHMamba = lightrec_hmamba:HMamba\n", GOOD)


def _message(kind, name):
    with pytest.raises(InputError) as caught:
        plugins.load(plugins.resolve(kind, name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_built_ins_are_declared_like_plug_ins_and_can_be_loaded():
    for plugin in plugins.installed():
        if plugin.builtin:
            assert plugins.load(plugin).__name__ == plugin.path.rpartition(".")[2]


def test_a_plug_in_is_found_by_name_without_being_imported(hmamba):
    found = plugins.resolve("models", "HMamba")
    assert (found.path, found.distribution, found.version) == ("lightrec_hmamba.HMamba", "lightrec-hmamba", "1.2")
    assert hmamba not in sys.modules
    assert plugins.summary(found) == "A model of somebody else."
    assert hmamba not in sys.modules


def test_built_in_wins_and_the_homonym_has_a_full_name(install):
    install("lightrec-rival", "[lightrec.models]\nSASRec = lightrec_rival:HMamba\n", GOOD)
    assert plugins.resolve("models", "SASRec").builtin
    assert plugins.resolve("models", "lightrec-rival:SASRec").path == "lightrec_rival.HMamba"
    assert plugins.resolve("models", "Lightrec_Rival:SASRec").path == "lightrec_rival.HMamba"
    (rival,) = (p for p in plugins.installed("models") if p.distribution == "lightrec-rival")
    assert "lightrec-rival:SASRec" in plugins.status(rival, plugins.installed("models"))


def test_a_name_that_two_plug_ins_declare_is_never_guessed(install):
    for name in ("lightrec-a", "lightrec-b"):
        install(name, f"[lightrec.models]\nTwin = {name.replace('-', '_')}:HMamba\n", GOOD)
    message = _message("models", "Twin")
    assert "lightrec-a:Twin" in message and "lightrec-b:Twin" in message


def test_unknown_name_lists_near_matches_what_is_installed_and_what_is_broken(hmamba, install):
    install("lightrec-sick", "[lightrec.models]\nSick = lightrec_sick:Sick\n", "import a_module_that_is_not_there\n")
    message = _message("models", "HMamab")
    assert "did you mean HMamba?" in message
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
    assert plugins.load(plugins.resolve("models", "SASRec")).__name__ == "SASRec"
    assert main(["--help"]) == 0
    assert main(["plugins", "list"]) == 0


@pytest.mark.parametrize("requires", ["lightrec>=99", "lightrec (<0.0.1)", "lightrec==99.*", "lightrec ~=99.1"])
def test_plug_in_for_another_lightrec_is_refused_with_both_versions(install, requires):
    install("lightrec-old", "[lightrec.models]\nOld = lightrec_old:HMamba\n", GOOD, requires=requires)
    assert "this is lightrec" in _message("models", "Old")


@pytest.mark.parametrize(
    "requires", ["lightrec", "lightrec>=0.0.1,<99", "lightrec !=0.0.0", "lightrec>=99; extra == 'x'"]
)
def test_plug_in_for_this_lightrec_is_accepted(install, requires):
    install("lightrec-fine", "[lightrec.models]\nFine = lightrec_fine:HMamba\n", GOOD, requires=requires)
    assert plugins.resolve("models", "Fine").problem is None


def test_environment_variable_restricts_plug_ins_but_not_built_ins(hmamba, monkeypatch):
    monkeypatch.setenv("LIGHTREC_PLUGINS", "none")
    assert all(plugin.builtin for plugin in plugins.installed())
    assert "LIGHTREC_PLUGINS=none hides others" in _message("models", "HMamba")
    monkeypatch.setenv("LIGHTREC_PLUGINS", "lightrec_hmamba, other")
    assert plugins.resolve("models", "HMamba").distribution == "lightrec-hmamba"
    monkeypatch.setenv("LIGHTREC_PLUGINS", "other")
    assert "lightrec-hmamba" not in {plugin.distribution for plugin in plugins.installed()}


def test_list_shows_each_with_its_state_and_checks_on_request(hmamba, install, capsys):
    import json

    install("lightrec-sick", "[lightrec.models]\nSick = lightrec_sick:Sick\n", "raise RuntimeError('no')\n")
    assert main(["plugins", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["lightrec-sick:Sick"]["status"] == "ok"  # nobody asked to import it
    assert set(rows["SASRec"]) >= {"name", "kind", "distribution", "version", "status", "origin"}
    assert main(["plugins", "list", "--json", "--check"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["lightrec-sick:Sick"]["status"].startswith("broken: RuntimeError")
    assert rows["lightrec-hmamba:HMamba"]["status"] == "ok"
    assert Path(rows["lightrec-hmamba:HMamba"]["origin"]).name == "lightrec-hmamba"


def test_a_command_of_a_plug_in_runs_and_is_listed(install, capsys):
    source = 'def bench(argv):\n    """Measure something."""\n    print("bench", *argv)\n    return 3\n'
    install("lightrec-bench", "[lightrec.commands]\nbench = lightrec_bench:bench\n", source)
    assert main(["bench", "a", "b"]) == 3
    assert capsys.readouterr().out == "bench a b\n"
    assert main([]) == 0
    assert "Measure something. (lightrec-bench)" in capsys.readouterr().out


def test_plugins_module_needs_the_standard_library_only():
    code = "import sys; from lightrec.plugins import installed; installed(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_kind_is_a_programming_error():
    with pytest.raises(ValueError, match="kind 'model' is unknown"):
        plugins.installed("model")
