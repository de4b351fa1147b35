"""Each contract check passes a right model and fails one that breaks just this part of the contract."""

import pytest
import torch
from torch import Tensor, nn

from lightrec import testing
from lightrec.errors import InputError
from lightrec.interfaces import History, Losses, Objective, SequenceEncoder, Term
from lightrec.items.embedding import ItemEmbedding
from lightrec.nn.sequence import valid_mask
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer, SequenceRecommender


class LastItemEncoder(SequenceEncoder):
    """State = f(last item), which is all that the toy rule asks for; or one of the faults that the checks are for."""

    causal = True

    def __init__(self, hidden_size: int = 16, fault: str = ""):
        super().__init__()
        self.hidden_size, self.fault = hidden_size, fault
        self.layer = nn.Linear(hidden_size, hidden_size)
        self.unsaved = torch.randn(hidden_size)

    def enter(self, history: History) -> History:
        return history

    def mix(self, history: History) -> Tensor:
        x, lengths = history.x, history.lengths
        y = self.layer(x)
        if self.fault == "future":
            mask = valid_mask(lengths, x.shape[1]).unsqueeze(2)
            return y + (y * mask).sum(1, keepdim=True) / lengths[:, None, None]
        if self.fault == "padding":
            return y + y.cumsum(1).flip(1).cumsum(1)
        if self.fault == "width":
            return y * x.shape[1]
        if self.fault == "rows":
            return y - y.mean((0, 1))
        if self.fault == "length one":
            return y / (lengths - 1)[:, None, None]
        if self.fault == "unsaved state":
            return y + self.unsaved
        return y

    def read(self, history: History) -> tuple[Tensor, Tensor]:
        last, state = super().read(history)
        return (2 * last if self.fault == "read" else last), state

    def init_state(self, batch_size: int, device=None) -> Tensor:
        return torch.zeros(batch_size, 0)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x_t)
        return (y * 1.01 if self.fault == "step" else y), state


class Blind(LastItemEncoder):
    """Must see the whole history, and says so."""

    step = SequenceEncoder.step


class Unshifted(Objective):
    """Asks for the item that was just read."""

    def forward(self, recommender, batch, states=None) -> Losses:
        hidden, mask = recommender.encode(batch), valid_mask(batch.lengths, batch.item_ids.shape[1])
        total = recommender.items.cross_entropy(hidden[mask], batch.item_ids[mask])
        return {"unshifted": Term(total / mask.sum())}


class CutOff(NextItem):
    def forward(self, recommender, batch, states=None) -> Losses:
        losses = super().forward(recommender, batch, states)
        return {name: Term(term.value.detach().requires_grad_()) for name, term in losses.items()}


