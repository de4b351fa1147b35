"""A gated recurrent layer over right-padded sequences, which goes on event by event."""

from __future__ import annotations

from torch import Tensor, nn

from lightrec.nn.cache import Cache
from lightrec.nn.sequence import last_state


class GRU(nn.GRU):
    """One layer of gated recurrent units, whose outputs are its states.

    Args:
        input_size: width of the input.
        hidden_size: width of the state and of the output.
        bias: biases in all gates.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True):
        super().__init__(input_size, hidden_size, bias=bias, batch_first=True)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """[B, L, input_size] -> [B, L, hidden_size]; with the cache of a later pass one token per branch."""
        if cache is None:
            return super().forward(x)[0]
        return cache.recur(self, x, lambda x: self._whole(x, cache.lengths), self.step)

    def _whole(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)[0]
        return y, last_state(y, lengths)

    def init_state(self, batch_size: int, device=None) -> Tensor:
        """Returns the state before the first event, [B, hidden_size]."""
        return self.weight_hh_l0.new_zeros(batch_size, self.hidden_size, device=device)

    def step(self, x_t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Advances by one event: x_t [B, input_size] -> out [B, hidden_size] and the new state, the same numbers."""
        y, after = super().forward(x_t[:, None], state[None])
        return y[:, 0], after[0]
