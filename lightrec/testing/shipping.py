"""Checks of what becomes of a recommender outside of its own test: several processes, a GPU, export, and what it costs.

They take longer than those of `lightrec.testing.contracts` and start processes, so `check_recommender` leaves them out;
`lightrec plugins check` runs them all.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.checkpoint import build
from lightrec.configurable import describe
from lightrec.data.batch import Batch
from lightrec.data.datamodule import SequenceDataModule
from lightrec.extensions.worker import Worker, serve
from lightrec.interfaces import total
from lightrec.models.sasrec import SASRec
from lightrec.recommender import EncoderRecommender, SequenceRecommender
from lightrec.testing.harness import (
    CLOSE,
    MAX_LENGTH,
    Factory,
    gap,
    is_trained,
    modules_in,
    named,
    quiet,
    ready,
    require,
    require_same_lists,
    sample_batch,
)
from lightrec.testing.toy import toy_data, toy_log

_OTHER_DEVICE = 1e-3  # of the largest value: float32 sums in another order, through every layer
_TWO_PROCESSES = 300.0  # seconds, most of them for importing torch on a machine with much to do


def check_two_processes(factory: Factory) -> None:
    """Two processes train to one and the same model, and measure what one process measures.

    The model is built again in other processes, so its classes must be importable there by name. Needs `os.fork`.
    """
    with quiet(seed=11), tempfile.TemporaryDirectory() as folder:
        data = _odd_data(folder)
        description = describe(factory(data.num_items, data.max_length))
        job = {"model": description, "trust": sorted(modules_in(description)), "folder": folder}
        with Worker("from lightrec.testing.shipping import train_in_two; train_in_two()", job) as worker:
            try:
                found = worker.answer(_TWO_PROCESSES)
            except TimeoutError:
                found = {"error": f"it did not end within {_TWO_PROCESSES:g} s"}
            if found is None:
                found = {"error": worker.obituary()}
    name = description["class_path"].rpartition(".")[2]
    require("error" not in found, f"{name} cannot be trained in two processes: {found.get('error')}")
    require(
        found["one"].keys() == found["two"].keys()
        and all(abs(value - found["two"][key]) <= 1e-9 for key, value in found["one"].items()),
        f"{name} is measured otherwise in two processes: {found['two']}, in one {found['one']}.",
    )


def check_export(factory: Factory) -> None:
    """`torch.export` captures the query, for any number of rows, and the program gives the same states."""
    with quiet(seed=12), torch.no_grad():
        model, batch = ready(factory), sample_batch()
        query = _Query(model).eval()
        dim = torch.export.Dim("batch", min=2, max=4096)
        arguments = (batch.item_ids, batch.lengths, batch.timestamps, batch.target_timestamps)
        try:
            # Strict: the other form takes the length of a tensor, `len(lengths)`, for a constant.
            program = torch.export.export(
                query, arguments, dynamic_shapes=tuple({0: dim} for _ in arguments), strict=True
            )
        except Exception as error:
            line = next((part for part in str(error).strip().split("\n") if part.strip()), type(error).__name__)
            raise AssertionError(f"torch.export cannot capture {named(model)}.query: {line.strip()[:300]}") from error
        for rows in (len(batch), 3):
            some = tuple(t[:rows] for t in arguments)
            expected, found = query(*some), program.module()(*some)
            require(
                torch.allclose(expected, found, **CLOSE),
                f"the exported {named(model)} differs by {gap(expected, found):.2g} on {rows} rows.",
            )


def check_on_a_gpu(factory: Factory, device: str = "cuda") -> None:
    """States, gradients and lists of a GPU are those of the CPU, and a training step there is finite.

    Each device takes the kernel that it would take in a run. Two devices draw other random numbers, so nothing is
    dropped in the comparison.

    Args:
        factory: (num_items, max_length) -> an untrained recommender.
        device: the other device.
    """
    with quiet(seed=14), _whole_float32():
        model, batch = ready(factory), sample_batch()
        other, there = copy.deepcopy(model).to(device), batch.to(device)
        require_same_lists(model, batch, there, f"{named(model)}: moving to {device}", other=other)
        if isinstance(model, EncoderRecommender):
            weights = torch.randn(len(batch), model.items.hidden_size)
            ours, theirs = (_states_and_gradients(m, b, weights) for m, b in ((model, batch), (other, there)))
            largest = max(value.abs().max().item() for value in ours.values())
            for name, value in ours.items():
                # a gradient that is zero but for rounding, such as that of a key's bias, has no digits to compare
                scale = max(value.abs().max().item(), 1e-3 * largest)
                error = gap(value, theirs[name].to(value)) / scale
                wrong = f"{named(model)}: {name} on {device} is {error:.2g} off that of the CPU."
                require(error <= _OTHER_DEVICE, wrong)
        if not is_trained(model):
            return
        ids = F.pad(there.item_ids, (1, 0), value=1)  # one event more in front: every row has a target
        users, times = torch.arange(len(ids), device=device), F.pad(there.timestamps, (1, 0))
        loss = total(other.train().loss(Batch(ids, there.lengths + 1, users, timestamps=times)))
        require(bool(loss.isfinite()), f"{named(model)}.loss is {loss.item()} on {device}.")
        loss.backward()
        for name, p in other.named_parameters():
            require(
                p.grad is None or bool(p.grad.isfinite().all()),
                f"{named(model)}: the gradient of {name} is not finite on {device}.",
            )


@contextmanager
def _whole_float32() -> Iterator[None]:
    """cuDNN's recurrent networks round products to 10 bits unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _states_and_gradients(model: EncoderRecommender, batch: Batch, weights: Tensor) -> dict[str, Tensor]:
    """The states after the last items, and the gradients of their product with `weights` by parameter."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):  # cuDNN has no backward in evaluation mode
            module.train()
            module.dropout = 0.0
    states = model.query(batch)
    (states * weights.to(states.device)).sum().backward()
    found = {f"the gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return {"the state": states.detach(), **found}


def compare_speed(factory: Factory, num_items: int = 1000, max_length: int = 50, rounds: int = 7) -> dict[str, float]:
    """Times a recommender beside SASRec of the same width, in turns, on one thread.

    Args:
        factory: (num_items, max_length) -> an untrained recommender.
        num_items: size of the catalog.
        max_length: of the histories, all full.
        rounds: measurements; the median counts.

    Returns:
        How many times SASRec's time it takes: `train`, forward and backward of 64 rows (if it is trained), and
        `recommend`, lists of ten for 64 rows.
    """
    with quiet(seed=13):
        model = factory(num_items, max_length)
        width = getattr(getattr(model, "items", None), "hidden_size", 64)
        models = [model, SASRec(num_items, max_length=max_length, hidden_size=width)]
        ids = torch.randint(1, num_items + 1, (64, max_length + 1))
        times = 1_000_000_000 + 3600 * torch.arange(max_length + 1).expand_as(ids)
        whole = Batch(ids, torch.full((64,), max_length + 1), torch.arange(64), timestamps=times)
        asked = Batch.from_histories(ids[:, :-1].tolist()).replace(
            timestamps=times[:, :-1], target_timestamps=times[:, -1:]
        )
        found = {"train": _ratio(models, lambda m: total(m.train().loss(whole)).backward(), rounds)}
        for each in models:
            each.eval()
        with torch.no_grad():
            found["recommend"] = _ratio(models, lambda m: m.recommend(asked, 10), rounds)
        return found


def _ratio(models: list[SequenceRecommender], work, rounds: int) -> float:
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for model, taken in zip(models, seconds, strict=True):
            began = time.process_time()  # of this process alone, whatever else the machine does
            work(model)
            if turn:  # the first one warms up
                taken.append(time.process_time() - began)
    return median(seconds[0]) / max(median(seconds[1]), 1e-9)


class _Query(nn.Module):
    """What a service would call: a history and its times in, the state that the catalog is scored with out."""

    def __init__(self, recommender: EncoderRecommender):
        super().__init__()
        self.recommender = recommender

    def forward(self, item_ids: Tensor, lengths: Tensor, timestamps: Tensor, target_timestamps: Tensor) -> Tensor:
        return self.recommender.query(
            Batch(item_ids, lengths, lengths, timestamps=timestamps, target_timestamps=target_timestamps)
        )


def train_in_two() -> None:
    """What the other process of `check_two_processes` runs."""
    job, say = serve()
    torch.set_num_threads(1)
    try:
        say(_train_in_two(job["model"], job["trust"], job["folder"]))
    except Exception as error:  # whatever a stranger's model does
        text = str(error).strip() or type(error).__name__
        # Of a traceback out of a child process, the last line tells.
        say({"error": text.split("\n")[-1 if "Traceback" in text else 0]})


def _odd_data(folder: str) -> SequenceDataModule:
    """An odd number of users, so that two processes have unlike numbers of rows."""
    return toy_data(folder, toy_log(num_users=33), max_length=MAX_LENGTH, batch_size=4, with_times=True)


def _train_in_two(description: dict, trust: list[str], folder: str) -> dict:
    def fitter(devices: int) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu",
            devices=devices,
            strategy="ddp_fork" if devices > 1 else "auto",
            max_epochs=1,
            limit_val_batches=0,
            callbacks=[_SameEverywhere()],
            logger=False,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )

    os.chdir(folder)
    torch.manual_seed(0)
    model = build(description, trust)
    data = _odd_data(folder)
    fitter(2).fit(model, datamodule=data)
    (two,) = fitter(2).test(model, datamodule=data, verbose=False)
    (one,) = fitter(1).test(model, datamodule=data, verbose=False)
    return {"one": one, "two": two}


class _SameEverywhere(L.Callback):
    """Makes sure that the processes ended with the same parameters."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        mine = [p.detach() for p in pl_module.parameters()]
        for p in mine:
            other = p.clone()
            torch.distributed.broadcast(other, 0)
            if not torch.equal(p, other):
                raise RuntimeError("the processes ended with different parameters.")
