"""The conformance suite for a scan kernel: what an outside author runs against the float64 reference.

    from lightrec.testing import check_kernel

    def test_my_kernel_keeps_the_contract():
        check_kernel("my_kernel")

A check raises an AssertionError that says what differs, where and by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lightrec.ops import registry
from lightrec.ops.hyperbolic_selective_scan import hyperbolic_selective_scan
from lightrec.ops.selective_scan import OP, ScanSpec, _scan_op, reference_scan, selective_scan

# float32 against float64, relative to the largest value: sums of some hundred terms, exponentials of rounded products.
OUTPUT_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 5e-6
# bfloat16 inputs and outputs with float32 states: half a unit of 8 bits in what is stored.
BFLOAT16_TOLERANCE = 1e-2
# float16 likewise, with 11 bits: an eighth of it.
FLOAT16_TOLERANCE = 1.25e-3
FLOAT64_TOLERANCE = 1e-12

SEQUENCES = ("x", "delta", "B", "C", "z")
NAMES = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def scan_inputs(
    batch: int,
    length: int,
    channels: int,
    states: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Inputs of a usual scale for every argument of `selective_scan`; parameters stay float32 below 32 bits."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wide = dtype if dtype == torch.float64 else torch.float32
    made = {
        "x": normal(batch, length, channels).to(dtype),
        "delta": normal(batch, length, channels).to(dtype),
        "A": -torch.exp(0.5 * normal(channels, states)).to(wide),
        "B": normal(batch, length, states).to(dtype),
        "C": normal(batch, length, states).to(dtype),
        "D": normal(channels).to(wide),
        "z": normal(batch, length, channels).to(dtype),
        "delta_bias": normal(channels).to(wide),
        "initial_state": normal(batch, channels, states).to(wide),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest exact value; infinite where ours is not finite."""
    if exact.numel() == 0:
        return 0.0
    error = (ours.double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-30)
    return error.item() if torch.isfinite(error) else float("inf")


def compare_with_reference(
    inputs: dict[str, Tensor],
    kernel: str,
    softplus: bool = True,
    resets: Tensor | None = None,
    change: Callable[[Tensor], Tensor] = lambda t: t,
) -> dict[str, float]:
    """Relative errors of the output, the final state and every gradient against float64.

    Args:
        inputs: as of `scan_inputs`, some left out.
        kernel: name of the kernel.
        softplus: as of the op.
        resets: [B, L] bool, or None.
        change: what happens to each tensor before the call, such as another stride.
    """

    def run(function, dtype):
        leaves = {n: (t if dtype is None else t.to(dtype)).detach().clone().requires_grad_() for n, t in inputs.items()}
        arguments = {n: change(leaves[n]) if n in leaves else None for n in NAMES}
        out, final = function(arguments)
        g = torch.Generator().manual_seed(1)
        # upstream gradients that the dtype of the output holds exactly
        up = torch.randn(out.shape, generator=g).to(inputs["x"].dtype).to(out)
        up_final = torch.randn(final.shape, generator=g).to(final)
        grads = torch.autograd.grad((out, final), list(leaves.values()), (up, up_final))
        return {"out": out, "final_state": final, **{f"d{n}": d for n, d in zip(leaves, grads, strict=True)}}

    ours = run(
        lambda a: selective_scan(**a, softplus=softplus, resets=resets, return_final_state=True, kernel=kernel), None
    )
    exact = run(lambda a: reference_scan(*a.values(), resets, softplus), torch.float64)
    return {name: relative_error(ours[name], exact[name]) for name in exact}


@dataclass(frozen=True)
class _Sizes:
    """What a budget runs: B, L, D, N of the comparisons in every dtype; of all other checks; a length to split at."""

    shapes: tuple[tuple[int, int, int, int], ...]
    small: tuple[int, int, int, int]
    split: int


_BUDGETS = {
    # an interpreter needs half a second for B=2, L=9, D=12, N=5
    "small": _Sizes(((1, 1, 8, 4), (2, 9, 12, 5)), (2, 6, 8, 4), 3),
    "full": _Sizes(((2, 1, 3, 1), (3, 17, 9, 5), (2, 33, 20, 16), (1, 63, 33, 4), (1, 100, 7, 3)), (3, 37, 10, 4), 7),
}


