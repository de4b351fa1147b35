"""BERT4Rec against torch's own post-norm transformer, and what it sees while training and when asked."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightrec.data.batch import Batch
from lightrec.interfaces import History, Objective, Term, total
from lightrec.items.embedding import ItemEmbedding
from lightrec.models.bert4rec import BERT4Rec, BERT4RecEncoder, BERT4RecItems
from lightrec.objectives.masked_item import Cloze
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import EncoderRecommender

NUM_ITEMS, MASK = 9, 10


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def model():
    model = BERT4Rec(NUM_ITEMS, max_length=5, hidden_size=8, std=0.5).eval()  # wide enough to see differences
    nn.init.normal_(model.items.bias)
    return model


def reference(encoder: BERT4RecEncoder, inner_size: int) -> nn.TransformerEncoder:
    """torch's post-norm encoder with the weights of ours."""
    layer = nn.TransformerEncoderLayer(8, 2, inner_size, 0.0, "gelu", batch_first=True)
    theirs = nn.TransformerEncoder(layer, len(encoder.blocks), enable_nested_tensor=False)
    with torch.no_grad():
        for block, other in zip(encoder.blocks, theirs.layers, strict=True):
            attention = block.attention
            other.self_attn.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key_value.weight]))
            other.self_attn.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key_value.bias]))
            other.self_attn.out_proj.load_state_dict(attention.output.state_dict())
            other.linear1.load_state_dict(block.feed_forward.up.state_dict())
            other.linear2.load_state_dict(block.feed_forward.down.state_dict())
            other.norm1.load_state_dict(block.attention_norm.state_dict())
            other.norm2.load_state_dict(block.feed_forward_norm.state_dict())
    return theirs.eval()


def test_the_encoder_is_a_post_norm_transformer_that_ignores_padding():
    encoder = BERT4RecEncoder(6, 8, num_heads=2, std=0.5).eval()
    x, lengths = torch.randn(3, 6, 8), torch.tensor([6, 4, 1])
    padding = torch.arange(6) >= lengths[:, None]
    expected = reference(encoder, 32)(encoder.enter(History(x, lengths)).x, src_key_padding_mask=padding)
    assert torch.allclose(encoder(History(x, lengths))[~padding], expected[~padding], atol=1e-5)


def test_with_a_causal_mask_and_all_positions_it_is_a_post_norm_sasrec():
    """The same weights, no mask token, the plain tied head and the next item as target."""
    encoder = BERT4RecEncoder(6, 8, num_heads=2, std=0.5, dropout=0.0, causal=True)
    model = EncoderRecommender(ItemEmbedding(NUM_ITEMS, 8), encoder, NextItem())
    items = torch.randint(1, NUM_ITEMS + 1, (2, 6))
    batch = Batch(items, torch.tensor([6, 6]), torch.arange(2))
    lengths = torch.tensor([5, 5])
    x = encoder.enter(History(model.items(items[:, :-1]), lengths)).x
    future = torch.ones(5, 5).triu(1).bool()
    hidden = reference(encoder, 32)(x, mask=future)
    logits = hidden @ model.items.embedding.weight[1:].T
    assert torch.isclose(
        total(model.loss(batch)), F.cross_entropy(logits.flatten(0, 1), items[:, 1:].flatten() - 1), atol=1e-5
    )


def test_a_later_item_changes_the_prediction_of_an_earlier_mask(model):
    first = torch.tensor([[1, MASK, 3, 4]])
    other = torch.tensor([[1, MASK, 3, 5]])
    states = [model.encode(Batch(ids, torch.tensor([4]), torch.arange(1)))[0, 1] for ids in (first, other)]
    assert not torch.allclose(*states, atol=1e-3)
    assert not model.encoder.causal


def test_padding_changes_no_logit(model):
    short = Batch(torch.tensor([[1, 2, 3]]), torch.tensor([3]), torch.arange(1))
    padded = Batch(torch.tensor([[1, 2, 3, 7, 7]]), torch.tensor([3]), torch.arange(1))
    assert torch.allclose(model.query(short), model.query(padded), atol=1e-6)


def test_inference_is_the_training_instance_that_hides_the_last_item(model):
    window = Batch(torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([4, 2]), torch.arange(2))
    hidden = Cloze(last_only_share=1.0).draw(window)
    states = model.encode(window.replace(item_ids=window.item_ids.masked_fill(hidden, MASK)))[hidden]
    history = Batch(torch.tensor([[1, 2, 3], [5, 0, 0]]), torch.tensor([3, 1]), torch.arange(2))
    assert torch.allclose(model.query(history), states, atol=1e-6)


def test_a_history_of_max_length_leaves_room_for_the_mask(model):
    full = Batch(torch.randint(1, NUM_ITEMS + 1, (2, 5)), torch.tensor([5, 5]), torch.arange(2))
    assert model.recommend(full, 3)[0].shape == (2, 3)
    longer = Batch(torch.randint(1, NUM_ITEMS + 1, (1, 6)), torch.tensor([6]), torch.arange(1))
    with pytest.raises(ValueError, match="more than max_length"):
        model.recommend(longer, 3)


def test_the_query_leaves_the_batch_as_it_was(model):
    batch = Batch(torch.tensor([[1, 2, 0]]), torch.tensor([2]), torch.arange(1))
    model.query(batch)
    assert batch.item_ids.tolist() == [[1, 2, 0]] and batch.lengths.tolist() == [2]


def test_the_head_is_layer_norm_of_gelu_against_the_tied_table_with_a_bias():
    items = BERT4RecItems(NUM_ITEMS, 8, std=0.5)
    nn.init.normal_(items.bias)
    hidden = torch.randn(3, 8)
    dense = items.transform[0]
    transformed = F.layer_norm(F.gelu(hidden @ dense.weight.T + dense.bias), (8,))
    logits = transformed @ items.embedding.weight[1 : NUM_ITEMS + 1].T + items.bias
    scores = items.score(hidden)
    assert scores.shape == (3, NUM_ITEMS + 1) and (scores[:, 0] == -torch.inf).all()
    assert torch.allclose(scores[:, 1:], logits, atol=1e-5)


def test_the_mask_is_never_recommended(model):
    with torch.no_grad():
        model.items.embedding.weight[MASK] *= 100
    batch = Batch(torch.tensor([[1, 2]]), torch.tensor([2]), torch.arange(1))
    item_ids, scores = model.recommend(batch, NUM_ITEMS + 3)
    assert sorted(item_ids[0].tolist()) == [0, 0, 0, *range(1, NUM_ITEMS + 1)]


def test_the_model_of_the_replication_has_neither_transform_nor_bias():
    model = BERT4Rec(NUM_ITEMS, max_length=5, hidden_size=8, head_transform=False, output_bias=False)
    assert model.items.bias is None
    hidden = torch.randn(2, 8)
    assert torch.allclose(
        model.items.score(hidden)[:, 1:], hidden @ model.items.embedding.weight[1 : NUM_ITEMS + 1].T, atol=1e-6
    )


def test_another_objective_can_be_given():
    class Nothing(Objective):
        def forward(self, recommender, batch, states=None):
            return {"nothing": Term(recommender.items.embedding.weight.sum() * 0)}

    assert isinstance(BERT4Rec(NUM_ITEMS, 5, 8, objective=Nothing()).objective, Nothing)
