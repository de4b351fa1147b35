"""What a user's state is, and how an event changes it: by the encoder's step form, or as a window of items.

An engine has `name`, `blank` (the state before the first event: a list of tensors [1, ...], the *leaves*) and two
functions of leaves [B, ...]: `advance(leaves, item_ids)` and `rank(leaves, k, excluded)`. `check` looks at leaves that
came from outside.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightrec import extensions
from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import SequenceEncoder
from lightrec.recommender import EncoderRecommender, SequenceRecommender

_AGREE = 1e-3  # relative to the largest score: float32 rounding is far below, another meaning far above


class StepEngine:
    """A user is the state of the encoder and the last hidden vector; the leaves have the batch first.

    Args:
        model: in evaluation mode.
        longest: items of the histories that step form and batch result are compared on.

    Raises:
        InputError: the encoder has no step form, or one that disagrees with the batch result.
        TypeError: its state is not made of tensors with one axis for the batch.
    """

    name = "step"

    def __init__(self, model: SequenceRecommender, longest: int = 5):
        if not isinstance(model, EncoderRecommender):
            raise InputError(_no_step_form(type(model).__name__))
        encoder, device = model.encoder, model.device
        try:
            one, two, three = (encoder.init_state(size, device) for size in (1, 2, 3))
        except NotImplementedError as error:
            raise InputError(_no_step_form(type(encoder).__name__)) from error
        self.model = model
        leaves, self.tree = pytree.tree_flatten(one)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise TypeError(f"{type(encoder).__name__}.init_state must return tensors in tuples, lists or dicts.")
        # Where the batch is, is seen from the shapes: torch's recurrent modules have it second.
        self.axes = []
        for a, b in zip(pytree.tree_leaves(two), pytree.tree_leaves(three), strict=True):
            differing = [axis for axis in range(a.dim()) if a.shape[axis] != b.shape[axis]]
            if len(differing) != 1:
                raise TypeError(
                    f"{type(encoder).__name__}.init_state gives {tuple(a.shape)} for 2 rows and {tuple(b.shape)} for "
                    "3: each tensor needs one axis for the batch."
                )
            self.axes.append(differing[0])
        rows = [leaf.detach().movedim(axis, 0) for leaf, axis in zip(leaves, self.axes, strict=True)]
        after = self.advance(rows, torch.ones(1, dtype=torch.long, device=device))
        # In the dtypes that a step returns, so that what is stored never changes its dtype.
        self.blank = [row.to(new.dtype) for row, new in zip(rows, after, strict=False)] + [torch.zeros_like(after[-1])]
        self._compare(longest)

    def advance(self, leaves: list[Tensor], item_ids: Tensor) -> list[Tensor]:
        """Returns the leaves after one event each; item_ids is [B]."""
        ones = torch.ones_like(item_ids)
        history = self.model.history(Batch(item_ids[:, None], ones, -ones))
        x = self.model.encoder.enter(history).x[:, 0]
        rows = [leaf.movedim(0, axis).contiguous() for leaf, axis in zip(leaves, self.axes, strict=False)]
        hidden, state = self.model.encoder.step(x, pytree.tree_unflatten(rows, self.tree))
        rows = pytree.tree_leaves(state)
        return [leaf.movedim(axis, 0) for leaf, axis in zip(rows, self.axes, strict=True)] + [hidden]

    def rank(self, leaves: list[Tensor], k: int, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns item_ids [B, K] and scores [B, K]; excluded is [B, S], 0 pads."""
        return self.model.search(self.model.items, leaves[-1], k, excluded)

    def check(self, leaves: list[Tensor]) -> None:
        """Any finite values are a state."""

    def _compare(self, longest: int) -> None:
        """Ranks a few random histories both ways, so that a step form that means something else serves nobody.

        It may differ because `enter` adds positions, the encoder looks ahead, or the recommender has a `query` of
        its own.
        """
        model, num_items = self.model, self.model.items.num_items
        k, generator = min(10, num_items), torch.Generator().manual_seed(0)
        for length in {1, longest}:
            item_ids = torch.randint(1, num_items + 1, (3, length), generator=generator).to(model.device)
            lengths = torch.full((3,), length, device=model.device)
            _, expected = model.recommend(Batch(item_ids, lengths, torch.full_like(lengths, -1)), k)
            leaves = repeated(self.blank, 3)
            for t in range(length):
                leaves = self.advance(leaves, item_ids[:, t])
            gap = (self.rank(leaves, k, None)[1] - expected).abs().max()
            if not gap <= _AGREE * expected.abs().max():
                raise InputError(
                    f"the step form of {type(model).__name__} differs from its batch result by {gap:.2g} after "
                    f"{length} items (positions or a query of its own may enter): build the stream with "
                    "history=max_length, which reads the items again."
                )


class WindowEngine:
    """A user is the last items, right-aligned behind zeros, which the model reads again at each ranking.

    Args:
        model: any recommender.
        num_items: size of the catalog.
        history: items kept.
        limit: items that the model reads, if known.

    Raises:
        InputError: history above limit.
        ValueError: history below 1.
    """

    def __init__(self, model: SequenceRecommender, num_items: int, history: int, limit: int | None):
        if history < 1:
            raise ValueError(f"history ({history}) must be at least 1.")
        if limit is not None and history > limit:
            raise InputError(f"history ({history}) must be at most {limit}, the items that this model reads.")
        self.model, self.num_items, self.name = model, num_items, f"window {history}"
        self.blank = [torch.zeros(1, history, dtype=torch.int32, device=model.device)]

    def advance(self, leaves: list[Tensor], item_ids: Tensor) -> list[Tensor]:
        """Returns the leaves after one event each; item_ids is [B]."""
        return [torch.cat([leaves[0][:, 1:], item_ids[:, None].int()], 1)]

    def rank(self, leaves: list[Tensor], k: int, excluded: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns item_ids [B, K] and scores [B, K]; excluded is [B, S], 0 pads."""
        lengths = (leaves[0] > 0).sum(1)
        # To rows padded on the right, as wide as the longest; beyond a row's end the index wraps to its leading zeros.
        width = leaves[0].shape[1]
        column = torch.arange(int(lengths.max()), device=lengths.device) + (width - lengths)[:, None]
        item_ids = leaves[0].long().gather(1, column % width)
        return self.model.recommend(Batch(item_ids, lengths, torch.full_like(lengths, -1), seen_ids=excluded), k)

    def check(self, leaves: list[Tensor]) -> None:
        """Refuses items outside of the catalog and gaps.

        Raises:
            InputError: one of them.
        """
        begun = (leaves[0] > 0).int()
        within = (leaves[0] >= 0) & (leaves[0] <= self.num_items)
        if not within.all() or not begun[:, -1].all() or (begun.diff(dim=1) < 0).any():
            raise InputError("the last items in the state are none of this catalog, or have gaps: export it again.")


def repeated(blank: list[Tensor], size: int) -> list[Tensor]:
    """Returns leaves [1, ...] as [size, ...]."""
    return [leaf.repeat(size, *[1] * (leaf.dim() - 1)) for leaf in blank]


def _no_step_form(name: str) -> str:
    # A stranger's module is not imported for a piece of advice.
    kinds = [(plugin.name, extensions.load(plugin)) for plugin in extensions.installed("encoders") if plugin.builtin]
    able = [short for short, kind in kinds if kind.step is not SequenceEncoder.step]
    return (
        f"{name} cannot go on event by event, it must see the whole history again: take a model whose encoder can "
        f"({', '.join(able)}), or build the stream with history=max_length, which reads the last items at each "
        "recommendation."
    )
