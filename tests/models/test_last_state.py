"""What a ranking needs, the last state, is the same whether or not the other states are computed."""

import pytest
import torch

from lightrec import Batch
from lightrec.interfaces import History
from lightrec.models.bert4rec import BERT4Rec, BERT4RecEncoder
from lightrec.models.esasrec import ESASRec
from lightrec.models.gru4rec import GRU4Rec
from lightrec.models.sasrec import SASRec
from lightrec.nn.sequence import last_state

BATCH = Batch.from_histories([[3, 1, 4, 1, 5], [2], [7, 8, 2, 8, 1, 8], [9, 9]])


GRAPHS = [
    (SASRec, dict(variant="query_norm")),
    (SASRec, dict(fidelity="released")),
    (SASRec, dict(variant="pre_norm")),
    (SASRec, dict(variant="post_norm")),
    (ESASRec, dict()),
]
ROUNDING = 1e-6  # float32: the last layer runs for one position alone, through another kernel


@pytest.mark.parametrize(("kind", "graph"), GRAPHS, ids=str)
@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_attention_leaves_out_only_what_is_not_read(kind, graph, num_layers):
    torch.manual_seed(0)
    model = kind(10, max_length=6, hidden_size=8, num_layers=num_layers, num_heads=2, **graph).eval()
    torch.nn.init.normal_(model.encoder.positions.weight)
    assert torch.allclose(model.query(BATCH), last_state(model.encode(BATCH), BATCH.lengths), atol=ROUNDING)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_bert4rec_leaves_out_only_what_is_not_read(num_layers):
    torch.manual_seed(0)
    encoder = BERT4RecEncoder(6, 8, num_layers=num_layers, std=0.5).eval()
    history = History(torch.randn(4, 6, 8), BATCH.lengths)
    assert torch.allclose(encoder.last(history), history.last(encoder(history)), atol=ROUNDING)


def test_a_recurrent_network_reads_its_last_state():
    torch.manual_seed(0)
    model = GRU4Rec(10, hidden_size=8).eval()
    assert torch.equal(model.query(BATCH), last_state(model.encode(BATCH), BATCH.lengths))


def test_bert4rec_reads_the_state_of_the_mask_it_appends():
    torch.manual_seed(0)
    model = BERT4Rec(10, max_length=6, hidden_size=8).eval()
    assert model.query(BATCH).shape == (4, 8)
