"""SRA-CL: two contrastive losses beside any other objective, whose positives come from similar texts.

Ziqiang Cui, Yunpeng Weng, Xing Tang, Xiaokun Zhang, Shiwei Li, Peiyang Liu, Bowei He, Dugang Liu, Weihong Luo, Xiuqiang
He and Chen Ma, "Semantic Retrieval Augmented Contrastive Learning for Sequential Recommendation", NeurIPS 2025,
https://arxiv.org/abs/2503.04162; code: ziqiangcui/SRA-CL.

    L = L_rec + user_weight L_CS + item_weight L_IS

L_CS draws the state of a history towards a mixture of the states of k similar histories, whose weights are learned from
the text vectors. L_IS draws two views of a history together, in each of which some items were replaced by similar ones.
Nothing of it is left when the model ranks: no text, no table, no cost.

The README lists the differences from the authors' code, and why. Everything is made from the training part of the data.

Shapes: B rows of a batch, D hidden_size, k neighbours, T width of text vectors.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightrec import Batch, InputError, Objective
from lightrec.configurable import Above, AtLeast, Between
from lightrec.interfaces import Losses, Term
from lightrec.nn.sequence import valid_mask
from lightrec.objectives.next_item import NextItem, NextItemStates, mean_over_targets
from lightrec.ops.blocks import rows_that_fit
from lightrec_sracl.losses import Fidelity, Mixture, info_nce
from lightrec_sracl.retrieval import Neighbours, Retrieved

Synthesis = Literal["learned", "mean", "random"]
_SHORTEST = 0.8  # of the longest row that is encoded with it: the rest of a row is padding


class SRACL(Objective):
    """Any objective, with positives retrieved by text.

    Further options are those of `Neighbours`.

    Args:
        objective: what is trained beside; None is the next item, by full softmax at every position.
        hidden_size: D, as the model has it.
        user_weight: alpha, of the loss between histories.
        item_weight: beta, of the loss between two views of one history.
        replace: probability that an item is replaced in a view.
        synthesis: weights of the k histories: `learned`, all equal (`mean`), or one at `random`.
        neighbour_gradient: let gradients into the states of similar histories. Without it a step is cheaper, but the
            goal moves with the states: on Amazon Beauty the loss rose from 15 to 40 in five epochs.
        attention_dropout: of the learned weights.
        temperature: divides inner products in both losses.
        fidelity: of both losses: `released`, the 2 B vectors of a batch are each other's negatives; `paper`, a row asks
            and the positives of the other rows are its negatives.
    """

    network = Neighbours
    limits = Neighbours.limits | {
        "user_weight": AtLeast(0),
        "item_weight": AtLeast(0),
        "replace": Between(0, 1),
        "temperature": Above(0),
    }

    def __init__(
        self,
        objective: Objective | None = None,
        hidden_size: int = 64,
        user_weight: float = 0.1,
        item_weight: float = 0.1,
        replace: float = 0.2,
        synthesis: Synthesis = "learned",
        neighbour_gradient: bool = True,
        attention_dropout: float = 0.5,
        temperature: float = 1.0,
        fidelity: Fidelity = "released",
        **network,
    ):
        super().__init__()
        self.objective = objective or NextItem()
        self.hidden_size, self.user_weight, self.item_weight = hidden_size, user_weight, item_weight
        self.replace, self.synthesis, self.neighbour_gradient = replace, synthesis, neighbour_gradient
        self.temperature, self.fidelity = temperature, fidelity
        neighbours = Neighbours(**network)
        self.neighbours = neighbours if user_weight or item_weight else None
        learned = user_weight > 0 and synthesis == "learned"
        self.mixture = Mixture(hidden_size, neighbours.text_size, attention_dropout) if learned else None

    def forward(self, recommender, batch: Batch, states: NextItemStates | None = None) -> Losses:
        states = states or NextItemStates(recommender, batch)
        if self.neighbours is None:
            return self.objective(recommender, batch, states)
        self._check_width(recommender.items.hidden_size)
        found = self.neighbours.of(states.inputs, recommender.items.num_items)
        losses = dict(self.objective(recommender, batch, states))
        if self.user_weight:
            between = self.between_histories(recommender, found, states.inputs, states.last)
            losses["between_histories"] = Term(between, self.user_weight)
        if self.item_weight:
            losses["between_views"] = Term(self.between_views(recommender, found, states.inputs), self.item_weight)
        return losses

    def between_histories(self, recommender, found: Retrieved, inputs: Batch, states: Tensor) -> Tensor:
        """L_CS of histories whose states are [B, D]; a history without similar ones takes no part."""
        entry = found.entries(inputs)
        near = found.near(entry)
        if self.synthesis == "random":
            near = near.gather(1, _random_place(near >= 0))
        rows = (near >= 0).any(1).nonzero().squeeze(1)
        if len(rows):
            positives = self.synthesise(recommender, found, entry[rows], near[rows], inputs.timestamps is not None)
            anchors = states.index_select(0, rows)
            total = info_nce(anchors, positives, self.temperature, self.fidelity) * len(rows)
        else:  # every parameter takes part in every step, or other processes would wait for this one
            total = sum((p.sum() for p in self.parameters()), states.sum()) * 0.0
        return mean_over_targets(total, max(1, len(rows)))

    def synthesise(
        self, recommender, found: Retrieved, entry: Tensor, near: Tensor, with_times: bool = False
    ) -> Tensor:
        """Mixes the states of similar histories: entries of anchors [B], of neighbours [B, k] (-1: none) -> [B, D]."""
        present = near >= 0
        # A history that is similar to several anchors is encoded once.
        unique, place = near.clamp_min(0).unique(return_inverse=True)
        with nullcontext() if self.neighbour_gradient else torch.no_grad():
            states = last_states(recommender, found.histories(unique, with_times))
        states = F.embedding(place, states)  # [B, k, D]
        if self.mixture is None:
            weights = present / present.sum(1, keepdim=True).clamp_min(1)
        else:
            vectors = (found.vectors(entries).to(states.dtype) for entries in (entry, near))
            weights = self.mixture(*vectors, present)
        return (weights.to(states.dtype)[:, None] @ states).squeeze(1)

    def between_views(self, recommender, found: Retrieved, inputs: Batch) -> Tensor:
        """L_IS: two views of each history, as one batch of 2 B rows."""
        views = inputs.map(lambda t: torch.cat([t, t]))
        one, other = recommender.query(views.replace(item_ids=self.replaced(found, views))).chunk(2)
        total = info_nce(one, other, self.temperature, self.fidelity) * len(one)
        return mean_over_targets(total, max(1, len(one)))

    def replaced(self, found: Retrieved, batch: Batch) -> Tensor:
        """Item ids [B, L]; each that has similar ones is replaced by one of them with probability `replace`."""
        ids = batch.item_ids
        near = found.similar_items(ids)
        has = (near > 0).any(-1)
        chosen = near.gather(-1, _random_place(near > 0)).squeeze(-1)
        drawn = torch.rand(ids.shape, device=ids.device) < self.replace
        return torch.where(drawn & has & valid_mask(batch.lengths, ids.shape[1]), chosen, ids)

    def _check_width(self, width: int) -> None:
        if self.mixture is not None and width != self.hidden_size:
            raise InputError(
                f"SRACL was built for states of {self.hidden_size} numbers, the model has {width}: set "
                f"--model.objective.hidden_size {width}."
            )


def last_states(recommender, batch: Batch) -> Tensor:
    """Encodes histories of any lengths, short ones with short ones so that little is padding.

    Args:
        recommender: gives the state after the last item.
        batch: [m, L], of which the rows are encoded in groups.

    Returns:
        [m, D], in the order of the rows.
    """
    device = batch.item_ids.device
    order = batch.lengths.argsort(descending=True)
    lengths = batch.lengths[order].tolist()
    padded = rows_that_fit(4 * recommender.items.hidden_size, device, "encoded events")
    shortest = _SHORTEST if device.type == "cpu" else 0  # on a GPU a call costs more than the padding
    found, start = [], 0
    while start < len(lengths):
        width = max(1, lengths[start])
        stop = start + 1
        while stop < len(lengths) and lengths[stop] >= shortest * width and (stop - start) * width < padded:
            stop += 1
        found.append(recommender.query(batch.rows(order[start:stop]).cut(width)))
        start = stop
    return torch.cat(found)[order.argsort()]


def _random_place(allowed: Tensor) -> Tensor:
    """A random index of the last dimension that is allowed: [..., k] -> [..., 1]; 0 where none is."""
    return torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, -1.0).argmax(-1, keepdim=True)
