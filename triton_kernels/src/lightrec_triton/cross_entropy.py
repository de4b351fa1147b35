"""The cross-entropy over a large catalog of `lightrec.ops.linear_cross_entropy` in Triton; the logits never exist.

Three kernels multiply tiles of rows with tiles of items. The first keeps, for each row, a running maximum and sum of
exponentials (an online logsumexp). The other two make the tiles again: one owns rows and adds up the gradient of
hidden, one owns items and adds up those of weight and bias. Where a tile's owner alone would leave most of the GPU idle
(256 rows are four programs), several share its sum, each a span of the other side, and their parts are added up
afterwards. Each sum has a fixed order: no atomics. Sums are float32 whatever the tensors are.

On an H200 with bfloat16 products it is 3.6 to 4.8 times as fast as one that keeps the logits, from 25,600 rows and
12,101 items on, in about a hundredth of the memory (`benchmarks/cross_entropy.py`). Products in float32 are exact here
and slow, so those are left to torch's kernel unless this one is named.
"""

from __future__ import annotations

from functools import cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightrec.ops.registry import Kernel
from lightrec_triton.selective_scan import INTERPRETED, cannot_run_on
from lightrec_triton.selective_scan import only_by_name as only_by_name_on_a_cpu

LARGEST_HIDDEN = 256
NUM_WARPS = 4
PROGRAMS_A_PROCESSOR = 4
"""Of a GPU: how many keep it busy."""


def tiles(hidden_size: int) -> tuple[int, int, int]:
    """Rows, items and padded hidden size of a tile: what registers hold beside the sums."""
    block_k = max(16, triton.next_power_of_2(hidden_size))
    return (64, 64, block_k) if block_k <= 128 else (32, 32, block_k)


_WIDE = tl.constexpr(INTERPRETED)  # the interpreter multiplies the bits of bfloat16 as integers


@triton.jit
def _product(a, b):
    """a @ b with sums in float32."""
    if _WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _tile(x, w_ptr, bias_ptr, v, k, items, size, HAS_BIAS: tl.constexpr):
    """Items' vectors [BLOCK_ITEMS, BLOCK_K], and the logits of rows x [BLOCK_ROWS, BLOCK_K]; -inf where no item is."""
    w = tl.load(
        w_ptr + v.to(tl.int64)[:, None] * size + k[None, :], mask=(v < items)[:, None] & (k < size)[None, :], other=0.0
    )
    logits = _product(x, tl.trans(w))
    if HAS_BIAS:
        logits += tl.load(bias_ptr + v, mask=v < items, other=0.0).to(tl.float32)[None, :]
    return w, tl.where((v < items)[None, :], logits, float("-inf"))


