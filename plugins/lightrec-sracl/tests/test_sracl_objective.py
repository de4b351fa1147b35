"""The two losses of SRA-CL: positives, views, and their sum with the loss beside."""

import copy

import pytest
import torch

from lightrec import Batch, InputError, testing
from lightrec.interfaces import total
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem
from lightrec.ops.blocks import budget
from lightrec.recommender import AdamW

objective = pytest.importorskip("lightrec_sracl.objective", reason="lightrec-sracl is not installed")
from lightrec_sracl.losses import info_nce  # noqa: E402
from lightrec_sracl.objective import SRACL, last_states  # noqa: E402

NUM_ITEMS, WIDTH = 30, 16


def test_with_one_neighbour_the_positive_is_its_state(kit, log):
    data = kit.data_of(log)
    model, goal = kit.connected(data, num_neighbours=1)
    retrieved = goal.neighbours.retrieved
    model.eval()
    entry = torch.arange(10)
    near = retrieved.tables.neighbours[entry]
    kept = (near >= 0).squeeze(1)
    found = goal.synthesise(model, retrieved, entry[kept], near[kept])
    assert torch.allclose(found, model.query(retrieved.histories(near[kept].squeeze(1))), atol=1e-5)


def test_the_positive_is_the_weighted_sum_of_states_encoded_one_by_one(kit, log):
    data = kit.data_of(log)
    model, goal = kit.connected(data)
    kept = goal.neighbours.retrieved
    model.eval()
    near = kept.tables.neighbours[:6]
    weights = goal.mixture(
        kept.tables.vectors[:6].float(),
        kept.tables.vectors[near.clamp_min(0)].float(),
        near >= 0,
    )
    for row in range(6):
        expected = sum(
            weights[row, j] * model.query(kept.histories(near[row, j][None]))[0] for j in range(3) if near[row, j] >= 0
        )
        assert torch.allclose(goal.synthesise(model, kept, torch.arange(6), near)[row], expected, atol=1e-5)


def test_a_step_encodes_little_padding(kit, log, monkeypatch):
    model, _ = kit.connected(kit.data_of(log))
    lengths = [1 + i % 5 for i in range(60)] + [40]
    histories = [[1 + (7 * i + j) % NUM_ITEMS for j in range(n)] for i, n in enumerate(lengths)]
    model.encoder = type(model.encoder)(40, WIDTH, num_layers=1, dropout=0.0)
    model.eval()
    rows, encoded, real = Batch.from_histories(histories), [], model.query
    expected = torch.cat([real(Batch.from_histories([history])) for history in histories])
    monkeypatch.setattr(model, "query", lambda batch: (encoded.append(batch.item_ids.numel()), real(batch))[1])
    assert torch.allclose(last_states(model, rows), expected, atol=1e-5)
    assert rows.lengths.sum() <= sum(encoded) <= 1.25 * rows.lengths.sum()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("pool", ["users", "prefixes"])
