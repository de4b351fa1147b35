"""Runs of `test_distributed.py` in a process of their own: a folder and world sizes on the command line."""

import json
import sys
from pathlib import Path

import lightning as L
import torch

from lightrec.data.datamodule import SequenceDataModule
from lightrec.data.options import Cleaning, LogFile, Protocol

BATCH = 12  # rows of a global batch: both 2 and 3 processes share it evenly


class Recorder(L.LightningModule):
    """Notes the users of every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list] = {"fit": [], "validate": [], "test": [], "predict": []}

    def note(self, stage: str, batch) -> None:
        self.seen[stage].append((self.current_epoch, batch.user_ids.tolist()))
        kind = batch.columns["kind"]
        assert kind.per == "position" and kind.values.device == batch.item_ids.device
        pairs = zip(batch.item_ids.flatten().tolist(), kind.values.flatten().tolist(), strict=True)
        self.seen.setdefault("kinds", []).append((stage, sorted(set(pairs))))

    def training_step(self, batch, batch_idx):
        self.note("fit", batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.note("validate", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)
        candidates = dict(zip(batch.user_ids.tolist(), batch.candidate_ids.tolist(), strict=True))
        self.seen.setdefault("candidates", []).append(candidates)

    def predict_step(self, batch, batch_idx):
        self.note("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, world: int, users: int) -> None:
    """Fits, tests and predicts; users have from 3 events on, and one has two."""
    events = [(f"u{u}", (5 * u + t * t) % 140) for u in range(users) for t in range(u % 30 + 3)]
    events += [("short", 1), ("short", 2), *(("many", i) for i in range(140))]
    lines = ["user,item,kind", *(f"{user},i{item},kind-{item}" for user, item in events)]  # a kind for each item
    path = folder / f"{users}.csv"
    path.write_text("\n".join(lines) + "\n")
    model = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp_fork" if world > 1 else "auto",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=Report(f"{folder}/{users}"),
    )

    def data(**options):
        cleaning, sizes = Cleaning(min_item_events=1), {"batch_size": BATCH // world, **options}
        sizes["log"] = LogFile(event_columns=["kind"])
        return SequenceDataModule(path=str(path), cleaning=cleaning, cache_dir=str(folder / "cache"), **sizes)

    trainer.fit(model, datamodule=data())
    trainer.test(
        model, datamodule=data(protocol=Protocol(candidates="uniform-100"), eval_batch_size=4 + world), verbose=False
    )
    trainer.predict(model, datamodule=data(), return_predictions=False)


class Report(L.Callback):
    """Writes what each process was given."""

    def __init__(self, path: str):
        self.path = path

    def teardown(self, trainer, pl_module, stage):
        name = f"{self.path}-{trainer.state.fn.value}-{trainer.world_size}-{trainer.global_rank}.json"
        Path(name).write_text(json.dumps(pl_module.seen))


if __name__ == "__main__":
    for size in map(int, sys.argv[2:]):
        for count in (1, 58):
            run(Path(sys.argv[1]), size, count)
