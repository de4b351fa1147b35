"""Layers of attention: one class per residual graph, made of the modules that it is given.

Each graph is written once and serves two calls. `forward` computes every position. `last` computes the last real
position only, which is all that a ranking reads of the last layer. In a graph, `x` [B, L, D] is what the layer reads,
`here` picks the positions that are computed, and `attend(query, memory)` lets those ask all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightrec.interfaces import History, SequenceEncoder
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.cache import Cache
from lightrec.nn.dropout import Dropout
from lightrec.nn.positions import LearnedPositions
from lightrec.nn.sequence import last_state

Pick = Callable[[Tensor], Tensor]
Attend = Callable[[Tensor, Tensor], Tensor]


class Block(nn.Module, ABC):
    """Attention and then a feed-forward network, each with a norm and a residual.

    Args:
        hidden_size: D.
        attention: between positions.
        feed_forward: position by position, [..., D] -> [..., D].
        dropout: of what the two return.
        eps: of both norms.
    """

    gated = False
    """Whether the graph has a learned gate on each of its two residuals."""

    def __init__(
        self,
        hidden_size: int,
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        dropout: float,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps)
        self.attention = attention
        self.attention_gate = nn.Linear(hidden_size, hidden_size) if self.gated else None
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps)
        self.feed_forward = feed_forward
        self.feed_forward_gate = nn.Linear(hidden_size, hidden_size) if self.gated else None
        self.dropout = Dropout(dropout)

    @abstractmethod
    def graph(self, x: Tensor, here: Pick, attend: Attend) -> Tensor:
        """Returns the output at the picked positions; see the module's docstring."""

    def forward(self, x: Tensor, lengths: Tensor, cache: Cache | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; with the cache of a later pass one token per branch."""
        return self.graph(x, lambda t: t, lambda query, memory: self.attention(query, lengths, memory, cache))

    def last(self, x: Tensor, lengths: Tensor, cache: Cache | None = None) -> Tensor:
        """Computes the last real position only: [B, L, D] -> [B, D]."""

        def attend(query: Tensor, memory: Tensor) -> Tensor:
            return self.attention.last(query, lengths, memory, cache)

        return self.graph(x, lambda t: last_state(t, lengths), attend)


class QueryNorm(Block):
    """Only the query is normalised, and the residual carries the normalised query; dropout after the network alone."""

    def graph(self, x: Tensor, here: Pick, attend: Attend) -> Tensor:
        query = self.attention_norm(here(x))
        y = self.feed_forward_norm(query + attend(query, x))
        return y + self.dropout(self.feed_forward(y))


class PreNorm(Block):
    """x + f(LN(x)), for attention and then for the feed-forward network."""

    def graph(self, x: Tensor, here: Pick, attend: Attend) -> Tensor:
        normed = self.attention_norm(x)
        y = here(x) + self.dropout(attend(here(normed), normed))
        return y + self.dropout(self.feed_forward(self.feed_forward_norm(y)))


class PostNorm(Block):
    """LN(x + f(x)), for attention and then for the feed-forward network."""

    def graph(self, x: Tensor, here: Pick, attend: Attend) -> Tensor:
        query = here(x)
        y = self.attention_norm(query + self.dropout(attend(query, x)))
        return self.feed_forward_norm(y + self.dropout(self.feed_forward(y)))


class GatedPreNorm(Block):
    """x + sigmoid(gate(x)) * f(LN(x)), for attention and then for the feed-forward network."""

    gated = True

    def graph(self, x: Tensor, here: Pick, attend: Attend) -> Tensor:
        normed, y = self.attention_norm(x), here(x)
        y = y + torch.sigmoid(self.attention_gate(y)) * self.dropout(attend(here(normed), normed))
        fed = self.dropout(self.feed_forward(self.feed_forward_norm(y)))
        return y + torch.sigmoid(self.feed_forward_gate(y)) * fed


class AttentionEncoder(SequenceEncoder):
    """Blocks over item vectors with learned positions.

    Args:
        positions: vectors of positions.
        blocks: the layers, in order.
        dropout: of the input.
        input_norm: of the input; None has none.
        output_norm: after the last block; None has none.
    """

    causal = True

    def __init__(
        self,
        positions: LearnedPositions,
        blocks: Sequence[Block],
        dropout: float,
        input_norm: nn.Module | None = None,
        output_norm: nn.Module | None = None,
    ):
        super().__init__()
        self.hidden_size, self.max_length = positions.weight.shape[1], positions.max_length
        self.positions = positions
        self.blocks = nn.ModuleList(blocks)
        self.dropout = Dropout(dropout)
        self.input_norm, self.norm = input_norm or nn.Identity(), output_norm or nn.Identity()

    def enter(self, history: History) -> History:
        x = history.x + self.positions(history.lengths, history.x.shape[1])
        return history._replace(x=self.dropout(self.input_norm(x)))

    def mix(self, history: History, cache: Cache | None = None) -> Tensor:
        x = history.x
        for block in self.blocks:
            x = block(x, history.lengths, cache)
        return self.norm(x)

    def last(self, history: History, cache: Cache | None = None) -> Tensor:
        x, lengths = self.enter(history).x, history.lengths
        for block in self.blocks[:-1]:
            x = block(x, lengths, cache)
        return self.norm(self.blocks[-1].last(x, lengths, cache) if len(self.blocks) else last_state(x, lengths))
