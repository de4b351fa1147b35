"""What the tests of the readers share."""

import gzip

import pytest


@pytest.fixture
def written():
    """Writes a text file, gzipped if its name says so."""

    def write(folder, name, text):
        path = folder / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        return path

    return write
