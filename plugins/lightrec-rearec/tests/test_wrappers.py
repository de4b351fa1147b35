"""Which encoder gets which wrapper, what they keep of every contract, and what is refused."""

import pytest
import torch

from lightrec import History, InputError, SequenceEncoder, testing
from lightrec.interfaces import total
from lightrec.models.bert4rec import BERT4RecEncoder
from lightrec.models.gru4rec import GRU4RecEncoder
from lightrec.models.hmamba import HMambaEncoder
from lightrec.models.mamba4rec import Mamba4RecEncoder
from lightrec.models.sasrec import SASRec, SASRecEncoder
from lightrec.models.sigma import SIGMAEncoder
from lightrec.objectives.next_item import NextItem
from lightrec.objectives.weighted import Weighted
from lightrec.recommender import AdamW

pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
from lightrec_rearec.model import ReaRec  # noqa: E402
from lightrec_rearec.objectives import ERL, PRL  # noqa: E402
from lightrec_rearec.reasoning import (  # noqa: E402
    AttentiveReasoning,
    RecurrentReasoning,
    RepeatedReasoning,
    reason_with,
)

D, ITEMS, LENGTH = 8, 12, 9


@pytest.mark.parametrize(
    "make",
    [
        lambda n, m: ReaRec(n, m, 16, objective=ERL(positions="all"), dropout=0.0, optimizer=AdamW(1e-2)),
        lambda n, m: ReaRec(n, m, 16, objective=PRL(warmup_epochs=0), dropout=0.0, optimizer=AdamW(1e-2)),
        lambda n, m: ReaRec(
            n, encoder=GRU4RecEncoder(16), objective=PRL(positions="all"), dropout=0.0, optimizer=AdamW(1e-2)
        ),
    ],
    ids=["attention-ERL", "attention-PRL-prefixes", "GRU-PRL"],
)
def test_the_contract_is_kept(make):
    testing.check_recommender(make)


def test_a_state_space_encoder_and_a_bidirectional_one_keep_the_contract_but_for_learning():
    def mamba(n, m):
        return ReaRec(n, encoder=Mamba4RecEncoder(16, state_size=4), objective=ERL(positions="all"))

    def bidirectional(n, m):
        return ReaRec(n, encoder=BERT4RecEncoder(m, 16), objective=PRL(warmup_epochs=0))

    for make in (mamba, bidirectional):
        for check in testing.applicable_checks(make(40, 10)):
            if check is not testing.check_learns_toy_rule:
                check(make)


def test_attention_is_exported_with_its_cache():
    testing.check_export(lambda n, m: ReaRec(n, m, 16))


def test_a_recurrent_reasoning_goes_on_event_by_event_and_attention_says_it_cannot(rearec):
    testing.check_steps(lambda n, m: ReaRec(n, encoder=GRU4RecEncoder(16)))
    with pytest.raises(NotImplementedError):
        rearec().encoder.init_state(1)


