"""Retrieval of similar items and histories: what is fitted to the training part, and how a batch finds itself in it.

Shapes: B rows of a batch, L length, E events of the log, M entries of the pool of histories, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lightrec import Batch, InputError
from lightrec.configurable import AtLeast
from lightrec.data.features import Collaborative, Reads, Stage, collaborative_vectors, parse, progress_bars
from lightrec.nn.sequence import valid_mask
from lightrec.ops.blocks import bytes_for
from lightrec.part import Part
from lightrec_sracl import tables as files
from lightrec_sracl.tables import Pool, Tables, retrieve, training_pool, window_keys

if TYPE_CHECKING:
    from lightrec.data.corpus import Corpus


@dataclass(frozen=True)
class Retrieved:
    """Tables of neighbours, and the log that their entries point into."""

    tables: Tables
    items: Tensor
    """[E] int64."""
    times: Tensor | None
    """[E] int64, or None."""
    pool: Pool

    @property
    def nbytes(self) -> int:
        return self.tables.nbytes + self.items.nbytes + (0 if self.times is None else self.times.nbytes)

    def to(self, device: torch.device) -> Retrieved:
        """Returns the same on another device."""
        times = None if self.times is None else self.times.to(device)
        return Retrieved(self.tables.to(device), self.items.to(device), times, self.pool)

    @cached_property
    def keys(self) -> tuple[Tensor, Tensor]:
        """[M] sorted keys of the pool, and the entry of each: the user, or a hash of the window for prefixes."""
        if self.pool == "users":
            keys = self.tables.user
        else:
            keys = torch.empty_like(self.tables.user)
            for rows in torch.arange(len(self.tables), device=keys.device).split(65536):
                part = self.histories(rows)
                keys[rows] = window_keys(part.item_ids, part.lengths, part.user_ids)
        return keys.sort()

    def entries(self, inputs: Batch) -> Tensor:
        """Returns which entry of the pool each history of a batch is: [B] int64, -1 for one that is not in it."""
        users, (known, entries) = inputs.user_ids, self.keys
        if not len(known):
            return torch.full_like(users, -1)
        sought = users
        if self.pool == "prefixes":
            sought = window_keys(inputs.item_ids, inputs.lengths, users)
        sought = sought.to(known.device)
        place = torch.searchsorted(known, sought).clamp_max(len(known) - 1)
        found = torch.where(known[place] == sought, entries[place], -1).to(users.device)
        return found.masked_fill(users < 0, -1)

    def histories(self, entries: Tensor, with_times: bool = False) -> Batch:
        """Returns the histories [m] of the pool as a batch, on the device of `entries`."""
        at = entries.to(self.items.device)
        begin, lengths = self.tables.begin[at], self.tables.end[at] - self.tables.begin[at]
        place = torch.arange(int(lengths.max()) if len(lengths) else 1, device=at.device)
        real = place < lengths[:, None]
        place = torch.where(real, begin[:, None] + place, 0)
        timed = with_times and self.times is not None
        return Batch(
            item_ids=torch.where(real, self.items[place], 0),
            lengths=lengths,
            user_ids=self.tables.user[at],
            timestamps=torch.where(real, self.times[place], 0) if timed else None,
        ).to(entries.device)

    def near(self, entries: Tensor) -> Tensor:
        """Returns the entries that are similar to entries [B]: [B, k], -1 where there are no more."""
        near = look_up(self.tables.neighbours, entries.clamp_min(0))
        return near.masked_fill(entries[:, None] < 0, -1)

    def vectors(self, entries: Tensor) -> Tensor:
        """Returns the text vectors of entries [...]: [..., T] float16."""
        return look_up(self.tables.vectors, entries.clamp_min(0))

    def similar_items(self, item_ids: Tensor) -> Tensor:
        """Returns the items that are similar to items [...]: [..., k], 0 where there are no more."""
        return look_up(self.tables.item_neighbours, item_ids)


class Neighbours(Part):
    """Finds similar items and similar histories by the text of items, in the training part only.

    Tables are made once and kept in the cache under a hash of everything that they depend on. They are not part of a
    checkpoint, since only training needs them.

    Args:
        text: where text vectors come from: `tfidf` (with SVD); `offline:minilm`, from an installed package; a folder or
            a Hugging Face name; FILE.npz with vectors of your own; `collaborative`, who had what, without any text.
        text_columns: columns of the catalog that are read; None is all.
        text_size: T, width of the text vectors.
        num_neighbours: k.
        pool: the histories that can be retrieved: of all `users`, or all `prefixes` of them, as the authors' code has
            it. The latter needs `train_windows: prefixes`.
        exclude_same_user: do not retrieve another prefix of the same user, which may hold the answer.
        trained_items_only: never put an item into a history that training does not know.
        table: file of neighbours that another run made; it must be of the same data and settings.
    """

    limits = {"text_size": AtLeast(1), "num_neighbours": AtLeast(1)}

    def __init__(
        self,
        text: str = "tfidf",
        text_columns: list[str] | None = None,
        text_size: int = 384,
        num_neighbours: int = 10,
        pool: Pool = "users",
        exclude_same_user: bool = True,
        trained_items_only: bool = True,
        table: str | None = None,
    ):
        super().__init__()
        self.source = parse(text)
        self.reads = Reads(None if text_columns is None else tuple(text_columns), "--model.objective.")
        self.text_size, self.num_neighbours, self.pool = text_size, num_neighbours, pool
        self.exclude_same_user, self.trained_items_only, self.table = exclude_same_user, trained_items_only, table
        self.retrieved: Retrieved | None = None
        self._found_for: dict | None = None  # the facts of the tables that are at hand

    def connect(self, corpus: Corpus) -> None:
        """Finds the neighbours, or reads them where a run has left them.

        Raises:
            InputError: there is no text, the encoder cannot be had, `table` is of other data or settings, or the pool
                is of prefixes and training is not.
        """
        if self.pool == "prefixes" and corpus.train_windows != "prefixes":
            raise InputError(
                f"pool prefixes finds prefixes only, and --data.train_windows is {corpus.train_windows}: set it to "
                "prefixes, or --model.objective.pool users."
            )
        facts = self.facts(corpus)
        if facts == self._found_for:
            return
        several = dist.is_available() and dist.is_initialized()
        first = not several or dist.get_rank() == 0
        if first:
            tables = self.find(corpus)
        if several:
            dist.barrier()  # the others find what the first one made
        if not first:
            tables = self.find(corpus)
        times = corpus.train.times
        self.retrieved = Retrieved(
            tables,
            torch.from_numpy(np.array(corpus.train.items)).long(),
            None if times is None else torch.from_numpy(np.array(times)),
            self.pool,
        )
        self._found_for = facts

    def find(self, corpus: Corpus) -> Tables:
        """Returns the tables of a corpus, from `table`, from the cache, or made now and kept there.

        Raises:
            InputError: as `connect`.
        """
        facts = self.facts(corpus)
        if self.table is not None:
            return files.load(Path(self.table), facts)
        path = None
        if corpus.cache is not None:
            name = f"{corpus.name or 'log'}-{files.fingerprint(facts)[:16]}.npz".replace("/", "-")
            path = corpus.cache / "sracl" / name
            if path.exists():
                return files.load(path, facts)
        with progress_bars() as stage:
            tables = self._make(corpus, stage)
        if path is not None:
            files.save(path, tables, facts)
        return tables

    def _make(self, corpus: Corpus, stage: Stage) -> Tables:
        train = corpus.train
        vectors = self.source.vectors(corpus, self.text_size, self.reads, stage)
        pool = training_pool(train.begin, train.end, np.arange(len(train)), corpus.max_length, self.pool)
        known = corpus.item_counts.numpy() > 0
        return self._retrieve(train.items, pool, vectors, known, stage)

    def _retrieve(self, items, pool, vectors, known, stage) -> Tables:
        known = known if self.trained_items_only else None
        return retrieve(items, pool, vectors, self.num_neighbours, known, self.exclude_same_user, stage)

    def facts(self, corpus: Corpus) -> dict:
        """Returns everything that the tables depend on."""
        train = corpus.train
        return {
            "data": corpus.data_sha256,
            "counts": f"{corpus.num_users} users, {corpus.num_items} items, {len(train.items)} events",
            "training part": files.split_hash(train.begin, train.end, np.arange(len(train))),
            "text": self.source.name,
            "content of the text": self.source.content(corpus, self.text_size, self.reads),
            "text_columns": self.source.columns(corpus, self.reads),
            "text_size": self.text_size,
            "num_neighbours": self.num_neighbours,
            "pool": self.pool,
            "max_length": corpus.max_length,
            "exclude_same_user": self.exclude_same_user,
            "trained_items_only": self.trained_items_only,
        }

    def of(self, inputs: Batch, num_items: int) -> Retrieved:
        """Returns what was retrieved, on the device of a batch if there is room for it.

        Raises:
            InputError: there is no corpus, and text to be read from it.
        """
        if self.retrieved is None:
            return self.count_in(inputs, num_items)
        device = inputs.item_ids.device
        if self.retrieved.items.device != device and self.retrieved.nbytes <= bytes_for("tables", device):
            self.retrieved = self.retrieved.to(device)
        return self.retrieved

    def count_in(self, batch: Batch, num_items: int) -> Retrieved:
        """Returns what can be retrieved from a batch: outside of a run, that is all there is.

        Raises:
            InputError: text is to be read, and a batch has none.
        """
        if not isinstance(self.source, Collaborative):
            raise InputError(
                "SRACL retrieves from a training log: train it with a data module, give a corpus to connect(), or set "
                "text to collaborative, which then counts in the batch."
            )
        real = valid_mask(batch.lengths, batch.item_ids.shape[1])
        lengths, users, items = batch.lengths.cpu().numpy(), batch.user_ids.cpu().numpy(), batch.item_ids[real].cpu()
        owner, end = np.repeat(np.arange(len(lengths)), lengths), np.cumsum(lengths)
        vectors = collaborative_vectors(items.numpy(), owner, num_items, self.text_size)
        vectors = np.concatenate([np.zeros((1, self.text_size), np.float32), vectors])
        known = np.bincount(items.numpy(), minlength=num_items + 1) > 0
        pool = training_pool(end - lengths, end, users, batch.item_ids.shape[1], self.pool)
        tables = self._retrieve(items.numpy(), pool, vectors, known, lambda name: None)
        times = None if batch.timestamps is None else batch.timestamps[real].cpu()
        return Retrieved(tables, items, times, self.pool).to(batch.item_ids.device)


def look_up(table: Tensor, rows: Tensor) -> Tensor:
    """Returns rows of a table that may be on another device, on the device of `rows`."""
    return table[rows.to(table.device)].to(rows.device)
