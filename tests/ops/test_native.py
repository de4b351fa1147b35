"""The C++ kernel agrees with float64 on every vector width, and refuses with a reason where it cannot run."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lightrec.ops import registry
from lightrec.ops.hyperbolic_selective_scan import exp0, log0
from lightrec.ops.registry import choose, explain, use_kernel
from lightrec.ops.selective_scan import ScanSpec, selective_scan
from lightrec.testing.kernels import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    check_kernel,
    relative_error,
    scan_inputs,
)

pytestmark = pytest.mark.xdist_group("native kernel")  # its library is compiled once
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
    for op in ("selective_scan", "radial_map"):
        registry._kernels.pop((op, "native"), None)
    for kernel in package.kernels():
        registry.register_kernel(kernel)
    return package


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_vector_width_passes_the_conformance_suite(native, monkeypatch, lanes):
    if lanes > native.lanes():
        pytest.skip(f"this machine runs {native.lanes()} lanes at most")
    monkeypatch.setattr(native, "lanes", lambda: lanes)
    check_kernel("native")


@pytest.mark.parametrize("function", [exp0, log0])
@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.0999, 0.1001, 0.999, 1.001, 6.0, 30.0])
def test_the_hyperbolic_maps_agree_with_float64(native, monkeypatch, function, lanes, radius):
    if lanes > native.lanes():
        pytest.skip(f"this machine runs {native.lanes()} lanes at most")
    monkeypatch.setattr(native, "lanes", lambda: lanes)
    generator = torch.Generator().manual_seed(0)
    for size in (1, 5, 63, 100):
        v = torch.randn(2, 3, size, generator=generator, dtype=torch.float64)
        v = v / v.norm(dim=-1, keepdim=True) * radius
        up = torch.randn(2, 3, size, generator=generator)
        results = []
        for dtype, kernel in ((torch.float64, None), (torch.float32, "native")):
            with use_kernel(kernel):
                leaf = v.float().to(dtype).requires_grad_()
                kappa = torch.tensor(1.0, dtype=dtype, requires_grad=True)
                out = function(leaf, kappa)
                results.append([out, *torch.autograd.grad(out, (leaf, kappa), up.to(dtype))])
        exact, ours = results
        # an exponential turns the rounding of a radius into as many roundings as the radius is large
        assert relative_error(ours[0], exact[0]) <= OUTPUT_TOLERANCE * max(1.0, radius / 10)
        # kappa's gradient is a sum whose terms may cancel: compared with their size
        size_of_terms = (up.double() * exact[0]).abs().sum().clamp_min(1e-30) * max(1.0, radius)
        assert relative_error(ours[1], exact[1]) <= GRADIENT_TOLERANCE
        assert (ours[2].double() - exact[2]).abs() / size_of_terms <= GRADIENT_TOLERANCE


def test_the_hyperbolic_maps_take_any_layout_dtype_and_number_of_threads(native):
    v = torch.randn(40, 33, 16, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    kappa = torch.tensor(0.7, requires_grad=True)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        wide = v.repeat(1, 20, 1).requires_grad_()
        out = exp0(wide, kappa)
        results.append([out, *torch.autograd.grad(out.sum(), (wide, kappa))])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with use_kernel("torch"):
        assert relative_error(exp0(v, kappa), exp0(v.contiguous(), kappa)) == 0
        theirs = exp0(v, kappa)
    assert relative_error(exp0(v, kappa), theirs) <= OUTPUT_TOLERANCE
    low = v.bfloat16()
    assert exp0(low, kappa).dtype == torch.bfloat16 and relative_error(exp0(low, kappa), theirs) < 2e-2
    for shape in ((0, 4), (3, 0)):
        empty = torch.zeros(shape, requires_grad=True)
        assert log0(empty, kappa).sum().backward() is None and empty.grad.shape == shape


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


def test_a_step_too_large_for_a_float_gives_what_torch_gives_and_not_a_capped_number(native):
    i = {n: t for n, t in scan_inputs(1, 1, 20, 3).items() if n in ("x", "B", "C", "initial_state")}
    i |= {"A": torch.full((20, 3), -1.0), "delta": torch.linspace(-300, 300, 20).reshape(1, 1, 20)}
    options = {"softplus": False, "return_final_state": True}
    _, ours = selective_scan(**i, **options, kernel="native")
    _, theirs = selective_scan(**i, **options, kernel="torch")
    assert not ours.isfinite().all() and ours.isfinite().any()
    # exponents near 100 are rounded to 2^-18 before they are raised
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted where Linux lists them")
def test_threads_are_as_many_as_torch_was_told(native):
    inputs = scan_inputs(32, 200, 64, 16)
    before, most = torch.get_num_threads(), {}
    for threads in (1, 3):
        torch.set_num_threads(threads)
        seen, done = [], threading.Event()

        def watch(seen=seen, done=done):
            while not done.is_set():
                seen.append(len(os.listdir("/proc/self/task")))

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(20):
            selective_scan(**inputs, kernel="native")
        done.set()
        watcher.join()
        most[threads] = max(seen)
    torch.set_num_threads(before)
    assert most[1] + 2 <= most[3] <= most[1] + 4  # torch's own two threads may be there too


class Scanned(torch.utils.data.Dataset):
    """What a data loader's worker computes."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return selective_scan(**scan_inputs(5, 60, 64, 16, seed=i), kernel="native")


