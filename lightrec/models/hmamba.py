"""HMamba: Mamba over the history, scored by distance in hyperbolic space.

"HMamba: Hyperbolic Mamba for Sequential Recommendation", ACM TOIS 2026, https://arxiv.org/abs/2505.09205; code:
CoderPowerBeyond/HMamba. The paper's listing, its figure and the released code describe different models, see
docs/models/hmamba.md; here they have names of their own:

* `HMamba`, ours: items are points exp0(v); the network reads their tangent vectors log0(exp0(v)) = v, which keeps it
  that of Mamba4Rec but for the decay factor of the scan; its output is a tangent vector again, and the score is the
  negative distance of the two points. Curvature and temperature are learned. Norms are capped smoothly where the
  released code clips.
* `HMambaFull`: fidelity `released` is the published code. Two of its faults, which change nothing but time and safety,
  are left out: a sign flipped in place, and activations written to disk at each step. Fidelity `paper` is the paper's
  listing, with K(kappa).
* `HMambaHalf`: fidelity `released` is the published code, hyperbolic at its input only and scored by an inner product.
  Fidelity `paper` is the listing, which is Mamba4Rec to the letter.

As for Mamba4Rec, training asks at every position of a window instead of once for each prefix. Padding is not a class.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightrec.configurable import AtLeast
from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import History, LinearHead, Losses, Objective, Term
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.items.hyperbolic import HyperbolicItems
from lightrec.nn.dropout import Dropout
from lightrec.nn.hyperbolic import CAP, Curvature, lift
from lightrec.nn.mamba import MambaInit, MambaLayer, MambaMixer
from lightrec.nn.mamba_stack import MambaStack
from lightrec.objectives.next_item import NextItem, NextItemStates, next_item_pairs
from lightrec.objectives.weighted import Weighted
from lightrec.ops.hyperbolic_selective_scan import exp0, hyperbolic_selective_scan
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer

Factor = Literal["flat-limit", "paper", "none"]
Inputs = Literal["tangent", "points", "normed-points"]
Fidelity = Literal["released", "paper"]

_WATCHED_ROWS, _WATCHED_STEPS = 16, 50


class HyperbolicMixer(MambaMixer):
    """The Mamba mixer with rates that depend on curvature.

    Args:
        hidden_size: D.
        state_size: numbers of state per channel.
        conv_size: events that the convolution sees.
        expand: inner channels as a multiple of hidden_size.
        curvature: of the space.
        factor: rule of the decay factor, see `lightrec.ops.hyperbolic_selective_scan`.
        init: as of `MambaMixer`.
        input_size: width of the input; None is hidden_size.
    """

    def __init__(
        self,
        hidden_size: int,
        state_size: int,
        conv_size: int,
        expand: int,
        curvature: Curvature,
        factor: Factor = "flat-limit",
        init: MambaInit = "mamba",
        input_size: int | None = None,
    ):
        super().__init__(hidden_size, state_size, conv_size, expand, init=init, input_size=input_size)
        self.curvature, self.factor = curvature, factor

    def scan(self, x, delta, A, B, C, D, z, delta_bias, initial_state, return_final_state, resets):
        return hyperbolic_selective_scan(
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            kappa=self.curvature(),
            factor=self.factor,
            initial_state=initial_state,
            return_final_state=return_final_state,
            resets=resets,
        )


class HMambaEncoder(MambaStack):
    """Mamba layers over tangent vectors or points, which go on event by event with a state of fixed size.

    Args:
        hidden_size: D.
        num_layers: layers; a single one has no residual around its mixer.
        state_size: numbers of state per channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        init: `mamba`, long memory at first; `normal`, the short one of Mamba4Rec's published code.
        factor: how curvature enters the scan: `flat-limit`, rate 0 times sqrt(1 + kappa); `paper`, times
            1 / sqrt(kappa); `none`, not at all.
        kappa: minus the sectional curvature, at first.
        learn_kappa: train it.
        inputs: what the first layer reads: `tangent`, dropout and norm of the vectors; `points`, dropout of the
            vectors and then the 1 + D coordinates of their points; `normed-points`, dropout and norm of those
            coordinates, as the released code has it; they are not a point then.

    Raises:
        ValueError: several layers over coordinates.
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
        init: MambaInit = "mamba",
        factor: Factor = "flat-limit",
        kappa: float = 1.0,
        learn_kappa: bool = True,
        inputs: Inputs = "tangent",
    ):
        if inputs != "tangent" and num_layers > 1:
            raise ValueError(f"inputs={inputs!r} are 1 + D wide and have one layer, got num_layers ({num_layers}).")
        used = factor != "none" or inputs == "points"
        curvature = Curvature(kappa, learn_kappa and used)
        input_size = hidden_size + (inputs != "tangent")
        layers = [
            MambaLayer(
                hidden_size,
                dropout=dropout,
                residual=num_layers > 1,
                init=init,
                mixer=HyperbolicMixer(hidden_size, state_size, conv_size, expand, curvature, factor, init, input_size),
            )
            for _ in range(num_layers)
        ]
        super().__init__(hidden_size, layers)
        self.inputs, self.curvature = inputs, curvature
        self.norm = nn.Identity() if inputs == "points" else nn.LayerNorm(input_size, 1e-12)
        self.dropout = Dropout(dropout)

    def share(self, curvature: Curvature) -> HMambaEncoder:
        """Takes the curvature of another part, so that both live in one space; returns itself."""
        self.curvature = curvature
        for layer in self.layers:
            layer.mixer.curvature = curvature
        return self

    def enter(self, history: History) -> History:
        x = history.x
        if self.inputs == "tangent":
            return history._replace(x=self.norm(self.dropout(x)))
        kappa = self.curvature()
        if self.inputs == "points":
            return history._replace(x=lift(exp0(self.dropout(x), kappa), kappa))
        return history._replace(x=self.norm(self.dropout(lift(exp0(x, kappa), kappa))))


