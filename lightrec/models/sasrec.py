"""SASRec: self-attentive sequential recommendation.

Wang-Cheng Kang and Julian McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781.

Differences from the original, and why:

* The default objective is the full softmax, not one sampled negative. Under full ranking this is worth more than any
  change of architecture (Klenitskiy and Vasilev, RecSys 2023: HR@10 on ML-1M .250 -> .315). `BinaryCrossEntropy`,
  `GBCE` and `SampledSoftmax` give the others.
* The default block, `query_norm`, is that of SASRec+ (Klenitskiy and Vasilev): only the query is normalised, and the
  residual carries the normalised query. `original2018` is the released code, the same without the output projection.
  `pre_norm` is the ordinary transformer block, x + Attention(LN(x)), then x + FeedForward(LN(x)); it learns several
  times more slowly here. `post_norm` is the SASRec of S3-Rec, CL4SRec, DuoRec and SRA-CL, after BERT:
  LN(x + Attention(x)), then LN(x + FeedForward(x)), a norm on the input in place of one on the output, weights and
  tables drawn from N(0, .02). Publications with it have inner_size 4 D, GELU and weights that are dropped too.
* Rows are padded on the right and positions are counted from the most recent item, which is what the left-padded
  original computes.
* Attention weights are not dropped by default: on a CPU that makes attention a quarter to a half dearer.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from lightrec.interfaces import Objective, SequenceEncoder
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.dropout import Dropout
from lightrec.nn.feed_forward import Activation, FeedForward
from lightrec.nn.item_embedding import ItemEmbedding
from lightrec.nn.sequence import last_state, positions_from_end
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import Decay, EncoderRecommender

Variant = Literal["query_norm", "original2018", "pre_norm", "post_norm"]
_NORM_EPS = {"query_norm": 1e-8, "original2018": 1e-8, "pre_norm": 1e-5, "post_norm": 1e-12}
_POST_NORM_STD = 0.02


class SASRecBlock(nn.Module):
    """One layer; see the module docstring for the variants."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        inner_size: int,
        dropout: float,
        attention_dropout: float,
        activation: Activation,
        variant: Variant,
    ):
        super().__init__()
        eps = _NORM_EPS[variant]
        self.pre_norm, self.post_norm = variant == "pre_norm", variant == "post_norm"
        self.attention_norm = nn.LayerNorm(hidden_size, eps)
        self.attention = MultiHeadAttention(hidden_size, num_heads, attention_dropout, output=variant != "original2018")
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps)
        inner_dropout = 0.0 if self.post_norm else dropout
        self.feed_forward = FeedForward(hidden_size, inner_size, inner_dropout, activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), lengths))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        if self.post_norm:
            x = self.attention_norm(x + self.dropout(self.attention(x, lengths)))
            return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        query = self.attention_norm(x)
        x = self.feed_forward_norm(query + self.attention(query, lengths, memory=x))
        return x + self.dropout(self.feed_forward(x))

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Computes the last real position only: [B, L, D] -> [B, D]."""
        if self.pre_norm:
            normed, x = self.attention_norm(x), last_state(x, lengths)
            x = x + self.dropout(self.attention.last(last_state(normed, lengths), lengths, normed))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        if self.post_norm:
            query = last_state(x, lengths)
            x = self.attention_norm(query + self.dropout(self.attention.last(query, lengths, x)))
            return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        query = self.attention_norm(last_state(x, lengths))
        x = self.feed_forward_norm(query + self.attention.last(query, lengths, x))
        return x + self.dropout(self.feed_forward(x))


class SASRecEncoder(SequenceEncoder):
    """Causal self-attention with learned positions.

    Args:
        max_length: longest history; rows of the position table.
        hidden_size: D.
        num_layers: blocks.
        num_heads: attention heads; must divide hidden_size.
        dropout: of the input and of both sub-layers.
        attention_dropout: of the attention weights.
        inner_size: width of the feed-forward network; None is hidden_size, as in 2018.
        activation: of the feed-forward network.
        variant: graph of a block: `query_norm`, `original2018`, `pre_norm` or `post_norm`; see the module's docstring.
    """

    causal = True

    def __init__(
        self,
        max_length: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        inner_size: int | None = None,
        activation: Activation = "relu",
        variant: Variant = "query_norm",
    ):
        super().__init__()
        if variant not in Variant.__args__:
            raise ValueError(f"variant {variant!r} is unknown; choose {', '.join(Variant.__args__)}.")
        self.hidden_size, self.max_length = hidden_size, max_length
        self.positions = nn.Embedding(max_length, hidden_size)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            SASRecBlock(
                hidden_size, num_heads, inner_size or hidden_size, dropout, attention_dropout, activation, variant
            )
            for _ in range(num_layers)
        )
        norm, post_norm = nn.LayerNorm(hidden_size, _NORM_EPS[variant]), variant == "post_norm"
        self.input_norm, self.norm = (norm, nn.Identity()) if post_norm else (nn.Identity(), norm)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if post_norm:
                    nn.init.normal_(module.weight, std=_POST_NORM_STD)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if post_norm:
            nn.init.normal_(self.positions.weight, std=_POST_NORM_STD)
        else:
            nn.init.xavier_normal_(self.positions.weight)

    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        if x.shape[1] > self.max_length:
            raise ValueError(f"the batch has {x.shape[1]} items a row, more than max_length ({self.max_length}).")
        return self.dropout(self.input_norm(x + self.positions(positions_from_end(lengths, x.shape[1]))))

    def mix(self, x: Tensor, lengths: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, lengths)
        return self.norm(x)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.prepare(x, lengths)
        for block in self.blocks[:-1]:
            x = block(x, lengths)
        return self.norm(self.blocks[-1].last(x, lengths) if len(self.blocks) else last_state(x, lengths))


class SASRec(EncoderRecommender):
    """Self-attention over the history, trained with the full softmax.

    Args:
        num_items: size of the catalog.
        max_length: longest history that is read.
        hidden_size: D.
        num_layers: blocks.
        num_heads: attention heads; must divide hidden_size.
        dropout: of the input and of both sub-layers.
        attention_dropout: of the attention weights.
        inner_size: width of the feed-forward network; None is hidden_size, as in 2018.
        activation: of the feed-forward network.
        variant: graph of a block: `query_norm`, `original2018`, `pre_norm` or `post_norm`; see the module's docstring.
        objective: what is trained; None is the full softmax at every position.
        learning_rate: peak learning rate of Adam.
        weight_decay: decoupled weight decay on matrices.
        warmup_steps: steps of linear warm-up.
        decay: how the learning rate falls until the last step.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int = 200,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        inner_size: int | None = None,
        activation: Activation = "relu",
        variant: Variant = "query_norm",
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
    ):
        scale, std = (1.0, _POST_NORM_STD) if variant == "post_norm" else (hidden_size**0.5, None)
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, scale=scale, std=std),
            encoder=SASRecEncoder(
                max_length,
                hidden_size,
                num_layers,
                num_heads,
                dropout,
                attention_dropout,
                inner_size,
                activation,
                variant,
            ),
            objective=objective or NextItem(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )
