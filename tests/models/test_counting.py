"""The floors: what they count, what they rank, and that counting again changes nothing."""

import lightning as L
import pytest
import torch

from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.models import counting
from lightrec.models.counting import Markov, Popularity
from lightrec.ops.blocks import budget
from lightrec.serving.loaded import load_recommender
from lightrec.testing import toy_data, toy_log


def fitted(model, rows, epochs=1):
    """Counts rows of item ids, without a Trainer."""
    model.optimizers = lambda: torch.optim.SGD([torch.zeros(1)], lr=0.0)
    for _ in range(epochs):
        model.on_train_epoch_start()
        for i, row in enumerate(rows):
            ids = torch.tensor([[*row, 0]])
            model.training_step(Batch(ids, torch.tensor([len(row)]), torch.arange(1)), i)
    return model


def asked(*histories, **options):
    return Batch.from_histories([list(h) for h in histories], exclude_seen=options.pop("exclude_seen", True))


ROWS = [[1, 2, 3], [1, 2, 4], [5, 2, 3], [3, 4]]


def test_popularity_ranks_by_how_often_an_item_came_next():
    model = fitted(Popularity(6), ROWS)
    assert model.item_counts.tolist() == [0, 0, 3, 2, 2, 0, 0]
    item_ids, scores = model.recommend(asked([6], exclude_seen=False), 3)
    assert item_ids[0, 0] == 2 and scores[0].tolist() == [3.0, 2.0, 2.0]
    assert scores.dtype == torch.float32


def test_markov_ranks_by_how_often_an_item_followed_the_last_one():
    model = fitted(Markov(6), ROWS)
    item_ids, scores = model.recommend(asked([5, 2], exclude_seen=False), 6)
    assert item_ids[0, :3].tolist() == [3, 4, 2]  # after 2: 3 twice, 4 once; then the most popular
    popularity = torch.tensor([2, 2, 3]) / 7
    assert torch.allclose(scores[0, :3], (torch.tensor([2.0, 1.0, 0.0]) + popularity) / 4)


def test_markov_falls_back_on_popularity_after_an_item_that_nothing_followed():
    markov, popularity = fitted(Markov(6), ROWS), fitted(Popularity(6), ROWS)
    a, b = (m.recommend(asked([6], exclude_seen=False), 6) for m in (markov, popularity))
    assert torch.equal(a[0], b[0])
    assert torch.allclose(a[1] * 7, b[1])


def test_markov_scores_of_the_whole_catalog_are_probabilities():
    model = fitted(Markov(6, smoothing=0.3), ROWS)
    _, scores = model.recommend(asked([2], [6], exclude_seen=False), 6)
    assert torch.allclose(scores.sum(1), torch.ones(2))


@pytest.mark.parametrize("kind", [Popularity, Markov])
def test_a_second_epoch_begins_anew(kind):
    once, twice = fitted(kind(6), ROWS), fitted(kind(6), ROWS, epochs=2)
    for m in (once, twice):
        m.recommend(asked([2]), 2)
    assert all(torch.equal(a, b) for a, b in zip(once.buffers(), twice.buffers(), strict=True))


@pytest.mark.parametrize("pending", [0, 3, 10**6])
def test_transitions_are_counted_alike_however_often_they_are_sorted_in(monkeypatch, pending):
    monkeypatch.setattr(counting, "_PENDING", pending)
    torch.manual_seed(0)
    rows = torch.randint(1, 8, (40, 6)).tolist()
    model = fitted(Markov(7), rows)
    dense = torch.zeros(8, 8)
    for row in rows:
        for a, b in zip(row, row[1:], strict=False):
            dense[a, b] += 1
    expected = (dense + dense.sum(0) / dense.sum()) / (dense.sum(1, keepdim=True) + 1)
    item_ids, scores = model.recommend(asked(*[[i] for i in range(1, 8)], exclude_seen=False), 7)
    assert torch.allclose(scores, expected[1:, 1:].gather(1, item_ids - 1), atol=1e-6)


def test_blocks_of_rows_change_nothing():
    model = fitted(Markov(6), ROWS)
    batch = asked([2], [1, 3], [4], [6])
    whole = model.recommend(batch, 4)
    with budget("counted scores", 1):
        assert all(torch.equal(a, b) for a, b in zip(whole, model.recommend(batch, 4), strict=True))


@pytest.mark.parametrize("kind", [Popularity, Markov])
def test_only_candidates_are_ranked_and_padding_is_none(kind):
    model = fitted(kind(6), ROWS)
    batch = asked([2], exclude_seen=False).replace(candidate_ids=torch.tensor([[4, 3, 0, 6]]))
    item_ids, scores = model.recommend(batch, 5)
    assert set(item_ids[0, :2].tolist()) == {3, 4} and item_ids[0, 2:].tolist() == [6, 0, 0]
    assert scores[0, 3:].tolist() == [-torch.inf] * 2


def test_lists_end_where_candidates_run_out():
    item_ids, scores = fitted(Popularity(3), [[1, 2]]).recommend(asked([1, 2]), 5)
    assert item_ids.tolist() == [[3, 0, 0, 0, 0]] and scores[0, 1] == -torch.inf


def test_an_empty_batch_gives_empty_lists():
    batch = Batch(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    item_ids, scores = Popularity(3).recommend(batch, 2)
    assert item_ids.shape == scores.shape == (0, 2)


@pytest.mark.parametrize("kind", [Popularity, Markov])
def test_the_trainer_counts_each_transition_once_and_writes_a_checkpoint(kind, tmp_path):
    log = toy_log()
    data = toy_data(tmp_path, log, max_length=4, train_windows="all")  # histories are longer than a window
    model = kind(data.num_items)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(model, datamodule=data)
    transitions = sum(len(history) - 3 for history in log.histories)  # two events are held out
    assert model.item_counts.sum() == transitions
    loaded = load_recommender(trainer.checkpoint_callback.best_model_path).model
    batch = asked([3, 1], [2])
    assert all(torch.equal(a, b) for a, b in zip(loaded.recommend(batch, 5), model.recommend(batch, 5), strict=True))
    if kind is Markov:
        assert loaded.transition_counts.sum() == transitions


def test_markov_finds_the_rule_of_the_toy_log_and_popularity_does_not(tmp_path):
    found = {}
    for kind in (Popularity, Markov):
        data = toy_data(tmp_path / kind.__name__, toy_log(num_users=192), train_windows="all")
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
                            enable_checkpointing=False)  # fmt: skip
        trainer.fit(kind(data.num_items), datamodule=data)
        found[kind] = trainer.callback_metrics["val/ndcg@10"].item()
    assert found[Popularity] < 0.3 < 0.7 < found[Markov]


def test_more_than_one_process_is_refused_with_the_remedy():
    class Two:
        world_size = 2

    model = Popularity(3)
    object.__setattr__(model, "_trainer", Two())
    with pytest.raises(InputError, match="--trainer.devices 1"):
        model.setup("fit")


def test_smoothing_must_be_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        Markov(3, smoothing=0.0)
