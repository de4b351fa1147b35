"""Optimizers: schedules, groups, settable betas and eps, frozen parameters, and Adagrad by the official rule."""

import math

import lightning as L
import pytest
import torch
from torch import Tensor

from lightrec.checkpoint import build
from lightrec.configurable import describe
from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, Term
from lightrec.models.gru4rec import GRU4RecSession
from lightrec.models.sasrec import SASRec
from lightrec.recommender import Adagrad, AdamW, Optimizer, SequenceRecommender
from lightrec.recommender.optimizer import AdagradMomentum
from lightrec.testing import toy_data, toy_log
from lightrec.testing.harness import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Squares(SequenceRecommender):
    """Notes the rate of every step; its two parameters learn nothing of use.

    Args:
        optimizer: how it is trained.
    """

    def __init__(self, optimizer: Optimizer):
        super().__init__(optimizer)
        self.weight = torch.nn.Parameter(torch.ones(2, 2))
        self.bias = torch.nn.Parameter(torch.ones(2))
        self.rates: list[float] = []

    def loss(self, batch: Batch) -> Losses:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return {"squares": Term(self.weight.square().sum() + self.bias.square().sum())}

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@pytest.fixture
def data(tmp_path):
    return toy_data(tmp_path, toy_log(num_users=20), batch_size=8)


def fit(model, data, folder, epochs):
    run: L.Trainer = make_trainer(folder, epochs)
    run.limit_val_batches = 0
    run.fit(model, datamodule=data)


def rates_of(data, tmp_path, epochs=4, **options):
    model = Squares(AdamW(learning_rate=0.1, **options))
    fit(model, data, tmp_path, epochs)
    steps = len(data.train_dataloader()) * epochs
    assert len(model.rates) == steps >= 10
    return [rate / 0.1 for rate in model.rates]


def test_a_constant_rate_needs_no_schedule(tmp_path, data):
    assert rates_of(data, tmp_path) == [1.0] * 12


def test_warm_up_rises_evenly_and_holds(tmp_path, data):
    assert rates_of(data, tmp_path, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 9)


def test_linear_decay_ends_at_zero_with_the_last_step(tmp_path, data):
    expected = [0.5, 1.0] + [1 - i / 10 for i in range(10)]
    assert rates_of(data, tmp_path, warmup_steps=2, decay="linear") == pytest.approx(expected)


def test_cosine_decay_is_a_half_wave(tmp_path, data):
    expected = [0.5 * (1 + math.cos(math.pi * i / 12)) for i in range(12)]
    assert rates_of(data, tmp_path, decay="cosine") == pytest.approx(expected, abs=1e-6)


def test_decay_without_an_end_is_refused(tmp_path, data):
    with pytest.raises(ValueError, match="decay='linear' needs a last step"):
        fit(Squares(AdamW(decay="linear")), data, tmp_path, epochs=-1)


def test_weight_decay_spares_vectors():
    model = Squares(AdamW(weight_decay=0.3))
    decayed, spared = model.configure_optimizers().param_groups
    assert decayed["weight_decay"] == 0.3 and decayed["params"] == [model.weight]
    assert spared["weight_decay"] == 0.0 and spared["params"] == [model.bias]


def test_frozen_parameters_are_in_no_group_and_no_group_is_empty():
    model = Squares(AdamW(weight_decay=0.3))
    model.bias.requires_grad = False
    (group,) = model.configure_optimizers().param_groups
    assert group["params"] == [model.weight] and group["weight_decay"] == 0.3
    model = Squares(Adagrad())
    model.weight.requires_grad = False
    (group,) = model.configure_optimizers().param_groups
    assert group["params"] == [model.bias]


