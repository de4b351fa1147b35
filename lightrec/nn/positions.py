"""Learned positions, counted from the most recent item."""

from __future__ import annotations

from torch import Tensor, nn

from lightrec.nn.sequence import positions_from_end


class LearnedPositions(nn.Module):
    """One learned vector per position.

    Args:
        max_length: most positions of a row.
        hidden_size: D.
    """

    def __init__(self, max_length: int, hidden_size: int):
        super().__init__()
        self.max_length = max_length
        self.embedding = nn.Embedding(max_length, hidden_size)

    @property
    def weight(self) -> nn.Parameter:
        """[max_length, D]; row 0 is the most recent item."""
        return self.embedding.weight

    def forward(self, lengths: Tensor, width: int) -> Tensor:
        """Returns the vectors of rows of `width` positions, of which lengths [B] are real: [B, width, D].

        Raises:
            ValueError: rows wider than max_length.
        """
        check_width(width, self.max_length)
        return self.embedding(positions_from_end(lengths, width))


def check_width(width: int, max_length: int) -> None:
    """Refuses rows that are wider than a model reads.

    Raises:
        ValueError: they are.
    """
    if width > max_length:
        raise ValueError(f"the batch has {width} items per row, more than max_length ({max_length}).")
