"""The Lightning contract: steps, metrics, exclusion, schedules, and randomness that is a function of the step."""

import logging
import math

import lightning as L
import pytest
import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.items.embedding import ItemEmbedding
from lightrec.metrics.ranking import RankingMetrics
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import EncoderRecommender, SequenceRecommender
from lightrec.testing import toy_data, toy_log

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Fixed(SequenceRecommender):
    """Ranks items by number, downwards, whoever asks; its one parameter learns nothing of use.

    Args:
        num_items: size of the catalog.
        learning_rate: of Adam.
        weight_decay: of Adam.
        warmup_steps: of the schedule.
        decay: of the schedule.
    """

    def __init__(
        self,
        num_items: int,
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: str = "constant",
    ):
        super().__init__(learning_rate, weight_decay, warmup_steps=warmup_steps, decay=decay)
        self.num_items = num_items
        self.weight = torch.nn.Parameter(torch.ones(2, 2))
        self.bias = torch.nn.Parameter(torch.ones(2))
        self.draws: list[float] = []
        self.rates: list[float] = []

    def loss(self, batch: Batch) -> Tensor:
        self.draws.append(torch.rand(()).item())
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return self.weight.square().sum() + self.bias.square().sum()

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        scores = torch.arange(self.num_items + 1).float().repeat(len(batch), 1)
        scores[:, 0] = -torch.inf
        if batch.seen_ids is not None:
            scores.scatter_(1, batch.seen_ids, -torch.inf)
        best, item_ids = scores.topk(min(k, scores.shape[1]))
        pad = k - best.shape[1]
        best, item_ids = (
            torch.nn.functional.pad(best, (0, pad), value=-torch.inf),
            torch.nn.functional.pad(item_ids, (0, pad)),
        )
        return item_ids.masked_fill(best == -torch.inf, 0), best


def trainer(folder, **options):
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


@pytest.fixture
def data(tmp_path):
    return toy_data(tmp_path, toy_log(num_users=20), batch_size=8)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return Batch.from_histories([[3, 7, 1], [5], [9, 2, 8, 4]])


def test_the_whole_history_is_excluded_although_the_window_cuts_it():
    model = SASRec(num_items=12, max_length=2, hidden_size=8).eval()
    batch = Batch.from_histories([[3, 7, 1, 9]], max_length=2)
    assert batch.item_ids.tolist() == [[1, 9]]
    item_ids, scores = model.recommend(batch, 12)
    assert set(item_ids[0, :8].tolist()) == set(range(1, 13)) - {3, 7, 1, 9}
    assert item_ids[0, 8:].tolist() == [0] * 4 and (scores[0, 8:] == -torch.inf).all()
    kept, _ = model.recommend(batch.replace(seen_ids=None), 12)
    assert set(kept[0].tolist()) == set(range(1, 13))


def test_the_query_is_the_state_after_the_last_real_item(batch):
    model = SASRec(num_items=12, max_length=6, hidden_size=8).eval()
    query, hidden = model.query(batch), model.encode(batch)
    for row, length in enumerate(batch.lengths.tolist()):
        # The last layer runs for this position alone, through another kernel: equal but for float32 rounding.
        assert torch.allclose(query[row], hidden[row, length - 1], atol=1e-6)


def test_parts_of_different_widths_are_refused():
    model = SASRec(num_items=5, hidden_size=8)
    with pytest.raises(ValueError, match=r"items.hidden_size \(4\) must equal encoder.hidden_size \(8\)"):
        EncoderRecommender(ItemEmbedding(5, 4), model.encoder, NextItem())


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_evaluation_logs_what_the_metrics_compute_from_the_lists(tmp_path, exclude_seen):
    data = toy_data(tmp_path, toy_log(num_users=33), exclude_seen=exclude_seen)
    data.eval_batch_size = 5
    model = Fixed(data.num_items)
    logged = trainer(tmp_path).test(model, datamodule=data, verbose=False)[0]
    expected = RankingMetrics()
    expected.set_catalog(data.item_counts)
    rows = 0
    for batch in data.test_dataloader():
        expected.update(*model.recommend(batch, expected.max_k + 1), batch.target_ids)
        rows += len(batch)
    assert rows == 33 and (batch.seen_ids is not None) == exclude_seen
    values = expected.compute()
    assert set(logged) == {f"test/{name}" for name in values}
    assert 0 < logged["test/hr@10"] < 1
    for name, value in values.items():
        assert logged[f"test/{name}"] == pytest.approx(value.item(), abs=1e-12), name


def test_validation_and_test_do_not_leak_into_each_other(tmp_path, data):
    model = Fixed(data.num_items)
    run = trainer(tmp_path)
    first = run.validate(model, datamodule=data, verbose=False)[0]
    run.test(model, datamodule=data, verbose=False)
    again = run.validate(model, datamodule=data, verbose=False)[0]
    assert first == again and all(name.startswith("val/") for name in first)


def test_a_batch_without_rows_is_passed_over(data):
    model = Fixed(data.num_items)
    empty = next(iter(data.test_dataloader())).map(lambda t: t[:0])
    model.test_step(empty, 0)
    assert model.metrics.rows.sum() == 0


def test_predictions_carry_their_users(tmp_path, data):
    model = Fixed(data.num_items)
    rows = trainer(tmp_path).predict(model, datamodule=data)
    users = torch.cat([users for users, _, _ in rows])
    assert sorted(users.tolist()) == list(range(20))
    assert all(ids.shape == scores.shape == (len(users), 10) for users, ids, scores in rows)


