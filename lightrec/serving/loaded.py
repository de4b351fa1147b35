"""LoadedRecommender: a checkpoint as something that recommends, external ids in and titles out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from lightrec.checkpoint import build_model, catalog_of, read_checkpoint
from lightrec.data.batch import Batch
from lightrec.data.catalog import Catalog
from lightrec.errors import InputError
from lightrec.recommender import SequenceRecommender

_BATCH_ROWS = 256


class Recommendation(NamedTuple):
    """One line of a list."""

    item_id: str
    """External id."""
    score: float
    title: str


@dataclass
class LoadedRecommender:
    """A trained model with its catalog: external ids in, titles out."""

    model: SequenceRecommender
    catalog: Catalog
    protocol: dict | None
    max_length: int | None
    """Most recent items that the model reads; all of a history counts as seen."""
    data: dict | None = None
    """What the data module of the training can be built from."""
    unknown: list[tuple[int, str]] = field(default_factory=list)
    """Of the last call: row and external id of each item that the catalog does not hold. They were skipped."""

    @torch.no_grad()
    def recommend(
        self, histories: Sequence[Sequence[str | int]], k: int = 10, exclude_seen: bool = True
    ) -> list[list[Recommendation]]:
        """Recommends to people by what they did.

        Args:
            histories: external item ids, oldest first, one list per person. Unknown items are skipped and reported in
                `unknown`.
            k: length of the lists.
            exclude_seen: leave the items of a history out of its own list.

        Returns:
            One list per person, best first; empty for a history without a known item.

        Raises:
            InputError: k below 1.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}.")
        self.unknown = []
        known: list[list[int]] = []
        for row, history in enumerate(histories):
            if isinstance(history, (str, int)):
                raise TypeError("histories is a list of lists: one list of item ids a person.")
            ids = self.catalog.encode(list(history))
            self.unknown += [(row, str(item)) for item, i in zip(history, ids, strict=True) if not i]
            known.append([i for i in ids if i])
        out: list[list[Recommendation]] = [[] for _ in known]
        rows = [row for row, ids in enumerate(known) if ids]
        for start in range(0, len(rows), _BATCH_ROWS):
            part = rows[start : start + _BATCH_ROWS]
            batch = Batch.from_histories([known[row] for row in part], self.max_length, exclude_seen)
            item_ids, scores = self.model.recommend(batch.to(self.model.device), k)
            for row, ids, values in zip(part, item_ids.tolist(), scores.tolist(), strict=True):
                out[row] = [
                    Recommendation(self.catalog.decode(i), value, self.catalog.title(i))
                    for i, value in zip(ids, values, strict=True)
                    if i
                ]
        return out


def load_recommender(path: str | Path, trust: Sequence[str] = ()) -> LoadedRecommender:
    """Loads a checkpoint as something that recommends; the file alone is enough.

    Args:
        path: a checkpoint that lightrec wrote.
        trust: modules, beside lightrec's and those of installed plug-ins, whose classes may be built.

    Raises:
        InputError: see `read_checkpoint` and `build_model`.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint["lightrec"]
    if about.get("catalog") is None:
        raise InputError(f"{path} carries no catalog: it was trained without a SequenceDataModule.")
    catalog = catalog_of(about["catalog"], path)
    model = build_model(checkpoint, path, trust)
    return LoadedRecommender(model, catalog, about.get("protocol"), about.get("max_length"), about.get("data"))
