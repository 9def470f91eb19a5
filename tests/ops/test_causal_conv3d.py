"""``causal_conv3d``: the formula by loops, padding made explicit, and streams cut anywhere."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls

NAME = "causal_conv3d"
SUMS = "sums of up to 27 C float64 products of numbers below 5, in another order"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """float64 [O, T, H, W] of x [C, T, H, W]: time before 0 is frame 0, rows and columns outside are zero."""
    (c, t, h, w), (o, _, kt, k, _) = x.shape, weight.shape
    out, frames, taps = torch.zeros(o, t, h, w, dtype=torch.float64), x.tolist(), weight.tolist()
    for place in torch.cartesian_prod(*(torch.arange(n) for n in out.shape)).tolist():
        channel, i, y, z = place
        terms = [0.0 if bias is None else float(bias[channel])]
        for ci in range(c):
            for dt in range(kt):
                for dy in range(k):
                    for dx in range(k):
                        row, column = y + dy - k // 2, z + dx - k // 2
                        if 0 <= row < h and 0 <= column < w:
                            frame = max(i + dt - (kt - 1), 0)
                            terms.append(frames[ci][frame][row][column] * taps[channel][ci][dt][dy][dx])
        out[tuple(place)] = math.fsum(terms)
    return out


def padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, history: torch.Tensor | None):
    """The same with F.conv3d, which here pads nothing by itself."""
    past = torch.stack([x[:, :, 0]] * 2, 2) if history is None else history
    side = weight.shape[-1] // 2
    return F.conv3d(F.pad(torch.cat([past, x], 2), (side,) * 4), weight, bias)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_functional_is_the_formula(frames, k):
    x, weight, bias = randn(1, 2, frames, 3, 4), randn(3, 2, 3, k, k, seed=1), randn(3, seed=2)
    for b in (bias, None):
        got, history = functional.causal_convolution(x, weight, b, None)
        assert_close(got[0], looped(x[0], weight, b), atol=1e-13, reason=SUMS)
    want = torch.cat([x[:, :, :1], x[:, :, :1], x], 2)[:, :, -2:]
    assert torch.equal(history, want)


@pytest.mark.parametrize("k", [1, 3])
def test_functional_with_history(k):
    x, history = randn(2, 5, 3, 4, 6), randn(2, 5, 2, 4, 6, seed=3)
    weight = randn(7, 5, 3, k, k, seed=1)
    got, after = functional.causal_convolution(x, weight, None, history)
    assert_close(got, padded(x, weight, None, history), atol=1e-12, reason=SUMS)
    assert torch.equal(after, x[:, :, -2:])


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 1, 3], [2, 4, 1], [1, 6]], ids=str)
def test_pieces_equal_the_whole_clip(pieces):
    clip, weight, bias = randn(2, 3, 7, 4, 5), randn(4, 3, 3, 3, 3, seed=1), randn(4, seed=2)
    whole = padded(clip, weight, bias, None)
    history, parts = None, []
    for piece in clip.split(pieces, 2):
        out, history = functional.causal_convolution(piece, weight, bias, history)
        parts.append(out)
    assert_close(torch.cat(parts, 2), whole, atol=1e-12, reason=SUMS)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_buffer_over_several_calls_equals_the_whole_clip(frames):
    """A fixed buffer, as the decoder uses it; with one frame the old and the new history overlap."""
    rounds = 4
    clip, weight, bias = randn(2, 3, rounds * frames, 4, 5), randn(4, 3, 3, 3, 3, seed=1), randn(4, seed=2)
    residual = randn(2, 4, rounds * frames, 4, 5, seed=3)
    whole = padded(clip, weight, bias, None) + residual
    normed = functional.normed_silu(whole, eps=1e-6)

    buffer = calls.nans(2, 3, 2 + frames, 4, 5, dtype=torch.float64)
    buffer[:, :, :2] = clip[:, :, :1]
    for i in range(rounds):
        now = slice(i * frames, (i + 1) * frames)
        buffer[:, :, 2:] = clip[:, :, now]
        call = {
            "buffer": buffer,
            "weight": weight,
            "bias": bias,
            "residual": residual[:, :, now],
            "out": calls.nans(2, 4, frames, 4, 5, dtype=torch.float64),
            "normed": calls.nans(2, 4, frames, 4, 5, dtype=torch.float64),
            "eps": 1e-6,
        }
        calls.invoke(NAME, call)
        assert_close(call["out"], whole[:, :, now], atol=1e-12, reason=SUMS)
        assert_close(call["normed"], normed[:, :, now], atol=1e-12, reason=SUMS)
        seen = torch.cat([clip[:, :, :1], clip[:, :, :1], clip[:, :, : now.stop]], 2)
        assert torch.equal(buffer[:, :, :2], seen[:, :, -2:]), "history"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("names", [[], ["out"], ["normed"], ["residual"], ["bias", "residual"]], ids=str)
def test_in_place_is_functional(names, dtype):
    call = calls.causal_conv3d(dtype=dtype) | {name: None for name in names}
    x, past = call["buffer"][:, :, 2:].clone(), call["buffer"][:, :, :2].clone()
    want, history = functional.causal_convolution(x, call["weight"], call["bias"], past)
    if call["residual"] is not None:
        want = want + call["residual"]
    before = {name: call[name].clone() for name in ("weight", "bias", "residual") if call[name] is not None}
    calls.invoke(NAME, call)
    if call["out"] is not None:
        assert_same_bits(call["out"], want, "out")
    if call["normed"] is not None:
        assert_same_bits(call["normed"], functional.normed_silu(want, eps=call["eps"]), "normed")
    assert_same_bits(call["buffer"], torch.cat([history, x], 2), "buffer: new history, then what was there")
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


def test_output_may_be_the_next_buffer():
    """A view of frames 2.. of another buffer: its history stays as it is."""
    call = calls.causal_conv3d()
    want = call | {name: call[name].clone() for name in ("buffer", "out", "normed")}
    calls.invoke(NAME, want)
    following = torch.randn(2, 4, 4, 4, 5)
    history = following[:, :, :2].clone()
    calls.invoke(NAME, call | {"out": None, "normed": following[:, :, 2:]})
    assert_same_bits(following[:, :, 2:], want["normed"], "normed")
    assert_same_bits(following[:, :, :2], history, "history of the next buffer")


def test_the_future_is_not_seen():
    x, weight = randn(1, 2, 5, 3, 3), randn(2, 2, 3, 3, 3, seed=1)
    before, _ = functional.causal_convolution(x, weight, None, None)
    x[:, :, 3:] = torch.nan
    after, _ = functional.causal_convolution(x, weight, None, None)
    assert torch.equal(after[:, :, :3], before[:, :, :3])
    assert after[:, :, 3:].isnan().all()
