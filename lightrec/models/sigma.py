"""SIGMA: a Mamba over the history and one over its partly reversed copy, weighed by gates, beside a GRU.

Ziwei Liu et al., "SIGMA: Selective Gated Mamba for Sequential Recommendation", AAAI 2025,
https://arxiv.org/abs/2408.11451; code: Applied-Machine-Learning-Lab/SIMGA and ziwliu8/SIGMA.

Differences from the released code, and why (`fidelity="released"` brings the first four back):

* The first n - 5 items of a history of n are reversed, and the last 5 stay in order. There, positions 0 to 44 of the
  padded row are reversed, whatever its length: of a history of up to 22 items in a row of 50 the flipped branch then
  sees padding only at the position that is read, and of a row of 200 only the oldest 45 positions are reversed.
* The gate of the flipped branch reads that branch. There, its sigmoid part reads the finished gate of the other one.
* The convolution before the GRU is causal. There, it sees one position ahead, which behind the last item is padding.
* The linear maps keep their initialisation; see `lightrec.models.mamba4rec`.
* Padding is not a class of the softmax; see there too.
* A softmax over the three weights of the mix, computed there and then not used, is left out: the raw weights mix, as
  there. So is a second convolution, which stops one of the two released versions with an error.

Reversing lets a position see items that came after it. A loss at all positions would leak the targets, so training asks
once a row, at its end: `train_windows: prefixes`, with `prefixes_per_user` where a log is too long for all of them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.configurable import AtLeast
from lightrec.errors import InputError
from lightrec.interfaces import History, Objective, SequenceEncoder
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.nn.dropout import Dropout
from lightrec.nn.mamba import MambaInit, MambaLayer, MambaMixer, normal_init
from lightrec.nn.positions import check_width
from lightrec.nn.sequence import last_state, valid_mask
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer

Flip = Literal["valid", "padded"]
_RELEASED_FLIP = 45  # positions from the left, written into the released code
_KERNEL = 3


def flip_order(lengths: Tensor, max_length: int, num_recent: int) -> Tensor:
    """Returns [B, L], where each position of the partly reversed rows comes from: its own inverse.

    Args:
        lengths: [B] real items of each row.
        max_length: L.
        num_recent: the most recent items, which stay where they are, as padding does.
    """
    place = torch.arange(max_length, device=lengths.device)
    flipped = (lengths[:, None] - num_recent).clamp_min(0)
    return torch.where(place < flipped, flipped - 1 - place, place)


class SIGMALayer(nn.Module):
    """Two directions of one Mamba, their gates and a GRU, and the layer of Mamba4Rec around their mix.

    Args:
        hidden_size: D.
        state_size: numbers of state per channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the gates, of the mix and, twice, of the feed-forward network.
        residual: add the input to the mix.
        gate_fix: the gate of the flipped branch reads that branch only.
        causal_conv: the convolution before the GRU sees nothing ahead.
        init: of the linear maps, see MambaMixer.
    """

    def __init__(
        self,
        hidden_size: int,
        state_size: int,
        conv_size: int,
        expand: int,
        dropout: float,
        residual: bool,
        gate_fix: bool,
        causal_conv: bool,
        init: MambaInit,
    ):
        super().__init__()
        self.gate_fix = gate_fix
        self.around = MambaLayer(
            hidden_size,
            dropout=dropout,
            residual=residual,
            mixer=MambaMixer(hidden_size, state_size, conv_size, expand, init=init),
            init=init,
        )
        self.gate_input = nn.Linear(hidden_size, hidden_size)
        self.flipped_gate_input = nn.Linear(hidden_size, hidden_size)
        self.gate_silu = nn.Linear(hidden_size, hidden_size)
        self.gate_sigmoid = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.conv_padding = (_KERNEL - 1, 0) if causal_conv else (_KERNEL // 2, _KERNEL // 2)
        self.conv = nn.Conv1d(hidden_size, hidden_size, _KERNEL)
        self.gru = nn.GRU(hidden_size, hidden_size, bias=False, batch_first=True)
        self.weights = nn.Parameter(torch.tensor([0.1, 0.1, 0.8]))  # GRU, flipped, as it is
        self.output = nn.Linear(hidden_size, hidden_size)
        if init == "normal":
            normal_init(self)

    def forward(self, x: Tensor, order: Tensor, real: Tensor | None) -> Tensor:
        """Runs the layer at all positions.

        Args:
            x: [B, L, D].
            order: [B, L], where the flipped copy takes its positions from.
            real: [B, L] bool, what a convolution that sees ahead may read; None is everything.

        Returns:
            [B, L, D].
        """
        return self._join(x, *self._branches(x, order, real))

    def last(self, x: Tensor, order: Tensor, real: Tensor | None, lengths: Tensor) -> Tensor:
        """Computes the last real position only behind the scans and the GRU: -> [B, D]."""
        return self._join(last_state(x, lengths), *(last_state(t, lengths) for t in self._branches(x, order, real)))

    def _branches(self, x: Tensor, order: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        flipped = x.gather(1, order[..., None].expand_as(x))
        read = x if real is None else torch.where(real[..., None], x, 0.0)
        local = self.conv(F.pad(read.transpose(1, 2), self.conv_padding)).transpose(1, 2)
        return flipped, self.around.mixer(x), self.around.mixer(flipped), self.gru(local)[0]

    def _join(self, x: Tensor, flipped: Tensor, mixed: Tensor, mixed_flipped: Tensor, recurrent: Tensor) -> Tensor:
        """All that happens position by position: [..., D] each."""
        h = x + self.gate_input(x)
        h_flipped = flipped + self.flipped_gate_input(flipped)
        gate = self.dropout(self.gate_silu(F.silu(h)) + self.gate_sigmoid(h.sigmoid()))
        read = h_flipped if self.gate_fix else gate
        gate_flipped = self.dropout(self.gate_silu(F.silu(h_flipped)) + self.gate_sigmoid(read.sigmoid()))
        parts = recurrent, mixed_flipped * gate_flipped + mixed_flipped, mixed * gate + mixed
        mix = sum(weight * part for weight, part in zip(self.weights.unbind(), parts, strict=True))
        return self.around.combine(x, self.output(mix))


class SIGMAEncoder(SequenceEncoder):
    """Layers of SIGMA without positions. Not causal, because the flipped branch sees a history from its end.

    Args:
        hidden_size: D.
        num_layers: layers; a single one has no residual around its mix.
        num_recent: items at the end of a history that are not reversed, r in the paper.
        state_size: numbers of state per channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the gates, of the mix and, twice, of the feed-forward network.
        flip: `valid` reverses all but the last `num_recent` real items; `padded` the first 45 positions of rows that
            are padded to max_length.
        gate_fix: the gate of the flipped branch reads that branch only.
        causal_conv: the convolution before the GRU sees nothing ahead.
        init: `mamba`, long memory at first; `normal`, the short one of the published code.
        fidelity: `released` is the published code, its defects included: flip `padded`, no gate_fix, no causal_conv,
            init `normal`, and a vector of its own for padding.
        max_length: width of padded rows; read only where flip is `padded`.
    """

    causal = False
    limits = {"num_layers": AtLeast(1), "num_recent": AtLeast(0)}

    def __init__(
        self,
        hidden_size: int = 64,
        num_layers: int = 1,
        num_recent: int = 5,
        state_size: int = 32,
        conv_size: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        flip: Flip = "valid",
        gate_fix: bool = True,
        causal_conv: bool = True,
        init: MambaInit = "mamba",
        fidelity: Literal["ours", "released"] = "ours",
        max_length: int | None = None,
    ):
        super().__init__()
        if fidelity == "released":
            flip, gate_fix, causal_conv, init = "padded", False, False, "normal"
        if flip == "padded" and max_length is None:
            raise ValueError("flip='padded' reverses places in rows of one width: give max_length.")
        self.hidden_size, self.num_recent, self.flip, self.max_length = hidden_size, num_recent, flip, max_length
        self.causal_conv = causal_conv
        self.norm = nn.LayerNorm(hidden_size, 1e-12)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            SIGMALayer(hidden_size, state_size, conv_size, expand, dropout, num_layers > 1, gate_fix, causal_conv, init)
            for _ in range(num_layers)
        )
        self.padding = nn.Parameter(0.02 * torch.randn(hidden_size)) if flip == "padded" else None

    def enter(self, history: History) -> History:
        return history._replace(x=self.norm(self.dropout(history.x)))

    def mix(self, history: History) -> Tensor:
        length = history.x.shape[1]
        x, *places = self._rows(history)
        for layer in self.layers:
            x = layer(x, *places)
        return x[:, :length]

    def last(self, history: History) -> Tensor:
        x, *places = self._rows(self.enter(history))
        for layer in self.layers[:-1]:
            x = layer(x, *places)
        return self.layers[-1].last(x, *places, history.lengths)

    def _rows(self, history: History) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the rows as the layers see them, the order of their flipped copies, and what is real if it matters.

        In the valid flip only a convolution that sees ahead reads padding, and that one is given zeros.
        """
        x, lengths = history.x, history.lengths
        batch, length = x.shape[:2]
        if self.flip == "valid":
            real = None if self.causal_conv else valid_mask(lengths, length)
            return x, flip_order(lengths, length, self.num_recent), real
        check_width(length, self.max_length)
        padding = self.norm(self.dropout(self.padding.expand(batch, self.max_length, -1))).to(x.dtype)
        real = valid_mask(lengths, self.max_length)[..., None]
        x = torch.where(real, F.pad(x, (0, 0, 0, self.max_length - length)), padding)
        flipped = torch.full_like(lengths, min(_RELEASED_FLIP, self.max_length))
        return x, flip_order(flipped, self.max_length, 0), None


class SIGMA(EncoderRecommender):
    """A gated Mamba in two directions beside a GRU, trained with the full softmax on prefixes.

    Further options are those of `SIGMAEncoder`.

    Args:
        num_items: size of the catalog.
        max_length: longest history that is read; the width of padded rows under fidelity `released`, else not used.
        hidden_size: D.
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
        objective: what is trained; None is the full softmax at the end of each row, for `train_windows: prefixes`.
        optimizer: how it is trained.

    Raises:
        InputError: an objective that asks at all positions, which would leak the targets.
    """

    network = SIGMAEncoder

    def __init__(
        self,
        num_items: int,
        max_length: int = 50,
        hidden_size: int = 64,
        head_dtype: HeadDtype | None = None,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        if getattr(objective, "positions", "last") == "all":
            raise InputError(
                "SIGMA reverses a part of the history, so a loss at all positions would leak the targets: set "
                "--model.objective.positions last and --data.train_windows prefixes."
            )
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, std=0.02, head_dtype=head_dtype),
            encoder=SIGMAEncoder(hidden_size=hidden_size, max_length=max_length, **network),
            objective=objective or NextItem(positions="last"),
            optimizer=optimizer,
        )
