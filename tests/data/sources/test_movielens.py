"""The MovieLens data sets are taken whole or not at all."""

import pytest

from lightrec.data.sources import find_source, mismatch


@pytest.mark.real_data
def test_half_of_movielens_1m_is_not_served_as_the_whole(tmp_path, mirror):
    (tmp_path / "mirror" / "ml-1m").mkdir(parents=True)
    (tmp_path / "mirror" / "ml-1m" / "ml-1m.zip").symlink_to(f"{mirror}/ml-1m/ml-1m-users-1-2999.zip")
    file = find_source("ml-1m").layouts[0].log
    cause = mismatch(tmp_path / "mirror" / "ml-1m" / "ml-1m.zip", file)
    assert cause == "its member ml-1m/ratings.dat has another git than the published one"
