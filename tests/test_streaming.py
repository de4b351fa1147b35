"""A stream gives what the batch gives, keeps what it should, and takes in nothing foreign."""

import copy
import importlib
import os
import re
import threading
from pathlib import Path

import lightning as L
import polars as pl
import pytest
import torch

from lightrec.data.batch import Batch
from lightrec.data.catalog import Catalog
from lightrec.errors import InputError
from lightrec.interfaces import ItemTable, SequenceEncoder
from lightrec.items.embedding import ItemEmbedding
from lightrec.models.counting import Markov
from lightrec.models.gru4rec import GRU4Rec
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import EncoderRecommender
from lightrec.serving.loaded import LoadedRecommender, load_recommender
from lightrec.serving.stream import StreamingRecommender
from lightrec.testing import toy_data

NUM_ITEMS, MAX_LENGTH = 40, 12
CLOSE = dict(rtol=1e-4, atol=1e-5)  # float32: one step at a time is another order of summation than a whole history
EVENTS = [("ann", 3), ("bob", 9), ("ann", 7), ("cid", 1), ("ann", 3), ("bob", 40), ("cid", 22), ("bob", 2), ("ann", 15)]


def gru(**options) -> GRU4Rec:
    torch.manual_seed(0)
    return GRU4Rec(NUM_ITEMS, hidden_size=8, **options)


def own_model(name: str, path: str, options: dict) -> EncoderRecommender:
    """A model of lightrec that can step."""
    kind = getattr(importlib.import_module(f"lightrec.models.{path}"), name)
    torch.manual_seed(0)
    return kind(NUM_ITEMS, **options)


STEPPING = [
    ("GRU4Rec", "gru4rec", dict(hidden_size=8)),
    ("GRU4Rec", "gru4rec", dict(hidden_size=8, num_layers=2, inner_size=6)),
    ("Mamba4Rec", "mamba4rec", dict(hidden_size=8)),
    ("Mamba4Rec", "mamba4rec", dict(hidden_size=8, num_layers=2)),
    ("HMamba", "hmamba", dict(hidden_size=8)),
    ("HMambaFull", "hmamba", dict(hidden_size=8)),
    ("HMambaHalf", "hmamba", dict(hidden_size=8)),
]
stepping = pytest.mark.parametrize("name, path, options", STEPPING, ids=[f"{n}-{len(o)}" for n, _, o in STEPPING])


def same(lines, ids, scores):
    """A list of the stream against one row of `recommend`."""
    assert [int(line.item_id) for line in lines] == [i for i in ids.tolist() if i]
    torch.testing.assert_close(torch.tensor([line.score for line in lines]), scores[ids > 0], **CLOSE)


def check_every_prefix(stream, model, events, max_length=None):
    histories: dict[str, list[int]] = {}
    for user, item in events:
        histories.setdefault(user, []).append(item)
        stream.observe(user, item)
        for exclude_seen in (True, False):
            batch = Batch.from_histories([histories[user]], max_length, exclude_seen)
            ids, scores = model.recommend(batch, 10)
            same(stream.recommend(user, 10, exclude_seen), ids[0], scores[0])
    batch = Batch.from_histories(list(histories.values()), max_length)
    ids, scores = model.recommend(batch, 10)
    for lines, row_ids, row_scores in zip(stream.recommend_many(list(histories)), ids, scores, strict=True):
        same(lines, row_ids, row_scores)


# --- what the batch gives


