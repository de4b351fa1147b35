"""What an LiGR layer is, at the two ends of its gates, and what eSASRec is made of."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch
from lightrec.interfaces import History
from lightrec.models.esasrec import ESASRec, LiGREncoder, SwiGLU
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.blocks import GatedPreNorm
from lightrec.objectives.sampled import SampledSoftmax


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def block():
    return GatedPreNorm(8, MultiHeadAttention(8, 2), SwiGLU(8, 32, 0.3), dropout=0.3).eval()


def force_gates(block, value):
    for gate in (block.attention_gate, block.feed_forward_gate):
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.constant_(gate.bias, value)


def test_open_gates_make_a_pre_norm_transformer_block(block):
    force_gates(block, torch.inf)
    x, lengths = torch.randn(2, 5, 8), torch.tensor([5, 3])
    y = x + block.attention(F.layer_norm(x, (8,)), lengths)
    y = y + block.feed_forward(F.layer_norm(y, (8,)))
    assert torch.allclose(block(x, lengths), y, atol=1e-6)


def test_closed_gates_make_the_identity(block):
    force_gates(block, -torch.inf)
    x = torch.randn(2, 5, 8)
    assert torch.equal(block(x, torch.tensor([5, 3])), x)


def test_the_gate_reads_the_stream_before_its_norm(block):
    """A shift of the stream leaves its layer norm alone, so what changes is the gate."""
    x, lengths = torch.randn(1, 3, 8), torch.tensor([3])
    torch.nn.init.zeros_(block.feed_forward.down.weight)
    change = block(x, lengths) - x
    shifted = block(x + 2.0, lengths) - (x + 2.0)
    attended = block.attention(block.attention_norm(x), lengths)
    gate = torch.sigmoid(block.attention_gate(x + 2.0))
    assert torch.allclose(shifted, gate * attended, atol=1e-5)
    assert not torch.allclose(shifted, change, atol=1e-3)


def test_swiglu_is_the_written_out_formula():
    layer = SwiGLU(4, 6)
    x = torch.randn(3, 4)
    gate, up = layer.gate_up.weight.chunk(2)
    hidden = F.silu(x @ gate.T) * (x @ up.T)
    assert torch.allclose(layer(x), hidden @ layer.down.weight.T, atol=1e-6)
    assert all(p.dim() == 2 for p in layer.parameters())  # no biases


def test_the_past_does_not_see_the_future():
    encoder = LiGREncoder(6, 8, num_heads=2).eval()
    x = torch.randn(1, 6, 8)
    changed = torch.cat([x[:, :3], torch.randn(1, 3, 8)], 1)
    lengths = torch.tensor([6])
    assert torch.equal(encoder(History(x, lengths))[:, :3], encoder(History(changed, lengths))[:, :3])


def test_the_defaults_are_those_of_the_paper():
    model = ESASRec(50)
    assert isinstance(model.objective, SampledSoftmax)
    sampler = model.objective.sampler
    assert (sampler.num_negatives, sampler.proposal, sampler.shared, sampler.exclude) == (
        256,
        "uniform",
        "position",
        "nothing",
    )
    assert not model.objective.log_q
    assert model.items.output is None and model.encoder.blocks[0].feed_forward.down.in_features == 4 * 64


def test_a_row_longer_than_max_length_is_refused():
    model = ESASRec(9, max_length=3, hidden_size=8)
    batch = Batch(torch.ones(1, 4, dtype=torch.long), torch.tensor([4]), torch.arange(1))
    with pytest.raises(ValueError, match=r"4 items per row, more than max_length \(3\)"):
        model.recommend(batch, 2)
