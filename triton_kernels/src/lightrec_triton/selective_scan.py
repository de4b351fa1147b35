"""The selective scan of `lightrec.ops.selective_scan` in Triton: forward and backward, sequential in time.

One program is one warp and owns a tile of channels of one row: [BLOCK_D, BLOCK_N] states, float32, in registers, from
the first event to the last. Parallelism over time would cost three times the instructions, and rows times channels are
enough programs for any GPU at the sizes of recommenders. A is multiplied by log2 e once, so a decay is one exp2. Loads
of a step's x, delta, z are [BLOCK_D] and of B, C [BLOCK_N] slices in the callers' own layout; nothing is transposed.

Backward goes through parts of four steps from the last to the first, two steps at a time, whose states it makes again
from the kept one: as many as registers hold. Gradients of B and C are summed over the channels of a tile, and those of
A, D and the bias over the steps of a row, in buffers of their own that are added up afterwards in a fixed order: no
atomics, so the result is the same every time.

A masked step (behind the end, or of a channel that is not there) has delta 0: it decays by 1 and adds nothing.

A warp has little company at these sizes, so it must not wait for memory: forward reads a step four steps ahead, and
backward, whose registers are full, asks the second-level cache for the part that comes next. On an H200 this made
forward 1.7 to 2.7 times as fast and both together 1.2 to 1.7 times (`benchmarks/selective_scan.py`).
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightrec.ops.registry import Kernel

CHECKPOINT_EVERY = 4
TILE = 512  # states of a program: 16 a lane
FEW = 512  # programs; with fewer a GPU is mostly idle, and half the tile gives it twice as many
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(v):
    """log(1 + exp(v)), compensated: the plain form loses half the digits of small steps."""
    e = tl.exp(-tl.abs(v))
    u = 1.0 + e
    return tl.maximum(v, 0.0) + (tl.log(u) - ((u - 1.0) - e) / u)


@triton.jit
def _load_step(
    i: tl.constexpr, t, length, there, n_there, d, n, x_ptr, delta_ptr, z_ptr, B_ptr, C_ptr, resets_ptr,
    x_st: tl.constexpr, delta_st: tl.constexpr, z_st: tl.constexpr, B_st: tl.constexpr, C_st: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """What step t + i reads, as it is stored; pointers are those of step t."""
    inside = there & (t + i + d * 0 < length)
    n_inside = n_there & (t + i + n * 0 < length)
    u = tl.load(x_ptr + i * x_st, mask=inside, other=0.0)
    raw = tl.load(delta_ptr + i * delta_st, mask=inside, other=0.0)
    b = tl.load(B_ptr + i * B_st, mask=n_inside, other=0.0)
    c = tl.load(C_ptr + i * C_st, mask=n_inside, other=0.0)
    gate = u
    if HAS_Z:
        gate = tl.load(z_ptr + i * z_st, mask=inside, other=0.0)
    reset = t
    if HAS_RESETS:
        reset = tl.load(resets_ptr + t + i, mask=t + i < length, other=0)
    return u, raw, b, c, gate, reset


@triton.jit
def _advance(
    h, i: tl.constexpr, t, read, length, a, bias, skip, there, d, out_ptr, channels: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """Step t + i forward from what `_load_step` has read; returns the state behind it."""
    u, raw, b, c, gate, reset = read
    inside = there & (t + i + d * 0 < length)
    u = u.to(tl.float32)
    step = raw.to(tl.float32) + bias
    if SOFTPLUS:
        step = _softplus(step)
    step = tl.where(inside, step, 0.0)
    decay = tl.exp2(step[:, None] * a)
    if HAS_RESETS:
        h = tl.where(reset != 0, 0.0, h)  # it may be NaN: multiplied by 0 it would stay
    h = decay * h + (step * u)[:, None] * b.to(tl.float32)[None, :]
    y = tl.sum(h * c.to(tl.float32)[None, :], 1)
    if HAS_D:
        y += skip * u
    if HAS_Z:
        gate = gate.to(tl.float32)
        y *= gate * tl.sigmoid(gate)
    tl.store(out_ptr + i * channels, y.to(out_ptr.dtype.element_ty), mask=inside)
    return h


@triton.jit
def scan_forward(
    x_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    bias_ptr,
    initial_ptr,
    resets_ptr,
    out_ptr,
    final_ptr,
    kept_ptr,
    length,
    channels: tl.constexpr,
    states: tl.constexpr,
    x_sb,
    x_st: tl.constexpr,
    x_sd,
    delta_sb,
    delta_st: tl.constexpr,
    delta_sd,
    z_sb,
    z_st: tl.constexpr,
    z_sd,
    B_sb,
    B_st: tl.constexpr,
    B_sn,
    C_sb,
    C_st: tl.constexpr,
    C_sn,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    EVERY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid (channel tiles, rows). Contiguous: A [D, N], initial and final [B, D, N], out [B, L, D], resets [B, L] int8,
    kept [B, ceil(L / EVERY), D, N]."""
    row = tl.program_id(1).to(tl.int64)
    zero = tl.program_id(1) * 0  # the interpreter's masks must be made from blocks, not from loop counters
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    there = d < channels
    n_there = n < states
    if channels % BLOCK_D == 0:
        there = tl.full([BLOCK_D], 1, tl.int1)
    if states == BLOCK_N:
        n_there = tl.full([BLOCK_N], 1, tl.int1)
    state_there = there[:, None] & n_there[None, :]
    place = d[:, None] * states + n[None, :]
    a = tl.load(A_ptr + place, mask=state_there, other=0.0).to(tl.float32) * _LOG2E
    h = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    if HAS_INITIAL:
        h = tl.load(initial_ptr + row * channels * states + place, mask=state_there, other=0.0)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=there, other=0.0).to(tl.float32)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=there, other=0.0).to(tl.float32)
    x_ptr += row * x_sb + d * x_sd
    delta_ptr += row * delta_sb + d * delta_sd
    z_ptr += row * z_sb + d * z_sd
    B_ptr += row * B_sb + n * B_sn
    C_ptr += row * C_sb + n * C_sn
    out_ptr += row * length * channels + d
    resets_ptr += row * length
    parts = tl.cdiv(length, EVERY)
    kept_ptr += row * parts * channels * states + place
    # A step is read four steps ahead: memory is a step's whole work away, and no load may pass a store.
    ahead = ()
    for i in tl.static_range(EVERY):
        ahead = ahead + (_load_step(
            i, zero, length, there, n_there, d, n, x_ptr, delta_ptr, z_ptr, B_ptr, C_ptr, resets_ptr,
            x_st, delta_st, z_st, B_st, C_st, HAS_Z, HAS_RESETS,
        ),)  # fmt: skip
    for part in range(parts):
        t = zero + part * EVERY
        tl.store(kept_ptr, h, mask=state_there)
        kept_ptr += channels * states
        # pointers walk: an address from a number of steps costs a multiplication
        x_ptr += EVERY * x_st
        delta_ptr += EVERY * delta_st
        z_ptr += EVERY * z_st
        B_ptr += EVERY * B_st
        C_ptr += EVERY * C_st
        for i in tl.static_range(EVERY):
            h = _advance(
                h, i, t, ahead[0], length, a, bias, skip, there, d, out_ptr, channels,
                SOFTPLUS, HAS_D, HAS_Z, HAS_RESETS,
            )  # fmt: skip
            ahead = ahead[1:] + (_load_step(
                i, t + EVERY, length, there, n_there, d, n, x_ptr, delta_ptr, z_ptr, B_ptr, C_ptr, resets_ptr,
                x_st, delta_st, z_st, B_st, C_st, HAS_Z, HAS_RESETS,
            ),)  # fmt: skip
        out_ptr += EVERY * channels
    tl.store(final_ptr + row * channels * states + place, h, mask=state_there)