@stepping
def test_every_prefix_of_interleaved_users_gives_the_batch_result(name, path, options):
    model = own_model(name, path, options).eval()
    check_every_prefix(StreamingRecommender(model), model, EVENTS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@stepping
def test_every_prefix_gives_the_batch_result_on_a_gpu(name, path, options):
    model = own_model(name, path, options).eval()
    check_every_prefix(StreamingRecommender(copy.deepcopy(model).to("cuda")), model, EVENTS)


@stepping
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-6), (torch.bfloat16, 3e-2)])
def test_a_model_in_another_dtype_streams_the_scores_that_it_recommends(name, path, options, dtype, tolerance):
    model = own_model(name, path, options).to(dtype).eval()
    stream = StreamingRecommender(model)
    for user, item in EVENTS:
        stream.observe(user, item)
    for user in {user for user, _ in EVENTS}:
        _, scores = model.recommend(Batch.from_histories([[item for other, item in EVENTS if other == user]]), 10)
        streamed = torch.tensor([line.score for line in stream.recommend(user, 10, exclude_seen=True)])
        torch.testing.assert_close(streamed, scores[0], rtol=tolerance, atol=tolerance * scores.abs().max().item())


@stepping
def test_many_events_at_once_give_what_one_by_one_gives(name, path, options):
    model = own_model(name, path, options)
    single, batched = StreamingRecommender(model), StreamingRecommender(model)
    for user, item in EVENTS:
        single.observe(user, item)
    batched.observe_many(EVENTS[:4])
    batched.observe_many(EVENTS[4:])
    assert batched.users == single.users
    for user in single.users:
        expected, got = single.recommend(user, NUM_ITEMS), batched.recommend(user, NUM_ITEMS)
        assert [line.item_id for line in got] == [line.item_id for line in expected]
        assert [line.score for line in got] == pytest.approx([line.score for line in expected], rel=1e-4, abs=1e-5)


@stepping
def test_a_state_has_one_size_however_long_the_history(name, path, options):
    stream = StreamingRecommender(own_model(name, path, options), remember_seen=False)
    size = stream.bytes_per_user
    for length in (1, 30):
        stream.observe_many([("ann", 1 + t % NUM_ITEMS) for t in range(length)])
        exported = stream.export_state(["ann"])
        assert sum(leaf.numel() * leaf.element_size() for leaf in exported["leaves"]) == size
        assert "seen" not in exported


def test_five_hundred_users_of_different_lengths_at_once(tmp_path):
    model = gru().eval()
    stream = StreamingRecommender(model)
    histories = [[1 + (7 * user + 3 * t) % NUM_ITEMS for t in range(1 + user % 7)] for user in range(500)]
    stream.observe_many([(user, item) for t in range(7) for user, h in enumerate(histories) for item in h[t : t + 1]])
    ids, scores = model.recommend(Batch.from_histories(histories), 5)
    for lines, row_ids, row_scores in zip(stream.recommend_many(range(500), 5), ids, scores, strict=True):
        same(lines, row_ids, row_scores)


@pytest.mark.parametrize("name, path", [("SASRec", "sasrec"), ("BERT4Rec", "bert4rec"), ("SIGMA", "sigma")])
def test_a_window_reads_again_what_the_batch_reads(name, path):
    model = own_model(name, path, dict(max_length=MAX_LENGTH, hidden_size=8)).eval()
    with pytest.raises(InputError, match=f"{name}Encoder cannot go on event by event"):
        StreamingRecommender(model)
    events = [*EVENTS, *[("bob", 1 + 5 * t % NUM_ITEMS) for t in range(20)]]
    check_every_prefix(StreamingRecommender(model, history=MAX_LENGTH), model, events, MAX_LENGTH)
    check_every_prefix(StreamingRecommender(model, history=3), model, events, 3)


# --- encoders


def test_an_encoder_without_a_step_form_is_refused_with_those_that_have_one():
    with pytest.raises(InputError, match="SASRecEncoder cannot go on event by event.*GRU4RecEncoder.*history="):
        StreamingRecommender(SASRec(NUM_ITEMS, max_length=MAX_LENGTH, hidden_size=8))
    with pytest.raises(InputError, match="Markov cannot go on"):
        StreamingRecommender(Markov(NUM_ITEMS))


