"""The toy log has the rule that it says it has."""

import polars as pl
import pytest

from lightrec.testing import toy_data, toy_log


def followed(log):
    pairs = [(a, b) for history in log.histories for a, b in zip(history, history[1:], strict=False)]
    return sum(log.successor[a] == b for a, b in pairs) / len(pairs)


def test_the_rule_is_one_cycle_through_the_whole_catalog():
    log = toy_log(num_items=13, max_length=12)
    item, seen = 1, set()
    while item not in seen:
        seen.add(item)
        item = log.successor[item]
    assert seen == set(range(1, 14))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_noise_is_the_share_of_events_that_ignore_the_rule(noise):
    share = followed(toy_log(num_users=400, noise=noise))
    assert share == 1.0 if noise == 0 else abs(share - (1 - noise)) < 0.05


def test_histories_repeat_nothing_and_hold_their_bounds():
    log = toy_log(num_users=100, min_length=3, max_length=9)
    assert {len(history) for history in log.histories} == set(range(3, 10))
    assert all(len(set(history)) == len(history) for history in log.histories)
    assert {item for history in log.histories for item in history} == set(range(1, log.num_items + 1))


def test_the_seed_decides_the_log():
    assert toy_log(seed=3) == toy_log(seed=3)
    assert toy_log(seed=3) != toy_log(seed=4)


def test_bounds_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"max_length \(31\) <= num_items \(30\)"):
        toy_log(max_length=31)


def test_the_file_and_the_data_module_hold_the_same_histories(tmp_path):
    log = toy_log(num_users=20)
    frame = pl.read_csv(log.write_csv(tmp_path / "log.csv"))
    assert frame.columns == ["user", "item", "time", "title"] and len(frame) == sum(map(len, log.histories))
    data = toy_data(tmp_path / "data", log)
    assert data.num_users == 20 and data.max_length == 12
    rows = {}
    for batch in data.test_dataloader():
        for user, ids, length, target in zip(
            batch.user_ids.tolist(), batch.item_ids, batch.lengths, batch.target_ids, strict=True
        ):
            rows[user] = [data.catalog.decode(i) for i in [*ids[:length].tolist(), int(target)]]
    assert [rows[user] for user in range(20)] == [[f"item-{i}" for i in history] for history in log.histories]
    assert data.catalog.title(1) == data.catalog.decode(1).replace("item-", "Title ")
