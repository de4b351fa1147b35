"""The S6 block of Mamba, and the layer that Mamba4Rec and its relatives put around it.

    [u, z] = W_in x                                     no bias; each [B, L, D_in], D_in = expand D
    u      = silu(causal depthwise convolution of u)    with bias
    [dt, B, C] = W_x u                                  no bias; R, N and N wide
    delta  = softplus(W_dt dt + b_dt)                   [B, L, D_in]
    out    = W_out (scan(u, delta, -exp(A_log), B, C, D) silu(z))

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, https://arxiv.org/abs/2312.00752;
the layer is that of Mamba4Rec, https://arxiv.org/abs/2403.03900. Everything is causal, so rows padded on the right need
no mask. Padding on the left would not be neutral: the convolution's bias makes u non-zero where x is zero.

Shapes: B batch, L length, D hidden_size, D_in inner channels, N state_size, K conv_size, R rank of delta.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrec.nn.cache import Cache
from lightrec.nn.dropout import Dropout
from lightrec.nn.feed_forward import FeedForward
from lightrec.nn.sequence import last_state, valid_mask
from lightrec.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from lightrec.ops.selective_scan import selective_scan

MambaInit = Literal["mamba", "normal"]
_DELTA_MIN, _DELTA_MAX, _DELTA_FLOOR = 1e-3, 0.1, 1e-4
_NORM_EPS = 1e-12
_NO_STEP = -1e4  # softplus of it is 0 in any dtype: time stands still, and so does the state


def normal_init(module: nn.Module) -> None:
    """Sets every linear weight below `module` to N(0, .02^2) and every linear bias to zero, those of delta included.

    This is what the released Mamba4Rec does to its Mamba block after construction. delta then begins near
    softplus(0) = 0.69 instead of in 0.001..0.1, that is with a memory of one or two events instead of 10 to 1,000.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class MambaMixer(nn.Module):
    """Mixes a sequence with its past by a selective scan; goes on event by event with a state of fixed size.

    Args:
        hidden_size: D, width of the output.
        state_size: N, numbers of state per channel.
        conv_size: K, events that the convolution sees; 1 leaves a scale and a bias.
        expand: inner channels as a multiple of hidden_size.
        dt_rank: R, width that delta is computed from; None is hidden_size / 16, rounded up.
        init: `mamba`, its authors' scheme, with delta in 0.001..0.1; `normal`, see `normal_init`.
        input_size: width of the input; None is hidden_size.

    Raises:
        ValueError: a size below 1, or an unknown init.
    """

    def __init__(
        self,
        hidden_size: int,
        state_size: int = 16,
        conv_size: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        init: MambaInit = "mamba",
        input_size: int | None = None,
    ):
        super().__init__()
        dt_rank = math.ceil(hidden_size / 16) if dt_rank is None else dt_rank
        input_size = hidden_size if input_size is None else input_size
        sizes = dict(hidden_size=hidden_size, state_size=state_size, conv_size=conv_size, expand=expand)
        for name, size in (sizes | dict(dt_rank=dt_rank, input_size=input_size)).items():
            if size < 1:
                raise ValueError(f"{name} ({size}) must be at least 1.")
        if init not in MambaInit.__args__:
            raise ValueError(f"init {init!r} is unknown; choose {', '.join(MambaInit.__args__)}.")
        self.hidden_size, self.state_size, self.conv_size, self.dt_rank = hidden_size, state_size, conv_size, dt_rank
        self.inner_size = inner_size = expand * hidden_size
        self.in_proj = nn.Linear(input_size, 2 * inner_size, bias=False)
        bound = conv_size**-0.5
        self.conv_weight = nn.Parameter(torch.empty(inner_size, conv_size).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(inner_size).uniform_(-bound, bound))
        self.x_proj = nn.Linear(inner_size, dt_rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner_size)
        # A_n = -n (S4D-real): each channel has states that forget at N different rates.
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(inner_size, 1))
        self.D = nn.Parameter(torch.ones(inner_size))
        self.out_proj = nn.Linear(inner_size, hidden_size, bias=False)
        if init == "normal":
            normal_init(self)
        else:
            self._init_delta()

    @torch.no_grad()
    def _init_delta(self) -> None:
        """Keeps the variance of dt, and puts softplus(b_dt) log-uniformly in 0.001..0.1."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = math.log(_DELTA_MIN), math.log(_DELTA_MAX)
        delta = torch.empty(self.inner_size).uniform_(low, high).exp().clamp_min(_DELTA_FLOOR)
        self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus

    def forward(
        self, x: Tensor, resets: Tensor | None = None, return_state_at: Tensor | None = None
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Mixes whole sequences.

        Args:
            x: [B, L, input_size].
            resets: [B, L] bool, true where a sequence of a packed row begins; None if no row is packed.
            return_state_at: [B], lengths: also return the state that `step` reaches after so many events of each row.

        Returns:
            [B, L, D]; with `return_state_at` also a state, as of `init_state`. What is returned beyond the lengths is
            unspecified then.

        Raises:
            ValueError: resets and return_state_at, which ask for the state of one of several sequences.
        """
        if return_state_at is not None and resets is not None:
            raise ValueError("return_state_at goes with rows of one sequence, and resets say that rows are packed.")
        past = None if return_state_at is None else self._last_inputs(x, return_state_at)
        u, z = self.in_proj(x).chunk(2, -1)
        u = causal_conv1d(u, self.conv_weight, self.conv_bias, "silu", resets=resets)
        if return_state_at is None:
            return self.out_proj(self._scan_inner(u, z, None, False, resets))
        y, scanned = self._scan_inner(u, z, None, True, None, return_state_at)
        return self.out_proj(y), (past, scanned)

    def _last_inputs(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, K - 1, D_in], what the convolution will see next: its last inputs, and zeros before the first."""
        place = lengths[:, None] - torch.arange(self.conv_size - 1, 0, -1, device=x.device)
        # K - 1 rows of the product are made again: the gradient of a gather from x is narrower than one from u
        recent = x.gather(1, place.clamp_min(0)[..., None].expand(-1, -1, x.shape[2]))
        u = self.in_proj(recent)[..., : self.inner_size]
        return torch.where(place[..., None] >= 0, u, 0.0)

    def _scan_inner(
        self,
        u: Tensor,
        z: Tensor,
        state: Tensor | None,
        return_state: bool,
        resets: Tensor | None,
        lengths: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.state_size, self.state_size], -1)
        delta = F.linear(dt, self.dt_proj.weight)  # its bias is added in the scan, in float32
        if lengths is not None:
            # on padding the scan stands still, so that its final state is that after the last real event
            delta = torch.where(valid_mask(lengths, u.shape[1])[..., None], delta, _NO_STEP)
        A = -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)
        return self.scan(u, delta, A, B, C, self.D, z, self.dt_proj.bias, state, return_state, resets)

    def scan(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        delta_bias: Tensor,
        initial_state: Tensor | None,
        return_final_state: bool,
        resets: Tensor | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the scan, for whole sequences and for single events; a subclass may run another.

        Arguments and result are those of `lightrec.ops.selective_scan.selective_scan`, softplus included.
        """
        return selective_scan(
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            initial_state=initial_state,
            return_final_state=return_final_state,
            resets=resets,
        )

    def init_state(self, batch_size: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Returns the state before the first event: inputs of the convolution [B, K - 1, D_in], scan [B, D_in, N]."""
        past = self.conv_weight.new_zeros(batch_size, self.conv_size - 1, self.inner_size, device=device)
        dtype = torch.float64 if self.A_log.dtype == torch.float64 else torch.float32
        return past, self.A_log.new_zeros(batch_size, *self.A_log.shape, device=device, dtype=dtype)

    def step(self, x_t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Advances by one event: x_t [B, input_size] -> out [B, D] and the new state."""
        past, scanned = state
        u, z = self.in_proj(x_t).chunk(2, -1)
        u, past = causal_conv1d_step(past, u, self.conv_weight, self.conv_bias, "silu")
        y, scanned = self._scan_inner(u[:, None], z[:, None], scanned, True, None)
        return self.out_proj(y[:, 0]), (past, scanned)


class MambaLayer(nn.Module):
    """A mixer and a feed-forward network, each followed by dropout, perhaps a residual, and a norm.

        y   = LN(Dropout(M) [+ x])                      M the mixer's output; the residual is optional
        out = LN(Dropout(W_2 Dropout(gelu(W_1 y))) + y)   4 D wide inside

    Args:
        hidden_size: D.
        state_size: N, numbers of state per channel.
        conv_size: K, events that the convolution sees.
        expand: inner channels as a multiple of hidden_size.
        dropout: of the mixer's output and, twice, of the feed-forward network.
        residual: add x to the mixer's output; Mamba4Rec does so only in networks of several layers.
        mixer: anything with the methods of MambaMixer; None builds one from the sizes above.
        dt_rank: R, width that delta is computed from; None is hidden_size / 16, rounded up.
        init: `mamba`, or `normal`, which resets every linear map of the layer, a given mixer's too.
    """

    def __init__(
        self,
        hidden_size: int,
        state_size: int = 16,
        conv_size: int = 4,
        expand: int = 2,
        dropout: float = 0.2,
        residual: bool = True,
        mixer: nn.Module | None = None,
        dt_rank: int | None = None,
        init: MambaInit = "mamba",
    ):
        super().__init__()
        self.residual = residual
        if mixer is None:
            mixer = MambaMixer(hidden_size, state_size, conv_size, expand, dt_rank, init)
        self.mixer = mixer
        self.mixer_norm = nn.LayerNorm(hidden_size, _NORM_EPS)
        self.feed_forward = FeedForward(hidden_size, 4 * hidden_size, dropout, "gelu")
        self.feed_forward_norm = nn.LayerNorm(hidden_size, _NORM_EPS)
        self.dropout = Dropout(dropout)
        if init == "normal":
            normal_init(self)

    def forward(self, x: Tensor, resets: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]; `resets` as in the mixer. With the cache of a later pass one token per branch."""
        return self.combine(x, self.mixer(x, resets) if cache is None else self._mix(x, cache))

    def last(self, x: Tensor, lengths: Tensor, cache: Cache | None = None) -> Tensor:
        """Computes the last real position only behind the mixer: [B, L, D] -> [B, D]."""
        here = last_state(x, lengths)
        mixed = self.mixer(x) if cache is None else self._mix(x, cache)
        return self.combine(here, last_state(mixed, lengths))

    def _mix(self, x: Tensor, cache: Cache) -> Tensor:
        return cache.recur(self, x, lambda x: self.mixer(x, return_state_at=cache.lengths), self.mixer.step)

    def combine(self, x: Tensor, mixed: Tensor) -> Tensor:
        """All that follows the mixer, position by position: the layer's input and the mixer's output, [..., D]."""
        y = self.dropout(mixed)
        y = self.mixer_norm(y + x if self.residual else y)
        return self.feed_forward_norm(self.dropout(self.feed_forward(y)) + y)

    def init_state(self, batch_size: int, device: torch.device | None = None):
        """Returns the mixer's state before the first event."""
        return self.mixer.init_state(batch_size, device)

    def step(self, x_t: Tensor, state) -> tuple[Tensor, object]:
        """Advances by one event: x_t [B, D] -> out [B, D] and the new state."""
        mixed, state = self.mixer.step(x_t, state)
        return self.combine(x_t, mixed), state