def check_kernel(
    name: str,
    device: str = "cpu",
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    budget: Literal["small", "full"] = "full",
) -> dict[str, float]:
    """Checks a kernel of `selective_scan` by name.

    Output, final state and every gradient against float64, in each dtype; odd and empty shapes; with and without each
    optional input, initial states and resets, across which no NaN passes; the hyperbolic scan with the gradient of
    curvature; strided and expanded inputs and gradients; memory that holds NaN before it is written; the same bits
    every time; inputs left alone; what follows a prefix, and padding, without influence; scan after scan equal to one
    scan; the custom op sound.

    Args:
        name: the kernel.
        device: where to run.
        dtypes: of x, delta, B, C and z. The first must be accepted; another one that is refused, with a reason, is
            passed over.
        budget: "small" for interpreters: the same checks on B <= 2, L <= 9, D <= 12, N <= 5, without the custom op's.

    Returns:
        The largest errors seen, relative to the largest exact value, by `dtype output` and `dtype gradients`.

    Raises:
        AssertionError: names what differs and by how much.
        ValueError: there is no kernel of this name.
    """
    if budget not in _BUDGETS:
        raise ValueError(f"budget {budget!r} must be one of {', '.join(_BUDGETS)}.")
    found, sizes, worst = registry.get_kernel(OP, name), _BUDGETS[budget], {}
    refusal = found.accepts(ScanSpec(device=device, dtype=dtypes[0]))
    assert refusal is None, f"{name} refuses {dtypes[0]} on {device}: {refusal}."
    for dtype in dtypes:
        reason = found.accepts(ScanSpec(device=device, dtype=dtype))
        assert reason is None or (isinstance(reason, str) and reason), f"{name} refuses {dtype} without a reason."
        if reason is not None:
            continue
        for shape in sizes.shapes:
            inputs = scan_inputs(*shape, dtype=dtype, device=device)
            _expect(compare_with_reference(inputs, name), dtype, f"{name} at B, L, D, N = {shape}", worst)
    small = scan_inputs(*sizes.small, dtype=dtypes[0], device=device)
    check = _Checks(name, device, dtypes[0], small, sizes, worst)
    check.optional_inputs()
    check.resets()
    check.hyperbolic()
    check.strides()
    check.large_steps()
    check.empty_shapes()
    check.no_gradient()
    check.checkpoints()
    check.unwritten_memory()
    check.same_every_time()
    check.broken_sequences()
    check.prefixes_and_padding()
    if budget == "full" and found.backward is not None:
        check.custom_op()
    return worst


