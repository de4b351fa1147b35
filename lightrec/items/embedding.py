"""ItemEmbedding: a learned vector for every item, with a dot-product or cosine head."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.configurable import Above, AtLeast
from lightrec.interfaces import ItemTable, LinearHead

HeadDtype = Literal["float32", "bfloat16"]


class ItemEmbedding(ItemTable):
    """Looks items up in a table and scores states by inner product with the same table or another.

    Args:
        num_items: size of the catalog; ids are 1..num_items.
        hidden_size: D.
        tied: score with the input table; False learns an output table of its own (gSASRec).
        bias: learn one output bias per item (BERT4Rec).
        scale: multiply input vectors by this (the 2018 SASRec uses sqrt(D)).
        num_special: extra ids above num_items, such as a mask, that have a vector but are never scored.
        cosine_temperature: None scores by dot product; a number scores by cosine divided by it.
        std: standard deviation of the normal initialisation; None is Xavier normal over the whole table.
        head_dtype: dtype of the matrix products with the catalog while training; `bfloat16` takes a third less time on
            a CPU that has it. None is float32, or the dtype of autocast.
    """

    limits = {"num_items": AtLeast(1), "cosine_temperature": Above(0)}

    def __init__(
        self,
        num_items: int,
        hidden_size: int,
        tied: bool = True,
        bias: bool = False,
        scale: float = 1.0,
        num_special: int = 0,
        cosine_temperature: float | None = None,
        std: float | None = None,
        head_dtype: HeadDtype | None = None,
    ):
        super().__init__()
        self.num_items, self.hidden_size = num_items, hidden_size
        self.scale, self.cosine_temperature = scale, cosine_temperature
        self.head_dtype = None if head_dtype is None else getattr(torch, head_dtype)
        self.embedding = nn.Embedding(num_items + 1 + num_special, hidden_size, padding_idx=0)
        self.output = None if tied else nn.Embedding(num_items + 1, hidden_size, padding_idx=0)
        self.bias = nn.Parameter(torch.zeros(num_items)) if bias else None
        for table in filter(None, (self.embedding, self.output)):
            if std is None:
                nn.init.xavier_normal_(table.weight)
            else:
                nn.init.normal_(table.weight, std=std)
            with torch.no_grad():
                table.weight[0].zero_()

    def forward(self, item_ids: Tensor) -> Tensor:
        x = self.embedding(item_ids)
        return x if self.scale == 1.0 else x * self.scale

    def linear_head(self, hidden: Tensor) -> LinearHead:
        weight = (self.output or self.embedding).weight[1 : self.num_items + 1]
        if self.cosine_temperature is not None:
            hidden = F.normalize(hidden, dim=-1) / self.cosine_temperature
            weight = F.normalize(weight, dim=-1)
        return LinearHead(hidden, weight, self.bias)

    def score(self, hidden: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
        hidden, weight, bias = self.linear_head(hidden)
        if candidate_ids is None:
            logits = F.linear(hidden, weight, bias)
            return F.pad(logits, (1, 0), value=-torch.inf)  # [..., V]
        rows = (candidate_ids - 1).clamp_min(0)
        vectors = F.embedding(rows, weight)  # [C, D] or [..., C, D]
        if candidate_ids.dim() == 1:
            logits = hidden @ vectors.T
        else:
            logits = (vectors @ hidden.unsqueeze(-1)).squeeze(-1)
        if bias is not None:
            logits = logits + bias[rows]
        return logits.masked_fill(candidate_ids == 0, -torch.inf)
