"""BatchLoader: cuts windows out of the long array when a batch is asked for. Nothing is copied before.

It is a plain iterable on purpose: a batch costs a few vectorised calls, less than handing it between processes would,
and Lightning leaves iterables alone, while it would shard a DataLoader with a sampler that counts rows twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lightrec.data.batch import Batch, Column
from lightrec.data.splits import Part
from lightrec.errors import InputError

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
            every event but a user's first is a target once; `prefixes`, one row for each event but the first;
            `sessions`, each event with the one before it, oldest first.
    """
    length = train.end - train.begin
    if mode == "sessions":
        owner = np.repeat(np.arange(len(length)), np.maximum(0, length - 1))
        begin = train.begin[owner] + _count_up(np.maximum(0, length - 1))
        return Windows(train.user[owner], begin, begin + 2)
    if mode == "last":
        keep = length >= 2
        begin = np.maximum(train.begin, train.end - max_length - 1)
        return Windows(train.user[keep], begin[keep], train.end[keep])
    stride = max_length if mode == "all" else 1
    rows = np.maximum(0, -(-(length - 1) // stride))  # how many rows each user gives
    owner = np.repeat(np.arange(len(length)), rows)
    back = _count_up(rows)  # 0 for a user's most recent row
    end = train.end[owner] - back * stride
    begin = np.maximum(train.begin[owner], end - max_length - 1)
    return Windows(train.user[owner], begin, end)


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., n - 1 for each n of `lengths`, joined."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def sample_prefixes(windows: Windows, count: int, seed: int) -> tuple[np.ndarray, Callable[[int], np.ndarray]]:
    """Draws at most `count` prefixes of each user anew for every epoch, a function of (seed, epoch).

    The prefixes of a user, from the whole history down to two events, are cut into `count` parts of equal number (one
    more or less), and one is drawn from each: every prefix is drawn equally often in the long run, and an epoch is
    never without long or short ones. A part has a longest prefix, so batches can be planned before anything is drawn.

    Args:
        windows: rows of `training_windows(..., "prefixes")`.
        count: most prefixes of a user in an epoch.
        seed: of the draws.

    Returns:
        [S] items of the longest prefix of each part, and a function from epoch to [S] row numbers.
    """
    begins = np.flatnonzero(np.diff(windows.user, prepend=-1))
    rows = np.diff(begins, append=len(windows))
    parts = np.minimum(rows, count)
    owner = np.repeat(np.arange(len(rows)), parts)
    nth = _count_up(parts)
    first = nth * rows[owner] // parts[owner]  # counted from the most recent, which is the longest
    size = (nth + 1) * rows[owner] // parts[owner] - first
    first = first + begins[owner]

    def draw(epoch: int) -> np.ndarray:
        # the third number keeps these draws apart from those that order the batches
        return first + (np.random.default_rng([seed, epoch, 1]).random(len(first)) * size).astype(np.int64)

    return (windows.end - windows.begin)[first], draw


def drawn_plan(
    plan: Callable[[int], list[np.ndarray]], draw: Callable[[int], np.ndarray]
) -> Callable[[int], list[np.ndarray]]:
    """Plans with the rows that `draw` gives for an epoch in the places of those that `plan` gives."""

    def drawn(epoch: int) -> list[np.ndarray]:
        rows = draw(epoch)
        return [rows[places] for places in plan(epoch)]

    return drawn


class BatchLoader:
    """Iterates over batches; knows its length, its epoch and where it stands.

    A pass begins at the first batch of its epoch, however the pass before ended (a limit, a sanity check, an error),
    unless `load_state_dict` told it where to go on.

    Args:
        make: builds a batch from row numbers.
        plan: gives the row numbers of every batch of an epoch, for this process; equally many in every epoch.
        epoch: the epoch to begin with; a callable is asked at every start (the Trainer knows best).
        done: how many batches of this epoch were learned from; None counts those that were handed out. An error can
            fall between the two, and a checkpoint of that moment must not skip the batch.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Batch],
        plan: Callable[[int], list[np.ndarray]],
        epoch: int | Callable[[], int] = 0,
        done: Callable[[], int] | None = None,
    ):
        self._make, self._plan, self._epoch, self._done = make, plan, epoch, done
        self._taken = 0
        self._resume: dict | None = None
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
        # A generator, so that nothing happens before the first batch is taken: the Trainer asks for an iterator when it
        # does not know its epoch yet, and may ask again.
        planned, resume, self._resume = self.batches(), self._resume, None
        start = resume["next"] if resume and resume.get("epoch", self.epoch) == self.epoch else 0
        for i in range(start, len(planned)):
            batch = self._make(planned[i])
            self._taken = (i + 1) % len(planned)
            yield batch

    def state_dict(self) -> dict:
        """Returns where the pass stands, so that a new loader goes on with the next batch."""
        taken = self._taken if self._done is None else self._done()
        return {"epoch": self.epoch, "next": taken, "batches": len(self)}

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            InputError: it was taken within an epoch of another number of batches.
        """
        if not callable(self._epoch):
            self._epoch = state.get("epoch", self._epoch)
        batches = state.get("batches", len(self))
        if 0 < state["next"] < batches != len(self):
            raise InputError(
                f"the checkpoint stands at batch {state['next']} of {batches} in its epoch, but an epoch now has "
                f"{len(self)} batches: resume with the --data flags and --trainer.devices of that run, or from an "
                "epoch's end."
            )
        self._resume, self._taken = state, state["next"]


def bucketed_plan(
    lengths: np.ndarray,
    batch_size: int,
    batch_tokens: int | None,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> Callable[[int], list[np.ndarray]]:
    """Plans training epochs: shuffled, then rows of like length together, so that little is padded.

    The order is a function of (seed, epoch, world), the number of batches of (lengths, limits, world) only: a Trainer
    counts batches once, and would cut longer epochs and never validate after shorter ones. All processes plan the same
    global batches, of `world` times `batch_size` rows, and take every `world`-th row. A batch of fewer rows than there
    are processes lends some of them twice, so that nobody has nothing to do.

    Args:
        lengths: [R], items of each row.
        batch_size: most rows in a batch of one process.
        batch_tokens: most padded items in a batch of one process (a longer row is a batch of its own); None leaves it
            to `batch_size`.
        seed: of the shuffle.
        rank: this process.
        world: number of processes.
    """
    size = batch_size * world
    if batch_tokens is None:
        pools = partial(_random_pools, lengths, size)
    else:
        pools = _even_pools(lengths, size, batch_tokens, world)

    def plan(epoch: int) -> list[np.ndarray]:
        draw = np.random.default_rng([seed, epoch])
        batches = pools(draw)
        batches = [batches[i] for i in draw.permutation(len(batches))]
        if world == 1:
            return batches
        return [(rows if len(rows) >= world else np.resize(rows, world))[rank::world] for rows in batches]

    return plan


def _random_pools(lengths: np.ndarray, size: int, draw: np.random.Generator) -> list[np.ndarray]:
    """Sorts pools of random rows by length and cuts them into batches of `size` rows.

    Lengths are blurred by a tenth first: a small log is one pool, and the same rows would meet in every epoch.
    """
    order = draw.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), size * _POOL):
        pool = order[start : start + size * _POOL]
        pool = pool[np.argsort(lengths[pool] * draw.uniform(0.9, 1.1, len(pool)), kind="stable")]
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return batches


def _even_pools(
    lengths: np.ndarray, size: int, tokens: int, world: int
) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Cuts pools that all have rows of about the same lengths, at the same places in every epoch.

    The rows, in order of length, are dealt to the pools at random, one each in every round; a round is as long as its
    longest row. So the places of the cuts depend on the lengths only, and with them the number of batches.
    """
    by_length = np.argsort(lengths, kind="stable")
    num_pools = max(1, -(-len(lengths) // (size * _POOL)))
    empty = -len(lengths) % num_pools  # places of the first round that stay empty
    width = lengths[by_length][num_pools - 1 - empty :: num_pools]
    cuts = [0]
    for i in range(len(width)):
        rows = i + 1 - cuts[-1]
        if rows > 1 and (rows > size or -(-rows // world) * width[i] > tokens):
            cuts.append(i)

    def pools(draw: np.random.Generator) -> list[np.ndarray]:
        order = draw.permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]  # equal lengths meet others in every epoch
        rounds = np.concatenate([np.full(empty, -1), order]).reshape(-1, num_pools)
        columns = draw.permuted(rounds, axis=1).T
        batches = [rows for pool in columns for rows in np.split(pool, cuts[1:])]
        batches = [rows[rows >= 0] for rows in batches]
        return [rows for rows in batches if len(rows)]

    return pools


def session_plan(users: np.ndarray, order: np.ndarray | None, batch_size: int) -> Callable[[int], list[np.ndarray]]:
    """Plans the session-parallel batches of GRU4Rec: `batch_size` sessions run side by side, each going on by one event
    a batch; a session that ends makes room for the next. The same in every epoch.

    Args:
        users: [R] whose events the rows of `training_windows(..., "sessions")` are.
        order: [S] when each session begins, to run them in that order (ties as they stand); None as they stand.
        batch_size: sessions side by side.
    """
    begins = np.flatnonzero(np.diff(users, prepend=-1))
    lengths = np.diff(begins, append=len(users))
    ranks = np.arange(len(begins)) if order is None else np.argsort(order, kind="stable")
    free = [(0, slot) for slot in range(min(batch_size, len(begins)))]  # when a slot is free; a heap
    starts, slots = np.zeros(len(begins), np.int64), np.zeros(len(begins), np.int64)
    for session in ranks:
        time, slot = free[0]
        starts[session], slots[session] = time, slot
        heapq.heapreplace(free, (time + int(lengths[session]), slot))
    steps = np.repeat(starts, lengths) + _count_up(lengths)
    rows = np.lexsort((np.repeat(slots, lengths), steps))
    batches = np.split(rows, np.flatnonzero(np.diff(steps[rows])) + 1)
    return lambda epoch: batches


def exact_plan(
    lengths: np.ndarray, batch_size: int, rank: int = 0, world: int = 1
) -> Callable[[int], list[np.ndarray]]:
    """Plans an evaluation: by length, every row on exactly one process, at least one (perhaps empty) batch on each.

    Args:
        lengths: [R], whole histories: what is seen is padded too, and is longer than what is shown.
        batch_size: rows in a batch.
        rank: this process.
        world: number of processes.
    """
    order = np.argsort(lengths, kind="stable")[rank::world]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)] or [order]
    return lambda epoch: batches


def gather(array: np.ndarray, begin: np.ndarray, end: np.ndarray) -> torch.Tensor:
    """Cuts rows array[begin:end] into a right-padded int64 tensor [B, longest]; [0, 1] if there is no row, because a
    recurrent network takes an empty batch but no empty sequence."""
    lengths = end - begin
    width = int(lengths.max()) if len(lengths) else 1
    column = np.arange(width)
    inside = column < lengths[:, None]
    places = np.minimum(begin[:, None] + column, max(0, len(array) - 1))
    return torch.from_numpy(np.where(inside, array[places], 0).astype(np.int64, copy=False))


def training_batches(log: Log, windows: Windows, session_begins: np.ndarray | None = None):
    """Returns a function from row numbers to a training batch.

    Args:
        log: items and, for models that want them, times.
        windows: rows.
        session_begins: [R] bool, rows where a session begins; goes into the batch's columns.
    """

    def make(rows: np.ndarray) -> Batch:
        begin, end = windows.begin[rows], windows.end[rows]
        columns = {}
        if session_begins is not None:
            columns["session_begins"] = Column(torch.from_numpy(session_begins[rows]), per="row")
        return Batch(
            item_ids=gather(log.items, begin, end),
            lengths=torch.from_numpy(end - begin),
            user_ids=torch.from_numpy(windows.user[rows]),
            timestamps=None if log.times is None else gather(log.times, begin, end),
            columns=columns,
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

    Draws with replacement are draws without, once repeated ones are passed over; so a few of them are made first, and
    all items are gone through only for what is then missing.

    Args:
        log: items.
        part: histories and targets.
        weights: [num_items + 1], chance of each item; index 0 is ignored.
        count: negatives of a row; fewer where the catalog has no more.
        seed: of the draw.
    """
    weights = weights.astype(np.float64)
    weights[0] = 0.0
    upto = np.cumsum(weights)

    def draw(row: int) -> np.ndarray:
        generator = np.random.default_rng([seed, int(part.user[row])])
        open_ = weights > 0
        open_[log.items[part.begin[row] : part.stop[row]]] = False
        drawn = np.searchsorted(upto, generator.random(3 * count) * upto[-1], side="right")
        drawn = drawn[open_[drawn]]
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)[:count]]
        if len(drawn) == count:
            return drawn
        open_[drawn] = False
        left = np.flatnonzero(open_)
        # the largest of log(u) / w are a draw without replacement by weight w (Efraimidis and Spirakis, 2006)
        keys = np.log(generator.random(len(left))) / weights[left]
        return np.concatenate([drawn, left[np.argsort(-keys)[: count - len(drawn)]]])

    def make(rows: np.ndarray) -> torch.Tensor:
        targets = gather(log.items, part.end[rows], part.stop[rows])
        negatives = torch.zeros(len(rows), count, dtype=torch.long)
        for i, row in enumerate(rows):
            found = draw(int(row))
            negatives[i, : len(found)] = torch.from_numpy(found)
        return torch.cat([targets, negatives], 1)

    return make