class _DistanceRecommender(EncoderRecommender):
    """An encoder before a hyperbolic head; watches how many of its logits have no gradient."""

    def loss(self, batch: Batch) -> Losses:
        losses = super().loss(batch)
        if self.global_step % _WATCHED_STEPS == 0:
            with torch.no_grad():
                rows = batch.map(lambda t: t[:_WATCHED_ROWS])
                losses["saturated_logits"] = Term(self.items.saturated(self.query(rows)), weight=0)
        return losses


class HMamba(_DistanceRecommender):
    """Mamba over tangent vectors, scored by hyperbolic distance, trained with the full softmax.

    Further options are those of `HMambaEncoder`.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        kappa: minus the sectional curvature, at first; None is 4 / hidden_size, at which states as the last norm makes
            them, sqrt(D) long, are at the hyperbolic radius sqrt(kappa) r = 2.
        learn_kappa: train it.
        power: score by the distance (1) or its square (2).
        temperature: what distances are divided by, at first.
        learn_temperature: train it.
        cap: bound of sqrt(kappa) times the norm of a tangent vector, approached smoothly.
        objective: what is trained; None is the full softmax at every position.
        optimizer: how it is trained.
    """

    network = HMambaEncoder

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        kappa: float | None = None,
        learn_kappa: bool = True,
        power: Literal[1, 2] = 2,
        temperature: float = 2.0,
        learn_temperature: bool = True,
        cap: float = CAP,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        kappa = 4 / hidden_size if kappa is None else kappa
        items = HyperbolicItems(
            num_items, hidden_size, kappa, learn_kappa, power, temperature, learn_temperature, "tangent", cap
        )
        encoder = HMambaEncoder(hidden_size=hidden_size, kappa=kappa, learn_kappa=learn_kappa, **network)
        super().__init__(items, encoder.share(items.curvature), objective or NextItem(), optimizer)


class ReleasedHyperbolicItems(HyperbolicItems):
    """The score of the released code: -2 - 2 min(arcosh(clip(-<h, e>, 1 + 1e-7, 10))^2, 30), at curvature 1.

    Where the clip acts the gradient is zero, see `saturated`. The bound of 30 never acts: arcosh(10)^2 is 8.96.
    """

    limit = 9.0

    def __init__(self, num_items: int, hidden_size: int):
        super().__init__(num_items, hidden_size, 1.0, False, 2, 0.5, False, "space", None)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.embedding.weight)[0].zero_()

    def logits(self, q: Tensor) -> Tensor:
        angle = (1 + q).clamp(1 + 1e-7, 1 + self.limit)  # 1 + 1.2e-7 in float32: the slope of arcosh stays finite
        return -2 - 2 * torch.acosh(angle).square().clamp_max(30.0)


class LogMapItems(ItemEmbedding):
    """The head of the released Half: states are space parts, taken to their tangent vectors before an inner product.

    Norms are clipped at 10 where the vector is divided by its own, as there: a state beyond is not arcosh(x_0) long
    but |x| / 10 times that.
    """

    def linear_head(self, hidden: Tensor) -> LinearHead:
        norm = hidden.float().norm(dim=-1, keepdim=True)
        return super().linear_head(hidden * (torch.asinh(norm) / norm.clamp(1e-15, 10.0)).to(hidden.dtype))


