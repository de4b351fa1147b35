"""Mamba4Rec: the graph by number of layers, streaming, padding, and what training and ranking ask of it."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch
from lightrec.interfaces import History, total
from lightrec.models.mamba4rec import Mamba4Rec, Mamba4RecEncoder
from lightrec.objectives.next_item import NextItem


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-12)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_one_layer_has_no_residual_and_several_have(num_layers):
    encoder = Mamba4RecEncoder(8, num_layers, state_size=4).eval()
    x = torch.randn(2, 6, 8)
    expected = norm(x)
    for layer in encoder.layers:
        mixed = layer.mixer(expected)
        y = norm(mixed if num_layers == 1 else mixed + expected)
        expected = norm(layer.feed_forward(y) + y)
    assert torch.allclose(encoder(History(x, torch.tensor([6, 3]))), expected, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("fidelity", ["ours", "released"])
def test_going_on_event_by_event_equals_the_full_pass(num_layers, fidelity):
    encoder = Mamba4RecEncoder(8, num_layers, state_size=4, dropout=0.5, fidelity=fidelity).eval()
    x, lengths = torch.randn(3, 40, 8), torch.tensor([40, 40, 40])
    entered = encoder.enter(History(x, lengths)).x
    state, steps = encoder.init_state(3), []
    for t in range(40):
        hidden, state = encoder.step(entered[:, t], state)
        steps.append(hidden)
    assert torch.allclose(torch.stack(steps, 1), encoder(History(x, lengths)), atol=1e-5)
    assert all(part.shape[0] == 3 for layer in state for part in layer)


def test_the_last_state_is_that_of_the_full_pass():
    encoder = Mamba4RecEncoder(8, 2, state_size=4).eval()
    history = History(torch.randn(3, 7, 8), torch.tensor([7, 1, 4]))
    full = encoder(history)[torch.arange(3), history.lengths - 1]
    assert torch.allclose(encoder.last(history), full, atol=1e-6)


def test_what_stands_behind_the_history_changes_no_ranking_to_the_bit():
    model = Mamba4Rec(30, hidden_size=8, state_size=4).eval()
    ids, lengths = torch.randint(1, 31, (4, 12)), torch.tensor([12, 5, 1, 9])
    real = torch.arange(12) < lengths[:, None]
    padded = Batch(ids.where(real, 0), lengths, torch.arange(4))
    junk = Batch(ids, lengths, torch.arange(4))
    assert torch.equal(model.query(padded), model.query(junk))


def test_the_dropout_of_the_input_comes_before_its_norm():
    encoder = Mamba4RecEncoder(64, dropout=0.5).train()
    x = encoder.enter(History(torch.randn(4, 5, 64), torch.full((4,), 5))).x
    assert torch.allclose(x.mean(-1), torch.zeros(4, 5), atol=1e-5)
    assert torch.allclose(x.std(-1, unbiased=False), torch.ones(4, 5), atol=1e-3)


def test_scores_are_inner_products_with_the_input_table_and_padding_is_no_class():
    model = Mamba4Rec(9, hidden_size=8, state_size=4)
    hidden = torch.randn(2, 8)
    scores = model.items.score(hidden)
    assert torch.allclose(scores[:, 1:], hidden @ model.items.embedding.weight[1:].T, atol=1e-6)
    assert (scores[:, 0] == -torch.inf).all() and not model.items.embedding.weight[0].any()
    assert model.items.output is None and model.items.bias is None


def test_a_loss_at_every_position_asks_what_the_prefixes_ask():
    """One pass over a window gives the losses of all its prefixes: the published training, only cheaper."""
    model = Mamba4Rec(9, hidden_size=8, state_size=4).eval()
    ids = torch.randint(1, 10, (1, 7))
    together = model.objective(model, Batch(ids, torch.tensor([7]), torch.tensor([0])))
    prefixes = torch.zeros(6, 7, dtype=torch.long)
    for i in range(6):
        prefixes[i, : i + 2] = ids[0, : i + 2]
    apart = NextItem(positions="last")(model, Batch(prefixes, torch.arange(2, 8), torch.zeros(6, dtype=torch.long)))
    assert torch.allclose(total(together), total(apart), atol=1e-6)


def test_the_parameters_are_those_of_the_paper():
    model = Mamba4Rec(3416)
    per_part = {
        "mixer": sum(p.numel() for p in model.encoder.layers[0].mixer.parameters()),
        "table": model.items.embedding.weight.numel(),
        "all": sum(p.numel() for p in model.parameters()),
    }
    feed_forward = 64 * 256 + 256 + 256 * 64 + 64
    norms = 3 * 2 * 64
    assert per_part["mixer"] == 38_784 and per_part["table"] == 3417 * 64
    assert per_part["all"] == 38_784 + 3417 * 64 + feed_forward + norms


def test_the_initialisation_is_chosen_by_name():
    released, ours = (Mamba4Rec(9, fidelity=word).encoder.layers[0] for word in ("released", "ours"))
    assert not released.mixer.dt_proj.bias.any() and 0.018 < released.feed_forward.up.weight.std() < 0.022
    assert F.softplus(ours.mixer.dt_proj.bias).max() < 0.101
    with pytest.raises(ValueError, match="fidelity 'other' is unknown; choose ours, released"):
        Mamba4Rec(9, fidelity="other")
    with pytest.raises(ValueError, match=r"num_layers \(0\)"):
        Mamba4Rec(9, num_layers=0)


def test_a_history_of_any_length_is_read():
    model = Mamba4Rec(9, hidden_size=8, state_size=4).eval()
    batch = Batch(torch.randint(1, 10, (2, 700)), torch.tensor([700, 150]), torch.arange(2))
    item_ids, scores = model.recommend(batch, 3)
    assert item_ids.shape == (2, 3) and scores.isfinite().all()
