"""Does a recommendation that claims 10 % come true in one case of ten? Reliability of stated probabilities.

Run it on a checkpoint: `python -m lightrec_idnp.calibration best.ckpt`.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np


class Bin(NamedTuple):
    """Cases of like stated probability."""

    count: int
    stated: float
    """Mean stated probability."""
    happened: float
    """Share that came true."""


def reliability(stated: np.ndarray, happened: np.ndarray, bins: int = 10) -> tuple[list[Bin], float]:
    """Compares stated probabilities with what happened, in bins of equally many cases.

    Args:
        stated: [n] probabilities.
        happened: [n] bool.
        bins: number of bins.

    Returns:
        the bins, from the least to the most certain, and the expected calibration error: the mean gap, by cases.
    """
    parts = [p for p in np.array_split(np.argsort(stated, kind="stable"), bins) if len(p)]
    rows = [Bin(len(p), float(stated[p].mean()), float(happened[p].mean())) for p in parts]
    return rows, sum(r.count * abs(r.stated - r.happened) for r in rows) / max(1, len(stated))


def main() -> None:
    parser = argparse.ArgumentParser(description="Reliability of the ten recommended items of every test user.")
    parser.add_argument("checkpoint")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--mirror", help="folder or URL that has the files of known data sets")
    args = parser.parse_args()

    import torch

    from lightrec import load_recommender
    from lightrec.data.datamodule import SequenceDataModule

    path = args.checkpoint
    model = load_recommender(path).model
    described = torch.load(path, map_location="cpu", weights_only=True)["lightrec"]["data"]
    if args.mirror:
        described["init_args"]["mirror"] = args.mirror
    data = SequenceDataModule.from_description(described)
    torch.manual_seed(0)
    stated, happened, doubt = [], [], []
    for batch in data.test_dataloader():
        found = model.recommend_with_uncertainty(batch, args.k, args.samples)
        stated.append(found.probability.sum(1))  # the target is one item: chances of the list add up
        happened.append((found.item_ids == batch.target_ids[:, :1]).any(1))
        doubt.append(found.std.sum(1))
    stated, happened = torch.cat(stated).numpy(), torch.cat(happened).numpy()
    rows, error = reliability(stated, happened)
    print(f"chance that the next item is among the {args.k} recommended, {len(stated):,} test users")
    print("| stated | happened | users |\n|---|---|---|")
    for row in rows:
        print(f"| {row.stated:.3f} | {row.happened:.3f} | {row.count:,} |")
    print(f"expected calibration error {error:.4f}; mean deviation over samples {torch.cat(doubt).mean():.4f}")


if __name__ == "__main__":
    main()
