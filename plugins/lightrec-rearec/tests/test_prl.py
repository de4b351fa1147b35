"""PRL: temperatures, losses written out, and the contrast with noise."""

import math

import pytest
import torch
import torch.nn.functional as F

from lightrec.interfaces import total

pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
from lightrec_rearec.objectives import PRL, Thought, contrast  # noqa: E402

D = 8
EXACT = dict(rtol=0, atol=1e-10)  # float64: another order of summation, and nothing else


def test_temperatures_fall_to_that_of_the_last_step():
    assert PRL(temperature=0.07, alpha=5.0).temperatures(2) == pytest.approx([1.75, 0.35, 0.07])
    assert PRL(temperature=0.5, alpha=1.0).temperatures(3) == [0.5] * 4


@pytest.mark.parametrize("fidelity", ["released", "paper"])
def test_prl_is_the_written_out_loss(fidelity, windows, rearec):
    objective = PRL(temperature=0.7, alpha=2.0, step_weight=0.5, contrast_weight=0.0, fidelity=fidelity)
    trained = rearec(3, objective).double()
    batch = windows()
    thought = Thought(trained, batch, "last")
    scores = trained.items.score(thought.states)[..., 1:]
    losses = [F.cross_entropy(scores[:, k] / (0.7 * 2 ** (3 - k)), thought.targets - 1) for k in range(4)]
    early = sum(losses[:3]) / (3 if fidelity == "released" else 1)
    assert total(trained.loss(batch)).item() == pytest.approx((losses[3] + 0.5 * early).item(), rel=1e-9)


def test_prl_without_steps_noise_or_slope_is_cross_entropy_at_its_temperature(windows, rearec):
    trained = rearec(0, PRL(temperature=0.3, alpha=1.0, warmup_epochs=0)).double()
    batch = windows()
    thought = Thought(trained, batch, "last")
    expected = F.cross_entropy(trained.items.score(thought.states[:, 0])[:, 1:] / 0.3, thought.targets - 1)
    assert total(trained.loss(batch)).item() == pytest.approx(expected.item(), rel=1e-9)


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
def test_without_noise_and_dropout_the_noisy_states_are_the_clean_ones(make_causal, positions, windows, rearec):
    trained = rearec(2, PRL(), make_causal()).double().eval()
    thought = Thought(trained, windows(), positions)
    clean, same = thought.contrast(0.0)
    assert clean.shape == (6, 2, D) and torch.allclose(clean, same, **EXACT)
    assert not torch.allclose(clean, thought.contrast(0.5)[1])


def test_noise_has_the_given_deviation_and_does_not_pile_up(windows, rearec):
    trained = rearec(2, PRL()).double().eval()
    heard = []
    trained.encoder.norm.register_forward_hook(lambda module, given, out: heard.append(given[0]))
    thought = Thought(trained, windows(rows=3000), "last")
    thought.contrast(0.01)
    clean, noisy = heard[:2], heard[2:]
    for before, after in zip(clean, noisy, strict=True):
        assert (after - before).std().item() == pytest.approx(0.01, rel=0.02)


def test_the_contrast_begins_after_the_warm_up(windows, rearec):
    for warm, extra in ((0, True), (1, False)):
        trained = rearec(2, PRL(1.0, warmup_epochs=warm))
        bare = rearec(2, PRL(1.0, contrast_weight=0.0))
        bare.load_state_dict(trained.state_dict())
        assert bool((total(trained.loss(windows())) - total(bare.loss(windows()))).abs() > 1e-3) == extra
        assert ("contrast" in trained.loss(windows())) == extra


@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_contrast_reaches_the_noisy_and_the_clean_states(positions, windows, rearec):
    trained = rearec(2, PRL(warmup_epochs=0, positions=positions)).double()
    clean, noisy = Thought(trained, windows(), positions).contrast(0.1)
    clean.retain_grad(), noisy.retain_grad()
    contrast(noisy, clean).sum().backward()
    assert clean.grad.any() and noisy.grad.any() and trained.encoder.positions.grad.any()
