"""Which checks apply to a plug-in of each kind, and what they are run with.

Parts are tested inside a small recommender: an encoder between an item embedding and the full softmax, an objective
above a small SASRec.
"""

from __future__ import annotations

import inspect
import tempfile
import typing
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from lightrec import extensions, testing
from lightrec.configurable import Configurable, describe
from lightrec.configurable import options as options_of
from lightrec.errors import InputError, Unavailable
from lightrec.extensions import Plugin
from lightrec.interfaces import ItemTable, Objective, SequenceEncoder, total
from lightrec.items.embedding import ItemEmbedding
from lightrec.models.sasrec import SASRecEncoder
from lightrec.objectives.negatives import NegativeSampler
from lightrec.objectives.next_item import NextItem
from lightrec.objectives.weighted import Weighted
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer, SequenceRecommender
from lightrec.testing.contracts import has_step_form
from lightrec.testing.harness import MAX_LENGTH, NUM_ITEMS, Factory, is_trained, sample_batch


class Skip(Exception):
    """A check found that it cannot be run here."""


Check = tuple[str, Callable[[], str | None] | str]
"""A name, and what to call (it returns a remark and raises what is wrong), or the reason to skip it."""

# What a check is run with where the constructor knows the name: small, and quick to learn.
_SMALL = {"hidden_size": 32, "dropout": 0.1}
_LEARNING_RATE = 1e-2  # of the optimizer that the constructor has by default


def checks_of(plugin: Plugin, given: dict, within: str | None = None) -> list[Check]:
    """Lists the checks of a plug-in that is imported already.

    Args:
        plugin: what to check.
        given: arguments of its constructor; a part by its name.
        within: name of the model that an objective is checked in; None is a small SASRec.

    Raises:
        InputError: it cannot be built with these arguments, or does not train this model.
    """
    target = extensions.load(plugin)
    if within and plugin.kind != "objectives":
        raise InputError(f"--within is for objectives; {plugin.name!r} belongs to {plugin.kind}.")
    if given and plugin.kind not in PARTS:
        raise InputError(f"--set is for {', '.join(PARTS)}; {plugin.name!r} belongs to {plugin.kind}.")
    if plugin.kind == "models":
        return _model_checks(partial(_model, target, given))
    if plugin.kind == "encoders":
        return _model_checks(partial(_around_encoder, target, given))
    if plugin.kind == "objectives":
        return _objective_checks(
            target, given, extensions.load(extensions.resolve("models", within)) if within else None
        )
    if plugin.kind == "kernels":
        return list(_kernel_checks(target))
    if plugin.kind == "datasets":
        return [("description", partial(_described, target)), ("reading", partial(_reading, target))]
    return [("docstring", partial(_docstring, target))]


PARTS = ("models", "encoders", "objectives")


def arguments(kind: type, given: dict) -> dict:
    """Returns what a class is built with, beside what the data tell it: what is given, and a small size."""
    known = options_of(kind)
    small = {name: value for name, value in _SMALL.items() if name in known}
    if "optimizer" in known:
        default = known["optimizer"].default
        small["optimizer"] = (type(default) if isinstance(default, Optimizer) else AdamW)(learning_rate=_LEARNING_RATE)
    return small | given


def shown(value: object) -> object:
    """Returns a primitive as it is, and a part as the call that makes it: `AdamW(learning_rate=0.01)`."""
    if not isinstance(value, Configurable):
        return value
    known = options_of(type(value))
    given = describe(value)["init_args"]
    said = (f"{name}={v}" for name, v in given.items() if v != describe(known[name].default))
    return f"{type(value).__name__}({', '.join(said)})"


