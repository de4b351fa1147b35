"""What a file is before it is read: archives are unpacked, other encodings and JSON documents turned into lines.

What cannot be a log is named for what it is and refused. A pickle is never loaded.
"""

from __future__ import annotations

import ast
import bz2
import codecs
import gzip
import itertools
import json
import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from lightrec.errors import InputError

_EXPORT = "export it as csv or parquet"
# First bytes, what they mean, and the way out.
_BINARIES = (
    (
        b"SQLite format 3\x00",
        "an SQLite database",
        "export the table: sqlite3 -header -csv FILE 'select ...' > log.csv",
    ),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", _EXPORT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (b"ARROW1", "an Arrow or Feather file", "save it as parquet"),
    (b"FEA1", "a Feather file", "save it as parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "save it as parquet"),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"ORC", "an ORC file", "save it as parquet"),
    (b"Obj\x01", "an Avro file", "save it as parquet"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet or another Office document", "save it as csv"),
    (b"%PDF-", "a PDF document", _EXPORT),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the path of the log in it"),
    (b"Rar!", "a rar archive", "unpack it and give the path of the log in it"),
    (b"RDX", "an R data file", _EXPORT),
    (b"RDA", "an R data file", _EXPORT),
    (b"\x1f\x9d", "a compressed file of the program compress", "unpack it"),
)
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PACKED = {b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
SUFFIXES = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd")
"""Ends of names that say how a file is packed."""
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def check_file(path: Path) -> None:
    """Refuses what cannot be a log, whatever its format.

    Raises:
        InputError: a folder, no file, one that is empty or may not be opened, or that is neither text nor parquet.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the path of a file in it.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an interaction log.")
    try:
        start = first_bytes(path)
    except PermissionError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}; check its permissions.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror or error}; check its permissions.") from error
    if not start:
        raise InputError(f"{path}: the file is empty; expected one interaction a line.")
    if start[:4] == b"PAR1":
        return
    packed = start[:2] == b"\x1f\x8b"
    try:
        inner = _unzipped_start(path) if packed else start
    except _FAULTS:
        return  # the reader names a damaged archive
    _check_start(path, inner, " inside" if packed else "")


def _check_start(path: Path, start: bytes, inside: str = "") -> None:
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and start[:4] != b"\xff\xff\xff\xff":
        raise InputError(f"{path}: is UTF-16 text; save it as UTF-8.")
    for magic, what, remedy in _BINARIES:
        if start.startswith(magic):
            raise InputError(
                f"{path}: is {what}{inside}, not a log in text or parquet; {remedy.replace('FILE', str(path))}."
            )
    if start[:2] in _PICKLE:
        raise InputError(
            f"{path}: is a pickle{inside}, which can run any program and is never loaded; open it where you trust it, "
            "and save it with to_csv or to_parquet."
        )
    if start[257:262] == b"ustar":
        raise InputError(
            f"{path}: is a tar archive{inside}; unpack it (tar -xf {path}) and give the path of the log in it."
        )
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<?xml", b"<log ", b"<log>", b"<!doctype", b"<html")):
        remedy = (
            "a process log in XES: export it as csv, with the columns case, activity and time"
            if b"xes" in text
            else _EXPORT
        )
        raise InputError(f"{path}: is {'HTML' if b'<html' in text else 'XML'}{inside}, not a log; {remedy}.")
    if not any(start.startswith(magic) for magic in _PACKED) and b"\x00" in start:
        raise InputError(f"{path}: is a binary file{inside}, with NUL bytes in it, not a log in text; {_EXPORT}.")


def first_bytes(path: Path, count: int = 4096) -> bytes:
    """Returns how a file begins."""
    with path.open("rb") as file:
        return file.read(count)


def _unzipped_start(path: Path) -> bytes:
    with gzip.open(path, "rb") as file:
        return file.read(4096)


def binary_lines(path: Path) -> Iterator[bytes]:
    """Yields lines with their ends; unpacks gzip, which is known by its first bytes whatever the name."""
    opener = gzip.open if first_bytes(path, 2) == b"\x1f\x8b" else open
    try:
        with opener(path, "rb") as file:
            yield from file
    except _FAULTS as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be unpacked: {cause}; is the file complete?") from error


def plain_copy(
    path: Path, folder: Path, encoding: str | None, blanks: bool, item: str | None
) -> tuple[Path, list[str]]:
    """Returns the file itself, or a copy in `folder` that polars can read, and what was done to make it.

    Args:
        path: the file; `check_file` has passed it.
        folder: where a copy may be written, under a name with the same end.
        encoding: of the text; None is UTF-8.
        blanks: fields stand between runs of blanks.
        item: the item column that was asked for; `events.aid` explodes a list of objects.

    Raises:
        InputError: a damaged archive, one of several files, an unknown encoding, a document that is not a log.
    """
    done: list[str] = []
    start = first_bytes(path)
    kind = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)
    if kind is not None:
        path = _unpack(path, kind, folder)
        done.append(f"unpacked from {kind}")
        start = first_bytes(path)
        if start[:4] != b"PAR1":
            _check_start(path, start, " inside")
    if start[:4] == b"PAR1":
        return path, done
    if encoding is not None and _codec(encoding) not in ("utf-8", "ascii"):
        path = _rewrite(path, folder, _decoded(path, encoding))
    document = _document(path, item)
    if document is not None:
        what, lines = document
        path = _rewrite(path, folder, lines)
        done.append(what)
    if blanks:
        path = _rewrite(path, folder, (b"\t".join(line.split()) + b"\n" for line in binary_lines(path)))
    return path, done


def _codec(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError as error:
        raise InputError(
            f"--data.encoding {encoding!r} is unknown; expected one like utf-8, latin-1, cp1252."
        ) from error


def _decoded(path: Path, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for line in binary_lines(path):
            yield decoder.decode(line).encode()
    except UnicodeError as error:
        raise InputError(
            f"{path}: is not text in {encoding} ({error.reason}); give another --data.encoding."
        ) from error


def _rewrite(path: Path, folder: Path, lines: Iterator[bytes]) -> Path:
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    part = folder / "part"
    with part.open("wb") as out:
        out.writelines(lines)
    (folder / name).unlink(missing_ok=True)
    return part.rename(folder / name)


def _unpack(path: Path, kind: str, folder: Path) -> Path:
    name = path.name
    for suffix in (*SUFFIXES, ".zip"):
        name = name.removesuffix(suffix)
    copy = folder / (name or "log")
    try:
        if kind == "zip":
            return _unzip(path, folder)
        if kind == "zstd":
            lines = pl.scan_csv(path, separator="\x01", has_header=False, schema={"l": pl.String}, quote_char=None)
            lines.sink_csv(copy, include_header=False, separator="\x01", quote_style="never")
            return copy
        with {"bz2": bz2.open, "xz": lzma.open}[kind](path, "rb") as packed, copy.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (*_FAULTS, pl.exceptions.PolarsError) as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be unpacked from {kind}: {cause}; is the file complete?") from error
    return copy


def _unzip(path: Path, folder: Path) -> Path:
    if path.suffix.lower() in (".xlsx", ".xlsm", ".ods", ".numbers"):
        raise InputError(f"{path}: is a spreadsheet; save it as csv.")
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: is a damaged zip archive; unpack it and give the path of the log in it.") from error
    with archive:
        members = [info for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
        names = [info.filename for info in members]
        if any(name.startswith(("xl/", "content.xml")) for name in names) and path.suffix.lower() != ".zip":
            raise InputError(f"{path}: is a spreadsheet; save it as csv.")
        if names and all(name.endswith(".npy") for name in names):
            raise InputError(f"{path}: holds NumPy arrays, not a log in text or parquet; {_EXPORT}.")
        logs = [
            i for i in members if re.search(r"\.(csv|tsv|txt|dat|jsonl?|ndjson|inter|parquet|pq)$", i.filename.lower())
        ]
        chosen = members if len(members) == 1 else logs
        if len(chosen) != 1:
            shown = ", ".join(f"{info.filename} ({info.file_size:,} bytes)" for info in (logs or members)[:8])
            raise InputError(
                f"{path}: is a zip archive of {len(members)} files; unpack it and give the path of the log in it, one "
                f"of {shown or 'none'}."
            )
        copy = folder / (Path(chosen[0].filename).name or "log")
        with archive.open(chosen[0]) as packed, copy.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    return copy


def _document(path: Path, item: str | None) -> tuple[str, Iterator[bytes]] | None:
    """Returns what a text is and the lines to read in its place, if it is neither a table nor JSON lines."""
    text = (line.lstrip(b"\xef\xbb\xbf \t").rstrip() for line in binary_lines(path))
    first = list(itertools.islice((line for line in text if line), 2))
    if not first:
        return None
    if re.fullmatch(rb"\d+:", first[0]) and len(first) > 1 and re.fullmatch(rb"\d+,\d+,\d{4}-\d\d-\d\d", first[1]):
        return "lines of item: and user,rating,date, as Netflix has them", _netflix(path)
    if first[0].startswith(b"[") and first[0][1:].lstrip()[:1] in (b"{", b""):
        if first[0] != b"[" or (len(first) > 1 and first[1].startswith(b"{")):
            return "an array of JSON objects", (_json_line(part) for part in _array(path))
        return None
    if re.match(rb"\{\s*u?'", first[0]):
        return "lines of Python dictionaries", _python(path)
    if first[0] == b"{" or (first[0].startswith(b"{") and not first[0].endswith(b"}") and len(first) > 1):
        _refuse_document(path)
    if item is not None and "." in item and first[0].startswith(b"{"):
        outer = item.split(".")[0]
        try:
            value = json.loads(first[0])
        except ValueError:
            return None
        if isinstance(value, dict) and item not in value and isinstance(value.get(outer), list):
            return f"one event for each element of {outer}", _exploded(path, outer)
    return None


def _json_line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _array(path: Path) -> list:
    try:
        values = json.loads(b"".join(binary_lines(path)))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is a JSON array that cannot be read: {error}; mend it.") from error
    wrong = next((value for value in values if not isinstance(value, dict)), None)
    if wrong is not None or not values:
        raise InputError(f"{path}: is a JSON array of {str(wrong)[:60]!r}; expected one object an event.")
    return values


def _refuse_document(path: Path) -> None:
    try:
        value = json.loads(b"".join(itertools.islice(binary_lines(path), 3_000_000)))
    except (ValueError, RecursionError):
        return
    inside = _lists_of(value)
    what = f"{inside} must become one line an event" if inside else "expected one object an event, each in a line"
    raise InputError(f"{path}: is one JSON document over many lines; {what} (jq -c can do it).")


def _lists_of(value: object) -> str:
    """Returns the path to the innermost lists of objects, `playlists[].tracks[]`."""
    if isinstance(value, dict):
        for name, part in value.items():
            if isinstance(part, list) and part and isinstance(part[0], dict):
                inner = _lists_of(part[0])
                return f"{name}[]" + (f".{inner}" if inner else "")
    return ""


def _netflix(path: Path) -> Iterator[bytes]:
    item = b""
    for line in binary_lines(path):
        text = line.strip()
        if text.endswith(b":"):
            item, text = text[:-1], b""
        yield (text + b"," + item if text else b"") + b"\n"  # keeps the numbers of lines


def _python(path: Path) -> Iterator[bytes]:
    for number, line in enumerate(binary_lines(path), start=1):
        text = line.decode("utf-8", "replace").strip()
        try:
            yield _json_line(ast.literal_eval(text)) if text else b"\n"
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} cannot be read ({text[:80]!r}): it is not a Python dictionary; mend it."
            ) from error


def _exploded(path: Path, outer: str) -> Iterator[bytes]:
    for number, line in enumerate(binary_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            parts = value.pop(outer)
            for part in parts:
                inner = {f"{outer}.{name}": cell for name, cell in part.items()}
                yield _json_line({**value, **inner})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{path}: line {number} cannot be read ({line[:60].decode('utf-8', 'replace')!r}): expected an object "
                f"whose {outer} is a list of objects; mend it."
            ) from error
