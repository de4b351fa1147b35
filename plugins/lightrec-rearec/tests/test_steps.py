"""What a reasoning step must show, around attention, recurrent and state-space encoders."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from lightrec import History, SequenceEncoder
from lightrec.interfaces import total
from lightrec.models.gru4rec import GRU4RecEncoder
from lightrec.models.mamba4rec import Mamba4RecEncoder
from lightrec.models.sasrec import SASRecEncoder

pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
from lightrec_rearec.objectives import ERL, PRL  # noqa: E402
from lightrec_rearec.reasoning import AttentiveReasoning, RepeatedReasoning, reason_with  # noqa: E402

D = 8
EXACT = dict(rtol=0, atol=1e-10)  # float64: another order of summation, and nothing else


@pytest.mark.parametrize("where", ["last", "all"])
def test_a_cached_step_is_the_whole_sequence_encoded_again(make_causal, where, history):
    encoder = make_causal()
    cached = reason_with(encoder, 3).double().eval()
    repeated = RepeatedReasoning(copy.deepcopy(encoder), 3).double().eval()
    repeated.load_state_dict(cached.state_dict())
    assert not isinstance(cached, RepeatedReasoning)
    found, expected = cached.reason(history, where), repeated.reason(history, where)
    real = torch.ones(4, 1, dtype=torch.bool) if where == "last" else history.mask
    assert torch.allclose(found[real], expected[real], **EXACT)
    assert (found[real].diff(dim=1).abs().amax(-1) > 1e-6).all()  # each step changes the state


def test_gradients_of_cached_steps_are_those_of_the_whole_sequence(make_causal, history):
    cached = reason_with(make_causal(), 2).double().eval()
    repeated = RepeatedReasoning(copy.deepcopy(cached.encoder), 2).double().eval()
    repeated.load_state_dict(cached.state_dict())
    weight = torch.randn(4, 1, 3, D, dtype=torch.float64)
    for each in (cached, repeated):
        (each.reason(history) * weight).sum().backward()
    for (name, p), q in zip(cached.named_parameters(), repeated.parameters(), strict=True):
        if p.grad is not None or q.grad is not None:
            assert torch.allclose(p.grad, q.grad, rtol=1e-8, atol=1e-9), name


def test_the_state_of_an_item_in_a_window_is_the_last_state_of_its_prefix(make_causal, history):
    encoder = reason_with(make_causal(), 2).double().eval()
    entered = encoder.enter(history)  # once: positions are counted from the end of the window
    whole = encoder.mix(entered)
    for t in range(6):
        prefix = History(entered.x[:1, : t + 1], torch.full((1,), t + 1))
        states = encoder.think(*encoder.begin(prefix, "last"))
        assert torch.allclose(whole[0, t], encoder.combine(states)[0, 0], **EXACT)


def test_a_bidirectional_encoder_reasons_under_the_prefix_mask_written_out(history, encoders):
    encoder = encoders["bidirectional"]().double().eval()
    wrapped = AttentiveReasoning(encoder, 2).double().eval()
    found = wrapped.reason(history)[:, 0]
    for row, n in enumerate(history.lengths.tolist()):
        sequence = encoder.enter(History(history.x[row : row + 1, :n], torch.tensor([n]))).x
        for k in range(3):
            m = n + k
            see = torch.ones(m, m, dtype=torch.bool).tril()
            see[:n, :n] = True
            h = sequence
            for block in encoder.blocks:  # the same network, with one mask over the whole sequence
                parts = block.attention.query(h), *block.attention.key_value(h).chunk(2, -1)
                heads = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
                y = F.scaled_dot_product_attention(*heads, see).transpose(1, 2).reshape(h.shape)
                h = block.attention_norm(h + block.attention.output(y))
                h = block.feed_forward_norm(h + block.feed_forward(h))
            assert torch.allclose(found[row, k], h[0, -1], **EXACT)
            if k < 2:
                token = wrapped.norm(h[:, -1:] + wrapped.positions[k])
                sequence = torch.cat([sequence, token], 1)


def test_the_first_state_does_not_change_with_the_number_of_steps(make_any, history):
    encoder = make_any().double().eval()
    expected = encoder.last(history)
    for num_steps in (1, 3):
        found = reason_with(encoder, num_steps).double().eval().reason(history)
        assert found.shape == (4, 1, num_steps + 1, D)
        assert torch.allclose(found[:, 0, 0], expected, **EXACT)


def test_a_bidirectional_encoder_keeps_the_states_before_the_last_item(history, encoders):
    encoder = encoders["bidirectional"]().double().eval()
    before = encoder(history)
    after = reason_with(encoder, 2).double().eval()(history)
    for row, n in enumerate(history.lengths.tolist()):
        assert torch.allclose(after[row, : n - 1], before[row, : n - 1], **EXACT)
        assert not torch.allclose(after[row, n - 1], before[row, n - 1])


def test_padding_changes_no_state_and_gets_no_gradient(make_any, history):
    wrapped = reason_with(make_any(), 2).double().eval()
    expected, (x, lengths) = wrapped.reason(history), history[:2]
    garbage = torch.where(history.mask[..., None], x, 99.0)
    wider = F.pad(x, (0, 0, 0, 3))
    for other in (garbage, wider):
        assert torch.allclose(wrapped.reason(History(other, lengths)), expected, **EXACT)
    for row, n in enumerate(lengths.tolist()):  # no padding at all
        alone = wrapped.reason(History(x[row : row + 1, :n], lengths[row : row + 1]))
        assert torch.allclose(alone[0], expected[row], **EXACT)
    x.requires_grad_()
    wrapped.reason(history).square().sum().backward()
    assert not x.grad[~history.mask].any()


@pytest.mark.parametrize("objective", [ERL, partial(PRL, warmup_epochs=0)])
def test_the_vector_of_padding_gets_no_gradient(objective, windows, rearec):
    trained = rearec(objective=objective(positions="all"))
    total(trained.loss(windows())).backward()
    gradient = trained.items.embedding.weight.grad
    assert gradient[1:].any() and not gradient[0].any()


@pytest.mark.parametrize("name", ["GRU", "Mamba", "HMamba", "one GRU", "one Mamba layer"])
def test_a_history_read_whole_leaves_the_state_that_steps_reach(name, history, encoders):
    narrow = {"one GRU": partial(GRU4RecEncoder, D), "one Mamba layer": partial(Mamba4RecEncoder, D)}
    encoder = (encoders | narrow)[name]().double().eval()
    assert type(encoder).read is not SequenceEncoder.read
    first, state = reason_with(encoder, 2).double().eval().begin(encoder.enter(history), "last")
    expected = SequenceEncoder.read(encoder, encoder.enter(history))
    found = first[:, 0], state
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.allclose(a, b, **EXACT)


def test_an_encoder_with_another_state_than_its_layers_note_is_read_by_steps(history):
    class Halved(GRU4RecEncoder):
        def step(self, x_t, state):
            hidden, state = super().step(x_t, [2 * s for s in state])
            return hidden, [s / 2 for s in state]

    wrapped = reason_with(Halved(D), 2).double().eval()
    entered = wrapped.enter(history)
    _, state = wrapped.begin(entered, "last")
    assert torch.allclose(state[0], GRU4RecEncoder.read(wrapped.encoder, entered)[1][0] / 2, **EXACT)
    repeated = RepeatedReasoning(copy.deepcopy(wrapped.encoder), 2).double().eval()
    repeated.load_state_dict(wrapped.state_dict())
    assert torch.allclose(wrapped.reason(history), repeated.reason(history), **EXACT)


def test_a_step_costs_far_less_than_the_history():
    encoder, history = SASRecEncoder(200, 64, 2), History(torch.randn(4, 200, 64), torch.full((4,), 200))
    work = []
    for k in (0, 1, 2, 8):
        wrapped = reason_with(copy.deepcopy(encoder), k).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            wrapped.last(history)
        work.append(counter.get_total_flops())
    none, one, two, eight = work
    assert none < one < two < eight < 1.3 * none
    assert (eight - two) / 6 < 1.05 * (two - one)  # a later step sees a token more, not the history again


def test_a_copy_reasons_by_itself(windows, rearec):
    first = rearec().eval()
    second, batch = copy.deepcopy(first), windows()
    expected = first.query(batch)
    with torch.no_grad():
        first.encoder.encoder.blocks[0].attention.key_value.weight.zero_()
    assert torch.equal(second.query(batch), expected) and not torch.allclose(first.query(batch), expected)
