"""A table of example users for the tracker."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightrec.data.datamodule import SequenceDataModule
from lightrec.recommender import SequenceRecommender


class ExampleTable(Callback):
    """Writes a table of example users to Weights & Biases: their last items beside what is recommended, by title.

    Without a `WandbLogger` it writes nothing; `rows` gives the table in any case.

    Args:
        num_users: rows of the table.
        k: items recommended to each user.
        history: most recent items shown.
    """

    def __init__(self, num_users: int = 8, k: int = 10, history: int = 5):
        self.num_users, self.k, self.history = num_users, k, history

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not loggers or trainer.datamodule is None:
            return
        rows = self.rows(trainer.datamodule, pl_module)
        for logger in loggers:
            logger.log_table("examples", columns=["user", "history", "target", "recommended"], data=rows)

    def rows(self, datamodule: SequenceDataModule, model: SequenceRecommender) -> list[list[str]]:
        """Returns [user, last items, target, recommended items] for the first users of the validation part."""
        batch = next(iter(datamodule.val_dataloader()))
        count = min(self.num_users, len(batch))
        batch = batch.map(lambda t: t[:count]).to(model.device)
        training = model.training
        model.eval()
        item_ids, _ = model.recommend(batch, self.k)
        model.train(training)
        catalog, users = datamodule.catalog, datamodule.prepared.users
        rows = []
        for b in range(count):
            recent = batch.item_ids[b, : batch.lengths[b]][-self.history :]
            groups = recent, batch.target_ids[b], item_ids[b]
            titles = ["; ".join(catalog.title(int(i)) for i in group if i) for group in groups]
            rows.append([str(users[int(batch.user_ids[b])]), *titles])
        return rows
