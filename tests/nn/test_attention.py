"""Laws of attention over right-padded sequences."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.nn.attention import MultiHeadAttention


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
