"""Reasoning around an encoder: its last state goes in again, K times, as one more token.

    r_0 = the encoder's state after the last item
    r_k = the encoder's state after the token Dropout(LN(r_{k-1} + p_k)),   k = 1..K

p_k is a learned position of the reasoning step. Items never see a reasoning token. Which wrapper an encoder takes:

* RecurrentReasoning, if it can go on event by event (`init_state`, `step`): a token is a step.
* AttentiveReasoning, if its only mixing is `lightrec.nn.attention.MultiHeadAttention`: keys and values of the items are
  computed once. A bidirectional encoder gets the paper's prefix mask.
* RepeatedReasoning, for any causal encoder: the whole sequence again for each token. Exact, and dear.

Shapes: B batch, L items, Q positions that reason (L, or 1 for the last), K num_steps, D hidden_size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightrec import InputError, SequenceEncoder
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.dropout import Dropout
from lightrec.nn.sequence import last_state, valid_mask
from lightrec_rearec.attention import AmbiguousPass, RememberingAttention, recording, remember, remembering_layers
from lightrec_rearec.recurrence import noting, noting_layers

Aggregate = Literal["last", "mean"]
Where = Literal["all", "last"]
_EPS = 1e-12


class ReasoningEncoder(SequenceEncoder):
    """An encoder whose state after an item is what K more steps make of it.

    `forward` gives the reasoned state after each item, `last` the one after the last item. With num_steps 0 both are
    the encoder's own, bit for bit. An encoder that sees the future reasons after the last item only; the states before
    it stay its own.

    Args:
        encoder: what is reasoned with.
        num_steps: K.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: a negative number of steps, or an encoder that this wrapper cannot reason with.
    """

    def __init__(
        self, encoder: SequenceEncoder, num_steps: int = 2, aggregate: Aggregate = "last", dropout: float = 0.2
    ):
        super().__init__()
        if num_steps < 0:
            raise InputError(f"num_steps ({num_steps}) must be at least 0: 0 is the encoder without reasoning.")
        if aggregate not in Aggregate.__args__:
            raise InputError(f"aggregate {aggregate!r} is unknown; choose {' or '.join(Aggregate.__args__)}.")
        self.encoder, self.num_steps, self.aggregate = encoder, num_steps, aggregate
        self.hidden_size, self.causal = encoder.hidden_size, encoder.causal
        if num_steps:
            self.positions = nn.Parameter(torch.empty(num_steps, self.hidden_size).normal_(std=0.02))
            self.norm, self.dropout = nn.LayerNorm(self.hidden_size, _EPS), Dropout(dropout)

    @abstractmethod
    def begin(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        """Reads prepared item vectors [B, L, D]; returns r_0 [B, Q, D] and what `go_on` needs to know."""

    @abstractmethod
    def go_on(self, token: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Reads one token a position [B, Q, D]; returns the states after them and a new memory, the old one intact."""

    def narrow(self, memory: Any, lengths: Tensor, width: int) -> Any:
        """Turns the memory of all positions into that of the last ones."""
        raise NotImplementedError

    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.encoder.prepare(x, lengths)

    def mix(self, x: Tensor, lengths: Tensor) -> Tensor:
        if not self.num_steps:
            return self.encoder.mix(x, lengths)
        if self.causal:
            return self.combine(self.think(*self.begin(x, lengths, "all")))
        hidden = self.encoder.mix(x, lengths)
        reasoned = self.combine(self.think(*self.begin(x, lengths, "last")))
        at_end = torch.arange(x.shape[1], device=x.device) == lengths[:, None] - 1
        return torch.where(at_end[..., None], reasoned, hidden)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        if not self.num_steps:
            return self.encoder.last(x, lengths)
        return self.combine(self.reason(x, lengths, "last"))[:, 0]

    def reason(self, x: Tensor, lengths: Tensor, where: Where = "last") -> Tensor:
        """Returns all states.

        Args:
            x: [B, L, D] item vectors, not prepared.
            lengths: [B].
            where: after the `last` item, or after `all` of them.

        Returns:
            [B, Q, K + 1, D]: r_0 to r_K.
        """
        return self.think(*self.start(x, lengths, where))

    def start(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        """Prepares item vectors [B, L, D] and begins: r_0 [B, Q, D] and the memory; with K = 0 r_0 is the encoder's.

        Raises:
            ValueError: all positions of an encoder that sees the future.
        """
        if where == "all" and not self.causal:
            raise ValueError(
                f"{type(self.encoder).__name__} sees the future, so a loss at all positions would leak the target: "
                "use positions='last' with train_windows='prefixes'."
            )
        if not self.num_steps:
            if where == "all":
                return self.encoder(x, lengths), None
            return self.encoder.last(x, lengths)[:, None], None
        return self._start(x, lengths, where)

    def _start(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        return self.begin(self.encoder.prepare(x, lengths), lengths, where)

    def think(self, first: Tensor, memory: Any, clean: Tensor | None = None, noise_std: float = 0.0) -> Tensor:
        """Goes on K times from r_0.

        Args:
            first: [B, Q, D], r_0.
            memory: of `start` or `begin`.
            clean: [B, Q, K + 1, D]: make each token from these states instead of those of this pass (the noisy branch
                of PRL, in which noise does not pile up, but tokens see the noisy ones before them).
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
    """Reasoning with an encoder of self-attention: keys and values of the items are computed once.

    The encoder's attention layers learn to remember; without reasoning they compute what they did before. Everything
    else in it must work position by position, which is tried once, here.

    Args:
        encoder: of `lightrec.nn.attention.MultiHeadAttention`, causal or not.
        num_steps: K.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: a negative number of steps, or an encoder that mixes in another way.
    """

    def __init__(
        self, encoder: SequenceEncoder, num_steps: int = 2, aggregate: Aggregate = "last", dropout: float = 0.2
    ):
        super().__init__(encoder, num_steps, aggregate, dropout)
        if num_steps:
            self._layers = remembering_layers(encoder)
            if not self._layers or not self._works_by_position():
                raise InputError(_not_attention(encoder))

    def _start(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        if where == "all":
            return super()._start(x, lengths, where)
        # the encoder's own way to the last state, which leaves out what is not read
        return self._record(lambda: self.encoder.last(x, lengths)[:, None], lengths, x.shape[1], where)

    def begin(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        def run() -> Tensor:
            hidden = self.encoder.mix(x, lengths)
            return hidden if where == "all" else last_state(hidden, lengths)[:, None]

        return self._record(run, lengths, x.shape[1], where)

    def _record(self, run, lengths: Tensor, width: int, where: Where) -> tuple[Tensor, Any]:
        with recording(self._layers) as heard:
            first = run()
        visible = self._visible(lengths, width, where)
        return first, [remember(*pair, visible) for pair in zip(self._layers, heard, strict=True)]

    @staticmethod
    def _visible(lengths: Tensor, width: int, where: Where) -> Tensor:
        if where == "last":
            return valid_mask(lengths, width)[:, None, None, :]
        return torch.ones(width, width, dtype=torch.bool, device=lengths.device).tril()[None, None]

    def go_on(self, token: Tensor, memory: Any) -> tuple[Tensor, Any]:
        ones = torch.full((len(token),), token.shape[1], device=token.device)
        for layer, remembered in zip(self._layers, memory, strict=True):
            layer.remembered = remembered
        try:
            state = self.encoder.mix(token, ones)
            following = [layer.remembered for layer in self._layers]
        finally:
            for layer in self._layers:
                layer.remembered = None
        return state, following

    def narrow(self, memory: Any, lengths: Tensor, width: int) -> Any:
        visible = self._visible(lengths, width, "last")
        return [replace(layer, visible=visible) for layer in memory]

    @torch.no_grad()
    def _works_by_position(self) -> bool:
        """Tries whether tokens change the state of one between them: then more than attention mixes positions."""
        training, generator = self.encoder.training, torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, self.hidden_size, generator=generator).to(next(self.encoder.parameters()))
        lengths = torch.full((2,), 3, device=x.device)
        other = x.flip(0) + 1.0
        other[:, 1] = x[:, 1]
        self.encoder.eval()
        try:
            where = "all" if self.causal else "last"
            _, memory = self.begin(x, lengths, where)
            if where == "last":
                memory = [replace(layer, visible=layer.visible.expand(-1, -1, 3, -1)) for layer in memory]
            alone, beside = (self.go_on(tokens, memory)[0][:, 1] for tokens in (x, other))
        except AmbiguousPass:
            return False
        finally:
            self.encoder.train(training)
        return torch.allclose(alone, beside, rtol=1e-4, atol=1e-5)


class RecurrentReasoning(ReasoningEncoder):
    """Reasoning with an encoder that goes on event by event: a reasoning token is one more step from its state.

    The history is read whole where its layers can note their state (a GRU, a Mamba mixer), else by steps, too; so it
    is where all positions reason. The wrapper goes on event by event itself: its state is the encoder's, and reasoning
    begins anew after each event.

    Args:
        encoder: causal, with `init_state` and `step`.
        num_steps: K.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: a negative number of steps, or an encoder that cannot step.
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

        self._layers = noting_layers(encoder) if num_steps else []
        self._notes_agree = bool(self._layers) and self._notes_are_steps()

    def _start(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        if where == "all" or not self._notes_agree:
            return super()._start(x, lengths, where)
        # the encoder's own way to the last state, which leaves out what is not read
        return self._noted(lambda: self.encoder.last(x, lengths), lengths)

    def begin(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        if where == "last" and self._notes_agree:
            return self._noted(lambda: last_state(self.encoder.mix(x, lengths), lengths), lengths)
        return self._stepped(x, lengths, where)

    def _noted(self, run: Callable[[], Tensor], lengths: Tensor) -> tuple[Tensor, Any]:
        """Reads whole sequences: r_0 [B, 1, D] and the state after the last real item."""
        with noting(self._layers, lengths) as heard:
            first = run()
        state = self.encoder.init_state(1, first.device)
        return first[:, None], pytree.tree_unflatten(
            [n for notes in heard for n in notes], pytree.tree_structure(state)
        )

    def _stepped(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        """Reads event by event."""
        state, hidden, first = self.encoder.init_state(len(x), x.device), [], None
        states = []
        for t in range(x.shape[1]):
            new, after = self.encoder.step(x[:, t], state)
            if where == "all":
                hidden.append(new)
                states.append(after)
                state = after
                continue
            going = lengths > t
            first = new if first is None else _choose(going, new, first)
            state = after if t == 0 else pytree.tree_map(lambda a, b, going=going: _choose(going, a, b), after, state)
        if where == "last":
            return first[:, None], state
        leaves = [pytree.tree_leaves(s) for s in states]
        stacked = [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*leaves, strict=True)]
        return torch.stack(hidden, 1), pytree.tree_unflatten(stacked, pytree.tree_structure(states[0]))

    def go_on(self, token: Tensor, memory: Any) -> tuple[Tensor, Any]:
        state, memory = self.encoder.step(token.flatten(0, 1), memory)
        return state.unflatten(0, token.shape[:2]), memory

    def narrow(self, memory: Any, lengths: Tensor, width: int) -> Any:
        return pytree.tree_map(lambda s: last_state(s.unflatten(0, (len(lengths), width)), lengths), memory)

    def init_state(self, batch_size: int, device: torch.device | None = None) -> Any:
        return self.encoder.init_state(batch_size, device)

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = self.encoder.step(x_t, state)
        if not self.num_steps:
            return hidden, state
        return self.combine(self.think(hidden[:, None], state))[:, 0], state

    @torch.no_grad()
    def _notes_are_steps(self) -> bool:
        """Tries whether what the layers note is the state that steps reach."""
        training, generator = self.encoder.training, torch.Generator().manual_seed(0)
        x = torch.randn(2, 6, self.hidden_size, generator=generator).to(next(self.encoder.parameters()))
        lengths = torch.tensor([6, 2], device=x.device)
        self.encoder.eval()
        try:
            with noting(self._layers, lengths) as heard:
                first = last_state(self.encoder.mix(x, lengths), lengths)
            second, state = self._stepped(x, lengths, "last")
        finally:
            self.encoder.train(training)
        expected = [second[:, 0], *pytree.tree_leaves(state)]
        found = [first, *(note for notes in heard for note in notes)]
        return len(found) == len(expected) and all(
            a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-3, atol=1e-5)
            for a, b in zip(found, expected, strict=True)
        )


class RepeatedReasoning(ReasoningEncoder):
    """Reasoning that encodes the whole sequence again for each token: for any causal encoder, and to compare with.

    Args:
        encoder: causal.
        num_steps: K.
        aggregate: the state that ranks: the `last` of the K + 1, or their `mean`.
        dropout: of the reasoning tokens.

    Raises:
        InputError: a negative number of steps, or an encoder that is not causal.
    """

    def __init__(
        self, encoder: SequenceEncoder, num_steps: int = 2, aggregate: Aggregate = "last", dropout: float = 0.2
    ):
        super().__init__(encoder, num_steps, aggregate, dropout)
        if num_steps and not encoder.causal:
            raise InputError(_not_causal(encoder))

    def begin(self, x: Tensor, lengths: Tensor, where: Where) -> tuple[Tensor, Any]:
        hidden = self.encoder.mix(x, lengths)
        if where == "last":
            return last_state(hidden, lengths)[:, None], (x, lengths)
        # one row a position: its prefix, of which what follows is never seen
        B, L, D = x.shape
        rows = x[:, None].expand(B, L, L, D).reshape(B * L, L, D)
        return hidden, (rows, torch.arange(1, L + 1, device=x.device).repeat(B))

    def go_on(self, token: Tensor, memory: Any) -> tuple[Tensor, Any]:
        x, lengths = memory
        x = torch.cat([x, x.new_zeros(len(x), 1, x.shape[2])], 1)
        here = torch.arange(x.shape[1], device=x.device) == lengths[:, None]
        x = torch.where(here[..., None], token.reshape(len(x), 1, -1), x)
        hidden = last_state(self.encoder.mix(x, lengths + 1), lengths + 1)
        return hidden.view(token.shape), (x, lengths + 1)

    def narrow(self, memory: Any, lengths: Tensor, width: int) -> Any:
        rows, _ = memory
        return last_state(rows.unflatten(0, (len(lengths), width)), lengths), lengths


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
        num_steps: K.
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
    elif not num_steps or _attends(encoder):
        kind = AttentiveReasoning
    else:
        raise InputError(_not_causal(encoder) if not encoder.causal else _not_attention(encoder))
    return kind(encoder, num_steps, aggregate, dropout)


def _choose(going: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(going.view(-1, *[1] * (new.dim() - 1)), new, old)


def _steps(encoder: SequenceEncoder) -> bool:
    kind = type(encoder)
    return kind.step is not SequenceEncoder.step and kind.init_state is not SequenceEncoder.init_state


def _attends(encoder: SequenceEncoder) -> bool:
    return any(type(module) in (MultiHeadAttention, RememberingAttention) for module in encoder.modules())


def _not_attention(encoder: SequenceEncoder) -> str:
    remedy = (
        "set repeat: true, which encodes the sequence again for each step" if encoder.causal else "take a causal one"
    )
    return (
        f"{type(encoder).__name__} cannot take a reasoning step: it has no init_state and step, and it mixes positions "
        f"otherwise than by lightrec.nn.attention.MultiHeadAttention; {remedy}."
    )


def _not_causal(encoder: SequenceEncoder) -> str:
    return (
        f"{type(encoder).__name__} sees the future, so a step behind its items would change their states: "
        "take a causal encoder, or one of lightrec.nn.attention.MultiHeadAttention, which gets the prefix mask."
    )
