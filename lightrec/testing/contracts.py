"""The contract of a recommender as checks that a plug-in's tests call.

    from lightrec.testing import check_recommender

    def test_my_model_keeps_the_contract():
        check_recommender(lambda num_items, max_length: MyModel(num_items, max_length, hidden_size=16))

Each check builds what it needs from `factory(num_items, max_length)`, runs in seconds on one CPU thread and raises an
AssertionError that says in a sentence what was expected. Nothing in the process is changed: threads and random states
are put back.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from lightrec.checkpoint import build, load_recommender
from lightrec.data.batch import Batch
from lightrec.data.datamodule import SequenceDataModule, TrainWindows
from lightrec.interfaces import describe
from lightrec.metrics.ranking import RankingMetrics
from lightrec.recommender import EncoderRecommender, SequenceRecommender
from lightrec.testing.toy import toy_data, toy_log

Factory = Callable[[int, int], SequenceRecommender]
"""(num_items, max_length) -> an untrained recommender."""

NUM_ITEMS, MAX_LENGTH = 40, 10
CLOSE = dict(rtol=1e-4, atol=1e-5)  # float32: another batch shape is another order of summation
_LENGTHS = (10, 7, 1, 4, 9, 2)


def check_recommender(
    factory: Factory, causal: bool = True, train_windows: TrainWindows = "last", epochs: int = 200
) -> list[str]:
    """Runs every check that applies, see `applicable_checks`.

    Args:
        factory: (num_items, max_length) -> an untrained recommender; keep it small.
        causal: what the author says of the encoder; ignored for a recommender without one.
        train_windows: the rows that the model is trained on.
        epochs: most epochs to learn the toy rule in; training stops when it is found.

    Returns:
        Names of the checks that were run.
    """
    model = factory(NUM_ITEMS, MAX_LENGTH)
    if isinstance(model, EncoderRecommender):
        _require(
            model.encoder.causal == causal,
            f"{type(model.encoder).__name__}.causal is {model.encoder.causal}, the test says causal={causal}.",
        )
    checks = applicable_checks(model)
    for check in checks:
        if check is check_learns_toy_rule:
            check(factory, train_windows=train_windows, epochs=epochs)
        else:
            check(factory)
    return [check.__name__ for check in checks]


def applicable_checks(model: SequenceRecommender) -> list[Callable]:
    """Chooses the checks for a model by what it is.

    All recommenders: padding, batch permutation, seen items, checkpoint, configuration. Those with parameters that are
    trained: gradients at length one, the toy rule. Those with an encoder: top-k against all scores and, if the encoder
    says that it is causal, causality. A floor that counts has neither parameters nor an encoder.
    """
    checks = [check_config_round_trip, check_padding_invariance, check_batch_permutation, check_seen_items_excluded]
    if isinstance(model, EncoderRecommender):
        checks += [check_causality] if model.encoder.causal else []
        checks += [check_top_k_matches_full_scores]
    if _is_trained(model):
        checks += [check_gradients_at_length_one, check_learns_toy_rule]
    return [*checks, check_checkpoint_round_trip]


@torch.no_grad()
def check_causality(factory: Factory) -> None:
    """The state after an item depends on that item and those before it: changing the future changes nothing."""
    with _quiet(seed=1):
        model, batch = _ready(factory), _batch()
        before = model.encode(batch)
        for t in range(1, MAX_LENGTH):
            changed = batch.item_ids.clone()
            changed[:, t:] = torch.where(changed[:, t:] > 0, changed[:, t:] % NUM_ITEMS + 1, 0)
            after = model.encode(batch.replace(item_ids=changed))
            for row, length in enumerate(_LENGTHS):
                kept = slice(0, min(t, length))
                _require(
                    torch.allclose(before[row, kept], after[row, kept], **CLOSE),
                    f"{_name(model.encoder)} is not causal: changing the items from position {t} on changed the state "
                    f"at an earlier position by {_gap(before[row, kept], after[row, kept]):.2g} (row of length "
                    f"{length}). If it is meant to see the future, it must say causal = False.",
                )


@torch.no_grad()
def check_padding_invariance(factory: Factory) -> None:
    """What stands at or beyond `lengths`, and how wide the batch is, changes no state and no recommendation."""
    with _quiet(seed=2):
        model, batch = _ready(factory), _batch(width=MAX_LENGTH - 2)
        ids = batch.item_ids
        beyond = torch.arange(ids.shape[1]) >= batch.lengths[:, None]
        garbage = torch.where(beyond, torch.randint(1, NUM_ITEMS + 1, ids.shape), ids)
        wider = torch.nn.functional.pad(ids, (0, 2))
        for what, changed in (("item ids beyond `lengths`", garbage), ("two more columns of padding", wider)):
            other = batch.replace(item_ids=changed)
            if isinstance(model, EncoderRecommender):
                before, after = model.encode(batch), model.encode(other)
                for row, length in enumerate(batch.lengths.tolist()):
                    _require(
                        torch.allclose(before[row, :length], after[row, :length], **CLOSE),
                        f"{_name(model.encoder)} reads padding: {what} changed a state of a row of length {length} by "
                        f"{_gap(before[row, :length], after[row, :length]):.2g}. `lengths` is the only mask.",
                    )
            _require_same_lists(model, batch, other, f"{_name(model)} reads padding: {what}")


@torch.no_grad()
def check_batch_permutation(factory: Factory) -> None:
    """A row is answered alike wherever it stands in a batch, and alone."""
    with _quiet(seed=3):
        model, batch = _ready(factory), _batch()
        order = torch.randperm(len(batch))
        shuffled = batch.map(lambda t: t[order])
        if isinstance(model, EncoderRecommender):
            before, after = model.encode(batch)[order], model.encode(shuffled)
            for row, length in enumerate(shuffled.lengths.tolist()):
                _require(
                    torch.allclose(before[row, :length], after[row, :length], **CLOSE),
                    f"{_name(model.encoder)} mixes rows of a batch: shuffling them changed a state by "
                    f"{_gap(before[row, :length], after[row, :length]):.2g}.",
                )
        _require_same_lists(model, batch, shuffled, f"{_name(model)} mixes rows: shuffling a batch", order)
        for row, length in enumerate(_LENGTHS):
            alone = batch.map(lambda t, row=row: t[row : row + 1])
            alone = alone.replace(item_ids=alone.item_ids[:, :length])
            message = f"{_name(model)} mixes rows: asking alone for a history of length {length}"
            _require_same_lists(model, batch, alone, message, torch.tensor([row]))


def check_gradients_at_length_one(factory: Factory) -> None:
    """The shortest training row, one input and one target, gives a finite loss and finite gradients."""
    with _quiet(seed=4):
        short = torch.randint(1, NUM_ITEMS + 1, (6, 2))
        mixed = torch.zeros(6, MAX_LENGTH + 1, dtype=torch.long)
        mixed[:, :2] = short
        mixed[0] = torch.randint(1, NUM_ITEMS + 1, (MAX_LENGTH + 1,))
        for what, ids in (("rows of two items", short), ("rows of two items beside a full one", mixed)):
            model = factory(NUM_ITEMS, MAX_LENGTH).train()
            lengths = (ids > 0).sum(1)
            loss = model.loss(Batch(item_ids=ids, lengths=lengths, user_ids=torch.arange(len(ids))))
            _require(loss.dim() == 0, f"{_name(model)}.loss must be a scalar, its shape is {tuple(loss.shape)}.")
            _require(bool(loss.isfinite()), f"{_name(model)}.loss is {loss.item()} on {what}.")
            loss.backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            for name, gradient in gradients.items():
                _require(
                    bool(gradient.isfinite().all()), f"{_name(model)}: the gradient of {name} is not finite on {what}."
                )
            _require(
                any(bool(g.any()) for g in gradients.values()),
                f"{_name(model)}: no parameter has a gradient on {what}; the loss is cut off from the model.",
            )


def check_learns_toy_rule(
    factory: Factory, train_windows: TrainWindows = "last", epochs: int = 200, least: float = 0.7
) -> None:
    """The rule of the toy log is found: validation NDCG@10 of at least `least`, where popularity has about 0.2."""
    with _quiet(seed=5), tempfile.TemporaryDirectory() as folder:
        data = toy_data(folder, toy_log(num_users=192), max_length=MAX_LENGTH, train_windows=train_windows)
        popularity = _popularity_ndcg(data)
        _require(popularity < least / 2, f"popularity alone has NDCG@10 {popularity:.2f}: the toy log is no test.")
        model = factory(data.num_items, data.max_length)
        found = EarlyStopping("val/ndcg@10", mode="max", patience=epochs, stopping_threshold=least)
        trainer = _trainer(Path(folder), epochs, callbacks=[found], check_val_every_n_epoch=min(10, epochs))
        trainer.fit(model, datamodule=data)
        reached = trainer.callback_metrics["val/ndcg@10"].item()
        _require(
            reached >= least,
            f"{_name(model)} did not find the rule of the toy log in {epochs} epochs: NDCG@10 is {reached:.3f}, not "
            f"{least} (popularity has {popularity:.3f}). Is the loss shifted by one item, and the learning rate right?",
        )


def check_checkpoint_round_trip(factory: Factory) -> None:
    """A checkpoint of the Trainer loads with `weights_only=True`, and the file alone gives the same lists."""
    with _quiet(seed=6), tempfile.TemporaryDirectory() as folder:
        data = toy_data(folder, max_length=MAX_LENGTH)
        model = factory(data.num_items, data.max_length)
        trainer = _trainer(Path(folder), epochs=1)
        trainer.fit(model, datamodule=data)
        path = Path(folder) / "model.ckpt"
        trainer.save_checkpoint(path)
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            raise AssertionError(
                f"a checkpoint of {_name(model)} holds more than tensors and primitives: {str(error).splitlines()[0]}"
            ) from error
        loaded = load_recommender(path, trust=sorted(_modules(describe(model))))
        _require(
            type(loaded.model) is type(model),
            f"the checkpoint of a {_name(model)} was loaded as a {_name(loaded.model)}.",
        )
        histories = [history[:-1] for history in toy_log().histories[:8]]
        external = [[f"item-{item}" for item in history] for history in histories]
        batch = Batch.from_histories([data.catalog.encode(history) for history in external], data.max_length)
        with torch.no_grad():
            item_ids, scores = model.eval().recommend(batch, 5)
        for row, (ids, values) in enumerate(zip(item_ids.tolist(), scores.tolist(), strict=True)):
            expected = [(data.catalog.decode(i), value) for i, value in zip(ids, values, strict=True) if i]
            found = [(line.item_id, line.score) for line in loaded.recommend(external, k=5)[row]]
            _require(
                found == expected,
                f"{_name(model)} recommends otherwise after loading: {expected} became {found}. Is there state outside "
                "of parameters and buffers, or randomness in evaluation?",
            )


def check_config_round_trip(factory: Factory) -> None:
    """The constructor's arguments are primitives, are remembered, and rebuild the model in Python and from YAML."""
    with _quiet(seed=7):
        model = factory(NUM_ITEMS, MAX_LENGTH)
        description = describe(model)
        text = json.dumps(description)
        _require(
            json.loads(text) == description,
            f"the arguments of {_name(model)} change when written and read: {text}; use numbers, strings and lists.",
        )
        _require(
            dict(model.hparams) == description["init_args"],
            f"{_name(model)}.hparams are {dict(model.hparams)}, its arguments {description['init_args']}: do not call "
            "save_hyperparameters again.",
        )
        rebuilt = build(json.loads(text), trust=sorted(_modules(description)))
        _require(
            describe(rebuilt) == description, f"{_name(model)} rebuilt from its description has {describe(rebuilt)}."
        )
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--model", type=SequenceRecommender)
        try:
            parsed = parser.instantiate(parser.parse_object({"model": json.loads(text)}))["model"]
        except Exception as error:
            raise AssertionError(
                f"the command line cannot build {_name(model)} from its description: {error}. Are all arguments of its "
                "constructor annotated?"
            ) from error
        _require(describe(parsed) == description, f"the command line builds {describe(parsed)} from {description}.")