class PointNorm(Objective):
    """The second loss of the released Full: the mean Euclidean norm of the input points, padding included.

    It was returned beside the cross-entropy and summed by the framework: items are drawn towards the origin.
    """

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        inputs, _ = next_item_pairs(batch)
        norm = lift(exp0(recommender.items(inputs.item_ids), 1.0), 1.0).norm(dim=-1).mean()
        return {"point_norm": Term(norm)}


class HMambaFull(_DistanceRecommender):
    """The Full variant: the network reads coordinates of points, and its output is a point.

    Further options are those of `HMambaEncoder`.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        fidelity: `released`, the published code; `paper`, the paper's listing (Algorithm 1).
        kappa: minus the sectional curvature of `paper`; the released code has 1.
        learn_kappa: train it (`paper`).
        norm_reg: weight of the mean norm of the input points in the loss (`released`).
        objective: what is trained beside it; None is the full softmax at every position.
        optimizer: how it is trained.

    Raises:
        InputError: another curvature than 1 with `released`, or a width at which its clip leaves no gradient.
    """

    network = HMambaEncoder
    fixed = ("num_layers", "factor", "inputs")

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        dropout: float = 0.1,
        fidelity: Fidelity = "released",
        kappa: float = 1.0,
        learn_kappa: bool = False,
        norm_reg: float = 1.0,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        released = fidelity == "released"
        objective = objective or NextItem()
        if released:
            _check_released(hidden_size, kappa, learn_kappa)
            items = ReleasedHyperbolicItems(num_items, hidden_size)
            objective = Weighted([objective, PointNorm()], [1.0, norm_reg]) if norm_reg else objective
        else:  # -2 sqrt(k) arcosh(-<h, e> / k) with k = 1 / kappa is -2 d
            items = HyperbolicItems(num_items, hidden_size, kappa, learn_kappa, 1, 0.5, False, "space")
        encoder = HMambaEncoder(
            hidden_size=hidden_size,
            num_layers=1,
            dropout=dropout,
            factor="none" if released else "paper",
            kappa=kappa,
            learn_kappa=learn_kappa,
            inputs="normed-points" if released else "points",
            **network,
        )
        for module in encoder.modules() if released else ():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)  # that of delta too: its steps begin near softplus(0) = 0.69
        super().__init__(items, encoder.share(items.curvature), objective, optimizer)


class HMambaHalf(EncoderRecommender):
    """The Half variant: scored by an inner product.

    Further options are those of `HMambaEncoder`.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        fidelity: `released`, the published code: points at the input, log map at the output; `paper`, the paper's
            listing, which is Mamba4Rec of one layer.
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
        objective: what is trained; None is the full softmax at every position.
        optimizer: how it is trained.
    """

    network = HMambaEncoder
    fixed = ("num_layers", "init", "factor", "kappa", "learn_kappa", "inputs")

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        dropout: float = 0.1,
        fidelity: Fidelity = "released",
        head_dtype: HeadDtype | None = None,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        table = LogMapItems if fidelity == "released" else ItemEmbedding
        super().__init__(
            items=table(num_items, hidden_size, std=0.02, head_dtype=head_dtype),
            encoder=HMambaEncoder(
                hidden_size=hidden_size,
                num_layers=1,
                dropout=dropout,
                init="normal",
                factor="none",
                kappa=1.0,
                learn_kappa=False,
                inputs="normed-points" if fidelity == "released" else "tangent",
                **network,
            ),
            objective=objective or NextItem(),
            optimizer=optimizer,
        )


def _check_released(hidden_size: int, kappa: float, learn_kappa: bool) -> None:
    """Refuses what the published Full cannot be.

    Raises:
        InputError: another curvature than 1, or a width at which its clip leaves no gradient.
    """
    if kappa != 1.0 or learn_kappa:
        raise InputError(
            f"fidelity='released' has curvature 1 only, got kappa={kappa}, learn_kappa={learn_kappa}: take "
            "fidelity='paper' or HMamba."
        )
    if hidden_size >= 99:  # normed states have -<h, origin> = sqrt(1 + D), and the clip is at 10
        raise InputError(
            f"fidelity='released' cannot learn with hidden_size ({hidden_size}): from 99 on its clip leaves no "
            "score a gradient; take 64, as published, or HMamba."
        )