@triton.jit
def loss_kernel(
    x_ptr,
    w_ptr,
    target_ptr,
    bias_ptr,
    gold_ptr,
    lse_ptr,
    rows,
    items,
    span,
    size: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (row tiles, spans of items). Contiguous x [T, D], w [V, D], targets [T] int64, bias [V]; gold, the target's
    logit if it is in the span, and lse [spans, T] float32."""
    t = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.arange(0, BLOCK_K)
    there = t < rows
    x = tl.load(
        x_ptr + t.to(tl.int64)[:, None] * size + k[None, :], mask=there[:, None] & (k < size)[None, :], other=0.0
    )
    target = tl.load(target_ptr + t, mask=there, other=0)
    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    gold = tl.zeros([BLOCK_ROWS], tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, items), BLOCK_ITEMS):
        v = start + tl.arange(0, BLOCK_ITEMS)
        _, logits = _tile(x, w_ptr, bias_ptr, v, k, items, size, HAS_BIAS)
        higher = tl.maximum(peak, tl.max(logits, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        peak = higher
        gold += tl.sum(tl.where(v[None, :] == target[:, None], logits, 0.0), 1)
    place = tl.program_id(1).to(tl.int64) * rows + t
    tl.store(lse_ptr + place, peak + tl.log(total), mask=there)
    tl.store(gold_ptr + place, gold, mask=there)


@triton.jit
def join_kernel(
    target_ptr, gold_ptr, part_ptr, loss_ptr, lse_ptr, rows, items, SPANS: tl.constexpr, BLOCK_ROWS: tl.constexpr
):
    """Grid (row tiles): gold and part [SPANS, T] of `loss_kernel` become loss and lse [T]."""
    t = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = t < rows
    target = tl.load(target_ptr + t, mask=there, other=0)
    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    gold = tl.zeros([BLOCK_ROWS], tl.float32)
    for i in range(SPANS):
        peak = tl.maximum(peak, tl.load(part_ptr + i * rows + t, mask=there, other=0.0))
        gold += tl.load(gold_ptr + i * rows + t, mask=there, other=0.0)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for i in range(SPANS):
        total += tl.exp(tl.load(part_ptr + i * rows + t, mask=there, other=0.0) - peak)
    lse = peak + tl.log(total)
    tl.store(lse_ptr + t, lse, mask=there)
    known = (target >= 0) & (target < items)  # on a GPU nobody has looked before: a wrong target must not look right
    tl.store(loss_ptr + t, tl.where(known, lse - gold, float("nan")), mask=there)


@triton.jit
def hidden_kernel(
    x_ptr,
    w_ptr,
    target_ptr,
    bias_ptr,
    lse_ptr,
    grad_ptr,
    rows,
    items,
    span,
    size: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (row tiles, spans of items): parts of the gradient of hidden, [spans, T, D] float32."""
    t = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.arange(0, BLOCK_K)
    there = t < rows
    inside = there[:, None] & (k < size)[None, :]
    place = t.to(tl.int64)[:, None] * size + k[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    target = tl.load(target_ptr + t, mask=there, other=0)
    lse = tl.load(lse_ptr + t, mask=there, other=0.0)
    grad = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, items), BLOCK_ITEMS):
        v = start + tl.arange(0, BLOCK_ITEMS)
        w, logits = _tile(x, w_ptr, bias_ptr, v, k, items, size, HAS_BIAS)
        slope = tl.exp(logits - lse[:, None]) - tl.where(v[None, :] == target[:, None], 1.0, 0.0)
        grad += _product(slope.to(w.dtype), w)
    grad_ptr += tl.program_id(1).to(tl.int64) * rows * size
    tl.store(grad_ptr + place, grad, mask=inside)


