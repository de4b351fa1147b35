"""The position-wise network of a transformer block."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightrec.nn.dropout import Dropout

Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear.

    Args:
        hidden_size: D.
        inner_size: width between the two maps.
        dropout: after the activation.
        activation: name of the non-linearity.
    """

    def __init__(self, hidden_size: int, inner_size: int, dropout: float = 0.0, activation: Activation = "relu"):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}.")
        self.up = nn.Linear(hidden_size, inner_size)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = Dropout(dropout)
        self.down = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))
