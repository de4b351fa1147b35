"""Laws of attention over right-padded sequences."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.nn import attention
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.dropout import keep_mask
from lightrec.ops.blocks import budget


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_equals_the_written_out_formula():
    layer = MultiHeadAttention(8, num_heads=2).eval()
    x = torch.randn(3, 5, 8)
    q, (k, v) = layer.query(x), layer.key_value(x).chunk(2, -1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(F.softmax(scores, -1) @ v[..., part])
    expected = layer.output(torch.cat(heads, -1))
    assert torch.allclose(layer(x, torch.full((3,), 5)), expected, atol=1e-6)


def test_causal_attention_ignores_the_future():
    layer = MultiHeadAttention(8, 2).eval()
    x, lengths = torch.randn(2, 6, 8), torch.tensor([6, 6])
    changed = x.clone()
    changed[:, 3:] = torch.randn(2, 3, 8)
    assert torch.equal(layer(x, lengths)[:, :3], layer(changed, lengths)[:, :3])


def test_bidirectional_attention_ignores_padding_only():
    layer = MultiHeadAttention(8, 2, causal=False).eval()
    x, lengths = torch.randn(2, 6, 8), torch.tensor([4, 6])
    changed = x.clone()
    changed[0, 4:] = 1e3
    assert torch.allclose(layer(x, lengths)[0, :4], layer(changed, lengths)[0, :4], atol=1e-6)
    changed[1, 5] = 1e3
    assert not torch.allclose(layer(x, lengths)[1, 0], layer(changed, lengths)[1, 0])


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"hidden_size \(10\) must be divisible by num_heads \(3\)"):
        MultiHeadAttention(10, 3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tile_bytes", [1, 2**20])
def test_dropped_weights_give_the_written_out_formula_and_its_gradients(causal, tile_bytes):
    """The masks are drawn again from the same seed and put into the plain formula, which autograd differentiates."""
    p, lengths = 0.3, torch.tensor([7, 4, 1])
    mask = None if causal else (torch.arange(7) < lengths[:, None])[:, None, None, :]
    inputs = [torch.randn(3, 2, 7, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.manual_seed(1)
    with budget("attention weights", tile_bytes):
        out = attention._TiledDropoutAttention.apply(*inputs, mask, p, causal)
    probe = torch.randn_like(out)
    torch.manual_seed(1)
    tiles = [1, 1, 1] if tile_bytes == 1 else [3]
    keep = torch.cat([keep_mask(torch.Size((rows, 2, 7, 7)), p, torch.float64) for rows in tiles])
    assert 0.1 < (keep == 0).double().mean() < 0.5
    query, key, value = inputs
    scores = query @ key.transpose(-1, -2) / 5**0.5
    scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool() if causal else ~mask, -torch.inf)
    expected = (scores.softmax(-1) * keep) @ value
    assert torch.allclose(out, expected, atol=1e-12)
    made = torch.autograd.grad((out * probe).sum(), inputs)
    for one, other in zip(made, torch.autograd.grad((expected * probe).sum(), inputs), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_dropped_attention_is_right_on_average_and_whole_in_evaluation():
    layer = MultiHeadAttention(8, 2, dropout=0.5)
    x, lengths = torch.randn(2, 6, 8), torch.tensor([6, 6])
    with torch.no_grad():
        mean = torch.stack([layer(x, lengths) for _ in range(4000)]).mean(0)
        assert not torch.equal(layer(x, lengths), layer(x, lengths))
        layer.eval()
        assert torch.equal(layer(x, lengths), layer(x, lengths))
        assert torch.allclose(mean, layer(x, lengths), atol=0.05)


def test_dropped_attention_runs_under_autocast_and_on_no_rows():
    layer = MultiHeadAttention(8, 2, dropout=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(2, 6, 8), torch.tensor([6, 3]))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(w.grad.isfinite().all() and w.grad.abs().sum() > 0 for w in (layer.query.weight, layer.output.weight))
    assert layer(torch.randn(0, 6, 8), torch.zeros(0, dtype=torch.long)).shape == (0, 6, 8)