def test_workers_of_a_data_loader_scan_as_their_parent_does(native):
    data = Scanned()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = [data[i] for i in range(4)]
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = list(loader)
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def reason_without(native, monkeypatch, library):
    monkeypatch.setattr(native, "LIBRARY", library)
    assert choose("selective_scan", ScanSpec()).name == "torch"
    with pytest.raises(RuntimeError, match="'native' was asked for but cannot run"):
        selective_scan(**scan_inputs(1, 2, 3, 2), kernel="native")
    return dict(explain("selective_scan", ScanSpec()))["native"]


def test_without_its_library_it_gives_the_reason_and_torch_runs(native, monkeypatch, tmp_path):
    assert "was not built" in reason_without(native, monkeypatch, tmp_path / "absent.so")


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are sealed on Linux")
@pytest.mark.parametrize("kept", [0, 7, 1000, 0.5, -40, -1])
def test_a_library_that_was_cut_short_is_refused_before_it_is_loaded(native, built, monkeypatch, tmp_path, kept):
    whole = built[1].read_bytes()
    broken = tmp_path / "short.so"
    broken.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "is damaged" in reason_without(native, monkeypatch, broken)


@pytest.mark.skipif(sys.platform != "linux", reason="edits an ELF header")
def test_a_library_of_another_machine_is_refused(native, built, monkeypatch, tmp_path):
    from lightrec_native.build import seal

    elf = bytearray(built[1].read_bytes()[:-32])
    elf[18] = {62: 183}.get(elf[18], 62)  # e_machine: aarch64 instead of x86-64, or the other way around
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(elf)
    seal(foreign)
    assert "cannot be loaded here" in reason_without(native, monkeypatch, foreign)


@pytest.mark.parametrize(
    "source, words",
    [
        ("int unrelated() { return 0; }", "undefined symbol: lightrec_abi"),
        ("int lightrec_abi() { return 2; }", "undefined symbol: lightrec_scan"),
        ("int lightrec_abi() { return 99; }", "has interface 99, this code wants 2"),
    ],
)
def test_a_library_with_another_interface_is_refused(native, monkeypatch, tmp_path, source, words):
    from lightrec_native.build import seal

    (tmp_path / "other.cpp").write_text(f'extern "C" {{ {source} }}')
    compiler = next(c for c in ("c++", "g++", "clang++") if shutil.which(c))
    other = tmp_path / "other.so"
    subprocess.run([compiler, "-shared", "-fPIC", str(tmp_path / "other.cpp"), "-o", str(other)], check=True)
    seal(other)
    assert words in reason_without(native, monkeypatch, other)


def test_it_installs_without_a_compiler_and_lightrec_runs_without_it(tmp_path):
    """The whole way of a user: pip, then lightrec in a process that finds the distribution without its library."""
    site = tmp_path / "site"
    left_out = shutil.ignore_patterns("*.so", "build", "*.egg-info", "__pycache__")
    source = shutil.copytree(SOURCE.parent, tmp_path / "source", ignore=left_out)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(site), str(source)],
        env={**os.environ, "PATH": os.path.dirname(sys.executable), "CXX": ""},  # where no compiler is
        check=True,
    )
    code = (
        "import json, torch\n"
        "from lightrec.ops.registry import explain\n"
        "from lightrec.ops.selective_scan import ScanSpec, selective_scan\n"
        "from lightrec.testing.kernels import scan_inputs\n"
        "i = scan_inputs(2, 5, 4, 3)\n"
        "same = torch.equal(selective_scan(**i), selective_scan(**i, kernel='torch'))\n"
        "print(json.dumps([same, dict(explain('selective_scan', ScanSpec()))]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LIGHTREC_PLUGINS"} | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    same, reasons = json.loads(done.stdout)
    assert same and "was not built" in reasons["native"] and reasons["torch"] is None


def test_a_missing_compiler_is_named(native, monkeypatch, tmp_path):
    from lightrec_native.build import build

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no-such-compiler could not be run"):
        build(tmp_path / "x.so")


def test_a_compiled_graph_contains_it(native):
    inputs = scan_inputs(2, 6, 5, 3)
    scan = torch.compile(lambda x: selective_scan(**(inputs | {"x": x})), fullgraph=True, backend="aot_eager")
    assert torch.equal(scan(inputs["x"]), selective_scan(**inputs, kernel="native"))
