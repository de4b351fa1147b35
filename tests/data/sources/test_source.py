"""Data sets by name, and what is known of their files."""

import subprocess
import sys

import pytest

from lightrec.data.sources import cache_folder, find_source, locate
from lightrec.errors import InputError


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(InputError, match="did you mean ml-100k"):
        find_source("ml-100")


def test_listing_data_sets_imports_neither_torch_nor_polars():
    code = "import sys; from lightrec.data.sources import find_source; find_source('ml-1m'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "polars", "lightning"} & set(loaded)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["ml-100k", "ml-1m-sasrec", "ml-latest-small", "amazon-beauty", "amazon-sports"])
def test_real_files_have_the_known_hashes(tmp_path, mirror, name):
    source = find_source(name)
    layout, files = locate(source, tmp_path, mirror)
    assert layout is source.layouts[0] and all(path.is_file() for path in files.values())


def test_every_file_is_checked_by_a_hash():
    for name in ("ml-100k", "ml-1m", "ml-1m-sasrec", "ml-latest-small", "ml-20m", "amazon-beauty", "amazon-sports"):
        source = find_source(name)
        assert source.expect["events"] > 0 and source.licence
        assert all(file.hashes for file in (*(layout.log for layout in source.layouts), *source.companions))
    assert cache_folder("/x").name == "x"
