"""From a raw log to a prepared one: clean, filter, order, number; written once, keyed by content and settings."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lightrec.data import sources
from lightrec.data.encoding import Encoded, Ordered, encode
from lightrec.data.item_columns import join_catalog, read_item_file, texts_of_items
from lightrec.data.options import Cleaning, LogFile
from lightrec.data.prepared import FORMAT, Prepared, store
from lightrec.data.readers import Columns, LogTable, ReadAs, printable, read_log
from lightrec.errors import InputError

log = logging.getLogger(__name__)


def prepare(
    source: str = "",
    path: str | None = None,
    log_file: LogFile = LogFile(),
    cleaning: Cleaning = Cleaning(),
    mirror: str | None = None,
    cache_dir: str | None = None,
) -> Prepared:
    """Returns the prepared form of a log, from the cache if the same content was prepared in the same way before.

    Steps, each counted in `meta["counts"]`: rows without a user and void rows (named sources that have such), rating,
    duplicates, k-core. The order of a history is stable by (user, time, row of the file). Users and items are numbered
    by first appearance in the file, and those that were dropped leave no gap.

    Args:
        source: name of a known data set, or "" or "file" for `path`.
        path: an interaction log of one's own.
        log_file: what is in it.
        cleaning: which events stay.
        mirror: folder or URL that has the files of known data sets.
        cache_dir: where downloads and prepared sets are kept.

    Raises:
        InputError: whatever the user can mend.
    """
    cache = sources.cache_folder(cache_dir)
    origin = _locate(source, path, log_file, mirror, cache)
    settings = {"source": source or "file", **log_file.settings, **cleaning.settings}
    hashes = _hash_files(origin.files)
    key = hashlib.sha256(json.dumps([FORMAT, settings, hashes]).encode()).hexdigest()[:12]
    folder = cache / "prepared" / f"{origin.name}-{key}"
    if (found := _load(folder)) is not None:
        return found
    with sources.writing(cache), sources.locked(cache, folder.name):
        if (found := _load(folder)) is not None:  # another process was preparing it
            return found
        shutil.rmtree(folder, ignore_errors=True)
        table, item_tables = _read(origin, log_file, cache)
        encoded = _clean(table, origin, cleaning)
        ordered = encoded.finish()
        catalog = join_catalog(ordered.item_ids, encoded.titles, item_tables, log_file.item_path)
        meta = _describe(origin, table, encoded, settings, hashes, titled="title" in catalog.columns)
        meta["read_as"] = _read_as(table, ordered, encoded).primitives()
        meta["equal_times"] = ordered.equal_times
        arrays = ordered.items, ordered.times, ordered.offsets, ordered.users
        return store(folder, *arrays, catalog, meta, ordered.event_columns)


def _load(folder: Path) -> Prepared | None:
    """Returns what is in the cache, unless an older version guessed what the log holds and may have been wrong."""
    if not (folder / "meta.json").exists():
        return None
    prepared = Prepared.load(folder)
    meta = prepared.meta
    guessed = meta.get("guessed_columns") or meta.get("format_read") == "sequence"
    if "read_as" not in meta and guessed and meta["source"] == "file":
        log.info("%s was prepared by guesses of an older version, and is prepared again", folder)
        return None
    return prepared


@dataclass(frozen=True)
class _Origin:
    """Where a log comes from."""

    name: str
    """Begins the name of the folder that the prepared log is kept in."""
    files: dict[str, Path]
    log: Path
    """The one of the files that has the events."""
    known: sources.Source | None = None
    """The named data set; None for a log of one's own."""
    layout: sources.Layout | None = None


def _locate(source: str, path: str | None, log_file: LogFile, mirror: str | None, cache: Path) -> _Origin:
    """Finds the files of a source, which may have to be fetched, or of a log of one's own."""
    if source not in ("", "file"):
        if path is not None or log_file.item_path is not None:
            raise InputError(f"--data.source {source} and --data.path or item_path exclude each other; give one.")
        told = (*vars(log_file.columns).values(), log_file.format, *vars(log_file.form).values())
        if any(value is not None for value in told):
            raise InputError(f"--data.source {source} knows its own columns and format; leave those flags out.")
        known = sources.find_source(source)
        layout, files = sources.locate(known, cache, mirror)
        return _Origin(source, files, files[layout.log.path], known, layout)
    if path is None:
        raise InputError("no data: give --data.source NAME (see `lightrec data list`) or --data.path FILE.")
    files = {"log": Path(path)} | ({"items": Path(log_file.item_path)} if log_file.item_path else {})
    for file in files.values():
        if not file.is_file():
            raise InputError(f"{file}: {'is a folder' if file.is_dir() else 'no such file'}; give a file's path.")
    name = re.sub(r"[^\w-]+", "-", Path(path).name.split(".")[0])[:40] or "log"
    return _Origin(name, files, Path(path))