@torch.no_grad()
def check_seen_items_excluded(factory: Factory) -> None:
    """Lists are sorted, hold no item twice, nothing outside of the catalog and nothing seen; padding is (0, -inf)."""
    with _quiet(seed=8):
        model, batch = _ready(factory), _batch()
        for seen in (batch.seen_ids, None):
            item_ids, scores = model.recommend(batch.replace(seen_ids=seen), NUM_ITEMS)
            shape = (len(batch), NUM_ITEMS)
            _require(
                item_ids.shape == shape and scores.shape == shape,
                f"{_name(model)}.recommend gives shapes {tuple(item_ids.shape)}, {tuple(scores.shape)}, not {shape}.",
            )
            _require(
                scores.dtype == torch.float32 and item_ids.dtype == torch.int64,
                f"{_name(model)}.recommend gives {item_ids.dtype}, {scores.dtype}: expected int64 ids, float32 scores.",
            )
            _require(not scores.isnan().any(), f"{_name(model)} scores NaN.")
            _require(
                bool((scores[:, :-1] >= scores[:, 1:]).all()), f"the lists of {_name(model)} are not sorted by score."
            )
            _require(
                torch.equal(item_ids == 0, scores == -torch.inf),
                f"{_name(model)}: places without an item must have id 0 and score -inf, and no others may.",
            )
            for row in range(len(batch)):
                listed = item_ids[row][item_ids[row] > 0].tolist()
                _require(len(set(listed)) == len(listed), f"{_name(model)} lists an item twice.")
                _require(
                    min(listed, default=1) >= 1 and max(listed, default=1) <= NUM_ITEMS,
                    f"{_name(model)} lists an id outside of 1..{NUM_ITEMS}: special ids are never scored.",
                )
                shown = set(listed) & set(seen[row].tolist()) if seen is not None else set()
                _require(not shown, f"{_name(model)} recommends seen items {sorted(shown)}, which `seen_ids` excludes.")


