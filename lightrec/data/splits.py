"""Splits: which events are learned from, which are asked for. Histories and targets are ranges of one long array."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

import numpy as np

from lightrec.errors import InputError

SplitName = Literal["leave_one_out", "global_timeline"]
TimelineTargets = Literal["first", "all"]


@dataclass(frozen=True)
class Part:
    """Rows of one part; all arrays [R] int64. The history of a row is items[begin:end], its targets items[end:stop]."""

    user: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Split:
    """The three parts; in `train` the history is what is learned from and there are no targets (stop = end)."""

    train: Part
    val: Part
    test: Part
    facts: dict
    """What the protocol record says of the split."""


def leave_one_out(offsets: np.ndarray) -> Split:
    """Asks for the last event of each user, validates on the one before, trains on the rest.

    The validation event is part of the history at test time. Users with fewer than three events are only trained on.
    """
    begin, end = offsets[:-1], offsets[1:]
    length = end - begin
    user = np.arange(len(begin))
    asked = user[length >= 3]
    train_end = np.where(length >= 3, end - 2, end)
    return Split(
        train=Part(user, begin, train_end, train_end),
        val=Part(asked, begin[asked], end[asked] - 2, end[asked] - 1),
        test=Part(asked, begin[asked], end[asked] - 1, end[asked]),
        facts={"split": "leave_one_out", "users_trained_on_only": int((length < 3).sum())},
    )


def global_timeline(
    offsets: np.ndarray,
    times: np.ndarray | None,
    val_from: str | float,
    test_from: str | float,
    targets: TimelineTargets = "first",
) -> Split:
    """Cuts all histories at two moments: trains before the first, validates between, tests from the second on.

    A user is asked for if there is history before the cut and an event in the window; users without history are left
    out and counted. Items that training never saw stay among the targets (the protocol record counts them).

    Args:
        offsets: [num_users + 1].
        times: [num_events] seconds.
        val_from: ISO date (UTC where it names no zone), epoch seconds, or the share of events (between 0 and 1) that
            come before.
        test_from: the same for the test window.
        targets: ask for the first event of the window or for all of them.

    Raises:
        InputError: no times, or cuts that are no moments or not in order.
    """
    if times is None:
        raise InputError(
            "--data.split global_timeline needs times and the log has none: name --data.time_column, or use "
            "--data.split leave_one_out, which needs only the order."
        )
    times = np.asarray(times)
    cuts = [_moment(value, times, flag) for value, flag in ((val_from, "val_from"), (test_from, "test_from"))]
    if cuts[0] >= cuts[1]:
        raise InputError(f"--data.val_from ({val_from}) must come before --data.test_from ({test_from}).")
    begin, end = offsets[:-1], offsets[1:]
    before_val, before_test = (_count_before(offsets, times, cut) for cut in cuts)
    val_at, test_at = begin + before_val, begin + before_test
    user = np.arange(len(begin))

    def part(cut: np.ndarray, window_end: np.ndarray) -> tuple[Part, int]:
        active = window_end > cut
        asked = active & (cut > begin)
        stop = window_end if targets == "all" else np.minimum(cut + 1, window_end)
        return Part(user[asked], begin[asked], cut[asked], stop[asked]), int((active & ~asked).sum())

    (val, val_new), (test, test_new) = part(val_at, test_at), part(test_at, end)
    facts = {
        "split": "global_timeline",
        "val_from": cuts[0],
        "test_from": cuts[1],
        "timeline_targets": targets,
        "users_without_history": {"val": val_new, "test": test_new},
    }
    return Split(Part(user, begin, val_at, val_at), val, test, facts)


def _count_before(offsets: np.ndarray, times: np.ndarray, cut: int) -> np.ndarray:
    """Counts the events of each user before a moment; within a user events are in order of time."""
    earlier = np.concatenate([[0], np.cumsum(times < cut)])
    return earlier[offsets[1:]] - earlier[offsets[:-1]]


def _moment(value: str | float, times: np.ndarray, flag: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        try:
            moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", str(value).strip()))  # Python 3.10 knows no Z
        except ValueError:
            raise _no_moment(value, flag) from None
        return math.ceil((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp())
    if 0 < number < 1:
        place = int(number * len(times))
        return int(np.partition(times, place)[place])
    if not math.isfinite(number) or abs(number) <= 1:  # 0, 1 or a negative share
        raise _no_moment(value, flag)
    return math.ceil(number)  # an event of second t is before every moment after t


def _no_moment(value: str | float, flag: str) -> InputError:
    return InputError(
        f"--data.{flag} {value!r} is no moment: expected an ISO date, epoch seconds or a share between 0 and 1."
    )


def date(seconds: int) -> str:
    """Writes epoch seconds for a person, in UTC."""
    try:
        return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):  # beyond the calendar, such as milliseconds taken for seconds
        return f"{int(seconds)} s"


def count_events(items: np.ndarray, begin: np.ndarray, end: np.ndarray, num_items: int) -> np.ndarray:
    """Counts the events of each item within the ranges [begin, end), which do not overlap: [num_items + 1] int64."""
    edges = np.zeros(len(items) + 1, dtype=np.int64)
    np.add.at(edges, begin, 1)
    np.add.at(edges, end, -1)
    return np.bincount(np.asarray(items)[np.cumsum(edges[:-1]) > 0], minlength=num_items + 1)
