"""Recurrent layers that note the state after the last real item while they read a whole sequence.

A step form alone would read a history one item at a time: right, and several times slower than the layers' own way over
whole sequences. Known layers (a GRU, a Mamba mixer) are taught to note their state; whether that gives what steps give
is tried once when the wrapper is built, and any other encoder is read by steps.

Shapes: B batch, L length, D hidden_size, K conv_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightrec.nn.mamba import MambaMixer
from lightrec.nn.sequence import last_state, valid_mask

_NO_STEP = -1e4  # softplus of it is 0 in any dtype: time stands still, and so does the state


class NotingGRU(nn.GRU):
    """A GRU of one layer; its outputs are its states."""

    lengths: Tensor | None = None
    notes: list[Tensor] | None = None

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, state = super().forward(x, state)
        if self.notes is not None:
            self.notes.append(last_state(y, self.lengths))
        return y, state


class NotingMixer(MambaMixer):
    """A Mamba mixer; on padding its scan stands still, so that the final state is that of the last real item."""

    lengths: Tensor | None = None
    notes: list[Tensor] | None = None

    def forward(self, x: Tensor, resets: Tensor | None = None) -> Tensor:
        if self.notes is not None:
            # What the convolution will see next: its last K - 1 inputs, zeros before the first.
            place = self.lengths[:, None] - torch.arange(self.conv_size - 1, 0, -1, device=x.device)
            recent = x.gather(1, place.clamp_min(0)[..., None].expand(-1, -1, x.shape[2]))
            u = self.in_proj(recent)[..., : self.inner_size]
            self.notes.append(torch.where(place[..., None] >= 0, u, 0.0))
        return super().forward(x, resets)

    def scan(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        delta_bias: Tensor,
        initial_state: Tensor | None,
        return_final_state: bool,
        resets: Tensor | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.notes is None:
            return super().scan(x, delta, A, B, C, D, z, delta_bias, initial_state, return_final_state, resets)
        delta = torch.where(valid_mask(self.lengths, x.shape[1])[..., None], delta, _NO_STEP)
        y, state = super().scan(x, delta, A, B, C, D, z, delta_bias, initial_state, True, resets)
        self.notes.append(state)
        return (y, state) if return_final_state else y


def noting_layers(module: nn.Module) -> list[NotingGRU | NotingMixer]:
    """Teaches every known recurrent layer below `module` to note its state; returns them in order."""
    layers = []
    for layer in module.modules():
        if type(layer) is MambaMixer:
            layer.__class__ = NotingMixer  # same parameters and names; only methods are added
        elif type(layer) is nn.GRU and layer.num_layers == 1 and layer.batch_first and not layer.bidirectional:
            layer.__class__ = NotingGRU
        if type(layer) in (NotingGRU, NotingMixer):
            layers.append(layer)
    return layers


@contextmanager
def noting(layers: list[NotingGRU | NotingMixer], lengths: Tensor) -> Iterator[list[list[Tensor]]]:
    """Collects the states after the last real items, one list of tensors [B, ...] a layer, while the encoder runs."""
    heard: list[list[Tensor]] = [[] for _ in layers]
    for layer, notes in zip(layers, heard, strict=True):
        layer.notes, layer.lengths = notes, lengths
    try:
        yield heard
    finally:
        for layer in layers:
            layer.notes = layer.lengths = None
