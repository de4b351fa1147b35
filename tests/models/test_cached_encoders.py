"""Encoders that hand a cache through: tokens behind a history, and histories that are read at once."""

from functools import partial

import pytest
import torch
from torch.utils import _pytree as pytree

from lightrec import History, SequenceEncoder
from lightrec.models.bert4rec import BERT4RecEncoder
from lightrec.models.esasrec import LiGREncoder
from lightrec.models.gru4rec import GRU4RecEncoder
from lightrec.models.hmamba import HMambaEncoder
from lightrec.models.mamba4rec import Mamba4RecEncoder
from lightrec.models.sasrec import SASRecEncoder
from lightrec.nn.cache import Cache

D, L = 8, 6
LENGTHS = torch.tensor([6, 3, 1, 4])
EXACT = dict(rtol=0, atol=1e-10)  # float64: another order of summation, and nothing else

STEPPING = {
    "GRU4Rec": partial(GRU4RecEncoder, D, 2, 6),
    "Mamba4Rec": partial(Mamba4RecEncoder, D, 2, 4),
    "HMamba": partial(HMambaEncoder, D),
}
ENCODERS = {
    "SASRec": partial(SASRecEncoder, L + 2, D, 2, 2),
    "SASRec, post_norm": partial(SASRecEncoder, L + 2, D, 2, 2, variant="post_norm"),
    "eSASRec": partial(LiGREncoder, L + 2, D, 2, 2),
    "BERT4Rec, causal": partial(BERT4RecEncoder, L + 2, D, 2, 2, causal=True),
    **STEPPING,
}
every = pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
stepping = pytest.mark.parametrize("make", STEPPING.values(), ids=STEPPING)


@pytest.fixture
def history():
    torch.manual_seed(0)
    return History(torch.randn(4, L, D, dtype=torch.float64), LENGTHS)


@every
def test_tokens_behind_a_cache_are_the_entered_history_mixed_again(make, history):
    encoder, cache = make().double().eval(), Cache(LENGTHS)
    entered, tokens = encoder.enter(history), torch.randn(2, 4, D, dtype=torch.float64)
    encoder.mix(entered, cache)
    for token in tokens:
        cache, width = cache.following(), entered.x.shape[1]
        found = encoder.mix(History(token[:, None], torch.ones_like(LENGTHS)), cache)
        behind = torch.arange(width + 1) == entered.lengths[:, None]
        x = torch.cat([entered.x, entered.x.new_zeros(4, 1, D)], 1)
        entered = History(torch.where(behind[..., None], token[:, None], x), entered.lengths + 1)
        assert torch.allclose(found[:, 0], entered.last(encoder.mix(entered)), **EXACT)


@every
def test_the_last_state_fills_the_cache_that_the_whole_pass_fills(make, history):
    encoder, caches = make().double().eval(), (Cache(LENGTHS), Cache(LENGTHS))
    whole, last = history.last(encoder.mix(encoder.enter(history), caches[0])), encoder.last(history, caches[1])
    assert torch.allclose(last, whole, **EXACT)
    token = History(torch.randn(4, 1, D, dtype=torch.float64), torch.ones_like(LENGTHS))
    assert torch.allclose(*(encoder.mix(token, cache.following()) for cache in caches), **EXACT)


@stepping
def test_a_history_read_at_once_leaves_the_state_that_steps_reach(make, history):
    encoder = make().double().eval()
    entered = encoder.enter(history)
    found, expected = encoder.read(entered), SequenceEncoder.read(encoder, entered)
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.allclose(one, other, **EXACT)
    assert torch.allclose(found[0], encoder.last(history), **EXACT)


@stepping
@pytest.mark.parametrize("read", [None, SequenceEncoder.read], ids=["at once", "by steps"])
def test_padding_does_not_change_what_is_read(make, history, read):
    encoder = make().double().eval()
    read, entered = read or type(encoder).read, encoder.enter(history)
    garbage = entered._replace(x=torch.where(entered.mask[..., None], entered.x, 99.0))
    for one, other in zip(*(pytree.tree_leaves(read(encoder, h)) for h in (entered, garbage)), strict=True):
        assert torch.allclose(one, other, **EXACT)


def test_an_encoder_without_a_step_reads_nothing(history):
    encoder = ENCODERS["SASRec"]().double()
    with pytest.raises(NotImplementedError, match="has no step form"):
        encoder.read(encoder.enter(history))