def test_a_recommender_without_an_encoder_streams_with_a_window():
    model = Markov(NUM_ITEMS)
    model.count(torch.tensor([3, 3, 3, 9]), torch.tensor([5, 5, 6, 7]))
    model.on_train_epoch_end()
    stream = StreamingRecommender(model, history=1)
    stream.observe_many([("ann", 9), ("ann", 3)])
    assert [line.item_id for line in stream.recommend("ann", 2)] == ["5", "6"]


def test_a_window_longer_than_the_model_reads_is_refused():
    model = SASRec(NUM_ITEMS, max_length=MAX_LENGTH, hidden_size=8)
    with pytest.raises(InputError, match=f"history .13. must be at most {MAX_LENGTH}"):
        StreamingRecommender(model, history=MAX_LENGTH + 1)
    with pytest.raises(ValueError, match="history"):
        StreamingRecommender(model, history=0)
    with pytest.raises(ValueError, match="max_users"):
        StreamingRecommender(model, max_users=0, history=1)


class Sum(SequenceEncoder):
    """A running sum whose state is nested and shaped as no other; `positions` makes its step form wrong."""

    causal = True

    def __init__(self, hidden_size: int, positions: bool = False):
        super().__init__()
        self.hidden_size, self.positions = hidden_size, positions

    def enter(self, history):
        place = torch.arange(history.x.shape[1]) - history.lengths[:, None] + 1
        return history._replace(x=history.x + place[..., None]) if self.positions else history

    def mix(self, history):
        return history.x.cumsum(1) / torch.arange(1, history.x.shape[1] + 1)[:, None]

    def init_state(self, batch_size, device=None):
        return {"count": torch.zeros(batch_size), "sum": (torch.zeros(2, 3, batch_size, self.hidden_size), [])}

    def step(self, x_t, state):
        total, count = state["sum"][0] + x_t, state["count"] + 1
        return total[0, 0] / count[:, None], {"count": count, "sum": (total, [])}


def test_states_may_be_nested_and_have_the_batch_on_any_axis():
    model = EncoderRecommender(ItemEmbedding(NUM_ITEMS, 4), Sum(4), NextItem()).eval()
    stream = StreamingRecommender(model)
    assert stream.bytes_per_user == 4 * (1 + 2 * 3 * 4 + 4)
    check_every_prefix(stream, model, EVENTS)
    stream.observe_many(EVENTS)
    other = StreamingRecommender(model)
    other.import_state(stream.export_state())
    assert other.recommend("bob") == stream.recommend("bob")


class Elsewhere(EncoderRecommender):
    """Scores with another vector than the last hidden one."""

    def __init__(self, items: ItemTable, encoder: SequenceEncoder, objective: NextItem):
        super().__init__(items, encoder, objective)

    def query(self, batch):
        return super().query(batch) * 2


@pytest.mark.parametrize("kind, positions", [(EncoderRecommender, True), (Elsewhere, False)])
def test_a_step_form_that_differs_from_the_batch_result_is_refused(kind, positions):
    torch.manual_seed(0)
    model = kind(ItemEmbedding(NUM_ITEMS, 4), Sum(4, positions), NextItem())
    with pytest.raises(InputError, match="differs from its batch result.*history="):
        StreamingRecommender(model)


# --- ids, what was seen, wrong calls


def test_the_catalog_speaks_external_ids_and_unknown_items_are_skipped_and_reported():
    model = gru()
    catalog = Catalog(
        pl.DataFrame({"item": [f"item-{i}" for i in range(1, 41)], "title": [f"Title {i}" for i in range(1, 41)]})
    )
    loaded = LoadedRecommender(model, catalog, None, MAX_LENGTH)
    stream = StreamingRecommender(loaded)
    stream.observe_many([("ann", "item-3"), ("ann", "nowhere"), (7, 404), ("ann", "item-9")])
    assert stream.unknown == [("ann", "nowhere"), ("7", "404")]
    assert "7" not in stream and stream.recommend(7) == []
    (expected,) = loaded.recommend([["item-3", "nowhere", "item-9"]], k=4)
    got = stream.recommend("ann", k=4)
    assert [(line.item_id, line.title) for line in got] == [(line.item_id, line.title) for line in expected]
    assert [line.score for line in got] == pytest.approx([line.score for line in expected], rel=1e-4, abs=1e-5)
    stream.observe("ann", "item-1")
    assert stream.unknown == []


def test_seen_items_are_left_out_as_long_as_they_are_remembered():
    everything = [("ann", i) for i in range(1, NUM_ITEMS - 1)]
    stream = StreamingRecommender(gru())
    stream.observe_many(everything)
    assert {line.item_id for line in stream.recommend("ann")} == {str(NUM_ITEMS - 1), str(NUM_ITEMS)}
    assert len(stream.recommend("ann", exclude_seen=False)) == 10
    forgetful = StreamingRecommender(gru(), remember_seen=False)
    forgetful.observe_many(everything)
    assert len(forgetful.recommend("ann", exclude_seen=False)) == 10
    with pytest.raises(InputError, match="keeps no seen items"):
        forgetful.recommend("ann")


def test_wrong_calls_are_named():
    stream = StreamingRecommender(gru())
    with pytest.raises(InputError, match="k must be at least 1"):
        stream.recommend("ann", k=0)
    with pytest.raises(TypeError, match="a list"):
        stream.recommend_many("ann")
    with pytest.raises(TypeError, match="pairs"):
        stream.observe_many("ann")
    with pytest.raises(TypeError, match="string or an integer"):
        stream.observe(1.5, 3)
    with pytest.raises(TypeError, match="expected a recommender"):
        StreamingRecommender("best.ckpt")
    with pytest.raises(InputError, match="'zoe' is not in memory"):
        stream.export_state(["zoe"])
    stream.observe_many([])
    assert len(stream) == 0 and stream.recommend_many([]) == []


# --- who is kept


def test_the_user_who_was_used_longest_ago_is_evicted():
    stream = StreamingRecommender(gru(), max_users=2)
    stream.observe_many([("ann", 1), ("bob", 2)])
    stream.recommend("ann")
    stream.observe("cid", 3)
    assert stream.users == ["ann", "cid"] and len(stream) == 2
    assert stream.recommend("bob") == []
    assert stream.forget("ann") and not stream.forget("ann")
    assert stream.users == ["cid"]


def test_evicted_users_come_back_from_a_store_as_if_they_had_stayed():
    store: dict[str, dict] = {}
    small = StreamingRecommender(gru(), max_users=2, on_evict=store.__setitem__, on_miss=store.get)
    large = StreamingRecommender(gru())
    for user, item in EVENTS * 2:
        small.observe(user, item)
        large.observe(user, item)
    small.observe_many(EVENTS)
    large.observe_many(EVENTS)
    assert len(small) == 2 and set(store) == {"ann", "bob", "cid"}
    for user in ("ann", "bob", "cid"):
        expected = large.recommend(user)
        assert [line.item_id for line in small.recommend(user)] == [line.item_id for line in expected]
        assert [line.score for line in small.recommend(user)] == pytest.approx([x.score for x in expected], rel=1e-4)


def test_an_eviction_that_fails_loses_nothing():
    def refuse(user, state):
        raise OSError("the store is full")

    stream = StreamingRecommender(gru(), max_users=1, on_evict=refuse)
    stream.observe("ann", 1)
    before = stream.recommend("ann")
    with pytest.raises(OSError, match="full"):
        stream.observe("bob", 2)
    assert stream.users == ["ann"] and stream.recommend("ann") == before


def test_a_callback_may_not_call_its_stream():
    stream = StreamingRecommender(gru(), on_miss=lambda user: stream.observe("bob", 1))
    with pytest.raises(RuntimeError, match="may not call the stream"):
        stream.observe("ann", 1)


# --- states from elsewhere


