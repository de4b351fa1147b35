"""Rows: what one training row is, and which rows are together in a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from lightrec.configurable import AtLeast, Configurable
from lightrec.data.batches.plans import Batching, BucketedPlan, DrawnPlan, Plan, PrefixDraw, session_plan
from lightrec.data.batches.windows import Windows, event_pairs, last_windows, strided_windows
from lightrec.data.named import by_name
from lightrec.data.splits import Histories


class Rows(Configurable, ABC):
    """Turns training histories into rows of a training batch.

    A plug-in brings one by a subclass and an entry point of the group `lightrec.rows`.
    """

    prefix = "--data."
    one_process: ClassVar[bool] = False
    """Whether the order of rows is lost if several processes share them."""

    @property
    def name(self) -> str:
        """What the protocol record and `Corpus.train_windows` call it."""
        return type(self).__name__

    @property
    def facts(self) -> dict[str, Any]:
        """What the protocol record says beside the name; primitives."""
        return {}

    @abstractmethod
    def windows(self, train: Histories, max_length: int) -> Windows:
        """Cuts the training histories into rows.

        Args:
            train: histories.
            max_length: inputs of a row; one more item is its last target.
        """

    def plan(self, windows: Windows, times: np.ndarray | None, batching: Batching) -> Plan:
        """Says which rows are together: rows of like length, in a new order in every epoch.

        Args:
            windows: the rows.
            times: [E] int64, seconds of all events of the log; None where it has none.
            batching: size, token budget, seed and share of this process.
        """
        return BucketedPlan(windows.lengths, batching)


class LastWindow(Rows):
    """The most recent window of each user."""

    name = "last"

    def windows(self, train: Histories, max_length: int) -> Windows:
        return last_windows(train, max_length)


class AllWindows(Rows):
    """Consecutive windows over the whole history, so that every event but a user's first is a target once."""

    name = "all"

    def windows(self, train: Histories, max_length: int) -> Windows:
        return strided_windows(train, max_length, stride=max_length)


class Prefixes(Rows):
    """One row per event but a user's first, predicted from what came before.

    Args:
        per_user: draw at most so many rows of each user anew in every epoch; all if not given.
    """

    name = "prefixes"
    prefix = "--data.prefixes_"  # the flag is --data.prefixes_per_user
    limits = {"per_user": AtLeast(1)}

    def __init__(self, per_user: int | None = None):
        self.per_user = per_user

    @property
    def facts(self) -> dict[str, Any]:
        return {"prefixes_per_user": self.per_user}

    def windows(self, train: Histories, max_length: int) -> Windows:
        return strided_windows(train, max_length, stride=1)

    def plan(self, windows: Windows, times: np.ndarray | None, batching: Batching) -> Plan:
        if self.per_user is None:
            return super().plan(windows, times, batching)
        draw = PrefixDraw(windows, self.per_user, batching.seed)
        return DrawnPlan(BucketedPlan(draw.longest, batching), draw)


class Sessions(Rows):
    """GRU4Rec's rows: batch_size users side by side in order of time, one event of each in a batch.

    A batch has the column `session_begins`, [B] bool: whether a row is the first of its user.
    """

    name = "sessions"
    one_process = True

    def windows(self, train: Histories, max_length: int) -> Windows:
        pairs = event_pairs(train)
        begins = np.diff(pairs.user, prepend=-1) != 0
        return Windows(pairs.user, pairs.begin, pairs.end, {"session_begins": begins})

    def plan(self, windows: Windows, times: np.ndarray | None, batching: Batching) -> Plan:
        begins = windows.columns["session_begins"]
        order = None if times is None else times[windows.begin[begins]]
        return session_plan(windows.user, order, batching.size)


BUILT_IN: dict[str, type[Rows]] = {kind.name: kind for kind in (LastWindow, AllWindows, Prefixes, Sessions)}


def find_rows(given: Rows | str) -> Rows:
    """Returns rows as they are, or those of a short name with their defaults.

    Raises:
        InputError: there are no such rows.
    """
    return given if isinstance(given, Rows) else by_name(given, "--data.train_windows", "rows", BUILT_IN)
