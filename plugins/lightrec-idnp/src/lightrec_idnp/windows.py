"""Short-term interest: the last few items at every position, through dilated convolutions and one attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def short_windows(x: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cuts the window that ends at each position, padded on the left.

    Args:
        x: [B, L, D] vectors.
        lengths: [B].
        size: S, items of a window.

    Returns:
        windows [B, L, S, D], zero where there is no item; inside [B, L, S] bool.
    """
    B, L, _ = x.shape
    column = torch.arange(L, device=x.device)
    places = column[:, None] + torch.arange(1 - size, 1, device=x.device)  # [L, S]
    inside = (places >= 0) & (column[:, None] < lengths[:, None, None])
    windows = x[:, places.clamp_min(0)] * inside[..., None]
    return windows, inside


class ShortTermEncoder(nn.Module):
    """F_j = relu(conv_j(F_{j-1})) + F_{j-1}, dilation 2^j; then one softmax over all layers and places of a window.

    Args:
        hidden_size: D.
        num_layers: J, convolutions of width 2.
    """

    def __init__(self, hidden_size: int, num_layers: int = 3):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Linear(2 * hidden_size, hidden_size) for _ in range(num_layers))
        self.map = nn.Linear(hidden_size, hidden_size)
        self.vector = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, windows: Tensor, inside: Tensor) -> Tensor:
        """windows [..., S, D] and inside [..., S] -> [..., D]; a window without items gives zero."""
        features, weights = self._attend(windows, inside)
        return (weights[..., None] * features).sum((-3, -2))

    def weights(self, windows: Tensor, inside: Tensor) -> Tensor:
        """Returns the attention [..., J, S]; zero on padding."""
        return self._attend(windows, inside)[1]

    def _attend(self, windows: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        x, layers = windows, []
        for j, convolution in enumerate(self.convolutions):
            step = min(2**j, x.shape[-2])
            before = torch.cat([torch.zeros_like(x[..., :step, :]), x[..., : x.shape[-2] - step, :]], -2)
            x = (torch.relu(convolution(torch.cat([before, x], -1))) + x) * inside[..., None]
            layers.append(x)
        features = torch.stack(layers, -3)
        scores = self.vector(torch.tanh(self.map(features))).squeeze(-1)
        scores = scores.masked_fill(~inside[..., None, :], torch.finfo(scores.dtype).min)
        weights = scores.flatten(-2).softmax(-1).view_as(scores)
        return features, weights * inside[..., None, :]
