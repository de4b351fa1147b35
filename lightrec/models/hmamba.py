"""HMamba: Mamba over the history, scored by distance in hyperbolic space.

"HMamba: Hyperbolic Mamba for Sequential Recommendation", ACM TOIS 2026, https://arxiv.org/abs/2505.09205; code:
CoderPowerBeyond/HMamba. The paper's listing, its figure and the released code describe different models, see
docs/models/hmamba.md; here they have names of their own:

* `HMamba`, ours: items are points exp0(v); the network reads their tangent vectors log0(exp0(v)) = v, which keeps it
  that of Mamba4Rec but for the decay factor of the scan; its output is a tangent vector again, and the score is the
  negative distance of the two points. Curvature and temperature are learned. Norms are capped smoothly where the
  released code clips.
* `HMambaFull`: `released` is the published code without its faults that change nothing but time and safety (a sign
  flipped in place, activations written to disk at each step); `algorithm1` is the paper's listing, with K(kappa).
* `HMambaHalf`: `released` is the published code, hyperbolic at its input only and scored by an inner product;
  `algorithm1` is the listing, which is Mamba4Rec to the letter.

As for Mamba4Rec, training asks at every position of a window instead of once for each prefix, and padding is no class.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import LinearHead, Objective, SequenceEncoder
from lightrec.nn.dropout import Dropout
from lightrec.nn.hyperbolic import CAP, Curvature, HyperbolicItems, lift
from lightrec.nn.item_embedding import ItemEmbedding
from lightrec.nn.mamba import MambaInit, MambaLayer, MambaMixer
from lightrec.objectives.next_item import NextItem, next_item_pairs
from lightrec.objectives.weighted import Weighted
from lightrec.ops.hyperbolic_selective_scan import exp0, hyperbolic_selective_scan
from lightrec.recommender import Decay, EncoderRecommender

Factor = Literal["flat-limit", "paper", "none"]
Inputs = Literal["tangent", "points", "released"]
Compat = Literal["released", "algorithm1"]

_WATCHED_ROWS, _WATCHED_STEPS = 16, 50


class HyperbolicMixer(MambaMixer):
    """The Mamba mixer with rates that depend on curvature.

    Args:
        hidden_size: D.
        state_size: numbers of state a channel.
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


class HMambaEncoder(SequenceEncoder):
    """Mamba layers over tangent vectors or points, which go on event by event with a state of fixed size.

    Args:
        hidden_size: D.
        num_layers: layers; a single one has no residual around its mixer.
        state_size: numbers of state a channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        init: `mamba`, long memory at first; `released`, the short one of Mamba4Rec's published code.
        factor: how curvature enters the scan: `flat-limit`, rate 0 times sqrt(1 + kappa); `paper`, times
            1 / sqrt(kappa); `none`, not at all.
        kappa: minus the sectional curvature, at first.
        learn_kappa: train it.
        inputs: what the first layer reads: `tangent`, dropout and norm of the vectors; `points`, dropout of the
            vectors and then the 1 + D coordinates of their points; `released`, dropout and norm of those coordinates,
            which are no point then.

    Raises:
        ValueError: an unknown option, or several layers over coordinates.
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
        factor: Factor = "flat-limit",
        kappa: float = 1.0,
        learn_kappa: bool = True,
        inputs: Inputs = "tangent",
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers ({num_layers}) must be at least 1.")
        if factor not in Factor.__args__:
            raise ValueError(f"factor {factor!r} is unknown; choose {', '.join(Factor.__args__)}.")
        if inputs not in Inputs.__args__:
            raise ValueError(f"inputs {inputs!r} is unknown; choose {', '.join(Inputs.__args__)}.")
        if inputs != "tangent" and num_layers > 1:
            raise ValueError(f"inputs={inputs!r} are 1 + D wide and have one layer, got num_layers ({num_layers}).")
        self.hidden_size, self.inputs = hidden_size, inputs
        used = factor != "none" or inputs == "points"
        self.curvature = Curvature(kappa, learn_kappa and used)
        input_size = hidden_size + (inputs != "tangent")
        self.norm = nn.Identity() if inputs == "points" else nn.LayerNorm(input_size, 1e-12)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            MambaLayer(
                hidden_size,
                dropout=dropout,
                residual=num_layers > 1,
                init=init,
                mixer=HyperbolicMixer(
                    hidden_size, state_size, conv_size, expand, self.curvature, factor, init, input_size
                ),
            )
            for _ in range(num_layers)
        )

    def share(self, curvature: Curvature) -> HMambaEncoder:
        """Takes the curvature of another part, so that both live in one space; returns itself."""
        self.curvature = curvature
        for layer in self.layers:
            layer.mixer.curvature = curvature
        return self

    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.inputs == "tangent":
            return self.norm(self.dropout(x))
        kappa = self.curvature()
        if self.inputs == "points":
            return lift(exp0(self.dropout(x), kappa), kappa)
        return self.norm(self.dropout(lift(exp0(x, kappa), kappa)))

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
        """Advances by one prepared vector [B, D] (or 1 + D wide); returns hidden [B, D] and the new state."""
        following = []
        for layer, before in zip(self.layers, state, strict=True):
            x_t, after = layer.step(x_t, before)
            following.append(after)
        return x_t, following


class _DistanceRecommender(EncoderRecommender):
    """An encoder before a hyperbolic head; watches how many of its logits have no gradient."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx % _WATCHED_STEPS == 0:
            with torch.no_grad():
                rows = batch.map(lambda t: t[:_WATCHED_ROWS])
                share = self.items.saturated(self.query(rows))
            self.log("train/saturated_logits", share, on_step=False, on_epoch=True, batch_size=1)
        return loss


