"""Everything about lengths and padding. Rows are padded on the right; `lengths` is the only mask."""

from __future__ import annotations

import torch
from torch import Tensor


def valid_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Returns [B, L] bool, True at real positions."""
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def last_state(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Returns [B, D], the state after the last real item of hidden [B, L, D]."""
    return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]


def positions_from_end(lengths: Tensor, max_length: int) -> Tensor:
    """Returns [B, L] with 0 at the most recent item, 1 before it, and so on; 0 on padding.

    Counting from the end is what makes a right-padded model equal to the published left-padded ones, whose last
    position is always the most recent item.
    """
    return (lengths[:, None] - 1 - torch.arange(max_length, device=lengths.device)).clamp_min(0)


def real_positions(lengths: Tensor, max_length: int) -> Tensor:
    """Returns [T] indices of the real positions in a flattened [B * L] tensor."""
    return valid_mask(lengths, max_length).flatten().nonzero().squeeze(1)
