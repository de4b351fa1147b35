"""Multi-head self-attention over right-padded sequences, through torch's fused kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.nn.sequence import valid_mask


class MultiHeadAttention(nn.Module):
    """Self-attention of right-padded sequences.

    A causal layer needs no mask for padding: what stands on the right of a position is never seen by it, and what is
    computed on padding is never read.

    Args:
        hidden_size: D.
        num_heads: heads; must divide D.
        dropout: dropout of the attention weights. Anything above 0 leaves the fused CPU kernel (5 times the time).
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

    def forward(self, x: Tensor, lengths: Tensor, memory: Tensor | None = None) -> Tensor:
        """Attends.

        Args:
            x: [B, L, D], what asks.
            lengths: [B].
            memory: [B, L, D], what is asked; None is x.

        Returns:
            [B, L, D].
        """
        mask = None if self.causal else valid_mask(lengths, x.shape[1])[:, None, None, :]
        return self._attend(x, x if memory is None else memory, mask, self.causal)

    def last(self, x: Tensor, lengths: Tensor, memory: Tensor) -> Tensor:
        """Attends from the last real position only: x [B, D] asks memory [B, L, D]; returns [B, D]."""
        mask = valid_mask(lengths, memory.shape[1])[:, None, None, :]
        return self._attend(x[:, None], memory, mask, is_causal=False)[:, 0]

    def _attend(self, x: Tensor, memory: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        """x [B, Q, D] asks memory [B, L, D]; returns [B, Q, D]."""
        key, value = self.key_value(memory).chunk(2, -1)
        dropout = self.dropout if self.training else 0.0
        query, key, value = self._heads(self.query(x)), self._heads(key), self._heads(value)
        y = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=is_causal)
        return self.output(y.transpose(1, 2).reshape(x.shape))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]."""
        B, L, D = x.shape
        return x.view(B, L, self.num_heads, D // self.num_heads).transpose(1, 2)
