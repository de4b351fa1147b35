"""GRU4Rec: the pass over a history, and going on event by event."""

import lightning as L
import pytest
import torch

from lightrec.data.batch import Batch
from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.options import Cleaning
from lightrec.errors import InputError
from lightrec.interfaces import History
from lightrec.models.gru4rec import GRU4Rec, GRU4RecEncoder, GRU4RecSession
from lightrec.recommender import Adagrad


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("num_layers", "inner_size"), [(1, None), (2, 12), (3, 8)])
def test_going_on_event_by_event_equals_the_full_pass(num_layers, inner_size):
    encoder = GRU4RecEncoder(8, num_layers, inner_size, dropout=0.5).eval()
    x, lengths = torch.randn(3, 7, 8), torch.tensor([7, 7, 7])
    entered = encoder.enter(History(x, lengths)).x
    state, steps = encoder.init_state(3), []
    for t in range(7):
        hidden, state = encoder.step(entered[:, t], state)
        steps.append(hidden)
    assert torch.allclose(torch.stack(steps, 1), encoder(History(x, lengths)), atol=1e-6)


def test_a_step_equals_the_written_out_gates():
    encoder = GRU4RecEncoder(4).eval()
    layer = encoder.layers[0]
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x, before = torch.randn(2, 4), torch.randn(2, 4)
    wi, wh = layer.weight_ih_l0.chunk(3), layer.weight_hh_l0.chunk(3)
    bi, bh = layer.bias_ih_l0.chunk(3), layer.bias_hh_l0.chunk(3)
    reset, update = (torch.sigmoid(x @ wi[g].T + bi[g] + before @ wh[g].T + bh[g]) for g in (0, 1))
    candidate = torch.tanh(x @ wi[2].T + bi[2] + reset * (before @ wh[2].T + bh[2]))
    expected = (1 - update) * candidate + update * before
    hidden, state = encoder.step(x, [before])
    assert torch.allclose(hidden, expected, atol=1e-6) and torch.equal(state[0], hidden)


def test_gradients_flow_through_time():
    encoder = GRU4RecEncoder(8, dropout=0.0)
    x = torch.randn(1, 20, 8, requires_grad=True)
    encoder(History(x, torch.tensor([20])))[0, -1].sum().backward()
    assert (x.grad[0].abs().sum(1) > 0).all()


def test_a_history_of_any_length_is_read():
    model = GRU4Rec(9, hidden_size=8).eval()
    batch = Batch(torch.randint(1, 10, (2, 300)), torch.tensor([300, 150]), torch.arange(2))
    item_ids, scores = model.recommend(batch, 3)
    assert item_ids.shape == (2, 3) and scores.isfinite().all()


def test_scores_use_the_input_table():
    model = GRU4Rec(9, hidden_size=8, inner_size=12)
    assert model.items.output is None
    assert torch.allclose(model.items(torch.tensor([3])), 8**0.5 * model.items.embedding.weight[3])  # scaled on entry
    assert model.encoder.output.in_features == 12 and model.encoder.output.out_features == 8


def toy_log(tmp_path):
    draw = torch.Generator().manual_seed(0)
    lines = [f"{u},{(u + 3 * t) % 11},{t * 10 + u}" for u in range(40) for t in range(int(3 + u % 7))]
    order = torch.randperm(len(lines), generator=draw).tolist()
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "\n".join(lines[i] for i in order) + "\n")
    return str(path)


def fitted(tmp_path, epochs, start=None, **options):
    L.seed_everything(0, verbose=False)
    data = SequenceDataModule(
        path=toy_log(tmp_path), train_windows="sessions", batch_size=8, cleaning=Cleaning(min_user_events=1)
    )
    model = GRU4RecSession(11, hidden_size=16, num_negatives=6, embedding_dropout=0.0, optimizer=Adagrad(momentum=0.1))
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer = L.Trainer(max_epochs=epochs, enable_checkpointing=False, default_root_dir=tmp_path, **(quiet | options))
    trainer.fit(model, data, ckpt_path=start)
    return trainer, model


class Killed(L.Callback):
    """Saves in the middle of an epoch and ends the run as a lost machine would."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 20:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/mid.ckpt")
            raise ConnectionAbortedError


@pytest.mark.filterwarnings("ignore")
def test_a_run_stopped_in_the_middle_of_its_sessions_goes_on_exactly(tmp_path):
    _, whole = fitted(tmp_path, 3)
    with pytest.raises(ConnectionAbortedError):
        fitted(tmp_path, 3, callbacks=[Killed()])
    _, resumed = fitted(tmp_path, 3, start=str(tmp_path / "mid.ckpt"))
    before = torch.load(tmp_path / "mid.ckpt", weights_only=True)["state_dict"]
    weights = {name: w for name, w in whole.state_dict().items() if isinstance(w, torch.Tensor)}
    assert not all(torch.equal(before[name], w) for name, w in weights.items())
    assert all(torch.equal(resumed.state_dict()[name], w) for name, w in weights.items())


@pytest.mark.filterwarnings("ignore")
def test_sessions_side_by_side_learn_the_rule(tmp_path):
    trainer, model = fitted(tmp_path, 12)
    values = trainer.validate(model, trainer.datamodule, verbose=False)[0]
    assert values["val/hr@1"] > 0.8


def test_sessions_run_in_one_process(tmp_path):
    data = SequenceDataModule(path=toy_log(tmp_path), train_windows="sessions")
    data.trainer = type("Two", (), {"global_rank": 0, "world_size": 2})()
    with pytest.raises(InputError, match="runs in one process: set --trainer.devices 1"):
        data.train_dataloader()
