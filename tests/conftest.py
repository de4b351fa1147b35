"""What several test files need: a cache of their own, and the shared data where it is at hand."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("LIGHTREC_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def mirror():
    """The folder of real data sets, by LIGHTREC_DATA_MIRROR or beside the checkout."""
    given = os.environ.get("LIGHTREC_DATA_MIRROR")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data sets are not at hand: set LIGHTREC_DATA_MIRROR to a folder that has them")
    return str(folder)
