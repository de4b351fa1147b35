"""MambaStack: layers that go on event by event, as an encoder; what enters them is a subclass's business."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightrec.interfaces import History, SequenceEncoder
from lightrec.nn.cache import Cache
from lightrec.nn.mamba import MambaLayer

LayerState = tuple[Tensor, Tensor]


class MambaStack(SequenceEncoder):
    """Mamba layers one after another, with a state of fixed size.

    Args:
        hidden_size: D.
        layers: the layers, in order.
    """

    causal = True

    def __init__(self, hidden_size: int, layers: Sequence[MambaLayer]):
        super().__init__()
        self.hidden_size = hidden_size
        self.layers = nn.ModuleList(layers)

    def mix(self, history: History, cache: Cache | None = None) -> Tensor:
        x = history.x
        for layer in self.layers:
            x = layer(x, cache=cache)
        return x

    def last(self, history: History, cache: Cache | None = None) -> Tensor:
        return self._mix_last(self.enter(history), cache)

    def read(self, history: History) -> tuple[Tensor, list[LayerState]]:
        cache = Cache(history.lengths)
        return self._mix_last(history, cache), [cache.state(layer) for layer in self.layers]

    def _mix_last(self, history: History, cache: Cache | None) -> Tensor:
        x = history.x
        for layer in self.layers[:-1]:
            x = layer(x, cache=cache)
        return self.layers[-1].last(x, history.lengths, cache)

    def init_state(self, batch_size: int, device: torch.device | None = None) -> list[LayerState]:
        """Returns the state before the first event: of each layer, that of its convolution and of its scan."""
        return [layer.init_state(batch_size, device) for layer in self.layers]

    def step(self, x_t: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        """Advances by one entered vector [B, ...]; returns hidden [B, D] and the new state."""
        following = []
        for layer, before in zip(self.layers, state, strict=True):
            x_t, after = layer.step(x_t, before)
            following.append(after)
        return x_t, following
