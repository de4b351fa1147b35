"""What is learned from and what is asked for, on histories that can be read."""

import numpy as np
import pytest

from lightrec.data.splits import count_events, global_timeline, leave_one_out
from lightrec.errors import InputError

OFFSETS = np.array([0, 4, 6, 7, 10])  # users with 4, 2, 1 and 3 events


def rows(part):
    return [
        tuple(map(int, row))
        for row in zip(part.user, part.history_begin, part.history_end, part.target_end, strict=True)
    ]


def test_leave_one_out_asks_for_the_last_event_and_validates_on_the_one_before():
    split = leave_one_out(OFFSETS)
    assert rows(split.test) == [(0, 0, 3, 4), (3, 7, 9, 10)]
    assert rows(split.val) == [(0, 0, 2, 3), (3, 7, 8, 9)]


def test_users_with_few_events_are_trained_on_whole():
    split = leave_one_out(OFFSETS)
    assert rows(split.train) == [(0, 0, 2, 2), (1, 4, 6, 6), (2, 6, 7, 7), (3, 7, 8, 8)]
    assert split.facts["users_trained_on_only"] == 2


def test_no_target_is_ever_in_training():
    split = leave_one_out(OFFSETS)
    learned = {i for b, e in zip(split.train.history_begin, split.train.history_end, strict=True) for i in range(b, e)}
    for part in (split.val, split.test):
        assert not learned & {i for e, s in zip(part.history_end, part.target_end, strict=True) for i in range(e, s)}


TIMES = np.array([10, 20, 30, 40, 25, 45, 50, 5, 15, 60])


def test_the_timeline_cuts_everybody_at_the_same_moments():
    split = global_timeline(OFFSETS, TIMES, val_from=25, test_from=40)
    assert rows(split.train) == [(0, 0, 2, 2), (1, 4, 4, 4), (2, 6, 6, 6), (3, 7, 9, 9)]
    assert rows(split.val) == [(0, 0, 2, 3)]  # user 1 has no history before 25
    assert rows(split.test) == [(0, 0, 3, 4), (1, 4, 5, 6), (3, 7, 9, 10)]
    assert split.facts["users_without_history"] == {"val": 1, "test": 1}


def test_all_targets_of_the_window_can_be_asked_for():
    split = global_timeline(OFFSETS, TIMES, val_from=15, test_from=30, targets="all")
    assert (0, 0, 2, 4) in rows(split.test)


def test_history_is_always_before_the_cut_and_targets_are_not():
    split = global_timeline(OFFSETS, TIMES, val_from=0.4, test_from=0.7)
    for part, cut in ((split.val, split.facts["val_from"]), (split.test, split.facts["test_from"])):
        for _, begin, end, stop in rows(part):
            assert (TIMES[begin:end] < cut).all() and (TIMES[end:stop] >= cut).all() and stop > end > begin


@pytest.mark.parametrize(
    "text", ["2001-09-09T01:47:05", "2001-09-09 01:47:05Z", "2001-09-09T03:47:05+02:00", "1000000025", 1000000024.5]
)
def test_dates_and_seconds_name_moments(text):
    split = global_timeline(OFFSETS, TIMES + 1_000_000_000, text, "2001-09-10")
    assert split.facts["val_from"] == 1_000_000_025 and split.facts["test_from"] == 1_000_080_000


def test_a_share_is_that_of_the_events_before():
    facts = global_timeline(np.array([0, 100]), np.arange(5000, 5100), 0.7, 0.9).facts
    assert (facts["val_from"], facts["test_from"]) == (5070, 5090)


@pytest.mark.parametrize(
    "times,cuts,expected",
    [
        (None, (2, 3), "needs times .* leave_one_out, which needs only the order"),
        (TIMES, (40, 20), r"--data.val_from \(40\) must come before --data.test_from \(20\)"),
        (TIMES, (0.5, 0.5), "must come before"),
        (TIMES, ("soon", 20), "--data.val_from 'soon' is not a date"),
        (TIMES, (10, "nan"), "--data.test_from 'nan' is not a date"),
        (TIMES, (0.5, 1.0), "--data.test_from 1.0 is not a date"),
        (TIMES, (-0.1, 20), "is not a date"),
    ],
)
def test_what_cannot_be_cut_is_said(times, cuts, expected):
    with pytest.raises(InputError, match=expected):
        global_timeline(OFFSETS, times, *cuts)


def test_counts_are_those_of_training_events_only():
    items = np.array([1, 2, 3, 3, 1, 1, 2, 3, 3, 3])
    train = leave_one_out(OFFSETS).train
    assert count_events(items, train.history_begin, train.history_end, 4).tolist() == [0, 3, 2, 1, 0]
