"""Retrieval: from the training part only, never self, never padding; what is kept, and what can be wrong."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from lightrec import Batch, InputError
from lightrec.data.features import TfIdf, unit
from lightrec.data.nearest import nearest
from lightrec.interfaces import total

tables = pytest.importorskip("lightrec_sracl.tables", reason="lightrec-sracl is not installed")
from lightrec_sracl.tables import save  # noqa: E402

NUM_ITEMS, TEXT = 30, 8
GROUPS = ("red lipstick matte", "cordless drill battery", "garden hose water")


def test_similar_items_are_of_the_same_kind(kit, log):
    data = kit.data_of(log)
    near = kit.small().neighbours.find(data.corpus).item_neighbours
    kinds = {data.catalog.encode([f"i{i}"])[0]: i % 3 for i in range(30)}
    rows = [(i, j) for i in range(1, 31) for j in near[i].tolist() if j]
    assert len(rows) > 80 and all(kinds[i] == kinds[j] for i, j in rows)


def test_neighbours_are_never_self_never_padding_never_the_same_user(kit, log):
    for pool in ("users", "prefixes"):
        data = kit.data_of(log)
        tables = kit.small(pool=pool).neighbours.find(data.corpus)
        items = tables.item_neighbours
        assert not items[0].any() and not (items == torch.arange(31)[:, None])[1:].any()
        near = tables.neighbours
        assert (near >= 0).any()
        other = tables.user[near.clamp_min(0)] != tables.user[:, None]
        assert other[near >= 0].all()
    loose = kit.small(pool="prefixes", exclude_same_user=False).neighbours.find(kit.data_of(log).corpus)
    same = loose.user[loose.neighbours.clamp_min(0)] == loose.user[:, None]
    assert same.any() and not (loose.neighbours == torch.arange(len(loose))[:, None]).any()


@pytest.mark.parametrize("pool", ["users", "prefixes"])
@pytest.mark.parametrize("kind", ["tfidf", "collaborative"])
def test_tables_know_nothing_but_the_training_part(kit, log, tmp_path, pool, kind):
    """Other validation and test items for everybody change no table: the leak of the authors' code cannot happen."""
    frame = pl.read_csv(log / "log.csv")
    everything = pl.DataFrame({"user": ["all"] * 30, "item": [f"i{i}" for i in range(30)], "time": range(30)})
    last = pl.col("time").rank("ordinal", descending=True).over("user") <= 2
    other = frame.with_columns(pl.when(last).then(pl.lit("i29")).otherwise(pl.col("item")).alias("item"))
    tables = []
    for name, rows in (("one", frame), ("other", other)):  # the same first user, so that ids are the same
        (tmp_path / name).mkdir()
        pl.concat([everything, rows]).write_csv(tmp_path / name / "log.csv")
        data = kit.data_of(tmp_path / name, item_path=str(log / "items.csv"))
        assert [data.catalog.decode(i) for i in range(1, 31)] == [f"i{i}" for i in range(30)]
        tables.append(kit.small(pool=pool, text=kind).neighbours.find(data.corpus))
        assert (tables[-1].end <= torch.from_numpy(data.corpus.train.end)[tables[-1].user]).all()
    for part in ("item_neighbours", "user", "neighbours", "vectors", "begin", "end"):
        assert torch.equal(*(getattr(table, part) for table in tables)), part


