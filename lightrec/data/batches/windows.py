"""Windows: which ranges of the log are training rows. Nothing is copied; a row is two numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lightrec.data.splits import Histories


@dataclass(frozen=True)
class Windows:
    """Training rows: row r is items[begin[r]:end[r]], at least two and at most max_length + 1 of them."""

    user: np.ndarray
    """[R] int64."""
    begin: np.ndarray
    """[R] int64."""
    end: np.ndarray
    """[R] int64."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """What else is known of the rows, each [R, ...]; goes into the columns of the batch."""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> np.ndarray:
        """[R] int64, items of each row."""
        return self.end - self.begin


def last_windows(train: Histories, max_length: int) -> Windows:
    """Returns the most recent window of each user.

    Args:
        train: histories.
        max_length: inputs of a row; one more item is its last target.
    """
    keep = train.lengths >= 2
    begin = np.maximum(train.history_begin, train.history_end - max_length - 1)
    return Windows(train.user[keep], begin[keep], train.history_end[keep])


def strided_windows(train: Histories, max_length: int, stride: int) -> Windows:
    """Returns a window for every `stride` events of each user, from the most recent backwards.

    With a stride of max_length the windows overlap by one item, so every event but a user's first is a target once.
    With a stride of 1 there is a window that ends with each event but the first.
    """
    rows = np.maximum(0, -(-(train.lengths - 1) // stride))  # of each user; rounded up
    owner = np.repeat(np.arange(len(train)), rows)
    back = count_up(rows)  # 0 for a user's most recent row
    end = train.history_end[owner] - back * stride
    begin = np.maximum(train.history_begin[owner], end - max_length - 1)
    return Windows(train.user[owner], begin, end)


def event_pairs(train: Histories) -> Windows:
    """Returns each event with the one before it, oldest first."""
    pairs = np.maximum(0, train.lengths - 1)  # of each user
    owner = np.repeat(np.arange(len(train)), pairs)
    begin = train.history_begin[owner] + count_up(pairs)
    return Windows(train.user[owner], begin, begin + 2)


def count_up(lengths: np.ndarray) -> np.ndarray:
    """Returns 0, 1, ..., n - 1 for each n of `lengths`, joined."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
