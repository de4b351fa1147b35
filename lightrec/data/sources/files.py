"""Files that are checked before use, unpacked without harm, and written whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from lightrec.data.sources.source import File
from lightrec.errors import InputError
from lightrec.files import written_whole


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Says what to do if something cannot be written.

    Raises:
        InputError: instead of any OSError of the body.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise InputError(
            f"{target}: cannot be written: {cause}; free some space or choose another --data.cache_dir."
        ) from error


@contextlib.contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Lets one process at a time do what has this name; the lock ends with the process, whatever ends it."""
    path = cache / "locks" / (name.replace("/", "-") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        with contextlib.suppress(ImportError, OSError):  # elsewhere, or on a file system without locks: work twice
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def mismatch(path: Path, file: File) -> str | None:
    """Says how a file on disk differs from what is known of it, or None if it fits or nothing is known."""
    if not file.hashes and file.inner is None:
        return None
    found = {}
    for known in file.hashes:
        algorithm, _, value = known.partition(":")
        if algorithm not in found:
            try:
                found[algorithm] = file_hash(path, algorithm)
            except (OSError, EOFError, zlib.error) as error:
                return f"unreadable: {error}"
        if found[algorithm] == value:
            return None
    if file.inner is not None:
        member, hashes = file.inner
        try:
            with zipfile.ZipFile(path) as box:
                for known in hashes:
                    algorithm, _, value = known.partition(":")
                    with box.open(member) as content:
                        if _digest(content, algorithm, box.getinfo(member).file_size) == value:
                            return None
        except _UNPACKING as error:
            return f"unreadable: {error}"
        return f"its member {member} has another {hashes[0].partition(':')[0]} than the published one"
    algorithm, value = next(iter(found.items()))
    return f"{algorithm} {value[:12]}…, expected {file.hashes[0].partition(':')[2][:12]}…"


_UNPACKING = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,  # a compression that this Python lacks
    RuntimeError,  # a password
    OSError,
)


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hashes a file; `git` hashes its unpacked content as git hashes a blob."""
    if algorithm == "git" and path.suffix == ".gz":
        with gzip.open(path, "rb") as file:  # git wants the size first
            size = sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))
        with gzip.open(path, "rb") as file:
            return _digest(file, algorithm, size)
    with path.open("rb") as file:
        return _digest(file, algorithm, path.stat().st_size)


def _digest(file, algorithm: str, size: int) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size) if algorithm == "git" else hashlib.new(algorithm)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, member: str, folder: Path) -> Path:
    """Takes one member out of a zip or tar archive into a folder, and never out of it.

    Raises:
        InputError: not an archive, a damaged one, no such member, or a member whose name would leave the folder.
    """
    _refuse_escapes(archive, [member])
    target = folder / PurePosixPath(member).name
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
    copy_member(archive, member, target)
    return target


def copy_member(archive: Path, member: str, target: Path) -> None:
    """Writes one member of a zip or tar archive to a file.

    Raises:
        InputError: as `unpack`.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as box:
                _refuse_escapes(archive, box.namelist())
                with box.open(member) as content:
                    _copy_stream(content, target)
            return
        with tarfile.open(archive) as box:
            _refuse_escapes(archive, box.getnames())
            content = box.extractfile(member)
            if content is None:
                raise KeyError(member)
            _copy_stream(content, target)
    except KeyError as error:
        raise InputError(f"{archive}: has no member {member!r}; is it the right archive?") from error
    except _UNPACKING as error:
        raise InputError(f"{archive}: cannot be unpacked: {error}; delete it and fetch it again.") from error


def _copy_stream(content, target: Path) -> None:
    with writing(target), target.open("wb") as out:
        while True:
            # What goes wrong here is the archive's fault, what goes wrong below is the disk's.
            try:
                block = content.read(1 << 20)
            except OSError as error:
                raise EOFError(str(error)) from error
            if not block:
                return
            out.write(block)


def copy_file(content: Path, target: Path) -> None:
    """Writes a file under another name first, so that a full disk or a crash leaves no half of it."""
    with written_whole(target) as part:
        shutil.copyfile(content, part)


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise InputError(f"{archive}: the member {name!r} would leave its folder; the archive is refused.")
