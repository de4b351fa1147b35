"""HyperbolicItems: items are points of hyperbolic space, scored by distance."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.configurable import Above, AtLeast
from lightrec.interfaces import ItemTable
from lightrec.nn.hyperbolic import CAP, Curvature, cap_norm, distance_power, item_rows, state_rows
from lightrec.ops.distance_cross_entropy import distance_cross_entropy
from lightrec.ops.hyperbolic_selective_scan import exp0


class HyperbolicItems(ItemTable):
    """Items are points exp0(v) with learned tangent vectors v; a state scores them by -d^power / temperature.

    `forward` gives the tangent vectors, log0 of the points: plain Adam trains them, and any encoder can read them.

    Args:
        num_items: size of the catalog; ids are 1..num_items.
        hidden_size: D.
        kappa: minus the sectional curvature, at first.
        learn_kappa: train it.
        power: 1 for the distance, 2 for its square.
        temperature: what distances are divided by, at first. 2 with power 2 is, in flat space, an inner product with
            item biases -|v|^2 / 2.
        learn_temperature: train it.
        state: how a state is a point: `tangent`, by exp0 of its capped vector; `space`, as a space part.
        cap: bound of sqrt(kappa)|v|, see `cap_norm`; None for none.
        std: standard deviation of the normal initialisation.

    Raises:
        ValueError: a size below 1, or an option out of its range.
    """

    limits = {"num_items": AtLeast(1), "temperature": Above(0)}

    limit: float | None = None
    """Of kappa q, for a subclass whose `logits` clip it: `cross_entropy` makes the logits of its own."""

    def __init__(
        self,
        num_items: int,
        hidden_size: int,
        kappa: float = 1.0,
        learn_kappa: bool = True,
        power: Literal[1, 2] = 2,
        temperature: float = 2.0,
        learn_temperature: bool = True,
        state: Literal["tangent", "space"] = "tangent",
        cap: float | None = CAP,
        std: float = 0.02,
    ):
        super().__init__()
        if temperature == math.inf:
            raise ValueError("temperature (inf) must be finite.")
        if cap is not None and not 0 < cap <= 40:
            raise ValueError(f"cap ({cap}) must be in (0, 40]: cosh overflows float32 beyond.")
        self.num_items, self.hidden_size = num_items, hidden_size
        self.power, self.state, self.cap = power, state, cap
        self.curvature = Curvature(kappa, learn_kappa)
        self.embedding = nn.Embedding(num_items + 1, hidden_size, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=std)
        with torch.no_grad():
            self.embedding.weight[0].zero_()
        log_temperature = torch.tensor(math.log(temperature))
        if learn_temperature:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature, persistent=False)

    def forward(self, item_ids: Tensor) -> Tensor:
        return self.embedding(item_ids)

    def states(self, hidden: Tensor) -> Tensor:
        """The points of states, by their space parts: [..., D] -> [..., D], float32 (float64 for float64)."""
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        return hidden if self.state == "space" else self._points(hidden)

    def points(self, item_ids: Tensor | None = None) -> Tensor:
        """The points of items, by their space parts: ids [...] -> [..., D]; None for all items, [num_items, D]."""
        return self._points(self.embedding.weight[1:] if item_ids is None else self.embedding(item_ids))

    def _points(self, v: Tensor) -> Tensor:
        kappa = self.curvature().to(v.dtype)
        return exp0(v if self.cap is None else cap_norm(v, kappa, self.cap), kappa)

    def logits(self, q: Tensor) -> Tensor:
        """Scores from half the squared chords, elementwise."""
        return distance_power(q, self.curvature().to(q.dtype), self.power) * -(-self.log_temperature).exp()

    def score(self, hidden: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # a distance keeps too few digits of a bfloat16 product
            kappa = self.curvature()
            rows = state_rows(self.states(hidden), kappa)
            items = item_rows(self.points(candidate_ids), kappa).to(rows.dtype)
            if candidate_ids is None:
                return F.pad(self.logits(rows @ items.T), (1, 0), value=-torch.inf)  # [..., V]
            if candidate_ids.dim() == 1:
                q = rows @ items.T
            else:
                q = (items @ rows.unsqueeze(-1)).squeeze(-1)
            return self.logits(q).masked_fill(candidate_ids == 0, -torch.inf)

    def cross_entropy(self, hidden: Tensor, target_ids: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            kappa = self.curvature()
            rows = state_rows(self.states(hidden), kappa)
            items = item_rows(self.points(), kappa).to(rows.dtype)
            log_temperature = self.log_temperature
            if isinstance(temperature, Tensor) or temperature != 1.0:
                log_temperature = log_temperature + torch.as_tensor(temperature).log().to(log_temperature)
            rest = kappa, log_temperature, self.power, self.limit
            return distance_cross_entropy(rows, items, target_ids - 1, *rest)

    @torch.no_grad()
    def saturated(self, hidden: Tensor) -> Tensor:
        """Share of the logits of states [R, D] that have no gradient: what a hard clip does to a model, in [0, 1]."""
        with torch.autocast(hidden.device.type, enabled=False):
            kappa = self.curvature()
            q = state_rows(self.states(hidden), kappa) @ item_rows(self.points(), kappa).T
        with torch.enable_grad():
            q = q.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.logits(q).sum(), q)
        return (slope == 0).float().mean()
