"""Kernels are found, chosen and refused with reasons; a broken one disturbs nobody."""

import sys
import threading
from dataclasses import dataclass
from functools import partial

import pytest

import lightrec.ops.linear_cross_entropy  # noqa: F401  registers what it has before the registry is emptied below
from lightrec import extensions
from lightrec.errors import InputError
from lightrec.ops import registry
from lightrec.ops.registry import Kernel, asked_for, choose, describe_kernels, explain, register_kernel, use_kernel
from lightrec.ops.selective_scan import ScanSpec


@dataclass(frozen=True)
class Spec:
    size: int = 1


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(registry, "_kernels", {})
    monkeypatch.setattr(registry, "_broken", {})
    monkeypatch.setattr(registry, "_loaded", True)
    monkeypatch.setattr(registry, "_FROM_ENVIRONMENT", None)
    register_kernel(Kernel("double", "slow", lambda v: v + v, None, lambda s: None, priority=0))
    register_kernel(
        Kernel("double", "fast", lambda v: 2 * v, None, lambda s: "too large" if s.size > 9 else None, priority=50)
    )


def test_the_highest_priority_that_accepts_runs(kernels):
    assert choose("double", Spec()).name == "fast"
    assert choose("double", Spec(10)).name == "slow"
    assert explain("double", Spec(10)) == [("fast", "too large"), ("slow", None)]


def test_argument_beats_context_beats_environment(kernels, monkeypatch):
    monkeypatch.setattr(registry, "_FROM_ENVIRONMENT", "slow")
    assert choose("double", Spec()).name == "slow"
    with use_kernel("fast"):
        assert choose("double", Spec()).name == "fast"
        assert choose("double", Spec(), kernel="slow").name == "slow"
        with use_kernel(None):
            assert choose("double", Spec()).name == "fast"
    assert choose("double", Spec()).name == "slow"


def test_a_named_kernel_that_cannot_run_raises_with_its_reason(kernels):
    with pytest.raises(RuntimeError, match="'fast' was asked for but cannot run double: too large"):
        choose("double", Spec(10), kernel="fast")
    with pytest.raises(ValueError, match="no kernel 'fats' for double; did you mean fast. Installed: fast, slow"):
        choose("double", Spec(), kernel="fats")
    with pytest.raises(RuntimeError, match="no kernel can run triple: none is registered"):
        choose("triple", Spec())


def test_a_name_is_taken_once_and_a_foreign_contract_refused(kernels):
    with pytest.raises(ValueError, match="registered already"):
        register_kernel(Kernel("double", "fast", abs, None, lambda s: None))
    with pytest.raises(ValueError, match="contract 99"):
        register_kernel(Kernel("double", "new", abs, None, lambda s: None, api_version=99))
    with pytest.raises(TypeError, match="expected a Kernel"):
        register_kernel(abs)


def test_a_name_of_another_op_leaves_this_one_to_the_automatic_choice(kernels, monkeypatch):
    register_kernel(Kernel("triple", "other", abs, None, lambda s: None))
    monkeypatch.setattr(registry, "_FROM_ENVIRONMENT", "slow")
    assert asked_for("triple") == (None, "priority")
    assert choose("triple", Spec()).name == "other"
    assert choose("double", Spec()).name == "slow"
    with use_kernel("other"):
        assert choose("double", Spec()).name == "fast"
    with pytest.raises(InputError, match="no kernel 'slow' for triple. Installed: other"):
        choose("triple", Spec(), kernel="slow")


def test_each_op_may_have_a_kernel_of_its_own(kernels):
    register_kernel(Kernel("triple", "slow", abs, None, lambda s: None, priority=0))
    register_kernel(Kernel("triple", "fast", abs, None, lambda s: None, priority=9))
    with use_kernel("double=slow, triple=fast"):
        assert (choose("double", Spec()).name, choose("triple", Spec()).name) == ("slow", "fast")
    with use_kernel("triple=slow"):
        assert (choose("double", Spec()).name, choose("triple", Spec()).name) == ("fast", "slow")
    with use_kernel("slow,triple=fast"):
        assert (choose("double", Spec()).name, choose("triple", Spec()).name) == ("slow", "fast")


@pytest.mark.parametrize(
    "text, words",
    [
        ("fats", "no kernel 'fats' for any op; did you mean fast"),
        ("double=fats", "no kernel 'fats' for double; did you mean fast"),
        ("duoble=fast", "no op 'duoble'.* did you mean double"),
        ("fast,slow", "each op once"),
        ("double=", "must be a name, or op=name"),
        ("=fast", "must be a name, or op=name"),
    ],
)
def test_a_choice_that_nobody_knows_is_refused_with_the_nearest(kernels, text, words):
    with use_kernel(text), pytest.raises(InputError, match=words):
        choose("double", Spec())


def test_the_environment_is_named_where_it_asks_for_what_cannot_run(kernels, monkeypatch):
    for text, words in [
        ("fats", "no kernel 'fats' for any op.* LIGHTREC_KERNEL asks for it"),
        ("double=fats", "no kernel 'fats' for double.* LIGHTREC_KERNEL asks for it"),
        ("duoble=fast", "no op 'duoble'.* LIGHTREC_KERNEL asks for it"),
        ("fast", "cannot run double: too large. LIGHTREC_KERNEL asks for it"),
    ]:
        monkeypatch.setattr(registry, "_FROM_ENVIRONMENT", text)
        with pytest.raises(InputError, match=words):
            choose("double", Spec(10))
        with pytest.raises(InputError) as raised:
            choose("double", Spec(10), kernel="fast")
        assert "LIGHTREC_KERNEL" not in str(raised.value)  # the argument asked