def test_states_travel_through_a_file_that_runs_nothing(tmp_path):
    first, second = StreamingRecommender(gru()), StreamingRecommender(gru())
    first.observe_many(EVENTS)
    first.save(tmp_path / "users.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["users.pt"]
    torch.load(tmp_path / "users.pt", weights_only=True)
    second.observe("ann", 30)  # replaced by what is loaded
    second.load(tmp_path / "users.pt")
    assert second.users == first.users
    for stream in (first, second):
        stream.observe("bob", 11)
    assert second.recommend_many(["ann", "bob", "cid"]) == first.recommend_many(["ann", "bob", "cid"])


def test_a_state_of_another_model_is_refused():
    first = StreamingRecommender(gru())
    first.observe("ann", 1)
    state = first.export_state()
    other = gru()
    with torch.no_grad():
        other.items.embedding.weight[5, 0] += 1e-3
    for stream in (StreamingRecommender(other), StreamingRecommender(gru(), history=4)):
        with pytest.raises(InputError, match="belongs to another model"):
            stream.import_state(state)
    renamed = Catalog(first.catalog.frame.with_columns(item="x" + first.catalog.frame["item"]))
    with pytest.raises(InputError, match="belongs to another model"):
        StreamingRecommender(LoadedRecommender(gru(), renamed, None, None)).import_state(state)


def _damaged(state, **changes):
    return {**state, **changes}


def test_damaged_states_are_refused_and_change_nothing(tmp_path):
    stream = StreamingRecommender(gru(), max_users=2)
    stream.observe_many([("ann", 1), ("bob", 2)])
    state = stream.export_state()
    hidden = state["leaves"][-1]
    wrong = {
        "not an exported user state": [1, 2],
        "format 9": _damaged(state, format=9),
        "different ids": _damaged(state, users=["ann", "ann"]),
        "shapes": _damaged(state, leaves=[leaf[:1] for leaf in state["leaves"]]),
        "the shapes": _damaged(state, leaves=[leaf.double() for leaf in state["leaves"]]),
        "'bob' is not finite": _damaged(state, leaves=[*state["leaves"][:-1], hidden / torch.tensor([[1.0], [0.0]])]),
        "seen items of the state": _damaged(state, seen=state["seen"] + 1000),
        "cannot be read": _damaged(state, seen_ends=state["seen_ends"] + 1),
        "without seen items": {key: value for key, value in state.items() if not key.startswith("seen")},
    }
    before = stream.recommend_many(["ann", "bob"])
    for message, damaged in wrong.items():
        with pytest.raises(InputError, match=message) as caught:
            stream.import_state(damaged)
        assert "\n" not in str(caught.value)
    larger = StreamingRecommender(gru())
    larger.observe_many(EVENTS)
    with pytest.raises(InputError, match="raise max_users"):
        stream.import_state(larger.export_state())
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut off")
    for name, message in (("cut.pt", "damaged"), ("nowhere.pt", "no file")):
        with pytest.raises(InputError, match=message):
            stream.load(tmp_path / name)
    assert stream.recommend_many(["ann", "bob"]) == before


def test_a_damaged_window_is_refused():
    stream = StreamingRecommender(SASRec(NUM_ITEMS, max_length=MAX_LENGTH, hidden_size=8), history=4)
    stream.observe("ann", 1)
    state = stream.export_state()
    for row in ([0, 1, 0, 2], [0, 0, 0, 0], [0, 0, 0, NUM_ITEMS + 1], [0, 0, -1, 3]):
        with pytest.raises(InputError, match="last items"):
            stream.import_state(_damaged(state, leaves=[torch.tensor([row], dtype=torch.int32)]))


def test_a_store_that_gives_another_user_is_refused():
    donor = StreamingRecommender(gru())
    donor.observe("bob", 1)
    state = donor.export_state()
    with pytest.raises(InputError, match="asked for user 'ann'"):
        StreamingRecommender(gru(), on_miss=lambda user: state).recommend("ann")


def test_a_state_that_is_not_finite_is_refused_and_the_old_one_kept():
    items = ItemEmbedding(NUM_ITEMS, 4, cosine_temperature=1.0)  # its scores stay finite
    with torch.no_grad():
        items.embedding.weight[5] = 3e38
    stream = StreamingRecommender(EncoderRecommender(items, Sum(4), NextItem()))
    stream.observe("ann", 1)
    before = stream.export_state()
    with pytest.raises(InputError, match="'ann' is not finite"):
        stream.observe_many([("ann", 5), ("ann", 5)])
    after = stream.export_state()
    assert all(torch.equal(a, b) for a, b in zip(before["leaves"], after["leaves"], strict=True))
    assert torch.equal(before["seen"], after["seen"])


# --- the model and its caller


def test_a_diverged_model_is_refused():
    model = gru()
    with torch.no_grad():
        model.encoder.layers[0].weight_hh_l0.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        StreamingRecommender(model)


def test_a_model_that_was_changed_afterwards_is_noticed():
    model = gru()
    stream = StreamingRecommender(model)
    stream.observe("ann", 1)
    model.train()
    with pytest.raises(RuntimeError, match="training mode"):
        stream.observe("ann", 2)
    model.eval()
    stream.observe("ann", 2)
    model.load_state_dict(gru().state_dict())
    with pytest.raises(RuntimeError, match="changed or moved"):
        stream.recommend("ann")
    stream = StreamingRecommender(model)
    optimizer = model.configure_optimizers()
    model.query(Batch.from_histories([[1, 2]])).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed or moved"):
        stream.recommend("ann")


def test_a_stream_is_the_same_in_any_mode_of_its_caller():
    with torch.inference_mode():
        stream = StreamingRecommender(gru())
        stream.observe("ann", 1)
    stream.observe("ann", 2)
    with torch.autocast("cpu"):
        stream.observe("ann", 3)
        got = stream.recommend("ann")
    plain = StreamingRecommender(gru())
    plain.observe_many([("ann", 1), ("ann", 2), ("ann", 3)])
    assert got == plain.recommend("ann")
    assert not any(leaf.requires_grad or leaf.is_inference() for leaf in stream.export_state()["leaves"])


def test_threads_take_turns():
    model, users = gru(), 8
    stream, alone = StreamingRecommender(model, max_users=users), StreamingRecommender(model)
    histories = {f"user-{u}": [1 + (5 * u + t) % NUM_ITEMS for t in range(25)] for u in range(users)}

    def run(user):
        for item in histories[user]:
            stream.observe(user, item)
            stream.recommend(user, 1)

    threads = [threading.Thread(target=run, args=(user,)) for user in histories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone.observe_many([(user, item) for user, history in histories.items() for item in history])
    for user in histories:
        expected = alone.recommend(user)
        assert [line.item_id for line in stream.recommend(user)] == [line.item_id for line in expected]


# --- a checkpoint, and the documentation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The file of a model that was trained for an epoch on the toy log."""
    folder = tmp_path_factory.mktemp("streaming")
    os.environ["LIGHTREC_CACHE"] = str(folder / "cache")
    data = toy_data(folder)
    model = GRU4Rec(data.num_items, hidden_size=8)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "best.ckpt")
    return folder / "best.ckpt"


def test_a_checkpoint_streams_what_it_recommends(checkpoint):
    loaded = load_recommender(checkpoint)
    stream = StreamingRecommender(loaded)
    history = [f"item-{i}" for i in (3, 7, 11, 2)]
    stream.observe_many([("ann", item) for item in history])
    (expected,) = loaded.recommend([history], k=6)
    got = stream.recommend("ann", k=6)
    assert [(line.item_id, line.title) for line in got] == [(line.item_id, line.title) for line in expected]


def test_the_code_in_the_documentation_runs(checkpoint, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "docs" / "streaming.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    (tmp_path / "best.ckpt").write_bytes(checkpoint.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert (tmp_path / "users.pt").is_file()