def build(kind: type, given: dict, num_items: int, max_length: int):
    """Builds a part for a check: sizes of the data, what is given, a small size, and plain parts where it needs parts.

    Raises:
        InputError: it needs an argument that is not known here, or refuses what it got.
    """
    try:
        hints = typing.get_type_hints(kind.__init__)
    except (NameError, TypeError):  # annotations under TYPE_CHECKING
        hints = {}
    options = arguments(kind, given)
    width = options.get("hidden_size", _SMALL["hidden_size"])
    for name, parameter in options_of(kind).items():
        if name in ("num_items", "max_length"):
            options[name] = num_items if name == "num_items" else max_length
        elif isinstance(options.get(name), str) and (group := _part_group(hints.get(name))):
            options[name] = build(extensions.load(extensions.resolve(group, options[name])), {}, num_items, max_length)
        elif name not in options and parameter.default is parameter.empty:
            part = _plain_part(hints.get(name), num_items, max_length, width)
            if part is None:
                raise InputError(f"{kind.__name__} needs {name!r}, which has no default: give one, --set {name}=VALUE.")
            options[name] = part
    try:
        part = kind(**options)
    except (TypeError, ValueError, InputError) as error:
        shown = ", ".join(
            f"{name}={type(value).__name__ if isinstance(value, (nn.Module, Configurable)) else value}"
            for name, value in options.items()
        )
        raise InputError(f"{kind.__name__}({shown}) cannot be built: {error} Give other values with --set.") from error
    for module in part.modules():
        if isinstance(module, NegativeSampler) and module.proposal == "popularity":
            module.item_counts = torch.arange(num_items + 1)  # what the data would tell
    return part


def _part_group(hint: object) -> str | None:
    """Returns where the name of a part is looked up, by its annotation, `SequenceEncoder | None` too."""
    hints = typing.get_args(hint) or (hint,)
    return next(
        (group for kind, group in ((SequenceEncoder, "encoders"), (Objective, "objectives")) if kind in hints), None
    )


def _plain_part(hint: object, num_items: int, max_length: int, width: int):
    if hint is ItemTable:
        return ItemEmbedding(num_items, width)
    if hint is SequenceEncoder:
        return SASRecEncoder(max_length, width, dropout=0.1)
    return NextItem() if hint is Objective else None


def _model(kind: type, given: dict, num_items: int, max_length: int) -> SequenceRecommender:
    return build(kind, given, num_items, max_length)


def _around_encoder(kind: type, given: dict, num_items: int, max_length: int) -> EncoderRecommender:
    encoder = build(kind, given, num_items, max_length)
    objective = NextItem("all" if encoder.causal else "last")
    return EncoderRecommender(
        ItemEmbedding(num_items, encoder.hidden_size), encoder, objective, AdamW(learning_rate=_LEARNING_RATE)
    )


def _below_objective(
    kind: type, given: dict, model: type | None, beside: bool, num_items: int, max_length: int
) -> SequenceRecommender:
    objective = build(kind, given, num_items, max_length)
    if beside:
        objective = Weighted([NextItem(), objective])
    if model is not None:
        return build(model, {"objective": objective}, num_items, max_length)
    width = _SMALL["hidden_size"]
    encoder = SASRecEncoder(max_length, width, dropout=0.1)
    return EncoderRecommender(ItemEmbedding(num_items, width), encoder, objective, AdamW(learning_rate=_LEARNING_RATE))


