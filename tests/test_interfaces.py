"""The values and defaults of the interfaces: History, Losses, the loss over the catalog, and the step form."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.interfaces import History, ItemTable, Search, SequenceEncoder, Term, total
from lightrec.items.embedding import ItemEmbedding
from lightrec.ops.blocks import budget


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


@pytest.fixture
def history():
    torch.manual_seed(0)
    times = torch.arange(12).view(3, 4)
    columns = {"action": times * 10, "features": torch.randn(3, 4, 2)}
    return History(torch.randn(3, 4, 5), torch.tensor([4, 1, 3]), times, times + 1, columns)


def test_abstract_parts_cannot_be_built():
    for kind in (ItemTable, SequenceEncoder, Search):
        with pytest.raises(TypeError, match="abstract"):
            kind()


def test_an_encoder_without_a_step_form_says_what_to_do():
    class Identity(SequenceEncoder):
        def enter(self, history):
            return history

        def mix(self, history):
            return history.x

    x = torch.randn(1, 2, 3)
    assert torch.equal(Identity()(History(x, torch.tensor([2]))), x)
    with pytest.raises(NotImplementedError, match="Identity has no step form: encode the whole history"):
        Identity().init_state(4)


def test_calling_an_encoder_mixes_what_entered_and_its_last_state_is_that_of_the_call(history):
    class Shifted(SequenceEncoder):
        def enter(self, history):
            return history._replace(x=history.x + history.timestamps[..., None])

        def mix(self, history):
            return history.x.cumsum(1)

    encoder = Shifted()
    expected = (history.x + history.timestamps[..., None]).cumsum(1)
    assert torch.equal(encoder(history), expected)
    assert torch.equal(encoder.last(history), expected[torch.arange(3), history.lengths - 1])


def test_a_history_knows_its_real_positions_and_the_last_of_them(history):
    assert history.mask.tolist() == [[True] * 4, [True] + [False] * 3, [True] * 3 + [False]]
    assert torch.equal(history.last(history.x), torch.stack([history.x[0, 3], history.x[1, 0], history.x[2, 2]]))
    assert history.last(history.timestamps).tolist() == [3, 4, 10]


def test_a_history_is_cut_in_every_part(history):
    short = history.cut(2)
    assert short.lengths.tolist() == [2, 1, 2] and torch.equal(short.x, history.x[:, :2])
    assert torch.equal(short.timestamps, history.timestamps[:, :2])
    assert torch.equal(short.query_times, history.query_times[:, :2])
    assert {name: tuple(column.shape) for name, column in short.columns.items()} == {
        "action": (3, 2),
        "features": (3, 2, 2),
    }
    bare = History(history.x, history.lengths).cut(3)
    assert bare.timestamps is None and bare.query_times is None and bare.columns == {}


def test_a_loss_is_the_weighted_sum_of_its_terms_and_weight_zero_only_logs():
    watched = torch.tensor(torch.nan, requires_grad=True)
    values = torch.tensor([2.0, 3.0], requires_grad=True)
    weight = torch.tensor(0.5, requires_grad=True)
    losses = {"a": Term(values[0]), "b": Term(values[1], weight), "watched": Term(watched, 0)}
    loss = total(losses)
    loss.backward()
    assert loss.item() == 3.5 and values.grad.tolist() == [1.0, 0.5]
    assert weight.grad == 3.0  # a weight that is learned
    assert watched.grad is None  # not even its NaN is multiplied in


@pytest.mark.parametrize("block_bytes", [1, 2**20])
@pytest.mark.parametrize("temperature", [1.0, 0.3, torch.tensor(0.3)], ids=["one", "number", "tensor"])
def test_every_table_sums_the_cross_entropy_of_its_scores(table, temperature, block_bytes):
    hidden = torch.randn(40, 5, requires_grad=True)
    targets = torch.randint(1, NUM_ITEMS + 1, (40,))
    expected = F.cross_entropy(table.score(hidden)[:, 1:] / temperature, targets - 1, reduction="sum")
    with budget("scores", block_bytes):
        loss = table.cross_entropy(hidden, targets, temperature)
        found = torch.autograd.grad(loss, [hidden, table.embedding.weight])
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [hidden, table.embedding.weight])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
