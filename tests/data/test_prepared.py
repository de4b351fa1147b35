"""What is on disk is whole or not there."""

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from lightrec.data.prepared import Prepared, store
from lightrec.errors import InputError


def stored(folder, times=True):
    return store(
        folder / "prepared" / "toy-1",
        np.array([1, 2, 1], dtype=np.int32),
        np.array([5, 6, 7]) if times else None,
        np.array([0, 2, 3]),
        pl.Series(["a", "b"]),
        pl.DataFrame({"item": ["x", "y"], "title": ["The X", None]}),
        {"source": "file", "counts": []},
    )


@pytest.mark.parametrize("times", [True, False])
def test_what_is_stored_is_loaded(tmp_path, times):
    prepared = stored(tmp_path, times)
    assert isinstance(prepared.items, np.memmap) and prepared.items.dtype == np.int32
    assert prepared.items.tolist() == [1, 2, 1] and prepared.offsets.tolist() == [0, 2, 3]
    assert prepared.times.tolist() == [5, 6, 7] if times else prepared.times is None
    assert prepared.users.to_list() == ["a", "b"] and prepared.catalog.titles == ["The X", None]
    assert (prepared.num_users, prepared.num_items, prepared.meta["source"]) == (2, 2, "file")


def test_storing_again_keeps_the_first_and_leaves_no_rest(tmp_path):
    first = stored(tmp_path)
    inode = (first.path / "items.npy").stat().st_ino
    assert (stored(tmp_path).path / "items.npy").stat().st_ino == inode
    assert [p.name for p in first.path.parent.iterdir()] == ["toy-1"]


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "users.parquet", "catalog.parquet", "meta.json"])
def test_a_damaged_file_is_said(tmp_path, name):
    file = stored(tmp_path).path / name
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="toy-1: no prepared data set: .*delete the folder") as caught:
        Prepared.load(file.parent)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_belong_together_are_said(tmp_path):
    folder = stored(tmp_path).path
    np.save(folder / "items.npy", np.array([1, 2], dtype=np.int32))
    with pytest.raises(InputError, match="do not belong together"):
        Prepared.load(folder)


def test_another_format_is_said(tmp_path):
    folder = stored(tmp_path).path
    (folder / "meta.json").write_text('{"format": 0}')
    with pytest.raises(InputError, match="another version of lightrec"):
        Prepared.load(folder)


def test_no_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="no prepared data set"):
        Prepared.load(tmp_path / "nothing")


def test_a_disk_that_is_full_half_way_leaves_nothing(tmp_path):
    """The limit on file size makes the writes fail as a full disk does, in the middle of a file."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"u{i % 97},i{i % 89},{i}\n" for i in range(20_000)))
    code = """
import sys
from lightrec.data.preparation import prepare
from lightrec.errors import InputError
try:
    prepare(path=sys.argv[1])
except InputError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert "cannot be written" in run.stdout and "free some space" in run.stdout, run.stderr
    assert not list((tmp_path.__class__(os.environ["LIGHTREC_CACHE"]) / "prepared").iterdir())
