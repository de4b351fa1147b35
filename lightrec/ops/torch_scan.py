"""The `torch` kernel of the selective scan: no dependency, little memory.

Work goes in tiles of a few batch rows by `every` steps, whose [steps, rows, D, N] tensors stay in cache. Forward keeps
one state in `every`; backward makes the others again. The recurrence is the only loop over time: everything else of a
tile is one operation. Contract: `lightrec.ops.selective_scan`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightrec.ops.blocks import rows_that_fit


def _rows(A: Tensor, every: int) -> int:
    return rows_that_fit(4 * every * A.numel(), A.device, "scan states")


def _prepare(delta, delta_bias, softplus, dtype):
    raw = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    return raw, F.softplus(raw, threshold=40.0) if softplus else raw


def _forgotten(resets, r, s):
    """Where a tile forgets: a mask [T, b, 1, 1], and whether any row does at each of T steps; (None, None) if never.

    What is forgotten is masked, not multiplied by 0: it may be NaN or infinite.
    """
    if resets is None:
        return None, None
    mask = resets[r, s].t()[:, :, None, None]
    at = mask.flatten(1).any(1).tolist()
    return (mask, at) if any(at) else (None, None)


def _states(step, u, A, B, h, mask, at):
    """Decays and states of one tile, time first: [T, b, D, N] each; h [b, D, N] enters."""
    decay = torch.exp(step.transpose(0, 1).unsqueeze(-1) * A)
    states = (step * u).transpose(0, 1).unsqueeze(-1) * B.transpose(0, 1).unsqueeze(2)
    for t in range(len(states)):
        if at is not None and at[t]:
            h = h.masked_fill(mask[t], 0.0)
        h = states[t].addcmul_(decay[t], h)
    return decay, states


def forward(x, delta, A, B, C, D, z, delta_bias, initial_state, resets, softplus, every):
    """See the contract."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    batch, length, channels = x.shape
    A = A.detach().to(dtype)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    final = x.new_empty(batch, *A.shape, dtype=dtype)
    kept = x.new_empty(batch, -(-length // every), *A.shape, dtype=dtype)
    rows = _rows(A, every)
    for b in range(0, batch, rows):
        r = slice(b, min(b + rows, batch))
        h = final.new_zeros(r.stop - b, *A.shape) if initial_state is None else initial_state[r].to(dtype)
        for m in range(kept.shape[1]):
            kept[r, m] = h
            s = slice(m * every, min((m + 1) * every, length))
            u = x[r, s].to(dtype)
            _, step = _prepare(delta[r, s], delta_bias, softplus, dtype)
            _, states = _states(step, u, A, B[r, s].to(dtype), h, *_forgotten(resets, r, s))
            h = states[-1].clone()
            y = torch.matmul(states, C[r, s].to(dtype).transpose(0, 1).unsqueeze(-1)).squeeze(-1).transpose(0, 1)
            if D is not None:
                y = y + D.to(dtype) * u
            if z is not None:
                y = y * F.silu(z[r, s].to(dtype))
            out[r, s] = y.to(x.dtype)
        final[r] = h
    return out, final, kept


def backward(grad_out, grad_final, x, delta, A, B, C, D, z, delta_bias, resets, kept, softplus, every):
    """See the contract. Sums over rows run in a fixed order, so the result is the same every time."""
    dtype = kept.dtype
    batch, length, channels = x.shape
    A = A.to(dtype)
    dx, ddelta = torch.empty_like(x, dtype=dtype), torch.empty_like(x, dtype=dtype)
    dB, dC = torch.empty_like(B, dtype=dtype), torch.empty_like(C, dtype=dtype)
    dz = None if z is None else torch.empty_like(z, dtype=dtype)
    dA, dD, initial = torch.zeros_like(A), A.new_zeros(channels), kept.new_empty(batch, *A.shape)
    rows = _rows(A, every)
    for b in range(0, batch, rows):
        r = slice(b, min(b + rows, batch))
        g = kept.new_zeros(r.stop - b, *A.shape) if grad_final is None else grad_final[r].to(dtype)
        for m in reversed(range(kept.shape[1])):
            s = slice(m * every, min((m + 1) * every, length))
            u, b_, c_ = x[r, s].to(dtype), B[r, s].to(dtype), C[r, s].to(dtype)
            raw, step = _prepare(delta[r, s], delta_bias, softplus, dtype)
            mask, at = _forgotten(resets, r, s)
            decay, states = _states(step, u, A, b_, kept[r, m], mask, at)
            dy = grad_out[r, s].to(dtype)
            if z is not None:
                gate = z[r, s].to(dtype)
                y = torch.matmul(states, c_.transpose(0, 1).unsqueeze(-1)).squeeze(-1).transpose(0, 1)
                if D is not None:
                    y = y + D.to(dtype) * u
                sigmoid = torch.sigmoid(gate)
                dz[r, s] = dy * y * (sigmoid * (1 + gate * (1 - sigmoid)))
                dy = dy * gate * sigmoid
            dy_t = dy.transpose(0, 1)
            dC[r, s] = torch.matmul(dy_t.unsqueeze(2), states).squeeze(2).transpose(0, 1)
            grads = dy_t.unsqueeze(-1) * c_.transpose(0, 1).unsqueeze(2)
            for t in reversed(range(len(grads))):
                grads[t].add_(g)
                g = grads[t] * decay[t]
                if at is not None and at[t]:
                    g.masked_fill_(mask[t], 0.0)
            dB[r, s] = torch.matmul((step * u).transpose(0, 1).unsqueeze(2), grads).squeeze(2).transpose(0, 1)
            dstep_u = torch.matmul(grads, b_.transpose(0, 1).unsqueeze(-1)).squeeze(-1).transpose(0, 1)
            # grads becomes the gradient of the exponents: G_t decay_t h_{t-1}
            decay.mul_(grads)
            decay[0].mul_(kept[r, m])
            decay[1:].mul_(states[:-1])
            if mask is not None:
                decay.masked_fill_(mask, 0.0)
            dstep = dstep_u * u + (decay * A).sum(-1).transpose(0, 1)
            dA += (decay * step.transpose(0, 1).unsqueeze(-1)).sum((0, 1))
            ddelta[r, s] = dstep * torch.sigmoid(raw) if softplus else dstep
            dx[r, s] = dstep_u * step if D is None else dstep_u * step + D.to(dtype) * dy
            if D is not None:
                dD += (dy * u).sum((0, 1))
        initial[r] = g
    dbias = None if delta_bias is None else ddelta.sum((0, 1))
    return dx, ddelta, dA, dB, dC, (None if D is None else dD), dz, dbias, initial
