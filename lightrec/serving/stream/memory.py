"""The users in memory: rows of a few growing tensors, a bounded number, the least recently used leaves first."""

from __future__ import annotations

import bisect
from array import array
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor


class Memory:
    """Keeps leaves and seen items of users.

    Args:
        blank: leaves [1, ...] of a user without an event.
        max_users: users kept.
        remember_seen: keep seen items, too.
        on_drop: called with a user before it makes room for another.
    """

    def __init__(self, blank: list[Tensor], max_users: int, remember_seen: bool, on_drop: Callable[[str], None]):
        self.max_users, self.remember_seen = max_users, remember_seen
        self.seen: dict[str, array] = {}
        """Of each user: sorted item ids, each once, as int32."""
        self.slots: OrderedDict[str, int] = OrderedDict()
        """Row of each user; least recently used first."""
        self._on_drop = on_drop
        self._free: list[int] = []
        self._pools = [leaf[:0] for leaf in blank]
        self._device = blank[0].device

    def __contains__(self, user: str) -> bool:
        return user in self.slots

    def __len__(self) -> int:
        return len(self.slots)

    def read(self, users: list[str]) -> list[Tensor]:
        """Copies leaves [users, ...] of users in memory."""
        rows = self._rows(users)
        return [pool[rows] for pool in self._pools]

    def touch(self, users: list[str]) -> None:
        """Makes users in memory the last to leave, the last one the very last."""
        for user in users:
            self.slots.move_to_end(user)

    def make_room(self, users: list[str]) -> None:
        """Drops others until `users`, at most max_users, all fit; nothing is lost if `on_drop` raises."""
        present = [user for user in users if user in self.slots]
        self.touch(present)
        new = len(users) - len(present)
        while len(self.slots) + new > self.max_users:
            oldest = next(iter(self.slots))
            self._on_drop(oldest)
            self.drop(oldest)
        if len(self._free) < new:
            self._grow(new - len(self._free))

    def write(self, users: list[str], leaves: list[Tensor], seen: dict[str, array]) -> None:
        """Writes leaves [users, ...] and seen items of users for whom there is room."""
        for user in users:
            if user not in self.slots:
                self.slots[user] = self._free.pop()
            if self.remember_seen:
                self.seen[user] = seen[user]
        rows = self._rows(users)
        for pool, leaf in zip(self._pools, leaves, strict=True):
            pool.index_copy_(0, rows, leaf)

    def drop(self, user: str) -> None:
        """Forgets a user in memory."""
        self._free.append(self.slots.pop(user))
        self.seen.pop(user, None)

    def _rows(self, users: list[str]) -> Tensor:
        return torch.tensor([self.slots[user] for user in users], dtype=torch.long, device=self._device)

    def _grow(self, needed: int) -> None:
        """Adds free rows: doubles, so that a user is copied a constant number of times."""
        size = len(self._pools[0])
        more = min(max(needed, size, 16), self.max_users - size)
        self._pools = [torch.cat([pool, pool.new_zeros(more, *pool.shape[1:])]) for pool in self._pools]
        self._free.extend(range(size + more - 1, size - 1, -1))


def insert(items: array, new: list[int]) -> None:
    """Adds item ids to a sorted array, each once."""
    for item_id in new:
        place = bisect.bisect_left(items, item_id)
        if place == len(items) or items[place] != item_id:
            items.insert(place, item_id)
