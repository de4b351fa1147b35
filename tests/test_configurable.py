"""Configurable: what is remembered, described and built again; choices, limits, and options that are passed on."""

import copy
import json
from typing import Literal

import pytest
import torch
from torch import nn

from lightrec.checkpoint import build
from lightrec.configurable import Above, AtLeast, Between, Configurable, describe, is_description, options
from lightrec.configurable import build as build_with
from lightrec.errors import InputError


class Part(Configurable):
    def __init__(self, size: int, rates: tuple[float, ...] = (0.1, 0.2), inner: "Part | None" = None):
        self.size = size


class Pair(Part):
    def __init__(self, size: int = 3):
        super().__init__(size * 2, inner=Part(1))


def test_arguments_are_remembered_with_their_defaults_by_the_outermost_class():
    assert describe(Part(4)) == {
        "class_path": f"{__name__}.Part",
        "init_args": {"size": 4, "rates": [0.1, 0.2], "inner": None},
    }
    assert describe(Pair()) == {"class_path": f"{__name__}.Pair", "init_args": {"size": 3}}
    assert Pair().size == 6


def test_nested_parts_are_described_and_built_again():
    part = Part(1, inner=Part(2, rates=(0.5,), inner=Pair(7)))
    text = json.dumps(describe(part))
    rebuilt = build(json.loads(text), trust=[__name__])
    assert describe(rebuilt) == describe(part)
    assert type(rebuilt._init_args["inner"]._init_args["inner"]) is Pair


def test_copies_remember_too():
    part = Part(5, inner=Part(6))
    assert describe(copy.deepcopy(part)) == describe(part)


def test_a_wrong_call_is_reported_by_the_constructor():
    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
        Part(sise=3)


@pytest.mark.parametrize("value", [nn.Linear(1, 1), torch.zeros(2), {1, 2}, object()])
def test_what_is_neither_primitive_nor_a_part_is_refused(value):
    with pytest.raises(TypeError, match=f"{type(value).__name__} cannot be written into a checkpoint"):
        describe(Part(1, inner=value))


Word = Literal["flat", "deep"]


class Checked(Configurable):
    """Has a choice and a limit of each kind."""

    limits = {"num_layers": AtLeast(1), "rate": Above(0), "share": Between(0, 1)}

    def __init__(
        self,
        num_layers: int = 2,
        rate: float | None = None,
        share: float = 0.5,
        word: Word = "flat",
        number: Literal[1, 2] | None = None,
    ):
        self.num_layers = num_layers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, r"^num_layers \(0\) must be at least 1\.$"),
        ({"rate": 0.0}, r"^rate \(0\.0\) must be above 0\.$"),
        ({"share": 1.5}, r"^share \(1\.5\) must be between 0 and 1\.$"),
        ({"share": -0.1}, r"^share \(-0\.1\) must be between 0 and 1\.$"),
        ({"share": float("nan")}, r"^share \(nan\) must be between 0 and 1\.$"),
        ({"word": "wide"}, r"^word 'wide' is unknown; choose flat, deep\.$"),
        ({"word": None}, r"^word None is unknown; choose flat, deep\.$"),
        ({"number": 3}, r"^number 3 is unknown; choose 1, 2\.$"),
        ({"number": "1"}, r"^number '1' is unknown; choose 1, 2\.$"),
    ],
)
def test_a_choice_and_a_limit_are_checked_when_the_object_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        Checked(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_layers": 1},
        {"rate": 1e-9},
        {"share": 0},
        {"share": 1.0},
        {"word": "deep"},
        {"number": 2},
        {"rate": None},
    ],
    ids=str,
)
def test_what_is_at_its_limit_is_allowed_and_none_is_no_number(arguments):
    assert describe(Checked(**arguments))["init_args"].items() >= arguments.items()


def test_what_is_refused_is_refused_before_the_constructor_runs():
    ran = []

    class Eager(Checked):
        def __init__(self, num_layers: int):
            ran.append(num_layers)

    with pytest.raises(InputError, match="num_layers"):
        Eager(0)
    assert not ran
    Eager(1)
    assert ran == [1]


