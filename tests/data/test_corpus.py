"""The corpus as a part of a model meets it."""

import dataclasses

import numpy as np
import pytest

from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.options import LogFile


@pytest.fixture
def data(tmp_path):
    rows = [f"u{u},i{(u + t) % 12},{1_000_000_000 + 100 * t + u}" for u in range(9) for t in range(u + 1)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    items = [f"i{i},Film {i},{'' if i % 2 else 'Drama|War'},{i / 2}" for i in range(12)]
    (tmp_path / "items.csv").write_text("\n".join(["id,title,genres,price", *items]) + "\n")
    return SequenceDataModule(
        path=str(tmp_path / "log.csv"),
        log=LogFile(item_path=str(tmp_path / "items.csv")),
        max_length=4,
        train_windows="all",
        seed=7,
        cache_dir=str(tmp_path / "cache"),
    )


def test_a_corpus_says_what_the_data_module_knows(data, tmp_path):
    corpus = data.corpus
    assert corpus is data.corpus  # made once
    assert (corpus.num_items, corpus.num_users, corpus.max_length, corpus.seed) == (12, 9, 4, 7)
    assert corpus.train_windows == "all" and corpus.cache == tmp_path / "cache" and corpus.name == "file"
    assert corpus.data_sha256 == data.protocol()["data_sha256"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        corpus.seed = 1


def test_the_counts_are_those_of_the_training_ranges(data):
    corpus, train = data.corpus, data.corpus.train
    assert len(train) == corpus.num_users and train.times.shape == train.items.shape
    events = np.concatenate([train.items[b:e] for b, e in zip(train.begin, train.end, strict=True)])
    assert corpus.item_counts.tolist() == np.bincount(events, minlength=corpus.num_items + 1).tolist()
    assert len(events) < len(train.items)  # the others are asked for


def test_the_catalog_has_every_column_of_the_items_table(data):
    frame = data.corpus.catalog.frame
    assert frame.columns == ["item", "title", "genres", "price"]
    row = frame.row(data.corpus.catalog.encode(["i4"])[0] - 1, named=True)
    assert row == {"item": "i4", "title": "Film 4", "genres": "Drama|War", "price": "2.0"}
