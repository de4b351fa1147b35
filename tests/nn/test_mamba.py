"""The Mamba mixer and its layer: parity with the formulas, limits, streaming, padding, and where they begin."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.models.hmamba import HyperbolicMixer
from lightrec.nn.hyperbolic import Curvature
from lightrec.nn.mamba import MambaLayer, MambaMixer, normal_init

# float32 against float64, relative to the largest value; the spec's 1e-5 and 1e-4 are looser
OUTPUT, GRADIENT = 2e-6, 2e-5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def written_out(m: MambaMixer, x: torch.Tensor) -> torch.Tensor:
    """The block of the paper, one event after the other."""
    u, z = F.linear(x, m.in_proj.weight).chunk(2, -1)
    width, state, outputs = m.conv_size, x.new_zeros(len(x), *m.A_log.shape), []
    for t in range(x.shape[1]):
        seen = [u[:, t - width + 1 + k] * m.conv_weight[:, k] for k in range(width) if t - width + 1 + k >= 0]
        v = F.silu(sum(seen) + m.conv_bias)
        dt, b, c = F.linear(v, m.x_proj.weight).split([m.dt_rank, m.state_size, m.state_size], -1)
        delta = F.softplus(F.linear(dt, m.dt_proj.weight, m.dt_proj.bias))[..., None]
        state = torch.exp(delta * -m.A_log.exp()) * state + delta * b[:, None] * v[..., None]
        outputs.append(((state * c[:, None]).sum(-1) + m.D * v) * F.silu(z[:, t]))
    return F.linear(torch.stack(outputs, 1), m.out_proj.weight)


def random_mixer(*arguments, **options) -> MambaMixer:
    """A mixer whose every parameter matters: the initial A and D are the same for all channels."""
    mixer = MambaMixer(*arguments, **options)
    with torch.no_grad():
        mixer.A_log.add_(0.3 * torch.randn_like(mixer.A_log))
        mixer.D.normal_()
        mixer.x_proj.weight.mul_(4)  # so that what passes the state is not small beside the skip
        mixer.dt_proj.bias.normal_()
    return mixer


def relative(value, exact) -> float:
    with torch.no_grad():
        return float((value.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 200, 2048])
def test_the_mixer_equals_the_recurrence_written_out(length):
    mixer = random_mixer(8, state_size=4)
    exact = random_mixer(8, state_size=4).double()
    exact.load_state_dict(mixer.state_dict())
    x, weight = torch.randn(2, length, 8), torch.randn(2, length, 8)
    x64 = x.double().requires_grad_()
    x.requires_grad_()
    out, expected = mixer(x), written_out(exact, x64)
    assert relative(out, expected) < OUTPUT
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert relative(x.grad, x64.grad) < GRADIENT
    for (name, p), q in zip(mixer.named_parameters(), exact.parameters(), strict=True):
        assert relative(p.grad, q.grad) < GRADIENT, name


def test_a_history_in_chunks_equals_the_whole():
    mixer = random_mixer(8, state_size=4)
    x, delta, z = torch.randn(2, 50, 16), torch.randn(2, 50, 16), torch.randn(2, 50, 16)
    b, c = torch.randn(2, 50, 4), torch.randn(2, 50, 4)
    rest = mixer.D, mixer.dt_proj.bias
    a = -mixer.A_log.exp()

    def scan(part, state):
        x_, delta_, b_, c_, z_ = (t[:, part] for t in (x, delta, b, c, z))
        return mixer.scan(x_, delta_, a, b_, c_, rest[0], z_, rest[1], state, True, None)

    whole, final = scan(slice(None), None)
    state, parts = None, []
    for begin, end in ((0, 1), (1, 17), (17, 50)):
        out, state = scan(slice(begin, end), state)
        parts.append(out)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5) and torch.allclose(state, final, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"conv_size": 1}, {"expand": 1, "dt_rank": 3}, {"input_size": 5}], ids=str)
def test_going_on_event_by_event_equals_the_full_pass(options):
    mixer = random_mixer(8, state_size=4, **options)
    x = torch.randn(3, 30, options.get("input_size", 8))
    state, steps = mixer.init_state(3), []
    for t in range(30):
        out, state = mixer.step(x[:, t], state)
        steps.append(out)
    assert torch.allclose(torch.stack(steps, 1), mixer(x), atol=1e-5)
    assert state[0].shape == mixer.init_state(3)[0].shape and state[1].shape == mixer.init_state(3)[1].shape


def hyperbolic_mixer(*arguments, **options) -> HyperbolicMixer:
    return HyperbolicMixer(8, 4, options.get("conv_size", 4), 2, Curvature(0.7, True))


noting = pytest.mark.parametrize("make", [random_mixer, hyperbolic_mixer])


@noting
@pytest.mark.parametrize("options", [{}, {"conv_size": 1}], ids=str)
def test_the_state_at_some_lengths_is_that_which_steps_reach_there(make, options):
    mixer = make(8, state_size=4, **options).double()
    x, lengths = torch.randn(4, 9, 8, dtype=torch.float64), torch.tensor([9, 1, 4, 2])
    out, (past, scanned) = mixer(x, return_state_at=lengths)
    expected = mixer(x)
    for row, length in enumerate(lengths.tolist()):
        state = mixer.init_state(1)
        for t in range(length):
            _, state = mixer.step(x[row : row + 1, t], state)
        assert torch.allclose(past[row], state[0][0], rtol=0, atol=1e-12)
        assert torch.allclose(scanned[row], state[1][0], rtol=0, atol=1e-12)
        assert torch.allclose(out[row, :length], expected[row, :length], rtol=0, atol=1e-12)


@noting
def test_padding_does_not_enter_the_state_at_some_lengths_nor_get_a_gradient(make):
    mixer = make(8, state_size=4).double()
    x, lengths = torch.randn(4, 9, 8, dtype=torch.float64), torch.tensor([9, 1, 4, 2])
    padding = torch.arange(9) >= lengths[:, None]
    found = [mixer(x.masked_fill(padding[..., None], fill), return_state_at=lengths)[1] for fill in (0.0, 99.0)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    x.requires_grad_()
    sum(part.square().sum() for part in mixer(x, return_state_at=lengths)[1]).backward()
    assert not x.grad[padding].any() and x.grad[~padding].any(-1).all()


def test_a_packed_row_has_no_state_of_its_own():
    mixer = MambaMixer(8, 4)
    with pytest.raises(ValueError, match="resets say that rows are packed"):
        mixer(torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool), return_state_at=torch.tensor([5, 3]))


def test_what_comes_later_changes_nothing_before_to_the_bit():
    layer = MambaLayer(8, 4, dropout=0.0)
    x = torch.randn(2, 20, 8)
    changed = x.clone()
    changed[:, 13:] = 100 * torch.randn(2, 7, 8)
    before, after = layer(x), layer(changed)
    assert torch.equal(before[:, :13], after[:, :13]) and not torch.allclose(before[:, 13:], after[:, 13:])


def test_rows_of_another_width_agree_where_they_are_real():
    layer = MambaLayer(8, 4, dropout=0.0)
    x = torch.randn(2, 9, 8)
    wider = F.pad(x, (0, 0, 0, 30))
    assert torch.allclose(layer(wider)[:, :9], layer(x), atol=1e-6)


def test_padding_on_the_left_is_not_neutral_unless_a_reset_hides_it():
    mixer = random_mixer(8, state_size=4)
    x = torch.randn(2, 6, 8)
    padded = F.pad(x, (0, 0, 5, 0))
    assert (mixer(padded)[:, 5:] - mixer(x)).abs().max() > 1e-3  # the bias of the convolution entered the state
    resets = torch.zeros(2, 11, dtype=torch.bool)
    resets[:, 5] = True
    assert torch.allclose(mixer(padded, resets)[:, 5:], mixer(x), atol=1e-6)


def test_a_packed_row_equals_its_sequences_apart():
    layer = MambaLayer(8, 4, dropout=0.0)
    parts = [torch.randn(1, n, 8) for n in (7, 1, 12)]
    resets = torch.zeros(1, 20, dtype=torch.bool)
    resets[0, [0, 7, 8]] = True
    packed = layer(torch.cat(parts, 1), resets)
    for part, out in zip(parts, packed.split([7, 1, 12], 1), strict=True):
        assert torch.allclose(layer(part), out, atol=1e-6)


def gated_by_hand(mixer, x):
    """What leaves the mixer when nothing but D x passes the scan."""
    u, z = mixer.in_proj(x).chunk(2, -1)
    padded = F.pad(u, (0, 0, mixer.conv_size - 1, 0))
    u = sum(padded[:, k : k + x.shape[1]] * mixer.conv_weight[:, k] for k in range(mixer.conv_size))
    return mixer.out_proj(mixer.D * F.silu(u + mixer.conv_bias) * F.silu(z))


def test_with_no_time_between_events_only_the_skip_is_left():
    mixer = random_mixer(8, state_size=4)
    with torch.no_grad():
        mixer.dt_proj.bias.fill_(-80.0)
    x = torch.randn(2, 10, 8)
    assert torch.allclose(mixer(x), gated_by_hand(mixer, x), atol=1e-6)


def test_after_a_very_long_time_everything_before_the_convolution_is_forgotten():
    mixer = random_mixer(8, state_size=4)
    with torch.no_grad():
        mixer.dt_proj.bias.fill_(500.0)
    x = torch.randn(2, 10, 8)
    changed = x.clone()
    changed[:, 0] += 1.0
    difference = (mixer(x) - mixer(changed)).abs().amax((0, 2))
    assert (difference[:4] > 1e-3).all() and torch.equal(difference[4:], torch.zeros(6))


def test_states_that_never_decay_under_unit_steps_are_linear_attention():
    mixer = MambaMixer(8, state_size=4)
    x, b, c = torch.randn(2, 12, 16), torch.randn(2, 12, 4), torch.randn(2, 12, 4)
    one = torch.full((2, 12, 16), 1.0).expm1().log()  # softplus gives 1
    zero = torch.zeros(16, 4)
    out = mixer.scan(x, one, zero, b, c, torch.zeros(16), None, torch.zeros(16), None, False, None)
    weights = (c @ b.transpose(1, 2)).tril()
    assert torch.allclose(out, weights @ x, atol=1e-5)


def test_one_state_a_channel_and_one_step_for_all_is_gated_linear_attention():
    mixer = MambaMixer(8, state_size=1)
    x, b, c = torch.randn(2, 12, 16), torch.randn(2, 12, 1), torch.randn(2, 12, 1)
    delta = torch.randn(2, 12, 1)
    none = torch.zeros(16)
    out = mixer.scan(x, delta.expand(2, 12, 16), -torch.ones(16, 1), b, c, none, None, none, None, False, None)
    time = F.softplus(delta)[..., 0].cumsum(1)
    decay = torch.exp(time[:, None, :] - time[:, :, None]).tril()
    weights = (c @ b.transpose(1, 2)) * decay
    assert torch.allclose(out, weights @ (F.softplus(delta) * x), atol=1e-5)


def test_a_convolution_of_width_one_is_a_scale_and_a_bias():
    mixer = random_mixer(8, state_size=4, conv_size=1)
    with torch.no_grad():
        mixer.dt_proj.bias.fill_(-80.0)  # nothing but the skip, so that only the convolution could mix
    x = torch.randn(1, 6, 8)
    u, z = mixer.in_proj(x).chunk(2, -1)
    scaled = F.silu(u * mixer.conv_weight[:, 0] + mixer.conv_bias)
    assert torch.allclose(mixer(x), mixer.out_proj(mixer.D * scaled * F.silu(z)), atol=1e-6)


def first_deltas(mixer, x):
    seen = {}
    scan = mixer.scan

    def listening(x, delta, A, B, C, D, z, delta_bias, *rest):
        seen["delta"] = F.softplus(delta + delta_bias)
        return scan(x, delta, A, B, C, D, z, delta_bias, *rest)

    mixer.scan = listening
    mixer(x)
    return seen["delta"]


def test_the_normal_initialisation_begins_with_short_memory():
    delta = first_deltas(MambaMixer(64, 32, init="normal"), F.layer_norm(torch.randn(16, 50, 64), (64,)))
    assert 0.68 < delta.mean() < 0.71
    assert (delta - 0.693).abs().max() < 0.02


def test_mambas_initialisation_begins_with_deltas_between_a_thousandth_and_a_tenth():
    mixer = MambaMixer(64, 32)
    bias = F.softplus(mixer.dt_proj.bias)
    assert bias.min() >= 0.999e-3 and bias.max() <= 0.1001
    assert 0.006 < bias.log().mean().exp() < 0.016  # log-uniform: around a hundredth
    delta = first_deltas(mixer, F.layer_norm(torch.randn(16, 50, 64), (64,)))
    assert 1e-3 < delta.mean() < 0.1
    assert ((delta > 0.5e-3) & (delta < 0.2)).float().mean() > 0.99  # W_dt dt moves them a little


def test_both_initialisations_share_the_rates_and_the_skip():
    for init in ("mamba", "normal"):
        mixer = MambaMixer(16, 8, init=init)
        assert torch.allclose(mixer.A_log.exp(), torch.arange(1.0, 9).expand(32, 8)) and (mixer.D == 1).all()


def test_the_normal_initialisation_reaches_every_linear_map_of_a_layer():
    layer = MambaLayer(64, 16, init="normal")
    maps = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    assert len(maps) == 6
    for linear in maps:
        assert 0.017 < linear.weight.std() < 0.023
        assert linear.bias is None or not linear.bias.any()
    own = MambaMixer(64)
    normal_init(own)
    assert not own.dt_proj.bias.any()


def test_the_sizes_of_the_paper_give_the_parameters_of_the_paper():
    count = sum(p.numel() for p in MambaMixer(64, state_size=32).parameters())
    assert count == 16_384 + 640 + 8_704 + 640 + 4_096 + 128 + 8_192
    assert MambaMixer(100).dt_rank == 7


def test_a_layer_is_the_formulas_with_and_without_residual():
    x = torch.randn(2, 5, 8)
    for residual in (False, True):
        layer = MambaLayer(8, 4, residual=residual).eval()
        y = F.layer_norm(layer.mixer(x) + (x if residual else 0.0), (8,), eps=1e-12)
        up, down = layer.feed_forward.up, layer.feed_forward.down
        expected = F.layer_norm(down(F.gelu(up(y))) + y, (8,), eps=1e-12)
        assert up.out_features == 32 and torch.allclose(layer(x), expected, atol=1e-6)


def test_a_layer_goes_on_event_by_event_and_computes_the_last_position_alone():
    layer = MambaLayer(8, 4).eval()
    x, lengths = torch.randn(3, 9, 8), torch.tensor([9, 4, 1])
    out, state = layer(x), layer.init_state(3)
    for t in range(9):
        hidden, state = layer.step(x[:, t], state)
        assert torch.allclose(hidden, out[:, t], atol=1e-5)
    assert torch.allclose(layer.last(x, lengths), out[torch.arange(3), lengths - 1], atol=1e-6)


def test_a_layer_takes_another_mixer():
    class Twice(MambaMixer):
        def scan(self, *arguments):
            out = super().scan(*arguments)
            return (2 * out[0], out[1]) if isinstance(out, tuple) else 2 * out

    mixer = Twice(8, 4)
    layer = MambaLayer(8, mixer=mixer).eval()
    x = torch.randn(2, 6, 8)
    assert layer.mixer is mixer and torch.allclose(mixer(x), 2 * MambaMixer.forward(plain(mixer), x), atol=1e-6)
    state = layer.init_state(2)
    for t in range(6):
        hidden, state = layer.step(x[:, t], state)
    assert torch.allclose(hidden, layer(x)[:, -1], atol=1e-5)  # the step runs the same scan


def plain(mixer):
    copy = MambaMixer(mixer.hidden_size, mixer.state_size)
    copy.load_state_dict(mixer.state_dict())
    return copy


def test_autocast_keeps_the_scan_precise():
    mixer = random_mixer(16, state_size=4)
    x = torch.randn(2, 40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(x)
        _, state = mixer.step(x[:, 0], mixer.init_state(2))
    assert out.dtype == torch.bfloat16 and state[1].dtype == torch.float32
    assert relative(out, mixer(x).double()) < 0.05


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"state_size \(0\) must be at least 1"):
        MambaMixer(8, state_size=0)
    with pytest.raises(ValueError, match="init 'other' is unknown; choose mamba, normal"):
        MambaMixer(8, init="other")
