"""A checkpoint alone is enough, runs nothing, and builds only what may be built."""

import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import lightning as L
import pytest
import torch

from lightrec.checkpoint import build, check_vocabulary, read_checkpoint
from lightrec.configurable import Configurable, describe
from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.items.embedding import ItemEmbedding
from lightrec.models.sasrec import SASRec, SASRecEncoder
from lightrec.objectives.next_item import NextItem
from lightrec.objectives.sampled import SampledSoftmax
from lightrec.recommender import EncoderRecommender
from lightrec.serving.loaded import load_recommender
from lightrec.testing import toy_data


class OwnObjective(SampledSoftmax):
    """Lives in a module that nobody installed."""


class OwnItems(ItemEmbedding):
    """Lives there too."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, its data and its checkpoint, all made in Python."""
    folder = tmp_path_factory.mktemp("checkpoint")
    os.environ["LIGHTREC_CACHE"] = str(folder / "cache")
    data = toy_data(folder)
    model = SASRec(data.num_items, max_length=data.max_length, hidden_size=8, objective=SampledSoftmax(num_negatives=4))
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    path = folder / "model.ckpt"
    trainer.save_checkpoint(path)
    return model.eval(), data, path


def _refused(path, **options):
    with pytest.raises(InputError) as caught:
        load_recommender(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _changed(path, tmp_path, **entries):
    """Writes a copy of a checkpoint whose `lightrec` entry differs."""
    content = torch.load(path, weights_only=True)
    content["lightrec"] |= entries
    copy = tmp_path / "changed.ckpt"
    torch.save(content, copy)
    return copy


def test_the_file_alone_gives_the_same_model_back(trained):
    model, data, path = trained
    loaded = load_recommender(path)
    assert describe(loaded.model) == describe(model)
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    assert loaded.catalog.item_ids == data.catalog.item_ids
    assert loaded.protocol == data.protocol()
    assert loaded.max_length == data.max_length


def test_recommendations_are_those_of_the_model_in_external_ids(trained):
    model, data, path = trained
    history = [3, 7, 11]
    ids, scores = model.recommend(Batch.from_histories([history], data.max_length), 5)
    (lines,) = load_recommender(path).recommend([[data.catalog.decode(i) for i in history]], k=5)
    assert [line.item_id for line in lines] == [data.catalog.decode(i) for i in ids[0].tolist()]
    assert [line.title for line in lines] == [data.catalog.title(i) for i in ids[0].tolist()]
    assert [line.score for line in lines] == pytest.approx(scores[0].tolist())


def test_many_histories_are_each_answered_as_if_alone(trained):
    _, data, path = trained
    loaded = load_recommender(path)
    ids = data.catalog.item_ids
    histories = [[ids[(u + t) % len(ids)] for t in range(1 + u % 9)] for u in range(300)]
    together = loaded.recommend(histories, k=3)
    for row in (0, 17, 299):
        (alone,) = loaded.recommend([histories[row]], k=3)
        assert [line.item_id for line in alone] == [line.item_id for line in together[row]]


def test_seen_items_are_left_out_even_beyond_the_window_unless_asked_for(trained):
    _, data, path = trained
    loaded = load_recommender(path)
    everything = data.catalog.item_ids
    history = everything[: len(everything) - 2]
    (lines,) = loaded.recommend([history], k=10)
    assert {line.item_id for line in lines} == set(everything[-2:])
    (lines,) = loaded.recommend([history], k=10, exclude_seen=False)
    assert len(lines) == 10


def test_unknown_items_are_skipped_and_reported(trained):
    _, data, path = trained
    loaded = load_recommender(path)
    known = data.catalog.item_ids[0]
    lists = loaded.recommend([[known, "nowhere"], [404], []], k=2)
    assert [len(lines) for lines in lists] == [2, 0, 0]
    assert loaded.unknown == [(0, "nowhere"), (1, "404")]
    assert loaded.recommend([[known, "nowhere"]], k=2) == loaded.recommend([[known]], k=2)


def test_a_list_of_ids_where_a_list_of_lists_belongs_is_named(trained):
    with pytest.raises(TypeError, match="list of lists"):
        load_recommender(trained[2]).recommend(["item-1", "item-2"])


def test_missing_empty_and_truncated_files_are_refused(trained, tmp_path):
    content = trained[2].read_bytes()
    assert "does not exist" in _refused(tmp_path / "nowhere.ckpt")
    assert "is a folder" in _refused(tmp_path)
    for size in (0, 100, len(content) // 2, len(content) - 10):
        cut = tmp_path / f"cut{size}.ckpt"
        cut.write_bytes(content[:size])
        assert str(cut) in _refused(cut)


def test_damaged_file_is_refused(trained, tmp_path):
    content = bytearray(trained[2].read_bytes())
    begin = content.find(b"data.pkl") + 200
    content[begin : begin + 400] = os.urandom(400)
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(content)
    _refused(damaged)


def test_pickle_that_poses_as_a_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return os.system, ("touch pwned",)

    Path("raw.ckpt").write_bytes(pickle.dumps(Evil()))
    torch.save({"lightrec": {"model": Evil()}, "state_dict": OrderedDict()}, "zip.ckpt")
    torch.save({"state_dict": Evil()}, "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("raw.ckpt", "zip.ckpt", "old.ckpt"):
        _refused(name)
    assert "could run code" in _refused("zip.ckpt")
    assert not Path("pwned").exists()


def test_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name in ("other.ckpt", "list.ckpt"):
        assert "was not written by lightrec" in _refused(tmp_path / name)


@pytest.mark.parametrize("number", [1, 99])
def test_another_format_is_refused_with_the_version_that_reads_it(trained, tmp_path, number):
    said = _refused(_changed(trained[2], tmp_path, format=number, lightrec_version="7.8.9"))
    assert f"checkpoint format {number}" in said and "reads 2: use lightrec 7.8.9" in said


@pytest.mark.parametrize(
    ("class_path", "said"),
    [
        ("os.system", "neither lightrec's nor an installed plug-in's"),
        ("subprocess.Popen", "neither lightrec's nor an installed plug-in's"),
        ("lightrecevil.Model", "neither lightrec's nor an installed plug-in's"),
        ("lightrec.extensions.import_path", "not a part of a recommender"),
        ("lightrec.extensions.os.system", "cannot be imported"),
        ("lightrec.models.nowhere.Nothing", "cannot be imported"),
        ("torch.nn.Linear", "neither lightrec's nor an installed plug-in's"),
        (7, "neither lightrec's nor an installed plug-in's"),
    ],
)
def test_only_recommender_parts_of_known_distributions_are_built(trained, tmp_path, class_path, said):
    model = {"class_path": class_path, "init_args": {}}
    assert said in _refused(_changed(trained[2], tmp_path, model=model))


def _in_parts(data):
    """Describes the trained model as one that is made of parts."""
    items, encoder = ItemEmbedding(data.num_items, 8), SASRecEncoder(data.max_length, 8)
    return describe(EncoderRecommender(items, encoder, NextItem()))


@pytest.mark.parametrize("slot", ["items", "encoder", "search", "evaluation"])
def test_nested_parts_are_held_to_the_same_rule(trained, tmp_path, monkeypatch, slot):
    monkeypatch.chdir(tmp_path)
    model = _in_parts(trained[1])
    model["init_args"][slot] = {"class_path": "os.system", "init_args": {"command": "touch pwned"}}
    assert "os.system" in _refused(_changed(trained[2], tmp_path, model=model))
    assert not Path("pwned").exists()


@pytest.mark.parametrize("slot", ["objective", "optimizer"])
def test_what_trains_a_model_is_never_imported_to_recommend_with_it(trained, tmp_path, monkeypatch, slot):
    (tmp_path / "stranger.py").write_text("import pathlib\n\npathlib.Path('pwned').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = torch.load(trained[2], weights_only=True)["lightrec"]["model"]
    for class_path in ("stranger.Part", "os.system"):
        model["init_args"][slot] = {"class_path": class_path, "init_args": {"command": "touch pwned"}}
        loaded = load_recommender(_changed(trained[2], tmp_path, model=model), trust=["stranger", "os"])
        assert "stranger" not in sys.modules and not Path("pwned").exists()
        assert describe(getattr(loaded.model, slot)) == model["init_args"][slot]  # and it is still told what it was
        assert len(loaded.recommend([trained[1].catalog.item_ids[:3]], k=2)[0]) == 2


def test_a_loaded_model_has_no_objective_and_says_so(trained):
    model = load_recommender(trained[2]).model
    batch = Batch.from_histories([[1, 2, 3]])
    with pytest.raises(RuntimeError, match="loaded to recommend, without its objective: `lightrec fit --ckpt_path"):
        model.loss(batch)
    with pytest.raises(RuntimeError, match="loaded to recommend, without its optimizer"):
        model.configure_optimizers()


def test_a_module_is_trusted_by_name_only(trained, tmp_path):
    model = _in_parts(trained[1])
    model["init_args"]["items"]["class_path"] = f"{__name__}.OwnItems"
    path = _changed(trained[2], tmp_path, model=model)
    assert __name__ in _refused(path)
    assert type(load_recommender(path, trust=[__name__]).model.items) is OwnItems


def test_an_objective_is_built_from_a_trusted_module_only():
    description = describe(SASRec(20, max_length=8, hidden_size=8, objective=OwnObjective(num_negatives=4)))
    with pytest.raises(InputError, match="OwnObjective, which is neither lightrec's nor an installed plug-in's"):
        build(description)
    assert type(build(description, trust=[__name__]).objective) is OwnObjective


def test_arguments_that_the_class_does_not_take_are_named(trained, tmp_path):
    model = torch.load(trained[2], weights_only=True)["lightrec"]["model"]
    model["init_args"]["depth"] = 3
    assert "depth" in _refused(_changed(trained[2], tmp_path, model=model))


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    model = torch.load(trained[2], weights_only=True)["lightrec"]["model"]
    model["init_args"]["hidden_size"] = 16
    assert "do not fit" in _refused(_changed(trained[2], tmp_path, model=model))


def test_catalog_of_nonsense_is_refused(trained, tmp_path):
    assert "catalog" in _refused(_changed(trained[2], tmp_path, catalog={"item_bytes": torch.zeros(3)}))
    assert "carries no catalog" in _refused(_changed(trained[2], tmp_path, catalog=None))


def test_vocabulary_is_compared_item_by_item(trained):
    _, data, path = trained
    checkpoint = read_checkpoint(path)
    check_vocabulary(checkpoint, data.catalog, path)
    other = type(data.catalog)(data.catalog.frame.reverse())
    with pytest.raises(InputError, match="another vocabulary"):
        check_vocabulary(checkpoint, other, path)


def test_build_is_the_counterpart_of_describe():
    model = SASRec(20, max_length=8, hidden_size=8, objective=SampledSoftmax(num_negatives=4))
    again = build(describe(model))
    assert describe(again) == describe(model)
    assert isinstance(again, Configurable)


def test_model_trained_without_a_data_module_says_so(tmp_path):
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    model = SASRec(20, max_length=8, hidden_size=8)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "bare.ckpt")
    assert read_checkpoint(tmp_path / "bare.ckpt")["lightrec"]["data"] is None
    assert "without a SequenceDataModule" in _refused(tmp_path / "bare.ckpt")