class HMamba(_DistanceRecommender):
    """Mamba over tangent vectors, scored by hyperbolic distance, trained with the full softmax.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        num_layers: layers; a single one has no residual around its mixer.
        state_size: numbers of state a channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        init: `mamba`, long memory at first; `released`, the short one of Mamba4Rec's published code.
        factor: how curvature enters the scan: `flat-limit`, rate 0 times sqrt(1 + kappa); `paper`, times
            1 / sqrt(kappa); `none`, not at all.
        kappa: minus the sectional curvature, at first; None is 4 / hidden_size, at which states as the last norm makes
            them, sqrt(D) long, are at the hyperbolic radius sqrt(kappa) r = 2.
        learn_kappa: train it.
        power: score by the distance (1) or its square (2).
        temperature: what distances are divided by, at first.
        learn_temperature: train it.
        cap: bound of sqrt(kappa) times the norm of a tangent vector, approached smoothly.
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
        factor: Factor = "flat-limit",
        kappa: float | None = None,
        learn_kappa: bool = True,
        power: Literal[1, 2] = 2,
        temperature: float = 2.0,
        learn_temperature: bool = True,
        cap: float = CAP,
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        kappa = 4 / hidden_size if kappa is None else kappa
        items = HyperbolicItems(
            num_items, hidden_size, kappa, learn_kappa, power, temperature, learn_temperature, "tangent", cap
        )
        encoder = HMambaEncoder(
            hidden_size, num_layers, state_size, conv_size, expand, dropout, init, factor, kappa, learn_kappa
        )
        super().__init__(
            items=items,
            encoder=encoder.share(items.curvature),
            objective=objective or NextItem(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )


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

    def forward(self, recommender, batch: Batch) -> Tensor:
        inputs, _ = next_item_pairs(batch)
        return lift(exp0(recommender.items(inputs.item_ids), 1.0), 1.0).norm(dim=-1).mean()


class HMambaFull(_DistanceRecommender):
    """The Full variant: the network reads coordinates of points, and its output is a point.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        state_size: numbers of state a channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        compat: `released`, the published code; `algorithm1`, the paper's listing.
        kappa: minus the sectional curvature of `algorithm1`; the released code has 1.
        learn_kappa: train it (`algorithm1`).
        norm_reg: weight of the mean norm of the input points in the loss (`released`).
        objective: what is trained beside it; None is the full softmax at every position.
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay on matrices.
        warmup_steps: steps of linear warm-up.
        decay: how the learning rate falls until the last step.

    Raises:
        InputError: another curvature than 1 with `released`, or a width at which its clip leaves no gradient.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        state_size: int = 32,
        conv_size: int = 4,
        expand: int = 2,
        dropout: float = 0.1,
        compat: Compat = "released",
        kappa: float = 1.0,
        learn_kappa: bool = False,
        norm_reg: float = 1.0,
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        _check(compat)
        released = compat == "released"
        objective = objective or NextItem()
        if released:
            if kappa != 1.0 or learn_kappa:
                raise InputError(
                    f"compat='released' has curvature 1 only, got kappa={kappa}, learn_kappa={learn_kappa}: take "
                    "compat='algorithm1' or HMamba."
                )
            if hidden_size >= 99:  # normed states have -<h, origin> = sqrt(1 + D), and the clip is at 10
                raise InputError(
                    f"compat='released' cannot learn with hidden_size ({hidden_size}): from 99 on its clip leaves no "
                    "score a gradient; take 64, as published, or HMamba."
                )
            items = ReleasedHyperbolicItems(num_items, hidden_size)
            objective = Weighted([objective, PointNorm()], [1.0, norm_reg]) if norm_reg else objective
        else:  # -2 sqrt(k) arcosh(-<h, e> / k) with k = 1 / kappa is -2 d
            items = HyperbolicItems(num_items, hidden_size, kappa, learn_kappa, 1, 0.5, False, "space")
        encoder = HMambaEncoder(
            hidden_size,
            1,
            state_size,
            conv_size,
            expand,
            dropout,
            factor="none" if released else "paper",
            kappa=kappa,
            learn_kappa=learn_kappa,
            inputs="released" if released else "points",
        )
        for module in encoder.modules() if released else ():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)  # that of delta too: its steps begin near softplus(0) = 0.69
        super().__init__(
            items=items,
            encoder=encoder.share(items.curvature),
            objective=objective,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )


class HMambaHalf(EncoderRecommender):
    """The Half variant: scored by an inner product.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        state_size: numbers of state a channel.
        conv_size: events that the convolution before the scan sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the input, of the mixer's output and, twice, of the feed-forward network.
        compat: `released`, the published code: points at the input, log map at the output; `algorithm1`, the paper's
            listing, which is Mamba4Rec of one layer.
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
        state_size: int = 32,
        conv_size: int = 4,
        expand: int = 2,
        dropout: float = 0.1,
        compat: Compat = "released",
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        _check(compat)
        table = LogMapItems if compat == "released" else ItemEmbedding
        super().__init__(
            items=table(num_items, hidden_size, std=0.02),
            encoder=HMambaEncoder(
                hidden_size,
                1,
                state_size,
                conv_size,
                expand,
                dropout,
                init="released",
                factor="none",
                learn_kappa=False,
                inputs="released" if compat == "released" else "tangent",
            ),
            objective=objective or NextItem(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )


def _check(compat: str) -> None:
    if compat not in Compat.__args__:
        raise ValueError(f"compat {compat!r} is unknown; choose {', '.join(Compat.__args__)}.")
