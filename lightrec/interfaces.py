"""The three parts of a recommender, on one page: ItemTable, SequenceEncoder, Objective. Read this first.

    item_ids [B, L] --ItemTable--> x [B, L, D] --SequenceEncoder--> hidden [B, L, D] --ItemTable.score--> logits [B, V]

and an Objective says what is asked of a history while training. Each line of code belongs to the part whose tensor it
changes. An item is an integer everywhere; its vector, sentence or code is the private knowledge of its ItemTable.

Shapes: B batch, L length, D hidden_size, V vocabulary = num_items + 1 (column 0 is padding), K list length.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lightrec.errors import InputError

if TYPE_CHECKING:
    from lightrec.data.batch import Batch
    from lightrec.recommender import EncoderRecommender


class Configurable:
    """Remembers the arguments an object was built with, so that it can be described in primitives and built again.

    A checkpoint stores `describe(obj)`, never the object: it then loads with `weights_only=True`, whether the object
    came from the command line, from Python or from another checkpoint.
    """

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:  # copying calls __new__ bare; a wrong call raises in __init__, with a better message
            return self
        bound.apply_defaults()
        object.__setattr__(self, "_init_args", dict(list(bound.arguments.items())[1:]))
        return self


def describe(value: Any) -> Any:
    """Returns the primitives that `value` can be rebuilt from: `{"class_path", "init_args"}` for a Configurable.

    Raises:
        TypeError: something in it is neither primitive nor Configurable.
    """
    if isinstance(value, Configurable):
        kind = type(value)
        arguments = {name: describe(v) for name, v in value._init_args.items()}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    raise TypeError(
        f"{type(value).__name__} cannot be written into a checkpoint: constructor arguments of models, encoders, item "
        "tables and objectives must be numbers, strings, lists, dicts, or such parts themselves."
    )


class LinearHead(NamedTuple):
    """Scores that are `hidden @ weight.T + bias`, which is what the fused losses and searches need."""

    hidden: Tensor
    """[..., D], the state as it enters the product (normalised or scaled, where the geometry asks for it)."""
    weight: Tensor
    """[num_items, D]; row i belongs to item i + 1, since padding is no candidate."""
    bias: Tensor | None
    """[num_items] or None."""


class ItemTable(Configurable, nn.Module, ABC):
    """The one owner of the catalog: vectors for items, and scores for states.

    Embedding and head are one object because they must agree on tying and geometry (dot, cosine, hyperbolic distance).
    A logit column is an item id; column 0 is -inf; special ids (a mask) live above num_items and are never scored.
    """

    num_items: int
    hidden_size: int

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

    def cross_entropy(self, hidden: Tensor, target_ids: Tensor) -> Tensor | None:
        """Sums the full-softmax cross-entropy of hidden [T, D] against target_ids [T], without holding all scores.

        None if this table knows no faster way than its linear head or its scores: so it is unless overridden.
        """
        return None

    def top_k(
        self, hidden: Tensor, k: int, exclude_ids: Tensor | None = None, candidate_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ranks the catalog by float32 scores and in blocks of items, so that memory stays bounded for any catalog.

        A linear head's product is summed in float32 (float64 for float64 weights) whatever the weights' dtype; other
        scores are made in the weights' dtype.

        Args:
            hidden: [B, D].
            k: length of the lists.
            exclude_ids: [B, S] items to leave out; 0 pads.
            candidate_ids: [B, C] the only items to rank; 0 pads.

        Returns:
            item_ids [B, K] best first, 0 where candidates ran out; scores [B, K], -inf there.

        Raises:
            InputError: a score is NaN.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return _top_k(self, hidden.to(_dtype_of_weights(self)), k, exclude_ids, candidate_ids)


class SequenceEncoder(Configurable, nn.Module, ABC):
    """From item vectors to a state after each item. Never sees the catalog.

    `forward` is `mix(prepare(x, lengths), lengths)`: `prepare` is what happens to item vectors before they meet
    (positions, input norm, dropout), `mix` is the architecture. Wrappers call the two apart.
    """

    hidden_size: int
    causal: bool
    """True: hidden[:, t] depends on x[:, :t+1] only (and, for positions counted from the end, on the length)."""

    @abstractmethod
    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] item vectors, [B] lengths -> [B, L, D]."""

    @abstractmethod
    def mix(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, D] prepared vectors -> hidden [B, L, D]; what stands at or beyond `lengths` is unspecified."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.mix(self.prepare(x, lengths), lengths)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns [B, D], the state after the last real item: all that a ranking needs.

        An encoder that can leave the other states of its last layer out may say so here.
        """
        return self(x, lengths)[torch.arange(len(lengths), device=x.device), lengths - 1]

    def init_state(self, batch_size: int, device: torch.device | None = None) -> Any:
        """Returns the state before the first event, for encoders that can go on event by event.

        A state is a tensor or any nest of lists, tuples and dicts of tensors, each [B, ...].

        Raises:
            NotImplementedError: this encoder must see the whole history again.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step form: encode the whole history instead.")

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advances the state by one prepared vector [B, D]; returns hidden [B, D] and the new state."""
        raise NotImplementedError(f"{type(self).__name__} has no step form: encode the whole history instead.")


class Objective(Configurable, nn.Module, ABC):
    """What is asked of a history while training: shift, mask, negatives, augmentation, contrast, weights.

    Works on the device, after batching; may call `recommender.encode` and `recommender.items` more than once and own
    parameters. Only real positions reach the item matmul.
    """

    @abstractmethod
    def forward(self, recommender: EncoderRecommender, batch: Batch) -> Tensor:
        """Returns the scalar loss of a training batch (windows of up to max_length + 1 items)."""


_BLOCK_BYTES = 64 * 2**20


def _dtype_of_weights(items: ItemTable) -> torch.dtype:
    """What a table can multiply a state with: float32 under autocast too, bfloat16 where the whole model is."""
    tensors = list(items.parameters()) or list(items.buffers())
    dtypes = {t.dtype for t in tensors if t.is_floating_point()}
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def _top_k(
    items: ItemTable, hidden: Tensor, k: int, exclude_ids: Tensor | None, candidate_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    best_scores = hidden.new_full((len(hidden), k), -torch.inf, dtype=torch.float32)
    best_ids = torch.zeros(len(hidden), k, dtype=torch.long, device=hidden.device)

    def merge(scores: Tensor, ids: Tensor) -> None:
        nonlocal best_scores, best_ids
        scores, column = scores.topk(min(k, scores.shape[1]))  # NaN sorts first, so the check below sees every one
        pool_scores = torch.cat([best_scores, scores], 1)
        pool_ids = torch.cat([best_ids, ids.expand(len(hidden), -1).gather(1, column)], 1)
        best_scores, column = pool_scores.topk(k)
        best_ids = pool_ids.gather(1, column)

    if candidate_ids is not None:
        scores = items.score(hidden, candidate_ids).float()
        if exclude_ids is not None and exclude_ids.shape[1]:
            left_out = exclude_ids.sort(1).values
            place = torch.searchsorted(left_out, candidate_ids).clamp_max(left_out.shape[1] - 1)
            scores = scores.masked_fill(left_out.gather(1, place) == candidate_ids, -torch.inf)
        merge(scores, candidate_ids)
    else:
        size = max(k, _BLOCK_BYTES // (4 * max(1, len(hidden))))
        head = items.linear_head(hidden)
        if head is not None:
            wide = torch.promote_types(head.weight.dtype, torch.float32)
            state = head.hidden.to(wide)
        for start in range(1, items.num_items + 1, size):
            stop = min(start + size, items.num_items + 1)
            ids = torch.arange(start, stop, device=hidden.device)
            if head is None:
                scores = items.score(hidden, ids).float()
            else:
                bias = None if head.bias is None else head.bias[start - 1 : stop - 1].to(wide)
                scores = nn.functional.linear(state, head.weight[start - 1 : stop - 1].to(wide), bias).float()
            if exclude_ids is not None:
                inside = (exclude_ids >= start) & (exclude_ids < stop)
                row, place = inside.nonzero(as_tuple=True)
                scores[row, exclude_ids[row, place] - start] = -torch.inf
            merge(scores, ids)
    if best_scores.isnan().any():
        raise InputError(
            "the model scored NaN: it has diverged; lower --model.learning_rate or set --trainer.gradient_clip_val."
        )
    return best_ids.masked_fill(best_scores == -torch.inf, 0), best_scores
