"""BERT4Rec: a bidirectional transformer that fills in hidden items.

Fei Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer",
CIKM 2019, https://arxiv.org/abs/1904.06690. What a trained one should give: Aleksandr Petrov and Craig Macdonald,
RecSys 2022, https://arxiv.org/abs/2207.07483; Anton Klenitskiy and Alexey Vasilev, RecSys 2023,
https://arxiv.org/abs/2309.07602.

Differences from the original, and why:

* Masks are drawn anew at every step, and the learning rate is 1e-3 with a warm-up, not 1e-4: under-training is the
  normal state of this model, and both replications need far fewer steps that way.
* The validation item is not trained on (the published scripts append it to the training sequence).
* Rows are padded on the right and positions are counted from the most recent item, so that the mask of inference stands
  where the last item of a training window stands. There is no token-type table, of which one row would be used.
* Attention weights are not dropped by default: on a CPU that makes attention a quarter to a half dearer.

`head_transform=False, output_bias=False` is the model of Klenitskiy and Vasilev, with `last_only_share=0` in Cloze.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.configurable import AtLeast
from lightrec.data.batch import Batch
from lightrec.interfaces import LinearHead, Objective
from lightrec.items.embedding import HeadDtype, ItemEmbedding
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.blocks import AttentionEncoder, PostNorm
from lightrec.nn.feed_forward import Activation, FeedForward
from lightrec.nn.positions import LearnedPositions
from lightrec.objectives.masked_item import Cloze
from lightrec.recommender import AdamW, EncoderRecommender, Optimizer


class BERT4RecItems(ItemEmbedding):
    """A tied item table with a mask, scored through LN(GELU(W h + b)) and one bias an item.

    Args:
        num_items: size of the catalog; the mask is num_items + 1.
        hidden_size: D.
        transform: apply the map, GELU and norm before the product.
        bias: learn one output bias per item.
        std: standard deviation of the normal initialisation.
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
    """

    def __init__(
        self,
        num_items: int,
        hidden_size: int,
        transform: bool = True,
        bias: bool = True,
        std: float = 0.02,
        head_dtype: HeadDtype | None = None,
    ):
        super().__init__(num_items, hidden_size, bias=bias, num_special=1, std=std, head_dtype=head_dtype)
        self.transform = (
            nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.LayerNorm(hidden_size))
            if transform
            else nn.Identity()
        )
        if transform:
            nn.init.normal_(self.transform[0].weight, std=std)
            nn.init.zeros_(self.transform[0].bias)

    def linear_head(self, hidden: Tensor) -> LinearHead:
        return super().linear_head(self.transform(hidden))


class BERT4RecEncoder(AttentionEncoder):
    """Post-norm self-attention that sees both sides, with learned positions.

    Args:
        max_length: longest row, the mask of inference included; rows of the position table.
        hidden_size: D.
        num_layers: blocks.
        num_heads: attention heads; must divide hidden_size.
        dropout: of the input and of both sub-layers.
        attention_dropout: of the attention weights.
        inner_size: width of the feed-forward network; None is four times hidden_size.
        activation: of the feed-forward network.
        causal: see the past only, which makes this the encoder of a post-norm SASRec.
        std: standard deviation of the normal initialisation.
    """

    limits = {"max_length": AtLeast(1), "num_layers": AtLeast(0)}

    def __init__(
        self,
        max_length: int = 201,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        inner_size: int | None = None,
        activation: Activation = "gelu",
        causal: bool = False,
        std: float = 0.02,
    ):
        positions = LearnedPositions(max_length, hidden_size)
        blocks = [
            PostNorm(
                hidden_size,
                MultiHeadAttention(hidden_size, num_heads, attention_dropout, causal),
                FeedForward(hidden_size, inner_size or 4 * hidden_size, activation=activation),
                dropout,
            )
            for _ in range(num_layers)
        ]
        super().__init__(positions, blocks, dropout, input_norm=nn.LayerNorm(hidden_size))
        self.causal = causal
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


class BERT4Rec(EncoderRecommender):
    """Bidirectional self-attention, trained to fill in hidden items; asked for one hidden item after the history.

    Further options are those of `BERT4RecEncoder`.

    Args:
        num_items: size of the catalog.
        max_length: longest history that is read.
        hidden_size: D.
        head_transform: score through LN(GELU(W h + b)), as the original code does.
        output_bias: learn one output bias per item, as the original does.
        std: standard deviation of the normal initialisation.
        head_dtype: dtype of the products with the catalog while training; None is float32, or that of autocast.
        objective: what is trained; None is Cloze with a fifth of the items hidden.
        optimizer: how it is trained.
    """

    network = BERT4RecEncoder

    def __init__(
        self,
        num_items: int,
        max_length: int = 200,
        hidden_size: int = 64,
        head_transform: bool = True,
        output_bias: bool = True,
        std: float = 0.02,
        head_dtype: HeadDtype | None = None,
        objective: Objective | None = None,
        optimizer: Optimizer = AdamW(warmup_steps=100),
        **network,
    ):
        super().__init__(
            items=BERT4RecItems(num_items, hidden_size, head_transform, output_bias, std, head_dtype),
            # training windows hold one item more than a history; at inference that is the mask
            encoder=BERT4RecEncoder(max_length=max_length + 1, hidden_size=hidden_size, std=std, **network),
            objective=objective or Cloze(),
            optimizer=optimizer,
        )

    def query(self, batch: Batch) -> Tensor:
        """Returns [B, D], the state of a mask behind the last item."""
        item_ids = F.pad(batch.item_ids, (0, 1))
        item_ids[torch.arange(len(batch), device=item_ids.device), batch.lengths] = self.items.num_items + 1
        return super().query(batch.replace(item_ids=item_ids, lengths=batch.lengths + 1))
