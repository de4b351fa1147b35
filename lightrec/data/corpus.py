"""Corpus: everything that the data tell a model, as one value. A part receives it in `connect`, before training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightrec.data.catalog import Catalog
from lightrec.data.prepared import EventColumn

if TYPE_CHECKING:  # preparing data needs no torch
    from torch import Tensor


@dataclass(frozen=True)
class TrainingLog:
    """The events that a model may learn from: row u is `items[begin[u]:end[u]]`, the training history of user u.

    The arrays hold the events of validation and test too, because nothing is copied. Only the ranges may be read.
    """

    items: np.ndarray
    """[E] int32, internal ids 1..num_items of all events, user by user, oldest first. Mapped from disk."""
    times: np.ndarray | None
    """[E] int64, seconds since the epoch. None where the log has no times. Mapped from disk."""
    begin: np.ndarray
    """[R] int64, first event of each training history."""
    end: np.ndarray
    """[R] int64, one beyond the last event of each training history."""

    def __len__(self) -> int:
        return len(self.begin)


@dataclass(frozen=True)
class Corpus:
    """What a data module knows and a model may need. V is num_items + 1, R is the number of training histories."""

    num_items: int
    """Size of the catalog. Ids are 1..num_items, 0 is padding."""
    num_users: int
    """Number of users. Ids are 0..num_users - 1."""
    max_length: int
    """Most recent events that a model reads."""
    item_counts: Tensor
    """[V] int64, events of each item in training; 0 for padding."""
    catalog: Catalog
    """External ids, and every column that is known of the items: `catalog.frame`, row i - 1 for id i."""
    train: TrainingLog
    """The training part of the log."""
    train_windows: str
    """Name of the rows that are trained on: `last`, `all`, `prefixes`, `sessions` or those of a plug-in."""
    seed: int
    """Seed of the order of training and of what is drawn."""
    candidates: str = "full"
    """What targets are ranked among: `full`, or the name of a sampled protocol."""
    cache: Path | None = None
    """Folder for what is costly to make from these data. None where nothing may be kept."""
    name: str = "log"
    """Name of the data set, `file` for a log of one's own."""
    data_sha256: str = ""
    """SHA-256 of the log file, to name what is kept in `cache`."""
    event_columns: dict[str, EventColumn] = field(default_factory=dict)
    """What else is known of the events, by name: [E] numbers, or codes of categories with their texts."""
