"""Exact search: ranking a catalog in blocks, by float32 scores; and the ranking of scores that are there."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightrec.errors import InputError
from lightrec.interfaces import ItemTable
from lightrec.items.embedding import ItemEmbedding
from lightrec.ops.blocks import budget
from lightrec.search.exact import ExactSearch, ranked


class Distance(ItemTable):
    """Scores by negative distance: a table whose score is not affine in the state."""

    def __init__(self, num_items: int, hidden_size: int):
        super().__init__()
        self.num_items, self.hidden_size = num_items, hidden_size
        self.embedding = nn.Embedding(num_items + 1, hidden_size, padding_idx=0)

    def forward(self, item_ids: Tensor) -> Tensor:
        return self.embedding(item_ids)

    def score(self, hidden: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
        ids = torch.arange(self.num_items + 1) if candidate_ids is None else candidate_ids
        scores = -(hidden.unsqueeze(-2) - self.embedding(ids)).norm(dim=-1)
        return scores.masked_fill(ids == 0, -torch.inf)


TABLES = [ItemEmbedding, lambda n, d: ItemEmbedding(n, d, bias=True, cosine_temperature=0.2, num_special=3), Distance]
NUM_ITEMS = 23


@pytest.fixture(params=TABLES, ids=["dot", "cosine", "distance"])
def table(request):
    torch.manual_seed(0)
    table = request.param(NUM_ITEMS, 5)
    if getattr(table, "bias", None) is not None:
        nn.init.normal_(table.bias)
    return table


def numpy_ranking(table, hidden, exclude_ids=None):
    """Sorts all scores: item ids [B, num_items] best first, with their scores."""
    scores = table.score(hidden).detach().numpy()[:, 1:].copy()
    if exclude_ids is not None:
        for row, ids in enumerate(exclude_ids.tolist()):
            scores[row, [i - 1 for i in ids if i]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    return order + 1, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("k", [1, 5, NUM_ITEMS])
def test_top_k_is_what_sorting_all_scores_gives(table, k):
    hidden = torch.randn(6, 5)
    item_ids, scores = ExactSearch()(table, hidden, k)
    expected_ids, expected = numpy_ranking(table, hidden)
    assert np.array_equal(item_ids.numpy(), expected_ids[:, :k])
    assert np.allclose(scores.detach().numpy(), expected[:, :k], atol=1e-6)


@pytest.mark.parametrize("block_items", [1, 4, 7, 22, 23, 24])
def test_blocks_of_any_size_give_one_blocks_answer(table, block_items):
    hidden = torch.randn(6, 5)
    exclude = torch.tensor([[1, 2, 0], [23, 22, 21], [0, 0, 0], [5, 5, 5], [8, 1, 23], [4, 0, 7]])
    whole_ids, whole = ExactSearch()(table, hidden, 4, exclude)
    with budget("search", 4 * len(hidden) * block_items):
        item_ids, scores = ExactSearch()(table, hidden, 4, exclude)
    assert torch.equal(item_ids, whole_ids) and torch.allclose(scores, whole, atol=1e-6)
    expected_ids, _ = numpy_ranking(table, hidden, exclude)
    assert np.array_equal(item_ids.numpy(), expected_ids[:, :4])


def test_excluded_items_are_left_out_and_lists_that_run_out_are_padded(table):
    hidden = torch.randn(2, 5)
    exclude = torch.tensor([[*range(1, 21), 0, 0, 0], [*range(1, NUM_ITEMS + 1)]])
    item_ids, scores = ExactSearch()(table, hidden, 5, exclude)
    assert set(item_ids[0, :3].tolist()) == {21, 22, 23} and item_ids[0, 3:].tolist() == [0, 0]
    assert (scores[0, 3:] == -torch.inf).all() and scores[0, :3].isfinite().all()
    assert item_ids[1].tolist() == [0] * 5 and (scores[1] == -torch.inf).all()


def test_more_places_than_items_are_padded(table):
    with budget("search", 1):
        item_ids, scores = ExactSearch()(table, torch.randn(3, 5), NUM_ITEMS + 4)
    assert (item_ids[:, NUM_ITEMS:] == 0).all() and (scores[:, NUM_ITEMS:] == -torch.inf).all()
    assert all(sorted(row[:NUM_ITEMS].tolist()) == list(range(1, NUM_ITEMS + 1)) for row in item_ids)


def test_candidates_are_all_there_is_to_rank(table):
    hidden = torch.randn(2, 5)
    candidates = torch.tensor([[3, 9, 23, 0], [1, 2, 0, 0]])
    item_ids, scores = ExactSearch()(table, hidden, 5, candidate_ids=candidates)
    full = table.score(hidden)
    for row, own in enumerate(([3, 9, 23], [1, 2])):
        expected = sorted(own, key=lambda item: -full[row, item].item())
        assert item_ids[row].tolist() == expected + [0] * (5 - len(own))
        assert torch.allclose(scores[row, : len(own)], full[row, expected], atol=1e-6)


def test_candidates_may_be_excluded_too(table):
    hidden = torch.randn(3, 5)
    candidates = torch.tensor([[3, 9, 23, 7], [1, 2, 0, 0], [4, 5, 6, 7]])
    exclude = torch.tensor([[23, 3, 11], [0, 0, 0], [7, 5, 4]])
    item_ids, scores = ExactSearch()(table, hidden, 4, exclude, candidates)
    alone_ids, alone = ExactSearch()(table, hidden, 4, None, torch.tensor([[9, 7, 0, 0], [1, 2, 0, 0], [6, 0, 0, 0]]))
    assert torch.equal(item_ids, alone_ids) and torch.allclose(scores, alone, atol=1e-6)


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_a_nan_anywhere_raises(table, block_bytes):
    for item in (1, 12, NUM_ITEMS):
        spoiled = copy.deepcopy(table)
        with torch.no_grad():
            spoiled.embedding.weight[item] = torch.nan
        with budget("search", block_bytes), pytest.raises(InputError, match="lower --model.optimizer.learning_rate"):
            ExactSearch()(spoiled, torch.randn(3, 5), 2)


def test_ranking_is_in_float32_under_autocast(table):
    hidden = torch.randn(3, 5)
    expected = ExactSearch()(table, hidden, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        item_ids, scores = ExactSearch()(table, hidden, 5)
    assert scores.dtype == torch.float32 and torch.equal(item_ids, expected[0]) and torch.equal(scores, expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_table_in_any_dtype_ranks_by_float32_scores(table, dtype):
    hidden, candidates = torch.randn(6, 5).to(dtype), torch.tensor([[3, 9, 23, 0]]).expand(6, -1)
    table = table.to(dtype)
    exact = copy.deepcopy(table).double()
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float64: 1e-6}[dtype]  # a few units of what is stored
    for block_bytes in (2**20, 4 * len(hidden) * 7):
        for given in (None, candidates):
            with budget("search", block_bytes):
                item_ids, scores = ExactSearch()(table, hidden, 3, candidate_ids=given)
            best = ExactSearch()(exact, hidden, 3, candidate_ids=given)[1]
            assert scores.dtype == torch.float32 and item_ids.min() > 0
            assert torch.allclose(scores, best, rtol=tolerance, atol=tolerance * best.abs().max().item())


def test_a_linear_head_in_bfloat16_is_summed_in_float32():
    torch.manual_seed(0)
    table, hidden = ItemEmbedding(NUM_ITEMS, 64).bfloat16(), torch.randn(6, 64).bfloat16()
    _, scores = ExactSearch()(table, hidden, NUM_ITEMS)
    exact = (hidden.double() @ table.embedding.weight[1:].double().T).sort(1, descending=True).values
    assert torch.allclose(scores.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_table_whose_vectors_are_buffers_or_float16_beside_float32_ranks_too():
    class Fixed(ItemTable):
        """Vectors in a buffer, or projected by a parameter of another dtype."""

        def __init__(self, projected: bool):
            super().__init__()
            self.num_items, self.hidden_size = NUM_ITEMS, 5
            self.register_buffer("vectors", torch.randn(NUM_ITEMS + 1, 5).half())
            self.project = nn.Linear(5, 5) if projected else nn.Identity()

        def forward(self, item_ids: Tensor) -> Tensor:
            return self.vectors[item_ids]

        def score(self, hidden: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
            state = self.project(hidden)
            return state @ self.vectors[candidate_ids].to(state.dtype).T

    for projected in (False, True):
        for hidden in (torch.randn(3, 5), torch.randn(3, 5).bfloat16()):
            item_ids, scores = ExactSearch()(Fixed(projected), hidden, 4)
            assert scores.dtype == torch.float32 and scores.isfinite().all() and item_ids.min() > 0


@pytest.mark.parametrize("k", [1, 4, NUM_ITEMS, NUM_ITEMS + 3])
@pytest.mark.parametrize("limited", [False, True])
def test_scores_that_are_there_are_ranked_as_a_search_ranks_them(table, k, limited):
    hidden = torch.randn(3, 5)
    exclude = torch.tensor([[1, 2, 0], [23, 22, 21], [0, 0, 0]])
    candidates = torch.tensor([[3, 2, 23, 0], [1, 2, 21, 22], [9, 0, 0, 0]]) if limited else None
    expected_ids, expected = ExactSearch()(table, hidden, k, exclude, candidates)
    item_ids, scores = ranked(table.score(hidden).detach().double(), k, exclude, candidates)
    assert torch.equal(item_ids, expected_ids) and scores.dtype == torch.float32
    assert torch.allclose(scores, expected, atol=1e-6)