def test_betas_and_eps_are_settable_on_a_named_model_and_reach_torch():
    model = SASRec(9, hidden_size=8, optimizer=AdamW(learning_rate=0.02, betas=(0.8, 0.95), eps=1e-6))
    inner = model.configure_optimizers()
    assert isinstance(inner, torch.optim.AdamW)
    for group in inner.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.02, (0.8, 0.95), 1e-6)
    default = SASRec(9, hidden_size=8).configure_optimizers().param_groups[0]
    assert (default["lr"], default["betas"], default["eps"]) == (1e-3, (0.9, 0.98), 1e-8)


def test_betas_and_eps_change_the_step_by_the_written_out_rule():
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    model = torch.nn.Module()
    model.weight = weight
    inner = AdamW(learning_rate=0.1, betas=(0.5, 0.75), eps=0.1).configure(model, lambda: math.inf)
    expected, first, second = weight.detach().clone(), torch.zeros(1, 2), torch.zeros(1, 2)
    for step in range(1, 4):
        weight.grad = gradient = torch.tensor([[0.3 * step, -0.2]])
        inner.step()
        first, second = 0.5 * first + 0.5 * gradient, 0.75 * second + 0.25 * gradient**2
        expected -= 0.1 * (first / (1 - 0.5**step)) / ((second / (1 - 0.75**step)).sqrt() + 0.1)
    assert torch.allclose(weight, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdamW, {"learning_rate": -1.0}, r"learning_rate \(-1.0\) must be at least 0"),
        (AdamW, {"weight_decay": -0.1}, r"weight_decay \(-0.1\) must be at least 0"),
        (AdamW, {"eps": 0.0}, r"eps \(0.0\) must be above 0"),
        (AdamW, {"warmup_steps": -1}, r"warmup_steps \(-1\) must be at least 0"),
        (AdamW, {"decay": "sudden"}, "decay 'sudden' is unknown; choose constant, linear, cosine"),
        (Adagrad, {"momentum": 1.0}, r"momentum \(1.0\) must be below 1"),
        (Adagrad, {"momentum": -0.1}, r"momentum \(-0.1\) must be between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    "optimizer", [AdamW(betas=(0.5, 0.6), decay="cosine"), Adagrad(momentum=0.2)], ids=["AdamW", "Adagrad"]
)
def test_an_optimizer_is_described_and_built_again(optimizer):
    again = build(describe(optimizer))
    assert type(again) is type(optimizer) and describe(again) == describe(optimizer)
    settings = [vars(one) | {"_init_args": None} for one in (again, optimizer)]
    assert settings[0] == settings[1]


def test_one_optimizer_serves_several_models():
    shared = AdamW(weight_decay=0.1)
    one, other = Squares(shared), Squares(shared)
    groups = [model.configure_optimizers().param_groups[0]["params"] for model in (one, other)]
    assert groups[0] == [one.weight] and groups[1] == [other.weight]


def test_the_session_form_of_gru4rec_is_trained_by_adagrad():
    inner = GRU4RecSession(9, hidden_size=8, optimizer=Adagrad(0.2, 0.3)).configure_optimizers()
    assert isinstance(inner, AdagradMomentum)
    assert (inner.param_groups[0]["lr"], inner.param_groups[0]["momentum"]) == (0.2, 0.3)


def test_adagrad_with_momentum_is_the_written_out_rule_and_leaves_untouched_rows_alone():
    table, vector = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(3))
    optimizer = AdagradMomentum([table, vector], lr=0.1, momentum=0.5)
    expected, squares, update = table.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    for rows in ([0, 2], [2, 3], [0, 2]):
        grad = torch.zeros(5, 3)
        grad[rows] = torch.randn(2, 3)
        table.grad, vector.grad = grad, torch.ones(3)
        optimizer.step()
        squares[rows] += grad[rows] ** 2
        update[rows] = 0.5 * update[rows] - 0.1 * grad[rows] / (squares[rows] + 1e-6).sqrt()
        expected[rows] += update[rows]
    assert torch.allclose(table, expected, atol=1e-6)
    assert torch.equal(table[[1, 4]], expected[[1, 4]])
