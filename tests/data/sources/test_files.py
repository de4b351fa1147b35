"""Nothing malicious gets out of an archive, and what is damaged is said."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from lightrec.data.sources import File, Layout, Source, locate, unpack
from lightrec.errors import InputError

CONTENT = b"user,item\n" + b"".join(b"u%d,i%d\n" % (i % 7, i % 11) for i in range(2000))
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


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


def test_a_truncated_archive_is_said(tmp_path):
    zip_with(tmp_path / "box.zip", "other.txt")
    (tmp_path / "box.zip").write_bytes((tmp_path / "box.zip").read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be unpacked"):
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
