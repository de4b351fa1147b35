"""Who is similar to whom: the tables of neighbours, how they are made from the training part, and their file.

Shapes: N items, M entries of the pool of histories, k neighbours, T width of text vectors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightrec.data.features import Stage, silent
from lightrec.data.nearest import nearest
from lightrec.errors import InputError
from lightrec.files import written_whole

Pool = Literal["users", "prefixes"]
FORMAT = 1
_PRIME = 6364136223846793005  # odd, so that no position is lost modulo 2**64


@dataclass(frozen=True)
class Tables:
    """What retrieval found."""

    item_neighbours: Tensor
    """[N + 1, k] int64, nearest first; 0 where there are no more. Row 0 is empty."""
    begin: Tensor
    """[M] int64, where the history of an entry begins in the log."""
    end: Tensor
    """[M] int64, and where it ends."""
    user: Tensor
    """[M] int64, whose it is."""
    neighbours: Tensor
    """[M, k] int64, entries that are similar, nearest first; -1 where there are no more."""
    vectors: Tensor
    """[M, T] float16, the text vector of each entry."""

    def __len__(self) -> int:
        return len(self.begin)

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.__dataclass_fields__)

    def to(self, device: torch.device) -> Tables:
        """Returns the tables on another device."""
        return Tables(**{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


def training_pool(
    begin: np.ndarray, end: np.ndarray, user: np.ndarray, max_length: int, pool: Pool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts the training part into the histories that can be retrieved: begin, end and user [M] each.

    `users` has one entry for everybody, the latest max_length training events; `prefixes` one for every prefix that has
    a next event in training, as the authors' code does.
    """
    if pool == "users":
        return np.maximum(begin, end - max_length), end.copy(), user.copy()
    counts = np.maximum(0, end - begin - 1)
    owner = np.repeat(np.arange(len(begin)), counts)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    stop = begin[owner] + nth + 1
    return np.maximum(begin[owner], stop - max_length), stop, user[owner]


def history_vectors(items: np.ndarray, begin: np.ndarray, end: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The mean of the item vectors of each history, of length 1: [M, T]. Items without text do not count."""
    out = np.zeros((len(begin), vectors.shape[1]), np.float32)
    for start in range(0, len(begin), 4096):
        rows = slice(start, start + 4096)
        length = end[rows] - begin[rows]
        place = np.repeat(begin[rows] - (np.cumsum(length) - length), length) + np.arange(length.sum())
        out[rows] = np.add.reduceat(vectors[items[place]], np.cumsum(length) - length, axis=0)
    norm = np.linalg.norm(out, axis=1, keepdims=True)
    return np.divide(out, norm, out=np.zeros_like(out), where=norm > 1e-8)


def retrieve(
    log: np.ndarray,
    pool: tuple[np.ndarray, np.ndarray, np.ndarray],
    vectors: np.ndarray,
    num_neighbours: int,
    known: np.ndarray | None = None,
    exclude_same_user: bool = True,
    stage: Stage = silent,
) -> Tables:
    """Finds the neighbours of items and of histories.

    Args:
        log: [E] item ids of the events that histories point into.
        pool: begin, end and user [M] each, of the histories that can be retrieved.
        vectors: [N + 1, T], text vectors of items.
        num_neighbours: k.
        known: [N + 1] bool, items that may be put into a history; None is all.
        exclude_same_user: do not retrieve another history of the same user.
        stage: is told how far the work is.
    """
    begin, end, user = pool
    progress = stage(f"similar items of {len(vectors) - 1:,}")
    near = nearest(vectors, num_neighbours, allowed=known, progress=progress)
    histories = history_vectors(log, begin, end, vectors)
    progress = stage(f"similar histories of {len(begin):,}")
    found = nearest(histories, num_neighbours, group=user if exclude_same_user else None, progress=progress)
    return Tables(
        item_neighbours=torch.from_numpy(np.maximum(near, 0)),
        begin=torch.from_numpy(begin.astype(np.int64)),
        end=torch.from_numpy(end.astype(np.int64)),
        user=torch.from_numpy(user.astype(np.int64)),
        neighbours=torch.from_numpy(found),
        vectors=torch.from_numpy(histories.astype(np.float16)),
    )


def window_keys(items: Tensor, lengths: Tensor, users: Tensor) -> Tensor:
    """A 64-bit key of whose window it is and what is in it: items [B, L], lengths [B], users [B] -> [B] int64."""
    key = users * _PRIME + lengths
    for column in range(items.shape[1]):
        key = torch.where(column < lengths, (key ^ (key >> 29)) * _PRIME + items[:, column], key)
    return key


def fingerprint(facts: dict) -> str:
    """The hash of everything that a table depends on."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode()).hexdigest()


def split_hash(begin: np.ndarray, end: np.ndarray, user: np.ndarray) -> str:
    """The hash of which events are training events."""
    digest = hashlib.sha256()
    for part in (begin, end, user):
        digest.update(np.ascontiguousarray(part, np.int64).tobytes())
    return digest.hexdigest()


def save(path: Path, tables: Tables, facts: dict) -> None:
    """Writes tables in one rename; arrays only, so that reading them runs no code.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    arrays = {name: getattr(tables, name).numpy() for name in Tables.__dataclass_fields__}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part, part.open("wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts, sort_keys=True)), **arrays)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}; free some space or set --data.cache_dir.") from error


def load(path: Path, facts: dict) -> Tables:
    """Reads tables and checks that they are those of these data.

    Raises:
        InputError: no such file, a damaged one, or one that was made from other data or with other settings.
    """
    try:
        with np.load(path, allow_pickle=False) as box:
            stored = json.loads(str(box["facts"]))
            arrays = {name: torch.from_numpy(box[name]) for name in Tables.__dataclass_fields__}
    except Exception as error:  # a zip of strangers fails in many ways
        cause = " ".join(str(error).split())
        raise InputError(f"{path}: no table of neighbours: {cause}; leave the file out to make one.") from error
    for name in sorted({*facts, *stored}):
        if stored.get(name) != facts.get(name):
            raise InputError(
                f"{path}: neighbours from other data or settings: {name} is {_short(stored.get(name))} there and "
                f"{_short(facts.get(name))} here; leave the file out to make them again."
            )
    return Tables(**arrays)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
