"""ReaRec: what a reasoning must show, around attention, recurrent and state-space encoders."""

import copy
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from lightrec import Batch, InputError, testing
from lightrec.cli import main
from lightrec.models.bert4rec import BERT4RecEncoder
from lightrec.models.esasrec import LiGREncoder
from lightrec.models.gru4rec import GRU4RecEncoder
from lightrec.models.hmamba import HMambaEncoder
from lightrec.models.mamba4rec import Mamba4RecEncoder
from lightrec.models.sasrec import SASRec, SASRecEncoder
from lightrec.models.sigma import SIGMAEncoder
from lightrec.objectives.next_item import NextItem
from lightrec.objectives.weighted import Weighted

model = pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
from lightrec_rearec.model import ORACLE, ReaRec, best_of  # noqa: E402
from lightrec_rearec.objectives import ERL, PRL, Thought, contrast, cross_entropy, divergence  # noqa: E402
from lightrec_rearec.reasoning import (  # noqa: E402
    AttentiveReasoning,
    RecurrentReasoning,
    RepeatedReasoning,
    reason_with,
)

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
D, ITEMS, LENGTH = 8, 12, 9
EXACT = dict(rtol=0, atol=1e-10)  # float64: another order of summation, and nothing else

CAUSAL = {
    "query_norm": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1),
    "original2018": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1, variant="original2018"),
    "pre_norm": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1, variant="pre_norm"),
    "SASRec post_norm": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1, variant="post_norm"),
    "LiGR": partial(LiGREncoder, LENGTH, D, 2, 2),
    "post_norm": partial(BERT4RecEncoder, LENGTH, D, 2, 2, causal=True),
    "GRU": partial(GRU4RecEncoder, D, 2, 6),
    "Mamba": partial(Mamba4RecEncoder, D, 2, 4),
    "HMamba": partial(HMambaEncoder, D),
}
ALL = {**CAUSAL, "bidirectional": partial(BERT4RecEncoder, LENGTH, D, 2, 2, std=0.3)}
causal = pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL)
every = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def vectors(rows=4, length=6, lengths=(6, 3, 1, 4)):
    return torch.randn(rows, length, D, dtype=torch.float64), torch.tensor(lengths)


def windows(rows=6, length=LENGTH, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (rows,), generator=draw)
    lengths[0] = length
    ids = torch.randint(1, ITEMS + 1, (rows, length), generator=draw) * (torch.arange(length) < lengths[:, None])
    return Batch(ids, lengths, torch.arange(rows))


def rearec(num_steps=2, objective=None, encoder=None, dropout=0.0, **options):
    encoder = encoder or SASRecEncoder(LENGTH, D, 2, 2, dropout)
    return ReaRec(ITEMS, encoder=encoder, num_steps=num_steps, objective=objective, dropout=dropout, **options)


# 1. no step is the backbone


@every
def test_without_steps_states_are_those_of_the_encoder_bit_for_bit(make):
    encoder, (x, lengths) = make().double(), vectors()
    wrapped = reason_with(copy.deepcopy(encoder), 0)
    assert [name.removeprefix("encoder.") for name in wrapped.state_dict()] == list(encoder.state_dict())
    for draw in range(2):  # with the dropout of training, too
        for call in (lambda e: e(x, lengths), lambda e: e.last(x, lengths)):
            torch.manual_seed(draw)
            expected = call(encoder)
            torch.manual_seed(draw)
            assert torch.equal(call(wrapped), expected)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("objective", [ERL, PRL])
def test_without_steps_loss_and_gradients_are_those_of_the_backbone(objective, positions):
    plain = SASRec(ITEMS, LENGTH, D, 2, 2, 0.3, objective=NextItem(positions))
    wrapped = rearec(0, objective(temperature=1.0, positions=positions), SASRecEncoder(LENGTH, D, 2, 2, 0.3))
    wrapped.items.load_state_dict(plain.items.state_dict())
    wrapped.encoder.encoder.load_state_dict(plain.encoder.state_dict())
    found = []
    for each in (plain, wrapped):
        torch.manual_seed(1)
        loss = each.loss(windows())
        loss.backward()
        found.append([loss, *(p.grad for p in each.parameters())])
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))
    batch = windows(seed=1)
    for expected, got in zip(*(m.eval().recommend(batch, 5) for m in (plain, wrapped)), strict=True):
        assert torch.equal(expected, got)


