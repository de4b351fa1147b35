"""The Lightning contract: exclusion, what the data tell, logged terms, and randomness that a step alone decides."""

import logging

import lightning as L
import pytest
import torch
from torch import Tensor

from lightrec.data.batch import Batch, Column
from lightrec.interfaces import History, Losses, Objective, Search, SequenceEncoder, Term, total
from lightrec.items.embedding import ItemEmbedding
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem
from lightrec.objectives.weighted import Weighted
from lightrec.recommender import AdamW, EncoderRecommender, SequenceRecommender
from lightrec.search.exact import ranked
from lightrec.testing import toy_data, toy_log

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Fixed(SequenceRecommender):
    """Ranks items by number, downwards, whoever asks; its one parameter learns nothing of use.

    Args:
        num_items: size of the catalog.
    """

    def __init__(self, num_items: int):
        super().__init__(AdamW(learning_rate=0.1))
        self.num_items = num_items
        self.weight = torch.nn.Parameter(torch.ones(2, 2))
        self.bias = torch.nn.Parameter(torch.ones(2))
        self.draws: list[float] = []
        self.shares: list[float] = []

    def loss(self, batch: Batch) -> Losses:
        self.draws.append(torch.rand(()).item())
        self.shares.append(self.progress)
        return {"squares": Term(self.weight.square().sum() + self.bias.square().sum())}

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        return ranked(torch.arange(self.num_items + 1).float().repeat(len(batch), 1), k, batch.seen_ids)


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


class Heard(SequenceEncoder):
    """Notes what it is told of the data and what it reads of an event."""

    causal = True

    def __init__(self, hidden_size: int = 4):
        super().__init__()
        self.hidden_size = hidden_size
        self.told: list = []
        self.read: list[History] = []

    def connect(self, corpus) -> None:
        self.told.append(corpus)

    def enter(self, history: History) -> History:
        return history

    def mix(self, history: History) -> Tensor:
        self.read.append(history)
        return history.x


class Wrapper(SequenceEncoder):
    """Wraps an encoder and knows nothing of events but their vectors."""

    def __init__(self, inner: SequenceEncoder):
        super().__init__()
        self.inner, self.hidden_size, self.causal = inner, inner.hidden_size, inner.causal

    def enter(self, history: History) -> History:
        return self.inner.enter(history)

    def mix(self, history: History) -> Tensor:
        return self.inner.mix(history._replace(x=history.x * 2))


class Listening(Objective):
    """Is told of the data too."""

    def __init__(self):
        super().__init__()
        self.told: list = []

    def connect(self, corpus) -> None:
        self.told.append(corpus)

    def forward(self, recommender, batch: Batch, states=None) -> Losses:
        return {"zero": Term(recommender.items(batch.item_ids).sum() * 0)}


def test_what_the_data_tell_reaches_parts_inside_wrappers_once_before_the_run(tmp_path, data):
    encoder, objective = Heard(), Listening()
    model = EncoderRecommender(
        ItemEmbedding(data.num_items, 4), Wrapper(Wrapper(encoder)), Weighted([NextItem(), objective])
    )
    trainer(tmp_path, max_epochs=2).fit(model, datamodule=data)
    assert len(encoder.told) == len(objective.told) == 1
    assert encoder.told[0] is objective.told[0] is data.corpus
    assert model.evaluation.metrics.item_cohort.shape == (data.num_items + 1,)


def test_a_recommender_without_a_data_module_is_told_nothing(tmp_path):
    batches = torch.utils.data.DataLoader([Batch.from_histories([[1, 2, 3]])], batch_size=None)
    encoder = Heard()
    model = EncoderRecommender(ItemEmbedding(3, 4), encoder, Listening())
    trainer(tmp_path, max_epochs=1).fit(model, batches)
    assert encoder.told == []


def test_times_and_columns_of_events_reach_an_encoder_inside_a_wrapper(batch):
    ids = batch.item_ids
    columns = {"action": Column(ids + 100, "position"), "age": Column(batch.lengths, "row")}
    batch = batch.replace(timestamps=ids * 10, columns=columns)
    encoder = Heard()
    model = EncoderRecommender(ItemEmbedding(12, 4), Wrapper(Wrapper(encoder)), NextItem())
    with torch.no_grad():
        model.encode(batch), model.query(batch), model.recommend(batch, 3)
    total(model.loss(batch.rows(torch.tensor([0, 2]))))
    assert len(encoder.read) == 4
    for history in encoder.read[:3]:
        assert torch.equal(history.timestamps, ids * 10) and torch.equal(history.lengths, batch.lengths)
        assert list(history.columns) == ["action"] and torch.equal(history.columns["action"], ids + 100)
    shifted = encoder.read[3]
    assert torch.equal(shifted.timestamps, ids[[0, 2], :-1] * 10)
    assert torch.equal(shifted.columns["action"], ids[[0, 2], :-1] + 100)
    assert torch.equal(shifted.lengths, batch.lengths[[0, 2]] - 1)


