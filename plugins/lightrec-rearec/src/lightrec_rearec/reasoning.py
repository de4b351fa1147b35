"""Reasoning around an encoder: its last state goes in again, K times, as one more token.

    r_0 = the encoder's state after the last item
    r_k = the encoder's state after the token Dropout(LN(r_{k-1} + p_k)),   k = 1..K

p_k is a learned position of the reasoning step. Items never see a reasoning token. Which wrapper an encoder takes:

* RecurrentReasoning, if it can go on event by event (`init_state`, `step`). A token is a step.
* AttentiveReasoning, if its `mix` and `last` take a `lightrec.nn.cache.Cache`. What is known of the items is computed
  once. A bidirectional encoder gets the paper's prefix mask.
* RepeatedReasoning, for any causal encoder. The whole sequence is encoded again for each token: exact, and dear.

Shapes: B batch, L items, Q positions that reason (L, or 1 for the last), K num_steps, D hidden_size.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightrec import History, InputError, SequenceEncoder
from lightrec.configurable import AtLeast
from lightrec.nn.cache import Cache
from lightrec.nn.dropout import Dropout
from lightrec.nn.sequence import last_state
from lightrec.objectives.next_item import check_causal

Aggregate = Literal["last", "mean"]
Where = Literal["all", "last"]
_EPS = 1e-12


class ReasoningEncoder(SequenceEncoder):
    """An encoder whose state after an item is what K more steps make of it.

    `forward` gives the reasoned state after each item, `last` the one after the last item. With num_steps 0 both are
    the encoder's own, bit for bit. An encoder that sees the future reasons after the last item only. The states before
    it stay its own.

    Args:
        encoder: what is reasoned with.
        num_steps: K; 0 is the encoder without reasoning.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: an encoder that this wrapper cannot reason with.
    """

    limits: ClassVar = {"num_steps": AtLeast(0)}

    def __init__(
        self, encoder: SequenceEncoder, num_steps: int = 2, aggregate: Aggregate = "last", dropout: float = 0.2
    ):
        super().__init__()
        self.encoder, self.num_steps, self.aggregate = encoder, num_steps, aggregate
        self.hidden_size, self.causal = encoder.hidden_size, encoder.causal
        if num_steps:
            self.positions = nn.Parameter(torch.empty(num_steps, self.hidden_size).normal_(std=0.02))
            self.norm, self.dropout = nn.LayerNorm(self.hidden_size, _EPS), Dropout(dropout)

    @abstractmethod
    def begin(self, history: History, where: Where) -> tuple[Tensor, Any]:
        """Reads an entered history; returns r_0 [B, Q, D] and what `go_on` needs to know."""

    @abstractmethod
    def go_on(self, token: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Reads one token per position [B, Q, D]; returns their states, and a new memory beside the old one."""

    @abstractmethod
    def narrow(self, memory: Any, lengths: Tensor) -> Any:
        """Turns the memory of all positions, before any token, into that of the last ones."""

    def enter(self, history: History) -> History:
        return self.encoder.enter(history)

    def mix(self, history: History) -> Tensor:
        if not self.num_steps:
            return self.encoder.mix(history)
        if self.causal:
            return self.combine(self.think(*self.begin(history, "all")))
        hidden = self.encoder.mix(history)
        reasoned = self.combine(self.think(*self.begin(history, "last")))
        at_end = torch.arange(hidden.shape[1], device=hidden.device) == history.lengths[:, None] - 1
        return torch.where(at_end[..., None], reasoned, hidden)

    def last(self, history: History) -> Tensor:
        if not self.num_steps:
            return self.encoder.last(history)
        return self.combine(self.reason(history))[:, 0]

    def reason(self, history: History, where: Where = "last") -> Tensor:
        """Returns all states r_0 to r_K, [B, Q, K + 1, D].

        Args:
            history: not entered.
            where: after the `last` item, or after `all` of them.
        """
        return self.think(*self.start(history, where))

    def start(self, history: History, where: Where) -> tuple[Tensor, Any]:
        """Enters a history and begins: r_0 [B, Q, D] and the memory; with K = 0 r_0 is the encoder's state.

        Raises:
            ValueError: all positions of an encoder that sees the future.
        """
        if where == "all":
            check_causal(self.encoder)
        if self.num_steps:
            return self._start(history, where)
        if where == "all":
            return self.encoder(history), None
        return self.encoder.last(history)[:, None], None

    def _start(self, history: History, where: Where) -> tuple[Tensor, Any]:
        return self.begin(self.encoder.enter(history), where)

    def think(self, first: Tensor, memory: Any, clean: Tensor | None = None, noise_std: float = 0.0) -> Tensor:
        """Goes on K times from r_0.

        Args:
            first: [B, Q, D], r_0.
            memory: of `start` or `begin`.
            clean: [B, Q, K + 1, D], to make each token from these states instead of those of this pass. It is the
                noisy branch of PRL: noise does not pile up, but tokens see the noisy ones before them.
            noise_std: standard deviation of the noise that is added to each token.

        Returns:
            [B, Q, K + 1, D].
        """
        states = [first]
        for k in range(self.num_steps):
            token = (states[-1] if clean is None else clean[:, :, k]) + self.positions[k]
            if noise_std:
                token = token + noise_std * torch.randn_like(token)
            state, memory = self.go_on(self.dropout(self.norm(token)), memory)
            states.append(state)
        return torch.stack(states, 2)

    def combine(self, states: Tensor) -> Tensor:
        """Returns the state that ranks: [..., K + 1, D] -> [..., D]."""
        return states[..., -1, :] if self.aggregate == "last" else states.mean(-2)


