"""From row numbers to batches: ranges are cut out of the long arrays and padded on the right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightrec.data.batch import Batch, Column
from lightrec.data.batches.windows import Windows
from lightrec.data.splits import Histories


@dataclass(frozen=True)
class Events:
    """The arrays that batches are cut from, one entry per event of the log."""

    items: np.ndarray
    """[E] int32."""
    times: np.ndarray | None = None
    """[E] int64; None where the log has no times or the model is not given them."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Event columns by name, each [E]: float32 numbers, or int32 codes of categories."""

    def cut(self, begin: np.ndarray, end: np.ndarray) -> tuple[Tensor, Tensor | None, dict[str, Column]]:
        """Returns item ids [B, L], timestamps [B, L] and columns of the ranges begin[r]:end[r]."""
        times = None if self.times is None else gather(self.times, begin, end)
        columns = {name: Column(gather(array, begin, end), "position") for name, array in self.columns.items()}
        return gather(self.items, begin, end), times, columns


def gather(array: np.ndarray, begin: np.ndarray, end: np.ndarray) -> Tensor:
    """Cuts rows array[begin:end] into a right-padded tensor [B, longest].

    It is [0, 1] if there is no row, because a recurrent network takes an empty batch but no empty sequence.

    Returns:
        int64 of whole numbers, float32 of others; 0 pads.
    """
    lengths = end - begin
    width = int(lengths.max()) if len(lengths) else 1
    column = np.arange(width)
    inside = column < lengths[:, None]
    places = np.minimum(begin[:, None] + column, max(0, len(array) - 1))
    dtype = np.float32 if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.where(inside, array[places], array.dtype.type(0)).astype(dtype, copy=False))


class TrainingBatches:
    """Makes training batches of row numbers.

    Args:
        events: what the rows are cut from.
        windows: the rows.
    """

    def __init__(self, events: Events, windows: Windows):
        self.events, self.windows = events, windows

    def __call__(self, rows: np.ndarray) -> Batch:
        windows = self.windows
        begin, end = windows.begin[rows], windows.end[rows]
        item_ids, timestamps, columns = self.events.cut(begin, end)
        columns |= {name: Column(torch.from_numpy(values[rows]), "row") for name, values in windows.columns.items()}
        return Batch(
            item_ids=item_ids,
            lengths=torch.from_numpy(end - begin),
            user_ids=torch.from_numpy(windows.user[rows]),
            timestamps=timestamps,
            columns=columns,
        )


class EvaluationBatches:
    """Makes evaluation batches of row numbers.

    Args:
        events: what histories and targets are cut from.
        part: histories and targets.
        max_length: most recent items that are shown to the model.
        exclude_seen: whether the whole history is left out of the ranking.
        candidates: gives [B, C] items to rank for row numbers; None is the full catalog.
    """

    def __init__(
        self,
        events: Events,
        part: Histories,
        max_length: int,
        exclude_seen: bool,
        candidates: Callable[[np.ndarray], Tensor] | None = None,
    ):
        self.events, self.part, self.max_length = events, part, max_length
        self.exclude_seen, self.candidates = exclude_seen, candidates

    def __call__(self, rows: np.ndarray) -> Batch:
        events, part = self.events, self.part
        begin, end, target_end = part.history_begin[rows], part.history_end[rows], part.target_end[rows]
        window = np.maximum(begin, end - self.max_length)
        item_ids, timestamps, columns = events.cut(window, end)
        return Batch(
            item_ids=item_ids,
            lengths=torch.from_numpy(end - window),
            user_ids=torch.from_numpy(part.user[rows]),
            target_ids=gather(events.items, end, target_end),
            seen_ids=gather(events.items, begin, end) if self.exclude_seen else None,
            candidate_ids=None if self.candidates is None else self.candidates(rows),
            history_lengths=torch.from_numpy(end - begin),
            timestamps=timestamps,
            target_timestamps=None if events.times is None else gather(events.times, end, target_end),
            columns=columns,
        )


class SampledCandidates:
    """Draws [B, T + count] candidates: the targets, then items that are neither among them nor in the history.

    Items are drawn without replacement by weight. A row's draw depends on (seed, user) only.

    Args:
        items: [E] ids of the log.
        part: histories and targets.
        weights: [num_items + 1], chance of each item; index 0 is ignored.
        count: negatives of a row; fewer where the catalog has no more.
        seed: of the draw.
    """

    def __init__(self, items: np.ndarray, part: Histories, weights: np.ndarray, count: int, seed: int):
        weights = weights.astype(np.float64)
        weights[0] = 0.0
        self.items, self.part, self.count, self.seed = items, part, count, seed
        self._weights, self._upto = weights, np.cumsum(weights)

    def __call__(self, rows: np.ndarray) -> Tensor:
        targets = gather(self.items, self.part.history_end[rows], self.part.target_end[rows])
        negatives = torch.zeros(len(rows), self.count, dtype=torch.long)
        for i, row in enumerate(rows):
            found = self._negatives(int(row))
            negatives[i, : len(found)] = torch.from_numpy(found)
        return torch.cat([targets, negatives], 1)

    def _negatives(self, row: int) -> np.ndarray:
        """Draws the negatives of a row.

        Draws with replacement are draws without, once repeated ones are passed over. So a few of them are made first,
        and all items are gone through only for what is then missing.
        """
        part, count = self.part, self.count
        generator = np.random.default_rng([self.seed, int(part.user[row])])
        open_ = self._weights > 0
        open_[self.items[part.history_begin[row] : part.target_end[row]]] = False
        drawn = np.searchsorted(self._upto, generator.random(3 * count) * self._upto[-1], side="right")
        drawn = drawn[open_[drawn]]
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)[:count]]
        if len(drawn) == count:
            return drawn
        open_[drawn] = False
        left = np.flatnonzero(open_)
        # The largest of log(u) / w are a draw without replacement by weight w (Efraimidis and Spirakis, 2006).
        keys = np.log(generator.random(len(left))) / self._weights[left]
        return np.concatenate([drawn, left[np.argsort(-keys)[: count - len(drawn)]]])
