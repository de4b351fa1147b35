"""SequenceDataModule: histories in, batches out. Knows no model, no shift, no mask and no negative."""

from __future__ import annotations

import inspect
import os
from functools import cached_property
from typing import Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from lightrec.data import loader as loaders
from lightrec.data.catalog import Catalog
from lightrec.data.corpus import Corpus, TrainingLog
from lightrec.data.loader import BatchLoader, Log
from lightrec.data.preparation import Duplicates, KCore, TimePrecision, prepare
from lightrec.data.prepared import Prepared
from lightrec.data.protocol import TIES, git_commit, protocol_tag, targets_hash, versions
from lightrec.data.readers import Format, OnError
from lightrec.data.sources import cache_folder
from lightrec.data.splits import (
    Part,
    Split,
    SplitName,
    TimelineTargets,
    count_events,
    date,
    global_timeline,
    leave_one_out,
)
from lightrec.errors import InputError

TrainWindows = Literal["last", "all", "prefixes", "sessions"]
Candidates = Literal["full", "uniform-100", "popularity-100"]


class SequenceDataModule(L.LightningDataModule):
    """Prepares a log, splits it and serves right-padded batches.

    Args:
        source: name of a known data set (`lightrec data list`); empty for `path`.
        path: an interaction log: csv, tsv, `::`-separated dat, parquet, JSON lines, RecBole .inter, or lines of "user
            item" or "user item item item"; text may be gzipped.
        mirror: folder or URL that has the files of known data sets; else LIGHTREC_DATA_MIRROR.
        user_column: name or position of the user column; guessed if not given. So the next four.
        item_column: item column.
        time_column: time column: epoch seconds, milliseconds or ISO text.
        rating_column: rating column.
        title_column: title column.
        item_path: a table with one row an item: its id and title.
        format: format of `path`; guessed by name and first line.
        on_error: `raise` names the first row that cannot be read, `skip` leaves such rows out and counts them.
        duplicates: of several events of one user with one item keep all, the first, or the last.
        min_rating: drop events rated below.
        min_user_events: drop users with fewer events.
        min_item_events: drop items with fewer events.
        k_core: repeat the two filters until nothing changes, or count once and drop.
        time_precision: `float32` rounds times as RecBole does, to 64 seconds or more: for comparing with what was
            published with it, and for nothing else (docs/protocols.md).
        split: `leave_one_out`: the last event of each user is the test, the one before the validation.
            `global_timeline`: everybody is cut at the same two moments, so that nothing is learned from the future.
        val_from: global_timeline: ISO date, epoch seconds, or share of events before the validation window.
        test_from: global_timeline: the same for the test window.
        timeline_targets: global_timeline: ask for the first event of the window, or for all.
        max_length: most recent events that a model reads; the source's suggestion if not given.
        train_windows: `last`: the most recent window of each user; `all`: consecutive windows over the whole history;
            `prefixes`: one row for each event, predicted from what came before; `sessions`: batch_size users side by
            side in order of time, one event of each in a batch (GRU4Rec's way; one process).
        prefixes_per_user: with train_windows `prefixes`, draw at most so many of each user anew in every epoch; all if
            not given.
        batch_size: most rows in a training batch of one process.
        batch_tokens: most padded events in a training batch of one process; not limited if not given.
        eval_batch_size: rows in an evaluation batch.
        exclude_seen: leave the whole history out of the ranking (protocol P4); false keeps it (P3).
        candidates: rank the full catalog, or the target among 100 sampled items; sampled metrics carry their name.
        with_times: give times to the model.
        seed: of the order of training and of sampled candidates.
        cache_dir: where downloads and prepared data are kept; else LIGHTREC_CACHE, else ~/.cache/lightrec.
    """

    def __init__(
        self,
        source: str = "",
        path: str | None = None,
        mirror: str | None = None,
        user_column: str | int | None = None,
        item_column: str | int | None = None,
        time_column: str | int | None = None,
        rating_column: str | int | None = None,
        title_column: str | int | None = None,
        item_path: str | None = None,
        format: Format | None = None,
        on_error: OnError = "raise",
        duplicates: Duplicates = "keep",
        min_rating: float | None = None,
        min_user_events: int | None = None,
        min_item_events: int | None = None,
        k_core: KCore = "iterated",
        time_precision: TimePrecision = "exact",
        split: SplitName = "leave_one_out",
        val_from: str | float = 0.8,
        test_from: str | float = 0.9,
        timeline_targets: TimelineTargets = "first",
        max_length: int | None = None,
        train_windows: TrainWindows = "last",
        prefixes_per_user: int | None = None,
        batch_size: int = 128,
        batch_tokens: int | None = None,
        eval_batch_size: int = 256,
        exclude_seen: bool = True,
        candidates: Candidates = "full",
        with_times: bool = False,
        seed: int = 0,
        cache_dir: str | None = None,
    ):
        super().__init__()
        given = dict(locals())
        self._init_args = {
            name: given[name] for name in list(inspect.signature(SequenceDataModule.__init__).parameters)[1:]
        }
        for name, least in (
            ("max_length", 1), ("batch_size", 1), ("batch_tokens", 2), ("eval_batch_size", 1), ("seed", 0),
            ("prefixes_per_user", 1),
        ):  # fmt: skip
            if given[name] is not None and given[name] < least:
                raise InputError(f"--data.{name} ({given[name]}) must be at least {least}.")
        if batch_tokens is not None and max_length is not None:
            _check_budget(batch_tokens, max_length)
        for name, known in (
            ("split", SplitName),
            ("timeline_targets", TimelineTargets),
            ("train_windows", TrainWindows),
            ("candidates", Candidates),
        ):
            if given[name] not in known.__args__:
                raise InputError(f"--data.{name} {given[name]!r} is unknown; choose {', '.join(known.__args__)}.")
        if prefixes_per_user is not None and train_windows != "prefixes":
            raise InputError(
                f"--data.prefixes_per_user ({prefixes_per_user}) draws from prefixes: set --data.train_windows "
                f"prefixes, not {train_windows}."
            )
        if not source and path is None:
            raise InputError("no data: give --data.source NAME (see `lightrec data list`) or --data.path FILE.")
        self.split_name, self.val_from, self.test_from, self.timeline_targets = (
            split,
            val_from,
            test_from,
            timeline_targets,
        )
        self._max_length, self.train_windows, self.prefixes_per_user = max_length, train_windows, prefixes_per_user
        self.batch_size, self.batch_tokens, self.eval_batch_size = batch_size, batch_tokens, eval_batch_size
        self.exclude_seen, self.candidates, self.with_times, self.seed = exclude_seen, candidates, with_times, seed

    def describe(self) -> dict:
        """Returns the primitives that an equal data module can be built from, in any working folder."""
        kind, arguments = type(self), dict(self._init_args)
        for name in ("path", "item_path"):
            if arguments[name] is not None:
                arguments[name] = os.path.abspath(arguments[name])
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}

    @cached_property
    def prepared(self) -> Prepared:
        """The log after cleaning; made, or found in the cache, at the first use."""
        names = inspect.signature(prepare).parameters
        return prepare(**{name: value for name, value in self._init_args.items() if name in names})

    @cached_property
    def split(self) -> Split:
        """What is learned from and what is asked for."""
        data = self.prepared
        if self.split_name == "leave_one_out":
            return leave_one_out(data.offsets)
        return global_timeline(data.offsets, data.times, self.val_from, self.test_from, self.timeline_targets)

    @property
    def num_items(self) -> int:
        """Size of the catalog; ids are 1..num_items."""
        return self.prepared.num_items

    @property
    def num_users(self) -> int:
        return self.prepared.num_users

    @property
    def max_length(self) -> int:
        """Most recent events that a model reads."""
        return self._max_length or int(self.prepared.meta["max_length"])

    @property
    def catalog(self) -> Catalog:
        """What the item ids stand for."""
        return self.prepared.catalog

    @cached_property
    def item_counts(self) -> torch.Tensor:
        """[num_items + 1] int64, events of each item in training; 0 for padding."""
        train = self.split.train
        return torch.from_numpy(count_events(self.prepared.items, train.begin, train.end, self.num_items))

    @cached_property
    def corpus(self) -> Corpus:
        """Everything that these data tell a model."""
        prepared, train = self.prepared, self.split.train
        return Corpus(
            num_items=self.num_items,
            num_users=self.num_users,
            max_length=self.max_length,
            item_counts=self.item_counts,
            catalog=self.catalog,
            train=TrainingLog(prepared.items, prepared.times, train.begin, train.end),
            train_windows=self.train_windows,
            seed=self.seed,
            candidates=self.candidates,
            cache=cache_folder(self._init_args["cache_dir"]),
            name=prepared.meta["source"],
            data_sha256=prepared.meta["data_sha256"],
        )

    def prepare_data(self) -> None:
        _ = self.prepared

    def train_dataloader(self) -> BatchLoader:
        if self.batch_tokens is not None:
            _check_budget(self.batch_tokens, self.max_length)  # which may be the source's
        windows = loaders.training_windows(self.split.train, self.max_length, self.train_windows)
        if not len(windows):
            raise InputError(
                f"nothing to train on: none of {self.num_users} users has two training events "
                f"({len(self.prepared.items)} events in all); a user needs at least 2, or 4 to be validated and tested."
            )
        rank, world = self._processes()
        log, begins = self._log(), None
        if self.train_windows == "sessions":
            if world > 1:
                raise InputError("--data.train_windows sessions runs in one process: set --trainer.devices 1.")
            begins = np.diff(windows.user, prepend=-1) != 0
            times = self.prepared.times
            plan = loaders.session_plan(
                windows.user, None if times is None else times[windows.begin[begins]], self.batch_size
            )
        else:
            lengths, draw = windows.end - windows.begin, None
            if self.prefixes_per_user is not None:
                lengths, draw = loaders.sample_prefixes(windows, self.prefixes_per_user, self.seed)
            plan = loaders.bucketed_plan(lengths, self.batch_size, self.batch_tokens, self.seed, rank, world)
            if draw is not None:
                plan = loaders.drawn_plan(plan, draw)
        make, trainer = loaders.training_batches(log, windows, begins), self.trainer
        if trainer is None:
            return BatchLoader(make, plan)
        return BatchLoader(
            make,
            plan,
            epoch=lambda: trainer.current_epoch,
            done=lambda: trainer.fit_loop.epoch_loop.batch_progress.current.processed,
        )

    def val_dataloader(self) -> BatchLoader:
        return self._evaluation(self.split.val, "validation")

    def test_dataloader(self) -> BatchLoader:
        return self._evaluation(self.split.test, "test")

    def predict_dataloader(self) -> BatchLoader:
        """Serves the whole history of every user, with nothing to guess: what would be shown next."""
        offsets = self.prepared.offsets
        users = np.arange(self.num_users)
        part = Part(users, offsets[:-1], offsets[1:], offsets[1:])
        return self._evaluation(part, "prediction", candidates="full")

    def _evaluation(self, part: Part, name: str, candidates: str | None = None) -> BatchLoader:
        if not len(part):
            raise InputError(self._why_nobody(name))
        rank, world = self._processes()
        kind = self.candidates if candidates is None else candidates
        log, draw = self._log(), None
        if kind != "full":
            weights = np.ones(self.num_items + 1) if kind.startswith("uniform") else self.item_counts.numpy()
            draw = loaders.sampled_candidates(log, part, weights, int(kind.rpartition("-")[2]), self.seed)
        make = loaders.evaluation_batches(log, part, self.max_length, self.exclude_seen and kind == "full", draw)
        return BatchLoader(make, loaders.exact_plan(part.end - part.begin, self.eval_batch_size, rank, world))

    def _why_nobody(self, name: str) -> str:
        if self.split_name == "leave_one_out":
            return (
                f"no user to ask in the {name} part: of {self.num_users} users the longest history has "
                f"{np.diff(self.prepared.offsets).max()} events, and --data.split leave_one_out needs 3."
            )
        short, facts, times = "val" if name == "validation" else "test", self.split.facts, self.prepared.times
        return (
            f"no user to ask in the {name} part: {facts['users_without_history'][short]} of {self.num_users} users "
            f"have events in it (--data.{short}_from is {date(facts[f'{short}_from'])}) and none of them any before; "
            f"the log runs from {date(times.min())} to {date(times.max())}."
        )

    def _count_cold(self, part: Part) -> int:
        """Counts the targets that are asked for and were never seen in training."""
        targets = count_events(self.prepared.items, part.end, part.stop, self.num_items)
        return int(targets[self.item_counts.numpy() == 0].sum())

    def _log(self) -> Log:
        if self.with_times and self.prepared.times is None:
            raise InputError(
                "--data.with_times needs a log with times; this one has none: set it to false. No model of lightrec "
                "itself needs times (SASRec, GRU4Rec, Mamba4Rec and so on); one of a plug-in that does will say so."
            )
        return Log(self.prepared.items, self.prepared.times if self.with_times else None)

    def _processes(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    @cached_property
    def _facts(self) -> dict:
        """The parts of the protocol record that are fixed by the data."""
        meta = self.prepared.meta
        return {
            "source": meta["source"],
            "title": meta["title"],
            "data_sha256": meta["data_sha256"],
            "counts": meta["counts"],
            "filters": {
                name: meta["settings"][name]
                for name in ("duplicates", "min_rating", "min_user_events", "min_item_events", "k_core", "on_error")
            },
            # Only where they are, so that records of exact times are equal to older ones.
            **({"rounded_times": "float32"} if meta["settings"]["time_precision"] == "float32" else {}),
            "skipped_rows": meta["skipped_rows"],
            "columns": meta["columns"],
            "targets_sha256": targets_hash(self.prepared, self.split.test),
            "num_test_rows": len(self.split.test),
            "cold_test_targets": self._count_cold(self.split.test),
            **self.split.facts,
            "git_commit": git_commit(),
            "versions": versions(),
        }

    def protocol(self) -> dict:
        """Returns the record of how a number made with these data is made; primitives only."""
        return {
            "tag": protocol_tag(self.split_name, self.exclude_seen, self.candidates),
            **self._facts,
            "exclude_seen": self.exclude_seen,
            "candidates": self.candidates,
            "ties": TIES,
            "max_length": self.max_length,
            "train_windows": self.train_windows,
            "prefixes_per_user": self.prefixes_per_user,
            "seed": self.seed,
        }

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.split_name == "leave_one_out":
            rank_zero_info(
                "leave_one_out: comparable with the literature; it learns from events later than some targets "
                "(--data.split global_timeline does not)."
            )


def _check_budget(batch_tokens: int, max_length: int) -> None:
    if batch_tokens < max_length + 1:
        raise InputError(
            f"--data.batch_tokens ({batch_tokens}) must hold one row of max_length + 1 ({max_length + 1}) events."
        )
