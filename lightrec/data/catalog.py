"""Catalog: what the integers of items stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:  # preparing data needs no torch
    from torch import Tensor


class Catalog:
    """External item ids, titles and whatever else is known of items; internal id i belongs to row i - 1.

    Args:
        frame: one row per item in internal order: a string column `item`, a string column `title` if titles are known,
            and any other columns.
    """

    def __init__(self, frame: pl.DataFrame):
        self.frame = frame
        self.item_ids: list[str] = frame["item"].to_list()
        self.titles: list[str | None] | None = frame["title"].to_list() if "title" in frame.columns else None
        self._index: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    def encode(self, item_ids: list) -> list[int]:
        """Maps external ids to internal ones; 0 for what is unknown."""
        if self._index is None:
            self._index = {item: i for i, item in enumerate(self.item_ids, start=1)}
        return [self._index.get(str(item), 0) for item in item_ids]

    def decode(self, item_id: int) -> str:
        """Maps an internal id (1..num_items) to the external one."""
        if not 1 <= item_id <= len(self.item_ids):
            raise ValueError(f"internal item id {item_id} is outside 1..{len(self.item_ids)}.")
        return self.item_ids[item_id - 1]

    def title(self, item_id: int) -> str:
        """Returns the title of an internal id, or the external id where there is none."""
        external = self.decode(item_id)
        return (self.titles[item_id - 1] if self.titles else None) or external

    def search(self, text: str, limit: int = 10) -> list[int]:
        """Finds internal ids whose title or external id contains `text`, whatever its case."""
        wanted = text.lower()
        names = self.titles or self.item_ids
        found = [i for i, name in enumerate(names, start=1) if wanted in (name or "").lower()]
        return found[:limit]

    def to_tensors(self) -> dict[str, Tensor]:
        """Packs ids and titles as UTF-8 bytes and offsets, so that a checkpoint holds them as plain tensors."""
        packed = _pack("item", self.item_ids)
        if self.titles is not None:
            packed |= _pack("title", [title or "" for title in self.titles])
        return packed

    @staticmethod
    def from_tensors(packed: dict[str, Tensor]) -> Catalog:
        """Rebuilds the catalog of `to_tensors`."""
        columns = {"item": _unpack("item", packed)}
        if "title_bytes" in packed:
            columns["title"] = [title or None for title in _unpack("title", packed)]
        return Catalog(pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)))


def _pack(name: str, texts: list[str]) -> dict[str, Tensor]:
    import torch

    blobs = [text.encode() for text in texts]
    ends = torch.tensor([len(blob) for blob in blobs], dtype=torch.long).cumsum(0)
    return {
        f"{name}_bytes": torch.frombuffer(bytearray(b"".join(blobs) or b"\0"), dtype=torch.uint8),
        f"{name}_ends": ends,
    }


def _unpack(name: str, packed: dict[str, Tensor]) -> list[str]:
    blob, ends = packed[f"{name}_bytes"].numpy().tobytes(), packed[f"{name}_ends"].tolist()
    return [blob[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
