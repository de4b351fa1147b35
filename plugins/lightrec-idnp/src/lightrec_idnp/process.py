"""The neural process: observations of an interest that moves in time, and what it is at a query time.

Shapes: T observations of a user, Q queries, D hidden_size, Z latent_size. An observation is a short window, the item
that followed it, and when.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

DAY = 86400  # seconds


class Latent(NamedTuple):
    """A diagonal Gaussian over the global interest z."""

    mean: Tensor
    """[..., Z]"""
    std: Tensor
    """[..., Z], between 0.1 and 1."""

    def sample(self) -> Tensor:
        return self.mean + self.std * torch.randn_like(self.std)


def wasserstein(one: Latent, other: Latent) -> Tensor:
    """Squared 2-Wasserstein distance of diagonal Gaussians: [...]."""
    return (one.mean - other.mean).square().sum(-1) + (one.std - other.std).square().sum(-1)


def kullback_leibler(one: Latent, other: Latent) -> Tensor:
    """KL(one || other) of diagonal Gaussians: [...]."""
    ratio = (one.std / other.std).square()
    shift = ((one.mean - other.mean) / other.std).square()
    return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)


class TimeFeatures(nn.Module):
    """Sines and cosines of a time in days, or of a position where a log has no times.

    Periods run geometrically from `shortest` to `longest`.

    Args:
        size: number of features, even.
        shortest: shortest period.
        longest: longest period.
    """

    def __init__(self, size: int, shortest: float = 2.0, longest: float = 4000.0):
        super().__init__()
        if size < 4 or size % 2:
            raise ValueError(f"size ({size}) must be even and at least 4.")
        steps = torch.linspace(0, 1, size // 2, dtype=torch.float64)
        self.register_buffer("rates", 2 * math.pi / (shortest * (longest / shortest) ** steps), persistent=False)

    def forward(self, times: Tensor) -> Tensor:
        """times [...] in days -> [..., size]."""
        angle = times.double()[..., None] * self.rates  # days since 1970, times 2 pi: too much for float32
        return torch.cat([angle.sin(), angle.cos()], -1).float()


def days(timestamps: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    """Seconds since the epoch -> days; without times, positions stand in for days."""
    if timestamps is None:
        return torch.arange(shape[1], dtype=torch.float64, device=device).expand(shape)
    return timestamps.double() / DAY


class InterestProcess(nn.Module):
    """Infers a global interest z and an interest at a time r_d from observations, and decodes both with a query.

    Args:
        hidden_size: D.
        latent_size: Z.
        time_size: features of a time.
        latent: have the latent path; without it z is zero.
        deterministic: have the path that depends on the query time; without it r_d is zero.
        dropout: of the decoder's inner layer.
    """

    def __init__(
        self,
        hidden_size: int,
        latent_size: int,
        time_size: int = 16,
        latent: bool = True,
        deterministic: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.hidden_size, self.latent_size = hidden_size, latent_size
        self.has_latent, self.has_deterministic = latent, deterministic
        self.time = TimeFeatures(time_size)
        self.observation = _mlp(2 * hidden_size + time_size, hidden_size, hidden_size)
        self.to_latent = nn.Linear(hidden_size, hidden_size)
        self.to_gaussian = nn.Linear(hidden_size, 2 * latent_size)
        self.query_time = nn.Linear(time_size, hidden_size, bias=False)
        self.key_time = nn.Linear(time_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.decoder = _mlp(2 * hidden_size + latent_size + time_size, 2 * hidden_size, hidden_size, dropout)

    def observe(self, short: Tensor, followed_by: Tensor, times: Tensor) -> Tensor:
        """o = MLP([s; e_y; tau(t)]): short [..., D], vectors of what followed [..., D], times [...] -> [..., D]."""
        return self.observation(torch.cat([short, followed_by, self.time(times)], -1))

    def global_interest(self, observations: Tensor, context: Tensor) -> Latent:
        """Infers z from a set.

        Args:
            observations: [B, T, D].
            context: [B, Q, T] or [B, 1, T] bool, which observations each query knows.

        Returns:
            means and deviations [B, Q, Z]; the prior N(0, I) where nothing is known.
        """
        share = context.float()
        known = share.sum(-1, keepdim=True)
        mean_of = share @ torch.relu(self.to_latent(observations)) / known.clamp_min(1)
        mean, spread = self.to_gaussian(mean_of).chunk(2, -1)
        some = known > 0
        return Latent(torch.where(some, mean, 0.0), torch.where(some, 0.1 + 0.9 * torch.sigmoid(spread), 1.0))

    def interest_at(self, observations: Tensor, times: Tensor, context: Tensor, at: Tensor) -> Tensor:
        """Attends from query times to the times of known observations.

        Args:
            observations: [B, T, D].
            times: [B, T], when they were made.
            context: [B, Q, T] bool, which observations each query knows.
            at: [B, Q] query times.

        Returns:
            r_d [B, Q, D], zero where nothing is known.
        """
        scores = self.query_time(self.time(at)) @ self.key_time(self.time(times)).transpose(1, 2)
        scores = (scores / self.hidden_size**0.5).masked_fill(~context, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * context
        return weights @ self.value(observations)

    def decode(self, at_query: Tensor, z: Tensor, short: Tensor, at: Tensor) -> Tensor:
        """d_q = MLP([r_d; z; s; tau(t)]): [..., D]."""
        at_query = at_query if self.has_deterministic else torch.zeros_like(at_query)
        z = z if self.has_latent else torch.zeros_like(z)
        return self.decoder(torch.cat([at_query, z, short, self.time(at)], -1))


def _mlp(wide: int, inner: int, out: int, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(wide, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, out))
