"""BatchLoader: cuts windows out of the long array when a batch is asked for. Nothing is copied before.

It is a plain iterable on purpose: a batch costs a few vectorised calls, less than handing it between processes would,
and Lightning leaves iterables alone, while it would shard a DataLoader with a sampler that counts rows twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lightrec.data.batch import Batch
from lightrec.data.splits import Part

_POOL = 16  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class Log:
    """The arrays that batches are cut from."""

    items: np.ndarray
    times: np.ndarray | None = None


@dataclass(frozen=True)
class Windows:
    """Training rows: row i is items[begin[i]:end[i]], at least two and at most max_length + 1 of them."""

    user: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def training_windows(train: Part, max_length: int, mode: str) -> Windows:
    """Cuts the training histories into rows.

    Args:
        train: histories.
        max_length: inputs of a row; one more item is its last target.
        mode: `last`, the most recent window of each user; `all`, consecutive windows that overlap by one item, so that
            every event but a user's first is a target once; `prefixes`, one row for each event but the first.
    """
    length = train.end - train.begin
    if mode == "last":
        keep = length >= 2
        begin = np.maximum(train.begin, train.end - max_length - 1)
        return Windows(train.user[keep], begin[keep], train.end[keep])
    stride = max_length if mode == "all" else 1
    rows = np.maximum(0, -(-(length - 1) // stride))  # how many rows each user gives
    owner = np.repeat(np.arange(len(length)), rows)
    back = np.arange(len(owner)) - np.repeat(np.cumsum(rows) - rows, rows)  # 0 for a user's most recent row
    end = train.end[owner] - back * stride
    begin = np.maximum(train.begin[owner], end - max_length - 1)
    return Windows(train.user[owner], begin, end)


class BatchLoader:
    """Iterates over batches; knows its length, its epoch and where it stands.

    Args:
        make: builds a batch from row numbers.
        plan: gives the row numbers of every batch of an epoch, for this process.
        epoch: the epoch to begin with; a callable is asked at every start (the Trainer knows best).
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Batch],
        plan: Callable[[int], list[np.ndarray]],
        epoch: int | Callable[[], int] = 0,
    ):
        self._make, self._plan, self._epoch = make, plan, epoch
        self._next = 0
        self._planned: tuple[int, list[np.ndarray]] | None = None

    @property
    def epoch(self) -> int:
        return self._epoch() if callable(self._epoch) else self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next pass has."""
        self._epoch = epoch

    def batches(self) -> list[np.ndarray]:
        """Returns the rows of every batch of the current epoch."""
        epoch = self.epoch
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        return self._planned[1]

    def __len__(self) -> int:
        return len(self.batches())

    def __iter__(self) -> Iterator[Batch]:
        planned, start = self.batches(), self._next
        self._next = 0
        for i in range(start, len(planned)):
            batch = self._make(planned[i])
            self._next = (i + 1) % len(planned)
            yield batch

    def state_dict(self) -> dict:
        """Returns where the pass stands, so that a new loader goes on with the next batch."""
        return {"next": self._next}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken."""
        self._next = int(state["next"])


