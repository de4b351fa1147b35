"""Paired comparison of per-user files."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from lightrec.errors import InputError
from lightrec.metrics.significance import compare, compare_values


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    users = np.arange(300)
    first = rng.random(300)
    frame = pl.DataFrame({"user_id": users, "ndcg@10": first})
    better = pl.DataFrame({"user_id": users, "ndcg@10": first + rng.normal(0.05, 0.1, 300)})
    frame.write_csv(tmp_path / "a.csv")
    better.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / "b.parquet")  # order must not matter
    return tmp_path, frame, better


def test_a_real_difference_is_found_whatever_the_order_of_the_rows(files):
    folder, frame, better = files
    result = compare(folder / "a.csv", folder / "b.parquet", metric="ndcg@10", resamples=500)
    difference = (better["ndcg@10"] - frame["ndcg@10"]).to_numpy()
    assert result.users == 300
    assert result.difference == pytest.approx(difference.mean(), abs=1e-12)
    assert result.interval[0] < result.difference < result.interval[1]
    assert result.t_test == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, rel=1e-9)
    assert result.t_test < 1e-6 and result.wilcoxon < 1e-6
    assert "300 users" in str(result)


def test_several_seeds_are_averaged_user_by_user(files):
    folder, frame, better = files
    both = compare(folder / "a.csv", [folder / "a.csv", folder / "b.parquet"], metric="ndcg@10", resamples=100)
    mean = (frame["ndcg@10"] + better["ndcg@10"]) / 2
    expected = compare_values(frame["ndcg@10"].to_numpy(), mean.to_numpy(), "ndcg@10", resamples=100)
    assert both.difference == pytest.approx(expected.difference, abs=1e-12)
    assert both.t_test == pytest.approx(expected.t_test, rel=1e-9) and both.users == 300
    with pytest.raises(InputError, match="no per-user file"):
        compare(folder / "a.csv", [])


def test_the_bootstrap_interval_is_the_normal_one_for_many_users():
    rng = np.random.default_rng(3)
    first, second = rng.random(4000), rng.random(4000)
    result = compare_values(first, second, resamples=2000)
    half = 1.96 * (second - first).std() / 4000**0.5
    assert result.interval[0] == pytest.approx(result.difference - half, abs=0.1 * half)
    assert result.interval[1] == pytest.approx(result.difference + half, abs=0.1 * half)


def test_the_same_model_differs_from_itself_by_nothing():
    values = np.random.default_rng(0).random(50)
    result = compare_values(values, values)
    assert (result.difference, result.interval, result.t_test, result.wilcoxon) == (0.0, (0.0, 0.0), 1.0, 1.0)


def test_the_seed_decides_the_interval():
    rng = np.random.default_rng(0)
    first, second = rng.random(50), rng.random(50)
    assert compare_values(first, second, seed=1) == compare_values(first, second, seed=1)
    assert compare_values(first, second, seed=1).interval != compare_values(first, second, seed=2).interval


def test_files_that_cannot_be_paired_are_refused(files):
    folder, frame, _ = files
    frame.head(200).write_csv(folder / "fewer.csv")
    with pytest.raises(InputError, match="has 300 users.*has 200.*both have 200"):
        compare(folder / "a.csv", folder / "fewer.csv")
    pl.concat([frame, frame.head(1)]).write_csv(folder / "twice.csv")
    with pytest.raises(InputError, match="user 0 more than once"):
        compare(folder / "a.csv", folder / "twice.csv")
    with pytest.raises(InputError, match="no column hr@5; its columns are user_id, ndcg@10"):
        compare(folder / "a.csv", folder / "b.parquet", metric="hr@5")
    with pytest.raises(InputError, match="does not exist"):
        compare(folder / "a.csv", folder / "nowhere.csv")
    (folder / "broken.parquet").write_bytes(b"not a table")
    with pytest.raises(InputError, match="cannot be read as .parquet"):
        compare(folder / "a.csv", folder / "broken.parquet")


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 values are not finite"):
        compare_values(np.array([0.0, np.nan]), np.zeros(2))
    with pytest.raises(ValueError, match="two or more users"):
        compare_values(np.zeros(1), np.zeros(1))
