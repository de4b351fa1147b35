"""The item table: tying, padding, special ids, candidates."""

import pytest
import torch

from lightrec.items.embedding import ItemEmbedding
from lightrec.search.exact import ExactSearch

OPTIONS = [
    dict(),
    dict(tied=False),
    dict(bias=True),
    dict(cosine_temperature=0.1),
    dict(num_special=2),
    dict(scale=3.0),
    dict(tied=False, bias=True, cosine_temperature=0.5),
]


@pytest.fixture(params=OPTIONS, ids=str)
def table(request):
    torch.manual_seed(0)
    table = ItemEmbedding(num_items=9, hidden_size=4, **request.param)
    if table.bias is not None:
        torch.nn.init.normal_(table.bias)
    return table


def test_padding_has_no_vector_and_no_score(table):
    assert table(torch.tensor([0, 3, 0]))[[0, 2]].abs().sum() == 0
    logits = table.score(torch.randn(2, 4))
    assert logits.shape == (2, 10) and (logits[:, 0] == -torch.inf).all() and logits[:, 1:].isfinite().all()


def test_scores_of_candidates_are_columns_of_the_full_scores(table):
    hidden = torch.randn(3, 4)
    full = table.score(hidden)
    shared = torch.tensor([4, 9, 0, 1])
    assert torch.allclose(table.score(hidden, shared), full[:, shared], atol=1e-6)
    own = torch.tensor([[1, 2], [9, 0], [5, 5]])
    assert torch.allclose(table.score(hidden, own), full.gather(1, own), atol=1e-6)


def test_top_k_is_the_sorted_full_score(table):
    hidden = torch.randn(3, 4)
    ids, scores = ExactSearch()(table, hidden, 5)
    expected, columns = table.score(hidden).topk(5)
    assert torch.equal(ids, columns) and torch.allclose(scores, expected, atol=1e-6)


def test_excluded_items_never_appear_and_short_lists_are_filled_with_padding(table):
    hidden = torch.randn(2, 4)
    exclude = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [9, 0, 0, 0, 0, 0, 0]])
    ids, scores = ExactSearch()(table, hidden, 4, exclude_ids=exclude)
    assert set(ids[0].tolist()) == {8, 9, 0} and (scores[0, 2:] == -torch.inf).all()
    assert 9 not in ids[1].tolist() and 0 not in ids[1].tolist()


def test_special_ids_have_vectors_but_are_never_ranked():
    table = ItemEmbedding(5, 4, num_special=1)
    assert table(torch.tensor([6])).abs().sum() > 0
    ids, _ = ExactSearch()(table, torch.randn(50, 4) * 10, 5)
    assert ids.max() <= 5


@pytest.mark.parametrize("bad", [dict(num_items=0), dict(cosine_temperature=0.0)])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError):
        ItemEmbedding(**{"num_items": 3, "hidden_size": 4, **bad})
