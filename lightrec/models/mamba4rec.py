"""Mamba4Rec: a selective state-space model over the history.

Chengkai Liu, Jianghao Lin, Jianling Wang, Hanzhou Liu and James Caverlee, RelKD at KDD 2024,
https://arxiv.org/abs/2403.03900; code: chengkai-liu/Mamba4Rec.

Differences from the released code, and why:

* That code sets every linear map of the Mamba block to N(0, .02^2) after construction, and with it the bias of delta to
  zero, so that the block begins with a memory of one or two events. The published numbers were made so: it is
  `fidelity="released"`. The default keeps the initialisation of Mamba's authors.
* Training asks at every position of a window instead of once for each prefix (`train_windows: prefixes` with
  `NextItem(positions="last")`): the network is causal, so the targets are the same and one pass serves them all.
* Padding is not a class of the softmax. There its vector is random, is never a target and is ruled out when ranking.
* The scan is `lightrec.ops.selective_scan`, in plain PyTorch or by any kernel that is installed.

As there, one layer has no residual around the mixer and several have: two architectures, chosen by a number.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from lightrec.configurable import AtLeast
from lightrec.interfaces import History, Objective
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.nn.dropout import Dropout
from lightrec.nn.mamba import MambaLayer
from lightrec.nn.mamba_stack import MambaStack
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer


class Mamba4RecEncoder(MambaStack):
    """Mamba layers without positions, which go on event by event with a state of fixed size.

    Args:
        hidden_size: D.
        num_layers: layers; a single one has no residual around its mixer.
        state_size: numbers of state per channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        fidelity: `ours` begins with a long memory; `released` with the short one of the published code and numbers.
    """

    limits = {"num_layers": AtLeast(1)}

    def __init__(
        self,
        hidden_size: int = 64,
        num_layers: int = 1,
        state_size: int = 32,
        conv_size: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        fidelity: Literal["ours", "released"] = "ours",
    ):
        init, residual = "normal" if fidelity == "released" else "mamba", num_layers > 1
        layers = [
            MambaLayer(hidden_size, state_size, conv_size, expand, dropout, residual, init=init)
            for _ in range(num_layers)
        ]
        super().__init__(hidden_size, layers)
        self.norm = nn.LayerNorm(hidden_size, 1e-12)
        self.dropout = Dropout(dropout)

    def enter(self, history: History) -> History:
        return history._replace(x=self.norm(self.dropout(history.x)))


class Mamba4Rec(EncoderRecommender):
    """A selective state-space model over the history, trained with the full softmax.

    Further options are those of `Mamba4RecEncoder`.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
        objective: what is trained; None is the full softmax at every position.
        optimizer: how it is trained.
    """

    network = Mamba4RecEncoder

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        head_dtype: HeadDtype | None = None,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, std=0.02, head_dtype=head_dtype),
            encoder=Mamba4RecEncoder(hidden_size=hidden_size, **network),
            objective=objective or NextItem(),
            optimizer=optimizer,
        )
