"""What `lightrec plugins check` runs on a plug-in of each kind, and how it builds one."""

import pytest

from lightrec import extensions
from lightrec.configurable import describe
from lightrec.errors import InputError
from lightrec.extensions import Plugin
from lightrec.interfaces import ItemTable, Objective, SequenceEncoder
from lightrec.models.gru4rec import GRU4Rec, GRU4RecEncoder, GRU4RecSession
from lightrec.models.sasrec import SASRec, SASRecEncoder
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import Adagrad, AdamW, EncoderRecommender
from lightrec.testing.check_selection import Skip, arguments, build, checks_of


def builtin(kind, name):
    return extensions.resolve(kind, name)


def declared(kind, name):
    """As if this file were a plug-in."""
    return Plugin(kind, name, f"{__name__}:{name}", "lightrec-tests", "1", "")


class Wrapper(EncoderRecommender):
    """Takes any parts, as add-ons do."""

    def __init__(self, items: ItemTable, encoder: SequenceEncoder, objective: Objective, depth: int):
        super().__init__(items=items, encoder=encoder, objective=objective)


class OnlyGRU(NextItem):
    """Refuses other encoders."""

    def forward(self, recommender, batch, states=None):
        if not isinstance(recommender.encoder, GRU4RecEncoder):
            raise InputError("OnlyGRU trains a GRU4RecEncoder.")
        return super().forward(recommender, batch, states)


def names(checks):
    return {name: check if isinstance(check, str) else None for name, check in checks}


def test_a_model_is_built_small_and_what_is_given_wins():
    expected = {"hidden_size": 8, "dropout": 0.1, "optimizer": describe(AdamW(learning_rate=1e-2))}
    assert describe(arguments(SASRec, {"hidden_size": 8})) == expected
    slow = describe(arguments(GRU4RecSession, {}))["optimizer"]  # the kind that the model has by default
    assert slow == describe(Adagrad(learning_rate=1e-2))
    model = build(SASRec, {"hidden_size": 8}, 40, 10)
    assert (model.items.num_items, model.encoder.max_length, model.encoder.hidden_size) == (40, 10, 8)


def test_a_model_that_takes_parts_gets_plain_ones_or_those_that_are_named():
    model = build(Wrapper, {"depth": 2, "encoder": "GRU4RecEncoder"}, 40, 10)
    assert isinstance(model.encoder, GRU4RecEncoder) and isinstance(model.objective, NextItem)
    assert isinstance(build(Wrapper, {"depth": 2}, 40, 10).encoder, SASRecEncoder)
    with pytest.raises(InputError, match="Wrapper needs 'depth', which has no default: give one, --set depth=VALUE"):
        build(Wrapper, {}, 40, 10)


def test_arguments_that_do_not_fit_are_told_with_what_was_tried():
    with pytest.raises(InputError, match=r"SASRec\(hidden_size=10, .*num_heads=3.*cannot be built: .*--set"):
        build(SASRec, {"hidden_size": 10, "num_heads": 3}, 40, 10)


def test_checks_that_do_not_apply_are_skipped_with_a_reason():
    assert names(checks_of(builtin("models", "Popularity"), {}))["learning"] == "it has no parameters to train"
    assert names(checks_of(builtin("models", "Popularity"), {}))["export"] == "it has no encoder"
    blind = names(checks_of(builtin("encoders", "BERT4RecEncoder"), {}))
    assert blind["causality"] == "it says causal = False" and blind["steps"] == "it has no step form"
    assert names(checks_of(builtin("models", "GRU4Rec"), {}))["steps"] is None


@pytest.mark.parametrize(("kind", "name"), [("encoders", "GRU4RecEncoder"), ("objectives", "NextItem")])
def test_a_part_is_checked_inside_a_recommender(kind, name):
    checks = dict(checks_of(builtin(kind, name), {}))
    checks["gradients"]()
    checks["configuration"]()
    assert "learning" in checks and "two processes" in checks


def test_an_objective_that_needs_another_model_is_checked_within_it():
    with pytest.raises(InputError, match="OnlyGRU cannot train SASRec .* with --within, or other arguments .* --set"):
        checks_of(declared("objectives", "OnlyGRU"), {})
    dict(checks_of(declared("objectives", "OnlyGRU"), {}, "GRU4Rec"))["gradients"]()
    with pytest.raises(InputError, match="--within is for objectives"):
        checks_of(builtin("models", "SASRec"), {}, "GRU4Rec")
    assert GRU4Rec is extensions.load(builtin("models", "GRU4Rec"))


def test_a_data_source_is_described_and_read_if_it_is_at_hand(monkeypatch):
    monkeypatch.delenv("LIGHTREC_DATA_MIRROR", raising=False)
    checks = dict(checks_of(builtin("datasets", "online-retail"), {}))
    assert checks["description"]() == "UCI Online Retail"
    with pytest.raises(Skip, match="cannot be found"):  # its publisher has no file that can be read
        checks["reading"]()
    with pytest.raises(InputError, match="--set is for models, encoders, objectives"):
        checks_of(builtin("datasets", "online-retail"), {"x": 1})


def test_a_kernel_of_an_op_with_the_suite_is_compared_and_others_are_not(monkeypatch):
    from lightrec.ops import registry

    def kernels():
        known = registry.get_kernel("selective_scan", "torch")
        return [known, registry.Kernel("other_op", "mine", known.forward, None, lambda spec: None)]

    monkeypatch.setattr(extensions, "load", lambda plugin: kernels)
    found = names(checks_of(Plugin("kernels", "k", "m:k", "lightrec-k", "1", ""), {}))
    assert found == {"selective_scan": None, "other_op": "there is no conformance suite for other_op"}
