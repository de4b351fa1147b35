"""What a test reports of each step, and of the oracle among them."""

import pytest
import torch

from lightrec import testing
from lightrec.testing.harness import make_trainer

pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")
from lightrec_rearec.evaluation import ORACLE, best_of  # noqa: E402
from lightrec_rearec.model import ReaRec  # noqa: E402

D, LENGTH = 8, 9


def test_a_test_reports_each_step_by_cohorts_and_an_oracle_that_is_named_as_one(tmp_path):
    data = testing.toy_data(tmp_path, max_length=LENGTH)
    tested = ReaRec(data.num_items, LENGTH, D, num_steps=2)
    tested.evaluation = tested.evaluation.with_options([1, 5, 10, 20], cohorts=True, beyond=True, per_user=False)
    trainer = make_trainer(tmp_path, 1)
    found = trainer.test(tested, datamodule=data, verbose=False)[0]
    assert "diagnostic" in ORACLE
    for k in (5, 10):
        steps = [found[f"test/step-{i}/ndcg@{k}"] for i in range(3)]
        assert steps[2] == found[f"test/ndcg@{k}"]  # the last step is what is served
        assert found[f"test/{ORACLE}/ndcg@{k}"] >= max(steps)
        assert any(name.startswith(f"test/step-0/ndcg@{k}/history:") for name in found)
        assert any(name.startswith(f"test/step-0/ndcg@{k}/items:") for name in found)
    assert not any("step-" in name for name in trainer.validate(tested, datamodule=data, verbose=False)[0])


def test_the_oracle_takes_the_list_with_the_better_place_of_the_target():
    lists = [
        (torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3.0, 2, 1], [9, 8, 7]])),
        (torch.tensor([[2, 1, 3], [5, 4, 6]]), torch.tensor([[6.0, 5, 4], [6, 5, 4]])),
    ]
    item_ids, scores = best_of(lists, torch.tensor([[2], [4]]), 2)
    assert item_ids.tolist() == [[2, 1, 3], [4, 5, 6]] and scores.tolist() == [[6, 5, 4], [9, 8, 7]]
