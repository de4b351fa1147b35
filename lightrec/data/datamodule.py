"""SequenceDataModule: histories in, batches out. Knows no model, no shift, no mask and no negative."""

from __future__ import annotations

import dataclasses
import os
from functools import cached_property, partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightrec.configurable import AtLeast, Configurable, build, describe
from lightrec.data import shorthand
from lightrec.data.batches import (
    Batching,
    BatchLoader,
    EvaluationBatches,
    Events,
    SampledCandidates,
    TrainingBatches,
    exact_plan,
)
from lightrec.data.catalog import Catalog
from lightrec.data.corpus import Corpus, TrainingLog
from lightrec.data.options import Candidates, Cleaning, LogFile, Protocol
from lightrec.data.preparation import prepare
from lightrec.data.prepared import Prepared
from lightrec.data.protocol import protocol_record
from lightrec.data.rows import LastWindow, Rows, find_rows
from lightrec.data.sources import cache_folder
from lightrec.data.splits import Histories, LeaveOneOut, Parts, Split, count_events, find_split
from lightrec.errors import InputError


class SequenceDataModule(Configurable, L.LightningDataModule):
    """Prepares a log, splits it and serves right-padded batches.

    On the command line an option of `log`, `cleaning`, `protocol`, `split` or `train_windows` may leave out its group:
    `--data.min_rating 4` is `--data.cleaning.min_rating 4`.

    Args:
        source: name of a known data set (`lightrec data list`); empty for `path`.
        path: an interaction log: csv, tsv, `::`-separated dat, parquet, JSON lines, RecBole .inter, or lines of "user
            item" or "user item item item"; text may be gzipped.
        mirror: folder or URL that has the files of known data sets; else LIGHTREC_DATA_MIRROR.
        log: what is in the log at `path`, and how it is read.
        cleaning: which events stay.
        split: which events are learned from and which are asked for: `leave_one_out`, `global_timeline` or one of a
            plug-in.
        max_length: most recent events that a model reads; the source's suggestion if not given.
        train_windows: what a training row is: `last`, `all`, `prefixes`, `sessions` or one of a plug-in.
        batch_size: most rows in a training batch of one process.
        batch_tokens: most padded events in a training batch of one process; not limited if not given.
        eval_batch_size: rows in an evaluation batch.
        protocol: what is ranked when a model is measured.
        with_times: give times to the model.
        seed: of the order of training and of sampled candidates.
        cache_dir: where downloads and prepared data are kept; else LIGHTREC_CACHE, else ~/.cache/lightrec.

    Raises:
        InputError: a number below its limit, an unknown name, or neither `source` nor `path`.
    """

    prefix = "--data."
    limits = {
        "max_length": AtLeast(1),
        "batch_size": AtLeast(1),
        "batch_tokens": AtLeast(2),
        "eval_batch_size": AtLeast(1),
        "seed": AtLeast(0),
    }

    def __init__(
        self,
        source: str = "",
        path: str | None = None,
        mirror: str | None = None,
        log: LogFile = LogFile(),
        cleaning: Cleaning = Cleaning(),
        split: Split | str = LeaveOneOut(),
        max_length: int | None = None,
        train_windows: Rows | str = LastWindow(),
        batch_size: int = 128,
        batch_tokens: int | None = None,
        eval_batch_size: int = 256,
        protocol: Protocol = Protocol(),
        with_times: bool = False,
        seed: int = 0,
        cache_dir: str | None = None,
    ):
        super().__init__()
        if not source and path is None:
            raise InputError("no data: give --data.source NAME (see `lightrec data list`) or --data.path FILE.")
        self.source, self.path, self.mirror, self.cache_dir = source, path, mirror, cache_dir
        self.log, self.cleaning = log, cleaning
        self.split, self.rows = find_split(split), find_rows(train_windows)
        self._max_length, self._protocol = max_length, protocol
        self.batch_size, self.batch_tokens, self.eval_batch_size = batch_size, batch_tokens, eval_batch_size
        self.with_times, self.seed = with_times, seed
        if max_length is not None:
            self._check_budget(max_length)

    def describe(self) -> dict[str, Any]:
        """Returns the primitives that an equal data module can be built from, in any working folder."""
        log = self.log
        if log.item_path is not None:
            log = dataclasses.replace(log, item_path=os.path.abspath(log.item_path))
        arguments = self._init_args | {
            "path": None if self.path is None else os.path.abspath(self.path),
            "log": dataclasses.asdict(log),
            "cleaning": dataclasses.asdict(self.cleaning),
            "protocol": dataclasses.asdict(self._protocol),
            "split": self.split,
            "train_windows": self.rows,
        }
        kind = type(self)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": describe(arguments)}

    @staticmethod
    def from_description(description: dict[str, Any]) -> SequenceDataModule:
        """Builds what `describe` described, in this version or an older one.

        Raises:
            InputError: it names a split or rows that are not installed.
        """
        arguments = shorthand.from_checkpoint(description["init_args"])
        for group, kind in shorthand.GROUPS.items():
            if group in arguments:
                arguments[group] = kind(**arguments[group])
        for slot in shorthand.PARTS.keys() & arguments.keys():
            arguments[slot] = build(arguments[slot], partial(shorthand.part_class, slot))
        return SequenceDataModule(**arguments)

    # What the data are

    @cached_property
    def prepared(self) -> Prepared:
        """The log after cleaning; made, or found in the cache, at the first use."""
        return prepare(self.source, self.path, self.log, self.cleaning, self.mirror, self.cache_dir)

    @cached_property
    def parts(self) -> Parts:
        """What is learned from and what is asked for."""
        return self.split.parts(self.prepared)

    @cached_property
    def corpus(self) -> Corpus:
        """Everything that these data tell a model."""
        prepared, train = self.prepared, self.parts.train
        return Corpus(
            num_items=self.num_items,
            num_users=self.num_users,
            max_length=self.max_length,
            item_counts=self.item_counts,
            catalog=self.catalog,
            train=TrainingLog(prepared.items, prepared.times, train.history_begin, train.history_end),
            train_windows=self.train_windows,
            seed=self.seed,
            cache=cache_folder(self.cache_dir),
            name=prepared.meta["source"],
            data_sha256=prepared.meta["data_sha256"],
            candidates=self.candidates,
            event_columns=prepared.event_columns,
        )

    @property
    def num_items(self) -> int:
        """Size of the catalog; ids are 1..num_items."""
        return self.prepared.num_items

    @property
    def num_users(self) -> int:
        """Number of users; ids are 0..num_users - 1."""
        return self.prepared.num_users

    @property
    def max_length(self) -> int:
        """Most recent events that a model reads."""
        return self._max_length or int(self.prepared.meta["max_length"])

    @property
    def train_windows(self) -> str:
        """Name of the rows that are trained on."""
        return self.rows.name

    @property
    def exclude_seen(self) -> bool:
        """Whether the whole history is left out of the ranking."""
        return self._protocol.exclude_seen

    @property
    def candidates(self) -> str:
        """What is ranked: `full`, or the suffix of the names of sampled metrics, `uniform-100`."""
        return self._protocol.candidates

    @property
    def catalog(self) -> Catalog:
        """What the item ids stand for."""
        return self.prepared.catalog

    @cached_property
    def item_counts(self) -> torch.Tensor:
        """[num_items + 1] int64, events of each item in training; 0 for padding."""
        train = self.parts.train
        counts = count_events(self.prepared.items, train.history_begin, train.history_end, self.num_items)
        return torch.from_numpy(counts)

    # What the Trainer asks for

    def prepare_data(self) -> None:
        _ = self.prepared

    def setup(self, stage: str) -> None:
        remark = self.split.remark()
        if stage == "fit" and remark:
            rank_zero_info(remark)

    def train_dataloader(self) -> BatchLoader:
        self._check_budget(self.max_length)  # which may be the source's
        windows = self.rows.windows(self.parts.train, self.max_length)
        if not len(windows):
            raise InputError(
                f"nothing to train on: none of {self.num_users} users has two training events "
                f"({len(self.prepared.items)} events in all); a user needs at least 2, or 4 to be validated and tested."
            )
        rank, world = self._processes()
        if world > 1 and self.rows.one_process:
            raise InputError(f"--data.train_windows {self.rows.name} runs in one process: set --trainer.devices 1.")
        batching = Batching(self.batch_size, self.batch_tokens, self.seed, rank, world)
        plan = self.rows.plan(windows, self.prepared.times, batching)
        make = TrainingBatches(self._events(), windows)
        if self.trainer is None:
            return BatchLoader(make, plan)
        return BatchLoader(make, plan, epoch=self._current_epoch, done=self._batches_learned)

    def val_dataloader(self) -> BatchLoader:
        return self._measuring_loader("validation", self.parts.val)

    def test_dataloader(self) -> BatchLoader:
        return self._measuring_loader("test", self.parts.test)

    def predict_dataloader(self) -> BatchLoader:
        """Serves the whole history of every user, with nothing to guess: what would be shown next."""
        offsets = self.prepared.offsets
        everybody = Histories(np.arange(self.num_users), offsets[:-1], offsets[1:], offsets[1:])
        return self._evaluation_loader(everybody, None)

    def _measuring_loader(self, name: str, part: Histories) -> BatchLoader:
        if not len(part):
            raise InputError(self.split.why_nobody(name, self.prepared, self.parts))
        return self._evaluation_loader(part, self._protocol.sampled)

    def _evaluation_loader(self, part: Histories, sampled: Candidates | None) -> BatchLoader:
        events, draw = self._events(), None
        if sampled is not None:
            weights = np.ones(self.num_items + 1) if sampled.kind == "uniform" else self.item_counts.numpy()
            draw = SampledCandidates(events.items, part, weights, sampled.number, self.seed)
        make = EvaluationBatches(events, part, self.max_length, self.exclude_seen and sampled is None, draw)
        return BatchLoader(make, exact_plan(part.lengths, self.eval_batch_size, *self._processes()))

    def _events(self) -> Events:
        prepared = self.prepared
        if self.with_times and prepared.times is None:
            raise InputError(
                "--data.with_times needs a log with times; this one has none: set it to false. No model of lightrec "
                "itself needs times (SASRec, GRU4Rec, Mamba4Rec and so on); one of a plug-in that does will say so."
            )
        columns = {name: column.values for name, column in prepared.event_columns.items()}
        return Events(prepared.items, prepared.times if self.with_times else None, columns)

    def _processes(self) -> tuple[int, int]:
        """Returns the number of this process, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _current_epoch(self) -> int:
        return self.trainer.current_epoch

    def _batches_learned(self) -> int:
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed

    def _check_budget(self, max_length: int) -> None:
        if self.batch_tokens is not None and self.batch_tokens < max_length + 1:
            raise InputError(
                f"--data.batch_tokens ({self.batch_tokens}) must hold one row of max_length + 1 ({max_length + 1}) "
                "events."
            )

    # What is said of them

    def protocol(self) -> dict[str, Any]:
        """Returns the record of how a number made with these data is made; primitives only."""
        return self._facts | {
            "exclude_seen": self.exclude_seen,
            "candidates": self.candidates,
            "max_length": self.max_length,
            "train_windows": self.rows.name,
            "prefixes_per_user": None,
            **self.rows.facts,
            "seed": self.seed,
        }

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return protocol_record(self.prepared, self.split, self.parts, self._protocol, self.item_counts.numpy())
