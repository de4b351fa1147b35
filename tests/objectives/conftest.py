"""A batch and a model for the tests of sampled objectives."""

import pytest
import torch

from lightrec.data.batch import Batch
from lightrec.models.sasrec import SASRec


@pytest.fixture
def batch():
    """Three windows of 5, 2 and 4 of twelve items: 8 positions with a target."""
    items = torch.tensor([[1, 5, 3, 7, 2], [4, 6, 0, 0, 0], [9, 8, 10, 12, 0]])
    return Batch(item_ids=items, lengths=torch.tensor([5, 2, 4]), user_ids=torch.arange(3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = SASRec(12, max_length=6, hidden_size=8, num_layers=1, dropout=0.0)
    with torch.no_grad():
        model.items.embedding.weight[1:] *= 3  # logits of different sizes
    return model
