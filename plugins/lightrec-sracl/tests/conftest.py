"""A shop with three kinds of items, and what the tests build from it."""

import sys

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch

from lightrec import Batch, InputError, SequenceDataModule
from lightrec.data.options import LogFile
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem

NUM_ITEMS, LENGTH, WIDTH, TEXT = 30, 6, 16, 8
GROUPS = ("red lipstick matte", "cordless drill battery", "garden hose water")


@pytest.fixture(scope="session")
def log(tmp_path_factory):
    """A log of 40 users and 30 items of three kinds, with titles; item 7 has no title. Returns its folder."""
    folder = tmp_path_factory.mktemp("shop")
    draw = np.random.default_rng(0)
    rows = []
    for user in range(40):
        kind = user % 3
        for when in range(int(draw.integers(5, 12))):
            item = int(draw.choice(10)) * 3 + kind if draw.random() < 0.8 else int(draw.integers(30))
            rows.append((f"u{user}", f"i{item}", 1_000_000 + 86400 * when))
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(folder / "log.csv")
    titles = [f"{GROUPS[i % 3]} number{i // 3}" if i != 7 else "" for i in range(30)]
    pl.DataFrame({"item": [f"i{i}" for i in range(30)], "title": titles}).write_csv(folder / "items.csv")
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def kit():
    """The functions of this file, which the tests cannot import."""
    return sys.modules[__name__]


def data_of(folder, **options) -> SequenceDataModule:
    log = LogFile(item_path=options.pop("item_path", str(folder / "items.csv")))
    given = dict(max_length=LENGTH, batch_size=16, train_windows="prefixes", log=log)
    return SequenceDataModule(path=str(folder / "log.csv"), **{**given, **options})


def small(**options):
    from lightrec_sracl.objective import SRACL

    given = dict(objective=NextItem("last"), hidden_size=WIDTH, text_size=TEXT, num_neighbours=3)
    return SRACL(**{**given, **options})


def network(num_items, goal=None, dropout=0.0, **options):
    return SASRec(
        num_items, max_length=LENGTH, hidden_size=WIDTH, num_layers=1, dropout=dropout, objective=goal, **options
    )


def connected(data: SequenceDataModule, dropout=0.0, **options):
    """A SASRec whose SRACL has the tables of `data`."""
    goal = small(**options)
    goal.neighbours.connect(data.corpus)
    return network(data.num_items, goal, dropout), goal


def first_batch(data) -> Batch:
    return next(iter(data.train_dataloader()))


def trainer_in(folder, epochs=1) -> L.Trainer:
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=folder, **quiet)


def fit(model, data, folder, epochs=1):
    trainer_in(folder, epochs).fit(model, datamodule=data)
    return model


def refused(match, folder=None, data=None, **options):
    with pytest.raises(InputError, match=match):
        goal = small(**options)
        if data is not None or folder is not None:
            goal.neighbours.find((data or data_of(folder)).corpus)
