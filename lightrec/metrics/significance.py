"""Is one model better than another for the same users? Paired tests of two per-user files.

A file holds one row per user: `user_id` and columns such as `ndcg@10`, as `RankingMetrics.per_user_values` gives them.
Users are paired by id; both files must hold the same users, because a difference over others has no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from lightrec.errors import InputError


@dataclass(frozen=True)
class Comparison:
    """What two models differ by on one metric: second minus first, over paired users."""

    metric: str
    users: int
    first: float
    """Mean of the first model."""
    second: float
    """Mean of the second model."""
    difference: float
    """Mean of second minus first."""
    interval: tuple[float, float]
    """Percentile bootstrap interval of the difference, over users."""
    t_test: float
    """Two-sided p-value of the paired t test; 1 where no user differs."""
    wilcoxon: float
    """Two-sided p-value of the signed-rank test, users without a difference left out; 1 where no user differs."""

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.metric}: {self.first:.4f} -> {self.second:.4f}, difference {self.difference:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], p = {self.t_test:.2g} (t), {self.wilcoxon:.2g} (Wilcoxon), {self.users} users"
        )


def compare(
    first: str | Path | Sequence[str | Path],
    second: str | Path | Sequence[str | Path],
    metric: str = "ndcg@10",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares two per-user files.

    Args:
        first: csv or parquet file of the first model; of several, one for each seed, every user's mean is taken.
        second: the same of the second model.
        metric: column to compare.
        confidence: coverage of the bootstrap interval.
        resamples: bootstrap draws of all users with replacement.
        seed: of the draws.

    Raises:
        InputError: a file cannot be read, lacks a column, names a user twice, or the users differ.
    """
    firsts, seconds = _files(first), _files(second)
    paired = _read(firsts[0], metric).rename({metric: "0"})
    for place, path in enumerate([*firsts[1:], *seconds], start=1):
        other = _read(path, metric).rename({metric: str(place)})
        joined = paired.join(other, on="user_id", how="inner")
        if not len(paired) == len(other) == len(joined):
            raise InputError(
                f"{firsts[0]} has {len(paired)} users, {path} has {len(other)}, both have {len(joined)}: "
                "a paired test needs the same users; write both files from the same test part."
            )
        paired = joined
    values = paired.drop("user_id").to_numpy()
    means = values[:, : len(firsts)].mean(1), values[:, len(firsts) :].mean(1)
    return compare_values(*means, metric, confidence, resamples, seed)


def compare_values(
    first: np.ndarray,
    second: np.ndarray,
    metric: str = "metric",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares two arrays [R] of the same users in the same order; see `compare`.

    Raises:
        InputError: scipy is not installed.
        ValueError: shapes differ, there are fewer than two users, or a value is not finite.
    """
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise InputError("significance tests need a package: pip install scipy.") from error
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise ValueError(
            f"expected two arrays of the same two or more users, got shapes {first.shape}, {second.shape}."
        )
    difference = second - first
    if not np.isfinite(difference).all():
        raise ValueError(f"{int((~np.isfinite(difference)).sum())} values are not finite.")
    rng = np.random.default_rng(seed)
    # Multinomial counts are the draw with replacement, without an [R] array of indices for each.
    means = np.array(
        [rng.multinomial(len(first), np.full(len(first), 1 / len(first))) @ difference for _ in range(resamples)]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means / len(first), [tail, 1 - tail])
    same = not difference.any()
    return Comparison(
        metric=metric,
        users=len(first),
        first=float(first.mean()),
        second=float(second.mean()),
        difference=float(difference.mean()),
        interval=(float(low), float(high)),
        t_test=1.0 if same else float(stats.ttest_rel(second, first).pvalue),
        wilcoxon=1.0 if same else float(stats.wilcoxon(difference).pvalue),
    )


def _files(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    found = [given] if isinstance(given, (str, Path)) else list(given)
    if not found:
        raise InputError("no per-user file was given for one of the two models.")
    return found


def _read(path: str | Path, metric: str) -> pl.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected a per-user file of `lightrec test`.")
    try:
        frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as {path.suffix or 'csv'}: {reason}.") from error
    for column in ("user_id", metric):
        if column not in frame.columns:
            raise InputError(f"{path} has no column {column}; its columns are {', '.join(frame.columns)}.")
    if frame["user_id"].is_duplicated().any():
        twice = frame.filter(pl.col("user_id").is_duplicated())["user_id"][0]
        raise InputError(f"{path} has user {twice} more than once: expected one row per user.")
    return frame.select("user_id", pl.col(metric).cast(pl.Float64))
