"""The gated recurrent layer: torch's, going on event by event."""

import torch
from torch import nn

from lightrec.nn.gru import GRU


def test_it_is_the_layer_of_torch_under_the_same_names():
    torch.manual_seed(0)
    layer, plain = GRU(4, 6), nn.GRU(4, 6, batch_first=True)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 7, 4)
    assert torch.equal(layer(x), plain(x)[0])


def test_going_on_event_by_event_equals_the_full_pass():
    layer, x = GRU(4, 6, bias=False).double(), torch.randn(3, 7, 4, dtype=torch.float64)
    state, steps = layer.init_state(3), []
    for t in range(7):
        out, state = layer.step(x[:, t], state)
        steps.append(out)
    assert torch.allclose(torch.stack(steps, 1), layer(x), rtol=0, atol=1e-12)