class AttentiveReasoning(ReasoningEncoder):
    """Reasoning with an encoder whose layers keep a cache: keys and values of the items are computed once.

    Args:
        encoder: causal or not; its `mix` and `last` take a cache.
        num_steps: K; 0 is the encoder without reasoning.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: an encoder that takes no cache.
    """

    def __init__(
        self, encoder: SequenceEncoder, num_steps: int = 2, aggregate: Aggregate = "last", dropout: float = 0.2
    ):
        super().__init__(encoder, num_steps, aggregate, dropout)
        if num_steps and not _takes_cache(encoder):
            raise InputError(_no_way(encoder))

    def _start(self, history: History, where: Where) -> tuple[Tensor, Any]:
        if where == "all":
            return super()._start(history, where)
        cache = Cache(history.lengths)
        # the encoder's own way to the last state, which leaves out what is not read
        return self.encoder.last(history, cache)[:, None], cache

    def begin(self, history: History, where: Where) -> tuple[Tensor, Any]:
        cache = Cache(history.lengths, begin="each" if where == "all" else "last")
        hidden = self.encoder.mix(history, cache)
        return hidden if where == "all" else history.last(hidden)[:, None], cache

    def go_on(self, token: Tensor, memory: Cache) -> tuple[Tensor, Cache]:
        cache = memory.following()
        return self.encoder.mix(_alone(token), cache), cache

    def narrow(self, memory: Cache, lengths: Tensor) -> Cache:
        return memory.at_last()


class RecurrentReasoning(ReasoningEncoder):
    """Reasoning with an encoder that goes on event by event: a reasoning token is one more step from its state.

    The history is read at once where the encoder knows how (`read`). Where all positions reason, it is read by steps,
    since the state after each event is needed. The wrapper goes on event by event itself: its state is the encoder's,
    and reasoning begins anew after each event.

    Args:
        encoder: causal, with `init_state` and `step`.
        num_steps: K; 0 is the encoder without reasoning.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: an encoder that cannot step.
    """

    def __init__(
        self, encoder: SequenceEncoder, num_steps: int = 2, aggregate: Aggregate = "last", dropout: float = 0.2
    ):
        super().__init__(encoder, num_steps, aggregate, dropout)
        if num_steps and not _steps(encoder):
            raise InputError(
                f"{type(encoder).__name__} cannot go on event by event (it has no init_state and step): take "
                "AttentiveReasoning, or let ReaRec choose."
            )

    def begin(self, history: History, where: Where) -> tuple[Tensor, Any]:
        if where == "last":
            first, state = self._read(history)
            return first[:, None], state
        state, hidden, states = self.encoder.init_state(len(history.x), history.x.device), [], []
        for x_t in history.x.unbind(1):
            new, state = self.encoder.step(x_t, state)
            hidden.append(new)
            states.append(state)
        return torch.stack(hidden, 1), pytree.tree_map(lambda *parts: torch.stack(parts, 1).flatten(0, 1), *states)

    def _read(self, history: History) -> tuple[Tensor, Any]:
        """Reads an entered history, by a `read` that knows the encoder's `step`, else event by event."""
        kind = type(self.encoder)
        known = _owner(kind, "read")
        return (known if issubclass(known, _owner(kind, "step")) else SequenceEncoder).read(self.encoder, history)

    def go_on(self, token: Tensor, memory: Any) -> tuple[Tensor, Any]:
        state, memory = self.encoder.step(token.flatten(0, 1), memory)
        return state.unflatten(0, token.shape[:2]), memory

    def narrow(self, memory: Any, lengths: Tensor) -> Any:
        return pytree.tree_map(lambda s: last_state(s.unflatten(0, (len(lengths), -1)), lengths), memory)

    def init_state(self, batch_size: int, device: torch.device | None = None) -> Any:
        return self.encoder.init_state(batch_size, device)

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = self.encoder.step(x_t, state)
        if not self.num_steps:
            return hidden, state
        return self.combine(self.think(hidden[:, None], state))[:, 0], state