@pytest.mark.parametrize("objective", [NextItem(), Weighted([NextItem(), ERL(positions="all")], [0.5, 0.5])])
def test_objectives_of_others_train_all_of_it_around_a_state_space_model(objective, windows, rearec):
    trained = rearec(2, objective, Mamba4RecEncoder(D, 1, 4))
    total(trained.loss(windows())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
    assert trained.encoder.positions.grad.any()


def test_erl_serves_the_mean_even_as_a_part_and_prl_the_last(rearec):
    assert rearec(objective=Weighted([ERL(), NextItem()])).encoder.aggregate == "mean"
    assert rearec(objective=PRL()).encoder.aggregate == "last"
    assert rearec(objective=ERL(), aggregate="last").encoder.aggregate == "last"


def test_each_encoder_gets_its_wrapper(make_any):
    recurrent = make_any.func in (GRU4RecEncoder, Mamba4RecEncoder, HMambaEncoder)
    kind = RecurrentReasoning if recurrent else AttentiveReasoning
    assert type(reason_with(make_any(), 2)) is kind
    assert type(reason_with(make_any(), 2, repeat=True)) is RepeatedReasoning if make_any().causal else True


@pytest.mark.parametrize("where", [reason_with, AttentiveReasoning, RecurrentReasoning, RepeatedReasoning])
def test_a_negative_number_of_steps_is_refused(where):
    with pytest.raises(InputError, match=r"num_steps \(-1\) must be at least 0"):
        where(GRU4RecEncoder(D), -1)


def test_an_encoder_that_sees_the_future_otherwise_than_by_attention_is_refused(rearec):
    with pytest.raises(InputError, match="SIGMAEncoder sees the future.*causal"):
        rearec(encoder=SIGMAEncoder(D))
    with pytest.raises(InputError, match="BERT4RecEncoder sees the future"):
        rearec(encoder=BERT4RecEncoder(LENGTH, D), repeat=True)


class Mean(SASRecEncoder):
    """Attention, and behind it the mean of what was: a mixing that no cache of keys knows of."""

    def mix(self, history):
        return super().mix(history).cumsum(1)

    def last(self, history):
        return history.last(self(history))


class Convolution(GRU4RecEncoder):
    """Causal, without a step form and without a cache."""

    step, init_state = SequenceEncoder.step, SequenceEncoder.init_state

    def mix(self, history):
        return super().mix(history)


def test_a_causal_encoder_that_cannot_step_is_refused_unless_it_may_repeat(windows, rearec):
    for encoder in (Mean(LENGTH, D), Convolution(D)):
        with pytest.raises(InputError, match="cannot take a reasoning step.*repeat: true"):
            rearec(encoder=encoder)
        repeated = rearec(encoder=encoder, repeat=True, objective=ERL(positions="all"))
        assert total(repeated.loss(windows())).isfinite()
    with pytest.raises(InputError, match="cannot go on event by event"):
        RecurrentReasoning(SASRecEncoder(LENGTH, D), 2)


def test_other_bad_input_is_one_line(windows):
    for make, message in (
        (lambda: ERL(temperature=0.0), "temperature"),
        (lambda: ERL(fidelity="other"), "fidelity 'other' is unknown"),
        (lambda: ERL(divergence_rows=0), "divergence_rows"),
        (lambda: PRL(alpha=0.0), "alpha"),
        (lambda: PRL(positions="some"), "positions"),
        (lambda: reason_with(GRU4RecEncoder(D), 2, "median"), "aggregate"),
        (
            lambda: SASRec(ITEMS, max_length=LENGTH, hidden_size=D, objective=PRL()).loss(windows()),
            "use --model ReaRec",
        ),
    ):
        with pytest.raises(InputError, match=message) as found:
            make()
        assert "\n" not in str(found.value)


def test_all_positions_of_an_encoder_that_sees_the_future_would_leak(windows, rearec):
    with pytest.raises(ValueError, match="would leak the target"):
        rearec(objective=ERL(positions="all"), encoder=BERT4RecEncoder(LENGTH, D)).loss(windows())


class Timed(GRU4RecEncoder):
    """Adds the time of each event to its vector, where the events meet."""

    step, init_state = SequenceEncoder.step, SequenceEncoder.init_state

    def mix(self, history):
        times = torch.stack([history.timestamps, history.columns["price"]], -1).sum(-1, keepdim=True)
        return super().mix(history._replace(x=history.x + times))


@pytest.mark.parametrize("where", ["last", "all"])
def test_a_wrapper_loses_no_times_and_no_columns(where, history):
    encoder = RepeatedReasoning(Timed(D).double().eval(), 2).double().eval()
    times = torch.rand(4, 6, dtype=torch.float64)
    known = history._replace(timestamps=times, columns={"price": 2 * times})
    found = encoder.reason(known, where)
    # a token happens when the last item did
    added = known.last(times)
    for row, n in enumerate(history.lengths.tolist()):
        x = history.x[row : row + 1, :n]
        for k in range(3):
            stamps = torch.cat([times[row, :n], added[row].repeat(k)])[None]
            entered = History(x, torch.tensor([n + k]), stamps, columns={"price": 2 * stamps})
            state = entered.last(encoder.encoder.mix(entered))
            reached = found[row, 0 if where == "last" else n - 1, k]
            assert torch.allclose(reached, state[0], rtol=0, atol=1e-10)
            if k < 2:
                x = torch.cat([x, encoder.norm(state[:, None] + encoder.positions[k])], 1)
