"""Evaluation: what is logged, how parts of the data are kept apart, and evaluations of one's own."""

import pytest
import torch
from torch import Tensor

from lightrec.configurable import describe
from lightrec.data.batch import Batch
from lightrec.errors import InputError
from lightrec.interfaces import Losses, Term
from lightrec.metrics.ranking import RankingMetrics
from lightrec.models.sasrec import SASRec
from lightrec.recommender import Evaluation, RankingEvaluation, SequenceRecommender
from lightrec.search.exact import ranked
from lightrec.testing import toy_data, toy_log
from lightrec.testing.harness import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Fixed(SequenceRecommender):
    """Ranks items by number, downwards, whoever asks.

    Args:
        num_items: size of the catalog.
        evaluation: how it is judged.
    """

    def __init__(self, num_items: int, evaluation: Evaluation | None = None):
        super().__init__(evaluation=evaluation)
        self.num_items = num_items
        self.weight = torch.nn.Parameter(torch.ones(2, 2))

    def loss(self, batch: Batch) -> Losses:
        return {"squares": Term(self.weight.square().sum())}

    def recommend(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        return ranked(torch.arange(self.num_items + 1).float().repeat(len(batch), 1), k, batch.seen_ids)


@pytest.fixture
def data(tmp_path):
    return toy_data(tmp_path, toy_log(num_users=20), batch_size=8)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_what_is_logged_is_what_the_metrics_compute_from_the_lists(tmp_path, exclude_seen):
    data = toy_data(tmp_path, toy_log(num_users=33), exclude_seen=exclude_seen)
    data.eval_batch_size = 5
    model = Fixed(data.num_items)
    logged = make_trainer(tmp_path, 1).test(model, datamodule=data, verbose=False)[0]
    expected = RankingMetrics()
    expected.set_catalog(data.item_counts)
    rows = 0
    for batch in data.test_dataloader():
        expected.update(*model.recommend(batch, expected.max_k + 1), batch.target_ids)
        rows += len(batch)
    assert rows == 33 and (batch.seen_ids is not None) == exclude_seen
    values = expected.compute()
    assert set(logged) == {f"test/{name}" for name in values}
    assert 0 < logged["test/hr@10"] < 1
    for name, value in values.items():
        assert logged[f"test/{name}"] == pytest.approx(value.item(), abs=1e-12), name


def test_validation_and_test_do_not_leak_into_each_other(tmp_path, data):
    model = Fixed(data.num_items)
    run = make_trainer(tmp_path, 1)
    first = run.validate(model, datamodule=data, verbose=False)[0]
    run.test(model, datamodule=data, verbose=False)
    again = run.validate(model, datamodule=data, verbose=False)[0]
    assert first == again and all(name.startswith("val/") for name in first)


def test_a_batch_without_rows_is_passed_over(data):
    model = Fixed(data.num_items)
    empty = next(iter(data.test_dataloader())).map(lambda t: t[:0])
    model.test_step(empty, 0)
    assert model.evaluation.metrics.rows.sum() == 0


def test_options_of_the_ranking_are_those_of_its_metrics(tmp_path, data):
    model = Fixed(data.num_items, RankingEvaluation(ks=[3], cohorts=True, beyond=False))
    logged = make_trainer(tmp_path, 1).test(model, datamodule=data, verbose=False)[0]
    assert {"test/hr@3", "test/ndcg@3"} <= set(logged)
    assert not any("@10" in name or "coverage" in name for name in logged)
    assert any("/hr@3" in name and name != "test/hr@3" for name in logged)  # the cohorts
    assert describe(model)["init_args"]["evaluation"] == describe(model.evaluation)
    with pytest.raises(InputError, match="evaluation.ks must be whole numbers of at least 1"):
        RankingEvaluation(ks=[0])


def test_an_evaluation_is_a_part_that_sees_every_row_once_and_is_told_of_the_data(tmp_path, data):
    class Rows(Evaluation):
        def __init__(self):
            super().__init__()
            self.calls, self.rows = [], 0

        def connect(self, corpus) -> None:
            self.calls.append(("connect", corpus.num_users))

        def reset(self, part: str = "val") -> None:
            self.calls.append(part)
            self.rows = 0

        def update(self, recommender, batch) -> None:
            self.rows += len(batch)

        def compute(self):
            return {"rows": torch.tensor(float(self.rows))}

    model = Fixed(data.num_items)
    model.evaluation = Rows()  # it may be replaced before a run
    run = make_trainer(tmp_path, 1)
    assert run.test(model, datamodule=data, verbose=False)[0] == {"test/rows": 20.0}
    assert model.evaluation.calls == [("connect", 20), "test"]
    run.validate(model, datamodule=data, verbose=False)
    assert model.evaluation.calls[-1] == "val" and model.evaluation.rows == 20


def test_a_model_is_judged_by_lists_if_nothing_is_said():
    assert isinstance(SASRec(5, hidden_size=8).evaluation, RankingEvaluation)