def test_a_choice_is_checked_before_it_is_needed_and_nothing_is_imported_without_one(kernels, monkeypatch):
    monkeypatch.setattr(registry, "_load", lambda: pytest.fail("kernels were imported"))
    registry.check_choice(None)
    monkeypatch.setattr(registry, "_load", lambda: None)
    registry.check_choice("double=fast")
    for text in ("fats", "double=fats", "duoble=fast", "fast,slow"):
        with pytest.raises(InputError):
            registry.check_choice(text)
    monkeypatch.setattr(registry, "_FROM_ENVIRONMENT", "fats")
    with pytest.raises(InputError, match="LIGHTREC_KERNEL asks for it"):
        registry.check_choice(None)


def test_a_kernel_for_those_who_name_it_is_never_chosen_automatically(kernels):
    slow_everywhere = Kernel(
        "double", "interpreted", abs, None, lambda s: None, priority=99, only_by_name=lambda s: "it is an interpreter"
    )
    register_kernel(slow_everywhere)
    assert choose("double", Spec()).name == "fast"
    assert choose("double", Spec(), kernel="interpreted") is slow_everywhere
    with use_kernel("interpreted"):
        assert choose("double", Spec()) is slow_everywhere
    row = next(r for r in describe_kernels({"double": Spec()}) if r["name"] == "interpreted")
    assert (row["reason"], row["only_by_name"], row["chosen"]) == (None, "it is an interpreter", False)


def test_a_check_that_raises_counts_as_a_refusal(kernels):
    def check(spec):
        raise OSError("no such device")

    register_kernel(Kernel("double", "fragile", abs, None, check, priority=99))
    assert choose("double", Spec()).name == "fast"
    with pytest.raises(RuntimeError, match="its check failed .OSError: no such device"):
        choose("double", Spec(), kernel="fragile")


GOOD = (
    "from lightrec.ops.registry import Kernel\n"
    "def kernels():\n    return Kernel('double', 'good', abs, None, lambda s: None, priority=99)\n"
)


@pytest.fixture
def bring(kernels, monkeypatch, tmp_path):
    """Puts distributions with these modules on the path; the next choice finds them."""

    def bring(**sources):
        for name, source in sources.items():
            (tmp_path / f"lightrec_test_{name}.py").write_text(source)
            info = tmp_path / f"lightrec_test_{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lightrec-test-{name}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[lightrec.kernels]\n{name} = lightrec_test_{name}:kernels\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("LIGHTREC_PLUGINS", ",".join(f"lightrec-test-{name}" for name in sources))
        monkeypatch.setattr(registry, "_owners", {})
        monkeypatch.setattr(registry, "_loaded", False)

    yield bring
    for name in [name for name in sys.modules if name.startswith("lightrec_test_")]:
        del sys.modules[name]


def test_a_broken_plugin_is_recorded_and_others_load(bring):
    bring(
        bad="import libgone\n",
        odd="def kernels():\n    raise ZeroDivisionError('at noon')\n",
        quits="def kernels():\n    raise SystemExit(3)\n",
        wrong="def kernels():\n    return [abs]\n",
        old="from lightrec.ops.registry import Kernel\n"
        "def kernels():\n    return Kernel('double', 'old', abs, None, lambda s: None, api_version=0)\n",
        good=GOOD,
    )
    assert choose("double", Spec()).name == "good"
    assert describe_kernels({"double": Spec()})[0]["distribution"] == "lightrec-test-good 1.0"
    broken = registry.broken_kernels()
    assert "No module named 'libgone'" in broken["lightrec-test-bad:bad"]
    assert "ZeroDivisionError: at noon" in broken["lightrec-test-odd:odd"]
    assert "SystemExit: 3" in broken["lightrec-test-quits:quits"]
    assert "expected a Kernel, got builtin_function_or_method" in broken["lightrec-test-wrong:wrong"]
    assert "kernel contract 0; this is 1" in broken["lightrec-test-old:old"]
    with pytest.raises(ValueError, match="Broken: .*libgone"):
        choose("double", Spec(), kernel="bad")


@pytest.mark.parametrize("where", ["", "def kernels():\n    "], ids=["import", "function"])
def test_a_plugin_that_hangs_is_left_behind_named_and_waited_for_once(bring, monkeypatch, capsys, where):
    monkeypatch.setattr(extensions, "call_in_time", partial(extensions.call_in_time, limit=0.3))
    before = set(threading.enumerate())
    # it goes on once the test is over
    bring(hung=f"import threading\nleave = threading.Event()\n{where}leave.wait()\n", good=GOOD)
    assert choose("double", Spec()).name == "good"
    print("a result")
    out, err = capsys.readouterr()
    assert out == "a result\n"  # what is printed afterwards goes where it should
    assert "'hung' of lightrec-test-hung 1.0 cannot be used (its import did not end within 0.3 s)" in err
    assert "LIGHTREC_PLUGINS" in err
    assert "did not end within" in registry.broken_kernels()["lightrec-test-hung:hung"]
    monkeypatch.setattr(extensions, "call_in_time", None)  # nothing is imported again
    assert choose("double", Spec()).name == "good"
    sys.modules["lightrec_test_hung"].leave.set()
    for thread in set(threading.enumerate()) - before:
        thread.join()


def test_plugins_that_are_shut_out_bring_no_kernel(kernels, monkeypatch):
    monkeypatch.setenv("LIGHTREC_PLUGINS", "none")
    monkeypatch.setattr(registry, "_loaded", False)
    assert {row["name"] for row in describe_kernels({"double": Spec()})} == {"fast", "slow"}
    assert registry.broken_kernels() == {}


def test_every_kernel_is_described_and_one_is_chosen():
    rows = describe_kernels({"selective_scan": ScanSpec()})
    assert {"reference", "torch"} <= {row["name"] for row in rows}
    assert sum(row["chosen"] for row in rows) == 1