@every
def test_without_steps_nothing_is_nan(make):
    for objective in (ERL(), PRL(warmup_epochs=0)):
        assert rearec(0, objective, make()).loss(windows()).isfinite()


# 2. cached steps are those of the whole sequence


@pytest.mark.parametrize("where", ["last", "all"])
@causal
def test_a_cached_step_is_the_whole_sequence_encoded_again(make, where):
    encoder, (x, lengths) = make(), vectors()
    cached = reason_with(encoder, 3).double().eval()
    repeated = RepeatedReasoning(copy.deepcopy(encoder), 3).double().eval()
    repeated.load_state_dict(cached.state_dict())
    assert not isinstance(cached, RepeatedReasoning)
    found, expected = cached.reason(x, lengths, where), repeated.reason(x, lengths, where)
    real = torch.ones(4, 1, dtype=torch.bool) if where == "last" else torch.arange(6) < lengths[:, None]
    assert torch.allclose(found[real], expected[real], **EXACT)
    assert (found[real].diff(dim=1).abs().amax(-1) > 1e-6).all()  # each step changes the state


@causal
def test_gradients_of_cached_steps_are_those_of_the_whole_sequence(make):
    x, lengths = vectors()
    cached = reason_with(make(), 2).double().eval()
    repeated = RepeatedReasoning(copy.deepcopy(cached.encoder), 2).double().eval()
    repeated.load_state_dict(cached.state_dict())
    weight = torch.randn(4, 1, 3, D, dtype=torch.float64)
    for each in (cached, repeated):
        (each.reason(x, lengths) * weight).sum().backward()
    for (name, p), q in zip(cached.named_parameters(), repeated.parameters(), strict=True):
        if p.grad is not None or q.grad is not None:
            assert torch.allclose(p.grad, q.grad, rtol=1e-8, atol=1e-9), name


@causal
def test_the_state_of_an_item_in_a_window_is_the_last_state_of_its_prefix(make):
    encoder, (x, lengths) = reason_with(make(), 2).double().eval(), vectors()
    prepared = encoder.prepare(x, lengths)  # once: positions are counted from the end of the window
    whole = encoder.mix(prepared, lengths)
    for t in range(6):
        prefix = torch.full((1,), t + 1)
        states = encoder.think(*encoder.begin(prepared[:1, : t + 1], prefix, "last"))
        assert torch.allclose(whole[0, t], encoder.combine(states)[0, 0], **EXACT)


def test_a_bidirectional_encoder_reasons_under_the_prefix_mask_written_out():
    encoder = ALL["bidirectional"]().double().eval()
    wrapped, (x, lengths) = AttentiveReasoning(encoder, 2).double().eval(), vectors()
    found = wrapped.reason(x, lengths)[:, 0]
    for row, n in enumerate(lengths.tolist()):
        sequence = encoder.prepare(x[row : row + 1, :n], torch.tensor([n]))
        for k in range(3):
            m = n + k
            see = torch.ones(m, m, dtype=torch.bool).tril()
            see[:n, :n] = True
            h = sequence
            for block in encoder.blocks:  # the same network, with one mask over the whole sequence
                heads = block.attention.split(block.attention.query(h))
                key, value = (block.attention.split(t) for t in block.attention.key_value(h).chunk(2, -1))
                y = F.scaled_dot_product_attention(heads, key, value, see).transpose(1, 2).reshape(h.shape)
                h = block.attention_norm(h + block.attention.output(y))
                h = block.feed_forward_norm(h + block.feed_forward(h))
            assert torch.allclose(found[row, k], h[0, -1], **EXACT)
            if k < 2:
                token = wrapped.norm(h[:, -1:] + wrapped.positions[k])
                sequence = torch.cat([sequence, token], 1)


# 3. items do not see reasoning


