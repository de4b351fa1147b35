"""What the contract checks share: a batch, a trainer, comparisons that say in a sentence what differs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lightrec.data.batch import Batch
from lightrec.data.datamodule import SequenceDataModule
from lightrec.metrics.ranking import RankingMetrics
from lightrec.recommender import SequenceRecommender
from lightrec.testing.toy import toy_data, toy_log

Factory = Callable[[int, int], SequenceRecommender]
"""(num_items, max_length) -> an untrained recommender."""

NUM_ITEMS, MAX_LENGTH = 40, 10
CLOSE = dict(rtol=1e-4, atol=1e-5)  # float32: another batch shape is another order of summation
LENGTHS = (10, 7, 1, 4, 9, 2)


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


def named(part: Any) -> str:
    return type(part).__name__


def gap(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().nan_to_num(nan=torch.inf).max().item()


def is_trained(model: SequenceRecommender) -> bool:
    return any(p.requires_grad for p in model.parameters())


def modules_in(description: Any) -> set[str]:
    """Modules of all classes in a description, which are trusted: the test has imported them."""
    if isinstance(description, list):
        return set().union(*map(modules_in, description))
    if not isinstance(description, dict):
        return set()
    own = {description["class_path"].rpartition(".")[0]} if "class_path" in description else set()
    return own.union(*map(modules_in, description.values()))


def sample_batch(width: int = MAX_LENGTH) -> Batch:
    """An evaluation batch of random histories with times, one as long as allowed, one of a single item."""
    histories = [torch.randperm(NUM_ITEMS)[: length + 3].add(1).tolist() for length in LENGTHS]
    windows = [history[3:][-width:] for history in histories]  # what was seen reaches back before the window
    batch = Batch.from_histories(histories)
    lengths = torch.tensor([len(window) for window in windows])
    item_ids = torch.zeros(len(windows), width, dtype=torch.long)
    for row, window in enumerate(windows):
        item_ids[row, : len(window)] = torch.tensor(window)
    times = 1_000_000_000 + torch.randint(1, 10 * 86_400, (len(windows), width + 1)).cumsum(1)
    after = times.gather(1, lengths[:, None])
    return batch.replace(
        item_ids=item_ids,
        lengths=lengths,
        timestamps=torch.where(item_ids > 0, times[:, :width], 0),
        target_timestamps=after,
    )


def ready(factory: Factory) -> SequenceRecommender:
    """A recommender in evaluation mode; one that counts has counted a toy log."""
    model = factory(NUM_ITEMS, MAX_LENGTH)
    if not is_trained(model):
        with tempfile.TemporaryDirectory() as folder:
            log = toy_log(num_users=NUM_ITEMS, num_items=NUM_ITEMS)
            data = toy_data(folder, log, max_length=MAX_LENGTH, with_times=True)
            make_trainer(Path(folder), epochs=1).fit(model, datamodule=data)
    return model.eval()


def require_same_lists(
    model: SequenceRecommender,
    batch: Batch,
    changed: Batch,
    what: str,
    order: Tensor | None = None,
    other: SequenceRecommender | None = None,
) -> None:
    """Compares lists by score, and by item where scores are apart: equals may stand in any order.

    `changed` is asked of the model itself, or of the `other` one, which may be on another device.
    """
    ids, scores = model.recommend(batch, 5)
    if order is not None:
        ids, scores = ids[order], scores[order]
    other_ids, other_scores = (t.to(ids.device) for t in (other or model).recommend(changed, 5))
    require(torch.allclose(scores, other_scores, **CLOSE), f"{what} changed scores by {gap(scores, other_scores):.2g}.")
    apart = torch.full_like(ids, True, dtype=torch.bool)
    far = ~torch.isclose(scores[:, 1:], scores[:, :-1], rtol=1e-3, atol=1e-4)
    apart[:, 1:] &= far
    apart[:, :-1] &= far
    apart[:, -1] = False  # it may tie with what is not listed
    require(torch.equal(ids[apart], other_ids[apart]), f"{what} changed the recommended items.")


def popularity_ndcg(data: SequenceDataModule) -> float:
    metrics = RankingMetrics(ks=(10,), beyond=False)
    for batch in data.val_dataloader():
        scores = data.item_counts.double().repeat(len(batch), 1)
        scores[:, 0] = -torch.inf
        scores.scatter_(1, batch.seen_ids, -torch.inf)
        # Equal counts in random order: the pessimistic rule would make the floor lower than it is.
        best, item_ids = (scores + torch.rand_like(scores) * 0.5).topk(11)
        metrics.update(item_ids, best, batch.target_ids)
    return metrics.compute()["ndcg@10"].item()


def make_trainer(
    folder: Path, epochs: int, callbacks: list | None = None, check_val_every_n_epoch: int = 1
) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=callbacks,
        check_val_every_n_epoch=check_val_every_n_epoch,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


@contextmanager
def quiet(seed: int) -> Iterator[None]:
    """One thread, a seed and no chatter; puts everything back."""
    threads, log = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    level = log.level
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            log.setLevel(level)
