"""Splits: which events are learned from, which are asked for. Histories and targets are ranges of one long array."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import ClassVar, Literal

import numpy as np

from lightrec.configurable import Configurable
from lightrec.data.named import by_name
from lightrec.data.prepared import Prepared
from lightrec.errors import InputError

TimelineTargets = Literal["first", "all"]


@dataclass(frozen=True)
class Histories:
    """Rows of one part: histories, and what is asked after each.

    The history of row r is items[history_begin[r]:history_end[r]]. Its targets are items[history_end[r]:target_end[r]].
    """

    user: np.ndarray
    """[R] int64."""
    history_begin: np.ndarray
    """[R] int64."""
    history_end: np.ndarray
    """[R] int64."""
    target_end: np.ndarray
    """[R] int64; `history_end` where nothing is asked."""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> np.ndarray:
        """[R] int64, events of each history."""
        return self.history_end - self.history_begin


@dataclass(frozen=True)
class Parts:
    """A log that was split."""

    train: Histories
    """One row per user, in order of users, and no targets: the histories are what is learned from."""
    val: Histories
    test: Histories
    facts: dict
    """What the protocol record says of the split; primitives."""


class Split(Configurable, ABC):
    """Divides a log into training, validation and test.

    A plug-in brings one by a subclass and an entry point of the group `lightrec.splits`.
    """

    prefix = "--data."
    tag: ClassVar[str] = ""
    """Tag of its protocol where the full catalog is ranked (docs/protocols.md); empty: P3 or P4."""

    @property
    def name(self) -> str:
        """What the protocol record calls it."""
        return type(self).__name__

    @abstractmethod
    def parts(self, prepared: Prepared) -> Parts:
        """Splits a prepared log.

        Raises:
            InputError: the log cannot be split in this way.
        """

    def why_nobody(self, part: str, prepared: Prepared, parts: Parts) -> str:
        """Says in a sentence why nobody is asked in `part`, `validation` or `test`."""
        return f"no user to ask in the {part} part: --data.split {self.name} puts none of {prepared.num_users} there."

    def remark(self) -> str:
        """Returns what should be known before training on it; empty if nothing is."""
        return ""


class LeaveOneOut(Split):
    """Asks for the last event of each user, validates on the one before, trains on the rest.

    The validation event is part of the history at test time. Users with fewer than three events are only trained on.
    """

    name = "leave_one_out"

    def parts(self, prepared: Prepared) -> Parts:
        return leave_one_out(prepared.offsets)

    def why_nobody(self, part: str, prepared: Prepared, parts: Parts) -> str:
        return (
            f"no user to ask in the {part} part: of {prepared.num_users} users the longest history has "
            f"{np.diff(prepared.offsets).max()} events, and --data.split leave_one_out needs 3."
        )

    def remark(self) -> str:
        return (
            "leave_one_out: comparable with the literature; it learns from events later than some targets "
            "(--data.split global_timeline does not)."
        )


class GlobalTimeline(Split):
    """Cuts all histories at two moments: trains before the first, validates between, tests from the second on.

    Nothing is learned from the future. A user without history before a cut is left out of its part and counted.

    Args:
        val_from: begin of the validation window: ISO date, epoch seconds, or share of events before it.
        test_from: begin of the test window, in the same forms.
        timeline_targets: ask for the first event of the window, or for all.
    """

    name = "global_timeline"
    tag = "P5"

    def __init__(
        self,
        val_from: str | float = 0.8,
        test_from: str | float = 0.9,
        timeline_targets: TimelineTargets = "first",
    ):
        self.val_from, self.test_from, self.timeline_targets = val_from, test_from, timeline_targets

    def parts(self, prepared: Prepared) -> Parts:
        return global_timeline(prepared.offsets, prepared.times, self.val_from, self.test_from, self.timeline_targets)

    def why_nobody(self, part: str, prepared: Prepared, parts: Parts) -> str:
        short, facts, times = "val" if part == "validation" else "test", parts.facts, prepared.times
        return (
            f"no user to ask in the {part} part: {facts['users_without_history'][short]} of {prepared.num_users} users "
            f"have events in it (--data.{short}_from is {date(facts[f'{short}_from'])}) and none of them any before; "
            f"the log runs from {date(times.min())} to {date(times.max())}."
        )


BUILT_IN: dict[str, type[Split]] = {kind.name: kind for kind in (LeaveOneOut, GlobalTimeline)}


def find_split(given: Split | str) -> Split:
    """Returns a split as it is, or that of a short name with its defaults.

    Raises:
        InputError: there is no such split.
    """
    return given if isinstance(given, Split) else by_name(given, "--data.split", "splits", BUILT_IN)


def leave_one_out(offsets: np.ndarray) -> Parts:
    """Splits histories as `LeaveOneOut` says.

    Args:
        offsets: [num_users + 1], user u owns the events offsets[u] to offsets[u + 1].
    """
    begin, end = offsets[:-1], offsets[1:]
    length = end - begin
    user = np.arange(len(begin))
    asked = user[length >= 3]
    train_end = np.where(length >= 3, end - 2, end)
    return Parts(
        train=Histories(user, begin, train_end, train_end),
        val=Histories(asked, begin[asked], end[asked] - 2, end[asked] - 1),
        test=Histories(asked, begin[asked], end[asked] - 1, end[asked]),
        facts={"users_trained_on_only": int((length < 3).sum())},
    )


def global_timeline(
    offsets: np.ndarray,
    times: np.ndarray | None,
    val_from: str | float,
    test_from: str | float,
    targets: TimelineTargets = "first",
) -> Parts:
    """Splits histories as `GlobalTimeline` says.

    Items that training never saw stay among the targets. The protocol record counts them.

    Args:
        offsets: [num_users + 1].
        times: [num_events] seconds.
        val_from: ISO date (UTC where it names no zone), epoch seconds, or the share of events (between 0 and 1) that
            come before.
        test_from: the same for the test window.
        targets: ask for the first event of the window or for all of them.

    Raises:
        InputError: no times, or cuts that are not moments or not in order.
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
    val_at, test_at = (begin + _count_before(offsets, times, cut) for cut in cuts)
    val, val_new = _ask_in_window(begin, val_at, test_at, targets)
    test, test_new = _ask_in_window(begin, test_at, end, targets)
    facts = {
        "val_from": cuts[0],
        "test_from": cuts[1],
        "timeline_targets": targets,
        "users_without_history": {"val": val_new, "test": test_new},
    }
    return Parts(Histories(np.arange(len(begin)), begin, val_at, val_at), val, test, facts)


