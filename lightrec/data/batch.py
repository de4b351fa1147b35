"""Batch: what every model is given, whatever the data and whatever the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Axis = Literal["row", "position"]
"""Whether a tensor has one value per row, [B, ...], or one per position of the window, [B, L, ...]."""


@dataclass(frozen=True)
class Column:
    """A further tensor of a batch, which says what it belongs to.

    Raises:
        ValueError: `per` is neither of the two.
    """

    values: Tensor
    """[B, ...] per row, [B, L, ...] per position."""
    per: Axis

    def __post_init__(self):
        if self.per not in Axis.__args__:
            raise ValueError(f"per {self.per!r} is unknown; choose {', '.join(Axis.__args__)}.")


def _per(axis: Axis, **default: Any) -> Any:
    """Declares the axis of a field of `Batch`."""
    return field(metadata={"per": axis}, **default)


@dataclass(frozen=True)
class Batch:
    """B histories of at most L items, padded on the right with 0.

    Ids are internal: items 1..num_items, users 0..num_users-1. `lengths` is the only mask. Every field declares whether
    it holds one entry per row or one per position, so that rows and positions are never told apart by shapes.

    Raises:
        TypeError: a column is not a `Column`.
    """

    item_ids: Tensor = _per("position")
    """[B, L] int64, oldest first; 0 beyond `lengths`."""
    lengths: Tensor = _per("row")
    """[B] int64, number of real items, at least 1 (an empty batch, B = 0, is legal)."""
    user_ids: Tensor = _per("row")
    """[B] int64, row of the user in the prepared set; -1 for somebody new."""
    target_ids: Tensor | None = _per("row", default=None)
    """[B, T] int64, what came next, in order; 0 pads. Evaluation only."""
    seen_ids: Tensor | None = _per("row", default=None)
    """[B, S] int64, the whole history, which the window may have cut; 0 pads. None: seen items stay in the ranking."""
    candidate_ids: Tensor | None = _per("row", default=None)
    """[B, C] int64, the only items to rank; 0 pads. None: the full catalog (the default protocol)."""
    history_lengths: Tensor | None = _per("row", default=None)
    """[B] int64, length of the whole history, before the window. Evaluation only."""
    timestamps: Tensor | None = _per("position", default=None)
    """[B, L] int64, seconds since the epoch, 0 beyond `lengths`. None where the log has none."""
    target_timestamps: Tensor | None = _per("row", default=None)
    """[B, T] int64, seconds since the epoch of the targets, which a time-aware model may use as query time."""
    columns: dict[str, Column] = field(default_factory=dict)
    """Whatever else is known of rows and positions, by name."""

    def __post_init__(self):
        for name, column in self.columns.items():
            if not isinstance(column, Column):
                raise TypeError(
                    f"columns[{name!r}] is a {type(column).__name__}: give Column(values, per='row') for one value "
                    "per row, or Column(values, per='position') for one per position."
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def position_columns(self) -> dict[str, Tensor]:
        """Returns the columns that have a value per position, [B, L, ...], by name."""
        return {name: column.values for name, column in self.columns.items() if column.per == "position"}

    def map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        """Returns a batch with `fn` applied to every tensor."""
        return self._map_axes(fn, fn)

    def rows(self, index: Any) -> Batch:
        """Returns some rows: `index` is a slice, a [N] int64 tensor or a [B] bool tensor."""
        return self.map(lambda t: t[index])

    def cut(self, width: int) -> Batch:
        """Returns the first `width` positions of every row, and lengths of at most `width`."""
        cut = self._map_axes(lambda t: t, lambda t: t[:, :width])
        return cut.replace(lengths=self.lengths.clamp_max(width))

    def without_last(self) -> Batch:
        """Returns every row without its last event: the inputs of next-item prediction.

        The tensors lose their last position. So the last event of a shorter row still stands beyond its new length.
        """
        cut = self._map_axes(lambda t: t, lambda t: t[:, :-1])
        return cut.replace(lengths=self.lengths - 1)

    def _map_axes(self, per_row: Callable[[Tensor], Tensor], per_position: Callable[[Tensor], Tensor]) -> Batch:
        """Applies a function to the tensors of each axis."""
        functions = {"row": per_row, "position": per_position}
        changed: dict[str, Any] = {}
        for declared in dataclasses.fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, Tensor):
                changed[declared.name] = functions[declared.metadata["per"]](value)
        if self.columns:
            changed["columns"] = {
                name: Column(functions[column.per](column.values), column.per) for name, column in self.columns.items()
            }
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
