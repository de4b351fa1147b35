"""Time as features: the calendar through a Mercer basis, and the gap to the event before. For any encoder.

Timestamps are seconds since the epoch, UTC. Linxi000/UniRec holds the constants; see the README.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_DAY = 86400
FIELDS = ("year", "month", "day", "weekday", "day of year", "week", "hour")


def calendar(timestamps: Tensor) -> Tensor:
    """Seconds since the epoch [...] -> [..., 7] int64: year, month 1-12, day 1-31, weekday 1-7 (Monday is 1), day of
    the year 1-366, ISO week 1-53, hour 0-23; proleptic Gregorian, UTC."""
    days = timestamps.div(_DAY, rounding_mode="floor")
    hour = (timestamps - days * _DAY).div(3600, rounding_mode="floor")
    year, month, day = _civil(days)
    of_year = days - _days_before_year(year) + 1
    weekday = (days + 3).remainder(7) + 1  # the epoch was a Thursday
    week = (of_year - weekday + 10).div(7, rounding_mode="floor")
    week = torch.where(week < 1, _weeks_in(year - 1), torch.where(week > _weeks_in(year), 1, week))
    return torch.stack([year, month, day, weekday, of_year, week, hour], -1)


def _civil(days: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Days since the epoch -> year, month, day. Years begin in March inside, so that a leap day is the last."""
    z = days + 719468  # days since 1 March of year 0
    era = z.div(146097, rounding_mode="floor")
    of_era = z - era * 146097
    of_era_year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096).div(365, rounding_mode="floor")
    of_year = of_era - (365 * of_era_year + of_era_year // 4 - of_era_year // 100)
    shifted = (5 * of_year + 2) // 153
    day = of_year - (153 * shifted + 2) // 5 + 1
    month = torch.where(shifted < 10, shifted + 3, shifted - 9)
    return of_era_year + era * 400 + (month <= 2).long(), month, day


def _days_before_year(year: Tensor) -> Tensor:
    """Days from the epoch to 1 January."""
    before = year - 1
    return (
        before * 365
        + before.div(4, rounding_mode="floor")
        - before.div(100, rounding_mode="floor")
        + before.div(400, rounding_mode="floor")
        - 719162
    )


def _weeks_in(year: Tensor) -> Tensor:
    """53 if 1 January is a Thursday, or a Wednesday of a leap year; else 52."""
    first = (_days_before_year(year) + 3).remainder(7) + 1
    leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
    return 52 + ((first == 4) | ((first == 3) & leap)).long()


class Mercer(nn.Module):
    """phi_j(t) = b_j + sum_m A_jm sin(m t / p_j) + A'_jm cos(m t / p_j), with learned periods p_j = 10^c_j.

    Args:
        size: J, functions.
        harmonics: M.
    """

    def __init__(self, size: int = 16, harmonics: int = 3):
        super().__init__()
        self.exponents = nn.Parameter(torch.linspace(0, 8, size))
        self.weight = nn.Parameter(torch.randn(size, 2 * harmonics) * (2 * harmonics) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(size))
        self.register_buffer("orders", torch.arange(1.0, harmonics + 1), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """[...] -> [..., J]."""
        angle = t[..., None, None] * self.orders / 10 ** self.exponents[:, None]
        return (torch.cat([angle.sin(), angle.cos()], -1) * self.weight).sum(-1) + self.bias


class CalendarFeatures(nn.Module):
    """Seven numbers of the calendar, each through a Mercer basis, then one linear map.

    Args:
        hidden_size: D.
        size: functions of each number.
        harmonics: harmonics of each function.
    """

    def __init__(self, hidden_size: int, size: int = 16, harmonics: int = 3):
        super().__init__()
        self.bases = nn.ModuleList(Mercer(size, harmonics) for _ in FIELDS)
        self.map = nn.Linear(len(FIELDS) * size, hidden_size)
        nn.init.normal_(self.map.weight, std=0.01)
        nn.init.zeros_(self.map.bias)

    def forward(self, timestamps: Tensor, lengths: Tensor) -> Tensor:
        """timestamps [B, L] -> [B, L, D], zero on padding."""
        numbers = calendar(timestamps).to(self.map.weight.dtype).unbind(-1)
        features = torch.cat([basis(t) for basis, t in zip(self.bases, numbers, strict=True)], -1)
        return self.map(features) * _real(timestamps, lengths)


class IntervalFeatures(nn.Module):
    """A learned vector for each number of hours since the event before.

    Args:
        hidden_size: D.
        max_hours: longer gaps count as this one; a year.
    """

    def __init__(self, hidden_size: int, max_hours: int = 8760):
        super().__init__()
        self.max_hours = max_hours
        self.table = nn.Embedding(max_hours + 1, hidden_size)
        nn.init.normal_(self.table.weight, std=0.01)

    def forward(self, timestamps: Tensor, lengths: Tensor) -> Tensor:
        """timestamps [B, L] -> [B, L, D], zero on padding; the first event has gap 0."""
        return self.table(gaps_in_hours(timestamps, lengths).clamp_max(self.max_hours)) * _real(timestamps, lengths)


def gaps_in_hours(timestamps: Tensor, lengths: Tensor) -> Tensor:
    """Whole hours between an event and the one before it: [B, L], 0 for the first and on padding."""
    gaps = timestamps.diff(dim=1, prepend=timestamps[:, :1]).div(3600, rounding_mode="floor").clamp_min(0)
    return gaps * _real(timestamps, lengths)[..., 0]


def gap_spread(timestamps: Tensor, lengths: Tensor) -> Tensor:
    """Coefficient of variation of the gaps of each row: [B]; 0 where they are all alike or fewer than two.

    The variance itself would call every slow user irregular and every fast one regular.
    """
    real = (torch.arange(timestamps.shape[1], device=timestamps.device) < lengths[:, None])[:, 1:]
    gaps = timestamps.diff(dim=1).double().clamp_min(0) * real
    count = real.sum(1).clamp_min(1)
    mean = gaps.sum(1) / count
    variance = (gaps - mean[:, None]).square().mul(real).sum(1) / count
    return variance.sqrt() / mean.clamp_min(1e-9)


def _real(timestamps: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(timestamps.shape[1], device=timestamps.device) < lengths[:, None])[..., None]


def quarter_sine(progress: float | Tensor, ease: Tensor) -> Tensor:
    """Weight of an example in a curriculum, in [0, 1]: easy ones count from the start, hard ones come in later.

    Args:
        progress: share of the training that is done.
        ease: [...] 0 for the hardest example, 1 for the easiest.
    """
    return torch.sin(0.5 * math.pi * (progress + ease).clamp(0, 1))
