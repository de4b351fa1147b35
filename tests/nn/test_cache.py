"""Laws of caches: going on from one is reading the whole sequence again, whatever the layers are."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.cache import Cache
from lightrec.nn.gru import GRU
from lightrec.nn.mamba import MambaLayer

D, L = 8, 6
LENGTHS = torch.tensor([6, 3, 1, 4])
EXACT = dict(rtol=0, atol=1e-10)  # float64: another order of summation, and nothing else


class Residual(nn.Module):
    """x + attention of LN(x), so that layers of all kinds may follow each other."""

    def __init__(self, causal=True):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(D), MultiHeadAttention(D, 2, causal=causal)

    def forward(self, x, lengths, cache=None):
        return x + self.attention(self.norm(x), lengths, cache=cache)


class Network(nn.Module):
    """Layers in order, each of which is handed the cache."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layer() for layer in layers)

    def forward(self, x, lengths, cache=None):
        for layer in self.layers:
            x = layer(x, lengths, cache) if isinstance(layer, Residual) else layer(x, cache=cache)
        return x


RECURRENT = {
    "GRU": partial(Network, partial(GRU, D, D), partial(GRU, D, D)),
    "Mamba": partial(Network, partial(MambaLayer, D, 4), partial(MambaLayer, D, 4, conv_size=1)),
    "all three": partial(Network, Residual, partial(MambaLayer, D, 4), partial(GRU, D, D), Residual),
}
CAUSAL = {"attention": partial(Network, Residual, Residual), **RECURRENT}
causal = pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def appended(x, lengths, *tokens):
    """Puts tokens [B, D] right behind the last real item of each row; returns the rows and their lengths."""
    x = torch.cat([x, x.new_zeros(len(x), len(tokens), D)], 1)
    for token in tokens:
        x = torch.where((torch.arange(x.shape[1]) == lengths[:, None])[..., None], token[:, None], x)
        lengths = lengths + 1
    return x, lengths


def last_of(network, x, lengths):
    return network(x, lengths)[torch.arange(len(x)), lengths - 1]


@causal
def test_tokens_behind_a_cache_are_the_whole_sequence_read_again(make):
    network, x, tokens = make().double().eval(), drawn(4, L, D), drawn(3, 4, D)
    cache = Cache(LENGTHS)
    network(x, LENGTHS, cache)
    for n in range(1, 4):
        cache = cache.following()
        found = network(tokens[n - 1][:, None], LENGTHS, cache)[:, 0]
        assert torch.allclose(found, last_of(network, *appended(x, LENGTHS, *tokens[:n])), **EXACT)


@causal
def test_a_pass_that_fills_a_cache_gives_the_states_of_one_without(make):
    network, x = make().double().eval(), drawn(4, L, D)
    real = torch.arange(L) < LENGTHS[:, None]
    assert torch.allclose(network(x, LENGTHS, Cache(LENGTHS))[real], network(x, LENGTHS)[real], **EXACT)


@causal
def test_padding_content_does_not_change_what_follows(make):
    network, x, token = make().double().eval(), drawn(4, L, D), drawn(4, 1, D)
    found = []
    for padding in (0.0, 99.0):
        rows = torch.where((torch.arange(L) < LENGTHS[:, None])[..., None], x, padding)
        cache = Cache(LENGTHS)
        network(rows, LENGTHS, cache)
        found.append(network(token, LENGTHS, cache.following()))
    assert torch.allclose(*found, **EXACT)


@causal
def test_gradients_flow_through_a_cache_as_through_the_whole_sequence(make):
    cached, x, tokens, weight = make().double().eval(), drawn(4, L, D), drawn(2, 4, D), drawn(4, D)
    whole = copy.deepcopy(cached)
    inputs = [(x.clone().requires_grad_(), tokens.clone().requires_grad_()) for _ in range(2)]
    cache = Cache(LENGTHS)
    cached(inputs[0][0], LENGTHS, cache)
    for token in inputs[0][1]:
        cache = cache.following()
        out = cached(token[:, None], LENGTHS, cache)[:, 0]
    (out * weight).sum().backward()
    (last_of(whole, *appended(inputs[1][0], LENGTHS, *inputs[1][1])) * weight).sum().backward()
    for (name, p), q in zip(cached.named_parameters(), whole.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-8, atol=1e-9), name
    for one, other in zip(*inputs, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-8, atol=1e-9)
    assert not inputs[0][0].grad[torch.arange(L) >= LENGTHS[:, None]].any()


