"""The contrast of SRA-CL, and the weights of similar histories."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.nn.dropout import Dropout

Fidelity = Literal["released", "paper"]


class Mixture(nn.Module):
    """Weights of similar histories: softmax of LeakyReLU(a . [W h_u, W h_u']) over those that are there.

    Args:
        hidden_size: D, rows of W.
        text_size: T, columns of W.
        dropout: of the weights, after the softmax, as in the authors' code.
        slope: of the LeakyReLU.
    """

    def __init__(self, hidden_size: int, text_size: int, dropout: float = 0.5, slope: float = 0.2):
        super().__init__()
        self.adapter = nn.Linear(text_size, hidden_size, bias=False)
        self.attention = nn.Parameter(torch.empty(2, hidden_size))
        nn.init.xavier_normal_(self.adapter.weight)
        nn.init.xavier_normal_(self.attention)
        self.dropout, self.slope = Dropout(dropout), slope

    def forward(self, anchors: Tensor, near: Tensor, present: Tensor) -> Tensor:
        """anchors [B, T], near [B, k, T], present [B, k] bool -> [B, k]."""
        of_anchor, of_near = (self.attention @ self.adapter.weight).unbind()  # a . W h is (a W) . h: no B k products
        scores = F.leaky_relu((anchors @ of_anchor)[:, None] + near @ of_near, self.slope)
        scores = scores.masked_fill(~present, torch.finfo(scores.dtype).min)
        return self.dropout(scores.softmax(1) * present)


def info_nce(anchors: Tensor, positives: Tensor, temperature: float = 1.0, fidelity: Fidelity = "released") -> Tensor:
    """Finds the positive of each row among those of the batch, by inner product.

    Args:
        anchors: [B, D].
        positives: [B, D].
        temperature: divides the inner products.
        fidelity: `released`: each of the 2 B vectors against all others, anchors too; `paper`: each anchor against the
            positives of the other rows.

    Returns:
        The mean cross-entropy; 0 for a batch of one, or none.
    """
    count, device = len(anchors), anchors.device
    if not count:
        return (anchors.sum() + positives.sum()) * 0.0
    anchors, positives = anchors.float(), positives.float()
    if fidelity == "paper":
        return F.cross_entropy(anchors @ positives.T / temperature, torch.arange(count, device=device))
    both = torch.cat([anchors, positives])
    scores = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(2 * count, device=device).roll(count))
