"""The convolution equals torch's with left padding, goes on event by event, and respects packed rows."""

import pytest
import torch
import torch.nn.functional as F

from lightrec.ops.causal_conv1d import causal_conv1d, causal_conv1d_step

# float32 sums of four terms in another order
TOLERANCE = dict(rtol=1e-5, atol=1e-6)


def inputs(length=11, width=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*s, generator=g, dtype=dtype) for s in ((2, length, 5), (5, width), (5,)))


@pytest.mark.parametrize("length,width", [(11, 4), (1, 4), (2, 3), (5, 1)])
def test_it_equals_a_grouped_convolution_with_left_padding(length, width):
    x, weight, bias = inputs(length, width)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    expected = F.silu(F.conv1d(padded, weight[:, None], bias, groups=5)).transpose(1, 2)
    torch.testing.assert_close(causal_conv1d(x, weight, bias, "silu"), expected, **TOLERANCE)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_steps_equal_the_whole(width):
    x, weight, bias = inputs(6, width)
    whole, end = causal_conv1d(x, weight, bias, "silu", return_final_state=True)
    state, out = x.new_zeros(2, width - 1, 5), []
    for t in range(6):
        y, state = causal_conv1d_step(state, x[:, t], weight, bias, "silu")
        out.append(y)
    torch.testing.assert_close(torch.stack(out, 1), whole, **TOLERANCE)
    assert torch.equal(state, end)


@pytest.mark.parametrize("starts", [[0, 4, 5], [0, 9], [3, 10]])
def test_a_packed_row_equals_its_sequences_apart(starts):
    x, weight, bias = inputs()
    resets = torch.zeros(2, 11, dtype=torch.bool)
    resets[:, starts] = True
    packed, final = causal_conv1d(x, weight, bias, return_final_state=True, resets=resets)
    bounds = sorted({0, *starts, 11})
    apart = [
        causal_conv1d(x[:, a:b], weight, bias, return_final_state=True)
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]
    torch.testing.assert_close(packed, torch.cat([out for out, _ in apart], 1), **TOLERANCE)
    assert torch.equal(final, apart[-1][1])


def test_gradients_pass_gradcheck_with_a_state_and_resets():
    x, weight, bias = (t.requires_grad_() for t in inputs(4, 3, torch.float64))
    state = torch.randn(2, 2, 5, dtype=torch.float64, requires_grad=True)
    resets = torch.tensor([[False, False, True, False], [False, False, False, False]])
    call = lambda *a: causal_conv1d(*a[:3], "silu", a[3], True, resets)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, weight, bias, state))


def test_what_does_not_fit_is_refused():
    x, weight, bias = inputs()
    with pytest.raises(ValueError, match="weight"):
        causal_conv1d(x, weight[:3])
    with pytest.raises(ValueError, match="'relu' must be 'silu' or None"):
        causal_conv1d(x, weight, bias, "relu")
    with pytest.raises(TypeError, match="resets must be bool"):
        causal_conv1d(x, weight, resets=torch.zeros(2, 11))
    with pytest.raises(ValueError, match=r"resets \[2, 10\] must be \[2, 11\]"):
        causal_conv1d(x, weight, resets=torch.zeros(2, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"bias \[1\] must be \[5\]"):
        causal_conv1d(x, weight, bias[:1])
    with pytest.raises(ValueError, match=r"initial_state \[2, 2, 5\] must be \[2, 3, 5\]"):
        causal_conv1d_step(x[:, :2], x[:, 0], weight)
    with pytest.raises(TypeError, match="x must be floating, got torch.int64"):
        causal_conv1d(x.long(), weight)
    with pytest.raises(ValueError, match="weight is on meta, x on cpu"):
        causal_conv1d(x, weight.to("meta"))
