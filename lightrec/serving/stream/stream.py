"""StreamingRecommender: events in, lists out, one user or many at a time."""

from __future__ import annotations

import numbers
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from lightrec.data.catalog import Catalog
from lightrec.errors import InputError
from lightrec.recommender import SequenceRecommender
from lightrec.serving.loaded import LoadedRecommender, Recommendation
from lightrec.serving.stream.engines import StepEngine, WindowEngine, repeated
from lightrec.serving.stream.memory import Memory, insert
from lightrec.serving.stream.states import (
    Packed,
    State,
    hash_model,
    pack,
    read_state,
    require_finite,
    unpack,
    write_state,
)

_ROWS = 256  # users that are advanced or ranked at once: bounds the memory of a call

UserId = str | int
ItemId = str | int


class StreamingRecommender:
    """Recommends to users whose events arrive one at a time.

    User and item ids are external ones; numbers are read as their text, as in `LoadedRecommender`.

    Args:
        model: of `load_recommender`; or a bare recommender, whose item ids are then the numbers 1..num_items. It is put
            into evaluation mode.
        max_users: users kept in memory. One more evicts the one that was observed or asked for longest ago.
        history: None advances the encoder's state; a number keeps so many last items of each user instead and reads
            them again at every recommendation, which any model can.
        remember_seen: keep the items that each user has seen (4 bytes an item), for `recommend(exclude_seen=True)`.
            Without, memory is constant in the length of the history.
        on_evict: called with a user id and the user's exported state before it is dropped, such as `store.__setitem__`.
        on_miss: called with a user id that is not in memory; returns an exported state, or None for somebody new, such
            as `store.get`.

    Raises:
        InputError: the encoder has no step form, or not one that agrees with its batch result; or `history` is longer
            than what the model reads.
        ValueError: max_users or history below 1.
    """

    def __init__(
        self,
        model: LoadedRecommender | SequenceRecommender,
        max_users: int = 10_000,
        history: int | None = None,
        remember_seen: bool = True,
        on_evict: Callable[[str, State], None] | None = None,
        on_miss: Callable[[str], State | None] | None = None,
    ):
        if max_users < 1:
            raise ValueError(f"max_users ({max_users}) must be at least 1.")
        loaded = model if isinstance(model, LoadedRecommender) else None
        self.model: SequenceRecommender = loaded.model if loaded else model
        if not isinstance(self.model, SequenceRecommender):
            raise TypeError(f"expected a recommender, got {type(model).__name__}.")
        self.model.eval()
        self.catalog = loaded.catalog if loaded else _numbered(self.model)
        self.max_users, self.remember_seen = max_users, remember_seen
        self.unknown: list[tuple[str, str]] = []
        """Of the last `observe` or `observe_many`: user and item id of each event whose item the catalog lacks. They
        were skipped."""
        self._on_evict, self._on_miss = on_evict, on_miss
        self._lock, self._inside = threading.RLock(), False
        self._device, self._model_hash = self.model.device, None
        limit = loaded.max_length if loaded else getattr(getattr(self.model, "encoder", None), "max_length", None)
        with self._computing():
            if history is None:
                self._engine = StepEngine(self.model, longest=min(limit or 5, 5))
            else:
                self._engine = WindowEngine(self.model, len(self.catalog), history, limit)
        self._memory = Memory(self._engine.blank, max_users, remember_seen, self._evict)
        self._weights = [*self.model.parameters(), *self.model.buffers()]
        self._versions = self._current_versions()
        trained = [p for p in self.model.parameters() if p.requires_grad and p.numel()]
        # Fused optimisers raise no counter; but they change every weight, so the smallest one tells.
        self._watched = min(trained, key=Tensor.numel) if trained else None
        self._watched_value = None if self._watched is None else self._watched.detach().clone()

    def __len__(self) -> int:
        """Users in memory."""
        return len(self._memory)

    def __contains__(self, user_id: UserId) -> bool:
        """Whether a user is in memory."""
        return _text(user_id) in self._memory

    @property
    def users(self) -> list[str]:
        """Users in memory, the next to be evicted first."""
        return list(self._memory.slots)

    @property
    def bytes_per_user(self) -> int:
        """Bytes of a user's state. Seen items, if remembered, are 4 bytes each beside it."""
        return sum(leaf.numel() * leaf.element_size() for leaf in self._engine.blank)

    @property
    def model_hash(self) -> str:
        """Hash of configuration, weights, catalog and kind of state: a state belongs to the model that made it."""
        if self._model_hash is None:
            self._model_hash = hash_model(self.model, self.catalog, self._engine.name)
        return self._model_hash

    def observe(self, user_id: UserId, item_id: ItemId) -> None:
        """Takes in one event. An unknown item is skipped and reported in `unknown`.

        Raises:
            InputError: the state would not be finite, or `on_miss` returned a state that does not fit.
        """
        self.observe_many([(user_id, item_id)])

    def observe_many(self, events: Iterable[tuple[UserId, ItemId]]) -> None:
        """Takes in events (user_id, item_id), oldest first; many users advance in one step.

        Each user's events are taken in together, users in the order of their last events: what is kept of each is what
        observing one by one would keep, and nobody is evicted between two of his own events.

        Raises:
            InputError: a state would not be finite, or `on_miss` returned a state that does not fit. Users are taken in
                in groups; the group at fault is left as it was.
        """
        if isinstance(events, str):
            raise TypeError("events is a sequence of pairs: (user_id, item_id).")
        events = [(_text(user), item) for user, item in events]
        with self._turn():
            self.unknown = []
            pending: dict[str, list[int]] = {}
            item_ids = self.catalog.encode([item for _, item in events])
            for (user, item), item_id in zip(events, item_ids, strict=True):
                if item_id:
                    mine = pending.pop(user, [])  # and back at the end: users in the order of their last events
                    mine.append(item_id)
                    pending[user] = mine
                else:
                    self.unknown.append((user, str(item)))
            # Those with events are the last to leave, while those before them in the call are taken in.
            self._memory.touch([user for user in pending if user in self._memory])
            for group in _groups(list(pending), min(_ROWS, self.max_users)):
                self._advance({user: pending[user] for user in group})

    def recommend(self, user_id: UserId, k: int = 10, exclude_seen: bool = True) -> list[Recommendation]:
        """Recommends to one user, see `recommend_many`."""
        return self.recommend_many([user_id], k, exclude_seen)[0]

    def recommend_many(
        self, user_ids: Sequence[UserId], k: int = 10, exclude_seen: bool = True
    ) -> list[list[Recommendation]]:
        """Recommends to users by what they did so far; the result of `LoadedRecommender.recommend`.

        Args:
            user_ids: external ids.
            k: length of the lists.
            exclude_seen: leave out what the user has seen.

        Returns:
            One list per user, best first; empty for a user without a known event.

        Raises:
            InputError: k below 1; seen items are to be excluded and none are remembered; or `on_miss` returned a state
                that does not fit.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}.")
        if exclude_seen and not self.remember_seen:
            raise InputError(
                "this stream keeps no seen items: recommend with exclude_seen=False, or build it with "
                "remember_seen=True."
            )
        if isinstance(user_ids, (str, int)):
            raise TypeError("user_ids is a list; for one user there is `recommend`.")
        users = [_text(user) for user in user_ids]
        lists: dict[str, list[Recommendation]] = {user: [] for user in users}
        with self._turn():
            for group in _groups(list(lists), min(_ROWS, self.max_users)):
                known, leaves, seen = self._fetch(group)
                if not known:
                    continue
                new = [row for row, user in enumerate(known) if user not in self._memory]  # those of on_miss
                self._memory.make_room(known)
                if new:
                    self._memory.write([known[row] for row in new], [leaf[new] for leaf in leaves], seen)
                excluded = _pad([seen[user] for user in known]).to(self._device) if exclude_seen else None
                item_ids, scores = self._engine.rank(leaves, k, excluded)
                for user, ids, values in zip(known, item_ids.tolist(), scores.tolist(), strict=True):
                    lists[user] = [
                        Recommendation(self.catalog.decode(i), value, self.catalog.title(i))
                        for i, value in zip(ids, values, strict=True)
                        if i
                    ]
        return [list(lists[user]) for user in users]

    def forget(self, user_id: UserId) -> bool:
        """Drops a user from memory, without `on_evict`; returns whether there was one."""
        user = _text(user_id)
        with self._turn():
            known = user in self._memory
            if known:
                self._memory.drop(user)
            return known

    def export_state(self, user_ids: Sequence[UserId] | None = None) -> State:
        """Copies users out as tensors on the CPU, strings and numbers: for another process, or another day.

        Args:
            user_ids: users in memory; None for all of them.

        Raises:
            InputError: a user is not in memory.
        """
        with self._turn():
            users = self.users if user_ids is None else list(dict.fromkeys(map(_text, user_ids)))
            missing = [user for user in users if user not in self._memory]
            if missing:
                raise InputError(f"user {missing[0]!r} is not in memory: observe events first, or leave the user out.")
            return self._export(users)

    def import_state(self, state: State) -> None:
        """Takes users in, replacing those of the same ids.

        Raises:
            InputError: not such a state, of another model, with values that are not finite, without the seen items
                that this stream remembers, or with more users than `max_users`.
        """
        with self._turn():
            packed = self._unpack(state)
            if len(packed.users) > self.max_users:
                raise InputError(
                    f"the state holds {len(packed.users):,} users, this stream at most {self.max_users:,}: raise "
                    "max_users."
                )
            if packed.users:
                self._memory.make_room(packed.users)
                self._memory.write(packed.users, [leaf.to(self._device) for leaf in packed.leaves], packed.seen)
                self._memory.touch(packed.users)

    def save(self, path: str | Path) -> None:
        """Writes all users in memory to a file, whole or not at all."""
        write_state(self.export_state(), Path(path))

    def load(self, path: str | Path) -> None:
        """Takes in the users of a file that `save` wrote. Nothing in the file is run.

        Raises:
            InputError: no such file, damaged, holding code, or see `import_state`.
        """
        self.import_state(read_state(Path(path)))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One caller at a time, and a model that is still the one that made the states."""
        with self._lock:
            if self._inside:
                raise RuntimeError("on_evict and on_miss may not call the stream that called them.")
            if self.model.training:
                raise RuntimeError("the model of this stream is in training mode: call model.eval() first.")
            if self._model_changed():
                raise RuntimeError(
                    "the model was changed or moved after this stream was built, so its states are of another model: "
                    "build a new stream and observe the histories again."
                )
            self._inside = True
            try:
                with self._computing():
                    yield
            finally:
                self._inside = False

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Whatever the caller's modes: no gradients, states that can be written again, in one dtype."""
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            yield

    def _model_changed(self) -> bool:
        """Sees that the model was moved, trained or loaded; not that a part of it was replaced."""
        if self.model.device != self._device or self._current_versions() != self._versions:
            return True
        return self._watched is not None and not torch.equal(self._watched, self._watched_value)

    def _current_versions(self) -> list[int]:
        """Counters that each change of a weight in place raises."""
        return [0 if weight.is_inference() else weight._version for weight in self._weights]

    def _advance(self, events: dict[str, list[int]]) -> None:
        """Takes in the events of at most max_users users, all or nothing."""
        # The longest first: the users that still have an event are then the first rows in every round.
        users = sorted(events, key=lambda user: -len(events[user]))
        found, leaves, seen = self._fetch(users)
        if found != users:
            row_of = {user: row for row, user in enumerate(users)}
            rows = torch.tensor([row_of[user] for user in found], dtype=torch.long, device=self._device)
            fresh = repeated(self._engine.blank, len(users))
            leaves = [new.index_copy(0, rows, old) for new, old in zip(fresh, leaves, strict=True)]
        for turn in range(len(events[users[0]])):
            active = [events[user][turn] for user in users if len(events[user]) > turn]
            n = len(active)
            after = self._engine.advance([leaf[:n] for leaf in leaves], torch.tensor(active, device=self._device))
            if n < len(users):
                after = [torch.cat([new, leaf[n:]]) for new, leaf in zip(after, leaves, strict=True)]
            leaves = after
        require_finite(leaves, users)
        self._memory.make_room(users)
        if self.remember_seen:
            for user in users:
                insert(seen.setdefault(user, array("i")), events[user])
        self._memory.write(users, leaves, seen)
        self._memory.touch(list(events))

    def _fetch(self, users: list[str]) -> tuple[list[str], list[Tensor], dict[str, array]]:
        """Reads users from memory, else through `on_miss`: those that exist, their leaves, their seen items.

        Seen items of users in memory are the arrays themselves.
        """
        found = [user for user in users if user in self._memory]
        seen = {user: self._memory.seen[user] for user in found} if self.remember_seen else {}
        leaves = self._memory.read(found)
        if self._on_miss is not None and len(found) < len(users):
            parts = [leaves]
            for user in users:
                state = None if user in self._memory else self._on_miss(user)
                if state is None:
                    continue
                packed = self._unpack(state)
                if packed.users != [user]:
                    raise InputError(f"on_miss was asked for user {user!r} and gave a state of {packed.users}.")
                found.append(user)
                seen |= packed.seen
                parts.append([leaf.to(self._device) for leaf in packed.leaves])
            leaves = [torch.cat(rows) for rows in zip(*parts, strict=True)]
        return found, leaves, seen

    def _evict(self, user: str) -> None:
        if self._on_evict is not None:
            self._on_evict(user, self._export([user]))

    def _export(self, users: list[str]) -> State:
        seen = [self._memory.seen[user] for user in users] if self.remember_seen else None
        return pack(users, self._memory.read(users), seen, self.model_hash)

    def _unpack(self, state: State) -> Packed:
        return unpack(state, self.model_hash, self._engine, len(self.catalog), self.remember_seen)


def _numbered(model: SequenceRecommender) -> Catalog:
    """A catalog whose external ids are the internal ones."""
    num_items = getattr(getattr(model, "items", model), "num_items", None)
    if not isinstance(num_items, int):
        raise TypeError(f"{type(model).__name__} does not say num_items: give the LoadedRecommender of its checkpoint.")
    return Catalog(pl.DataFrame({"item": [str(i) for i in range(1, num_items + 1)]}))


def _text(user_id: UserId) -> str:
    if isinstance(user_id, str):
        return user_id
    if isinstance(user_id, numbers.Integral):
        return str(int(user_id))
    raise TypeError(f"a user id is a string or an integer, got {type(user_id).__name__}.")


def _groups(users: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(users), size):
        yield users[start : start + size]


def _pad(rows: list[array]) -> Tensor:
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(np.array(row, dtype=np.int32))  # a copy: the array may grow later
    return out
