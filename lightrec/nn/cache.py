"""What the layers of a network know of a sequence, so that one more token costs one position and not the sequence.

    cache = Cache(lengths)
    hidden = network(x, lengths, cache)         whole sequences [B, L, D]; each layer keeps what it will need
    cache = cache.following()
    state = network(token, lengths, cache)      [B, 1, D], a token behind the last real item of each row

A cache belongs to one pass of the network. A layer writes its own entry once, and reads what it wrote in the pass
before. A pass never changes an older cache, so several continuations may start from the same one.

A row may go on in several branches [B, Q, D]. A branch sees the items and its own tokens. Branches do not see each
other, and items see no token: these are the beams of a search, or a continuation after every position of a window.

Shapes: B batch, L length, Q branches, D hidden_size, H num_heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightrec.nn.sequence import valid_mask

Begin = Literal["last", "each"]


@dataclass(frozen=True)
class KeysAndValues:
    """What a layer of attention keeps."""

    key: Tensor
    """[B, H, L, D / H], of the items."""
    value: Tensor
    """[B, H, L, D / H]."""
    tokens: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values [B, H, Q, D / H] of each token, oldest first."""

    def with_token(self, key: Tensor, value: Tensor) -> KeysAndValues:
        """Returns the same with one more token per branch, [B, H, Q, D / H] each."""
        return replace(self, tokens=(*self.tokens, (key, value)))

    def select(self, branches: Tensor) -> KeysAndValues:
        """Returns the chosen branches [B, Q]."""
        tokens = tuple((_pick(k.transpose(1, 2), branches), _pick(v.transpose(1, 2), branches)) for k, v in self.tokens)
        return replace(self, tokens=tuple((k.transpose(1, 2), v.transpose(1, 2)) for k, v in tokens))


@dataclass(frozen=True)
class State:
    """What a recurrence or a convolution keeps: its state after the last item or token."""

    nest: Any
    """Tensors [B, Q, ...] in any nest of lists, tuples and dicts; Q is 1 where branches have not parted."""

    def select(self, branches: Tensor) -> State:
        """Returns the chosen branches [B, Q]."""
        return State(pytree.tree_map(lambda t: _pick(t, branches), self.nest))


Entry = KeysAndValues | State


class Cache:
    """The entries of all layers of a network, written in one pass and read in the next.

    Args:
        lengths: [B], of the sequences that the first pass reads.
        begin: where branches begin: behind the `last` item of each row, or behind `each` position of it.
    """

    def __init__(self, lengths: Tensor, begin: Begin = "last"):
        self.lengths, self.begin = lengths, begin
        self._past: dict[nn.Module, Entry] = {}
        self._kept: dict[nn.Module, Entry] = {}
        self._visible: Tensor | None = None

    def past(self, layer: nn.Module) -> Any:
        """Returns what a layer kept in the pass before; None in the first pass, which reads whole sequences.

        Raises:
            RuntimeError: the layer did not run in the pass before.
        """
        if not self._past:
            return None
        if layer not in self._past:
            raise RuntimeError(f"{type(layer).__name__} kept nothing in the pass before, so it cannot go on.")
        return self._past[layer]

    def keep(self, layer: nn.Module, entry: Entry) -> None:
        """Takes the entry of a layer.

        Raises:
            RuntimeError: the layer runs a second time in this pass, so that one entry cannot stand for it.
        """
        if layer in self._kept:
            raise RuntimeError(f"{type(layer).__name__} ran twice in one pass: give each run a layer of its own.")
        self._kept[layer] = entry

    def visible(self, width: int) -> Tensor:
        """Returns which of `width` items each branch sees: [B or 1, 1, Q or 1, L] bool, to mask scores of attention."""
        if self._visible is None:
            if self.begin == "last":
                self._visible = valid_mask(self.lengths, width)[:, None, None]
            else:
                everywhere = torch.ones(width, width, dtype=torch.bool, device=self.lengths.device)
                self._visible = everywhere.tril()[None, None]
        return self._visible

    def recur(
        self,
        layer: nn.Module,
        x: Tensor,
        whole: Callable[[Tensor], tuple[Tensor, Any]],
        step: Callable[[Tensor, Any], tuple[Tensor, Any]],
    ) -> Tensor:
        """Runs a recurrent layer: over whole sequences in the first pass, later by one step per branch.

        Args:
            layer: whose state is kept.
            x: [B, L, D], or tokens [B, Q, D].
            whole: takes x; returns the output [B, L, D] and the state [B, ...] after the last real item.
            step: takes tokens [N, D] and a state [N, ...]; returns the output [N, D] and the new state.

        Returns:
            The output, shaped as x.

        Raises:
            NotImplementedError: branches begin behind each position, and a recurrent layer keeps its last state only.
        """
        past = self.past(layer)
        if past is not None:
            rows = pytree.tree_map(lambda t: t.expand(-1, x.shape[1], *t.shape[2:]).flatten(0, 1), past.nest)
            out, state = step(x.flatten(0, 1), rows)
            self.keep(layer, State(pytree.tree_map(lambda t: t.unflatten(0, x.shape[:2]), state)))
            return out.unflatten(0, x.shape[:2])
        if self.begin == "each":
            raise NotImplementedError(
                f"{type(layer).__name__} keeps the state after the last item only: read the sequence event by event."
            )
        out, state = whole(x)
        self.keep(layer, State(pytree.tree_map(lambda t: t[:, None], state)))
        return out

    def state(self, layer: nn.Module) -> Any:
        """Returns the state [B, ...] that a recurrent layer kept in this pass, where a row has one branch."""
        return pytree.tree_map(lambda t: t.squeeze(1), self._kept[layer].nest)

    def following(self) -> Cache:
        """Returns the cache of the next pass.

        Raises:
            RuntimeError: no layer kept anything in this pass.
        """
        if not self._kept:
            raise RuntimeError("no layer kept anything: the network must hand its cache on to each of its layers.")
        made = self._changed(lambda entry: entry)
        made._past, made._kept = made._kept, {}
        return made

    def at_last(self) -> Cache:
        """Returns this cache, of a first pass, with one branch per row: that behind the last item.

        Raises:
            RuntimeError: tokens were read, which belong to the branches of other positions.
        """
        if self._past:
            raise RuntimeError("at_last is for the cache of a first pass, and this one has read tokens.")
        made = self._changed(lambda entry: entry)
        made.begin, made._visible = "last", None
        return made

    def select(self, branches: Tensor) -> Cache:
        """Returns this cache with the branches [B, Q] that are chosen among those of each row, in that order."""
        return self._changed(lambda entry: entry.select(branches))

    def _changed(self, change: Callable[[Entry], Entry]) -> Cache:
        made = Cache(self.lengths, self.begin)
        made._visible = self._visible
        made._kept = {layer: change(entry) for layer, entry in self._kept.items()}
        return made


def _pick(t: Tensor, branches: Tensor) -> Tensor:
    """[B, Q, ...] -> [B, Q', ...]."""
    return t[torch.arange(len(t), device=t.device)[:, None], branches]
