"""Two processes, export and speed: each check passes a right model and fails one that breaks just this."""

import pytest
import torch
from torch import Tensor, nn

from lightrec import testing
from lightrec.interfaces import History
from lightrec.items.embedding import ItemEmbedding
from lightrec.models.sasrec import SASRec
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import EncoderRecommender
from lightrec.testing.harness import sample_batch


def sasrec(num_items, max_length):
    return SASRec(num_items, max_length=max_length, hidden_size=8, num_layers=1, dropout=0.1)


class HasAnIdlePart(SASRec):
    """A parameter that the loss never uses: two processes would wait for its gradient."""

    def __init__(self, num_items: int, max_length: int = 10):
        super().__init__(num_items, max_length=max_length, hidden_size=8, num_layers=1)
        self.idle = nn.Linear(2, 2)


class LooksAtValues(SASRec):
    """Its query depends on a number in the batch, which a captured program cannot know."""

    def query(self, batch) -> Tensor:
        state = super().query(batch)
        return state if batch.item_ids.sum().item() % 2 else -state


@pytest.mark.slow
def test_a_model_trains_and_measures_alike_in_two_processes():
    testing.check_two_processes(sasrec)


@pytest.mark.slow
def test_a_model_that_two_processes_cannot_train_is_found():
    with pytest.raises(AssertionError, match="HasAnIdlePart cannot be trained in two processes: .*"):
        testing.check_two_processes(lambda num_items, max_length: HasAnIdlePart(num_items, max_length))


def test_a_model_is_exported():
    testing.check_export(sasrec)


def test_a_query_that_looks_at_values_cannot_be_exported():
    with pytest.raises(AssertionError, match="torch.export cannot capture LooksAtValues.query: "):
        testing.check_export(
            lambda num_items, max_length: LooksAtValues(num_items, max_length=max_length, hidden_size=8)
        )


def test_a_model_is_compared_with_itself_on_another_device():
    class Loses(SASRec):
        def to(self, *args):
            with torch.no_grad():
                self.encoder.positions.weight.mul_(1.01)
            return super().to(*args)

    testing.check_on_a_gpu(sasrec, device="cpu")
    with pytest.raises(AssertionError, match="Loses: moving to cpu changed scores by"):
        testing.check_on_a_gpu(
            lambda num_items, max_length: Loses(num_items, max_length=max_length, hidden_size=8), device="cpu"
        )


def test_speed_is_a_ratio_of_the_same_work():
    class Slow(SASRec):
        def history(self, batch) -> History:
            history = super().history(batch)
            for _ in range(300):
                history = history._replace(x=history.x + torch.zeros_like(history.x).sin())
            return history

    same = testing.compare_speed(sasrec, num_items=50, max_length=10, rounds=3)
    slow = testing.compare_speed(
        lambda num_items, max_length: Slow(num_items, max_length=max_length, hidden_size=8, num_layers=1), 50, 10, 3
    )
    assert set(same) == {"train", "recommend"}
    assert 0 < same["train"] < slow["train"] and 0 < same["recommend"] < slow["recommend"]


def test_a_batch_of_the_checks_is_one_as_the_data_make_it():
    batch = sample_batch()
    model = EncoderRecommender(ItemEmbedding(40, 8), SASRec(40, max_length=10, hidden_size=8).encoder, NextItem())
    assert model.recommend(batch, 3)[0].shape == (6, 3)
    assert torch.equal(batch.timestamps > 0, batch.item_ids > 0)
    assert bool((batch.target_timestamps[:, 0] > batch.timestamps.amax(1)).all())