def bucketed_plan(
    lengths: np.ndarray,
    batch_size: int,
    batch_tokens: int | None,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> Callable[[int], list[np.ndarray]]:
    """Plans training epochs: shuffled, then rows of like length together, so that little is padded.

    The order is a function of (seed, epoch, world). All processes plan the same global batches, of `world` times
    `batch_size` rows, and take every `world`-th row; a batch that does not divide lends some of its rows twice, so that
    every process has equally many.

    Args:
        lengths: [R], items of each row.
        batch_size: most rows in a batch of one process.
        batch_tokens: most padded items in a batch of one process; None leaves it to `batch_size`.
        seed: of the shuffle.
        rank: this process.
        world: number of processes.
    """

    def plan(epoch: int) -> list[np.ndarray]:
        draw = np.random.default_rng([seed, epoch])
        order = draw.permutation(len(lengths))
        size = batch_size * world
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size * _POOL):
            pool = order[start : start + size * _POOL]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += _cut(pool, lengths[pool], size, None if batch_tokens is None else batch_tokens * world)
        batches = [batches[i] for i in draw.permutation(len(batches))]
        if world == 1:
            return batches
        return [np.resize(rows, -(-len(rows) // world) * world)[rank::world] for rows in batches]

    return plan


def _cut(rows: np.ndarray, lengths: np.ndarray, size: int, tokens: int | None) -> list[np.ndarray]:
    if tokens is None:
        return [rows[i : i + size] for i in range(0, len(rows), size)]
    out, start = [], 0
    for i in range(1, len(rows) + 1):  # sorted, so the last row of a batch is its longest
        if i == len(rows) or i - start >= size or (i - start + 1) * lengths[i] > tokens:
            out.append(rows[start:i])
            start = i
    return out


def exact_plan(
    lengths: np.ndarray, batch_size: int, rank: int = 0, world: int = 1
) -> Callable[[int], list[np.ndarray]]:
    """Plans an evaluation: by length, every row on exactly one process, at least one (perhaps empty) batch on each."""
    order = np.argsort(lengths, kind="stable")[rank::world]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)] or [order]
    return lambda epoch: batches


def gather(array: np.ndarray, begin: np.ndarray, end: np.ndarray) -> torch.Tensor:
    """Cuts rows array[begin:end] into a right-padded int64 tensor [B, longest]."""
    lengths = end - begin
    width = int(lengths.max()) if len(lengths) else 0
    column = np.arange(width)
    inside = column < lengths[:, None]
    places = np.minimum(begin[:, None] + column, max(0, len(array) - 1))
    return torch.from_numpy(np.where(inside, array[places], 0).astype(np.int64, copy=False))


def training_batches(log: Log, windows: Windows) -> Callable[[np.ndarray], Batch]:
    """Returns a function from row numbers to a training batch."""

    def make(rows: np.ndarray) -> Batch:
        begin, end = windows.begin[rows], windows.end[rows]
        return Batch(
            item_ids=gather(log.items, begin, end),
            lengths=torch.from_numpy(end - begin),
            user_ids=torch.from_numpy(windows.user[rows]),
            timestamps=None if log.times is None else gather(log.times, begin, end),
        )

    return make


def evaluation_batches(
    log: Log,
    part: Part,
    max_length: int,
    exclude_seen: bool,
    candidates: Callable[[np.ndarray], torch.Tensor] | None = None,
) -> Callable[[np.ndarray], Batch]:
    """Returns a function from row numbers to an evaluation batch.

    Args:
        log: items and, for models that want them, times.
        part: histories and targets.
        max_length: most recent items that are shown to the model.
        exclude_seen: whether the whole history is left out of the ranking.
        candidates: gives [B, C] items to rank for row numbers; None is the full catalog.
    """

    def make(rows: np.ndarray) -> Batch:
        begin, end, stop = part.begin[rows], part.end[rows], part.stop[rows]
        window = np.maximum(begin, end - max_length)
        return Batch(
            item_ids=gather(log.items, window, end),
            lengths=torch.from_numpy(end - window),
            user_ids=torch.from_numpy(part.user[rows]),
            target_ids=gather(log.items, end, stop),
            seen_ids=gather(log.items, begin, end) if exclude_seen else None,
            candidate_ids=None if candidates is None else candidates(rows),
            history_lengths=torch.from_numpy(end - begin),
            timestamps=None if log.times is None else gather(log.times, window, end),
            target_timestamps=None if log.times is None else gather(log.times, end, stop),
        )

    return make


def sampled_candidates(
    log: Log, part: Part, weights: np.ndarray, count: int, seed: int
) -> Callable[[np.ndarray], torch.Tensor]:
    """Returns a function from row numbers to candidates [B, T + count]: the targets, then items that are neither among
    them nor in the history, drawn without replacement by weight. A row's draw depends on (seed, user) only.

    Args:
        log: items.
        part: histories and targets.
        weights: [num_items + 1], chance of each item; index 0 is ignored.
        count: negatives of a row; fewer where the catalog has no more.
        seed: of the draw.
    """
    weights = weights.astype(np.float64)
    weights[0] = 0.0

    def draw(row: int) -> np.ndarray:
        own = weights.copy()
        own[log.items[part.begin[row] : part.stop[row]]] = 0.0
        # the largest of log(u) / w are a draw without replacement by weight w (Efraimidis and Spirakis, 2006)
        keys = np.full(len(own), -np.inf)
        open_ = own > 0
        noise = np.random.default_rng([seed, int(part.user[row])]).random(len(own))
        keys[open_] = np.log(noise[open_]) / own[open_]
        best = np.argpartition(-keys, min(count, len(keys) - 1))[:count]
        return best[np.isfinite(keys[best])]

    def make(rows: np.ndarray) -> torch.Tensor:
        targets = gather(log.items, part.end[rows], part.stop[rows])
        negatives = torch.zeros(len(rows), count, dtype=torch.long)
        for i, row in enumerate(rows):
            found = draw(int(row))
            negatives[i, : len(found)] = torch.from_numpy(found)
        return torch.cat([targets, negatives], 1)

    return make
