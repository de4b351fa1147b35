"""States of users outside of a stream: as tensors, strings and numbers, in a file, and back, without trust.

Everything that comes in is checked: a state names the model that made it by a hash of configuration, weights and
catalog, and none of another model is taken.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightrec.configurable import describe
from lightrec.data.catalog import Catalog
from lightrec.errors import InputError
from lightrec.files import written_whole
from lightrec.recommender import SequenceRecommender
from lightrec.serving.stream.engines import StepEngine, WindowEngine

FORMAT = 1

State = dict[str, Any]
"""What `pack` returns; `torch.load(weights_only=True)` reads it."""


@dataclass(frozen=True)
class Packed:
    """Users of a state that was checked."""

    users: list[str]
    leaves: list[Tensor]
    """Each [users, ...], on the device that the state was on."""
    seen: dict[str, array]
    """Sorted item ids of each user; empty if the stream remembers none."""


def pack(users: list[str], leaves: list[Tensor], seen: list[array] | None, model_hash: str) -> State:
    """Makes a state of users.

    Args:
        users: ids.
        leaves: each [users, ...].
        seen: sorted item ids of each user, or None.
        model_hash: of `hash_model`.
    """
    state: State = {"format": FORMAT, "model": model_hash, "users": users, "leaves": [leaf.cpu() for leaf in leaves]}
    if seen is not None:
        items = array("i")
        for row in seen:
            items.extend(row)
        state["seen"] = torch.from_numpy(np.array(items, dtype=np.int32))
        state["seen_ends"] = torch.tensor([len(row) for row in seen], dtype=torch.long).cumsum(0)
    return state


def unpack(
    state: State, model_hash: str, engine: StepEngine | WindowEngine, num_items: int, remember_seen: bool
) -> Packed:
    """Reads a state, which may come from anywhere.

    Raises:
        InputError: not such a state, of another model, damaged, not finite, or without the seen items that are asked
            for.
    """
    if not isinstance(state, dict) or not {"format", "model", "users", "leaves"} <= set(state):
        raise InputError("this is not an exported user state: give what StreamingRecommender.export_state returned.")
    if state["format"] != FORMAT:
        raise InputError(f"the state has format {state['format']}, this lightrec reads {FORMAT}: export it again.")
    if state["model"] != model_hash:
        raise InputError(
            f"the state belongs to another model (hash {str(state['model'])[:12]}, this one is {model_hash[:12]}) and "
            "cannot be carried over: observe the histories again."
        )
    users, leaves, blank = state["users"], state["leaves"], engine.blank
    if not isinstance(users, list) or not all(isinstance(u, str) for u in users) or len(set(users)) < len(users):
        raise InputError("the users of the state are not a list of different ids: export it again.")
    fits = (
        isinstance(leaves, list)
        and len(leaves) == len(blank)
        and all(isinstance(leaf, Tensor) for leaf in leaves)
        and all(leaf.shape == (len(users), *b.shape[1:]) for leaf, b in zip(leaves, blank, strict=True))
        and all(leaf.dtype == b.dtype for leaf, b in zip(leaves, blank, strict=True))
    )
    if not fits:
        raise InputError("the tensors of the state do not have the shapes that the model needs: export it again.")
    require_finite(leaves, users)
    engine.check(leaves)
    return Packed(users, leaves, _unpack_seen(state, num_items) if remember_seen else {})


def _unpack_seen(state: State, num_items: int) -> dict[str, array]:
    packed, ends, users = state.get("seen"), state.get("seen_ends"), state["users"]
    if packed is None or ends is None:
        raise InputError(
            "the state was exported without seen items, which this stream remembers: build it with remember_seen=False."
        )
    seen = {}
    try:
        starts, whole = [0, *ends.tolist()], packed.to(torch.int32).numpy()
        if len(starts) != len(users) + 1 or starts[-1] != len(whole) or starts != sorted(starts):
            raise ValueError
        for user, start, end in zip(users, starts, starts[1:], strict=False):
            items = whole[start:end]
            if not len(items) or items[0] < 1 or items[-1] > num_items or (items[1:] <= items[:-1]).any():
                raise ValueError
            seen[user] = array("i", items.tobytes())
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError("the seen items of the state cannot be read: export it again.") from error
    return seen


def require_finite(leaves: list[Tensor], users: list[str]) -> None:
    """Names the first user whose leaves hold NaN or infinity.

    Raises:
        InputError: there is one.
    """
    for leaf in leaves:
        finite = leaf.isfinite()
        if not finite.all():
            row = int((~finite.reshape(len(leaf), -1).all(1)).nonzero()[0])
            raise InputError(
                f"the state of user {users[row]!r} is not finite: the model has diverged or the state is damaged; use "
                "another checkpoint, or forget the user and observe the history again."
            )


def hash_model(model: SequenceRecommender, catalog: Catalog, engine: str) -> str:
    """Hashes what a state depends on: configuration, weights, the meaning of item ids, the kind of state."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([FORMAT, engine, describe(model), catalog.item_ids], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_state(state: State, path: Path) -> None:
    """Writes a state, whole or not at all."""
    with written_whole(path) as part:
        torch.save(state, part)


def read_state(path: Path) -> Any:
    """Reads a file without running anything in it.

    Raises:
        InputError: no such file, damaged, or holding code.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: give one that StreamingRecommender.save wrote.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        detail = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path} is not an exported user state, or is damaged ({detail}): write it again with "
            "StreamingRecommender.save."
        ) from error
