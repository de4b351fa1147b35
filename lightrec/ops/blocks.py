"""How much may be held at a time: one table of memory budgets, and the number of rows that fit one.

Large intermediate tensors are made in blocks of rows. On a CPU a block should stay in the cache. On a GPU it should be
large enough to fill the device, since launching a small one costs more than computing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

Purpose = Literal[
    "logits",
    "distances",
    "scores",
    "distributions",
    "gathered vectors",
    "attention weights",
    "scan states",
    "search",
    "counted scores",
    "encoded events",
    "tables",
]
_KIB, _MIB, _GIB = 2**10, 2**20, 2**30


class Budget(NamedTuple):
    """Bytes that one purpose may hold at a time."""

    cpu: int
    gpu: int
    cpu_thread: int | None = None
    """Bytes per thread, in place of `cpu`, where a CPU runs several threads."""


BUDGETS: dict[Purpose, Budget] = {
    # Two float32 blocks of 8 MiB stay in a core's share of the last-level cache. Small blocks leave a GPU idle.
    "logits": Budget(8 * _MIB, 256 * _MIB),
    # A block of logits and one of slopes, with the same cache.
    "distances": Budget(6 * _MIB, 256 * _MIB),
    # Scores of a geometry without a fused loss. They leave the cache anyway, so only memory is bounded.
    "scores": Budget(64 * _MIB, 64 * _MIB),
    # Several distributions are kept per score (log p, p and those of other states), so half of the scores.
    "distributions": Budget(32 * _MIB, 32 * _MIB),
    # Vectors fetched per negative. They are read once, so only memory is bounded.
    "gathered vectors": Budget(64 * _MIB, 64 * _MIB),
    # One thread keeps the weights of a block in its cache. Waking several threads costs more than leaving the cache.
    "attention weights": Budget(512 * _KIB, 512 * _KIB, cpu_thread=2 * _MIB),
    # About the second-level cache of a core, for the float32 states of a tile.
    "scan states": Budget(_MIB, _MIB),
    # Scores of a block of items while ranking the catalog, for any number of histories.
    "search": Budget(64 * _MIB, 64 * _MIB),
    # Scores of a block of histories over the whole catalog, in float64.
    "counted scores": Budget(64 * _MIB, 64 * _MIB),
    # One vector per event of histories of unequal length. Padding costs a CPU more than a call, and a GPU less.
    "encoded events": Budget(4 * _MIB, 128 * _MIB),
    # Tables that stay beside the model. Larger ones remain in main memory, and a step fetches what it needs.
    "tables": Budget(2 * _GIB, 2 * _GIB),
}

_overrides: dict[str, int] = {}


def rows_that_fit(
    bytes_per_row: int, device: torch.device, purpose: Purpose, least: int = 1, most: int | None = None
) -> int:
    """Returns how many rows of a block fit the budget of a purpose.

    Args:
        bytes_per_row: size of one row of the block.
        device: where the block is made.
        purpose: name of the budget.
        least: fewest rows, even where they do not fit.
        most: most rows on a CPU, where more gain nothing. A GPU takes all that fit.

    Raises:
        ValueError: the purpose is unknown.
    """
    rows = max(least, bytes_for(purpose, device) // max(1, bytes_per_row))
    return rows if most is None or device.type != "cpu" else min(most, rows)


def bytes_for(purpose: Purpose, device: torch.device) -> int:
    """Returns the bytes that a purpose may hold at a time on a device.

    Raises:
        ValueError: the purpose is unknown.
    """
    if purpose in _overrides:
        return _overrides[purpose]
    found = _known(purpose)
    if device.type != "cpu":
        return found.gpu
    threads = 1 if found.cpu_thread is None else torch.get_num_threads()
    return found.cpu if threads == 1 else found.cpu_thread * threads


@contextmanager
def budget(purpose: Purpose, num_bytes: int) -> Iterator[None]:
    """Gives a purpose another budget inside a `with`, on every device and for every thread.

    Args:
        purpose: name of the budget.
        num_bytes: bytes that it may hold at a time.

    Raises:
        ValueError: the purpose is unknown.
    """
    _known(purpose)
    before = _overrides.get(purpose)
    _overrides[purpose] = num_bytes
    try:
        yield
    finally:
        del _overrides[purpose]
        if before is not None:
            _overrides[purpose] = before


def _known(purpose: str) -> Budget:
    if purpose not in BUDGETS:
        raise ValueError(f"purpose {purpose!r} is unknown; choose {', '.join(BUDGETS)}.")
    return BUDGETS[purpose]