@every
def test_the_first_state_does_not_change_with_the_number_of_steps(make):
    encoder, (x, lengths) = make().double().eval(), vectors()
    expected = encoder.last(x, lengths)
    for num_steps in (1, 3):
        found = reason_with(encoder, num_steps).double().eval().reason(x, lengths)
        assert found.shape == (4, 1, num_steps + 1, D)
        assert torch.allclose(found[:, 0, 0], expected, **EXACT)


def test_a_bidirectional_encoder_keeps_the_states_before_the_last_item():
    encoder, (x, lengths) = ALL["bidirectional"]().double().eval(), vectors()
    before = encoder(x, lengths)
    after = reason_with(encoder, 2).double().eval()(x, lengths)
    for row, n in enumerate(lengths.tolist()):
        assert torch.allclose(after[row, : n - 1], before[row, : n - 1], **EXACT)
        assert not torch.allclose(after[row, n - 1], before[row, n - 1])


# 4. padding


@every
def test_padding_changes_no_state_and_gets_no_gradient(make):
    wrapped, (x, lengths) = reason_with(make(), 2).double().eval(), vectors()
    expected = wrapped.reason(x, lengths)
    garbage = torch.where(torch.arange(6)[:, None] < lengths[:, None, None], x, 99.0)
    wider = F.pad(x, (0, 0, 0, 3))
    for other in (garbage, wider):
        assert torch.allclose(wrapped.reason(other, lengths), expected, **EXACT)
    for row, n in enumerate(lengths.tolist()):  # no padding at all
        alone = wrapped.reason(x[row : row + 1, :n], lengths[row : row + 1])
        assert torch.allclose(alone[0], expected[row], **EXACT)
    x.requires_grad_()
    wrapped.reason(x, lengths).square().sum().backward()
    assert not x.grad[torch.arange(6) >= lengths[:, None]].any()


@pytest.mark.parametrize("objective", [ERL, partial(PRL, warmup_epochs=0)])
def test_the_vector_of_padding_gets_no_gradient(objective):
    trained = rearec(objective=objective(positions="all"))
    trained.loss(windows()).backward()
    gradient = trained.items.embedding.weight.grad
    assert gradient[1:].any() and not gradient[0].any()


# 5. PRL


def test_temperatures_fall_to_that_of_the_last_step():
    assert PRL(temperature=0.07, alpha=5.0).temperatures(2) == pytest.approx([1.75, 0.35, 0.07])
    assert PRL(temperature=0.5, alpha=1.0).temperatures(3) == [0.5] * 4


@pytest.mark.parametrize("form", ["code", "paper"])
def test_prl_is_the_written_out_loss(form):
    trained = rearec(3, PRL(temperature=0.7, alpha=2.0, step_weight=0.5, contrast_weight=0.0, form=form)).double()
    batch = windows()
    thought = Thought(trained, batch, "last")
    scores = trained.items.score(thought.states)[..., 1:]
    losses = [F.cross_entropy(scores[:, k] / (0.7 * 2 ** (3 - k)), thought.targets - 1) for k in range(4)]
    early = sum(losses[:3]) / (3 if form == "code" else 1)
    assert trained.loss(batch).item() == pytest.approx((losses[3] + 0.5 * early).item(), rel=1e-9)


def test_prl_without_steps_noise_or_slope_is_cross_entropy_at_its_temperature():
    trained = rearec(0, PRL(temperature=0.3, alpha=1.0, warmup_epochs=0)).double()
    batch = windows()
    thought = Thought(trained, batch, "last")
    expected = F.cross_entropy(trained.items.score(thought.states[:, 0])[:, 1:] / 0.3, thought.targets - 1)
    assert trained.loss(batch).item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_contrast_is_the_written_out_one_and_follows_its_rows():
    noisy, clean = torch.randn(2, 5, 3, D, dtype=torch.float64)
    found = contrast(noisy, clean, 0.5)
    for k in range(3):
        rows = []
        for b in range(5):
            e = [math.exp(float(noisy[b, k] @ clean[c, k]) / 0.5) for c in range(5)]
            rows.append(-math.log(e[b] / sum(e)))
        assert found[k].item() == pytest.approx(sum(rows) / 5)
    order = torch.randperm(5)
    assert torch.allclose(contrast(noisy[order], clean[order], 0.5), found)
    assert not torch.allclose(contrast(noisy[order], clean, 0.5), found)
    assert not contrast(noisy[:1], clean[:1], 0.5).any()


@pytest.mark.parametrize("positions", ["all", "last"])
@causal
def test_without_noise_and_dropout_the_noisy_states_are_the_clean_ones(make, positions):
    trained = rearec(2, PRL(), make()).double().eval()
    thought = Thought(trained, windows(), positions)
    clean, same = thought.contrast(0.0)
    assert clean.shape == (6, 2, D) and torch.allclose(clean, same, **EXACT)
    assert not torch.allclose(clean, thought.contrast(0.5)[1])


def test_noise_has_the_given_deviation_and_does_not_pile_up():
    trained = rearec(2, PRL()).double().eval()
    heard = []
    trained.encoder.norm.register_forward_hook(lambda module, given, out: heard.append(given[0]))
    thought = Thought(trained, windows(rows=3000), "last")
    thought.contrast(0.01)
    clean, noisy = heard[:2], heard[2:]
    for before, after in zip(clean, noisy, strict=True):
        assert (after - before).std().item() == pytest.approx(0.01, rel=0.02)


def test_the_contrast_begins_after_the_warm_up(monkeypatch):
    for warm, extra in ((0, True), (1, False)):
        trained = rearec(2, PRL(1.0, warmup_epochs=warm))
        bare = rearec(2, PRL(1.0, contrast_weight=0.0))
        bare.load_state_dict(trained.state_dict())
        assert bool((trained.loss(windows()) - bare.loss(windows())).abs() > 1e-3) == extra


@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_contrast_reaches_the_noisy_and_the_clean_states(positions):
    trained = rearec(2, PRL(warmup_epochs=0, positions=positions)).double()
    clean, noisy = Thought(trained, windows(), positions).contrast(0.1)
    clean.retain_grad(), noisy.retain_grad()
    contrast(noisy, clean).sum().backward()
    assert clean.grad.any() and noisy.grad.any() and trained.encoder.positions.grad.any()


# 6. ERL


def test_without_divergence_erl_is_cross_entropy_of_the_mean():
    trained = rearec(2, ERL(weight=0.0, temperature=0.7)).double()
    batch = windows()
    thought = Thought(trained, batch, "last")
    expected = F.cross_entropy(trained.items.score(thought.states.mean(1))[:, 1:] / 0.7, thought.targets - 1)
    assert trained.loss(batch).item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(trained.query(batch), trained.reason(batch).mean(1))


@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_divergence_is_the_written_out_one_and_nothing_between_equal_steps(form):
    items, states = rearec().double().items, 3 * torch.randn(5, 3, D, dtype=torch.float64)
    log_p = (items.score(states)[..., 1:] / 0.7).log_softmax(-1)

    def kl(i, j):  # KL(p_i || p_j)
        return (log_p[:, i].exp() * (log_p[:, i] - log_p[:, j])).sum()

    if form == "code":
        expected = sum(kl(j, i) for i in range(3) for j in range(3) if i != j) / 6
    else:
        expected = kl(0, 1) + kl(0, 2) + kl(1, 2)
    assert divergence(items, states, 0.7, form).item() == pytest.approx(expected.item())
    assert abs(divergence(items, states[:, :1].repeat(1, 3, 1), 0.7, form).item()) < 1e-12


def test_the_released_form_holds_one_side_fixed():
    items, states = rearec().double().items, torch.randn(5, 2, D, dtype=torch.float64, requires_grad=True)
    divergence(items, states).backward()
    other = states.detach().clone().requires_grad_()
    log_p = items.score(other)[..., 1:].log_softmax(-1)
    fixed = log_p.detach()
    kl = (log_p[:, 1].exp() * (log_p[:, 1] - fixed[:, 0])).sum() + (
        log_p[:, 0].exp() * (log_p[:, 0] - fixed[:, 1])
    ).sum()
    (kl / 2).backward()
    assert torch.allclose(states.grad, other.grad, **EXACT)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_a_step_along_the_divergence_alone_pushes_the_steps_apart(form):
    only = ERL(weight=1e6, temperature=1.0, form=form)  # nothing else is heard beside it
    trained, batch = rearec(2, only).double(), windows()

    def apart():
        return divergence(trained.items, Thought(trained, batch, "last").states, 1.0, "paper").item()

    before = apart()
    trained.loss(batch).backward()
    torch.optim.SGD(trained.parameters(), lr=1e-10).step()
    assert before > 0 and apart() > before


def test_a_divergence_of_some_rows_estimates_that_of_all():
    trained, batch = rearec(2, ERL(weight=50.0, temperature=1.0)).double(), windows(rows=24)
    whole = trained.loss(batch).item()
    trained.objective.divergence_rows = 6
    parts = torch.tensor([trained.loss(batch).item() for _ in range(300)])
    assert parts.std() > 0
    assert parts.mean().item() == pytest.approx(whole, abs=4 * parts.std().item() / 300**0.5)


def test_a_narrow_head_computes_the_same_divergence_in_bfloat16():
    items, states = rearec().items, torch.randn(40, 3, D)
    narrow = divergence(items, states, head_dtype="bfloat16")
    assert narrow.item() == pytest.approx(divergence(items, states).item(), rel=0.05)


def test_a_temperature_works_for_scores_of_any_geometry():
    from lightrec.nn.item_embedding import ItemEmbedding

    for items in (ItemEmbedding(ITEMS, D, bias=True), ItemEmbedding(ITEMS, D, cosine_temperature=0.2)):
        hidden, targets = torch.randn(7, D), torch.randint(1, ITEMS + 1, (7,))
        expected = F.cross_entropy(items.score(hidden)[:, 1:] / 0.3, targets - 1, reduction="sum")
        assert torch.allclose(cross_entropy(items, hidden, targets, 0.3), expected, rtol=1e-5)
        items.linear_head = lambda hidden: None
        items.score = lambda hidden, weight=items.embedding.weight: hidden @ weight.T
        expected = F.cross_entropy(items.score(hidden)[:, 1:] / 0.3, targets - 1, reduction="sum")
        assert torch.allclose(cross_entropy(items, hidden, targets, 0.3), expected, rtol=1e-5)


# 7. reports


def test_a_test_reports_each_step_by_cohorts_and_an_oracle_that_is_named_as_one(tmp_path):
    from lightrec.testing.harness import make_trainer

    data = testing.toy_data(tmp_path, max_length=LENGTH)
    tested = ReaRec(data.num_items, LENGTH, D, num_steps=2)
    tested.metrics = type(tested.metrics)(tested.metrics.ks, cohorts=True)
    trainer = make_trainer(tmp_path, 1)
    found = trainer.test(tested, datamodule=data, verbose=False)[0]
    assert "diagnostic" in ORACLE
    for k in (5, 10):
        steps = [found[f"test/step-{i}/ndcg@{k}"] for i in range(3)]
        assert steps[2] == found[f"test/ndcg@{k}"]  # the last step is what is served
        assert found[f"test/{ORACLE}/ndcg@{k}"] >= max(steps)
        assert any(name.startswith(f"test/step-0/ndcg@{k}/history:") for name in found)
        assert any(name.startswith(f"test/step-0/ndcg@{k}/items:") for name in found)
    assert not any("step-" in name for name in trainer.validate(tested, datamodule=data, verbose=False)[0])


def test_the_oracle_takes_the_list_with_the_better_place_of_the_target():
    lists = [
        (torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3.0, 2, 1], [9, 8, 7]])),
        (torch.tensor([[2, 1, 3], [5, 4, 6]]), torch.tensor([[6.0, 5, 4], [6, 5, 4]])),
    ]
    item_ids, scores = best_of(lists, torch.tensor([[2], [4]]), 2)
    assert item_ids.tolist() == [[2, 1, 3], [4, 5, 6]] and scores.tolist() == [[6, 5, 4], [9, 8, 7]]


# 8. cost


@pytest.mark.parametrize(
    "make", [CAUSAL["GRU"], CAUSAL["Mamba"], partial(GRU4RecEncoder, D), partial(Mamba4RecEncoder, D)]
)
def test_a_history_read_whole_leaves_the_state_that_steps_reach(make):
    wrapped, (x, lengths) = reason_with(make(), 2).double().eval(), vectors()
    assert wrapped._notes_agree
    found, expected = wrapped.begin(x, lengths, "last"), wrapped._stepped(x, lengths, "last")
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert torch.allclose(a, b, **EXACT)


def test_an_encoder_with_another_state_than_its_layers_note_is_read_by_steps():
    class Halved(GRU4RecEncoder):
        def step(self, x_t, state):
            hidden, state = super().step(x_t, [2 * s for s in state])
            return hidden, [s / 2 for s in state]

        def mix(self, x, lengths):
            return super().mix(x, lengths)

    wrapped, (x, lengths) = reason_with(Halved(D), 2).double().eval(), vectors()
    assert not wrapped._notes_agree
    repeated = RepeatedReasoning(copy.deepcopy(wrapped.encoder), 2).double().eval()
    repeated.load_state_dict(wrapped.state_dict())
    assert torch.allclose(wrapped.reason(x, lengths), repeated.reason(x, lengths), **EXACT)


def test_a_step_costs_far_less_than_the_history():
    encoder, x, lengths = SASRecEncoder(200, 64, 2), torch.randn(4, 200, 64), torch.full((4,), 200)
    work = []
    for k in (0, 1, 2, 8):
        wrapped = reason_with(copy.deepcopy(encoder), k).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            wrapped.last(x, lengths)
        work.append(counter.get_total_flops())
    none, one, two, eight = work
    assert none < one < two < eight < 1.3 * none
    assert (eight - two) / 6 < 1.05 * (two - one)  # a later step sees a token more, not the history again


# contracts, composition, errors


@pytest.mark.parametrize(
    "make",
    [
        lambda n, m: ReaRec(n, m, 16, objective=ERL(positions="all"), dropout=0.0, learning_rate=1e-2),
        lambda n, m: ReaRec(n, m, 16, objective=PRL(warmup_epochs=0), dropout=0.0, learning_rate=1e-2),
        lambda n, m: ReaRec(
            n, encoder=GRU4RecEncoder(16), objective=PRL(positions="all"), dropout=0.0, learning_rate=1e-2
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


def test_a_recurrent_reasoning_goes_on_event_by_event_and_attention_says_it_cannot():
    testing.check_steps(lambda n, m: ReaRec(n, encoder=GRU4RecEncoder(16)))
    with pytest.raises(NotImplementedError):
        rearec().encoder.init_state(1)


@pytest.mark.parametrize("objective", [NextItem(), Weighted([NextItem(), ERL(positions="all")], [0.5, 0.5])])
def test_objectives_of_others_train_all_of_it_around_a_state_space_model(objective):
    trained = rearec(2, objective, Mamba4RecEncoder(D, 1, 4))
    trained.loss(windows()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
    assert trained.encoder.positions.grad.any()


def test_erl_serves_the_mean_even_as_a_part_and_prl_the_last():
    assert rearec(objective=Weighted([ERL(), NextItem()])).encoder.aggregate == "mean"
    assert rearec(objective=PRL()).encoder.aggregate == "last"
    assert rearec(objective=ERL(), aggregate="last").encoder.aggregate == "last"


@every
def test_each_encoder_gets_its_wrapper(make):
    kind = RecurrentReasoning if make.func in (GRU4RecEncoder, Mamba4RecEncoder, HMambaEncoder) else AttentiveReasoning
    assert type(reason_with(make(), 2)) is kind
    assert type(reason_with(make(), 2, repeat=True)) is RepeatedReasoning if make().causal else True


def test_a_copy_reasons_by_itself():
    first = rearec().eval()
    second, batch = copy.deepcopy(first), windows()
    expected = first.query(batch)
    with torch.no_grad():
        first.encoder.encoder.blocks[0].attention.key_value.weight.zero_()
    assert torch.equal(second.query(batch), expected) and not torch.allclose(first.query(batch), expected)


@pytest.mark.parametrize("where", [reason_with, AttentiveReasoning, RecurrentReasoning, RepeatedReasoning])
def test_a_negative_number_of_steps_is_refused(where):
    with pytest.raises(InputError, match=r"num_steps \(-1\) must be at least 0"):
        where(GRU4RecEncoder(D), -1)


def test_an_encoder_that_sees_the_future_otherwise_than_by_attention_is_refused():
    with pytest.raises(InputError, match="SIGMAEncoder sees the future.*causal"):
        rearec(encoder=SIGMAEncoder(D))
    with pytest.raises(InputError, match="BERT4RecEncoder sees the future"):
        rearec(encoder=BERT4RecEncoder(LENGTH, D), repeat=True)


class Mean(SASRecEncoder):
    """Attention, and behind it the mean of what was: a mixing that no cache of keys knows of."""

    def mix(self, x, lengths):
        return super().mix(x, lengths).cumsum(1)

    def last(self, x, lengths):
        return self(x, lengths)[torch.arange(len(lengths)), lengths - 1]


class Convolution(GRU4RecEncoder):
    """Causal, without a step form and without attention."""

    step, init_state = SASRecEncoder.step, SASRecEncoder.init_state


def test_a_causal_encoder_that_cannot_step_is_refused_unless_it_may_repeat():
    for encoder in (Mean(LENGTH, D), Convolution(D)):
        with pytest.raises(InputError, match="cannot take a reasoning step.*repeat: true"):
            rearec(encoder=encoder)
        repeated = rearec(encoder=encoder, repeat=True, objective=ERL(positions="all"))
        assert repeated.loss(windows()).isfinite()
    with pytest.raises(InputError, match="cannot go on event by event"):
        RecurrentReasoning(SASRecEncoder(LENGTH, D), 2)


def test_other_bad_input_is_one_line():
    for make, message in (
        (lambda: ERL(temperature=0.0), "temperature"),
        (lambda: ERL(form="other"), "form 'other' is unknown"),
        (lambda: ERL(divergence_rows=0), "divergence_rows"),
        (lambda: PRL(alpha=0.0), "alpha"),
        (lambda: PRL(positions="some"), "positions"),
        (lambda: reason_with(GRU4RecEncoder(D), 2, "median"), "aggregate"),
        (lambda: SASRec(ITEMS, LENGTH, D, objective=PRL()).loss(windows()), "use --model ReaRec"),
    ):
        with pytest.raises(InputError, match=message) as found:
            make()
        assert "\n" not in str(found.value)


def test_all_positions_of_an_encoder_that_sees_the_future_would_leak():
    with pytest.raises(ValueError, match="would leak the target"):
        rearec(objective=ERL(positions="all"), encoder=BERT4RecEncoder(LENGTH, D)).loss(windows())


# from YAML


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path / "cache"))
    log = testing.toy_log(num_users=40, min_length=6).write_csv(tmp_path / "purchases.csv")
    return [
        "--data.source",
        "file",
        "--data.path",
        str(log),
        "--trainer.max_epochs",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_trains_and_is_tested(path, toy):
    narrow = ["--model.encoder.hidden_size", "16", "--run_folder", "run"]
    assert main(["fit", "--config", str(path), *narrow, *toy]) == 0
    assert main(["test", "--ckpt_path", "run/checkpoints/best.ckpt"]) == 0
    assert "test/step-1/ndcg@10" in json.loads(Path("run/results.json").read_text())["metrics"]
    assert yaml.safe_load(path.read_text())["model"]["class_path"] == "ReaRec"


def test_reasoning_on_a_state_space_model_from_the_command_line(toy):
    flags = ["--model", "ReaRec", "--model.encoder", "Mamba4RecEncoder", "--model.encoder.hidden_size", "16"]
    assert main(["fit", *flags, "--model.objective", "ERL", "--data.train_windows", "prefixes", *toy]) == 0


def test_bad_input_on_the_command_line_is_one_line(toy, capsys):
    for flags, message in (
        (["--model.num_steps", "-1"], "num_steps (-1) must be at least 0"),
        (["--model.encoder", "lightrec.models.sigma.SIGMAEncoder"], "SIGMAEncoder sees the future"),
    ):
        assert main(["fit", "--model", "ReaRec", *flags, *toy]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
