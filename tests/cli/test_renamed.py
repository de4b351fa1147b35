"""Options that have another name now: the old one is refused with the new one, which exists."""

import json
from pathlib import Path

import pytest

from lightrec import extensions
from lightrec.cli.renamed import RENAMED, successor
from lightrec.configurable import options

# Where the old options stood: kind of plug-in, and where such a part stands in a model.
HOMES = {"models": ("model",), "encoders": ("model", "encoder"), "objectives": ("model", "objective")}


def classes():
    for kind, path in HOMES.items():
        for plugin in extensions.installed(kind):
            if plugin.builtin:
                yield extensions.load(plugin), path


@pytest.mark.parametrize("renamed", RENAMED, ids=lambda row: f"{row.old} is {row.new}")
def test_every_successor_exists(renamed):
    if renamed.old in ("form", "use_times"):
        pytest.skip("an option of plug-ins only, see their tests")
    found = [successor(renamed, (*path, renamed.old), kind, _model(kind, path, renamed)) for kind, path in classes()]
    assert any(found), f"no class has {renamed.new} where {renamed.old} was"
    new = renamed.new.rpartition(".")[2]
    assert all(place.endswith(f".{new}") for place in found if place)


def _model(kind, path, renamed):
    from lightrec import EncoderRecommender
    from lightrec.models.sasrec import SASRec

    if path == ("model",):
        return kind
    return EncoderRecommender if "items" in renamed.new else SASRec


@pytest.mark.parametrize("renamed", [row for row in RENAMED if row.values], ids=lambda row: f"{row.old} is {row.new}")
def test_every_new_value_is_a_choice(renamed):
    from typing import get_args, get_type_hints

    holders = [kind for kind, _ in classes() if renamed.new in options(kind)]
    choices = {choice for kind in holders for choice in get_args(get_type_hints(kind.__init__).get(renamed.new))}
    if renamed.old != "form":
        assert set(renamed.values.values()) <= choices


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.learning_rate", "0.1"], "--model.learning_rate is now --model.optimizer.learning_rate."),
        (["--model.init_args.weight_decay=0.1"], "--model.weight_decay is now --model.optimizer.weight_decay."),
        (["--model.warmup_steps", "3"], "--model.optimizer.warmup_steps"),
        (["--model.decay", "cosine"], "--model.optimizer.decay"),
        (["--model.variant", "original2018"], "--model.variant original2018 is now --model.fidelity released."),
        (
            ["--model.objective", "NextItem", "--model.objective.head_dtype", "bfloat16"],
            "--model.objective.head_dtype is now --model.head_dtype.",
        ),
        (["--model", "SIGMA", "--model.compat", "released"], "--model.compat is now --model.fidelity."),
        (["--model", "HMambaFull", "--model.compat", "algorithm1"], "algorithm1 is now --model.fidelity paper."),
        (["--model", "Mamba4Rec", "--model.init", "released"], "--model.init is now --model.fidelity."),
        (["--model", "Mamba4Rec", "--model.init", "mamba"], "--model.init mamba is now --model.fidelity ours."),
        (["--model", "HMamba", "--model.init", "released"], "--model.init released is now --model.init normal."),
        (["--model", "GRU4RecSession", "--model.momentum", "0.1"], "--model.optimizer.momentum"),
    ],
)
def test_an_old_flag_is_refused_with_its_successor(complaint, small, flags, said):
    assert said in complaint("fit", *small, *flags)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"learning_rate": 0.1}, "key 'model.learning_rate' in old.yaml is now 'model.optimizer.learning_rate'."),
        ({"variant": "original2018"}, "key 'model.variant original2018' in old.yaml is now 'model.fidelity released'."),
        (
            {"objective": {"class_path": "GBCE", "init_args": {"head_dtype": "bfloat16"}}},
            "key 'model.objective.head_dtype' in old.yaml is now 'model.head_dtype'.",
        ),
    ],
)
def test_an_old_key_is_refused_with_its_successor_and_its_file(complaint, small, model, said):
    Path("old.yaml").write_text(json.dumps({"model": {"class_path": "SASRec", "init_args": model}}))
    assert said in complaint("fit", "--config", "old.yaml", *small[2:])


def test_what_a_class_still_has_is_not_refused():
    class Mine:
        def __init__(self, num_items: int, learning_rate: float = 0.1):
            pass

    for renamed in RENAMED:
        assert successor(renamed, ("model", "learning_rate"), Mine, Mine) is None
