"""Windows, orders and shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrec.data.loader import (
    BatchLoader,
    Log,
    bucketed_plan,
    evaluation_batches,
    exact_plan,
    sampled_candidates,
    training_batches,
    training_windows,
)
from lightrec.data.splits import leave_one_out

OFFSETS = np.array([0, 9, 12, 13, 20])
ITEMS = np.arange(1, 21, dtype=np.int32)
SPLIT = leave_one_out(OFFSETS)


def windows(mode, max_length):
    rows = training_windows(SPLIT.train, max_length, mode)
    return sorted((int(u), ITEMS[b:e].tolist()) for u, b, e in zip(rows.user, rows.begin, rows.end, strict=True))


def test_last_keeps_the_most_recent_window_of_each_user():
    assert windows("last", 3) == [(0, [4, 5, 6, 7]), (3, [15, 16, 17, 18])]


def test_all_makes_every_event_but_the_first_a_target_once():
    targets = [item for _, row in windows("all", 3) for item in row[1:]]
    assert sorted(targets) == [2, 3, 4, 5, 6, 7, 15, 16, 17, 18]
    assert all(len(row) <= 4 for _, row in windows("all", 3))


def test_prefixes_give_one_row_for_each_event_but_the_first():
    rows = windows("prefixes", 2)
    assert sorted(row[-1] for _, row in rows) == [2, 3, 4, 5, 6, 7, 15, 16, 17, 18]
    assert (0, [1, 2]) in rows and (0, [5, 6, 7]) in rows


def test_a_training_batch_is_padded_on_the_right():
    rows = training_windows(SPLIT.train, 9, "last")
    batch = training_batches(Log(ITEMS, ITEMS.astype(np.int64) * 10), rows)(np.array([0, 1]))
    assert batch.item_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7], [14, 15, 16, 17, 18, 0, 0]]
    assert batch.lengths.tolist() == [7, 5] and batch.timestamps[1].tolist() == [140, 150, 160, 170, 180, 0, 0]


def test_an_evaluation_batch_shows_the_window_and_knows_the_whole_history():
    batch = evaluation_batches(Log(ITEMS), SPLIT.test, 3, exclude_seen=True)(np.array([0]))
    assert batch.item_ids.tolist() == [[6, 7, 8]] and batch.seen_ids.tolist() == [list(range(1, 9))]
    assert batch.target_ids.tolist() == [[9]] and batch.history_lengths.tolist() == [8]
    assert evaluation_batches(Log(ITEMS), SPLIT.test, 3, exclude_seen=False)(np.array([0])).seen_ids is None


LENGTHS = np.random.default_rng(0).integers(2, 60, 1000)


def test_every_row_is_trained_on_once_an_epoch():
    plan = bucketed_plan(LENGTHS, 32, None, seed=1)
    for epoch in (0, 1):
        assert sorted(np.concatenate(plan(epoch)).tolist()) == list(range(1000))


def test_the_order_is_a_function_of_seed_and_epoch():
    same = [np.concatenate(bucketed_plan(LENGTHS, 32, None, seed=1)(3)) for _ in range(2)]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], np.concatenate(bucketed_plan(LENGTHS, 32, None, seed=2)(3)))
    assert not np.array_equal(same[0], np.concatenate(bucketed_plan(LENGTHS, 32, None, seed=1)(4)))


def test_buckets_leave_little_padding():
    def padded(batches):
        return sum(len(b) * LENGTHS[b].max() for b in batches) / LENGTHS.sum() - 1

    random = np.array_split(np.random.default_rng(0).permutation(1000), 32)
    assert padded(bucketed_plan(LENGTHS, 32, None, seed=1)(0)) < 0.25 * padded(random)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=200),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(50, 300)),
    st.integers(1, 3),
)
def test_batches_keep_their_limits_and_processes_their_step(lengths, size, tokens, world):
    lengths = np.array(lengths)
    plans = [bucketed_plan(lengths, size, tokens, 0, rank, world)(5) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    for step in zip(*plans, strict=True):
        assert len({len(rows) for rows in step}) == 1
        assert len(step[0]) <= size
        if tokens is not None and world == 1:
            assert len(step[0]) * lengths[step[0]].max() <= max(tokens, lengths[step[0]].max())
    assert set(np.concatenate([rows for plan in plans for rows in plan])) == set(range(len(lengths)))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_evaluation_rows_are_on_exactly_one_process(world, count):
    plans = [exact_plan(np.arange(count) % 9, 4, rank, world)(0) for rank in range(world)]
    assert sorted(np.concatenate([np.concatenate(p) for p in plans]).tolist()) == list(range(count))
    assert all(len(plan) >= 1 for plan in plans)


def test_a_process_without_rows_yields_an_empty_batch():
    loader = BatchLoader(evaluation_batches(Log(ITEMS), SPLIT.test, 3, True), exact_plan(np.array([3, 3]), 4, 2, 3))
    (batch,) = loader
    assert len(batch) == 0 and len(loader) == 1


def make(rows):
    return rows.tolist()


def test_a_loader_goes_on_in_the_middle_of_an_epoch():
    plan = bucketed_plan(LENGTHS, 32, None, seed=1)
    whole = list(BatchLoader(make, plan, epoch=2))
    first = BatchLoader(make, plan, epoch=2)
    iterator = iter(first)
    head = [next(iterator) for _ in range(5)]
    second = BatchLoader(make, plan, epoch=2)
    second.load_state_dict(first.state_dict())
    assert head + list(second) == whole
    assert list(second) == whole  # and only the first pass after a resume is cut short


def test_a_pass_that_ended_leaves_no_trace():
    loader = BatchLoader(make, bucketed_plan(LENGTHS, 32, None, seed=1))
    list(loader)
    assert loader.state_dict() == {"next": 0}


def test_the_epoch_may_be_asked_from_whoever_knows_it():
    epoch = 0
    loader = BatchLoader(make, bucketed_plan(LENGTHS, 32, None, seed=1), lambda: epoch)
    first = list(loader)
    epoch = 1
    assert list(loader) != first


@pytest.mark.parametrize("weights", ["uniform", "popularity"])
def test_candidates_hold_the_target_and_no_item_of_the_history(weights):
    items = np.random.default_rng(0).integers(1, 40, 60).astype(np.int32)
    part = leave_one_out(np.array([0, 20, 40, 60])).test
    w = np.ones(51) if weights == "uniform" else np.bincount(items, minlength=51)
    draw = sampled_candidates(Log(items), part, w, 10, seed=3)
    together, alone = draw(np.array([0, 1, 2])), draw(np.array([1]))
    assert together[1].tolist() == alone[0].tolist()  # a row's draw does not depend on its batch
    for row in range(3):
        history = set(items[part.begin[row] : part.end[row]].tolist())
        target, *negatives = together[row].tolist()
        negatives = [n for n in negatives if n]
        assert target == items[part.end[row]]
        assert not set(negatives) & (history | {target}) and len(set(negatives)) == len(negatives)


def test_popularity_draws_follow_the_counts():
    part = leave_one_out(np.arange(0, 9001, 3)).test
    items = np.ones(9000, dtype=np.int32)
    weights = np.array([0, 5, 1, 2, 3, 4.0])
    drawn = sampled_candidates(Log(items), part, weights, 1, seed=0)(np.arange(3000))[:, 1]
    share = np.bincount(drawn.numpy(), minlength=6)[2:] / 3000
    assert np.abs(share - np.array([0.1, 0.2, 0.3, 0.4])).max() < 0.03