def test_an_item_that_only_the_test_part_knows_is_never_put_into_a_history(kit, tmp_path):
    rows = [(f"u{u}", f"i{i}", 100 * u + i) for u in range(8) for i in range(6)] + [("u0", "i99", 10**6)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")
    names = [f"i{i}" for i in range(6)] + ["i99"]
    pl.DataFrame({"item": names, "title": [GROUPS[i % 3] for i in range(7)]}).write_csv(tmp_path / "items.csv")
    data = kit.data_of(tmp_path)
    new = data.catalog.encode(["i99"])[0]
    assert data.item_counts[new] == 0
    assert not (kit.small(num_neighbours=7).neighbours.find(data.corpus).item_neighbours == new).any()
    assert (
        kit.small(num_neighbours=7, trained_items_only=False).neighbours.find(data.corpus).item_neighbours == new
    ).any()


@pytest.mark.parametrize("pool", ["users", "prefixes"])
def test_every_training_history_is_found_in_its_pool(kit, log, pool):
    data = kit.data_of(log)
    _, goal = kit.connected(data, pool=pool)
    for batch in data.train_dataloader():
        inputs = batch.replace(item_ids=batch.item_ids[:, :-1], lengths=batch.lengths - 1)
        entry = goal.neighbours.retrieved.entries(inputs)
        assert (entry >= 0).all() and torch.equal(goal.neighbours.retrieved.tables.user[entry], batch.user_ids)
        if pool == "prefixes":
            found = goal.neighbours.retrieved.histories(entry)
            assert torch.equal(found.lengths, inputs.lengths)
            width = int(inputs.lengths.max())
            assert torch.equal(
                found.item_ids, inputs.item_ids[:, :width] * (torch.arange(width) < inputs.lengths[:, None])
            )
    stranger = Batch.from_histories([[1, 2, 3]])
    assert goal.neighbours.retrieved.entries(stranger).tolist() == [-1]


def test_vectors_of_your_own_are_used_as_they_are(kit, log, tmp_path):
    data = kit.data_of(log)
    names = [f"i{i}" for i in range(30)]
    vectors = np.random.default_rng(0).normal(size=(30, TEXT)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", items=np.array(names), vectors=vectors)
    tables = kit.small(text=str(tmp_path / "mine.npz")).neighbours.find(data.corpus)
    order = [int(data.catalog.decode(i)[1:]) for i in range(1, 31)]
    expected = nearest(np.concatenate([np.zeros((1, TEXT)), unit(vectors[order])]), 3)
    assert torch.equal(tables.item_neighbours, torch.from_numpy(np.maximum(expected, 0)))


def test_collaborative_vectors_need_no_text(kit, log):
    data = kit.data_of(log, item_path=None)
    near = kit.small(text="collaborative").neighbours.find(data.corpus).item_neighbours
    kinds = {data.catalog.encode([f"i{i}"])[0]: i % 3 for i in range(30)}
    rows = [kinds[i] == kinds[j] for i in range(1, 31) for j in near[i].tolist() if j]
    assert np.mean(rows) > 0.6  # a third would be chance: who buys one kind buys that kind


def test_slow_vectors_and_tables_are_made_once(kit, log, monkeypatch):
    data, calls, draw = kit.data_of(log), [], np.random.default_rng(0)
    monkeypatch.setattr(
        TfIdf, "encode", lambda self, texts, size, *rest: calls.append(1) or draw.normal(size=(len(texts), size))
    )
    kit.small().neighbours.find(data.corpus)
    kit.small().neighbours.find(data.corpus)
    assert len(calls) == 1
    kit.small(num_neighbours=2).neighbours.find(data.corpus)
    assert len(calls) == 1, "another number of neighbours needs no other vectors"


def test_a_data_set_without_text_is_told_what_to_choose(kit, log):
    kit.refused("has no text about its items; choose .*collaborative", data=kit.data_of(log, item_path=None))


def test_a_column_that_is_not_there_is_named_beside_those_that_are(kit, log):
    kit.refused("no text column 'brand', it has title", log, text_columns=["brand"])


def test_columns_that_are_empty_are_refused(kit, log, tmp_path):
    pl.DataFrame({"item": [f"i{i}" for i in range(30)], "title": [" "] * 30}).write_csv(tmp_path / "items.csv")
    kit.refused("are empty for all items", data=kit.data_of(log, item_path=str(tmp_path / "items.csv")))


def test_a_table_from_other_data_is_refused_by_name(kit, log, tmp_path):
    data, goal = kit.data_of(log), kit.small()
    tables = goal.neighbours.find(data.corpus)
    path = tmp_path / "table.npz"
    save(path, tables, goal.neighbours.facts(data.corpus))
    again = kit.small(table=str(path)).neighbours.find(data.corpus)
    assert torch.equal(again.neighbours, tables.neighbours)
    with pytest.raises(InputError, match="other data or settings: num_neighbours is 3 there and 2 here"):
        kit.small(table=str(path), num_neighbours=2).neighbours.find(data.corpus)
    frame = pl.read_csv(log / "log.csv").head(150)
    frame.write_csv(tmp_path / "log.csv")
    (tmp_path / "items.csv").write_text((log / "items.csv").read_text())
    with pytest.raises(InputError, match="neighbours from other data or settings"):
        kit.small(table=str(path)).neighbours.find(kit.data_of(tmp_path).corpus)
    with pytest.raises(InputError, match="no table of neighbours"):
        kit.small(table=str(tmp_path / "log.csv")).neighbours.find(data.corpus)
    with pytest.raises(InputError, match="no table of neighbours"):
        kit.small(table=str(tmp_path / "missing.npz")).neighbours.find(data.corpus)


def test_a_table_that_hides_objects_runs_no_code(kit, log, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    np.savez(tmp_path / "trap.npz", facts=np.array(json.dumps({})), begin=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="no table of neighbours"):
        kit.small(table=str(tmp_path / "trap.npz")).neighbours.find(kit.data_of(log).corpus)
    assert not (tmp_path / "trapped").exists()


def test_vectors_that_do_not_fit_are_refused(kit, log, tmp_path):
    np.savez(tmp_path / "wide.npz", items=np.array(["i0"]), vectors=np.ones((1, 5)))
    kit.refused(
        "gives 5 numbers per text, not 8: set --model.objective.text_size 5", log, text=str(tmp_path / "wide.npz")
    )
    np.savez(tmp_path / "others.npz", items=np.array(["x"]), vectors=np.ones((1, TEXT)))
    kit.refused("none of its 1 items is in the data", log, text=str(tmp_path / "others.npz"))
    kit.refused("No such file", log, text=str(tmp_path / "none.npz"))


def test_an_encoder_that_cannot_be_had_is_named(kit, log):
    pytest.importorskip("transformers", reason="transformers is not installed")
    kit.refused("'offline:maxilm' is unknown; choose offline:minilm", log, text="offline:maxilm")
    kit.refused("cannot be loaded", log, text=str(log))


def test_prefixes_are_found_only_among_prefixes(kit, log, tmp_path):
    data = kit.data_of(log, train_windows="last")
    with pytest.raises(InputError, match="--data.train_windows is last: set it to prefixes"):
        kit.fit(kit.network(data.num_items, kit.small(pool="prefixes")), data, tmp_path)


def test_without_a_data_module_it_says_what_it_needs(kit):
    with pytest.raises(InputError, match="train it with a data module, give a corpus to connect"):
        kit.network(NUM_ITEMS, kit.small()).loss(Batch.from_histories([[1, 2, 3]]))


def test_outside_a_run_it_counts_in_the_batch_and_forgets_it_afterwards(kit, log, tmp_path):
    data = kit.data_of(log)
    model = kit.network(data.num_items, kit.small(text="collaborative"))
    rows = Batch.from_histories([[1, 2, 3], [1, 2, 4], [2, 3, 4, 5]]).replace(user_ids=torch.arange(3))
    total(model.loss(rows)).backward()
    assert model.objective.mixture.adapter.weight.grad.any() and model.objective.neighbours.retrieved is None
    assert len(model.objective.neighbours.of(rows, data.num_items).tables) == 3
    kit.fit(model, data, tmp_path)
    assert len(model.objective.neighbours.retrieved.tables) == data.num_users
