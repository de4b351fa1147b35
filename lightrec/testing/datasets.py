"""The contract of a data source as a check that a plug-in's tests call.

from lightrec.testing import check_source

def test_my_source_is_what_it_says(tmp_path):
    check_source(my_source, tmp_path)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from lightrec.data.readers import Columns, read_log
from lightrec.data.sources import Source, locate, unpack


def describe_source(function: Callable[[], Source]) -> Source:
    """Checks what a source says of itself; reads no file.

    Raises:
        AssertionError: no Source, or one that leaves out who may use it or how its files are known.
    """
    source = function()
    assert isinstance(source, Source), f"the function returned a {type(source).__name__}, not a Source."
    for name in ("name", "title", "licence"):
        assert getattr(source, name), f"{name} is empty: say what it is."
    assert source.layouts, "layouts is empty: there is no file to read."
    files = [layout.log for layout in source.layouts] + list(source.companions)
    bare = [file.path for file in files if not file.hashes and not file.inner]
    assert not bare, f"{', '.join(bare)}: no hash, so a damaged or another file would be read in silence."
    assert source.expect, "expect is empty: give the counts that the log must have."
    return source


def check_source(function: Callable[[], Source], folder: str | Path) -> dict[str, int]:
    """Checks what a source says of itself, has its log brought here, reads it and counts.

    Args:
        function: what the entry point names.
        folder: where files may be kept.

    Returns:
        The counts of users, items and events.

    Raises:
        AssertionError: the source, or its log, is not what it says.
        InputError: its file cannot be found or read.
    """
    source, folder = describe_source(function), Path(folder)
    layout, files = locate(source, folder)
    path = files[layout.log.path]
    if layout.member:
        path = unpack(path, layout.member, folder)
    columns = Columns(**layout.columns)
    log = read_log(path, columns, layout.format, "raise", layout.header, source.drop_missing_user, source.void)
    frame = log.frame.collect()
    if source.drop_missing_user:
        frame = frame.filter(pl.col("user").is_not_null())
    if source.void:
        frame = frame.filter(~pl.col("void"))
    counts = {"users": frame["user"].n_unique(), "items": frame["item"].n_unique(), "events": len(frame)}
    wrong = [f"{counts[name]} {name}, not {number}" for name, number in source.expect.items() if counts[name] != number]
    # Sources with rows to drop give the counts of their raw file.
    assert not wrong or source.drop_missing_user or source.void, f"{source.name} has {', '.join(wrong)}."
    if source.catalog is not None:
        source.catalog(files)
    return counts