@causal
def test_branches_of_a_row_do_not_see_each_other_and_may_be_chosen_as_in_a_beam_search(make):
    network, x = make().double().eval(), drawn(4, L, D)
    first, second = drawn(4, 3, D), drawn(4, 2, D)
    chosen = torch.tensor([[2, 2], [0, 1], [1, 0], [2, 0]])
    cache = Cache(LENGTHS)
    network(x, LENGTHS, cache)
    cache = cache.following()
    beams = network(first, LENGTHS, cache)
    for b in range(3):
        assert torch.allclose(beams[:, b], last_of(network, *appended(x, LENGTHS, first[:, b])), **EXACT)
    found = network(second, LENGTHS, cache.select(chosen).following())
    for b in range(2):
        parent = first[torch.arange(4), chosen[:, b]]
        expected = last_of(network, *appended(x, LENGTHS, parent, second[:, b]))
        assert torch.allclose(found[:, b], expected, **EXACT)


@causal
def test_two_continuations_of_one_cache_do_not_disturb_each_other(make):
    network, x, (one, other) = make().double().eval(), drawn(4, L, D), drawn(2, 4, 1, D)
    cache = Cache(LENGTHS)
    network(x, LENGTHS, cache)
    expected = network(one, LENGTHS, cache.following())
    network(other, LENGTHS, cache.following())
    assert torch.equal(network(one, LENGTHS, cache.following()), expected)


def test_a_branch_behind_each_position_sees_what_came_before_it():
    network, x, tokens = CAUSAL["attention"]().double().eval(), drawn(4, L, D), drawn(2, 4, L, D)
    cache = Cache(LENGTHS, "each")
    network(x, LENGTHS, cache)
    for n in range(1, 3):
        cache = cache.following()
        found = network(tokens[n - 1], LENGTHS, cache)
        for t in range(L):
            prefix = torch.full((4,), t + 1)
            sequence = appended(x[:, : t + 1], prefix, *tokens[:n, :, t])
            assert torch.allclose(found[:, t], last_of(network, *sequence), **EXACT)


def test_branches_behind_each_position_may_be_narrowed_to_the_last():
    network, x, token = CAUSAL["attention"]().double().eval(), drawn(4, L, D), drawn(4, 1, D)
    caches = Cache(LENGTHS), Cache(LENGTHS, "each")
    for cache in caches:
        network(x, LENGTHS, cache)
    expected = network(token, LENGTHS, caches[0].following())
    assert torch.equal(network(token, LENGTHS, caches[1].at_last().following()), expected)
    cache = caches[1].following()
    network(drawn(4, L, D), LENGTHS, cache)
    with pytest.raises(RuntimeError, match="has read tokens"):
        cache.at_last()


def test_a_bidirectional_layer_has_the_prefix_mask_behind_its_items():
    layer, x, tokens = MultiHeadAttention(D, 2, causal=False).double().eval(), drawn(1, 4, D), drawn(1, 2, D)
    cache, lengths = Cache(torch.tensor([4])), torch.tensor([4])
    found = [layer(x, lengths, cache=cache)]
    for t in range(2):
        cache = cache.following()
        found.append(layer(tokens[:, t : t + 1], lengths, cache=cache))
    sequence, see = torch.cat([x, tokens], 1), torch.ones(6, 6, dtype=torch.bool).tril()
    see[:4, :4] = True
    heads = [t.unflatten(-1, (2, -1)).transpose(1, 2) for t in layer.key_value(sequence).chunk(2, -1)]
    query = layer.query(sequence).unflatten(-1, (2, -1)).transpose(1, 2)
    whole = nn.functional.scaled_dot_product_attention(query, *heads, see)
    assert torch.allclose(torch.cat(found, 1), layer.output(whole.transpose(1, 2).flatten(2)), **EXACT)