@triton.jit
def _step_back(
    t, h, g, a, dA, dD, dbias, skip, bias, there, n_there, d, n, x_ptr, delta_ptr, z_ptr, grad_out_ptr, B_ptr, C_ptr,
    resets_ptr, dx_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, length,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESETS: tl.constexpr,
):  # fmt: skip
    """One step, h before it given: runs it forward, then backward."""
    inside = there & (t + d * 0 < length)
    n_inside = n_there & (t + n * 0 < length)
    u = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
    raw = tl.load(delta_ptr, mask=inside, other=0.0).to(tl.float32) + bias
    step = raw
    if SOFTPLUS:
        step = _softplus(raw)
    step = tl.where(inside, step, 0.0)
    b = tl.load(B_ptr, mask=n_inside, other=0.0).to(tl.float32)
    decay = tl.exp2(step[:, None] * a)
    if HAS_RESETS:
        reset = tl.load(resets_ptr + t, mask=t < length, other=0)
        h = tl.where(reset != 0, 0.0, h)
    left = decay * h
    h = left + (step * u)[:, None] * b[None, :]
    g, dA, dD, dbias = _gradients(
        left, h, decay, step, raw, u, b, g, a, dA, dD, dbias, skip, inside, n_inside, z_ptr, grad_out_ptr, C_ptr,
        dx_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr, SOFTPLUS, HAS_D, HAS_Z, HAS_BIAS,
    )  # fmt: skip
    if HAS_RESETS:
        g = tl.where(reset != 0, 0.0, g)
    return g, dA, dD, dbias


