"""How a stranger's checkpoint is read safely, and the model that it describes is built.

A lightrec checkpoint is a Lightning checkpoint with one more entry, `checkpoint["lightrec"]`, which
`lightrec.recommender.record` writes: how to build the model, where its data came from, the protocol of its numbers,
and the catalog. All of it is primitives and tensors. It is read with `weights_only=True`, which runs no code. A class
that it names is built only if it is one of ours, of an installed plug-in, or of a module that the caller trusts.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lightrec
from lightrec import configurable, extensions
from lightrec.configurable import Configurable
from lightrec.data.catalog import Catalog
from lightrec.errors import InputError
from lightrec.recommender import SequenceRecommender
from lightrec.recommender.inference import LEFT_OUT, is_left_out
from lightrec.recommender.record import FORMAT


def read_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint without running anything in it.

    Returns:
        The Lightning checkpoint, on the CPU, with a `lightrec` entry of a format that this version knows.

    Raises:
        InputError: there is no such file, or it is damaged, or not a checkpoint, or not one of lightrec's, or it holds
            pickled code.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"checkpoint {path} {what}: give a file that `lightrec fit` wrote, such as best.ckpt.")
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is not a checkpoint, or was cut off while it was written or copied "
            f"({path.stat().st_size:,} bytes): copy it again, or use another checkpoint of the run."
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
    """Builds what `configurable.describe` described, nested parts included.

    Args:
        description: `{"class_path", "init_args"}`, a list or dict of such, or a primitive.
        trust: modules, beside lightrec's and those of installed plug-ins, whose classes may be built.

    Raises:
        InputError: a class that may not be built, does not exist, or does not take these arguments.
    """
    try:
        return configurable.build(description, lambda class_path: allowed_class(class_path, trust))
    except TypeError as error:
        raise InputError(f"the checkpoint holds a part that has changed: {error}.") from error


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
        raise InputError(f"the checkpoint names {class_path}, which is not a part of a recommender.")
    return kind


def build_model(checkpoint: dict, path: str | Path, trust: Sequence[str] = ()) -> SequenceRecommender:
    """Builds the model of a checkpoint to recommend with: its weights, in evaluation mode, without what trained it.

    Objective and optimizer are left out, so that a teacher or a text encoder of theirs is never needed to serve.

    Raises:
        InputError: see `build`; or the weights do not fit.
    """
    description = checkpoint["lightrec"]["model"]
    if not configurable.is_description(description):
        raise InputError(f"{path} does not describe a model.")
    kind = allowed_class(description["class_path"], trust)
    if not issubclass(kind, SequenceRecommender):
        raise InputError(f"{path} describes a {kind.__name__}, which is not a recommender.")
    arguments = {
        name: LEFT_OUT[name](value) if name in LEFT_OUT else build(value, trust)
        for name, value in description["init_args"].items()
    }
    try:
        model = kind(**arguments)
    except TypeError as error:
        raise InputError(f"{description['class_path']} is no longer built as the checkpoint says: {error}.") from error
    weights = checkpoint["state_dict"]
    if is_left_out(getattr(model, "objective", None)):
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("objective.")}
    try:
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(weights)
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
    theirs = catalog_of(packed, path)
    if theirs.item_ids == catalog.item_ids:
        return
    shared = len(set(theirs.item_ids) & set(catalog.item_ids))
    source = (checkpoint["lightrec"].get("data") or {}).get("init_args", {})
    name = source.get("source") or source.get("path") or "other data"
    raise InputError(
        f"{path} was trained on another vocabulary ({name}: {len(theirs):,} items; these data have {len(catalog):,}, "
        f"{shared:,} of them shared): leave the --data flags out to use its own data, or train on these."
    )


def catalog_of(packed: Any, path: str | Path) -> Catalog:
    """Unpacks the catalog of a checkpoint.

    Raises:
        InputError: what stands there is not a catalog.
    """
    try:
        return Catalog.from_tensors(packed)
    except Exception as error:  # tensors of any shape and type may stand in a stranger's file
        raise InputError(f"the catalog in {path} cannot be read ({type(error).__name__}: {error}).") from error