def _model_checks(factory: Factory) -> list[Check]:
    model = factory(NUM_ITEMS, MAX_LENGTH)
    encoder = model.encoder if isinstance(model, EncoderRecommender) else None
    no_encoder, untrained = "it has no encoder", "it has no parameters to train"
    trained = is_trained(model)

    def when(condition: bool, check: Callable, reason: str) -> Callable | str:
        return partial(check, factory) if condition else reason

    causal = encoder is not None and encoder.causal
    steps = encoder is not None and has_step_form(encoder)
    return [
        ("configuration", partial(testing.check_config_round_trip, factory)),
        ("padding", partial(testing.check_padding_invariance, factory)),
        ("rows", partial(testing.check_batch_permutation, factory)),
        ("seen items", partial(testing.check_seen_items_excluded, factory)),
        (
            "causality",
            when(causal, testing.check_causality, "it says causal = False" if encoder is not None else no_encoder),
        ),
        ("steps", when(steps, testing.check_steps, "it has no step form" if encoder is not None else no_encoder)),
        ("top-k", when(encoder is not None, testing.check_top_k_matches_full_scores, no_encoder)),
        ("gradients", when(trained, testing.check_gradients_at_length_one, untrained)),
        ("learning", when(trained, testing.check_learns_toy_rule, untrained)),
        ("checkpoint", partial(testing.check_checkpoint_round_trip, factory)),
        ("two processes", when(trained, testing.check_two_processes, untrained)),
        ("GPU", _gpu_check(factory)),
        ("export", when(encoder is not None, testing.check_export, no_encoder)),
        ("speed", partial(_speed, factory) if trained else untrained),
    ]


def _objective_checks(kind: type, given: dict, model: type | None) -> list[Check]:
    alone, beside = (partial(_below_objective, kind, given, model, more) for more in (False, True))
    recommender = alone(NUM_ITEMS, MAX_LENGTH)
    full = sample_batch().map(lambda t: t[:1])  # one row, as long as allowed
    try:
        total(recommender.loss(full))
    except (InputError, ValueError) as error:
        name = "SASRec" if model is None else model.__name__
        raise InputError(
            f"{kind.__name__} cannot train {name} ({error}) Name a model it can with --within, or other arguments of "
            f"{kind.__name__} with --set."
        ) from error

    def learns() -> str | None:
        try:
            testing.check_learns_toy_rule(alone)
        except AssertionError:
            testing.check_learns_toy_rule(beside)
            return "beside the full softmax; alone it does not find the rule"
        return None

    return [
        ("configuration", partial(testing.check_config_round_trip, alone)),
        ("gradients", partial(testing.check_gradients_at_length_one, alone)),
        ("learning", learns),
        ("checkpoint", partial(testing.check_checkpoint_round_trip, alone)),
        ("two processes", partial(testing.check_two_processes, alone)),
        ("GPU", _gpu_check(alone)),
        ("speed", partial(_speed, alone)),
    ]


def _gpu_check(factory: Factory) -> Callable | str:
    return partial(testing.check_on_a_gpu, factory) if torch.cuda.is_available() else "there is none here"


def _kernel_checks(function: Callable) -> Iterator[Check]:
    from lightrec.ops.registry import Kernel
    from lightrec.ops.selective_scan import OP

    made = function()
    for kernel in made if isinstance(made, (list, tuple)) else [made]:
        if not isinstance(kernel, Kernel):
            yield "kernel", partial(_fail, f"the function returned a {type(kernel).__name__}, not a Kernel")
        elif kernel.op == OP:
            yield f"{kernel.op}", partial(_conformance, kernel.name)
        else:
            yield f"{kernel.op}", f"there is no conformance suite for {kernel.op}"


def _conformance(name: str) -> str | None:
    found = testing.check_kernel(name)
    return None if found is None else "agrees with the float64 reference"


def _reading(function: Callable) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            counts = testing.check_source(function, folder)
        except Unavailable as error:
            raise Skip(str(error)) from error
        except InputError as error:
            raise AssertionError(str(error)) from error
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def _described(function: Callable) -> str:
    return testing.describe_source(function).title


def _speed(factory: Factory) -> str:
    times = testing.compare_speed(factory)
    return f"training takes {times['train']:.1f} times as long as SASRec, recommending {times['recommend']:.1f} times"


def _docstring(function: Callable) -> str:
    line = (inspect.getdoc(function) or "").split("\n")[0]
    _require(bool(line), "it has no docstring, which is what `lightrec --help` shows.")
    return line


def _fail(sentence: str) -> None:
    raise AssertionError(sentence)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)
