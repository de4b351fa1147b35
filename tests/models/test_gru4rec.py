"""GRU4Rec: the pass over a history, and going on event by event."""

import pytest
import torch

from lightrec.data.batch import Batch
from lightrec.models.gru4rec import GRU4Rec, GRU4RecEncoder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("num_layers", "inner_size"), [(1, None), (2, 12), (3, 8)])
def test_going_on_event_by_event_equals_the_full_pass(num_layers, inner_size):
    encoder = GRU4RecEncoder(8, num_layers, inner_size, dropout=0.5).eval()
    x, lengths = torch.randn(3, 7, 8), torch.tensor([7, 7, 7])
    prepared = encoder.prepare(x, lengths)
    state, steps = encoder.init_state(3), []
    for t in range(7):
        hidden, state = encoder.step(prepared[:, t], state)
        steps.append(hidden)
    assert torch.allclose(torch.stack(steps, 1), encoder(x, lengths), atol=1e-6)


def test_a_step_equals_the_written_out_gates():
    encoder = GRU4RecEncoder(4).eval()
    layer = encoder.layers[0]
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x, before = torch.randn(2, 4), torch.randn(2, 4)
    wi, wh = layer.weight_ih_l0.chunk(3), layer.weight_hh_l0.chunk(3)
    bi, bh = layer.bias_ih_l0.chunk(3), layer.bias_hh_l0.chunk(3)
    reset, update = (torch.sigmoid(x @ wi[g].T + bi[g] + before @ wh[g].T + bh[g]) for g in (0, 1))
    candidate = torch.tanh(x @ wi[2].T + bi[2] + reset * (before @ wh[2].T + bh[2]))
    expected = (1 - update) * candidate + update * before
    hidden, state = encoder.step(x, [before[None]])
    assert torch.allclose(hidden, expected, atol=1e-6) and torch.equal(state[0][0], hidden)


def test_gradients_flow_through_time():
    encoder = GRU4RecEncoder(8, dropout=0.0)
    x = torch.randn(1, 20, 8, requires_grad=True)
    encoder(x, torch.tensor([20]))[0, -1].sum().backward()
    assert (x.grad[0].abs().sum(1) > 0).all()


def test_a_history_of_any_length_is_read():
    model = GRU4Rec(9, hidden_size=8).eval()
    batch = Batch(torch.randint(1, 10, (2, 300)), torch.tensor([300, 150]), torch.arange(2))
    item_ids, scores = model.recommend(batch, 3)
    assert item_ids.shape == (2, 3) and scores.isfinite().all()


def test_scores_use_the_input_table():
    model = GRU4Rec(9, hidden_size=8, inner_size=12)
    assert model.items.output is None
    assert torch.allclose(model.items(torch.tensor([3])), 8**0.5 * model.items.embedding.weight[3])  # scaled on entry
    assert model.encoder.output.in_features == 12 and model.encoder.output.out_features == 8
