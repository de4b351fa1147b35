"""SASRec's graphs against the formulas of the paper and of the released code, and where its positions begin."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightrec.data.batch import Batch
from lightrec.interfaces import History
from lightrec.models.sasrec import SASRec, SASRecEncoder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def norm(x, layer):
    """LN with the epsilon of the released code, which is that of a column of numbers here."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def attend(layer, query, memory):
    """One head over three items, row by row."""
    q, k, v = layer.query(query), *layer.key_value(memory).chunk(2, -1)
    rows = []
    for t in range(3):
        weights = F.softmax((k[: t + 1] @ q[t]) / math.sqrt(len(q[t])), 0)
        rows.append(weights @ v[: t + 1])
    return torch.stack(rows)


def randomised(**options):
    encoder = SASRecEncoder(max_length=4, hidden_size=4, num_layers=2, dropout=0.4, **options).eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(torch.randn_like(p))
    return encoder


def test_released_is_the_graph_of_the_released_code_on_three_items():
    encoder = randomised(fidelity="released")
    x = torch.randn(3, 4)
    y = x + encoder.positions.weight[[2, 1, 0]]  # the most recent item stands at 0
    for block in encoder.blocks:
        query = norm(y, block.attention_norm)  # only the query is normalised, and it is what the residual carries
        z = norm(query + attend(block.attention, query, y), block.feed_forward_norm)
        y = z + block.feed_forward.down(F.relu(block.feed_forward.up(z)))
    expected = norm(y, encoder.norm)
    assert torch.allclose(encoder(History(x[None], torch.tensor([3])))[0], expected, atol=1e-4)
    assert all(isinstance(b.attention.output, torch.nn.Identity) for b in encoder.blocks)  # no W_O
    assert encoder.norm.eps == 1e-8


def test_pre_norm_is_the_ordinary_transformer_block_on_three_items():
    encoder = randomised(variant="pre_norm")
    y = (x := torch.randn(3, 4)) + encoder.positions.weight[[2, 1, 0]]
    for block in encoder.blocks:
        normed = norm(y, block.attention_norm)
        y = y + block.attention.output(attend(block.attention, normed, normed))
        y = y + block.feed_forward(norm(y, block.feed_forward_norm))
    assert torch.allclose(encoder(History(x[None], torch.tensor([3])))[0], norm(y, encoder.norm), atol=1e-4)


def test_post_norm_is_the_block_of_bert_on_three_items():
    encoder = randomised(variant="post_norm")
    y = (x := torch.randn(3, 4)) + encoder.positions.weight[[2, 1, 0]]
    y = norm(y, encoder.input_norm)
    for block in encoder.blocks:
        y = norm(y + block.attention.output(attend(block.attention, y, y)), block.attention_norm)
        y = norm(y + block.feed_forward(y), block.feed_forward_norm)
    assert torch.allclose(encoder(History(x[None], torch.tensor([3])))[0], y, atol=1e-4)
    assert isinstance(encoder.norm, torch.nn.Identity) and encoder.input_norm.eps == 1e-12


def test_post_norm_is_drawn_as_published():
    model = SASRec(2000, max_length=50, hidden_size=32, variant="post_norm")
    drawn = [
        model.items.embedding.weight[1:],
        model.encoder.positions.weight,
        model.encoder.blocks[0].attention.query.weight,
    ]
    assert all(abs(weights.detach().std().item() - 0.02) < 0.002 for weights in drawn)
    assert model.items.scale == 1.0  # the norm comes after


@pytest.mark.parametrize(
    "graph", [dict(variant="pre_norm"), dict(fidelity="released"), dict(variant="post_norm")], ids=str
)
def test_the_past_is_bit_identical_whatever_comes_later(graph):
    encoder = SASRecEncoder(6, 8, num_heads=2, **graph).eval()
    x, lengths = torch.randn(1, 6, 8), torch.tensor([6])
    changed = torch.cat([x[:, :4], torch.randn(1, 2, 8)], 1)
    assert torch.equal(encoder(History(x, lengths))[:, :4], encoder(History(changed, lengths))[:, :4])


def test_positions_are_those_of_the_left_padded_original():
    """There, the last column is the most recent item, however short the history."""
    encoder = SASRecEncoder(5, 8).eval()
    entered = encoder.enter(History(torch.zeros(2, 4, 8), torch.tensor([4, 2]))).x
    for row, length in ((0, 4), (1, 2)):
        for t in range(length):
            assert torch.equal(entered[row, t], encoder.positions.weight[length - 1 - t])


def test_padding_on_the_right_changes_no_state():
    model = SASRec(9, max_length=6, hidden_size=8).eval()
    short = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([3]), torch.arange(1))
    padded = Batch(torch.tensor([[1, 2, 3, 0, 0, 0]]), torch.tensor([3]), torch.arange(1))
    assert torch.allclose(model.encode(short)[0], model.encode(padded)[0, :3], atol=1e-6)


def test_released_scales_what_it_reads_and_not_what_it_scores():
    model = SASRec(9, max_length=6, hidden_size=16, fidelity="released")
    table = model.items.embedding.weight
    assert torch.allclose(model.items(torch.tensor([3])), 4 * table[3])
    hidden = torch.randn(1, 16)
    assert torch.allclose(model.items.score(hidden)[:, 1:], hidden @ table[1:].T, atol=1e-6)


def test_an_unknown_variant_and_a_long_row_are_refused():
    with pytest.raises(ValueError, match="variant 'post' is unknown; choose query_norm, pre_norm, post_norm"):
        SASRecEncoder(4, 8, variant="post")
    with pytest.raises(ValueError, match="fidelity='released' is the block `query_norm`, got variant 'pre_norm'"):
        SASRecEncoder(4, 8, variant="pre_norm", fidelity="released")
    with pytest.raises(ValueError, match=r"5 items per row, more than max_length \(4\)"):
        SASRecEncoder(4, 8)(History(torch.zeros(1, 5, 8), torch.tensor([5])))
