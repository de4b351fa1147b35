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

from lightrec.data.batch import Batch
from lightrec.interfaces import LinearHead, Objective, SequenceEncoder
from lightrec.nn.attention import MultiHeadAttention
from lightrec.nn.dropout import Dropout
from lightrec.nn.feed_forward import Activation, FeedForward
from lightrec.nn.item_embedding import ItemEmbedding
from lightrec.nn.sequence import last_state, positions_from_end
from lightrec.objectives.masked_item import Cloze
from lightrec.recommender import Decay, EncoderRecommender


class BERT4RecItems(ItemEmbedding):
    """A tied item table with a mask, scored through LN(GELU(W h + b)) and one bias an item.

    Args:
        num_items: size of the catalog; the mask is num_items + 1.
        hidden_size: D.
        transform: apply the map, GELU and norm before the product.
        bias: learn one output bias per item.
        std: standard deviation of the normal initialisation.
    """

    def __init__(self, num_items: int, hidden_size: int, transform: bool = True, bias: bool = True, std: float = 0.02):
        super().__init__(num_items, hidden_size, bias=bias, num_special=1, std=std)
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


class BERT4RecBlock(nn.Module):
    """LN(x + f(x)), for attention and then for the feed-forward network."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        inner_size: int,
        dropout: float,
        attention_dropout: float,
        activation: Activation,
        causal: bool,
    ):
        super().__init__()
        self.attention = MultiHeadAttention(hidden_size, num_heads, attention_dropout, causal)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, inner_size, activation=activation)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, lengths)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class BERT4RecEncoder(SequenceEncoder):
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

    def __init__(
        self,
        max_length: int,
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
        super().__init__()
        self.hidden_size, self.max_length, self.causal = hidden_size, max_length, causal
        self.positions = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            BERT4RecBlock(
                hidden_size, num_heads, inner_size or 4 * hidden_size, dropout, attention_dropout, activation, causal
            )
            for _ in range(num_layers)
        )
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def prepare(self, x: Tensor, lengths: Tensor) -> Tensor:
        if x.shape[1] > self.max_length:
            raise ValueError(f"the batch has {x.shape[1]} items a row, more than max_length ({self.max_length}).")
        return self.dropout(self.norm(x + self.positions(positions_from_end(lengths, x.shape[1]))))

    def mix(self, x: Tensor, lengths: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, lengths)
        return x


class BERT4Rec(EncoderRecommender):
    """Bidirectional self-attention, trained to fill in hidden items; asked for one hidden item after the history.

    Args:
        num_items: size of the catalog.
        max_length: longest history that is read.
        hidden_size: D.
        num_layers: blocks.
        num_heads: attention heads; must divide hidden_size.
        dropout: of the input and of both sub-layers.
        attention_dropout: of the attention weights.
        inner_size: width of the feed-forward network; None is four times hidden_size.
        activation: of the feed-forward network.
        head_transform: score through LN(GELU(W h + b)), as the original code does.
        output_bias: learn one output bias per item, as the original does.
        std: standard deviation of the normal initialisation.
        objective: what is trained; None is Cloze with a fifth of the items hidden.
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
        num_heads: int = 2,
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        inner_size: int | None = None,
        activation: Activation = "gelu",
        head_transform: bool = True,
        output_bias: bool = True,
        std: float = 0.02,
        objective: Objective | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        decay: Decay = "constant",
    ):
        super().__init__(
            items=BERT4RecItems(num_items, hidden_size, head_transform, output_bias, std),
            encoder=BERT4RecEncoder(
                max_length + 1,  # training windows hold one item more than a history; at inference that is the mask
                hidden_size,
                num_layers,
                num_heads,
                dropout,
                attention_dropout,
                inner_size,
                activation,
                std=std,
            ),
            objective=objective or Cloze(),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            decay=decay,
        )

    def query(self, batch: Batch) -> Tensor:
        """Returns [B, D], the state of a mask behind the last item."""
        item_ids = F.pad(batch.item_ids, (0, 1))
        item_ids[torch.arange(len(batch), device=item_ids.device), batch.lengths] = self.items.num_items + 1
        asked = batch.replace(item_ids=item_ids, lengths=batch.lengths + 1)
        return last_state(self.encode(asked), asked.lengths)