def test_a_subclass_adds_limits_and_may_replace_those_of_its_base():
    class Stricter(Checked):
        limits = {"num_layers": AtLeast(3), "width": AtLeast(8)}

        def __init__(self, num_layers: int = 3, share: float = 0.5, width: int = 8):
            super().__init__(num_layers, share=share)

    for arguments in ({"num_layers": 2}, {"width": 7}, {"share": 2.0}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            Stricter(**arguments)
    assert Stricter().num_layers == 3


def test_a_limit_of_an_argument_that_a_subclass_does_not_have_is_not_its_business():
    class Fewer(Checked):
        def __init__(self, word: Word = "deep"):
            super().__init__(word=word)

    assert describe(Fewer())["init_args"] == {"word": "deep"}


class Network(Configurable):
    """What a model passes its options on to."""

    limits = {"depth": AtLeast(1)}

    def __init__(self, size: int = 4, depth: int = 2, word: Word = "flat", causal: bool = True):
        self.size, self.depth, self.word, self.causal = size, depth, word, causal


class Model(Configurable):
    """Passes options on, and decides one itself."""

    network = Network
    fixed = ("causal",)

    def __init__(self, num_items: int, size: int = 8, **network):
        self.inner = Network(size=size, causal=False, **network)


def test_options_that_are_passed_on_are_options_of_both():
    assert list(options(Model)) == ["num_items", "size", "depth", "word"]
    model = Model(5, depth=3)
    assert describe(model)["init_args"] == {"num_items": 5, "size": 8, "depth": 3, "word": "flat"}
    assert (model.inner.size, model.inner.depth, model.inner.causal) == (8, 3, False)
    again = build(describe(model), trust=[__name__])
    assert describe(again) == describe(model) and describe(again.inner) == describe(model.inner)


def test_an_option_that_is_passed_on_is_checked_by_whom_it_reaches():
    with pytest.raises(ValueError, match=r"depth \(0\) must be at least 1"):
        Model(5, depth=0)
    with pytest.raises(ValueError, match="word 'wide' is unknown; choose flat, deep"):
        Model(5, word="wide")


def test_a_misspelt_or_a_decided_option_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'depht'"):
        Model(5, depht=3)
    with pytest.raises(TypeError, match="causal"):
        Model(5, causal=True)


def test_options_pass_through_a_model_of_a_model():
    class Outer(Model):
        network = Model
        fixed = ("size",)

        def __init__(self, title: str = "", **network):
            super().__init__(size=2, **network)

    assert list(options(Outer)) == ["title", "num_items", "depth", "word"]
    assert describe(Outer(num_items=3))["init_args"] == {"title": "", "num_items": 3, "depth": 2, "word": "flat"}


def test_build_asks_for_every_class_and_builds_no_other():
    asked = []

    def find(class_path):
        asked.append(class_path)
        return {"a.Part": Part, "b.Pair": Pair}[class_path]

    inner = {"class_path": "b.Pair", "init_args": {"size": 2}}
    made = build_with({"class_path": "a.Part", "init_args": {"size": 1, "inner": inner}}, find)
    assert asked == ["a.Part", "b.Pair"] and type(made._init_args["inner"]) is Pair
    with pytest.raises(KeyError):
        build_with({"class_path": "os.system", "init_args": {}}, find)


def test_build_leaves_primitives_alone_and_looks_into_lists_and_dicts():
    part = {"class_path": "a.Part", "init_args": {"size": 1}}
    made = build_with([1, "x", None, {"inner": part, "rate": 0.5}], lambda _: Part)
    assert made[:3] == [1, "x", None] and made[3]["rate"] == 0.5 and isinstance(made[3]["inner"], Part)
    assert is_description(part) and not is_description({"class_path": "a.Part"}) and not is_description("a.Part")


def test_a_class_that_takes_other_arguments_is_named():
    with pytest.raises(TypeError, match="a.Part is not built as described: .*'sise'"):
        build_with({"class_path": "a.Part", "init_args": {"sise": 1}}, lambda _: Part)
