"""NextItem: predict what comes next, by full softmax over the catalog; and what every next-item objective shares."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, Objective, Term
from lightrec.nn.sequence import last_state, real_positions

Positions = Literal["all", "last"]


class NextItem(Objective):
    """Cross-entropy of the next item over the full catalog, averaged over real positions.

    Args:
        positions: `all` asks at every position of a window; `last` only at its end, which is what a non-causal encoder
            needs (together with `train_windows: prefixes`).

    Raises:
        ValueError: `all` with an encoder that sees the future, which would leak the target.
    """

    def __init__(self, positions: Positions = "all"):
        super().__init__()
        self.positions = positions

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        states = states or NextItemStates(recommender, batch)
        hidden, targets = states.rows(self.positions)
        loss = mean_over_targets(recommender.items.cross_entropy(hidden, targets), len(targets))
        return {"next_item": Term(loss)}


class NextItemStates:
    """The states of a training batch from which its next items are predicted, each made when it is first needed.

    Objectives of one sum share it, so that a batch is encoded once however many of them look at its states.

    Args:
        recommender: an EncoderRecommender.
        batch: windows of up to max_length + 1 items.
    """

    def __init__(self, recommender: Any, batch: Batch):
        self.recommender, self.batch = recommender, batch
        self.inputs, self.next_ids = next_item_pairs(batch)
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    @cached_property
    def hidden(self) -> Tensor:
        """[B, L, D], the state after each input."""
        return self.recommender.encode(self.inputs)

    @cached_property
    def query(self) -> Tensor:
        """[B, D], the state that the catalog is searched with. What is not read of other positions is not computed."""
        return self.recommender.query(self.inputs)

    @cached_property
    def last_hidden(self) -> Tensor:
        """[B, D], the state after the last input, one of `hidden`."""
        return last_state(self.hidden, self.inputs.lengths)

    @property
    def last(self) -> Tensor:
        """[B, D], the state after the last input: one of `hidden` if that was made already, else `query`."""
        return self.last_hidden if "hidden" in vars(self) else self.query

    def rows(self, positions: Positions = "all") -> tuple[Tensor, Tensor]:
        """Returns the states that have a target: hidden [T, D], target_ids [T].

        Raises:
            ValueError: `all` with an encoder that sees the future.
        """
        if positions not in self._rows:
            self._rows[positions] = self._all() if positions == "all" else self._last()
        return self._rows[positions]

    def _last(self) -> tuple[Tensor, Tensor]:
        return self.query, last_state(self.next_ids, self.inputs.lengths)

    def _all(self) -> tuple[Tensor, Tensor]:
        check_causal(self.recommender.encoder)
        places = real_positions(self.inputs.lengths, self.hidden.shape[1])
        return self.hidden.flatten(0, 1).index_select(0, places), self.next_ids.flatten().index_select(0, places)


def check_causal(encoder: Any) -> None:
    """Refuses a loss at all positions for an encoder that sees the future.

    Raises:
        ValueError: it does.
    """
    if not encoder.causal:
        raise ValueError(
            f"{type(encoder).__name__} sees the future, so a loss at all positions would leak the target: "
            "use positions='last' with train_windows='prefixes', or the Cloze objective."
        )


def next_item_pairs(batch: Batch) -> tuple[Batch, Tensor]:
    """Shifts a training batch by one: inputs, a Batch of windows without their last item; targets [B, L]."""
    return batch.without_last(), batch.item_ids[:, 1:]


def mean_over_targets(total: Tensor, count: int) -> Tensor:
    """Divides a sum by the number of targets; over several processes, so that the averaged gradient is that of the mean
    over all their targets, however unevenly they are spread."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            counts = torch.tensor(float(count), device=total.device)
            torch.distributed.all_reduce(counts)
            return total * world / counts
    return total / count
