"""Every built-in model keeps the contract of a recommender, check by check, as a plug-in's would."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch

from lightrec import extensions, testing
from lightrec.configurable import options as options_of
from lightrec.models.mamba4rec import Mamba4Rec
from lightrec.models.sasrec import SASRec
from lightrec.objectives.negatives import NegativeSampler
from lightrec.objectives.next_item import NextItem
from lightrec.testing.harness import sample_batch

SMALL = dict(hidden_size=16, dropout=0.1)


def small(kind, num_items, max_length, **options):
    """Builds a model with what it takes of a small configuration; a floor takes none of it."""
    known = options_of(kind)
    options = {name: value for name, value in (SMALL | options).items() if name in known}
    if "optimizer" in known:
        options["optimizer"] = type(known["optimizer"].default)(learning_rate=1e-2)
    length = {"max_length": max_length} if "max_length" in known else {}
    model = kind(num_items=num_items, **length, **options)
    for module in model.modules():
        if isinstance(module, NegativeSampler) and module.proposal == "popularity":
            module.item_counts = torch.arange(num_items + 1)  # what a data module would tell
    return model


def factories():
    """{name: factory} of every declared model whose module is there, and of variants that are other graphs."""
    found = {}
    for plugin in extensions.installed("models"):
        if plugin.builtin and find_spec(plugin.value.split(":")[0]) is not None:
            found[plugin.name] = partial(small, extensions.load(plugin))
    found["SASRec released"] = partial(small, SASRec, fidelity="released")
    found["SASRec post_norm"] = partial(small, SASRec, variant="post_norm", attention_dropout=0.1)
    found["SASRec two heads, last position"] = partial(small, SASRec, num_heads=2, objective=NextItem("last"))
    found["Mamba4Rec two layers, released"] = partial(small, Mamba4Rec, num_layers=2, fidelity="released", state_size=4)
    for name in ("HMambaFull", "HMambaHalf"):
        found[f"{name} paper"] = partial(found[name], fidelity="paper")
    found["HMamba two layers, distance"] = partial(found["HMamba"], num_layers=2, power=1, temperature=0.25)
    return found


FACTORIES = factories()
CASES = [
    pytest.param(factory, check, id=f"{name}-{check.__name__}")
    for name, factory in FACTORIES.items()
    for check in testing.applicable_checks(factory(testing.contracts.NUM_ITEMS, testing.contracts.MAX_LENGTH))
]


@pytest.mark.parametrize(("factory", "check"), CASES)
def test_a_built_in_keeps_the_contract(factory, check):
    options = {}
    if check is testing.check_learns_toy_rule:
        objective = getattr(factory(testing.contracts.NUM_ITEMS, testing.contracts.MAX_LENGTH), "objective", None)
        if getattr(objective, "positions", "all") == "last":
            options["train_windows"] = "prefixes"  # what is asked once a row needs a row for each event
    check(factory, **options)


def test_every_declared_model_was_checked():
    missing = [p.name for p in extensions.installed("models") if p.builtin and p.name not in FACTORIES]
    assert not missing, f"declared in pyproject.toml but not in the package: {', '.join(missing)}"


def test_the_markov_floor_finds_the_toy_rule_by_counting_once():
    testing.check_learns_toy_rule(FACTORIES["Markov"], train_windows="all", epochs=1, least=0.6)


def test_the_popularity_floor_does_not():
    with pytest.raises(AssertionError, match="Popularity did not find the rule"):
        testing.check_learns_toy_rule(FACTORIES["Popularity"], train_windows="all", epochs=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FACTORIES)
def test_a_built_in_in_another_dtype_recommends_with_float32_scores(name, dtype):
    torch.manual_seed(0)
    model = FACTORIES[name](testing.contracts.NUM_ITEMS, testing.contracts.MAX_LENGTH).eval()
    batch = sample_batch()
    _, exact = model.recommend(batch, 5)
    item_ids, scores = model.to(dtype).recommend(batch, 5)
    assert scores.dtype == torch.float32 and item_ids.min() > 0
    # what some layers round, in units of their storage; of the best scores, which do not depend on near ties
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    assert torch.allclose(scores, exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", FACTORIES)
def test_a_built_in_gives_on_a_gpu_what_it_gives_on_a_cpu(name):
    testing.check_on_a_gpu(FACTORIES[name])