@triton.jit
def weight_kernel(
    x_ptr,
    w_ptr,
    target_ptr,
    bias_ptr,
    lse_ptr,
    grad_ptr,
    grad_bias_ptr,
    rows,
    items,
    span,
    size: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (item tiles, spans of rows): parts of the gradients of weight [spans, V, D] and bias [spans, V], float32."""
    v = tl.program_id(0) * BLOCK_ITEMS + tl.arange(0, BLOCK_ITEMS)
    k = tl.arange(0, BLOCK_K)
    inside = (v < items)[:, None] & (k < size)[None, :]
    place = v.to(tl.int64)[:, None] * size + k[None, :]
    w = tl.load(w_ptr + place, mask=inside, other=0.0)
    bias = tl.zeros([BLOCK_ITEMS], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + v, mask=v < items, other=0.0).to(tl.float32)
    grad = tl.zeros([BLOCK_ITEMS, BLOCK_K], tl.float32)
    grad_bias = tl.zeros([BLOCK_ITEMS], tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, rows), BLOCK_ROWS):
        t = start + tl.arange(0, BLOCK_ROWS)
        there = t < rows
        mask = there[:, None] & (k < size)[None, :]
        x = tl.load(x_ptr + t.to(tl.int64)[:, None] * size + k[None, :], mask=mask, other=0.0)
        target = tl.load(target_ptr + t, mask=there, other=-1)
        lse = tl.load(lse_ptr + t, mask=there, other=float("inf"))  # a row that is not there weighs nothing
        logits = _product(w, tl.trans(x)) + bias[:, None]
        slope = tl.exp(logits - lse[None, :]) - tl.where(v[:, None] == target[None, :], 1.0, 0.0)
        grad += _product(slope.to(x.dtype), x)
        grad_bias += tl.sum(slope, 1)
    part = tl.program_id(1).to(tl.int64) * items
    tl.store(grad_ptr + part * size + place, grad, mask=inside)
    if HAS_BIAS:
        tl.store(grad_bias_ptr + part + v, grad_bias, mask=v < items)


def spans(tiles: int, others: int, block: int, programs: int) -> tuple[int, int]:
    """Cuts the other side of a product so that about `programs` run.

    Args:
        tiles: of the side that owns the sums.
        others: length of the other side.
        block: how much of it a step takes.
        programs: how many should run.

    Returns:
        (number of spans, length of a span, a multiple of `block`).
    """
    steps = triton.cdiv(others, block)
    each = triton.cdiv(steps, max(1, min(steps, programs // tiles)))
    return triton.cdiv(steps, each), each * block


@cache
def _programs(device: torch.device) -> int:
    """How many programs keep a device busy; the interpreter has a few, so that it checks that they share."""
    if device.type == "cpu":
        return 4
    return PROGRAMS_A_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def forward(hidden, weight, targets, bias, matmul_dtype, block_rows, needs):
    """See the contract of the op."""
    need_x, need_w, need_b = needs
    rows, size = hidden.shape
    items = len(weight)
    if not rows:
        leaves = zip(needs, (hidden, weight, bias), strict=True)
        zeros = (torch.zeros(t.shape, device=t.device) if need else None for need, t in leaves)
        return hidden.new_zeros((), dtype=torch.float32), *zeros
    x, w = hidden.detach().to(matmul_dtype).contiguous(), weight.detach().to(matmul_dtype).contiguous()
    targets = targets.contiguous()
    new = partial(torch.empty, dtype=torch.float32, device=hidden.device)
    offset = new(1) if bias is None else bias.detach().contiguous()
    block_rows, block_items, block_k = tile = tiles(size)
    row_tiles, item_tiles, busy = triton.cdiv(rows, block_rows), triton.cdiv(items, block_items), _programs(x.device)
    options = size, bias is not None, *tile
    parts, span = spans(row_tiles, items, block_items, busy)
    gold, part, loss, lse = new(parts, rows), new(parts, rows), new(rows), new(rows)
    loss_kernel[row_tiles, parts](x, w, targets, offset, gold, part, rows, items, span, *options, num_warps=NUM_WARPS)
    join_kernel[(row_tiles,)](targets, gold, part, loss, lse, rows, items, parts, block_rows, num_warps=NUM_WARPS)
    grad_x = grad_w = grad_b = None
    if need_x:
        grad_x = new(parts, rows, size)
        hidden_kernel[row_tiles, parts](
            x, w, targets, offset, lse, grad_x, rows, items, span, *options, num_warps=NUM_WARPS
        )
        grad_x = _joined(grad_x)
    if need_w or need_b:
        parts, span = spans(item_tiles, rows, block_rows, busy)
        grad_w, grad_b = new(parts, items, size), new(parts, items)
        weight_kernel[item_tiles, parts](
            x, w, targets, offset, lse, grad_w, grad_b, rows, items, span, *options, num_warps=NUM_WARPS
        )
        grad_w, grad_b = _joined(grad_w) if need_w else None, _joined(grad_b) if need_b else None
    return loss.sum(), grad_x, grad_w, grad_b


def _joined(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def accepts(spec) -> str | None:
    """None, or why this kernel cannot run a call."""
    if torch.float64 in (spec.dtype, spec.matmul_dtype):
        return "Triton's cross-entropy sums in float32; float64 needs the torch kernel"
    if spec.hidden_size > LARGEST_HIDDEN:
        return f"hidden size {spec.hidden_size}; a tile holds {LARGEST_HIDDEN} at most"
    return cannot_run_on(spec.device)


def only_by_name(spec) -> str | None:
    if spec.device == "cuda" and spec.matmul_dtype == torch.float32:
        return "float32 products are faster in torch's kernel, which keeps a block of logits; name it to save memory"
    return only_by_name_on_a_cpu(spec)


def kernels() -> list[Kernel]:
    return [Kernel("linear_cross_entropy", "triton", forward, None, accepts, priority=50, only_by_name=only_by_name)]
