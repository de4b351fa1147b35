"""SessionParallel: GRU4Rec's way to train, one event of many sessions at a step, with sampled candidates.

Hidasi et al., ICLR 2016, https://arxiv.org/abs/1511.06939, and Hidasi and Karatzoglou, CIKM 2018,
https://arxiv.org/abs/1706.03847, in the form of the official code (hidasib/GRU4Rec_PyTorch_Official).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as tree

from lightrec.configurable import AtLeast
from lightrec.data.batch import Batch
from lightrec.interfaces import History, Losses, Objective, Term
from lightrec.objectives.negatives import NegativeSampler
from lightrec.objectives.next_item import mean_over_targets

SessionLoss = Literal["cross-entropy", "bpr-max"]


class SessionParallel(Objective):
    """Compares the next item of every running session with those of the others and with samples shared by all.

    Made for `train_windows: sessions`, where every event is an update, and for encoders with a step form. The state of
    a session goes from step to step without gradient and is forgotten where a session begins; sessions are known by
    their users, so the order of a batch's rows does not matter. It is part of the checkpoint: a run resumes in the
    middle of its sessions. Other windows are run through in the same way, from a new state, for one update.

    Args:
        loss: `cross-entropy`: softmax over the candidates; `bpr-max`: the target against the softmax-weighted others.
        num_negatives: samples besides the targets of the batch, drawn with probability count ** alpha.
        alpha: exponent of the popularity of samples.
        log_q: cross-entropy: strength of the correction for popularity: log_q times the log of how often a candidate
            is expected, by its count among targets of the batch and by count ** alpha among samples, is subtracted.
        bpreg: bpr-max: weight of the squared scores of negatives.
        elu: bpr-max: pass scores through ELU with this parameter; 0 leaves them as they are.

    Raises:
        ValueError: an unknown loss or a negative number.
    """

    limits = {"num_negatives": AtLeast(0), "bpreg": AtLeast(0), "elu": AtLeast(0), "log_q": AtLeast(0)}

    def __init__(
        self,
        loss: SessionLoss = "cross-entropy",
        num_negatives: int = 2048,
        alpha: float = 0.5,
        log_q: float = 0.0,
        bpreg: float = 1.0,
        elu: float = 0.0,
    ):
        super().__init__()
        self.loss, self.log_q, self.bpreg, self.elu, self.alpha = loss, log_q, bpreg, elu, alpha
        self.sampler = NegativeSampler(num_negatives, "popularity", "batch", alpha=alpha) if num_negatives else None
        # popularity as it is, for the targets of the batch
        self.counts = NegativeSampler(1, "popularity", "batch") if log_q and loss == "cross-entropy" else None
        self._users: Tensor | None = None
        self._state: Any = None

    def forward(self, recommender, batch: Batch, states: Any = None) -> Losses:
        if "session_begins" not in batch.columns:
            return {"session": Term(self._whole_sessions(recommender, batch))}
        state = self._carried(recommender.encoder, batch)
        loss, state = self._one_event(recommender, batch, batch.item_ids[:, 0], batch.item_ids[:, 1], state)
        self._users, self._state = batch.user_ids, state
        return {"session": Term(loss)}

    def _one_event(self, recommender, batch: Batch, item_ids: Tensor, targets: Tensor, state: Any):
        """Loss of one event of each session, and the states behind it, without gradient."""
        ones = torch.ones_like(item_ids)
        x = recommender.encoder.enter(History(recommender.items(item_ids[:, None]), ones)).x[:, 0]
        hidden, state = recommender.encoder.step(x, state)
        candidates = targets
        if self.sampler is not None:
            candidates = torch.cat([targets, self.sampler.draw(recommender.items, batch, ones, targets).ids])
        scores = recommender.items.score(hidden, candidates).float()
        if self.loss == "cross-entropy":
            if self.counts is not None:
                scores = scores - self.log_q * self._log_popularity(recommender, targets, candidates)
            loss = F.cross_entropy(scores, torch.arange(len(targets), device=targets.device))
        else:
            loss = self._bpr_max(scores)
        return loss, tree.tree_map(Tensor.detach, state)

    def _whole_sessions(self, recommender, batch: Batch) -> Tensor:
        """The same over all events of windows of any length, for one update: their mean."""
        state, total = recommender.encoder.init_state(len(batch), batch.item_ids.device), 0.0
        rows = torch.arange(len(batch), device=batch.item_ids.device)
        for t in range(batch.item_ids.shape[1] - 1):
            still = batch.lengths[rows] > t + 1
            rows, state = rows[still], tree.tree_map(lambda s, still=still: s[still], state)
            events = batch.item_ids[rows, t], batch.item_ids[rows, t + 1]
            loss, state = self._one_event(recommender, batch, *events, state)
            total = total + loss * len(rows)
        return mean_over_targets(total, int((batch.lengths - 1).sum()))

    def _carried(self, encoder, batch: Batch) -> Any:
        """The state of each row: that of its user at the step before, or a new one."""
        state = encoder.init_state(len(batch), batch.item_ids.device)
        if self._users is None:
            return state
        users = self._users.to(batch.user_ids.device)
        same = (batch.user_ids[:, None] == users) & ~batch.columns["session_begins"].values[:, None]
        goes_on, place = same.max(1)

        def take(new: Tensor, old: Tensor) -> Tensor:
            where = goes_on.view(-1, *[1] * (new.dim() - 1))
            return torch.where(where, old.to(new.device)[place], new)

        return tree.tree_map(take, state, self._state)

    def _log_popularity(self, recommender, targets: Tensor, candidates: Tensor) -> Tensor:
        # Log of how often each candidate is expected. The official code takes counts as they are, so that its two kinds
        # of candidates are off by a constant against each other.
        batch_size = len(targets)
        log_p = self.counts.log_q(recommender.items)[targets] + math.log(max(1, batch_size))
        if self.sampler is None:
            return log_p
        drawn = self.sampler.log_q(recommender.items)[candidates[batch_size:]]
        return torch.cat([log_p, drawn + math.log(self.sampler.num_negatives)])

    def _bpr_max(self, scores: Tensor) -> Tensor:
        if self.elu:
            scores = F.elu(scores, self.elu)
        target = scores.diagonal()[:, None]
        others = torch.eye(*scores.shape, dtype=torch.bool, device=scores.device).logical_not()
        weight = scores.masked_fill(~others, -torch.inf).softmax(1)
        ranked = (weight * torch.sigmoid(target - scores)).sum(1)
        return (-(ranked + 1e-24).log() + self.bpreg * (weight * scores.square()).sum(1)).mean()

    def get_extra_state(self) -> dict:
        return {"users": self._users, "state": self._state}

    def set_extra_state(self, state: dict) -> None:
        self._users, self._state = state["users"], state["state"]