@torch.no_grad()
def check_top_k_matches_full_scores(factory: Factory) -> None:
    """`recommend` lists the best of `items.score(query)`, where column 0 and seen items are at -inf."""
    with _quiet(seed=9):
        model, batch = _ready(factory), _batch()
        logits = model.items.score(model.query(batch)).float()
        _require(
            logits.shape == (len(batch), NUM_ITEMS + 1),
            f"{_name(model.items)}.score gives {tuple(logits.shape)}: expected a column an item and one for padding.",
        )
        _require(
            bool((logits[:, 0] == -torch.inf).all()), f"column 0 of {_name(model.items)}.score must be -inf: padding."
        )
        expected = logits.scatter(1, batch.seen_ids, -torch.inf)
        item_ids, scores = model.recommend(batch, 7)
        best = expected.topk(7).values
        _require(
            torch.allclose(scores, best, **CLOSE),
            f"{_name(model)}.recommend differs from sorting all scores by {_gap(scores, best):.2g}.",
        )
        _require(
            torch.allclose(expected.gather(1, item_ids), scores, **CLOSE),
            f"the items that {_name(model)}.recommend lists do not have the scores that it lists.",
        )
        some = item_ids[:, [3, 0, 5]]
        chosen, values = model.recommend(batch.replace(candidate_ids=some), 3)
        _require(
            torch.equal(chosen, item_ids[:, [0, 3, 5]]) and torch.allclose(values, scores[:, [0, 3, 5]], **CLOSE),
            f"{_name(model)}.recommend orders `candidate_ids` otherwise than the full catalog.",
        )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