@pytest.mark.parametrize("room", [2**31, 0])
def test_a_gpu_gives_the_losses_and_gradients_of_a_cpu(kit, log, pool, room):
    data = kit.data_of(log)
    model, goal = kit.connected(data, pool=pool, replace=0.0, attention_dropout=0.0)
    other, found = copy.deepcopy(model).to("cuda"), []
    for each, device in ((model, "cpu"), (other, "cuda")):
        with budget("tables", room):  # with none the tables stay where they are
            total(each.loss(kit.first_batch(data).to(device))).backward()
        assert each.objective.neighbours.retrieved.tables.vectors.device.type == (device if room else "cpu")
        found.append({name: p.grad.cpu() for name, p in each.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and "objective.mixture.attention" in found[0]
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5), name


def test_without_their_gradient_similar_histories_are_a_fixed_goal(kit, log):
    data = kit.data_of(log)
    grads = []
    for flows in (True, False):
        torch.manual_seed(1)
        model, goal = kit.connected(data, neighbour_gradient=flows)
        kept = goal.neighbours.retrieved
        found = goal.synthesise(model, kept, torch.arange(5), kept.tables.neighbours[:5])
        found.square().sum().backward()
        grads.append(model.items.embedding.weight.grad)
        assert goal.mixture.adapter.weight.grad.any() and goal.mixture.attention.grad.any()
    assert grads[0].any() and grads[1] is None


def test_replacement_is_as_often_as_asked_and_never_touches_padding(kit, log):
    data = kit.data_of(log)
    _, goal = kit.connected(data)
    kept = goal.neighbours.retrieved
    batch = Batch.from_histories([[1, 2, 3, 4], [5, 6]] * 500)
    ids = goal.replaced(kept, batch)
    assert (ids[batch.item_ids == 0] == 0).all() and (ids[batch.item_ids > 0] > 0).all()
    similar = kept.tables.item_neighbours[batch.item_ids]
    changed = ids != batch.item_ids
    assert (similar[changed] == ids[changed][:, None]).any(1).all()
    able = (similar > 0).any(-1)
    assert 0.17 < changed[able].float().mean() < 0.23


def test_an_item_without_text_is_neither_replaced_nor_put_in(kit, log):
    data = kit.data_of(log)
    _, goal = kit.connected(data, replace=1.0)
    kept = goal.neighbours.retrieved
    silent = data.catalog.encode(["i7"])[0]
    assert not kept.tables.item_neighbours[silent].any()
    assert not (kept.tables.item_neighbours == silent).any()
    assert (goal.replaced(kept, Batch.from_histories([[silent] * 4])) == silent).all()


@pytest.mark.parametrize("fidelity", ["released", "paper"])
def test_without_replacement_both_views_are_the_history(kit, log, fidelity):
    data = kit.data_of(log)
    model, goal = kit.connected(data, replace=0.0, fidelity=fidelity)
    kept = goal.neighbours.retrieved
    model.eval()
    batch = Batch.from_histories([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    assert torch.equal(goal.replaced(kept, batch), batch.item_ids)
    states = model.query(batch)
    assert torch.allclose(goal.between_views(model, kept, batch), info_nce(states, states, 1.0, fidelity), atol=1e-6)


def test_with_both_weights_at_zero_nothing_changes(kit, log):
    data = kit.data_of(log)
    batch, results = kit.first_batch(data), []
    for goal in (NextItem("last"), kit.small(user_weight=0, item_weight=0)):
        torch.manual_seed(3)
        model = kit.network(data.num_items, goal, dropout=0.3)
        torch.manual_seed(4)
        loss = total(model.loss(batch))
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_loss_is_the_sum_of_its_three_parts(kit, log, positions):
    data = kit.data_of(log)
    model, goal = kit.connected(data, objective=NextItem(positions), user_weight=0.3, item_weight=0.7, replace=0.0)
    kept = goal.neighbours.retrieved
    model.eval()
    batch = kit.first_batch(data)
    inputs = batch.replace(item_ids=batch.item_ids[:, :-1], lengths=batch.lengths - 1)
    expected = (
        total(NextItem(positions)(model, batch))
        + 0.3 * goal.between_histories(model, kept, inputs, model.query(inputs))
        + 0.7 * goal.between_views(model, kept, inputs)
    )
    assert torch.allclose(total(model.loss(batch)), expected, atol=1e-4)


def test_text_vectors_get_no_gradient_and_the_mixture_does(kit, log):
    data = kit.data_of(log)
    model, goal = kit.connected(data)
    total(model.loss(kit.first_batch(data))).backward()
    assert not goal.neighbours.retrieved.tables.vectors.requires_grad
    assert goal.mixture.adapter.weight.grad.any() and goal.mixture.attention.grad.any()


def test_numbers_out_of_range_are_refused(kit):
    kit.refused("user_weight .* must be at least 0", user_weight=-1)
    kit.refused("num_neighbours .* at least 1", num_neighbours=0)
    kit.refused("replace .* between 0 and 1", replace=1.5)
    kit.refused("temperature .* above 0", temperature=0)
    kit.refused("fidelity 'both' is unknown", fidelity="both")
    kit.refused("pool 'all' is unknown", pool="all")


def test_another_width_of_the_model_is_named(kit, log, tmp_path):
    data = kit.data_of(log)
    with pytest.raises(InputError, match="set --model.objective.hidden_size 16"):
        kit.fit(kit.network(data.num_items, kit.small(hidden_size=12)), data, tmp_path)


def test_the_contracts_of_an_objective_hold_without_text():
    def factory(num_items, max_length):
        goal = SRACL(hidden_size=32, text="collaborative", text_size=8, num_neighbours=3, attention_dropout=0.0)
        return SASRec(
            num_items,
            max_length=max_length,
            hidden_size=32,
            num_layers=1,
            dropout=0.1,
            objective=goal,
            optimizer=AdamW(learning_rate=1e-2),
        )

    testing.check_config_round_trip(factory)
    testing.check_gradients_at_length_one(factory)
    testing.check_learns_toy_rule(factory)
    testing.check_two_processes(factory)