def test_the_last_position_alone_fills_the_same_cache():
    layer, x, token = MultiHeadAttention(D, 2).double().eval(), drawn(4, L, D), drawn(4, 1, D)
    caches = Cache(LENGTHS), Cache(LENGTHS)
    whole = layer(x, LENGTHS, cache=caches[0])[torch.arange(4), LENGTHS - 1]
    assert torch.allclose(layer.last(x[torch.arange(4), LENGTHS - 1], LENGTHS, x, caches[1]), whole, **EXACT)
    found = [layer(token, LENGTHS, cache=cache.following()) for cache in caches]
    assert torch.equal(*found)


def test_tokens_are_dropped_from_attention_in_training_only():
    layer, x, token = MultiHeadAttention(D, 2, dropout=0.5), torch.randn(4, L, D), torch.randn(4, 1, D)
    cache = Cache(LENGTHS)
    layer(x, LENGTHS, cache=cache)
    assert not torch.equal(*(layer(token, LENGTHS, cache=cache.following()) for _ in range(2)))
    layer.eval()
    assert torch.equal(*(layer(token, LENGTHS, cache=cache.following()) for _ in range(2)))


class Twice(nn.Module):
    """Reads a sequence and two tokens behind it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, lengths, tokens):
        cache = Cache(lengths)
        out = [self.network(x, lengths, cache)]
        for t in range(2):
            cache = cache.following()
            out.append(self.network(tokens[:, t : t + 1], lengths, cache))
        return torch.cat(out, 1)


@pytest.mark.parametrize("make", [CAUSAL["attention"], CAUSAL["GRU"]], ids=["attention", "GRU"])
def test_a_network_is_exported_with_its_cache_for_any_number_of_rows(make):
    network = Twice(make().eval())
    rows = torch.export.Dim("rows", min=2, max=64)
    example = torch.randn(4, L, D), LENGTHS, torch.randn(4, 2, D)
    program = torch.export.export(network, example, dynamic_shapes=({0: rows}, {0: rows}, {0: rows}), strict=True)
    other = torch.randn(7, L, D), torch.randint(1, L + 1, (7,)), torch.randn(7, 2, D)
    assert torch.allclose(program.module()(*other), network(*other), atol=1e-5)


def test_a_layer_that_runs_twice_in_a_pass_is_refused():
    layer, x = Residual(), torch.randn(4, L, D)
    network = Network(lambda: layer, lambda: layer)
    with pytest.raises(RuntimeError, match="MultiHeadAttention ran twice in one pass"):
        network(x, LENGTHS, Cache(LENGTHS))


def test_a_network_that_does_not_hand_its_cache_on_is_told():
    with pytest.raises(RuntimeError, match="must hand its cache on"):
        Cache(LENGTHS).following()
    one, other, x = GRU(D, D), GRU(D, D), torch.randn(4, L, D)
    cache = Cache(LENGTHS)
    one(x, cache)
    with pytest.raises(RuntimeError, match="GRU kept nothing in the pass before"):
        other(x[:, :1], cache.following())


@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
def test_a_recurrence_has_no_branches_behind_each_position(make):
    with pytest.raises(NotImplementedError, match="read the sequence event by event"):
        make()(torch.randn(4, L, D), LENGTHS, Cache(LENGTHS, "each"))


@pytest.mark.parametrize("make", [partial(GRU, D, 5), partial(MambaLayer, D, 4)], ids=["GRU", "Mamba"])
def test_the_state_in_a_cache_is_that_which_steps_reach(make):
    layer, x = make().double().eval(), drawn(4, L, D)
    cache = Cache(LENGTHS)
    layer(x, cache=cache)
    for row, length in enumerate(LENGTHS.tolist()):
        state = layer.init_state(1)
        for t in range(length):
            _, state = layer.step(x[row : row + 1, t], state)
        kept, reached = (list(s) if isinstance(s, tuple) else [s] for s in (cache.state(layer), state))
        for a, b in zip(kept, reached, strict=True):
            assert a.shape[1:] == b.shape[1:] and torch.allclose(a[row], b[0], **EXACT)
