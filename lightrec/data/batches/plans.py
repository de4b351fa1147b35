"""Plans: which rows are together in a batch. A plan is called with an epoch and returns the row numbers of its batches.

A plan is a function of its arguments and the epoch. It has equally many batches in every epoch and in every process,
because a Trainer counts them once: it would cut longer epochs and never validate after shorter ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightrec.data.batches.windows import Windows, count_up

Plan = Callable[[int], list[np.ndarray]]
_POOL = 16  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class Batching:
    """How large training batches are, and which share of them this process has."""

    size: int
    """Most rows in a batch of one process."""
    tokens: int | None = None
    """Most padded items in a batch of one process; None leaves it to `size`. A longer row is a batch of its own."""
    seed: int = 0
    """Seed of the order."""
    rank: int = 0
    """Number of this process."""
    world: int = 1
    """Number of processes."""


class BucketedPlan:
    """Shuffles, then puts rows of like length together, so that little is padded.

    The order is a function of (seed, epoch, world), the number of batches of (lengths, limits, world) only. All
    processes plan the same global batches, of `world` times `size` rows, and take every `world`-th row. If a batch has
    fewer rows than there are processes, some rows are used twice so that every process has work.

    Args:
        lengths: [R], items of each row.
        batching: size, token budget, seed and share.
    """

    def __init__(self, lengths: np.ndarray, batching: Batching):
        self.batching = batching
        size = batching.size * batching.world
        if batching.tokens is None:
            self._pools = RandomPools(lengths, size)
        else:
            self._pools = EvenPools(lengths, size, batching.tokens, batching.world)

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rank, world = self.batching.rank, self.batching.world
        draw = np.random.default_rng([self.batching.seed, epoch])
        batches = self._pools(draw)
        batches = [batches[i] for i in draw.permutation(len(batches))]
        if world == 1:
            return batches
        return [(rows if len(rows) >= world else np.resize(rows, world))[rank::world] for rows in batches]


class RandomPools:
    """Sorts pools of random rows by length and cuts them into batches of `size` rows.

    Lengths are blurred by a tenth first. A small log is one pool, whose rows would meet the same ones in every epoch.
    """

    def __init__(self, lengths: np.ndarray, size: int):
        self.lengths, self.size = lengths, size

    def __call__(self, draw: np.random.Generator) -> list[np.ndarray]:
        lengths, size = self.lengths, self.size
        order = draw.permutation(len(lengths))
        batches = []
        for start in range(0, len(order), size * _POOL):
            pool = order[start : start + size * _POOL]
            pool = pool[np.argsort(lengths[pool] * draw.uniform(0.9, 1.1, len(pool)), kind="stable")]
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        return batches


class EvenPools:
    """Cuts pools that all have rows of about the same lengths, at the same places in every epoch.

    Cards explain it. The rows are sorted by length and dealt to P pools, one row to each pool per round. Within a
    round the pools are dealt to in random order. Row number r of a pool was therefore dealt in round r, whoever got
    it, and is at most as long as the longest row of that round. So where a pool is cut into batches can be decided
    from the rounds alone. The cuts, and with them the number of batches, are the same in every pool and every epoch.

    Args:
        lengths: [R], items of each row.
        size: most rows in a batch of all processes.
        tokens: most padded items in a batch of one process.
        world: number of processes.
    """

    def __init__(self, lengths: np.ndarray, size: int, tokens: int, world: int):
        self.lengths = lengths
        # A pool has the rows of 16 full batches, or less; a log without rows is one empty pool.
        self.num_pools = max(1, -(-len(lengths) // (size * _POOL)))
        # The rounds must be full, so the first one begins with places that stay empty.
        self.num_empty = -len(lengths) % self.num_pools
        # Rows come in order of length, so the longest of a round is its last one.
        ordered = np.sort(lengths, kind="stable")
        longest = ordered[self.num_pools - 1 - self.num_empty :: self.num_pools]
        self.cuts = self._cut(longest, size, tokens, world)

    @staticmethod
    def _cut(longest: np.ndarray, size: int, tokens: int, world: int) -> list[int]:
        """Returns the rounds at which a batch begins: as late as the limits allow."""
        cuts = [0]
        for i in range(len(longest)):
            rows = i + 1 - cuts[-1]  # of the batch, if it had round i too
            padded = -(-rows // world) * longest[i]  # items of the process that has most rows of it
            if rows > 1 and (rows > size or padded > tokens):
                cuts.append(i)
        return cuts

    def __call__(self, draw: np.random.Generator) -> list[np.ndarray]:
        # Shuffled before the stable sort, so that rows of equal length meet others in every epoch.
        order = draw.permutation(len(self.lengths))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        # One round per line, -1 for an empty place.
        rounds = np.concatenate([np.full(self.num_empty, -1), order]).reshape(-1, self.num_pools)
        # Each round is dealt in random order; then a pool is a column.
        pools = draw.permuted(rounds, axis=1).T
        batches = [rows for pool in pools for rows in np.split(pool, self.cuts[1:])]
        batches = [rows[rows >= 0] for rows in batches]
        return [rows for rows in batches if len(rows)]


class PrefixDraw:
    """Draws at most `count` prefixes of each user anew for every epoch, a function of (seed, epoch).

    The prefixes of a user, from the whole history down to two events, are cut into `count` parts of equal number (one
    more or less), and one is drawn from each: every prefix is drawn equally often in the long run, and an epoch is
    never without long or short ones. A part has a longest prefix, so batches can be planned before anything is drawn.

    Args:
        windows: one row per prefix, those of a user together, the longest first.
        count: most prefixes of a user in an epoch.
        seed: of the draws.
    """

    def __init__(self, windows: Windows, count: int, seed: int):
        self.seed = seed
        begins = np.flatnonzero(np.diff(windows.user, prepend=-1))
        rows = np.diff(begins, append=len(windows))
        parts = np.minimum(rows, count)
        owner = np.repeat(np.arange(len(rows)), parts)
        nth = count_up(parts)
        first = nth * rows[owner] // parts[owner]  # counted from the most recent, which is the longest
        self.size = (nth + 1) * rows[owner] // parts[owner] - first
        """[S] int64, prefixes in each part."""
        self.first = first + begins[owner]
        """[S] int64, row of the longest prefix of each part."""
        self.longest = windows.lengths[self.first]
        """[S] int64, items of that prefix."""

    def __call__(self, epoch: int) -> np.ndarray:
        """Returns [S] row numbers."""
        # The third number keeps these draws apart from those that order the batches.
        share = np.random.default_rng([self.seed, epoch, 1]).random(len(self.first))
        return self.first + (share * self.size).astype(np.int64)


class DrawnPlan:
    """Plans with the rows that `draw` gives for an epoch in the places of those that `plan` gives."""

    def __init__(self, plan: Plan, draw: Callable[[int], np.ndarray]):
        self.plan, self.draw = plan, draw

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rows = self.draw(epoch)
        return [rows[places] for places in self.plan(epoch)]


class FixedPlan:
    """Plans the same batches in every epoch."""

    def __init__(self, batches: list[np.ndarray]):
        self.batches = batches

    def __call__(self, epoch: int) -> list[np.ndarray]:
        return self.batches


def session_plan(users: np.ndarray, order: np.ndarray | None, batch_size: int) -> FixedPlan:
    """Plans the session-parallel batches of GRU4Rec: `batch_size` sessions run side by side, one event per batch.

    A session that ends makes room for the next.

    Args:
        users: [R] whose events the rows of `event_pairs` are.
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
    steps = np.repeat(starts, lengths) + count_up(lengths)
    rows = np.lexsort((np.repeat(slots, lengths), steps))
    return FixedPlan(np.split(rows, np.flatnonzero(np.diff(steps[rows])) + 1))


def exact_plan(lengths: np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> FixedPlan:
    """Plans an evaluation: by length, every row on exactly one process, at least one (perhaps empty) batch on each.

    Args:
        lengths: [R], whole histories: what is seen is padded too, and is longer than what is shown.
        batch_size: rows in a batch.
        rank: this process.
        world: number of processes.
    """
    order = np.argsort(lengths, kind="stable")[rank::world]
    return FixedPlan([order[i : i + batch_size] for i in range(0, len(order), batch_size)] or [order])