def rates_of(data, tmp_path, epochs=4, **options):
    model = Fixed(data.num_items, learning_rate=0.1, **options)
    trainer(tmp_path, max_epochs=epochs, limit_val_batches=0).fit(model, datamodule=data)
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
    model = Fixed(data.num_items, decay="linear")
    with pytest.raises(ValueError, match="decay='linear' needs a last step"):
        trainer(tmp_path, max_epochs=-1, limit_val_batches=0).fit(model, datamodule=data)


def test_weight_decay_spares_vectors():
    model = Fixed(3, weight_decay=0.3)
    decayed, spared = model.configure_optimizers().param_groups
    assert decayed["weight_decay"] == 0.3 and decayed["params"] == [model.weight]
    assert spared["weight_decay"] == 0.0 and spared["params"] == [model.bias]


def draws_of(data, tmp_path, epochs, start=None):
    model = Fixed(data.num_items)
    trainer(tmp_path, max_epochs=epochs, limit_val_batches=0).fit(model, datamodule=data, ckpt_path=start)
    return model.draws


def test_randomness_is_a_function_of_seed_epoch_and_step(tmp_path, data):
    torch.manual_seed(1)
    first = draws_of(data, tmp_path, 3)
    torch.manual_seed(2)  # whatever was drawn before the run
    assert draws_of(data, tmp_path, 3) == first
    assert len(set(first)) == len(first) == 9
    other = toy_data(tmp_path / "other", toy_log(num_users=20), batch_size=8, seed=1)
    assert not set(draws_of(other, tmp_path, 3)) & set(first)


def test_a_resumed_run_draws_what_the_whole_run_drew(tmp_path, data):
    whole = draws_of(data, tmp_path, 3)
    model = Fixed(data.num_items)
    first = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    first.fit(model, datamodule=data)
    first.save_checkpoint(tmp_path / "one.ckpt")
    rest = draws_of(data, tmp_path, 3, start=tmp_path / "one.ckpt")
    assert model.draws + rest == whole


def test_processes_draw_differently(monkeypatch, data, tmp_path):
    first = draws_of(data, tmp_path, 1)
    monkeypatch.setattr(Fixed, "global_rank", property(lambda self: 1))
    assert not set(draws_of(data, tmp_path, 1)) & set(first)


def test_hyper_parameters_are_the_arguments_of_the_outermost_class():
    model = SASRec(num_items=12, max_length=6, hidden_size=8)
    assert model.hparams["hidden_size"] == 8 and "encoder" not in model.hparams
    assert "betas" not in model.hparams and model.hparams["learning_rate"] == 1e-3


def trained(data, folder, epochs, start=None, save=None, **options):
    """Trains a SASRec with dropout and a schedule; returns its weights."""
    torch.manual_seed(3)
    model = SASRec(
        data.num_items, data.max_length, hidden_size=8, dropout=0.3, warmup_steps=2, decay="linear", learning_rate=1e-2
    )
    run = trainer(folder, max_epochs=epochs, limit_val_batches=0, **options)
    run.fit(model, datamodule=data, ckpt_path=start)
    if save:
        run.save_checkpoint(save)
    return {name: weight.clone() for name, weight in model.state_dict().items()}


class Killed(L.Callback):
    """Saves after a number of steps and ends the run as a lost machine would, in the middle of an epoch."""

    def __init__(self, step: int, path: str):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise ConnectionAbortedError


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_run_that_was_killed_and_resumed_ends_bit_for_bit_where_the_whole_run_ends(tmp_path, step):
    def data():  # a new process makes a new data module
        return toy_data(tmp_path, toy_log(num_users=20), batch_size=8)

    whole = trained(data(), tmp_path, epochs=4)
    path = str(tmp_path / "killed.ckpt")
    with pytest.raises(ConnectionAbortedError):
        trained(data(), tmp_path, epochs=4, callbacks=[Killed(step, path)])
    resumed = trained(data(), tmp_path, epochs=4, start=path)
    assert all(torch.equal(whole[name], weight) for name, weight in resumed.items())
    assert not all(torch.equal(w, trained(data(), tmp_path, epochs=3)[name]) for name, w in whole.items())


def test_mixed_precision_trains_and_leaves_float32_weights(tmp_path, data):
    exact = trained(data, tmp_path, epochs=1)
    mixed = trained(data, tmp_path, epochs=1, precision="bf16-mixed")
    for name, weight in mixed.items():
        assert weight.dtype == torch.float32 and weight.isfinite().all()
        assert torch.allclose(weight, exact[name], atol=0.1), name
    assert any(not torch.equal(weight, exact[name]) for name, weight in mixed.items())


@pytest.mark.slow
def test_a_model_with_a_compiled_encoder_takes_the_same_steps(tmp_path, data, monkeypatch):
    # The compiler writes megabytes of trace into whatever listens, and pytest listens to everything.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)

    def weights(compiled):
        torch.manual_seed(3)
        model = SASRec(data.num_items, data.max_length, hidden_size=8, num_layers=1, dropout=0.0)
        run = trainer(tmp_path, max_epochs=1, limit_val_batches=1)
        # Graphs are captured and differentiated as for any backend; only code generation is left out.
        if compiled:
            model.encoder.compile(backend="aot_eager", dynamic=True)
        run.fit(model, datamodule=data)
        return model.state_dict()

    plain, compiled = weights(False), weights(True)
    assert all(torch.allclose(weight, compiled[name], rtol=1e-3, atol=1e-5) for name, weight in plain.items())