class RepeatedReasoning(ReasoningEncoder):
    """Reasoning that encodes the whole sequence again for each token: for any causal encoder, and to compare with.

    A token stands behind the last item and has what else is known of that item: its time and its columns.

    Args:
        encoder: causal.
        num_steps: K; 0 is the encoder without reasoning.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: an encoder that is not causal.
    """

    def __init__(
        self, encoder: SequenceEncoder, num_steps: int = 2, aggregate: Aggregate = "last", dropout: float = 0.2
    ):
        super().__init__(encoder, num_steps, aggregate, dropout)
        if num_steps and not encoder.causal:
            raise InputError(_no_way(encoder))

    def begin(self, history: History, where: Where) -> tuple[Tensor, History]:
        hidden = self.encoder.mix(history)
        if where == "last":
            return history.last(hidden)[:, None], history
        # one row per position: its prefix, of which what follows is never seen
        B, L = history.x.shape[:2]
        rows = _each(history, lambda t: t[:, None].expand(B, L, *t.shape[1:]).flatten(0, 1))
        return hidden, rows._replace(lengths=torch.arange(1, L + 1, device=hidden.device).repeat(B))

    def go_on(self, token: Tensor, memory: History) -> tuple[Tensor, History]:
        rows, width = torch.arange(len(memory.x), device=token.device)[:, None], memory.x.shape[1] + 1
        # each event at its place, and the last one again where the token goes
        places = torch.arange(width, device=token.device).minimum(memory.lengths[:, None] - 1)
        longer = _each(memory, lambda t: t[rows, places])
        here = torch.arange(width, device=token.device) == memory.lengths[:, None]
        x = torch.where(here[..., None], token.reshape(len(memory.x), 1, -1), longer.x)
        longer = longer._replace(x=x, lengths=memory.lengths + 1)
        return longer.last(self.encoder.mix(longer)).view(token.shape), longer

    def narrow(self, memory: History, lengths: Tensor) -> History:
        rows = _each(memory, lambda t: last_state(t.unflatten(0, (len(lengths), -1)), lengths))
        return rows._replace(lengths=lengths)


def reason_with(
    encoder: SequenceEncoder,
    num_steps: int = 2,
    aggregate: Aggregate = "last",
    dropout: float = 0.2,
    repeat: bool = False,
) -> ReasoningEncoder:
    """Chooses the wrapper for an encoder.

    Args:
        encoder: what is reasoned with.
        num_steps: K; 0 is the encoder without reasoning.
        aggregate: the state that ranks.
        dropout: of the reasoning tokens.
        repeat: encode the whole sequence again for each step instead of keeping what is known.

    Raises:
        InputError: a negative number of steps, or an encoder that nothing here can reason with.
    """
    if repeat:
        kind = RepeatedReasoning
    elif _steps(encoder):
        kind = RecurrentReasoning
    else:
        kind = AttentiveReasoning
    return kind(encoder, num_steps, aggregate, dropout)


def _alone(token: Tensor) -> History:
    """Tokens [B, Q, D] as a history without padding."""
    return History(token, torch.full((len(token),), token.shape[1], device=token.device))


def _each(history: History, change: Callable[[Tensor], Tensor]) -> History:
    """Changes all that is known of each event, tensors [B, L, ...] in the same way; lengths stay."""
    changed = pytree.tree_map(lambda t: None if t is None else change(t), history._replace(lengths=None))
    return changed._replace(lengths=history.lengths)


def _owner(kind: type, method: str) -> type:
    """The class that defines a method of `kind`."""
    return next(base for base in kind.__mro__ if method in vars(base))


def _steps(encoder: SequenceEncoder) -> bool:
    kind = type(encoder)
    return kind.step is not SequenceEncoder.step and kind.init_state is not SequenceEncoder.init_state


def _takes_cache(encoder: SequenceEncoder) -> bool:
    return all("cache" in inspect.signature(method).parameters for method in (encoder.mix, encoder.last))


def _no_way(encoder: SequenceEncoder) -> str:
    name = type(encoder).__name__
    if not encoder.causal:
        return (
            f"{name} sees the future, so a step behind its items would change their states: take a causal encoder, or "
            "one whose mix and last take a cache, which gets the prefix mask."
        )
    return (
        f"{name} cannot take a reasoning step: it has no init_state and step, and its mix and last take no cache; set "
        "repeat: true, which encodes the sequence again for each step."
    )