@triton.jit
def _gradients(
    left, h, decay, step, raw, u, b, g, a, dA, dD, dbias, skip, inside, n_inside, z_ptr, grad_out_ptr, C_ptr,
    dx_ptr, ddelta_ptr, dz_ptr, dB_ptr, dC_ptr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Backward of one step whose state h = left + step u b is at hand; g enters as the gradient of h, and leaves as
    that of the state before. Pointers are those of the step."""
    c = tl.load(C_ptr, mask=n_inside, other=0.0).to(tl.float32)
    dy = tl.load(grad_out_ptr, mask=inside, other=0.0).to(tl.float32)
    if HAS_Z:
        gate = tl.load(z_ptr, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        y = tl.sum(h * c[None, :], 1)
        if HAS_D:
            y += skip * u
        dz = dy * y * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        tl.store(dz_ptr, dz.to(dz_ptr.dtype.element_ty), mask=inside)
        dy *= gate * sigmoid
    tl.store(dC_ptr, tl.sum(dy[:, None] * h, 0), mask=n_inside)
    g += dy[:, None] * c[None, :]
    tl.store(dB_ptr, tl.sum((step * u)[:, None] * g, 0), mask=n_inside)
    dsu = tl.sum(g * b[None, :], 1)  # gradient of step * u
    exponent = g * left
    dA += exponent * step[:, None]
    dstep = dsu * u + tl.sum(exponent * a, 1) * (1.0 / _LOG2E)
    if SOFTPLUS:
        dstep *= tl.sigmoid(raw)
    dstep = tl.where(inside, dstep, 0.0)
    tl.store(ddelta_ptr, dstep.to(ddelta_ptr.dtype.element_ty), mask=inside)
    dx = dsu * step
    if HAS_D:
        dx += skip * dy
        dD += dy * u
    tl.store(dx_ptr, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        dbias += dstep
    return decay * g, dA, dD, dbias


@triton.jit
def _prefetch(pointers):
    """Fetches what is there into the second-level cache of an NVIDIA GPU, without a register to hold it."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def scan_backward(
    grad_out_ptr,
    grad_final_ptr,
    x_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    bias_ptr,
    resets_ptr,
    kept_ptr,
    dx_ptr,
    ddelta_ptr,
    dA_ptr,
    dB_ptr,
    dC_ptr,
    dD_ptr,
    dz_ptr,
    dbias_ptr,
    dinitial_ptr,
    length,
    channels: tl.constexpr,
    states: tl.constexpr,
    grad_sb,
    grad_st: tl.constexpr,
    grad_sd,
    x_sb,
    x_st: tl.constexpr,
    x_sd,
    delta_sb,
    delta_st: tl.constexpr,
    delta_sd,
    z_sb,
    z_st: tl.constexpr,
    z_sd,
    B_sb,
    B_st: tl.constexpr,
    B_sn,
    C_sb,
    C_st: tl.constexpr,
    C_sn,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    HAS_GRAD_FINAL: tl.constexpr,
    EVERY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Grid (channel tiles, rows). Contiguous float32: dA, dinitial [B, D, N], dD, dbias [B, D], dB and dC
    [tiles, B, L, N]; dx, ddelta, dz [B, L, D] in their inputs' dtypes."""
    tile = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    rows = tl.num_programs(1)
    zero = tl.program_id(1) * 0  # times are tensors, as in forward
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    there = d < channels
    n_there = n < states
    if channels % BLOCK_D == 0:
        there = tl.full([BLOCK_D], 1, tl.int1)
    if states == BLOCK_N:
        n_there = tl.full([BLOCK_N], 1, tl.int1)
    state_there = there[:, None] & n_there[None, :]
    place = d[:, None] * states + n[None, :]
    a = tl.load(A_ptr + place, mask=state_there, other=0.0).to(tl.float32) * _LOG2E
    g = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)  # gradient of the state behind the step at hand
    if HAS_GRAD_FINAL:
        g = tl.load(grad_final_ptr + row * channels * states + place, mask=state_there, other=0.0).to(tl.float32)
    skip = tl.zeros([BLOCK_D], tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=there, other=0.0).to(tl.float32)
    bias = tl.zeros([BLOCK_D], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + d, mask=there, other=0.0).to(tl.float32)
    # where the tile begins in its row
    x_row = x_ptr + row * x_sb + tile * BLOCK_D * x_sd
    delta_row = delta_ptr + row * delta_sb + tile * BLOCK_D * delta_sd
    z_row = z_ptr + row * z_sb + tile * BLOCK_D * z_sd
    grad_row = grad_out_ptr + row * grad_sb + tile * BLOCK_D * grad_sd
    x_ptr += row * x_sb + d * x_sd
    delta_ptr += row * delta_sb + d * delta_sd
    z_ptr += row * z_sb + d * z_sd
    grad_out_ptr += row * grad_sb + d * grad_sd
    B_ptr += row * B_sb + n * B_sn
    C_ptr += row * C_sb + n * C_sn
    dx_ptr += row * length * channels + d
    ddelta_ptr += row * length * channels + d
    dz_ptr += row * length * channels + d
    dB_ptr += (tile * rows + row) * length * states + n
    dC_ptr += (tile * rows + row) * length * states + n
    dA = tl.zeros([BLOCK_D, BLOCK_N], tl.float32)
    dD = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    parts = tl.cdiv(length, EVERY)
    for back in range(parts):
        part = parts - 1 - back
        first = part * EVERY
        # bases of the part: from here on, addresses differ by constants
        xs, deltas, zs = x_ptr + first * x_st, delta_ptr + first * delta_st, z_ptr + first * z_st
        Bs, Cs, grads = B_ptr + first * B_st, C_ptr + first * C_st, grad_out_ptr + first * grad_st
        dxs, ddeltas, dzs = dx_ptr + first * channels, ddelta_ptr + first * channels, dz_ptr + first * channels
        dBs, dCs = dB_ptr + first * states, dC_ptr + first * states
        if PREFETCH:  # registers are full, but the cache has room for what the next part will read
            before = tl.maximum(part - 1, 0)
            i = before * EVERY + tl.arange(0, EVERY)[:, None]
            eighth = tl.arange(0, (BLOCK_D + 7) // 8)[None, :] * 8  # a sector holds eight float32, or more
            _prefetch(x_row + eighth * x_sd + i * x_st)
            _prefetch(delta_row + eighth * delta_sd + i * delta_st)
            _prefetch(grad_row + eighth * grad_sd + i * grad_st)
            _prefetch(B_ptr[None, :] + i * B_st)
            _prefetch(C_ptr[None, :] + i * C_st)
            if HAS_Z:
                _prefetch(z_row + eighth * z_sd + i * z_st)
            sectors = tl.arange(0, (BLOCK_D * BLOCK_N + 7) // 8) * 8
            _prefetch(kept_ptr + (row * parts + before) * channels * states + tile * BLOCK_D * states + sectors)
        for pair in tl.static_range(EVERY // 2):
            # the state before two steps, made again; then these two, the later one first
            h = tl.load(kept_ptr + (row * parts + part) * channels * states + place, mask=state_there, other=0.0)
            for i in tl.static_range(EVERY - 2 - 2 * pair):
                t = zero + first + i
                inside = there & (t + d * 0 < length)
                u = tl.load(xs + i * x_st, mask=inside, other=0.0).to(tl.float32)
                step = tl.load(deltas + i * delta_st, mask=inside, other=0.0).to(tl.float32) + bias
                if SOFTPLUS:
                    step = _softplus(step)
                step = tl.where(inside, step, 0.0)
                b = tl.load(Bs + i * B_st, mask=n_there & (t + n * 0 < length), other=0.0).to(tl.float32)
                decay = tl.exp2(step[:, None] * a)
                if HAS_RESETS:
                    reset = tl.load(resets_ptr + row * length + t, mask=t < length, other=0)
                    h = tl.where(reset != 0, 0.0, h)
                h = decay * h + (step * u)[:, None] * b[None, :]
            t = zero + first + (EVERY - 2 - 2 * pair)
            inside = there & (t + d * 0 < length)
            n_inside = n_there & (t + n * 0 < length)
            u = tl.load(xs + (EVERY - 2 - 2 * pair) * x_st, mask=inside, other=0.0).to(tl.float32)
            raw = tl.load(deltas + (EVERY - 2 - 2 * pair) * delta_st, mask=inside, other=0.0).to(tl.float32) + bias
            step = raw
            if SOFTPLUS:
                step = _softplus(raw)
            step = tl.where(inside, step, 0.0)
            b = tl.load(Bs + (EVERY - 2 - 2 * pair) * B_st, mask=n_inside, other=0.0).to(tl.float32)
            decay = tl.exp2(step[:, None] * a)
            if HAS_RESETS:
                reset = tl.load(resets_ptr + row * length + t, mask=t < length, other=0)
                h = tl.where(reset != 0, 0.0, h)
            left = decay * h  # what is left of the state before
            h = left + (step * u)[:, None] * b[None, :]
            g, dA, dD, dbias = _step_back(
                t + 1,
                h, g, a, dA, dD, dbias, skip, bias, there, n_there, d, n,
                xs + (EVERY - 1 - 2 * pair) * x_st,
                deltas + (EVERY - 1 - 2 * pair) * delta_st,
                zs + (EVERY - 1 - 2 * pair) * z_st,
                grads + (EVERY - 1 - 2 * pair) * grad_st,
                Bs + (EVERY - 1 - 2 * pair) * B_st,
                Cs + (EVERY - 1 - 2 * pair) * C_st,
                resets_ptr + row * length,
                dxs + (EVERY - 1 - 2 * pair) * channels,
                ddeltas + (EVERY - 1 - 2 * pair) * channels,
                dzs + (EVERY - 1 - 2 * pair) * channels,
                dBs + (EVERY - 1 - 2 * pair) * states,
                dCs + (EVERY - 1 - 2 * pair) * states,
                length, SOFTPLUS, HAS_D, HAS_Z, HAS_BIAS, HAS_RESETS,
            )  # fmt: skip
            g, dA, dD, dbias = _gradients(
                left, h, decay, step, raw, u, b, g, a, dA, dD, dbias, skip, inside, n_inside,
                zs + (EVERY - 2 - 2 * pair) * z_st,
                grads + (EVERY - 2 - 2 * pair) * grad_st,
                Cs + (EVERY - 2 - 2 * pair) * C_st,
                dxs + (EVERY - 2 - 2 * pair) * channels,
                ddeltas + (EVERY - 2 - 2 * pair) * channels,
                dzs + (EVERY - 2 - 2 * pair) * channels,
                dBs + (EVERY - 2 - 2 * pair) * states,
                dCs + (EVERY - 2 - 2 * pair) * states,
                SOFTPLUS, HAS_D, HAS_Z, HAS_BIAS,
            )  # fmt: skip
            if HAS_RESETS:
                g = tl.where(reset != 0, 0.0, g)
    tl.store(dA_ptr + row * channels * states + place, dA, mask=state_there)
    tl.store(dinitial_ptr + row * channels * states + place, g, mask=state_there)
    if HAS_D:
        tl.store(dD_ptr + row * channels + d, dD, mask=there)
    if HAS_BIAS:
        tl.store(dbias_ptr + row * channels + d, dbias, mask=there)


INTERPRETED = not hasattr(scan_forward, "device_caches") or os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels above were made for Triton's interpreter, which is fixed when they are defined."""


def blocks(rows: int, channels: int, states: int) -> tuple[int, int]:
    """Sizes of a tile: [BLOCK_D, BLOCK_N], TILE states or half as many, no more channels than there are."""
    block_n = triton.next_power_of_2(states)
    block_d = min(max(1, TILE // block_n), triton.next_power_of_2(channels), 32)
    if rows * triton.cdiv(channels, block_d) < FEW:
        block_d = min(block_d, max(1, TILE // 2 // block_n))
    return block_d, block_n


def forward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every):
    """See the contract."""
    batch, length, channels = x.shape
    states = A.shape[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = torch.empty(batch, channels, states, dtype=torch.float32, device=x.device)
    kept = final.new_empty(batch, -(-length // every), channels, states)
    if not batch or not channels:
        return out, final, kept
    A, D, delta_bias, resets = _plain(A), _plain(D), _plain(delta_bias), _flags(resets)
    initial_state = None if initial_state is None else initial_state.float().contiguous()
    block_d, block_n = blocks(batch, channels, states)
    scan_forward[(triton.cdiv(channels, block_d), batch)](
        x, delta, A, B, C, _or(D, A), _or(z, x), _or(delta_bias, A), _or(initial_state, final), _or(resets, x),
        out, final, kept, length, channels, states,
        *x.stride(), *delta.stride(), *_or(z, x).stride(), *B.stride(), *C.stride(),
        softplus, D is not None, z is not None, delta_bias is not None, initial_state is not None, resets is not None,
        every, block_d, block_n, num_warps=1, **_OPTIONS,
    )  # fmt: skip
    return out, final, kept


def backward(grad_out, grad_final, x, delta, A, B, C, D, z, delta_bias, resets, kept, softplus, every):
    """See the contract."""
    batch, length, channels = x.shape
    states = A.shape[1]
    shape = (batch, channels, states)
    dx, ddelta = (torch.empty(x.shape, dtype=t.dtype, device=x.device) for t in (x, delta))
    dz = None if z is None else torch.empty(x.shape, dtype=z.dtype, device=x.device)
    dA, dinitial = kept.new_empty(shape), kept.new_empty(shape)
    dD, dbias = kept.new_empty(batch, channels), kept.new_empty(batch, channels)
    block_d, block_n = blocks(batch, max(1, channels), states)
    tiles = triton.cdiv(channels, block_d)
    dB, dC = kept.new_empty(tiles, batch, length, states), kept.new_empty(tiles, batch, length, states)
    if batch and channels:
        A, plain_D, bias, flags = _plain(A), _plain(D), _plain(delta_bias), _flags(resets)
        grad_final = None if grad_final is None else grad_final.float().contiguous()
        scan_backward[(tiles, batch)](
            grad_out, _or(grad_final, A), x, delta, A, B, C, _or(plain_D, A), _or(z, x), _or(bias, A), _or(flags, x),
            kept, dx, ddelta, dA, dB, dC, dD, _or(dz, dx), dbias, dinitial, length, channels, states,
            *grad_out.stride(), *x.stride(), *delta.stride(), *_or(z, x).stride(), *B.stride(), *C.stride(),
            softplus, D is not None, z is not None, bias is not None, flags is not None, grad_final is not None,
            every, block_d, block_n, _PREFETCHES and channels % block_d == 0 and states == block_n,
            num_warps=1, **_OPTIONS,
        )  # fmt: skip
    else:
        dinitial.zero_()
    return (
        dx,
        ddelta,
        dA.sum(0),
        dB.sum(0),
        dC.sum(0),
        None if D is None else dD.sum(0),
        dz,
        None if delta_bias is None else dbias.sum(0),
        dinitial,
    )


# Fused multiply-adds are what the counts suppose; the default of Triton is about to change.
_OPTIONS = {} if INTERPRETED else {"enable_fp_fusion": True}
_PREFETCHES = not INTERPRETED and torch.version.hip is None


def _plain(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().contiguous()


def _flags(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.contiguous().view(torch.int8)


def _or(t: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that is never read stands in for an absent tensor."""
    return other if t is None else t


def accepts(spec) -> str | None:
    """None, or why this kernel cannot run a call."""
    if spec.dtype == torch.float64:
        return "Triton's scan keeps float32 states; float64 needs the reference or the torch kernel"
    if spec.states > 256:
        return f"{spec.states} states a channel; a tile holds 256 at most"
    return cannot_run_on(spec.device)


def cannot_run_on(device: str) -> str | None:
    """None, or why the kernels of this distribution do not run on a device, as they were made."""
    if device == "cpu":
        return None if INTERPRETED else "a CPU needs Triton's interpreter: set TRITON_INTERPRET=1"
    if device != "cuda":
        return f"Triton compiles for CUDA and ROCm, not for {device}"
    return None if not INTERPRETED else "TRITON_INTERPRET=1 is set: nothing is compiled for a GPU"


def only_by_name(spec) -> str | None:
    return "Triton's interpreter is for checking, not for work" if spec.device == "cpu" else None


def kernels() -> list[Kernel]:
    """The scan; its hyperbolic form is the same kernel with other rates."""
    return [
        Kernel(
            "selective_scan",
            "triton",
            forward,
            backward,
            accepts,
            priority=50,
            checkpoint_every=CHECKPOINT_EVERY,
            only_by_name=only_by_name,
        )
    ]
