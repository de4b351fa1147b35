"""SRA-CL as part of a model: any model trains with it, and nothing of it is left when one ranks."""

from functools import partial

import pytest
import torch

from lightrec import Batch
from lightrec.checkpoint import read_checkpoint
from lightrec.models.bert4rec import BERT4Rec
from lightrec.models.gru4rec import GRU4Rec
from lightrec.models.mamba4rec import Mamba4Rec
from lightrec.objectives.next_item import NextItem

pytest.importorskip("lightrec_sracl.objective", reason="lightrec-sracl is not installed")

LENGTH, WIDTH = 6, 16


def test_the_backbone_loads_and_ranks_without_the_plug_in(kit, log, tmp_path):
    data = kit.data_of(log)
    model = kit.fit(kit.network(data.num_items, kit.small()), data, tmp_path).eval()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("objective.")}
    plain = kit.network(data.num_items).eval()
    plain.load_state_dict(weights, strict=True)
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(model.recommend(batch, 5)[0], plain.recommend(batch, 5)[0])


def test_nothing_of_the_text_is_in_a_checkpoint_or_in_what_ranks(kit, log, tmp_path):
    data = kit.data_of(log)
    model = kit.fit(kit.network(data.num_items, kit.small()), data, tmp_path)
    assert {n for n in model.state_dict() if n.startswith("objective.")} == {
        "objective.mixture.adapter.weight",
        "objective.mixture.attention",
    }
    batch = next(iter(data.test_dataloader()))
    program = torch.export.export(_Ranking(model.eval()), (batch.item_ids, batch.lengths), strict=False)
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = [name for given, name in program.graph_signature.inputs_to_parameters.items() if given in read]
    assert any("items" in name for name in names) and not any("objective" in name for name in names)


class _Ranking(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, item_ids, lengths):
        batch = Batch(item_ids=item_ids, lengths=lengths, user_ids=lengths)
        return self.model.items.score(self.model.query(batch))


@pytest.mark.parametrize("synthesis", ["mean", "random"])
def test_the_other_ways_to_a_positive_have_no_parameters_and_train(kit, log, tmp_path, synthesis):
    data = kit.data_of(log)
    model = kit.fit(kit.network(data.num_items, kit.small(synthesis=synthesis)), data, tmp_path)
    assert not [n for n, _ in model.objective.named_parameters()]
    assert model.trainer.callback_metrics["train/between_histories"] > 0


def test_any_model_can_be_trained_with_it(kit, log, tmp_path):
    sizes = dict(hidden_size=WIDTH, dropout=0.1)
    models = {
        "GRU4Rec": partial(GRU4Rec, **sizes),
        "Mamba4Rec": partial(Mamba4Rec, **sizes),
        "BERT4Rec": partial(BERT4Rec, max_length=LENGTH, num_layers=1, num_heads=1, **sizes),
    }
    for name, make in models.items():
        data = kit.data_of(log)
        own = make(data.num_items).objective
        model = kit.fit(make(data.num_items, objective=kit.small(objective=own)), data, tmp_path)
        assert model.trainer.callback_metrics["train/between_histories"] > 0, name
        assert model.trainer.callback_metrics["train/between_views"] > 0, name


@pytest.mark.parametrize("loss", ["ERL", "PRL"])
def test_it_trains_rearec_around_mamba4rec(kit, log, tmp_path, loss):
    rearec = pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
    objectives = pytest.importorskip("lightrec_rearec.objectives")
    from lightrec.models.mamba4rec import Mamba4RecEncoder

    data = kit.data_of(log)
    beside = getattr(objectives, loss)(positions="last")
    model = rearec.ReaRec(
        data.num_items, encoder=Mamba4RecEncoder(WIDTH, dropout=0.1), objective=kit.small(objective=beside), num_steps=2
    )
    before = {name: p.clone() for name, p in model.named_parameters()}
    kit.fit(model, data, tmp_path, epochs=3)
    assert model.trainer.callback_metrics["train/between_histories"] > 0
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert not still, f"not trained: {still}"


def test_it_works_on_all_positions_of_whole_windows(kit, log, tmp_path):
    data = kit.data_of(log, train_windows="all")
    goal = kit.small(objective=NextItem("all"))
    model = kit.fit(kit.network(data.num_items, goal), data, tmp_path)
    assert model.trainer.callback_metrics["train/between_histories"] > 0


def test_a_checkpoint_keeps_the_mixture(kit, log, tmp_path):
    data = kit.data_of(log)
    model = kit.network(data.num_items, kit.small())
    trainer = kit.trainer_in(tmp_path)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    again = kit.network(data.num_items, kit.small())
    again.load_state_dict(read_checkpoint(tmp_path / "m.ckpt")["state_dict"])
    assert torch.equal(again.objective.mixture.adapter.weight, model.objective.mixture.adapter.weight)
