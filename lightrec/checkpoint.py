"""What a checkpoint says about itself, and how a stranger's is loaded safely.

A lightrec checkpoint is a Lightning checkpoint with one more entry, `checkpoint["lightrec"]`: how to build the model,
where its data came from, the protocol of its numbers, and the catalog, so that the file alone recommends by title. All
of it is primitives and tensors: it is read with `weights_only=True`, which runs no code, and a class that it names is
built only if it is one of ours, of an installed plug-in, or of a module that the caller trusts.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import lightrec
from lightrec import extensions
from lightrec.data.batch import Batch
from lightrec.data.catalog import Catalog
from lightrec.errors import InputError
from lightrec.interfaces import Configurable, describe

if TYPE_CHECKING:
    from lightrec.recommender import SequenceRecommender

FORMAT = 1
_BATCH_ROWS = 256


def describe_run(model: SequenceRecommender) -> dict:
    """Returns what `checkpoint["lightrec"]` holds for a model, and for the data of the trainer it is attached to."""
    trainer = getattr(model, "_trainer", None)  # the public property raises when there is none
    data = trainer.datamodule if trainer is not None else None
    written_before, facts = getattr(model, "_run_facts", (None, None))
    if facts is None or written_before is not data:
        # Constant while the data are: packing a catalog of a million titles at every epoch would be felt.
        facts = {
            "data": data.describe() if hasattr(data, "describe") else None,
            "protocol": data.protocol() if hasattr(data, "protocol") else None,
            "catalog": data.catalog.to_tensors() if hasattr(data, "catalog") else None,
            "max_length": getattr(data, "max_length", None),
        }
        model._run_facts = (data, facts)
    return {
        "format": FORMAT,
        "lightrec_version": lightrec.__version__,
        "plugin_api": lightrec.PLUGIN_API,
        "model": describe(model),
        **facts,
    }


def read_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint without running anything in it.

    Returns:
        The Lightning checkpoint, on the CPU, with a `lightrec` entry of a format that this version knows.

    Raises:
        InputError: there is no such file, or it is damaged, or no checkpoint, or not one of lightrec's, or it holds
            pickled code.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"checkpoint {path} {what}: give a file that `lightrec fit` wrote, such as best.ckpt.")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no checkpoint, or was cut off while it was written or copied ({path.stat().st_size:,} bytes): "
            "copy it again, or use another checkpoint of the run."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).split("\n") if "GLOBAL" in line or "global" in line), "")
        raise InputError(
            f"{path} holds more than tensors and plain values and was not loaded, because loading it could run code"
            f"{' (' + reason[:150] + ')' if reason else ''}: take a checkpoint that lightrec wrote."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path} is damaged ({str(error).split(chr(10))[0][:120]}): use another checkpoint."
        ) from error
    about = checkpoint.get("lightrec") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or "model" not in about or "state_dict" not in checkpoint:
        raise InputError(
            f"{path} was not written by lightrec (no `lightrec` entry): it cannot say which model it is of."
        )
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path} has checkpoint format {about.get('format')}, this lightrec {lightrec.__version__} reads {FORMAT}: "
            f"use lightrec {about.get('lightrec_version')}."
        )
    return checkpoint


def build(description: Any, trust: Sequence[str] = ()) -> Any:
    """Builds what `describe` described, nested parts included; the counterpart of `interfaces.describe`.

    Args:
        description: `{"class_path", "init_args"}`, a list or dict of such, or a primitive.
        trust: modules, beside lightrec's and those of installed plug-ins, whose classes may be built.

    Raises:
        InputError: a class that may not be built, does not exist, or does not take these arguments.
    """
    if isinstance(description, list):
        return [build(part, trust) for part in description]
    if not isinstance(description, dict):
        return description
    if set(description) != {"class_path", "init_args"}:
        return {key: build(part, trust) for key, part in description.items()}
    kind = allowed_class(description["class_path"], trust)
    arguments = {name: build(part, trust) for name, part in description["init_args"].items()}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InputError(f"{description['class_path']} is no longer built as the checkpoint says: {error}.") from error


def allowed_class(class_path: Any, trust: Sequence[str] = ()) -> type[Configurable]:
    """Imports a class that a checkpoint names, if it may be.

    Raises:
        InputError: its module is not lightrec's, no installed plug-in's and not trusted; or no such class.
    """
    module = str(class_path).rpartition(".")[0]
    homes = {"lightrec", *(plugin.path.split(".")[0] for plugin in extensions.installed())}
    trusted = module.split(".")[0] in homes or any(module == name or module.startswith(f"{name}.") for name in trust)
    if not trusted:
        raise InputError(
            f"the checkpoint names {class_path}, which is neither lightrec's nor an installed plug-in's: install the "
            f"plug-in that brings it, or, if you trust its module, load_recommender(path, trust=[{module!r}])."
        )
    try:
        kind = extensions.import_path(class_path)
    except Exception as error:  # whatever a module does at import
        raise InputError(
            f"the checkpoint needs {class_path}, which cannot be imported ({type(error).__name__}: {error})."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Configurable)):
        raise InputError(f"the checkpoint names {class_path}, which is no part of a recommender.")
    return kind


def build_model(checkpoint: dict, path: str | Path, trust: Sequence[str] = ()) -> SequenceRecommender:
    """Builds the model of a checkpoint and gives it its weights, in evaluation mode.

    Raises:
        InputError: see `build`; or the weights do not fit.
    """
    from lightrec.recommender import SequenceRecommender

    model = build(checkpoint["lightrec"]["model"], trust)
    if not isinstance(model, SequenceRecommender):
        raise InputError(f"{path} describes a {type(model).__name__}, which is no recommender.")
    try:
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"the weights in {path} do not fit {type(model).__name__}: {detail}") from error
    return model.eval()


def check_vocabulary(checkpoint: dict, catalog: Catalog, path: str | Path) -> None:
    """Makes sure that the integers of a checkpoint mean the items of these data.

    Raises:
        InputError: another catalog.
    """
    packed = checkpoint["lightrec"].get("catalog")
    if packed is None:
        return
    theirs = _catalog(packed, path)
    if theirs.item_ids == catalog.item_ids:
        return
    shared = len(set(theirs.item_ids) & set(catalog.item_ids))
    source = (checkpoint["lightrec"].get("data") or {}).get("init_args", {})
    name = source.get("source") or source.get("path") or "other data"
    raise InputError(
        f"{path} was trained on another vocabulary ({name}: {len(theirs):,} items; these data have {len(catalog):,}, "
        f"{shared:,} of them shared): leave the --data flags out to use its own data, or train on these."
    )


class Recommendation(NamedTuple):
    """One line of a list."""

    item_id: str
    """External id."""
    score: float
    title: str


@dataclass
class LoadedRecommender:
    """A trained model with its catalog: external ids in, titles out."""

    model: SequenceRecommender
    catalog: Catalog
    protocol: dict | None
    max_length: int | None
    """Most recent items that the model reads; all of a history counts as seen."""
    data: dict | None = None
    """What the data module of the training can be built from."""
    unknown: list[tuple[int, str]] = field(default_factory=list)
    """Of the last call: row and external id of each item that the catalog does not hold. They were skipped."""

    @torch.no_grad()
    def recommend(
        self, histories: Sequence[Sequence[str | int]], k: int = 10, exclude_seen: bool = True
    ) -> list[list[Recommendation]]:
        """Recommends to people by what they did.

        Args:
            histories: external item ids, oldest first, one list a person. Unknown items are skipped and reported in
                `unknown`.
            k: length of the lists.
            exclude_seen: leave the items of a history out of its own list.

        Returns:
            One list a person, best first; empty for a history without a known item.

        Raises:
            InputError: k below 1.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}.")
        self.unknown = []
        known: list[list[int]] = []
        for row, history in enumerate(histories):
            if isinstance(history, (str, int)):
                raise TypeError("histories is a list of lists: one list of item ids a person.")
            ids = self.catalog.encode(list(history))
            self.unknown += [(row, str(item)) for item, i in zip(history, ids, strict=True) if not i]
            known.append([i for i in ids if i])
        out: list[list[Recommendation]] = [[] for _ in known]
        rows = [row for row, ids in enumerate(known) if ids]
        for start in range(0, len(rows), _BATCH_ROWS):
            part = rows[start : start + _BATCH_ROWS]
            batch = Batch.from_histories([known[row] for row in part], self.max_length, exclude_seen)
            item_ids, scores = self.model.recommend(batch.to(self.model.device), k)
            for row, ids, values in zip(part, item_ids.tolist(), scores.tolist(), strict=True):
                out[row] = [
                    Recommendation(self.catalog.decode(i), value, self.catalog.title(i))
                    for i, value in zip(ids, values, strict=True)
                    if i
                ]
        return out


def load_recommender(path: str | Path, trust: Sequence[str] = ()) -> LoadedRecommender:
    """Loads a checkpoint as something that recommends; the file alone is enough.

    Args:
        path: a checkpoint that lightrec wrote.
        trust: modules, beside lightrec's and those of installed plug-ins, whose classes may be built.

    Raises:
        InputError: see `read_checkpoint` and `build_model`.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint["lightrec"]
    if about.get("catalog") is None:
        raise InputError(f"{path} carries no catalog: it was trained without a SequenceDataModule.")
    catalog = _catalog(about["catalog"], path)
    model = build_model(checkpoint, path, trust)
    return LoadedRecommender(model, catalog, about.get("protocol"), about.get("max_length"), about.get("data"))


def _catalog(packed: Any, path: str | Path) -> Catalog:
    try:
        return Catalog.from_tensors(packed)
    except Exception as error:  # tensors of any shape and type may stand in a stranger's file
        raise InputError(f"the catalog in {path} cannot be read ({type(error).__name__}: {error}).") from error
