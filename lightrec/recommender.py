"""The Lightning contract of every model, and the recommender that is made of items, an encoder and an objective."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Literal

import lightning as L
import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.interfaces import Configurable, ItemTable, Objective, SequenceEncoder, describe
from lightrec.metrics.ranking import RankingMetrics

Decay = Literal["constant", "linear", "cosine"]


class SequenceRecommender(Configurable, L.LightningModule, ABC):
    """Turns histories into ranked lists; owns steps, metrics and the optimiser, and knows no architecture.

    A subclass gives `loss` and `recommend`. Its constructor signature is its configuration.

    Args:
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay (AdamW) on matrices; biases and norms are spared.
        betas: decay rates of Adam's two moments.
        warmup_steps: steps of linear warm-up from 0.
        decay: how the rate falls from its peak to 0 at the last step of the run.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        super().__init__()
        self.learning_rate, self.weight_decay, self.betas = learning_rate, weight_decay, tuple(betas)
        self.warmup_steps, self.decay = warmup_steps, decay
        self.save_hyperparameters(describe(self)["init_args"])
        self.metrics = RankingMetrics()

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Returns the scalar training loss of a batch of windows."""

    @abstractmethod
    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Ranks the catalog for each history.

        Args:
            batch: histories; `seen_ids` are left out of the lists, `candidate_ids`, if given, are all there is to rank.
            k: length of the lists.

        Returns:
            item_ids [B, K], best first, 0 where candidates ran out; scores [B, K] in float32, -inf there.
        """

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_step(batch_idx)
        loss = self.loss(batch)
        self._log_loss(loss.detach(), len(batch))
        return loss

    @torch.compiler.disable  # bookkeeping, which torch.compile cannot trace and should not
    def _log_loss(self, loss: Tensor, batch_size: int) -> None:
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=batch_size)

    @torch.compiler.disable
    def _seed_step(self, batch_idx: int) -> None:
        """Makes the randomness of a step a function of (seed, epoch, step, rank): resuming is then exact anywhere."""
        seed = getattr(getattr(self.trainer, "datamodule", None), "seed", 0) or 0
        # Hashed, because the CPU generator keeps 32 bits of a seed: neighbouring steps and processes differ in them.
        place = f"{seed} {self.current_epoch} {batch_idx} {self.global_rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big"))

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int, k: int = 10) -> tuple[Tensor, Tensor, Tensor]:
        """Returns user_ids [B], item_ids [B, K] and scores [B, K]."""
        return batch.user_ids, *self.recommend(batch, k)

    def _start_evaluation(self) -> None:
        self.metrics.reset()
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.metrics.connect(item_counts=data.item_counts, candidates=data.candidates)

    def _evaluate(self, batch: Batch) -> None:
        if not len(batch):  # a process with no row of its own still takes part in the reduction
            return
        # One item more than is measured: a target tied with it is known to be tied beyond the list.
        item_ids, scores = self.recommend(batch, self.metrics.max_k + 1)
        self.metrics.update(item_ids, scores, batch.target_ids, batch.user_ids, batch.history_lengths)

    def _log_metrics(self, part: str) -> None:
        values = {f"{part}/{name}": value for name, value in self.metrics.compute().items()}
        shown = next((name for name in values if name.startswith(f"{part}/ndcg@10")), None)
        for name, value in values.items():
            # Reduced over processes already, from sums: nothing is averaged here.
            self.log(name, value, prog_bar=name == shown, rank_zero_only=False, sync_dist=False)

    def configure_optimizers(self):
        params = [p for p in self.parameters() if p.requires_grad]
        decayed = [p for p in params if p.dim() > 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}]
        groups.append({"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0})
        groups = [g for g in groups if g["params"]]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)
        if not self.warmup_steps and self.decay == "constant":
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_at)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return 1.0
        last = self.trainer.estimated_stepping_batches
        if last == float("inf"):
            raise ValueError(f"decay={self.decay!r} needs a last step: set trainer.max_epochs or trainer.max_steps.")
        done = min(1.0, (step - self.warmup_steps) / max(1, last - self.warmup_steps))
        if self.decay == "linear":
            return 1.0 - done
        return 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * done)).item())

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # The only link to the writer of files, and only when one is written.
        from lightrec.checkpoint import describe_run

        checkpoint["lightrec"] = describe_run(self)


class EncoderRecommender(SequenceRecommender):
    """A recommender composed of an item table, a sequence encoder and an objective.

    Args:
        items: vectors and scores of the catalog.
        encoder: state after each item.
        objective: what is asked of a history while training.
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay on matrices.
        betas: decay rates of Adam's two moments.
        warmup_steps: steps of linear warm-up from 0.
        decay: how the rate falls from its peak to 0 at the last step of the run.
    """

    def __init__(
        self,
        items: ItemTable,
        encoder: SequenceEncoder,
        objective: Objective,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        super().__init__(learning_rate, weight_decay, betas, warmup_steps, decay)
        if items.hidden_size != encoder.hidden_size:
            raise ValueError(
                f"items.hidden_size ({items.hidden_size}) must equal encoder.hidden_size ({encoder.hidden_size})."
            )
        self.items, self.encoder, self.objective = items, encoder, objective

    def vectors(self, batch: Batch) -> Tensor:
        """Returns x [B, L, D], what enters the encoder; the place to add times or other columns."""
        return self.items(batch.item_ids)

    def encode(self, batch: Batch) -> Tensor:
        """Returns hidden [B, L, D], the state after each item of the batch."""
        return self.encoder(self.vectors(batch), batch.lengths)

    def query(self, batch: Batch) -> Tensor:
        """Returns [B, D], the state that the catalog is scored with."""
        return self.encoder.last(self.vectors(batch), batch.lengths)

    def loss(self, batch: Batch) -> Tensor:
        return self.objective(self, batch)

    @torch.no_grad()
    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        return self.items.top_k(self.query(batch), k, batch.seen_ids, batch.candidate_ids)
