"""The most similar rows of a table of vectors, exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def nearest(
    vectors: np.ndarray,
    k: int,
    group: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
    block_rows: int = 256,
) -> np.ndarray:
    """Finds the k most similar rows of each row by cosine, exactly, in blocks of rows.

    Args:
        vectors: [n, T], rows of length 1; a zero row has no neighbours and is not a neighbour.
        k: how many.
        group: [n], rows of one group are not neighbours of each other; None: only a row itself is not.
        allowed: [n] bool, rows that may be found; None is all.
        progress: told how far it is: (done, of how many).
        block_rows: rows of a block.

    Returns:
        [n, k] int64, nearest first, -1 where there are no more.
    """
    n = len(vectors)
    table = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    has = np.abs(vectors).sum(1) > 0
    places = np.flatnonzero(has if allowed is None else has & allowed)
    columns, out = table[torch.from_numpy(places)].T.contiguous(), np.full((n, k), -1, np.int64)
    # Columns of one group are put side by side, so that those of a row's own group are one range.
    label = np.arange(n) if group is None else np.asarray(group)
    order = np.argsort(label[places], kind="stable")
    sorted_labels = label[places][order]
    first, last = (np.searchsorted(sorted_labels, label, side) for side in ("left", "right"))
    rows = np.flatnonzero(has)
    for start in range(0, len(rows), block_rows):
        block = rows[start : start + block_rows]
        scores = table[torch.from_numpy(block)] @ columns
        # The ranges of all rows of the block are written out as pairs of row and column, and left out.
        mine = first[block], last[block]
        counts = mine[1] - mine[0]
        own = order[np.repeat(mine[0] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())]
        scores[torch.from_numpy(np.repeat(np.arange(len(block)), counts)), torch.from_numpy(own)] = -torch.inf
        found = scores.topk(min(k, scores.shape[1]))
        ids = places[found.indices.numpy()]
        ids[found.values.numpy() == -np.inf] = -1
        out[block, : ids.shape[1]] = ids
        if progress is not None:
            progress(start + len(block), len(rows))
    return out