def _ask_in_window(
    begin: np.ndarray, cut: np.ndarray, window_end: np.ndarray, targets: TimelineTargets
) -> tuple[Histories, int]:
    """Asks every user with history before `cut` for events from `cut` to `window_end`; counts those without history."""
    active = window_end > cut
    asked = active & (cut > begin)
    target_end = window_end if targets == "all" else np.minimum(cut + 1, window_end)
    user = np.flatnonzero(asked)
    return Histories(user, begin[asked], cut[asked], target_end[asked]), int((active & ~asked).sum())


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
            raise _not_a_moment(value, flag) from None
        return math.ceil((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp())
    if 0 < number < 1:
        place = int(number * len(times))
        return int(np.partition(times, place)[place])
    if not math.isfinite(number) or abs(number) <= 1:  # 0, 1 or a negative share
        raise _not_a_moment(value, flag)
    return math.ceil(number)  # an event of second t is before every moment after t


def _not_a_moment(value: str | float, flag: str) -> InputError:
    return InputError(f"--data.{flag} {value!r} is not a date, epoch seconds or a share between 0 and 1.")


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


def count_seen(items: np.ndarray, part: Histories, num_items: int) -> int:
    """Counts the targets of a part that are in the history before them, which no ranking without seen items can hit."""
    seen = 0
    for first in range(0, len(part), 4096):
        rows = slice(first, first + 4096)
        begin, end, last = part.history_begin[rows], part.history_end[rows], part.target_end[rows]
        row = np.arange(len(begin))
        history, targets = (
            np.repeat(row, stop - start) * (num_items + 1)
            + np.asarray(items[np.repeat(start, stop - start) + _within(stop - start)], dtype=np.int64)
            for start, stop in ((begin, end), (end, last))
        )
        seen += int(np.isin(targets, history).sum())
    return seen


def _within(lengths: np.ndarray) -> np.ndarray:
    """Returns 0, 1, ... within each of several ranges, one after another."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
