"""Runs of `test_distributed.py` in one process of their own: world sizes and a folder on the command line.

Lightning forks the processes of a run, so that everything is imported once; runs with one process come last, because a
process that has computed is not forked.
"""

import json
import sys
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.options import LogFile
from lightrec.interfaces import Losses
from lightrec.models.sasrec import SASRec
from lightrec.recommender import AdamW, SequenceRecommender
from lightrec.testing import toy_data, toy_log


class Fixed(SequenceRecommender):
    """Shows everybody the same list: `best` first, then the others by number, `worst` last."""

    def __init__(self, num_items: int, best: int, worst: list[int]):
        super().__init__()
        self.scores = -torch.arange(num_items + 1.0)
        self.scores[best] = 1.0
        self.scores[worst] -= 1000.0
        self.scores[0] = -torch.inf

    def loss(self, batch: Batch) -> Losses:
        raise NotImplementedError

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        scores = self.scores.repeat(len(batch), 1).scatter(1, batch.seen_ids, -torch.inf)
        best, item_ids = scores.topk(k)
        return item_ids, best


class Report(L.Callback):
    """Writes what each process logged, and how many rows and users were its own."""

    def __init__(self, path: str):
        self.path = path
        self.users: list[int] = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.users += batch.user_ids.tolist()

    def on_test_end(self, trainer, pl_module):
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        metrics = pl_module.evaluation.metrics
        hits = metrics.totals[0, metrics.ks.index(10), 0].item()  # of this process alone
        Path(f"{self.path}-{trainer.world_size}-{trainer.global_rank}.json").write_text(
            json.dumps({"users": self.users, "hits": hits, "values": values})
        )


def trainer(world: int, folder: Path, callbacks: list, epochs: int = 1) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp_fork" if world > 1 else "auto",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )


def fixed_run(world: int, folder: Path, users: int) -> None:
    """Of seven users, the first four get what they took next."""
    lines = ["user,item"]
    for user in range(users):
        own = [f"{user}-a", f"{user}-b", f"{user}-c", "hit" if user < 4 else f"{user}-miss"]
        lines += [f"{user},{item}" for item in own]
    # A list needs 21 unseen items; users with two events are trained on only.
    lines += [f"filler-{i},{i}-{j}" for i in range(15) for j in range(2)]
    path = folder / f"{users}.csv"
    path.write_text("\n".join(lines) + "\n")
    data = SequenceDataModule(
        path=str(path),
        log=LogFile(user_column="user", item_column="item"),
        eval_batch_size=2,
        cache_dir=str(folder / "cache"),
    )
    worst = [i for i, name in enumerate(data.catalog.item_ids, start=1) if "miss" in name]
    model = Fixed(data.num_items, data.catalog.encode(["hit"])[0], worst)
    trainer(world, folder, [Report(str(folder / f"fixed-{users}"))]).test(model, datamodule=data, verbose=False)


def sasrec_run(world: int, folder: Path, train_world: int) -> None:
    """Trains on two processes, once, and tests what was saved on any number."""
    data = toy_data(folder, toy_log(num_users=37), batch_size=8)
    path = folder / "sasrec.ckpt"
    if train_world:
        model = SASRec(data.num_items, max_length=data.max_length, hidden_size=16, optimizer=AdamW(learning_rate=1e-2))
        trainer(train_world, folder, [Save(str(path))], epochs=3).fit(model, datamodule=data)
    model = SASRec(data.num_items, max_length=data.max_length, hidden_size=16)
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    trainer(world, folder, [Report(str(folder / "sasrec"))]).test(model, datamodule=data, verbose=False)


def same_batches_run(world: int, folder: Path) -> None:
    """Trains on global batches of eight rows, on one process or shared by two."""
    data = toy_data(folder / "even", toy_log(num_users=32), batch_size=8 // world)
    torch.manual_seed(0)
    model = SASRec(data.num_items, max_length=data.max_length, hidden_size=16, dropout=0.0)
    run = trainer(world, folder, [Save(str(folder / f"even-{world}.ckpt"))], epochs=2)
    run.limit_val_batches = 0
    run.fit(model, datamodule=data)


class Save(L.Callback):
    def __init__(self, path: str):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def main(folder: Path, worlds: list[int]) -> None:
    same_batches_run(2, folder)
    for world in worlds:
        sasrec_run(world, folder, train_world=2 if world == worlds[0] else 0)
        fixed_run(world, folder, users=7)
        fixed_run(world, folder, users=1)
    same_batches_run(1, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(world) for world in sys.argv[2:]])