class BadScores(ItemEmbedding):
    """Scores that differ from those of its linear head, which the search uses."""

    def score(self, hidden: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
        return super().score(hidden, candidate_ids) * 1.01


class Tiny(EncoderRecommender):
    """What the checks are tried on.

    Args:
        num_items: size of the catalog.
        max_length: longest history.
        fault: what is wrong with it.
        optimizer: how it is trained.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int = 10,
        fault: str = "",
        optimizer: Optimizer = AdamW(learning_rate=1e-2),
    ):
        objectives = {"unshifted": Unshifted, "cut off": CutOff}
        super().__init__(
            items=(BadScores if fault == "bad scores" else ItemEmbedding)(num_items, 16),
            encoder=LastItemEncoder(16, fault),
            objective=objectives.get(fault, NextItem)(),
            optimizer=optimizer,
        )
        self.fault = fault

    @torch.no_grad()
    def recommend(self, batch, k: int) -> tuple[Tensor, Tensor]:
        if self.fault == "seen":
            batch = batch.replace(seen_ids=None)
        item_ids, scores = super().recommend(batch, k)
        if self.fault == "unsorted":
            return item_ids.flip(1), scores.flip(1)
        if self.fault == "half precision":
            return item_ids, scores.half()
        return item_ids, scores


class SavesOtherHyperParameters(Tiny):
    def __init__(self, num_items: int):
        super().__init__(num_items)
        self.save_hyperparameters({"num_items": num_items + 1})


class HasNoAnnotation(Tiny):
    def __init__(self, num_items):
        super().__init__(num_items)


class NeedsTimes(Tiny):
    def history(self, batch) -> History:
        if batch.timestamps is None:
            raise InputError("NeedsTimes needs timestamps.")
        assert batch.timestamps.shape == batch.item_ids.shape
        return super().history(batch)


def tiny(fault):
    return lambda num_items, max_length: Tiny(num_items, max_length, fault)


def test_a_right_model_passes_and_says_what_was_checked():
    ran = testing.check_recommender(tiny(""))
    for_others = {"check_recommender", "check_kernel", "check_source"}
    for_others |= {"check_two_processes", "check_export", "check_on_a_gpu"}  # of shipping
    assert set(ran) == {name for name in testing.__all__ if name.startswith("check_")} - for_others


@pytest.mark.parametrize(
    ("check", "fault", "sentence"),
    [
        (testing.check_causality, "future", "LastItemEncoder is not causal"),
        (
            testing.check_padding_invariance,
            "padding",
            "reads padding: item ids and times beyond `lengths` changed a state",
        ),
        (testing.check_padding_invariance, "width", "reads padding: two more columns of padding changed a state"),
        (testing.check_batch_permutation, "rows", "Tiny mixes rows"),
        (testing.check_gradients_at_length_one, "length one", "Tiny.loss is (inf|nan|-inf)"),
        (testing.check_gradients_at_length_one, "cut off", "no parameter has a gradient"),
        (testing.check_checkpoint_round_trip, "unsaved state", "recommends otherwise after loading"),
        (testing.check_seen_items_excluded, "seen", "recommends seen items"),
        (testing.check_seen_items_excluded, "unsorted", "not sorted by score"),
        (testing.check_seen_items_excluded, "half precision", "torch.float16: expected int64 ids, float32 scores"),
        (testing.check_steps, "step", "LastItemEncoder.step differs from mix at position 0"),
        (testing.check_steps, "read", "LastItemEncoder.read differs from mix"),
        (testing.check_top_k_matches_full_scores, "bad scores", "differs from sorting all scores"),
    ],
)
def test_a_fault_is_found_and_named(check, fault, sentence):
    check(tiny(""))
    with pytest.raises(AssertionError, match=sentence):
        check(tiny(fault))


def test_a_model_that_needs_times_is_checked_with_times():
    for check in testing.applicable_checks(NeedsTimes(9)):
        check(lambda num_items, _: NeedsTimes(num_items))


def test_a_loss_without_a_shift_does_not_learn_the_rule():
    with pytest.raises(AssertionError, match="did not find the rule .* in 30 epochs"):
        testing.check_learns_toy_rule(tiny("unshifted"), epochs=30)


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (lambda num_items, _: SavesOtherHyperParameters(num_items), "do not call save_hyperparameters again"),
        (lambda num_items, _: HasNoAnnotation(num_items), "the command line cannot build"),
    ],
)
def test_a_constructor_that_is_no_configuration_is_found(factory, sentence):
    with pytest.raises(AssertionError, match=sentence):
        testing.check_config_round_trip(factory)


def test_the_author_must_say_whether_the_encoder_sees_the_future():
    with pytest.raises(AssertionError, match="LastItemEncoder.causal is True, the test says causal=False"):
        testing.check_recommender(tiny(""), causal=False)


def test_checks_are_chosen_by_what_the_model_is():
    class Counts(SequenceRecommender):
        def loss(self, batch):
            return {"nothing": Term(torch.zeros(()))}

        def recommend(self, batch, k):
            raise NotImplementedError

    names = {check.__name__ for check in testing.applicable_checks(Counts())}
    assert names == {
        "check_config_round_trip",
        "check_padding_invariance",
        "check_batch_permutation",
        "check_seen_items_excluded",
        "check_checkpoint_round_trip",
    }
    blind = Tiny(9)
    blind.encoder = Blind()
    blind.encoder.causal = False
    assert not {testing.check_causality, testing.check_steps} & set(testing.applicable_checks(blind))


def test_checks_leave_threads_and_random_state_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    testing.check_batch_permutation(tiny(""))
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads
