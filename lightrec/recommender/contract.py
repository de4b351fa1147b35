"""SequenceRecommender: the Lightning contract of every model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.interfaces import Losses, total
from lightrec.part import Part
from lightrec.recommender.evaluation import Evaluation, RankingEvaluation
from lightrec.recommender.optimizer import AdamW, Optimizer
from lightrec.recommender.record import describe_run

if TYPE_CHECKING:
    from lightrec.data.corpus import Corpus


class SequenceRecommender(Part, L.LightningModule, ABC):
    """Turns histories into ranked lists; owns the steps of training and evaluation, and knows no architecture.

    A subclass gives `loss` and `recommend`. Its constructor signature is its configuration.

    Args:
        optimizer: how it is trained.
        evaluation: how it is judged; None is by ranking metrics. It may be replaced before a run.
    """

    def __init__(self, optimizer: Optimizer = AdamW(), evaluation: Evaluation | None = None):
        super().__init__()
        self.optimizer = optimizer
        self.evaluation: Evaluation = evaluation or RankingEvaluation()
        self.save_hyperparameters(self.describe()["init_args"])

    @abstractmethod
    def loss(self, batch: Batch) -> Losses:
        """Returns the named terms of the training loss of a batch of windows."""

    @abstractmethod
    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Ranks the catalog for each history.

        Args:
            batch: histories; `seen_ids` are left out of the lists, `candidate_ids`, if given, are all there is to rank.
            k: length of the lists.

        Returns:
            item_ids [B, K], best first, 0 where candidates ran out; scores [B, K] in float32, -inf there.
        """

    # What the data tell

    def setup(self, stage: str) -> None:
        corpus = getattr(self.trainer.datamodule, "corpus", None)
        if corpus is not None:
            self.connect(corpus)

    def connect(self, corpus: Corpus) -> None:
        """Hands the corpus to every part below, in the order in which they were made."""
        self._seed = corpus.seed
        for module in self.modules():
            if module is not self and isinstance(module, Part):
                module.connect(corpus)

    _seed = 0

    @property
    def progress(self) -> float:
        """Share of the epochs of a run that are done, in [0, 1]; 1 outside of a run of known length."""
        trainer = self._trainer
        if trainer is None or not trainer.max_epochs or trainer.max_epochs < 0:
            return 1.0
        return min(1.0, trainer.current_epoch / trainer.max_epochs)

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_step(batch_idx)
        losses = self.loss(batch)
        loss = total(losses)
        self._log_losses(loss.detach(), losses, len(batch))
        return loss

    @torch.compiler.disable  # bookkeeping, which torch.compile cannot trace and should not
    def _log_losses(self, loss: Tensor, losses: Losses, batch_size: int) -> None:
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=batch_size)
        if len(losses) > 1:
            for name, term in losses.items():
                self.log(f"train/{name}", term.value.detach(), on_step=False, on_epoch=True, batch_size=batch_size)

    @torch.compiler.disable
    def _seed_step(self, batch_idx: int) -> None:
        """Makes the randomness of a step a function of (seed, epoch, step, rank): resuming is then exact anywhere."""
        # Hashed, because the CPU generator keeps 32 bits of a seed: neighbouring steps and processes differ in them.
        place = f"{self._seed} {self.current_epoch} {batch_idx} {self.global_rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big"))

    def configure_optimizers(self):
        return self.optimizer.configure(self, lambda: self.trainer.estimated_stepping_batches)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self.evaluation.reset("val")

    def on_test_epoch_start(self) -> None:
        self.evaluation.reset("test")

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

    def _evaluate(self, batch: Batch) -> None:
        if len(batch):  # a process with no row of its own still takes part in the reduction
            self.evaluation.update(self, batch)

    def _log_metrics(self, part: str) -> None:
        values = {f"{part}/{name}": value for name, value in self.evaluation.compute().items()}
        shown = next((name for name in values if name.startswith(f"{part}/ndcg@10")), None)
        for name, value in values.items():
            # Reduced over processes already, from sums: nothing is averaged here.
            self.log(name, value, prog_bar=name == shown, rank_zero_only=False, sync_dist=False)

    # What a checkpoint says

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["lightrec"] = describe_run(self, self._trainer.datamodule if self._trainer else None)