def _hash_files(files: dict[str, Path]) -> dict[str, str]:
    try:
        return {name: sources.file_hash(file) for name, file in files.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be opened: {error.strerror}; check its permissions.") from error


def _read(origin: _Origin, log_file: LogFile, cache: Path) -> tuple[LogTable, list[pl.DataFrame]]:
    """Reads the log, and the tables of what is known of its items."""
    if origin.known:
        known, item_tables = origin.known, []
        table = _read_known(origin, log_file, cache)
        item_tables.append(texts_of_items(known.catalog(origin.files) if known.catalog else {}))
    else:
        columns, item_tables = log_file.columns, []
        if log_file.item_path:
            items, columns = read_item_file(log_file.item_path, columns)
            item_tables.append(items)
        table = read_log(
            origin.log,
            columns,
            log_file.format,
            log_file.on_error,
            event_columns=log_file.event_columns or (),
            form=log_file.form,
            where=log_file.conditions,
        )
    if table.skipped:
        log.warning("%s: left out %d rows that cannot be read", origin.log, table.skipped)
    return table, item_tables


def _read_known(origin: _Origin, log_file: LogFile, cache: Path) -> LogTable:
    """Reads the log of a named source, out of its archive if it is in one."""
    known, layout, file = origin.known, origin.layout, origin.log
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=cache) as folder:
        if layout.member:
            file = sources.unpack(file, layout.member, Path(folder))
        return read_log(
            file,
            Columns(**layout.columns),
            layout.format,
            log_file.on_error,
            layout.header,
            missing_user=known.drop_missing_user,
            void=known.void,
            event_columns=log_file.event_columns or (),
            where=log_file.conditions,
        )


def _clean(table: LogTable, origin: _Origin, cleaning: Cleaning) -> Encoded:
    """Turns the log into codes and drops what is not to stay."""
    known = origin.known
    encoded = encode(table, origin.log)
    if known:
        _check_counts(known, encoded.counts[0], origin.log)
    encoded.drop_void(known.void[0] if known and known.void else "")
    if cleaning.time_precision == "float32":
        encoded.round_times(table.time_unit, origin.log)
    encoded.filter(cleaning)
    return encoded


def _read_as(table: LogTable, ordered: Ordered, encoded: Encoded) -> ReadAs:
    """Adds to what the log was read as what only shows once its histories are in order."""
    notes, lengths = [], np.diff(ordered.offsets)
    largest = int(lengths.argmax())
    if len(lengths) > 20 and lengths[largest] > 0.1 * lengths.sum():
        share = lengths[largest] / lengths.sum()
        notes.append(f"user {printable(str(ordered.users[largest]), 40)} holds {share:.0%} of all events")
    if ordered.equal_times is not None and ordered.equal_times > 0.5:
        notes.append(
            f"{ordered.equal_times:.0%} of events have the time of the one before, and stay in the file's order"
        )
    columns = dict(table.columns)  # a title that was none is gone
    guessed = [name for name in table.read_as.guessed if name == "format" or name in columns]
    return replace(table.read_as, columns=columns, guessed=guessed).with_notes(*notes)


def _check_counts(known: sources.Source, found: dict, path: Path) -> None:
    for what, expected in known.expect.items():
        if found[what] != expected:
            raise InputError(
                f"{path}: {known.name} must have {expected} {what}, this file has {found[what]}: it is another file; "
                "delete it or give another --data.mirror."
            )


def _describe(
    origin: _Origin,
    table: LogTable,
    encoded: Encoded,
    settings: dict[str, Any],
    hashes: dict[str, str],
    titled: bool,
) -> dict[str, Any]:
    """Returns what is kept beside the arrays: where they come from, and what was done."""
    known = origin.known
    notes = [known.note, origin.layout.note] if known else []
    if known and known.catalog and not titled:
        missing = [file.path for file in known.companions if file.path not in origin.files]
        notes.append("no titles" + (f", for want of {' and '.join(missing)}" if missing else ""))
    return {
        "source": settings["source"],
        "title": known.title if known else origin.log.name,
        "note": "; ".join(note for note in notes if note),
        "licence": known.licence if known else None,
        "max_length": known.max_length if known else 50,
        "data_sha256": next(iter(hashes.values())),
        "files": {file.name: hashes[name] for name, file in origin.files.items()},
        "settings": settings,
        "columns": table.columns,
        "guessed_columns": list(table.guessed),
        "format_read": table.format,
        "time_unit": table.time_unit,
        "skipped_rows": table.skipped,
        "counts": encoded.counts,
    }
