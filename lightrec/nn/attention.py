"""Multi-head self-attention over right-padded sequences, through torch's fused kernel.

With dropout of the attention weights torch has no fused kernel on the CPU and draws a Bernoulli variable for each
weight: 3 to 4 times the time without dropout. There, a few rows at a time are attended to instead, so that their
weights stay in the cache, with the cheap masks of `lightrec.nn.dropout`: 1.1 to 1.5 times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.nn.cache import Cache, KeysAndValues
from lightrec.nn.dropout import keep_mask
from lightrec.nn.sequence import valid_mask
from lightrec.ops.blocks import rows_that_fit


class MultiHeadAttention(nn.Module):
    """Self-attention of right-padded sequences.

    A causal layer needs no mask for padding: what stands on the right of a position is never seen by it, and what is
    computed on padding is never read.

    Args:
        hidden_size: D.
        num_heads: heads; must divide D.
        dropout: dropout of the attention weights.
        causal: each position attends to itself and what came before.
        bias: biases in the four projections.
        output: a final projection W_O (the 2018 SASRec has none).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int = 1,
        dropout: float = 0.0,
        causal: bool = True,
        bias: bool = True,
        output: bool = True,
    ):
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size ({hidden_size}) must be divisible by num_heads ({num_heads}).")
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal
        self.query = nn.Linear(hidden_size, hidden_size, bias)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size, bias)
        self.output = nn.Linear(hidden_size, hidden_size, bias) if output else nn.Identity()

    def forward(self, x: Tensor, lengths: Tensor, memory: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Attends.

        With the cache of a later pass x and memory are tokens [B, Q, D], one per branch. Each asks the items that its
        branch sees, the earlier tokens of its branch, and itself. Items never see a token, so a bidirectional layer
        has the prefix mask then: items see each other, and tokens are causal.

        Args:
            x: [B, L, D], what asks.
            lengths: [B].
            memory: [B, L, D], what is asked; None is x.
            cache: keeps keys and values for the tokens that follow, or holds those of the pass before; None keeps
                nothing.

        Returns:
            [B, L, D].
        """
        memory = x if memory is None else memory
        past = None if cache is None else cache.past(self)
        if past is not None:
            return self._go_on(x, memory, past, cache)
        mask = None if self.causal else valid_mask(lengths, x.shape[1])[:, None, None, :]
        return self._attend(x, memory, mask, self.causal, cache)

    def last(self, x: Tensor, lengths: Tensor, memory: Tensor, cache: Cache | None = None) -> Tensor:
        """Attends from the last real position only: x [B, D] asks memory [B, L, D]; returns [B, D]."""
        mask = valid_mask(lengths, memory.shape[1])[:, None, None, :]
        return self._attend(x[:, None], memory, mask, False, cache)[:, 0]

    def _attend(self, x: Tensor, memory: Tensor, mask: Tensor | None, is_causal: bool, cache: Cache | None) -> Tensor:
        """x [B, Q, D] asks memory [B, L, D]; returns [B, Q, D]."""
        key, value = self.key_value(memory).chunk(2, -1)
        dropout = self.dropout if self.training else 0.0
        query, key, value = self._heads(self.query(x)), self._heads(key), self._heads(value)
        if cache is not None:
            # one copy here, or the products of every token would make one each
            cache.keep(self, KeysAndValues(key.contiguous(), value.contiguous()))
        if dropout and x.device.type == "cpu" and not torch.compiler.is_compiling():
            wide = torch.float64 if value.dtype == torch.float64 else torch.float32
            with torch.autocast("cpu", enabled=False):
                heads = query.to(wide), key.to(wide), value.to(wide)
                y = _TiledDropoutAttention.apply(*heads, mask, dropout, is_causal).to(value.dtype)
        else:
            y = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=is_causal)
        return self.output(y.transpose(1, 2).reshape(x.shape))

    def _go_on(self, x: Tensor, memory: Tensor, past: KeysAndValues, cache: Cache) -> Tensor:
        """x [B, Q, D] asks the past of its branches and memory [B, Q, D] at its own place; returns [B, Q, D]."""
        query = self._heads(self.query(x))
        key, value = self.key_value(memory).chunk(2, -1)
        known = past.with_token(self._heads(key), self._heads(value))
        cache.keep(self, known)
        query = query * query.shape[-1] ** -0.5
        count = known.key.shape[2]
        scores = (query @ known.key.transpose(-1, -2)).masked_fill(~cache.visible(count), -torch.inf)
        # The items' keys are never copied: scores are joined, not sequences.
        scores = torch.cat([scores, *((query * k).sum(-1, keepdim=True) for k, _ in known.tokens)], -1)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        y = weights[..., :count] @ known.value
        for place, (_, v) in enumerate(known.tokens, count):
            y = y + weights[..., place, None] * v
        return self.output(y.transpose(1, 2).reshape(x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]."""
        B, L, D = x.shape
        return x.view(B, L, self.num_heads, D // self.num_heads).transpose(1, 2)


class _TiledDropoutAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) with dropped weights, times v: the same as torch's, other draws."""

    @staticmethod
    def forward(ctx, query, key, value, mask, dropout, is_causal):
        B, H, Q, d = query.shape
        L = key.shape[2]
        tile = rows_that_fit(4 * H * Q * L, query.device, "attention weights")
        hidden = None
        if is_causal:
            hidden = torch.ones(Q, L, dtype=torch.bool).triu_(1)
        out = value.new_empty(B, H, Q, d)
        weights, keeps = [], []
        for start in range(0, B, tile):
            rows = slice(start, start + tile)
            scores = torch.matmul(query[rows] * d**-0.5, key[rows].transpose(-1, -2))
            if hidden is not None:
                scores.masked_fill_(hidden, -torch.inf)
            if mask is not None:
                scores.masked_fill_(~mask[rows], -torch.inf)
            weight = torch.softmax(scores, -1)
            keep = keep_mask(weight.shape, dropout, weight.dtype)
            out[rows] = torch.matmul(weight * keep, value[rows])
            weights.append(weight)
            keeps.append(keep)
        ctx.save_for_backward(query, key, value, *weights, *keeps)
        ctx.tile = tile
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, *saved = ctx.saved_tensors
        weights, keeps = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        scale = query.shape[-1] ** -0.5
        for i, (weight, keep) in enumerate(zip(weights, keeps, strict=True)):
            rows = slice(i * ctx.tile, (i + 1) * ctx.tile)
            grads[2][rows] = torch.matmul((weight * keep).transpose(-1, -2), grad[rows])
            back = torch.matmul(grad[rows], value[rows].transpose(-1, -2)).mul_(keep)
            back = torch._softmax_backward_data(back, weight, -1, weight.dtype).mul_(scale)
            grads[0][rows] = torch.matmul(back, key[rows])
            grads[1][rows] = torch.matmul(back.transpose(-1, -2), query[rows])
        return *grads, None, None, None
