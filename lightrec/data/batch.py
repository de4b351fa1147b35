"""Batch: what every model is given, whatever the data and whatever the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B histories of at most L items, padded on the right with 0.

    Ids are internal: items 1..num_items, users 0..num_users-1. `lengths` is the only mask.
    """

    item_ids: Tensor
    """[B, L] int64, oldest first; 0 beyond `lengths`."""
    lengths: Tensor
    """[B] int64, number of real items, at least 1 (an empty batch, B = 0, is legal)."""
    user_ids: Tensor
    """[B] int64, row of the user in the prepared set; -1 for somebody new."""
    target_ids: Tensor | None = None
    """[B, T] int64, what came next, in order; 0 pads. Evaluation only."""
    seen_ids: Tensor | None = None
    """[B, S] int64, the whole history, which the window may have cut; 0 pads. None: seen items stay in the ranking."""
    candidate_ids: Tensor | None = None
    """[B, C] int64, the only items to rank; 0 pads. None: the full catalog (the default protocol)."""
    history_lengths: Tensor | None = None
    """[B] int64, length of the whole history, before the window. Evaluation only."""
    timestamps: Tensor | None = None
    """[B, L] int64, seconds since the epoch, 0 beyond `lengths`. None where the log has none."""
    target_timestamps: Tensor | None = None
    """[B, T] int64, seconds since the epoch of the targets, which a time-aware model may use as query time."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """What a plug-in's reader adds; each [B] or [B, L, ...]."""

    def __len__(self) -> int:
        return len(self.lengths)

    def map(self, fn) -> Batch:
        """Returns a batch with `fn` applied to every tensor."""
        changed = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changed[f.name] = fn(value)
            elif isinstance(value, dict):
                changed[f.name] = {k: fn(v) for k, v in value.items()}
        return dataclasses.replace(self, **changed)

    def replace(self, **changes) -> Batch:
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def to(self, device, non_blocking: bool = False) -> Batch:
        """Returns the batch on another device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory."""
        return self.map(Tensor.pin_memory)

    @staticmethod
    def from_histories(histories: list[list[int]], max_length: int | None = None, exclude_seen: bool = True) -> Batch:
        """Builds an evaluation batch from lists of internal item ids, oldest first.

        Args:
            histories: B lists, each of at least one item.
            max_length: keep the most recent so many as input; all of them still count as seen.
            exclude_seen: leave the items of a history out of its own ranking.
        """
        if not histories or not all(histories):
            raise ValueError("every history needs at least one known item.")
        windows = [h[-max_length:] if max_length else h for h in histories]
        lengths = torch.tensor([len(w) for w in windows])
        return Batch(
            item_ids=_pad(windows),
            lengths=lengths,
            user_ids=torch.full((len(windows),), -1),
            seen_ids=_pad(histories) if exclude_seen else None,
            history_lengths=torch.tensor([len(h) for h in histories]),
        )


def _pad(rows: list[list[int]]) -> Tensor:
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out
