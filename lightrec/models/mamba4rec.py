"""Mamba4Rec: a selective state-space model over the history.

Chengkai Liu, Jianghao Lin, Jianling Wang, Hanzhou Liu and James Caverlee, RelKD at KDD 2024,
https://arxiv.org/abs/2403.03900; code: chengkai-liu/Mamba4Rec.

Differences from the released code, and why:

* That code sets every linear map of the Mamba block to N(0, .02^2) after construction, and with it the bias of delta to
  zero, so that the block begins with a memory of one or two events. The published numbers were made so: it is
  `init="released"`. The default, `init="mamba"`, keeps the initialisation of Mamba's authors.
* Training asks at every position of a window instead of once for each prefix (`train_windows: prefixes` with
  `NextItem(positions="last")`): the network is causal, so the targets are the same and one pass serves them all.
* Padding is no class of the softmax. There its vector is random, is never a target and is ruled out when ranking.
* The scan is `lightrec.ops.selective_scan`, in plain PyTorch or by any kernel that is installed.

As there, one layer has no residual around the mixer and several have: two architectures, chosen by a number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightrec.interfaces import Objective, SequenceEncoder
from lightrec.nn.dropout import Dropout
from lightrec.nn.item_embedding import ItemEmbedding
from lightrec.nn.mamba import MambaInit, MambaLayer
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import Decay, EncoderRecommender


class Mamba4RecEncoder(SequenceEncoder):
    """Mamba layers without positions, which go on event by event with a state of fixed size.

    Args:
        hidden_size: D.
        num_layers: layers; a single one has no residual around its mixer.
        state_size: numbers of state a channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        init: `mamba`, long memory at first; `released`, the short one of the published code.
    """

    causal = True

    def __init__(
        self,
        hidden_size: int = 64,
        num_layers: int = 1,
        state_size: int = 32,
        conv_size: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        init: MambaInit = "mamba",
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers ({num_layers}) must be at least 1.")
        self.hidden_size = hidden_size
        self.norm = nn.LayerNorm(hidden_size, 1e-12)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            MambaLayer(hidden_size, state_size, conv_size, expand, dropout, residual=num_layers > 1, init=init)
            for _ in range(num_layers)
        )

    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.norm(self.dropout(x))

    def mix(self, x: Tensor, lengths: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.prepare(x, lengths)
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].last(x, lengths)

    def init_state(self, batch_size: int, device: torch.device | None = None) -> list[tuple[Tensor, Tensor]]:
        """Returns the state before the first event: of each layer, that of its convolution and of its scan."""
        return [layer.init_state(batch_size, device) for layer in self.layers]

    def step(self, x_t: Tensor, state: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Advances by one prepared vector [B, D]; returns hidden [B, D] and the new state."""
        following = []
        for layer, before in zip(self.layers, state, strict=True):
            x_t, after = layer.step(x_t, before)
            following.append(after)
        return x_t, following


class Mamba4Rec(EncoderRecommender):
    """A selective state-space model over the history, trained with the full softmax.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        num_layers: layers; a single one has no residual around its mixer.
        state_size: numbers of state a channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        init: `mamba`, long memory at first; `released`, the short one of the published code and numbers.
        objective: what is trained; None is the full softmax at every position.
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay on matrices.
        warmup_steps: steps of linear warm-up.
        decay: how the learning rate falls until the last step.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        num_layers: int = 1,
        state_size: int = 32,
        conv_size: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        init: MambaInit = "mamba",
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, std=0.02),
            encoder=Mamba4RecEncoder(hidden_size, num_layers, state_size, conv_size, expand, dropout, init),
            objective=objective or NextItem(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )
