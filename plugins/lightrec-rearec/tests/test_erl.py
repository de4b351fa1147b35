"""ERL: the mean of the states, and the divergence between steps written out."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.interfaces import total
from lightrec.ops.blocks import budget

pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
from lightrec_rearec.objectives import ERL, Thought, divergence  # noqa: E402

D = 8
EXACT = dict(rtol=0, atol=1e-10)  # float64: another order of summation, and nothing else


def test_without_divergence_erl_is_cross_entropy_of_the_mean(windows, rearec):
    trained = rearec(2, ERL(weight=0.0, temperature=0.7)).double()
    batch = windows()
    thought = Thought(trained, batch, "last")
    expected = F.cross_entropy(trained.items.score(thought.states.mean(1))[:, 1:] / 0.7, thought.targets - 1)
    assert total(trained.loss(batch)).item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(trained.query(batch), trained.reason(batch).mean(1))


@pytest.mark.parametrize("fidelity", ["released", "paper"])
def test_the_divergence_is_the_written_out_one_and_nothing_between_equal_steps(fidelity, rearec):
    items, states = rearec().double().items, 3 * torch.randn(5, 3, D, dtype=torch.float64)
    log_p = (items.score(states)[..., 1:] / 0.7).log_softmax(-1)

    def kl(i, j):  # KL(p_i || p_j)
        return (log_p[:, i].exp() * (log_p[:, i] - log_p[:, j])).sum()

    if fidelity == "released":
        expected = sum(kl(j, i) for i in range(3) for j in range(3) if i != j) / 6
    else:
        expected = kl(0, 1) + kl(0, 2) + kl(1, 2)
    assert divergence(items, states, 0.7, fidelity).item() == pytest.approx(expected.item())
    assert abs(divergence(items, states[:, :1].repeat(1, 3, 1), 0.7, fidelity).item()) < 1e-12


def test_the_released_form_holds_one_side_fixed(rearec):
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


@pytest.mark.parametrize("fidelity", ["released", "paper"])
def test_a_step_along_the_divergence_alone_pushes_the_steps_apart(fidelity, windows, rearec):
    only = ERL(weight=1e6, temperature=1.0, fidelity=fidelity)  # nothing else is heard beside it
    trained, batch = rearec(2, only).double(), windows()

    def apart():
        return divergence(trained.items, Thought(trained, batch, "last").states, 1.0, "paper").item()

    before = apart()
    total(trained.loss(batch)).backward()
    torch.optim.SGD(trained.parameters(), lr=1e-10).step()
    assert before > 0 and apart() > before


def test_a_divergence_of_some_rows_estimates_that_of_all(windows, rearec):
    trained, batch = rearec(2, ERL(weight=50.0, temperature=1.0)).double(), windows(rows=24)
    whole = total(trained.loss(batch)).item()
    trained.objective.divergence_rows = 6
    parts = torch.tensor([total(trained.loss(batch)).item() for _ in range(300)])
    assert parts.std() > 0
    assert parts.mean().item() == pytest.approx(whole, abs=4 * parts.std().item() / 300**0.5)


def test_a_narrow_head_computes_the_same_divergence_in_bfloat16(rearec):
    items, narrow = rearec().items, rearec(head_dtype="bfloat16").items
    narrow.load_state_dict(items.state_dict())
    states = torch.randn(40, 3, D)
    found, expected = divergence(narrow, states).item(), divergence(items, states).item()
    assert found == pytest.approx(expected, rel=0.05) and found != expected


def test_the_divergence_is_told_and_does_not_count_twice(windows, rearec):
    trained, batch = rearec(2, ERL(weight=0.5, temperature=1.0)).double(), windows()
    losses, thought = trained.loss(batch), Thought(trained, batch, "last")
    apart = divergence(trained.items, thought.states) / len(thought.targets)
    assert losses["divergence"].value.item() == pytest.approx(apart.item())
    assert total(losses) is not losses["erl"].value and torch.equal(total(losses), losses["erl"].value)


def test_blocks_of_rows_change_no_divergence(rearec):
    items, states = rearec().double().items, torch.randn(40, 3, D, dtype=torch.float64)
    whole = divergence(items, states)
    with budget("distributions", 1):  # blocks of 16 rows
        assert torch.allclose(divergence(items, states), whole, **EXACT)
