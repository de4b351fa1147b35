"""The scan follows its formulas, kernels agree with float64; it composes with compile, autocast, packing, processes."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lightrec.ops import registry
from lightrec.ops.registry import use_kernel
from lightrec.ops.selective_scan import _scan_op, reference_scan, selective_scan, selective_scan_step
from lightrec.testing.kernels import check_kernel, relative_error, scan_inputs

SEQUENCES = ("x", "delta", "B", "C", "z")
# one rounding of float32 more or less where a kernel orders its sums otherwise
FLOAT32_TOLERANCE = 1e-6


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_a_kernel_passes_the_conformance_suite(name):
    check_kernel(name)


def test_the_reference_follows_the_formulas_written_out():
    i = scan_inputs(1, 3, 1, 1, dtype=torch.float64)
    h, out = i["initial_state"][0, 0, 0], []
    for t in range(3):
        delta = torch.log1p(torch.exp(i["delta"][0, t, 0] + i["delta_bias"][0]))
        h = torch.exp(delta * i["A"][0, 0]) * h + delta * i["B"][0, t, 0] * i["x"][0, t, 0]
        gate = i["z"][0, t, 0]
        out.append((i["C"][0, t, 0] * h + i["D"][0] * i["x"][0, t, 0]) * gate / (1 + torch.exp(-gate)))
    ours, final = reference_scan(*i.values(), None, True)
    torch.testing.assert_close(ours[0, :, 0], torch.stack(out))
    torch.testing.assert_close(final[0, 0, 0], h)


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_gradients_pass_gradcheck(name):
    tensors = [t.requires_grad_() for t in scan_inputs(2, 4, 2, 2, dtype=torch.float64).values()]
    resets = torch.tensor([[False, False, True, False], [True, False, False, False]])

    def scan(x, delta, A, B, C, D, z, bias, state):
        return selective_scan(x, delta, A, B, C, D, z, bias, True, state, True, resets, name)

    assert torch.autograd.gradcheck(scan, tensors)


def test_no_decay_and_unit_steps_are_plain_linear_attention():
    i = scan_inputs(2, 12, 3, 4)
    out = selective_scan(i["x"], torch.ones(2, 12, 3), torch.zeros(3, 4), i["B"], i["C"], softplus=False)
    weights = torch.tril(i["C"] @ i["B"].transpose(1, 2))
    assert relative_error(out, weights @ i["x"]) < FLOAT32_TOLERANCE


def test_a_large_step_forgets_and_a_zero_step_keeps_the_state():
    i = scan_inputs(2, 5, 3, 4)
    i.pop("delta_bias")
    _, kept = selective_scan(**(i | {"delta": torch.zeros(2, 5, 3)}), softplus=False, return_final_state=True)
    assert torch.equal(kept, i["initial_state"])
    large = i | {"delta": torch.full((2, 5, 3), 1e4), "B": torch.zeros(2, 5, 4)}
    _, gone = selective_scan(**large, softplus=False, return_final_state=True)
    assert gone.abs().max() == 0


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_a_packed_row_equals_its_sequences_apart(name):
    i = scan_inputs(1, 20, 6, 4)
    i.pop("initial_state")
    resets = torch.zeros(1, 20, dtype=torch.bool)
    resets[0, [0, 7, 8]] = True
    packed = selective_scan(**i, resets=resets, kernel=name)
    apart = []
    for a, b in [(0, 7), (7, 8), (8, 20)]:
        apart.append(selective_scan(**{n: t[:, a:b] if n in SEQUENCES else t for n, t in i.items()}, kernel=name))
    assert relative_error(packed, torch.cat(apart, 1)) < FLOAT32_TOLERANCE


def test_steps_equal_the_whole_scan():
    i = scan_inputs(2, 9, 5, 3)
    whole, end = selective_scan(**i, return_final_state=True)
    state, out = i["initial_state"], []
    for t in range(9):
        now = {n: i[n][:, t] for n in SEQUENCES}
        y, state = selective_scan_step(state, A=i["A"], D=i["D"], delta_bias=i["delta_bias"], **now)
        out.append(y)
    assert relative_error(torch.stack(out, 1), whole) < FLOAT32_TOLERANCE
    assert relative_error(state, end) < FLOAT32_TOLERANCE


def test_autocast_keeps_the_scan_in_float32():
    i = scan_inputs(2, 9, 5, 3)
    plain = selective_scan(**i)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selective_scan(**i), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_mixed_dtypes_and_keeps_gradients_in_float32(dtype):
    i = scan_inputs(2, 9, 5, 3)
    project = torch.nn.Linear(5, 5)

    def run():
        leaves = {n: t.clone().requires_grad_() for n, t in i.items()}
        u = project(leaves["x"])
        out = selective_scan(**(leaves | {"x": u}))
        return u, out, torch.autograd.grad(out.float().square().sum(), [leaves["A"], leaves["B"]])

    with torch.autocast("cpu", dtype=dtype):
        u, out, grads = run()
    assert u.dtype == out.dtype == dtype and {g.dtype for g in grads} == {torch.float32}
    _, _, exact = run()
    # what the projection rounds to eight bits, the loss squares
    assert all(relative_error(a, b) < 3e-2 for a, b in zip(grads, exact, strict=True))


PROCESSES = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from lightrec.ops.selective_scan import selective_scan
from lightrec.testing.kernels import scan_inputs

class Mixer(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        i = scan_inputs(1, 1, 6, 4)
        self.A_log, self.D, self.bias = (nn.Parameter(t) for t in ((-i["A"]).log(), i["D"], i["delta_bias"]))
        self.kernel = kernel

    def forward(self, x, delta, B, C, z):
        return selective_scan(x, delta, -self.A_log.exp(), B, C, self.D, z, self.bias, kernel=self.kernel)

def gradients(module, rank, world, kernel):
    i = scan_inputs(4, 9, 6, 4, seed=5)
    rows = [i[n][rank::world] for n in ("x", "delta", "B", "C", "z")]
    module(*rows).square().mean().backward()
    return [p.grad for p in module.parameters()]

folder = sys.argv[1]
torch.set_num_threads(1)
children = []
for rank in range(2):
    child = os.fork()
    if not child:
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
        for kernel in ("torch", None):
            torch.manual_seed(0)
            parallel = nn.parallel.DistributedDataParallel(Mixer(kernel))
            torch.save(gradients(parallel, rank, 2, kernel), f"{folder}/{kernel}-{rank}")
        dist.destroy_process_group()
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_have_the_gradients_of_one(tmp_path):
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    i = scan_inputs(4, 9, 6, 4, seed=5)
    parameters = scan_inputs(1, 1, 6, 4)
    leaves = [t.requires_grad_() for t in ((-parameters["A"]).log(), parameters["D"], parameters["delta_bias"])]
    out = selective_scan(i["x"], i["delta"], -leaves[0].exp(), i["B"], i["C"], leaves[1], i["z"], leaves[2])
    single = torch.autograd.grad(out.square().mean(), leaves)
    for kernel in ("torch", None):
        for rank in range(2):
            for ours, exact in zip(torch.load(tmp_path / f"{kernel}-{rank}"), single, strict=True):
                assert relative_error(ours, exact) < FLOAT32_TOLERANCE


def test_opcheck_finds_the_custom_op_sound():
    tensors = [t.requires_grad_() for t in scan_inputs(2, 5, 3, 2).values()]
    resets = torch.zeros(2, 5, dtype=torch.bool)
    torch.library.opcheck(_scan_op, (*tensors, resets, True, 4, "torch"))
    bare = [*tensors[:5], None, None, None, None, None, True, 4, "torch"]
    torch.library.opcheck(_scan_op, bare, test_utils=("test_schema", "test_faketensor"))


def test_a_compiled_graph_is_whole_and_agrees():
    i = scan_inputs(2, 7, 4, 3)

    def loss(x, delta, A, B, C, D, z):
        return F.silu(selective_scan(x, delta, A, B, C, D, z)).square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [i[n].clone().requires_grad_() for n in ("x", "delta", "A", "B", "C", "D", "z")]
        value = function(*leaves)
        results.append([value, *torch.autograd.grad(value, leaves)])
    for eager, compiled in zip(*results, strict=True):
        assert relative_error(compiled, eager) < FLOAT32_TOLERANCE


def test_the_context_chooses_the_kernel_and_an_unknown_name_is_refused():
    i = scan_inputs(1, 4, 3, 2)
    with use_kernel("reference"):
        assert torch.equal(selective_scan(**i), selective_scan(**i, kernel="reference"))
    with use_kernel("nonsense"), pytest.raises(ValueError, match="no kernel 'nonsense'"):
        selective_scan(**i)
    assert registry.get_kernel("selective_scan", "torch").priority == 0


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"B": torch.zeros(2, 9, 4)}, ValueError, r"B \[2, 9, 4\] must be \[2, 9, 3\]"),
        ({"A": torch.zeros(4, 3)}, ValueError, "delta|A "),
        ({"resets": torch.zeros(2, 9)}, TypeError, "resets must be bool"),
        ({"x": torch.zeros(2, 9, 5, dtype=torch.int64)}, TypeError, "x must be floating"),
        ({"C": torch.zeros(2, 9, 3, device="meta")}, ValueError, "C is on meta, x on cpu"),
        ({"x": torch.zeros(2, 9, 5, dtype=torch.complex64)}, TypeError, "x must be floating"),
        ({"x": torch.zeros(2, 5)}, ValueError, r"expected x \[B, L, D\]"),
        ({"z": torch.zeros(2, 9, 5, dtype=torch.int32)}, TypeError, "z must be floating, got torch.int32"),
        ({"resets": torch.zeros(2, 8, dtype=torch.bool)}, ValueError, r"resets \[2, 8\] must be \[2, 9\]"),
        ({"initial_state": torch.zeros(2, 3, 5)}, ValueError, r"initial_state \[2, 3, 5\] must be \[2, 5, 3\]"),
        ({"A": torch.full((5, 3), 0.5)}, ValueError, "must not be above zero .its largest rate is 0.5"),
        ({"A": torch.full((5, 3), float("inf"))}, ValueError, "must not be above zero"),
        ({"A": torch.zeros(5, 0), "B": torch.zeros(2, 9, 0)}, ValueError, "at least one state"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        selective_scan(**(scan_inputs(2, 9, 5, 3) | change))


def test_a_step_refuses_what_does_not_fit():
    i = scan_inputs(2, 1, 5, 3)
    now = {n: i[n][:, 0] for n in SEQUENCES}
    with pytest.raises(ValueError, match=r"initial_state \[2, 3, 5\] must be \[2, 5, 3\]"):
        selective_scan_step(torch.zeros(2, 3, 5), A=i["A"], **now)
    with pytest.raises(ValueError, match="B .* must be"):
        selective_scan_step(i["initial_state"], A=i["A"], **(now | {"B": torch.zeros(1, 3)}))
    with pytest.raises(ValueError, match="must not be above zero"):
        selective_scan_step(i["initial_state"], A=-i["A"], **now)
    with pytest.raises(TypeError, match="x must be floating, got torch.int64"):
        selective_scan_step(i["initial_state"], A=i["A"], **(now | {"x": now["x"].long()}))


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_a_nan_rate_reaches_the_output_and_a_rate_of_zero_sums(name):
    i = scan_inputs(1, 6, 3, 2)
    i["A"][1, 0] = float("nan")
    out = selective_scan(**i, kernel=name)
    assert torch.isnan(out[:, :, 1]).all() and torch.isfinite(out[:, :, [0, 2]]).all()
    ones = {"x": torch.ones(1, 6, 1), "delta": torch.ones(1, 6, 1), "A": torch.zeros(1, 1)}
    one = torch.ones(1, 6, 1)
    counted = selective_scan(**ones, B=one, C=one, softplus=False, kernel=name)
    assert counted.flatten().tolist() == [1, 2, 3, 4, 5, 6]


def test_a_nan_input_reaches_the_output():
    i = scan_inputs(1, 6, 3, 2)
    i["delta"][0, 2, 1] = float("nan")
    out = selective_scan(**i)
    assert torch.isfinite(out[:, :2]).all() and torch.isnan(out[:, 2:, 1]).all()
