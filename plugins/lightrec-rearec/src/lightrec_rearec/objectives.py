"""ERL and PRL: what is asked of the K + 1 states of a reasoning.

ERL (ensemble): the mean of the states is trained, and the distributions of the steps are pushed apart.
PRL (progressive): every step is trained, the early ones at a high temperature, and each step must be found again
from a noisy token (contrast within the batch).

Where the paper and the authors' code differ, `fidelity` says which is meant. The code is the default, since the
published numbers were made with it. There all scores are divided by .07, and so they are here. With undivided scores
ERL's divergence at its weight of .05 outweighs the cross-entropy, and PRL's contrast learns far more slowly
(docs/lab of lightrec).

Shapes: B batch, L length, T rows with a target, K num_steps, D hidden_size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightrec import Batch, EncoderRecommender, InputError, ItemTable, Objective, Term
from lightrec.configurable import Above, AtLeast
from lightrec.nn.sequence import last_state, real_positions
from lightrec.objectives.next_item import NextItemStates, Positions, mean_over_targets, next_item_pairs
from lightrec.ops.blocks import rows_that_fit
from lightrec_rearec.reasoning import ReasoningEncoder

Fidelity = Literal["released", "paper"]


class ERL(Objective):
    """Ensemble reasoning learning: cross-entropy of the state that ranks, minus the divergence between steps.

    Args:
        weight: lambda, of the divergence; the paper searches .001 to .1.
        temperature: tau, divides scores.
        fidelity: `released`: the mean over all pairs of KL(p_j || p_i), where p_i is held fixed; `paper`: the sum over
            i < j of KL(p_i || p_j).
        positions: `all` reasons after every item of a window, `last` after its last one, as the authors do (with
            `train_windows: prefixes`).
        divergence_rows: estimate the divergence from at most so many rows of a batch, drawn anew; it costs K + 1 rows
            of scores each. None takes all.

    Raises:
        InputError: the encoder does not reason.
    """

    limits: ClassVar = {"temperature": Above(0), "divergence_rows": AtLeast(1)}

    def __init__(
        self,
        weight: float = 0.05,
        temperature: float = 0.07,
        fidelity: Fidelity = "released",
        positions: Positions = "last",
        divergence_rows: int | None = None,
    ):
        super().__init__()
        self.weight, self.temperature, self.fidelity = weight, temperature, fidelity
        self.positions, self.divergence_rows = positions, divergence_rows

    def forward(
        self, recommender: EncoderRecommender, batch: Batch, states: NextItemStates | None = None
    ) -> dict[str, Term]:
        thought = Thought(recommender, batch, self.positions)
        reasoned, items, count = thought.states, recommender.items, len(thought.targets)
        loss = items.cross_entropy(thought.encoder.combine(reasoned), thought.targets, self.temperature)
        if not self.weight or reasoned.shape[1] < 2:
            return {"erl": Term(mean_over_targets(loss, count))}
        share, rows = 1.0, self.divergence_rows
        if rows is not None and rows < count:
            share = count / rows
            reasoned = reasoned[torch.randperm(count, device=reasoned.device)[:rows]]
        apart = divergence(items, reasoned, self.temperature, self.fidelity)
        loss = mean_over_targets(loss - self.weight * share * apart, count)
        return {"erl": Term(loss), "divergence": Term(share * apart.detach() / count, weight=0)}


class PRL(Objective):
    """Progressive reasoning learning: cross-entropy at every step, from smooth to sharp, and a contrast with noise.

    Step k has the temperature tau alpha^(K - k).

    Args:
        temperature: tau, of the last step and of the contrast; the paper searches .05 to 5.
        alpha: the step before has a temperature so many times as high; the paper searches 1 to 10.
        step_weight: of the steps before the last, as a whole.
        contrast_weight: of the contrast.
        noise_std: gamma, standard deviation of the noise on tokens (in the paper's formula it is the variance).
        warmup_epochs: epochs before the contrast begins.
        fidelity: `released`: the mean over the steps before the last, and the mean over the contrasts; `paper`: sums.
        positions: `all` reasons after every item of a window, `last` after its last one, as the authors do (with
            `train_windows: prefixes`). The contrast is between the last states of rows in either case.

    Raises:
        InputError: the encoder does not reason.
    """

    limits: ClassVar = {
        "temperature": Above(0),
        "alpha": Above(0),
        "noise_std": AtLeast(0),
        "warmup_epochs": AtLeast(0),
    }

    def __init__(
        self,
        temperature: float = 0.07,
        alpha: float = 5.0,
        step_weight: float = 1.0,
        contrast_weight: float = 1.0,
        noise_std: float = 0.01,
        warmup_epochs: int = 2,
        fidelity: Fidelity = "released",
        positions: Positions = "last",
    ):
        super().__init__()
        self.temperature, self.alpha = temperature, alpha
        self.step_weight, self.contrast_weight = step_weight, contrast_weight
        self.noise_std, self.warmup_epochs, self.fidelity = noise_std, warmup_epochs, fidelity
        self.positions = positions

    def temperatures(self, num_steps: int) -> list[float]:
        """Returns tau_0 to tau_K."""
        return [self.temperature * self.alpha ** (num_steps - k) for k in range(num_steps + 1)]

    def forward(
        self, recommender: EncoderRecommender, batch: Batch, states: NextItemStates | None = None
    ) -> dict[str, Term]:
        thought = Thought(recommender, batch, self.positions)
        released, num_steps = self.fidelity == "released", thought.states.shape[1] - 1
        losses = [
            recommender.items.cross_entropy(state, thought.targets, tau)
            for state, tau in zip(thought.states.unbind(1), self.temperatures(num_steps), strict=True)
        ]
        share = self.step_weight / num_steps if released and num_steps else self.step_weight
        terms = {"prl": Term(mean_over_targets(losses[-1] + share * sum(losses[:-1]), len(thought.targets)))}
        if num_steps and self.contrast_weight and recommender.current_epoch >= self.warmup_epochs:
            clean, noisy = thought.contrast(self.noise_std)
            found = contrast(noisy, clean, self.temperature)
            terms["contrast"] = Term(found.mean() if released else found.sum(), self.contrast_weight)
        return terms


class Thought:
    """The reasoning of a training batch, for the rows that have a target.

    Args:
        recommender: with a ReasoningEncoder.
        batch: windows.
        positions: `all` or `last`.

    Attributes:
        states: [T, K + 1, D].
        targets: [T].

    Raises:
        InputError: the encoder does not reason.
    """

    def __init__(self, recommender: EncoderRecommender, batch: Batch, positions: Positions):
        encoder = recommender.encoder
        if not isinstance(encoder, ReasoningEncoder):
            raise InputError(
                f"ERL and PRL train reasoning steps, and {type(encoder).__name__} takes none: use --model ReaRec with "
                f"--model.encoder {type(encoder).__name__}."
            )
        self.encoder, self.positions = encoder, positions
        inputs, targets = next_item_pairs(batch)
        self.lengths = inputs.lengths
        first, self.memory = encoder.start(recommender.history(inputs), positions)
        states = encoder.think(first, self.memory)
        if positions == "last":
            self.states, self.targets, self.at_end = states[:, 0], last_state(targets, inputs.lengths), states
            return
        rows = real_positions(inputs.lengths, targets.shape[1])
        self.states, self.targets = states.flatten(0, 1)[rows], targets.flatten()[rows]
        self.at_end = last_state(states, inputs.lengths)[:, None]

    def contrast(self, noise_std: float) -> tuple[Tensor, Tensor]:
        """Returns the states [B, K, D] of steps 1 to K after each row's last item, and the same from noisy tokens."""
        memory = self.memory
        if self.positions == "all":
            memory = self.encoder.narrow(memory, self.lengths)
        noisy = self.encoder.think(self.at_end[:, :, 0], memory, self.at_end, noise_std)
        return self.at_end[:, 0, 1:], noisy[:, 0, 1:]


def divergence(
    items: ItemTable,
    states: Tensor,
    temperature: float = 1.0,
    fidelity: Fidelity = "released",
) -> Tensor:
    """Sums over rows the divergence between the distributions of steps; see ERL.

    Scores of a block of rows are made, used and made again in the backward pass, so that memory stays bounded.

    Args:
        items: the catalog.
        states: [T, K + 1, D].
        temperature: divides scores.
        fidelity: which pairs, and which of the two is held fixed.
    """
    dtype, num_states = items.head_dtype, states.shape[1]
    if num_states < 2:
        return states.new_zeros(())

    def block(h: Tensor) -> Tensor:
        head = None if dtype is None else items.linear_head(h)
        if head is None:
            scores = items.score(h)[..., 1:]  # padding is not a candidate
        else:
            scores = F.linear(head.hidden.to(dtype), head.weight.to(dtype)).float()
            scores = scores if head.bias is None else scores + head.bias
        log_p = (scores.double() if h.dtype == torch.float64 else scores.float()).div(temperature).log_softmax(-1)
        p, total = log_p.exp(), 0.0
        if fidelity == "paper":
            for i in range(num_states - 1):
                for j in range(i + 1, num_states):
                    total = total + (p[:, i] * (log_p[:, i] - log_p[:, j])).sum()
            return total
        fixed = log_p.detach()
        others = fixed.sum(1, keepdim=True) - fixed
        # sum over i != j of KL(p_j || p_i) = p_j ((K log p_j) - sum of the other log p_i)
        return (p * ((num_states - 1) * log_p - others)).sum() / (num_states * (num_states - 1))

    size = rows_that_fit(4 * num_states * (items.num_items + 1), states.device, "distributions", least=16)
    return _in_blocks(block, size, states)


def contrast(noisy: Tensor, clean: Tensor, temperature: float = 1.0) -> Tensor:
    """Finds each clean state among those of the batch from its noisy one.

    Args:
        noisy: [B, K, D], what asks.
        clean: [B, K, D], what is asked: the same step of the other rows is the negative.
        temperature: divides the dot products.

    Returns:
        [K], the mean cross-entropy over the batch at each step.
    """
    scores = torch.einsum("akd,bkd->kab", noisy, clean) / temperature
    return -scores.log_softmax(-1).diagonal(dim1=1, dim2=2).mean(1)


def _in_blocks(block: Callable[[Tensor], Tensor], size: int, states: Tensor) -> Tensor:
    """Sums over blocks of rows, each made again in the backward pass."""
    return torch.stack([checkpoint(block, part, use_reentrant=False) for part in states.split(size)]).sum()
