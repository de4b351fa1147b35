"""Kernels are found, chosen and refused with reasons; a broken one disturbs nobody."""

from dataclasses import dataclass
from importlib import metadata

import pytest

from lightrec.ops import registry
from lightrec.ops.registry import Kernel, choose, describe_kernels, explain, register_kernel, use_kernel
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
    with pytest.raises(ValueError, match="no kernel 'fats' for double. Installed: fast, slow"):
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


def test_a_broken_plugin_is_recorded_and_others_load(kernels, monkeypatch):
    good = Kernel("double", "good", abs, None, lambda s: None, priority=99)

    class Entry:
        dist = None

        def __init__(self, name, value):
            self.name, self.value = name, value

        def load(self):
            if self.value == "missing":
                raise ImportError("libgone.so: cannot open shared object file")
            return lambda: good

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry("bad", "missing"), Entry("good", "here")])
    monkeypatch.delenv("LIGHTREC_PLUGINS", raising=False)
    monkeypatch.setattr(registry, "_loaded", False)
    assert choose("double", Spec()).name == "good"
    with pytest.raises(ValueError, match="bad .*ImportError: libgone.so"):
        choose("double", Spec(), kernel="bad")


def test_every_kernel_is_described_and_one_is_chosen():
    rows = describe_kernels({"selective_scan": ScanSpec()})
    assert {"reference", "torch"} <= {row["name"] for row in rows}
    assert sum(row["chosen"] for row in rows) == 1
