"""Encoders of every kind, a history, windows and a small ReaRec."""

from functools import partial

import pytest
import torch

from lightrec import Batch, History
from lightrec.models.bert4rec import BERT4RecEncoder
from lightrec.models.esasrec import LiGREncoder
from lightrec.models.gru4rec import GRU4RecEncoder
from lightrec.models.hmamba import HMambaEncoder
from lightrec.models.mamba4rec import Mamba4RecEncoder
from lightrec.models.sasrec import SASRecEncoder

D, ITEMS, LENGTH = 8, 12, 9

CAUSAL = {
    "query_norm": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1),
    "released": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1, fidelity="released"),
    "pre_norm": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1, variant="pre_norm"),
    "SASRec post_norm": partial(SASRecEncoder, LENGTH, D, 2, 2, 0.1, variant="post_norm"),
    "LiGR": partial(LiGREncoder, LENGTH, D, 2, 2),
    "post_norm": partial(BERT4RecEncoder, LENGTH, D, 2, 2, causal=True),
    "GRU": partial(GRU4RecEncoder, D, 2, 6),
    "Mamba": partial(Mamba4RecEncoder, D, 2, 4),
    "HMamba": partial(HMambaEncoder, D),
}
ALL = {**CAUSAL, "bidirectional": partial(BERT4RecEncoder, LENGTH, D, 2, 2, std=0.3)}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def encoders():
    """Functions without arguments that make an encoder, by name."""
    return ALL


@pytest.fixture(params=CAUSAL)
def make_causal(request):
    return CAUSAL[request.param]


@pytest.fixture(params=ALL)
def make_any(request):
    return ALL[request.param]


@pytest.fixture
def history():
    return History(torch.randn(4, 6, D, dtype=torch.float64), torch.tensor([6, 3, 1, 4]))


@pytest.fixture
def windows():
    """Draws a training batch."""

    def draw(rows=6, length=LENGTH, seed=0):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, length + 1, (rows,), generator=generator)
        lengths[0] = length
        ids = torch.randint(1, ITEMS + 1, (rows, length), generator=generator)
        return Batch(ids * (torch.arange(length) < lengths[:, None]), lengths, torch.arange(rows))

    return draw


@pytest.fixture
def rearec():
    """Makes a ReaRec around a small SASRec, or around another encoder."""
    model = pytest.importorskip("lightrec_rearec.model", reason="lightrec-rearec is not installed")

    def make(num_steps=2, objective=None, encoder=None, dropout=0.0, **options):
        encoder = encoder or SASRecEncoder(LENGTH, D, 2, 2, dropout)
        return model.ReaRec(
            ITEMS, encoder=encoder, num_steps=num_steps, objective=objective, dropout=dropout, **options
        )

    return make
