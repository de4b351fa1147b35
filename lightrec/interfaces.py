"""The parts of a recommender, on one page: ItemTable, SequenceEncoder, Objective, Search. Read this first.

    item_ids [B, L] --ItemTable--> x [B, L, D] --SequenceEncoder--> hidden [B, L, D] --Search--> item_ids [B, K]

An Objective says what is asked of a history while training. Each line of code belongs to the part whose tensor it
changes. An item is an integer everywhere. Its vector, sentence or code is the private knowledge of its ItemTable.

Shapes: B batch, L length, D hidden_size, V vocabulary = num_items + 1 (column 0 is padding), K list length, T targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from lightrec.data.batch import Batch
from lightrec.ops.blocks import rows_that_fit
from lightrec.ops.linear_cross_entropy import linear_cross_entropy
from lightrec.part import Part


class History(NamedTuple):
    """What an encoder reads: item vectors in order of time, and what else is known of each event."""

    x: Tensor
    """[B, L, D], padded on the right."""
    lengths: Tensor
    """[B], the only mask."""
    timestamps: Tensor | None = None
    """[B, L] int64, seconds since the epoch of each event; None where the data have none."""
    query_times: Tensor | None = None
    """[B, L] int64, seconds since the epoch for which the state after each event is asked; None is the event's own."""
    columns: dict[str, Tensor] = {}  # noqa: RUF012 - a NamedTuple's default, never changed
    """What else the log holds, each [B, L, ...]."""

    @property
    def mask(self) -> Tensor:
        """[B, L] bool, True at real positions."""
        return torch.arange(self.x.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def last(self, hidden: Tensor) -> Tensor:
        """Returns [B, ...], what hidden [B, L, ...] holds at the last real position."""
        return hidden[torch.arange(len(self.lengths), device=hidden.device), self.lengths - 1]

    def cut(self, length: int) -> History:
        """Returns the first `length` positions."""

        def first(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[:, :length]

        columns = {name: column[:, :length] for name, column in self.columns.items()}
        lengths = self.lengths.clamp_max(length)
        return History(self.x[:, :length], lengths, first(self.timestamps), first(self.query_times), columns)


class LinearHead(NamedTuple):
    """Scores that are `hidden @ weight.T + bias`, which is what search and export can make use of."""

    hidden: Tensor
    """[..., D], the state as it enters the product (normalised or scaled, where the geometry asks for it)."""
    weight: Tensor
    """[num_items, D]; row i belongs to item i + 1, since padding is not a candidate."""
    bias: Tensor | None
    """[num_items] or None."""


class ItemTable(Part, ABC):
    """The one owner of the catalog: vectors for items, scores for states, and the loss over all items.

    Embedding and head are one object because they must agree on tying and geometry (dot, cosine, hyperbolic distance).
    A logit column is an item id. Column 0 is -inf. Special ids (a mask) live above num_items and are never scored.
    """

    num_items: int
    hidden_size: int
    head_dtype: torch.dtype | None = None
    """Dtype of the matrix products with the catalog while training; None is that of the weights, or of autocast."""

    @abstractmethod
    def forward(self, item_ids: Tensor) -> Tensor:
        """Maps ids [...] to vectors [..., D]; padding maps to zeros."""

    @abstractmethod
    def score(self, hidden: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
        """Scores states against the catalog.

        Args:
            hidden: [..., D].
            candidate_ids: None for all items; [C] for a list shared by all states; [..., C] for one each.

        Returns:
            [..., V] with column 0 at -inf, or [..., C].
        """

    def linear_head(self, hidden: Tensor) -> LinearHead | None:
        """Returns the factors of the score if it is affine in the state, else None."""
        return None

    def cross_entropy(self, hidden: Tensor, target_ids: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        """Sums the full-softmax cross-entropy of hidden [T, D] against target_ids [T].

        Scores are divided by the temperature. A linear head takes the fused op. Other scores are made in blocks of
        rows, and made again in the backward pass, so that memory is bounded for any catalog. A table that knows a
        better way overrides this.
        """
        head = self.linear_head(hidden)
        if head is not None:
            state, bias = head.hidden, head.bias
            if isinstance(temperature, Tensor) or temperature != 1.0:
                state, bias = state / temperature, None if bias is None else bias / temperature
            return linear_cross_entropy(state, head.weight, target_ids - 1, bias, self.head_dtype)

        def block(h: Tensor, ids: Tensor) -> Tensor:
            return F.cross_entropy(self.score(h).float()[:, 1:] / temperature, ids - 1, reduction="sum")

        size = rows_that_fit(4 * (self.num_items + 1), hidden.device, "scores", least=16)
        pairs = zip(hidden.split(size), target_ids.split(size), strict=True)
        return torch.stack([checkpoint(block, h, ids, use_reentrant=False) for h, ids in pairs]).sum()


class SequenceEncoder(Part, ABC):
    """From item vectors to a state after each item. Never sees the catalog.

    Calling it is `mix(enter(history))`. `enter` is what happens to each vector before they meet (positions, norm,
    dropout), `mix` is the architecture. Wrappers call the two apart, and hand on a history without reading all of it.
    Where `mix` and `last` take a `lightrec.nn.cache.Cache` too, one more token costs one position.
    """

    hidden_size: int
    causal: bool
    """True: hidden[:, t] depends on x[:, :t+1] only (and, for positions counted from the end, on the length)."""

    @abstractmethod
    def enter(self, history: History) -> History:
        """Returns the history with its vectors x [B, L, D] made ready to be mixed."""

    @abstractmethod
    def mix(self, history: History) -> Tensor:
        """Returns hidden [B, L, D] of an entered history; what stands at or beyond `lengths` is unspecified."""

    def forward(self, history: History) -> Tensor:
        return self.mix(self.enter(history))

    def last(self, history: History) -> Tensor:
        """Returns [B, D], the state after the last real item: all that a ranking needs.

        An encoder that can leave the other states of its last layer out may say so here.
        """
        return history.last(self(history))

    def init_state(self, batch_size: int, device: torch.device | None = None) -> Any:
        """Returns the state before the first event, for encoders that can go on event by event.

        A state is a tensor or any nest of lists, tuples and dicts of tensors, each [B, ...].

        Raises:
            NotImplementedError: this encoder must see the whole history again.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step form: encode the whole history instead.")

    def read(self, history: History) -> tuple[Tensor, Any]:
        """Reads an entered history, for encoders that can go on event by event.

        By default this takes one step per event. An encoder whose layers note their state does it at once.

        Returns:
            [B, D], the state after the last real item; and the state from which `step` goes on behind it.
        """
        hidden, state = self.step(history.x[:, 0], self.init_state(len(history.x), history.x.device))
        for t in range(1, history.x.shape[1]):
            after = self.step(history.x[:, t], state)
            ended = history.lengths <= t
            hidden, state = tree_map(lambda old, new, ended=ended: _where(ended, old, new), (hidden, state), after)
        return hidden, state

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advances the state by one entered vector [B, D]; returns hidden [B, D] and the new state."""
        raise NotImplementedError(f"{type(self).__name__} has no step form: encode the whole history instead.")


def _where(rows: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Takes some rows [B] bool of old [B, ...], and the others of new."""
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), old, new)


class Term(NamedTuple):
    """One term of a loss."""

    value: Tensor
    """Scalar."""
    weight: float | Tensor = 1.0
    """What the value is multiplied by in the loss; 0 only logs it."""


Losses = dict[str, Term]
"""The terms of a loss, by name."""


def total(losses: Losses) -> Tensor:
    """Sums the terms, each times its weight."""
    weighted = (term.weight * term.value for term in losses.values() if isinstance(term.weight, Tensor) or term.weight)
    return sum(weighted)


class Objective(Part, ABC):
    """What is asked of a history while training: shift, mask, negatives, augmentation, contrast, weights.

    Works on the device, after batching; may call `recommender.encode` and `recommender.items` more than once and own
    parameters. Only real positions reach the item matmul.
    """

    @abstractmethod
    def forward(self, recommender: Any, batch: Batch, states: Any = None) -> Losses:
        """Returns the named terms of the loss.

        Args:
            recommender: the EncoderRecommender whose items, encoder and query are trained.
            batch: windows of up to max_length + 1 items.
            states: NextItemStates of this batch, which the objectives of a sum share; None makes its own.
        """


class Search(Part, ABC):
    """From states to ranked lists: exact, by beam, approximate, or over several shards."""

    @abstractmethod
    def forward(
        self,
        items: ItemTable,
        states: Tensor,
        k: int,
        exclude_ids: Tensor | None = None,
        candidate_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Finds the best items for each state.

        Args:
            items: the catalog.
            states: [B, D].
            k: length of the lists.
            exclude_ids: [B, S] items to leave out; 0 pads.
            candidate_ids: [B, C] the only items to rank; 0 pads.

        Returns:
            item_ids [B, K] best first, 0 where candidates ran out; scores [B, K] in float32, -inf there.

        Raises:
            InputError: a score is NaN.
        """
