"""SASRec: self-attentive sequential recommendation.

Wang-Cheng Kang and Julian McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781.

Differences from the original, and why:

* The default objective is the full softmax, not one sampled negative. Under full ranking this is worth more than any
  change of architecture (Klenitskiy and Vasilev, RecSys 2023: HR@10 on ML-1M .250 -> .315). `BinaryCrossEntropy`,
  `GBCE` and `SampledSoftmax` give the others.
* The default block, `query_norm`, is that of SASRec+ (Klenitskiy and Vasilev): only the query is normalised, and the
  residual carries the normalised query. `fidelity: released` is the code of 2018, the same without W_O.
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

from torch import nn

from lightrec.configurable import AtLeast
from lightrec.interfaces import Objective
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.blocks import AttentionEncoder, PostNorm, PreNorm, QueryNorm
from lightrec.nn.feed_forward import Activation, FeedForward
from lightrec.nn.positions import LearnedPositions
from lightrec.objectives.next_item import NextItem
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer

Variant = Literal["query_norm", "pre_norm", "post_norm"]
_BLOCKS = {"query_norm": QueryNorm, "pre_norm": PreNorm, "post_norm": PostNorm}
_NORM_EPS = {"query_norm": 1e-8, "pre_norm": 1e-5, "post_norm": 1e-12}
_POST_NORM_STD = 0.02


class SASRecEncoder(AttentionEncoder):
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
        variant: graph of a block: `query_norm`, `pre_norm` or `post_norm`.
        fidelity: `released` leaves the output projection of attention out, as the code of 2018 does.

    Raises:
        ValueError: `released` with another variant than `query_norm`.
    """

    limits = {"max_length": AtLeast(1), "num_layers": AtLeast(0)}

    def __init__(
        self,
        max_length: int = 200,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 1,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        inner_size: int | None = None,
        activation: Activation = "relu",
        variant: Variant = "query_norm",
        fidelity: Literal["ours", "released"] = "ours",
    ):
        if fidelity == "released" and variant != "query_norm":
            raise ValueError(f"fidelity='released' is the block `query_norm`, got variant {variant!r}.")
        post_norm, eps = variant == "post_norm", _NORM_EPS[variant]
        norm = nn.LayerNorm(hidden_size, eps)
        positions = LearnedPositions(max_length, hidden_size)
        blocks = [
            _BLOCKS[variant](
                hidden_size,
                MultiHeadAttention(hidden_size, num_heads, attention_dropout, output=fidelity == "ours"),
                FeedForward(hidden_size, inner_size or hidden_size, 0.0 if post_norm else dropout, activation),
                dropout,
                eps,
            )
            for _ in range(num_layers)
        ]
        norms = (norm, None) if post_norm else (None, norm)
        super().__init__(positions, blocks, dropout, *norms)
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


class SASRec(EncoderRecommender):
    """Self-attention over the history, trained with the full softmax.

    Further options are those of `SASRecEncoder`.

    Args:
        num_items: size of the catalog.
        hidden_size: D.
        variant: graph of a block: `query_norm`, `pre_norm` or `post_norm`.
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
        objective: what is trained; None is the full softmax at every position.
        optimizer: how it is trained.
    """

    network = SASRecEncoder

    def __init__(
        self,
        num_items: int,
        hidden_size: int = 64,
        variant: Variant = "query_norm",
        head_dtype: HeadDtype | None = None,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(),
        **network,
    ):
        scale, std = (1.0, _POST_NORM_STD) if variant == "post_norm" else (hidden_size**0.5, None)
        super().__init__(
            items=ItemEmbedding(num_items, hidden_size, scale=scale, std=std, head_dtype=head_dtype),
            encoder=SASRecEncoder(hidden_size=hidden_size, variant=variant, **network),
            objective=objective or NextItem(),
            optimizer=optimizer,
        )
