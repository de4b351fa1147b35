"""The C++ kernel agrees with float64 on every vector width, and refuses with a reason where it cannot run."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lightrec.ops import registry
from lightrec.ops.registry import choose, explain
from lightrec.ops.selective_scan import ScanSpec, selective_scan
from lightrec.testing.kernels import check_kernel, scan_inputs

SOURCE = Path(__file__).parents[2] / "plugins" / "lightrec-native" / "src"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The package of this checkout with a library compiled now."""
    if not any(shutil.which(c) for c in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    sys.path.insert(0, str(SOURCE))
    try:
        import lightrec_native
        from lightrec_native.build import build
    finally:
        sys.path.remove(str(SOURCE))
    target = tmp_path_factory.mktemp("native") / "_scan.so"
    build(target)
    return lightrec_native, target


@pytest.fixture
def native(built, monkeypatch):
    package, library = built
    monkeypatch.setattr(package, "LIBRARY", library)
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))
    monkeypatch.setattr(registry, "_loaded", True)
    registry._kernels.pop(("selective_scan", "native"), None)
    for kernel in package.kernels():
        registry.register_kernel(kernel)
    return package


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_vector_width_passes_the_conformance_suite(native, monkeypatch, lanes):
    if lanes > native.lanes():
        pytest.skip(f"this machine runs {native.lanes()} lanes at most")
    monkeypatch.setattr(native, "lanes", lambda: lanes)
    check_kernel("native")


def test_it_is_chosen_before_torch_and_leaves_float64_to_others(native):
    assert choose("selective_scan", ScanSpec()).name == "native"
    assert choose("selective_scan", ScanSpec(dtype=torch.float64)).name == "torch"
    with pytest.raises(RuntimeError, match="computes in float32; x is torch.float64"):
        choose("selective_scan", ScanSpec(dtype=torch.float64), kernel="native")


def test_the_number_of_threads_does_not_change_a_bit(native):
    inputs = scan_inputs(11, 80, 40, 16)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        leaves = {n: t.clone().requires_grad_() for n, t in inputs.items()}
        out = selective_scan(**leaves, kernel="native")
        results.append([out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_forked_worker_scans_after_its_parent_did(native):
    inputs = scan_inputs(9, 120, 40, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = selective_scan(**inputs, kernel="native")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # as a data loader's worker does: torch's own pool does not survive a fork
        same = torch.equal(selective_scan(**inputs, kernel="native"), expected)
        os._exit(0 if same else 1)
    torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_its_library_it_gives_the_reason_and_torch_runs(native, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "absent.so")
    assert "was not built" in dict(explain("selective_scan", ScanSpec()))["native"]
    assert choose("selective_scan", ScanSpec()).name == "torch"
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(native, "LIBRARY", foreign)
    assert "cannot be loaded here" in dict(explain("selective_scan", ScanSpec()))["native"]
    with pytest.raises(RuntimeError, match="'native' was asked for but cannot run"):
        selective_scan(**scan_inputs(1, 2, 3, 2), kernel="native")


def test_a_missing_compiler_is_named(native, monkeypatch, tmp_path):
    from lightrec_native.build import build

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no-such-compiler could not be run"):
        build(tmp_path / "x.so")


def test_a_compiled_graph_contains_it(native):
    inputs = scan_inputs(2, 6, 5, 3)
    scan = torch.compile(lambda x: selective_scan(**(inputs | {"x": x})), fullgraph=True, backend="aot_eager")
    assert torch.equal(scan(inputs["x"]), selective_scan(**inputs, kernel="native"))