@dataclass(frozen=True)
class _Checks:
    """One kernel and the inputs that all checks below start from."""

    kernel: str
    device: str
    dtype: torch.dtype
    inputs: dict[str, Tensor]
    sizes: _Sizes
    worst: dict[str, float]

    def compare(self, where: str, inputs: dict[str, Tensor], **options) -> None:
        errors = compare_with_reference(inputs, self.kernel, **options)
        _expect(errors, self.dtype, f"{self.kernel} {where}", self.worst)

    def run(self, inputs: dict[str, Tensor], upstream: Callable[[Tensor], Tensor], **options) -> list[Tensor]:
        """Output, final state and all gradients, given the output's."""
        leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.items()}
        out, final = selective_scan(**leaves, **options, return_final_state=True, kernel=self.kernel)
        up = upstream(out), torch.ones_like(final)
        # of an empty sequence, autograd itself may not reach every input
        grads = torch.autograd.grad((out, final), list(leaves.values()), up, materialize_grads=True)
        return [out.detach(), final.detach(), *grads]

    @cached_property
    def plain(self) -> list[Tensor]:
        """What several checks compare with."""
        return self.run(self.inputs, torch.ones_like)

    def optional_inputs(self) -> None:
        bare = {n: self.inputs[n] for n in ("x", "delta", "A", "B", "C")}
        self.compare("without optional inputs", bare)
        for n in ("D", "z", "delta_bias", "initial_state"):
            self.compare(f"with {n} alone of the optional inputs", bare | {n: self.inputs[n]})
        positive = {n: t.abs() if n in ("delta", "delta_bias") else t for n, t in self.inputs.items()}
        self.compare("without softplus", positive, softplus=False)

    def resets(self) -> None:
        batch, length = self.inputs["x"].shape[:2]
        some = torch.rand(batch, length, generator=torch.Generator().manual_seed(3)) < 0.3
        some[0, 0] = some[0, -1] = True
        every = registry.get_kernel(OP, self.kernel).checkpoint_every
        some[-1, ::every] = True  # where a checkpoint is kept
        self.compare("with resets", self.inputs, resets=some.to(self.device))
        bare = {n: t for n, t in self.inputs.items() if n != "initial_state"}
        self.compare("with a reset at every step", bare, resets=torch.ones_like(some).to(self.device))

    def broken_sequences(self) -> None:
        """What is NaN in one sequence of a packed row stays there: in front of a reset, and in gradients behind it."""
        batch, length = self.inputs["x"].shape[:2]
        every = registry.get_kernel(OP, self.kernel).checkpoint_every
        begin = torch.full((batch, 1), self.sizes.split, device=self.device)
        begin[-1] = min(every, length - 1)  # where a checkpoint is kept
        place = torch.arange(length, device=self.device)
        before, resets = place < begin, place == begin  # [B, L] each
        plain = self.run(self.inputs, torch.ones_like, resets=resets)
        nan = {n: t.masked_fill(before[..., None], torch.nan) if n in SEQUENCES else t for n, t in self.inputs.items()}
        spoilt = self.run(nan, torch.ones_like, resets=resets)
        above = self.run(
            self.inputs, lambda out: torch.ones_like(out).masked_fill(~before[..., None], torch.nan), resets=resets
        )
        for n, a, b, c in zip(_results(self.inputs), plain, spoilt, above, strict=True):
            if n == "the final state":
                assert torch.equal(a, b), f"{self.kernel}: NaN in front of a reset reaches {n}."
            elif n == "the output" or n.split()[-1] in SEQUENCES:
                assert torch.equal(a[~before], b[~before]), (
                    f"{self.kernel}: NaN in front of a reset reaches {n} behind it."
                )
                assert torch.equal(a[before], c[before]), f"{self.kernel}: a NaN gradient behind a reset reaches {n}."

    def hyperbolic(self) -> None:
        """The factor scales A before the kernel sees it; here it is applied to the float64 reference by its formula."""
        kappa = torch.tensor(0.7, dtype=torch.float64)

        def run(wide: bool) -> list[Tensor]:
            inputs = {n: (t.double() if wide else t).detach().clone() for n, t in self.inputs.items()}
            curvature = (kappa if wide else kappa.to(inputs["A"].dtype)).to(self.device).requires_grad_()
            rates = inputs["A"].requires_grad_()
            if wide:
                first = torch.arange(rates.shape[1], device=self.device) == 0
                inputs["A"] = torch.where(first, rates * (1 + curvature).sqrt(), rates)
                out, _ = reference_scan(*(inputs[n] for n in NAMES), None, True)
            else:
                out = hyperbolic_selective_scan(**inputs, kappa=curvature, kernel=self.kernel)
            upstream = torch.linspace(-1, 1, out.numel(), device=self.device).reshape(out.shape).to(out)
            return [out, *torch.autograd.grad(out, (rates, curvature), upstream)]

        names = ("out", "dA", "dkappa")
        errors = {n: relative_error(a, b) for n, a, b in zip(names, run(False), run(True), strict=True)}
        _expect(errors, self.dtype, f"{self.kernel} in the hyperbolic scan", self.worst)

    def strides(self) -> None:
        self.compare(
            "on strided inputs",
            self.inputs,
            change=lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() < 3 else _transposed(t),
        )
        self.compare("on inputs expanded along their first dimension", self.inputs, change=lambda t: t[:1].expand_as(t))
        self.compare("on inputs expanded along their last dimension", self.inputs, change=_expanded_last)
        one = torch.ones_like(self.inputs["x"])
        expanded = self.run(self.inputs, lambda out: one[:1, :1, :1].expand_as(one))  # what out.sum() hands over
        for n, a, b in zip(_results(self.inputs), expanded, self.plain, strict=True):
            assert relative_error(a, b) <= GRADIENT_TOLERANCE, f"{self.kernel}: an expanded gradient changes {n}."

    def large_steps(self) -> None:
        wide = self.inputs | {"delta": 30 * self.inputs["delta"]}
        self.compare("with steps from 0 to 100", wide)

    def empty_shapes(self) -> None:
        for shape in [(0, 5, 8, 4), (2, 0, 8, 4)]:
            where = f"{self.kernel} at B, L, D, N = {shape}"
            inputs = scan_inputs(*shape, dtype=self.dtype, device=self.device)
            out, final, *grads = self.run(inputs, torch.ones_like)
            assert out.shape == shape[:3], f"{where}: the output has shape {list(out.shape)}."
            assert torch.equal(final, inputs["initial_state"]), f"{where}: the final state is not the initial one."
            for n, given, grad in zip(inputs, inputs.values(), grads, strict=True):
                expected = torch.ones_like(given) if n == "initial_state" else torch.zeros_like(given)
                assert torch.equal(grad, expected), f"{where}: the gradient of {n} is not {expected.flatten()[:1]}."

    def no_gradient(self) -> None:
        before = {n: t.clone() for n, t in self.inputs.items()}
        out, final, *_ = self.plain
        with torch.no_grad():
            again, end = selective_scan(**self.inputs, return_final_state=True, kernel=self.kernel)
        for n, a, b in (("output", again, out), ("final state", end, final)):
            assert torch.equal(a, b), f"{self.kernel}: without gradients the {n} is another."
        for n, t in self.inputs.items():
            assert torch.equal(t, before[n]), f"{self.kernel} writes into its input {n}."

    def checkpoints(self) -> None:
        found = registry.get_kernel(OP, self.kernel)
        if found.backward is None:
            return
        every = found.checkpoint_every
        given = [self.inputs[n] for n in NAMES]
        with torch.no_grad():
            out, final, kept = found.forward(*given, None, True, every)
        batch, length, _ = out.shape
        states, wide = self.inputs["A"].shape, torch.float64 if self.dtype == torch.float64 else torch.float32
        expected = (batch, -(-length // every), *states)
        assert tuple(kept.shape) == expected, f"{self.kernel} keeps {list(kept.shape)}, not {list(expected)}."
        for n, t in (("final state", final), ("checkpoints", kept)):
            assert t.dtype == wide, f"{self.kernel}: the {n} are {t.dtype}, not {wide}."
        for m in range(kept.shape[1]):
            cut = [t[:, : m * every] if n in SEQUENCES else t for n, t in zip(NAMES, given, strict=True)]
            _, state = reference_scan(*(t.double() for t in cut), None, True)
            error = relative_error(kept[:, m], state)
            assert error <= OUTPUT_TOLERANCE, f"{self.kernel}: checkpoint {m} is off by {error:.2e} of its maximum."

    def unwritten_memory(self) -> None:
        with _memory_full_of_nan():
            spoilt = self.run(self.inputs, torch.ones_like)
        for n, a, b in zip(_results(self.inputs), spoilt, self.plain, strict=True):
            assert torch.equal(a, b), f"{self.kernel} leaves a part of {n} unwritten, or reads what it never wrote."

    def same_every_time(self) -> None:
        again = self.run(self.inputs, torch.ones_like)
        for n, a, b in zip(_results(self.inputs), again, self.plain, strict=True):
            assert torch.equal(a, b), f"{self.kernel} gives another {n} the second time."

    def prefixes_and_padding(self) -> None:
        name, inputs, at = self.kernel, self.inputs, self.sizes.split
        length = inputs["x"].shape[1]
        whole, end = selective_scan(**inputs, return_final_state=True, kernel=name)
        first = {n: t[:, :at] if n in SEQUENCES else t for n, t in inputs.items()}
        head, state = selective_scan(**first, return_final_state=True, kernel=name)
        assert relative_error(head, whole[:, :at]) <= OUTPUT_TOLERANCE, f"{name}: a prefix alone differs."
        rest = {n: t[:, at:] if n in SEQUENCES else t for n, t in inputs.items()} | {"initial_state": state}
        tail, final = selective_scan(**rest, return_final_state=True, kernel=name)
        joined = torch.cat([head, tail], 1)
        assert relative_error(joined, whole) <= OUTPUT_TOLERANCE, f"{name}: scan, then scan differs from one scan."
        assert relative_error(final, end) <= OUTPUT_TOLERANCE, f"{name}: the final state differs after a split."
        beyond = torch.arange(at, length, device=self.device)
        spoilt = {n: inputs[n].clone().index_fill_(1, beyond, float("nan")) for n in SEQUENCES}
        ahead = selective_scan(**(inputs | spoilt), kernel=name)[:, :at]
        assert torch.equal(ahead, whole[:, :at]), f"{name}: what follows a prefix, or pads it, changes it."
        # the loss reads nothing of the padding: whatever stands there, gradients are those of the rows without it
        padded = {n: inputs[n].clone().index_fill_(1, beyond, 3.0) for n in SEQUENCES}
        mask = (torch.arange(length, device=self.device) < at).to(whole.dtype)[None, :, None]
        ours = self._gradients(inputs | padded, mask.expand_as(whole))
        alone = self._gradients(first, torch.ones_like(head))
        for n, a, b in zip(inputs, ours, alone, strict=True):
            inside = a[:, :at] if n in SEQUENCES else a
            assert relative_error(inside, b) <= GRADIENT_TOLERANCE, f"{name}: padding changes the gradient of {n}."
            if n in SEQUENCES:
                assert not a[:, at:].any(), f"{name}: padding that no loss reads has a gradient of {n}."

    def _gradients(self, inputs: dict[str, Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
        leaves = {n: t.detach().clone().requires_grad_() for n, t in inputs.items()}
        out = selective_scan(**leaves, kernel=self.kernel)
        return torch.autograd.grad(out, list(leaves.values()), upstream)

    def custom_op(self) -> None:
        every = registry.get_kernel(OP, self.kernel).checkpoint_every
        tensors = [self.inputs[n].detach().clone().requires_grad_() for n in NAMES]
        resets = torch.zeros(self.inputs["x"].shape[:2], dtype=torch.bool, device=self.device)
        torch.library.opcheck(_scan_op, (*tensors, resets, True, every, self.kernel))
        bare = [*tensors[:5], None, None, None, None, None, True, every, self.kernel]
        torch.library.opcheck(_scan_op, bare, test_utils=("test_schema", "test_faketensor"))


def _results(inputs: dict[str, Tensor]) -> list[str]:
    return ["the output", "the final state", *(f"the gradient of {n}" for n in inputs)]


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def _expanded_last(tensor: Tensor) -> Tensor:
    return tensor[..., :1].expand_as(tensor)


@contextmanager
def _memory_full_of_nan() -> Iterator[None]:
    """New tensors hold NaN until they are written; torch does this in its deterministic mode."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _expect(errors: dict[str, float], dtype: torch.dtype, where: str, worst: dict[str, float]) -> None:
    limits = {torch.bfloat16: BFLOAT16_TOLERANCE, torch.float16: FLOAT16_TOLERANCE, torch.float64: FLOAT64_TOLERANCE}
    for name, error in errors.items():
        is_output = name in ("out", "final_state")
        limit = limits.get(dtype, OUTPUT_TOLERANCE if is_output else GRADIENT_TOLERANCE)
        key = f"{str(dtype).removeprefix('torch.')} {'output' if is_output else 'gradients'}"
        worst[key] = max(worst.get(key, 0.0), error)
        assert error <= limit, f"{where} ({dtype}): {name} is off by {error:.2e} of its maximum; allowed {limit:.0e}."