def _name(part: Any) -> str:
    return type(part).__name__


def _gap(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().nan_to_num(nan=torch.inf).max().item()


def _is_trained(model: SequenceRecommender) -> bool:
    return any(p.requires_grad for p in model.parameters())


def _modules(description: Any) -> set[str]:
    """Modules of all classes in a description, which are trusted: the test has imported them."""
    if isinstance(description, list):
        return set().union(*map(_modules, description))
    if not isinstance(description, dict):
        return set()
    own = {description["class_path"].rpartition(".")[0]} if "class_path" in description else set()
    return own.union(*map(_modules, description.values()))


def _batch(width: int = MAX_LENGTH) -> Batch:
    """An evaluation batch of random histories, one as long as allowed, one of a single item."""
    histories = [torch.randperm(NUM_ITEMS)[: length + 3].add(1).tolist() for length in _LENGTHS]
    windows = [history[3:][-width:] for history in histories]  # what was seen reaches back before the window
    batch = Batch.from_histories(histories)
    lengths = torch.tensor([len(window) for window in windows])
    item_ids = torch.zeros(len(windows), width, dtype=torch.long)
    for row, window in enumerate(windows):
        item_ids[row, : len(window)] = torch.tensor(window)
    return batch.replace(item_ids=item_ids, lengths=lengths)


def _ready(factory: Factory) -> SequenceRecommender:
    """A recommender in evaluation mode; one that counts has counted a toy log."""
    model = factory(NUM_ITEMS, MAX_LENGTH)
    if not _is_trained(model):
        with tempfile.TemporaryDirectory() as folder:
            data = toy_data(folder, toy_log(num_users=NUM_ITEMS, num_items=NUM_ITEMS), max_length=MAX_LENGTH)
            _trainer(Path(folder), epochs=1).fit(model, datamodule=data)
    return model.eval()


def _require_same_lists(
    model: SequenceRecommender, batch: Batch, other: Batch, what: str, order: Tensor | None = None
) -> None:
    """Compares lists by score, and by item where scores are apart: equals may stand in any order."""
    ids, scores = model.recommend(batch, 5)
    if order is not None:
        ids, scores = ids[order], scores[order]
    other_ids, other_scores = model.recommend(other, 5)
    _require(
        torch.allclose(scores, other_scores, **CLOSE), f"{what} changed scores by {_gap(scores, other_scores):.2g}."
    )
    apart = torch.full_like(ids, True, dtype=torch.bool)
    far = ~torch.isclose(scores[:, 1:], scores[:, :-1], rtol=1e-3, atol=1e-4)
    apart[:, 1:] &= far
    apart[:, :-1] &= far
    apart[:, -1] = False  # it may tie with what is not listed
    _require(torch.equal(ids[apart], other_ids[apart]), f"{what} changed the recommended items.")


def _popularity_ndcg(data: SequenceDataModule) -> float:
    metrics = RankingMetrics(ks=(10,), beyond=False)
    for batch in data.val_dataloader():
        scores = data.item_counts.double().repeat(len(batch), 1)
        scores[:, 0] = -torch.inf
        scores.scatter_(1, batch.seen_ids, -torch.inf)
        # Equal counts in random order: the pessimistic rule would make the floor lower than it is.
        best, item_ids = (scores + torch.rand_like(scores) * 0.5).topk(11)
        metrics.update(item_ids, best, batch.target_ids)
    return metrics.compute()["ndcg@10"].item()


def _trainer(folder: Path, epochs: int, callbacks: list | None = None, check_val_every_n_epoch: int = 1) -> L.Trainer:
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
def _quiet(seed: int) -> Iterator[None]:
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
