"""What a ranking needs, the last state, is the same whether or not the other states are computed."""

import pytest
import torch

from lightrec import Batch
from lightrec.models.bert4rec import BERT4Rec
from lightrec.models.esasrec import ESASRec
from lightrec.models.gru4rec import GRU4Rec
from lightrec.models.sasrec import SASRec
from lightrec.nn.sequence import last_state

BATCH = Batch.from_histories([[3, 1, 4, 1, 5], [2], [7, 8, 2, 8, 1, 8], [9, 9]])


@pytest.mark.parametrize("variant", ["query_norm", "original2018", "pre_norm", "post_norm"])
@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_sasrec_leaves_out_only_what_is_not_read(variant, num_layers):
    torch.manual_seed(0)
    model = SASRec(10, max_length=6, hidden_size=8, num_layers=num_layers, num_heads=2, variant=variant).eval()
    torch.nn.init.normal_(model.encoder.positions.weight)
    assert torch.allclose(model.query(BATCH), last_state(model.encode(BATCH), BATCH.lengths), atol=1e-6)


@pytest.mark.parametrize("make", [ESASRec, GRU4Rec])
def test_other_encoders_read_their_last_state(make):
    torch.manual_seed(0)
    model = make(10, hidden_size=8, **({"max_length": 6} if make is ESASRec else {})).eval()
    assert torch.equal(model.query(BATCH), last_state(model.encode(BATCH), BATCH.lengths))


def test_bert4rec_reads_the_state_of_the_mask_it_appends():
    torch.manual_seed(0)
    model = BERT4Rec(10, max_length=6, hidden_size=8).eval()
    assert model.query(BATCH).shape == (4, 8)
