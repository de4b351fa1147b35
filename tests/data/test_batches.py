"""Windows, orders and shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrec.data.batches import (
    Batching,
    BatchLoader,
    BucketedPlan,
    DrawnPlan,
    EvaluationBatches,
    Events,
    PrefixDraw,
    SampledCandidates,
    TrainingBatches,
    exact_plan,
    session_plan,
)
from lightrec.data.rows import Prefixes, find_rows
from lightrec.data.splits import Histories, leave_one_out
from lightrec.errors import InputError

OFFSETS = np.array([0, 9, 12, 13, 20])
ITEMS = np.arange(1, 21, dtype=np.int32)
SPLIT = leave_one_out(OFFSETS)


def windows(mode, max_length):
    rows = find_rows(mode).windows(SPLIT.train, max_length)
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


def test_sessions_pair_each_event_with_the_one_before_it():
    assert windows("sessions", 9) == sorted(
        [(0, [i, i + 1]) for i in range(1, 7)] + [(3, [i, i + 1]) for i in range(14, 18)]
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 8))
def test_sessions_run_side_by_side_one_event_a_batch(lengths, slots):
    users = np.repeat(np.arange(len(lengths)), lengths)
    batches = session_plan(users, None, slots)(0)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(users)))
    running, begun = {}, -1
    for i, rows in enumerate(batches):
        owners = users[rows].tolist()
        assert len(set(owners)) == len(owners) <= slots
        for row, user in zip(rows.tolist(), owners, strict=True):
            if user in running:
                assert row == running[user] + 1  # goes on with its next event, without a break
            else:
                assert row == 0 or users[row - 1] != user
                assert user == begun + 1 or i == 0 or user > begun  # sessions begin in their order
                begun = max(begun, user)
            running[user] = row
        ended = [u for u in running if u not in owners]
        assert all(running[u] == len(users) - 1 or users[running[u] + 1] != u for u in ended)
        assert len(owners) == slots or begun == len(lengths) - 1  # nobody waits while there is room


def test_sessions_begin_in_order_of_time():
    users = np.repeat([0, 1, 2, 3], 2)
    first = session_plan(users, np.array([30, 10, 40, 20]), 2)(0)[0]
    assert users[first].tolist() == [1, 3]


def test_a_training_batch_is_padded_on_the_right():
    rows = find_rows("last").windows(SPLIT.train, 9)
    batch = TrainingBatches(Events(ITEMS, ITEMS.astype(np.int64) * 10), rows)(np.array([0, 1]))
    assert batch.item_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7], [14, 15, 16, 17, 18, 0, 0]]
    assert batch.lengths.tolist() == [7, 5] and batch.timestamps[1].tolist() == [140, 150, 160, 170, 180, 0, 0]


def test_an_evaluation_batch_shows_the_window_and_knows_the_whole_history():
    batch = EvaluationBatches(Events(ITEMS), SPLIT.test, 3, exclude_seen=True)(np.array([0]))
    assert batch.item_ids.tolist() == [[6, 7, 8]] and batch.seen_ids.tolist() == [list(range(1, 9))]
    assert batch.target_ids.tolist() == [[9]] and batch.history_lengths.tolist() == [8]
    assert EvaluationBatches(Events(ITEMS), SPLIT.test, 3, exclude_seen=False)(np.array([0])).seen_ids is None


LENGTHS = np.random.default_rng(0).integers(2, 60, 1000)


def test_every_row_is_trained_on_once_an_epoch():
    plan = BucketedPlan(LENGTHS, Batching(32, None, 1))
    for epoch in (0, 1):
        assert sorted(np.concatenate(plan(epoch)).tolist()) == list(range(1000))


def test_the_order_is_a_function_of_seed_and_epoch():
    same = [np.concatenate(BucketedPlan(LENGTHS, Batching(32, None, 1))(3)) for _ in range(2)]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], np.concatenate(BucketedPlan(LENGTHS, Batching(32, None, 2))(3)))
    assert not np.array_equal(same[0], np.concatenate(BucketedPlan(LENGTHS, Batching(32, None, 1))(4)))


def test_buckets_leave_little_padding():
    def padded(batches):
        return sum(len(b) * LENGTHS[b].max() for b in batches) / LENGTHS.sum() - 1

    random = np.array_split(np.random.default_rng(0).permutation(1000), 32)
    assert padded(BucketedPlan(LENGTHS, Batching(32, None, 1))(0)) < 0.25 * padded(random)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(2, 50), min_size=1, max_size=200),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(50, 300)),
    st.integers(1, 3),
)
def test_batches_keep_their_limits_and_processes_their_step(lengths, size, tokens, world):
    lengths = np.array(lengths)
    plans = [BucketedPlan(lengths, Batching(size, tokens, 0, rank, world)) for rank in range(world)]
    ranks = [plan(5) for plan in plans]
    assert {len(batches) for batches in ranks} == {len(plans[0](6))}  # in every process and every epoch
    for step in zip(*ranks, strict=True):
        assert all(1 <= len(rows) <= size for rows in step)
        assert max(map(len, step)) - min(map(len, step)) <= 1
        if tokens is not None:
            assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= tokens for rows in step)
    taken = np.bincount(np.concatenate([rows for batches in ranks for rows in batches]), minlength=len(lengths))
    assert (taken >= 1).all()
    if world == 1:
        assert (taken == 1).all()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("tokens", [None, 400])
def test_processes_share_the_batches_of_one(world, tokens):
    alone = BucketedPlan(LENGTHS, Batching(12 * world, None if tokens is None else tokens * world, 1))(0)
    shares = [BucketedPlan(LENGTHS, Batching(12, tokens, 1, rank, world))(0) for rank in range(world)]
    if tokens is None:  # a budget is kept by each process, which cuts a little earlier than one process would
        for whole, *parts in zip(alone, *shares, strict=True):
            assert len(whole) >= world  # else one row would be lent twice
            assert sorted(np.concatenate(parts)) == sorted(whole)
    assert sorted(np.concatenate([rows for share in shares for rows in share])) == list(range(1000))


def prefixes_of(lengths, max_length=20):
    """The prefix rows of histories of these lengths, none of whose events is held out."""
    ends = np.cumsum(lengths)
    return Prefixes().windows(Histories(np.arange(len(lengths)), ends - lengths, ends, ends), max_length)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 3))
def test_prefixes_are_drawn_one_from_each_part_of_a_history(lengths, count, epoch):
    windows = prefixes_of(lengths)
    draw = PrefixDraw(windows, count, seed=3)
    longest = draw.longest
    rows = draw(epoch)
    assert len(set(rows.tolist())) == len(rows) == len(longest)
    drawn = np.bincount(windows.user[rows], minlength=len(lengths))
    assert drawn.tolist() == [min(count, n - 1) for n in lengths]
    assert (windows.end - windows.begin <= longest.max(initial=0)).all()
    assert ((windows.end - windows.begin)[rows] <= longest).all()
    if all(n - 1 <= count for n in lengths):
        assert sorted(rows.tolist()) == list(range(len(windows)))


def test_every_prefix_is_drawn_equally_often_in_the_long_run():
    windows = prefixes_of([13, 2, 7])
    draw = PrefixDraw(windows, 3, seed=0)
    counts = np.bincount(np.concatenate([draw(epoch) for epoch in range(3000)]), minlength=len(windows))
    expected = np.array([3000 * min(1.0, 3 / n) for n in (12, 1, 6)])[windows.user]
    assert np.abs(counts - expected).max() < 0.15 * 3000


def test_drawn_prefixes_are_a_function_of_seed_and_epoch():
    windows = prefixes_of(LENGTHS[:100])
    first = PrefixDraw(windows, 4, seed=1)(5)
    assert np.array_equal(first, PrefixDraw(windows, 4, seed=1)(5))
    for seed, epoch in ((1, 6), (2, 5)):
        assert not np.array_equal(first, PrefixDraw(windows, 4, seed=seed)(epoch))


@pytest.mark.parametrize(("tokens", "world"), [(None, 1), (300, 1), (300, 2)])
def test_drawn_prefixes_keep_the_limits_and_the_number_of_batches(tokens, world):
    windows = prefixes_of(LENGTHS[:200], max_length=50)
    draw = PrefixDraw(windows, 4, seed=1)
    longest = draw.longest
    plans = [DrawnPlan(BucketedPlan(longest, Batching(16, tokens, 1, rank, world)), draw) for rank in range(world)]
    counts = set()
    for epoch in range(5):
        shares = [plan(epoch) for plan in plans]
        counts |= {len(share) for share in shares}
        assert set(np.concatenate([rows for share in shares for rows in share]).tolist()) == set(draw(epoch).tolist())
        for rows in (rows for share in shares for rows in share):
            width = (windows.end - windows.begin)[rows].max()
            assert len(rows) <= 16 and (tokens is None or len(rows) == 1 or len(rows) * width <= tokens)
    assert len(counts) == 1


def test_a_pass_over_drawn_prefixes_goes_on_exactly():
    windows = prefixes_of([9, 30, 4, 17])
    items = np.arange(1, 61, dtype=np.int32)

    def loader():
        draw = PrefixDraw(windows, 5, seed=2)
        plan = DrawnPlan(BucketedPlan(draw.longest, Batching(2, None, 2)), draw)
        return BatchLoader(TrainingBatches(Events(items), windows), plan, epoch=3)

    whole = [batch.item_ids.tolist() for batch in loader()]
    broken = loader()
    for _, _ in zip(range(4), broken, strict=False):
        pass
    resumed = loader()
    resumed.load_state_dict(broken.state_dict())
    assert 4 < len(whole) and [batch.item_ids.tolist() for batch in resumed] == whole[broken.state_dict()["next"] :]


def test_a_batch_smaller_than_the_processes_leaves_none_without_a_row():
    shares = [BucketedPlan(np.array([5, 7]), Batching(4, None, 0, rank, 3))(0) for rank in range(3)]
    assert [len(rows) for share in shares for rows in share] == [1, 1, 1]
    assert set(np.concatenate([rows for share in shares for rows in share])) == {0, 1}


def test_a_token_budget_leaves_the_number_of_batches_alone_over_epochs():
    lengths = np.minimum(np.random.default_rng(0).geometric(0.02, 5000) + 2, 200)
    plan = BucketedPlan(lengths, Batching(32, 2000, 0))
    epochs = [plan(epoch) for epoch in range(5)]
    assert len({len(batches) for batches in epochs}) == 1
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(5000))
        assert sum(len(rows) * lengths[rows].max() for rows in batches) < 1.1 * lengths.sum()
    partners = [{frozenset((rows[0], row)) for rows in batches for row in rows[1:]} for batches in epochs]
    assert len(partners[0] & partners[1]) < 0.05 * len(partners[0])  # rows meet others in every epoch


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_evaluation_rows_are_on_exactly_one_process(world, count):
    plans = [exact_plan(np.arange(count) % 9, 4, rank, world)(0) for rank in range(world)]
    assert sorted(np.concatenate([np.concatenate(p) for p in plans]).tolist()) == list(range(count))
    assert all(len(plan) >= 1 for plan in plans)


def test_a_process_without_rows_yields_an_empty_batch():
    loader = BatchLoader(EvaluationBatches(Events(ITEMS), SPLIT.test, 3, True), exact_plan(np.array([3, 3]), 4, 2, 3))
    (batch,) = loader
    assert len(batch) == 0 and len(loader) == 1
    assert batch.item_ids.shape == (0, 1)  # a recurrent network takes no sequence of length 0


def make(rows):
    return rows.tolist()


def test_a_loader_goes_on_in_the_middle_of_an_epoch():
    plan = BucketedPlan(LENGTHS, Batching(32, None, 1))
    whole = list(BatchLoader(make, plan, epoch=2))
    first = BatchLoader(make, plan, epoch=2)
    iterator = iter(first)
    head = [next(iterator) for _ in range(5)]
    second = BatchLoader(make, plan, epoch=2)
    second.load_state_dict(first.state_dict())
    assert head + list(second) == whole
    assert list(second) == whole  # and only the first pass after a resume is cut short


def test_a_pass_that_ended_or_was_left_leaves_no_trace():
    loader = BatchLoader(make, BucketedPlan(LENGTHS, Batching(32, None, 1)))
    whole = list(loader)
    assert loader.state_dict() == {"epoch": 0, "next": 0, "batches": 32}
    assert [batch for batch, _ in zip(loader, range(3), strict=False)] == whole[:3]
    iter(loader)
    assert list(loader) == whole


def test_a_place_counts_in_its_own_epoch_only():
    plan, epoch = BucketedPlan(LENGTHS, Batching(32, None, 1)), 4
    loader = BatchLoader(make, plan, lambda: epoch)
    loader.load_state_dict({"epoch": 3, "next": 5, "batches": 32})
    assert list(loader) == [rows.tolist() for rows in plan(4)]


def test_a_batch_that_was_not_learned_from_is_not_counted():
    learned = 0
    loader = BatchLoader(make, BucketedPlan(LENGTHS, Batching(32, None, 1)), done=lambda: learned)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["next"] == 0
    learned = 1
    assert loader.state_dict()["next"] == 1


def test_a_place_in_other_data_is_refused():
    loader = BatchLoader(make, BucketedPlan(LENGTHS, Batching(16, None, 1)))
    with pytest.raises(InputError, match="stands at batch 5 of 32 in its epoch, but an epoch now has 63 batches"):
        loader.load_state_dict({"epoch": 0, "next": 5, "batches": 32})
    loader.load_state_dict({"epoch": 0, "next": 32, "batches": 32})  # between epochs nothing is lost


def test_the_epoch_may_be_asked_from_whoever_knows_it():
    epoch = 0
    loader = BatchLoader(make, BucketedPlan(LENGTHS, Batching(32, None, 1)), lambda: epoch)
    first = list(loader)
    epoch = 1
    assert list(loader) != first


@pytest.mark.parametrize("weights", ["uniform", "popularity"])
def test_candidates_hold_the_target_and_no_item_of_the_history(weights):
    items = np.random.default_rng(0).integers(1, 40, 60).astype(np.int32)
    part = leave_one_out(np.array([0, 20, 40, 60])).test
    w = np.ones(51) if weights == "uniform" else np.bincount(items, minlength=51)
    draw = SampledCandidates(items, part, w, 10, seed=3)
    together, alone = draw(np.array([0, 1, 2])), draw(np.array([1]))
    assert together[1].tolist() == alone[0].tolist()  # a row's draw does not depend on its batch
    for row in range(3):
        history = set(items[part.history_begin[row] : part.history_end[row]].tolist())
        target, *negatives = together[row].tolist()
        negatives = [n for n in negatives if n]
        assert target == items[part.history_end[row]]
        assert not set(negatives) & (history | {target}) and len(set(negatives)) == len(negatives)


def test_popularity_draws_follow_the_counts():
    part = leave_one_out(np.arange(0, 9001, 3)).test
    items = np.ones(9000, dtype=np.int32)
    weights = np.array([0, 5, 1, 2, 3, 4.0])
    drawn = SampledCandidates(items, part, weights, 1, seed=0)(np.arange(3000))[:, 1]
    share = np.bincount(drawn.numpy(), minlength=6)[2:] / 3000
    assert np.abs(share - np.array([0.1, 0.2, 0.3, 0.4])).max() < 0.03


def test_rows_of_a_small_log_meet_others_in_every_epoch():
    plan = BucketedPlan(LENGTHS, Batching(64, None, 1))

    def pairs(epoch):
        return {(a, b) for rows in plan(epoch) for a in rows.tolist() for b in rows.tolist() if a < b}

    assert len(pairs(0) & pairs(1)) < 0.6 * len(pairs(0))
