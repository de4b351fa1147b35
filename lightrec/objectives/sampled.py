"""Objectives that compare the next item with a few sampled ones: sampled softmax, BCE and gBCE.

`lightrec.objectives.negatives` draws the sampled items. `lightrec.objectives.negative_scores` makes their logits.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightrec.configurable import AtLeast, Between
from lightrec.data.batch import Batch
from lightrec.interfaces import ItemTable, Losses, Objective, Term
from lightrec.objectives.negative_scores import Asked, Logits, NegativeScores, Terms, choose
from lightrec.objectives.negatives import Exclude, Negatives, NegativeSampler, Proposal, Shared
from lightrec.objectives.next_item import NextItemStates, Positions, mean_over_targets


class SampledObjective(Objective):
    """Draws negatives, makes their logits, and averages a function of them over real positions.

    Args:
        sampler: draws the negatives.
        positions: `all`, or `last` for encoders that see the future.
    """

    name: ClassVar[str]
    """Of the loss, in logs."""

    def __init__(self, sampler: NegativeSampler, positions: Positions):
        super().__init__()
        self.sampler, self.positions = sampler, positions

    @abstractmethod
    def terms(self, items: ItemTable) -> Terms:
        """Returns the function from the logits of a block to its loss."""

    def forward(
        self,
        recommender: Any,
        batch: Batch,
        states: NextItemStates | None = None,
        negatives: Negatives | None = None,
        strategy: NegativeScores | None = None,
    ) -> Losses:
        """Returns the loss as its only term.

        Args:
            recommender: the EncoderRecommender that is trained.
            batch: windows of up to max_length + 1 items.
            states: of this batch, if others share them.
            negatives: what the targets are compared with; None draws them.
            strategy: how the logits of negatives are made; None chooses by shape.
        """
        items, states = recommender.items, states or NextItemStates(recommender, batch)
        terms = self.terms(items)
        hidden, targets = states.rows(self.positions)
        row = torch.arange(len(batch), device=targets.device)
        if self.positions == "all":
            row = row.repeat_interleave(batch.lengths - 1, output_size=len(targets))
        if negatives is None:
            with torch.no_grad():
                negatives = self.sampler.draw(items, batch, row, targets)
        asked = Asked(items, hidden, targets, row, negatives, items.linear_head(hidden))
        strategy = strategy or choose(asked)
        return {self.name: Term(mean_over_targets(strategy.sum(asked, terms), len(targets)))}


class SampledSoftmax(SampledObjective):
    """Softmax over the next item and sampled negatives, averaged over real positions.

    -log( exp(s+) / (exp(s+) + sum_j exp(s_j)) ). The defaults are eSASRec's (Tikhonovich et al., RecSys 2025): 256
    uniform items drawn for each position, collisions with the target kept, no correction. `shared="row",
    distinct=True, exclude="window", num_negatives=3000` is SASRec+ 3000 (Klenitskiy and Vasilev, RecSys 2023).

    Args:
        num_negatives: N, negatives per position.
        proposal: `uniform` over the catalog, `popularity` (train count ** alpha) or `in-batch`. The last takes targets
            of the batch, which are always shared by it.
        shared: who shares a draw: each `position` has its own, or all of a `row`, or the whole `batch`.
        exclude: negatives that do not count: `nothing`, the `target` of the position, or all of its `window`.
        distinct: draw without replacement (uniform, shared by row or batch).
        alpha: exponent of the popularity.
        log_q: divide the weight of a negative by how often it is expected to be drawn. The sum then estimates the full
            softmax without bias. The target is always present, so it is not corrected and never counts as a negative.
        positions: `all`, or `last` for encoders that see the future.

    Raises:
        ValueError: options that do not go together.
    """

    name = "sampled_softmax"
    limits = {"num_negatives": AtLeast(1)}

    def __init__(
        self,
        num_negatives: int = 256,
        proposal: Proposal = "uniform",
        shared: Shared = "position",
        exclude: Exclude = "nothing",
        distinct: bool = False,
        alpha: float = 1.0,
        log_q: bool = False,
        positions: Positions = "all",
    ):
        if proposal == "in-batch":
            shared = "batch"
        if exclude == "nothing" and (log_q or proposal == "in-batch"):
            exclude = "target"
        sampler = NegativeSampler(num_negatives, proposal, shared, exclude, distinct, alpha)
        super().__init__(sampler, positions)
        self.log_q = log_q

    def terms(self, items: ItemTable) -> Terms:
        if not self.log_q:
            return softmax_terms
        log_q = self.sampler.log_q(items)
        return lambda logits: softmax_terms(logits._replace(negative=logits.negative - log_expected(log_q, logits)))


class BinaryCrossEntropy(SampledObjective):
    """Binary cross-entropy of the next item against sampled items, averaged over terms and real positions.

    The defaults are SASRec's of 2018: one uniform negative that the window does not hold.

    Args:
        num_negatives: N, negatives per position.
        proposal: `uniform`, `popularity` (train count ** alpha) or `in-batch`.
        shared: who shares a draw: `position`, `row` or `batch`.
        exclude: negatives that do not count: `nothing`, `target` or `window`.
        alpha: exponent of the popularity.
        positions: `all`, or `last` for encoders that see the future.
    """

    name = "bce"
    limits = {"num_negatives": AtLeast(1)}

    def __init__(
        self,
        num_negatives: int = 1,
        proposal: Proposal = "uniform",
        shared: Shared = "position",
        exclude: Exclude = "window",
        alpha: float = 1.0,
        positions: Positions = "all",
    ):
        if proposal == "in-batch":
            shared, exclude = "batch", "target" if exclude == "nothing" else exclude
        super().__init__(NegativeSampler(num_negatives, proposal, shared, exclude, False, alpha), positions)

    def terms(self, items: ItemTable) -> Terms:
        return lambda logits: binary_terms(logits, 1.0)


class GBCE(SampledObjective):
    """Generalised binary cross-entropy: BCE whose positive is weighed down by how thinly negatives are sampled.

    Petrov and Macdonald, gSASRec, RecSys 2023, https://arxiv.org/abs/2308.07192. With alpha = N / (V - 1), the share of
    the catalog that is drawn, beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha) and the loss is
    -(beta * log sigmoid(s+) + sum_j log(1 - sigmoid(s_j))) / (N + 1). t = 0 is BCE; t = 1 gives calibrated
    probabilities. The authors transform the positive logit in float64; this is the same number without that.

    Args:
        num_negatives: N, negatives per position.
        t: calibration, from 0 (BCE) to 1 (calibrated).
        shared: who shares a draw: `position`, `row` or `batch`.
        exclude: negatives that do not count; the authors keep collisions.
        positions: `all`, or `last` for encoders that see the future.
    """

    name = "gbce"
    limits = {"num_negatives": AtLeast(1), "t": Between(0, 1)}

    def __init__(
        self,
        num_negatives: int = 256,
        t: float = 0.75,
        shared: Shared = "position",
        exclude: Exclude = "nothing",
        positions: Positions = "all",
    ):
        super().__init__(NegativeSampler(num_negatives, "uniform", shared, exclude), positions)
        self.t = t

    def terms(self, items: ItemTable) -> Terms:
        beta = gbce_beta(self.sampler.num_negatives, items.num_items, self.t)
        return lambda logits: binary_terms(logits, beta)


def gbce_beta(num_negatives: int, num_items: int, t: float) -> float:
    """Returns the power of the positive's probability in gBCE (equation 8 of the paper)."""
    alpha = min(1.0, num_negatives / max(1, num_items - 1))
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def softmax_terms(logits: Logits) -> Tensor:
    """Sums -log softmax of the target among itself and the negatives that count."""
    positive, negative = logits.positive, logits.negative
    if logits.taken is not None:
        negative = negative.masked_fill(logits.taken, -torch.inf)
    return (torch.cat([positive[:, None], negative], 1).logsumexp(1) - positive).sum()


def binary_terms(logits: Logits, beta: float) -> Tensor:
    """Sums -(beta log sigmoid(s+) + sum_j log(1 - sigmoid(s_j))) / (N + 1)."""
    losses = F.softplus(logits.negative)  # -log(1 - sigmoid)
    if logits.taken is not None:
        losses = losses.masked_fill(logits.taken, 0.0)
    return (beta * F.softplus(-logits.positive).sum() + losses.sum()) / (1 + losses.shape[1])


def log_expected(log_q: Tensor, logits: Logits) -> Tensor:
    """Log of how often each negative is expected among those that count, given that the target is not one of them.

    Args:
        log_q: [V], log probability of drawing each item.
        logits: of a block, with `taken`.

    Returns:
        [b, N].
    """
    log_q = log_q.clamp_min(-100.0)  # an item that is never drawn is only looked up as a target
    counted = logits.negative.shape[1] - logits.taken.sum(1, keepdim=True)
    # The target is left out, so the probabilities of the others are divided by one minus its own.
    rest = torch.log1p(-log_q[logits.target_ids].exp().clamp_max(1 - 1e-6))[:, None]
    return log_q[logits.ids] - rest + counted.clamp_min(1).float().log()
