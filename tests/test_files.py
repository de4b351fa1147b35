"""A file appears whole or not at all."""

import pytest

from lightrec.files import written_whole


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "results.json"
    with written_whole(target) as part:
        part.write_text("new")
        assert not target.exists() and part.parent == tmp_path
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(target) as part:
        part.write_text("half")
        raise OSError("the disk is full")
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
