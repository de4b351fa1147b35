"""Attention that remembers keys and values, so that a reasoning token costs one position and not a sequence.

While `recording`, the keys and values of the items are kept. A layer that is given a memory takes what comes as
reasoning tokens: each attends to the recorded items that its position may see, to the
earlier reasoning tokens of its own position, and to itself. Items never see reasoning tokens, so this is also the
prefix mask of a bidirectional network: items see each other, reasoning tokens are causal.

Shapes: B batch, L items, Q positions that reason (L, or 1 for the last), D hidden_size, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.nn.attention import MultiHeadAttention


@dataclass(frozen=True)
class Remembered:
    """What one layer knows of the items and of the reasoning tokens so far."""

    key: Tensor
    """[B, H, L, D / H], of the items."""
    value: Tensor
    """[B, H, L, D / H]."""
    visible: Tensor
    """[B or 1, 1, Q, L] bool, which items a position may see."""
    tokens: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values [B, H, Q, D / H] of each reasoning step."""


class AmbiguousPass(RuntimeError):
    """An attention layer did not run exactly once in a pass of its encoder."""


class ListeningLinear(nn.Linear):
    """A linear map that notes what it gave, while it is asked to."""

    notes: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.notes is not None:
            self.notes.append(y)
        return y


class RememberingAttention(MultiHeadAttention):
    """MultiHeadAttention with the same parameters and the same result, which can also go on from a memory."""

    remembered: Remembered | None = None
    """Set while going on; afterwards it holds the new token too."""

    def forward(self, x: Tensor, lengths: Tensor, memory: Tensor | None = None) -> Tensor:
        if self.remembered is None:
            return super().forward(x, lengths, memory)
        return self._go_on(x, x if memory is None else memory)

    def _go_on(self, x: Tensor, memory: Tensor) -> Tensor:
        """x [B, Q, D] asks items, earlier tokens of its position, and `memory` [B, Q, D] at its own position."""
        past = self.remembered
        query = self.split(self.query(x))
        key, value = self.key_value(memory).chunk(2, -1)
        tokens = (*past.tokens, (self.split(key), self.split(value)))
        self.remembered = replace(past, tokens=tokens)
        query = query * query.shape[-1] ** -0.5
        scores = (query @ past.key.transpose(-1, -2)).masked_fill(~past.visible, -torch.inf)
        # The items' keys are never copied: scores are joined, not sequences.
        scores = torch.cat([scores, *((query * k).sum(-1, keepdim=True) for k, _ in tokens)], -1)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        count = past.key.shape[2]
        y = weights[..., :count] @ past.value
        for step, (_, v) in enumerate(tokens):
            y = y + weights[..., count + step, None] * v
        return self.output(y.transpose(1, 2).reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        """Separates heads: [B, L, D] -> [B, H, L, D / H]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def remembering_layers(module: nn.Module) -> list[RememberingAttention]:
    """Teaches every attention layer below `module` to remember; returns them in order."""
    layers = [layer for layer in module.modules() if type(layer) in (MultiHeadAttention, RememberingAttention)]
    for layer in layers:
        # Same parameters, names and hooks; only methods are added. (A hook would do, but torch.export takes none.)
        layer.__class__ = RememberingAttention
        layer.key_value.__class__ = ListeningLinear
    return layers


@contextmanager
def recording(layers: list[RememberingAttention]) -> Iterator[list[list[Tensor]]]:
    """Collects what `key_value` of each layer gives, one list a layer, while the encoder runs."""
    heard: list[list[Tensor]] = [[] for _ in layers]
    for layer, notes in zip(layers, heard, strict=True):
        layer.key_value.notes = notes
    try:
        yield heard
    finally:
        for layer in layers:
            layer.key_value.notes = None


def remember(layer: RememberingAttention, heard: list[Tensor], visible: Tensor) -> Remembered:
    """Makes a memory of the one time that a layer ran.

    Raises:
        AmbiguousPass: it ran never or more than once, so that one memory cannot stand for it.
    """
    if len(heard) != 1:
        raise AmbiguousPass(f"an attention layer ran {len(heard)} times in one pass: its keys cannot be told apart.")
    key, value = heard[0].chunk(2, -1)
    # one copy here, or the products of every step would make one each
    return Remembered(layer.split(key).contiguous(), layer.split(value).contiguous(), visible)
