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
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import EarlyStopping

from lightrec.checkpoint import build
from lightrec.configurable import describe
from lightrec.data.batch import Batch
from lightrec.data.rows import Rows
from lightrec.errors import InputError
from lightrec.interfaces import SequenceEncoder, total
from lightrec.recommender import EncoderRecommender, SequenceRecommender
from lightrec.serving.loaded import load_recommender
from lightrec.testing.harness import (
    CLOSE,
    LENGTHS,
    MAX_LENGTH,
    NUM_ITEMS,
    Factory,
    gap,
    is_trained,
    make_trainer,
    modules_in,
    named,
    popularity_ndcg,
    quiet,
    ready,
    require,
    require_same_lists,
    sample_batch,
)
from lightrec.testing.toy import toy_data, toy_log


def check_recommender(
    factory: Factory, causal: bool = True, train_windows: Rows | str | None = None, epochs: int = 200
) -> list[str]:
    """Runs every check that applies, see `applicable_checks`.

    Args:
        factory: (num_items, max_length) -> an untrained recommender; keep it small.
        causal: what the author says of the encoder; ignored for a recommender without one.
        train_windows: the rows that the model is trained on; None is what its objective needs.
        epochs: most epochs to learn the toy rule in; training stops when it is found.

    Returns:
        Names of the checks that were run.
    """
    model = factory(NUM_ITEMS, MAX_LENGTH)
    if isinstance(model, EncoderRecommender):
        require(
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
    says that it is causal, causality; if it can go on event by event, that this gives the same states. A floor that
    counts has neither parameters nor an encoder.
    """
    checks = [check_config_round_trip, check_padding_invariance, check_batch_permutation, check_seen_items_excluded]
    if isinstance(model, EncoderRecommender):
        checks += [check_causality] if model.encoder.causal else []
        checks += [check_steps] if has_step_form(model.encoder) else []
        checks += [check_top_k_matches_full_scores]
    if is_trained(model):
        checks += [check_gradients_at_length_one, check_learns_toy_rule]
    return [*checks, check_checkpoint_round_trip]


@torch.no_grad()
def check_causality(factory: Factory) -> None:
    """The state after an item depends on that item and those before it: changing the future changes nothing."""
    with quiet(seed=1):
        model, batch = ready(factory), sample_batch()
        before = model.encode(batch)
        for t in range(1, MAX_LENGTH):
            changed = batch.item_ids.clone()
            changed[:, t:] = torch.where(changed[:, t:] > 0, changed[:, t:] % NUM_ITEMS + 1, 0)
            after = model.encode(batch.replace(item_ids=changed))
            for row, length in enumerate(LENGTHS):
                kept = slice(0, min(t, length))
                require(
                    torch.allclose(before[row, kept], after[row, kept], **CLOSE),
                    f"{named(model.encoder)} is not causal: changing the items from position {t} on changed the state "
                    f"at an earlier position by {gap(before[row, kept], after[row, kept]):.2g} (row of length "
                    f"{length}). If it is meant to see the future, it must say causal = False.",
                )


@torch.no_grad()
def check_padding_invariance(factory: Factory) -> None:
    """What stands at or beyond `lengths`, and how wide the batch is, changes no state and no recommendation."""
    with quiet(seed=2):
        model, batch = ready(factory), sample_batch(width=MAX_LENGTH - 2)
        ids = batch.item_ids
        beyond = torch.arange(ids.shape[1]) >= batch.lengths[:, None]
        garbage = torch.where(beyond, torch.randint(1, NUM_ITEMS + 1, ids.shape), ids)
        times = torch.where(beyond, torch.randint(1, 2_000_000_000, ids.shape), batch.timestamps)
        wider, later = F.pad(ids, (0, 2)), F.pad(batch.timestamps, (0, 2))
        for what, changed, timestamps in (
            ("item ids and times beyond `lengths`", garbage, times),
            ("two more columns of padding", wider, later),
        ):
            other = batch.replace(item_ids=changed, timestamps=timestamps)
            if isinstance(model, EncoderRecommender):
                before, after = model.encode(batch), model.encode(other)
                for row, length in enumerate(batch.lengths.tolist()):
                    require(
                        torch.allclose(before[row, :length], after[row, :length], **CLOSE),
                        f"{named(model.encoder)} reads padding: {what} changed a state of a row of length {length} by "
                        f"{gap(before[row, :length], after[row, :length]):.2g}. `lengths` is the only mask.",
                    )
            require_same_lists(model, batch, other, f"{named(model)} reads padding: {what}")


@torch.no_grad()
def check_batch_permutation(factory: Factory) -> None:
    """A row is answered alike wherever it stands in a batch, and alone."""
    with quiet(seed=3):
        model, batch = ready(factory), sample_batch()
        order = torch.randperm(len(batch))
        shuffled = batch.map(lambda t: t[order])
        if isinstance(model, EncoderRecommender):
            before, after = model.encode(batch)[order], model.encode(shuffled)
            for row, length in enumerate(shuffled.lengths.tolist()):
                require(
                    torch.allclose(before[row, :length], after[row, :length], **CLOSE),
                    f"{named(model.encoder)} mixes rows of a batch: shuffling them changed a state by "
                    f"{gap(before[row, :length], after[row, :length]):.2g}.",
                )
        require_same_lists(model, batch, shuffled, f"{named(model)} mixes rows: shuffling a batch", order)
        for row, length in enumerate(LENGTHS):
            alone = batch.map(lambda t, row=row: t[row : row + 1])
            alone = alone.replace(item_ids=alone.item_ids[:, :length], timestamps=alone.timestamps[:, :length])
            message = f"{named(model)} mixes rows: asking alone for a history of length {length}"
            require_same_lists(model, batch, alone, message, torch.tensor([row]))


def check_gradients_at_length_one(factory: Factory) -> None:
    """The shortest training row, one input and one target, gives a finite loss and finite gradients."""
    with quiet(seed=4):
        short = torch.randint(1, NUM_ITEMS + 1, (6, 2))
        mixed = torch.zeros(6, MAX_LENGTH + 1, dtype=torch.long)
        mixed[:, :2] = short
        mixed[0] = torch.randint(1, NUM_ITEMS + 1, (MAX_LENGTH + 1,))
        for what, ids in (("rows of two items", short), ("rows of two items beside a full one", mixed)):
            model = factory(NUM_ITEMS, MAX_LENGTH).train()
            lengths = (ids > 0).sum(1)
            times = torch.where(ids > 0, 1_000_000_000 + 3600 * torch.arange(ids.shape[1]), 0)
            loss = total(model.loss(Batch(ids, lengths, user_ids=torch.arange(len(ids)), timestamps=times)))
            require(loss.dim() == 0, f"{named(model)}.loss must be a scalar, its shape is {tuple(loss.shape)}.")
            require(bool(loss.isfinite()), f"{named(model)}.loss is {loss.item()} on {what}.")
            loss.backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            for name, gradient in gradients.items():
                require(
                    bool(gradient.isfinite().all()),
                    f"{named(model)}: the gradient of {name} is not finite on {what}.",
                )
            require(
                any(bool(g.any()) for g in gradients.values()),
                f"{named(model)}: no parameter has a gradient on {what}; the loss is cut off from the model.",
            )


def check_learns_toy_rule(
    factory: Factory, train_windows: Rows | str | None = None, epochs: int = 200, least: float = 0.7
) -> None:
    """The rule of the toy log is found: validation NDCG@10 of at least `least`, where popularity has about 0.2.

    With `train_windows` None a model that is asked once a row, at its end, gets a row for each event.
    """
    with quiet(seed=5), tempfile.TemporaryDirectory() as folder:
        if train_windows is None:
            objective = getattr(factory(NUM_ITEMS, MAX_LENGTH), "objective", None)
            train_windows = "prefixes" if getattr(objective, "positions", "all") == "last" else "last"
        data = toy_data(
            folder, toy_log(num_users=192), max_length=MAX_LENGTH, train_windows=train_windows, with_times=True
        )
        popularity = popularity_ndcg(data)
        require(popularity < least / 2, f"popularity alone has NDCG@10 {popularity:.2f}: the toy log is not a test.")
        model = factory(data.num_items, data.max_length)
        found = EarlyStopping("val/ndcg@10", mode="max", patience=epochs, stopping_threshold=least)
        trainer = make_trainer(Path(folder), epochs, callbacks=[found], check_val_every_n_epoch=min(10, epochs))
        trainer.fit(model, datamodule=data)
        reached = trainer.callback_metrics["val/ndcg@10"].item()
        require(
            reached >= least,
            f"{named(model)} did not find the rule of the toy log in {epochs} epochs: NDCG@10 is {reached:.3f}, not "
            f"{least} (popularity has {popularity:.3f}). Is the loss shifted by one item, and the learning rate right?",
        )


def check_checkpoint_round_trip(factory: Factory) -> None:
    """A checkpoint of the Trainer loads with `weights_only=True`, and the file alone gives the same lists."""
    with quiet(seed=6), tempfile.TemporaryDirectory() as folder:
        data = toy_data(folder, max_length=MAX_LENGTH, with_times=True)
        model = factory(data.num_items, data.max_length)
        trainer = make_trainer(Path(folder), epochs=1)
        trainer.fit(model, datamodule=data)
        path = Path(folder) / "model.ckpt"
        trainer.save_checkpoint(path)
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            raise AssertionError(
                f"a checkpoint of {named(model)} holds more than tensors and primitives: {str(error).splitlines()[0]}"
            ) from error
        loaded = load_recommender(path, trust=sorted(modules_in(describe(model))))
        require(
            type(loaded.model) is type(model),
            f"the checkpoint of a {named(model)} was loaded as a {named(loaded.model)}.",
        )
        held = next(iter(data.test_dataloader()))
        with torch.no_grad():
            expected, found = (m.recommend(held, 5) for m in (model.eval(), loaded.model))
        require(
            torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1]),
            f"{named(model)} recommends otherwise after loading: {expected[0][0].tolist()} became "
            f"{found[0][0].tolist()}. Is there state outside of parameters and buffers, or randomness in evaluation?",
        )
        histories = [[f"item-{item}" for item in history[:-1]] for history in toy_log().histories[:8]]
        batch = Batch.from_histories([data.catalog.encode(history) for history in histories], data.max_length)
        try:
            item_ids, scores = model.recommend(batch, 5)
        except InputError:  # it needs times or columns, which a list of items has not
            return
        for row, (ids, values) in enumerate(zip(item_ids.tolist(), scores.tolist(), strict=True)):
            expected = [(data.catalog.decode(i), value) for i, value in zip(ids, values, strict=True) if i]
            found = [(line.item_id, line.score) for line in loaded.recommend(histories, k=5)[row]]
            require(
                found == expected,
                f"{named(model)} recommends otherwise from external ids: {expected} became {found}.",
            )


def check_config_round_trip(factory: Factory) -> None:
    """The constructor's arguments are primitives, are remembered, and rebuild the model in Python and from YAML."""
    with quiet(seed=7):
        model = factory(NUM_ITEMS, MAX_LENGTH)
        description = describe(model)
        text = json.dumps(description)
        require(
            json.loads(text) == description,
            f"the arguments of {named(model)} change when written and read: {text}; use numbers, strings and lists.",
        )
        require(
            dict(model.hparams) == description["init_args"],
            f"{named(model)}.hparams are {dict(model.hparams)}, its arguments {description['init_args']}: do not call "
            "save_hyperparameters again.",
        )
        rebuilt = build(json.loads(text), trust=sorted(modules_in(description)))
        require(
            describe(rebuilt) == description, f"{named(model)} rebuilt from its description has {describe(rebuilt)}."
        )
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--model", type=SequenceRecommender)
        try:
            parsed = parser.instantiate(parser.parse_object({"model": json.loads(text)}))["model"]
        except Exception as error:
            raise AssertionError(
                f"the command line cannot build {named(model)} from its description: {error}. Are all arguments of its "
                "constructor annotated?"
            ) from error
        require(describe(parsed) == description, f"the command line builds {describe(parsed)} from {description}.")


@torch.no_grad()
def check_steps(factory: Factory) -> None:
    """An encoder that goes on event by event reaches the states that it computes for a whole history.

    From the state that `read` leaves it goes on as from the one that its steps leave.
    """
    with quiet(seed=10):
        model, batch = ready(factory), sample_batch()
        encoder = model.encoder
        history = encoder.enter(model.history(batch))
        x = history.x
        whole, state = encoder.mix(history), encoder.init_state(len(batch), x.device)
        for t in range(x.shape[1]):
            hidden, state = encoder.step(x[:, t], state)
            real = batch.lengths > t
            require(
                torch.allclose(hidden[real], whole[real, t], **CLOSE),
                f"{named(encoder)}.step differs from mix at position {t} by {gap(hidden[real], whole[real, t]):.2g}.",
            )
        last, state = encoder.read(history)
        require(
            torch.allclose(last, history.last(whole), **CLOSE),
            f"{named(encoder)}.read differs from mix by {gap(last, history.last(whole)):.2g} after the last item.",
        )
        _, stepped = SequenceEncoder.read(encoder, history)
        found, expected = (encoder.step(x[:, 0], reached)[0] for reached in (state, stepped))
        require(
            torch.allclose(found, expected, **CLOSE),
            f"{named(encoder)}.read leaves another state than its steps: the next one differs by "
            f"{gap(found, expected):.2g}.",
        )


def has_step_form(encoder: SequenceEncoder) -> bool:
    """Says whether an encoder can go on event by event."""
    return type(encoder).step is not SequenceEncoder.step


@torch.no_grad()
def check_seen_items_excluded(factory: Factory) -> None:
    """Lists are sorted, hold no item twice, nothing outside of the catalog and nothing seen; padding is (0, -inf)."""
    with quiet(seed=8):
        model, batch = ready(factory), sample_batch()
        for seen in (batch.seen_ids, None):
            item_ids, scores = model.recommend(batch.replace(seen_ids=seen), NUM_ITEMS)
            shape = (len(batch), NUM_ITEMS)
            require(
                item_ids.shape == shape and scores.shape == shape,
                f"{named(model)}.recommend gives shapes {tuple(item_ids.shape)}, {tuple(scores.shape)}, not {shape}.",
            )
            require(
                scores.dtype == torch.float32 and item_ids.dtype == torch.int64,
                f"{named(model)}.recommend gives {item_ids.dtype}, {scores.dtype}: expected int64 ids, float32 scores.",
            )
            require(not scores.isnan().any(), f"{named(model)} scores NaN.")
            require(
                bool((scores[:, :-1] >= scores[:, 1:]).all()), f"the lists of {named(model)} are not sorted by score."
            )
            require(
                torch.equal(item_ids == 0, scores == -torch.inf),
                f"{named(model)}: places without an item must have id 0 and score -inf, and no others may.",
            )
            for row in range(len(batch)):
                listed = item_ids[row][item_ids[row] > 0].tolist()
                require(len(set(listed)) == len(listed), f"{named(model)} lists an item twice.")
                require(
                    min(listed, default=1) >= 1 and max(listed, default=1) <= NUM_ITEMS,
                    f"{named(model)} lists an id outside of 1..{NUM_ITEMS}: special ids are never scored.",
                )
                shown = set(listed) & set(seen[row].tolist()) if seen is not None else set()
                require(not shown, f"{named(model)} recommends seen items {sorted(shown)}, which `seen_ids` excludes.")


@torch.no_grad()
def check_top_k_matches_full_scores(factory: Factory) -> None:
    """`recommend` lists the best of `items.score(query)`, where column 0 and seen items are at -inf."""
    with quiet(seed=9):
        model, batch = ready(factory), sample_batch()
        logits = model.items.score(model.query(batch)).float()
        require(
            logits.shape == (len(batch), NUM_ITEMS + 1),
            f"{named(model.items)}.score gives {tuple(logits.shape)}: expected a column per item and one for padding.",
        )
        require(
            bool((logits[:, 0] == -torch.inf).all()), f"column 0 of {named(model.items)}.score must be -inf: padding."
        )
        expected = logits.scatter(1, batch.seen_ids, -torch.inf)
        item_ids, scores = model.recommend(batch, 7)
        best = expected.topk(7).values
        require(
            torch.allclose(scores, best, **CLOSE),
            f"{named(model)}.recommend differs from sorting all scores by {gap(scores, best):.2g}.",
        )
        require(
            torch.allclose(expected.gather(1, item_ids), scores, **CLOSE),
            f"the items that {named(model)}.recommend lists do not have the scores that it lists.",
        )
        some = item_ids[:, [3, 0, 5]]
        chosen, values = model.recommend(batch.replace(candidate_ids=some), 3)
        require(
            torch.equal(chosen, item_ids[:, [0, 3, 5]]) and torch.allclose(values, scores[:, [0, 3, 5]], **CLOSE),
            f"{named(model)}.recommend orders `candidate_ids` otherwise than the full catalog.",
        )