def test_progress_is_the_share_of_epochs_that_are_done_and_one_outside_of_a_run(tmp_path, data):
    model = Fixed(data.num_items)
    assert model.progress == 1.0
    trainer(tmp_path, max_epochs=4, limit_val_batches=0).fit(model, datamodule=data)
    steps = len(data.train_dataloader())
    assert model.shares == [epoch / 4 for epoch in range(4) for _ in range(steps)]
    assert model.progress == 1.0


def test_progress_of_a_run_without_an_end_is_one(tmp_path, data):
    model = Fixed(data.num_items)
    trainer(tmp_path, max_epochs=-1, max_steps=4, limit_val_batches=0).fit(model, datamodule=data)
    assert model.shares == [1.0] * 4


class Named(Fixed):
    """Has as many terms as it is given weights."""

    def __init__(self, num_items: int, weights: list[float]):
        super().__init__(num_items)
        self.weights = weights

    def loss(self, batch: Batch) -> Losses:
        value = self.weight.square().sum()
        return {f"part_{i}": Term(value * 0 + i + 1, weight) for i, weight in enumerate(self.weights)}


def test_several_terms_are_logged_by_name_and_without_their_weights(tmp_path, data):
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(Named(data.num_items, [1.0, 0.5, 0.0]), datamodule=data)
    logged = {name: value.item() for name, value in run.callback_metrics.items() if name.startswith("train/")}
    assert logged.pop("train/loss") == logged.pop("train/loss_step") == logged.pop("train/loss_epoch") == 2.0
    assert logged == {"train/part_0": 1.0, "train/part_1": 2.0, "train/part_2": 3.0}


def test_a_single_term_is_logged_as_the_loss_alone(tmp_path, data):
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(Named(data.num_items, [2.0]), datamodule=data)
    logged = {name: value.item() for name, value in run.callback_metrics.items() if name.startswith("train/")}
    assert set(logged) == {"train/loss", "train/loss_step", "train/loss_epoch"} and set(logged.values()) == {2.0}


def test_a_search_may_be_replaced_after_training(batch):
    class First(Search):
        def forward(self, items, states, k, exclude_ids=None, candidate_ids=None):
            return torch.ones(len(states), k, dtype=torch.long), torch.zeros(len(states), k)

    model = SASRec(num_items=12, max_length=6, hidden_size=8).eval()
    model.search = First()
    assert (model.recommend(batch, 3)[0] == 1).all()


def test_predictions_carry_their_users(tmp_path, data):
    model = Fixed(data.num_items)
    rows = trainer(tmp_path).predict(model, datamodule=data)
    users = torch.cat([users for users, _, _ in rows])
    assert sorted(users.tolist()) == list(range(20))
    assert all(ids.shape == scores.shape == (len(users), 10) for users, ids, scores in rows)


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
    assert model.hparams["max_length"] == 6 and "network" not in model.hparams  # passed on, and remembered one by one
    assert model.hparams["optimizer"] == AdamW().describe()


def trained(data, folder, epochs, start=None, save=None, **options):
    """Trains a SASRec with dropout and a schedule; returns its weights."""
    torch.manual_seed(3)
    optimizer = AdamW(learning_rate=1e-2, warmup_steps=2, decay="linear")
    model = SASRec(data.num_items, max_length=data.max_length, hidden_size=8, dropout=0.3, optimizer=optimizer)
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
        model = SASRec(data.num_items, max_length=data.max_length, hidden_size=8, num_layers=1, dropout=0.0)
        run = trainer(tmp_path, max_epochs=1, limit_val_batches=1)
        # Graphs are captured and differentiated as for any backend; only code generation is left out.
        if compiled:
            model.encoder.compile(backend="aot_eager", dynamic=True)
        run.fit(model, datamodule=data)
        return model.state_dict()

    plain, compiled = weights(False), weights(True)
    assert all(torch.allclose(weight, compiled[name], rtol=1e-3, atol=1e-5) for name, weight in plain.items())
