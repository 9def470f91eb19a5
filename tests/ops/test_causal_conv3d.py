"""``causal_conv3d``: the formula by loops, everything around it by other means, and streams cut anywhere."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rest_fast import ops
from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls, convolution

NAME = "causal_conv3d"
SUMS = "sums of up to 27 C float64 products of numbers below 5, in another order"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, past: int) -> torch.Tensor:
    """float64 [O, T, H, W] of x [C, T, H, W]: time outside is the nearest frame, rows and columns outside are zero."""
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
                            frame = min(max(i + dt - past, 0), t - 1)
                            terms.append(frames[ci][frame][row][column] * taps[channel][ci][dt][dy][dx])
        out[tuple(place)] = math.fsum(terms)
    return out


def padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, history: torch.Tensor | None):
    """The causal one with F.conv3d, which here pads nothing by itself."""
    past = torch.stack([x[:, :, 0]] * 2, 2) if history is None else history
    side = weight.shape[-1] // 2
    return F.conv3d(F.pad(torch.cat([past, x], 2), (side,) * 4), weight, bias)


@pytest.mark.parametrize("past", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_functional_is_the_formula(frames, k, past):
    x, weight, bias = randn(1, 2, frames, 3, 4), randn(3, 2, 3, k, k, seed=1), randn(3, seed=2)
    for b in (bias, None):
        got, history = functional.causal_convolution(x, weight, b, None, past=past)
        assert_close(got[0], looped(x[0], weight, b, past), atol=1e-13, reason=SUMS)
    assert torch.equal(history, torch.cat([x[:, :, :1], x[:, :, :1], x], 2)[:, :, -past:])


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


@pytest.mark.parametrize("past, provisional", [(2, 0), (2, 1), (1, 1), (1, 2)])
def test_frames_that_come_again(past, provisional):
    """Calls of two new frames and of those that are still provisional: what is final equals the whole clip."""
    frames, new = 8, 2
    clip, weight = randn(1, 3, frames, 4, 5), randn(4, 3, 3, 3, 3, seed=1)
    whole, history = looped(clip[0], weight, None, past), None
    for start in range(0, frames - provisional, new):
        x = clip[:, :, start : start + new + provisional]
        out, history = functional.causal_convolution(x, weight, None, history, past=past, keep=new)
        assert_close(out[0, :, :new], whole[:, start : start + new], atol=1e-12, reason=SUMS)


@pytest.mark.parametrize("name", convolution.FORMS)
def test_every_form_of_the_reference(name):
    call = convolution.form(name, dtype=torch.float64)
    want, before = convolution.expected(call), {n: v.clone() for n, v in call.items() if isinstance(v, torch.Tensor)}
    x = convolution.piece(call).clone()
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert torch.equal(call["history"], want["history"])
    assert torch.equal(convolution.piece(call), x)
    for n in ("out", "normed"):
        if call[n] is not None:
            assert_close(call[n], want[n], atol=1e-12, reason=SUMS)
    if call["pictures"] is not None:
        assert_close(call["pictures"], want["pictures"], atol=0.5 + 1e-4, reason="rounded to nearest, from float32")
    for n in set(before) - set(calls.written(NAME)):
        assert_same_bits(call[n], before[n], n)


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("plan", [[8], [1] * 8, [3, 1, 4], [2, 5, 1]], ids=str)
def test_a_stream_through_a_shared_buffer(plan, backend):
    """Two convolutions of one shape take turns with a buffer, each with a history of its own."""
    clip, weights, bias = randn(2, 3, 8, 4, 5), randn(2, 3, 3, 3, 3, 3, seed=1), randn(3, seed=2)
    histories, seen = calls.nans(2, 2, 3, 2, 4, 5, dtype=torch.float64), 0
    for frames in plan:
        buffer = calls.nans(2, 3, frames + 2, 4, 5, dtype=torch.float64)
        x = clip[:, :, seen : seen + frames]
        for weight, history in zip(weights, histories):
            buffer[:, :, 2:] = x
            call = dict.fromkeys(("noise", "noise_scale", "residual", "scale", "shift", "normed", "pictures"))
            call |= {"buffer": buffer, "history": history, "weight": weight, "bias": bias}
            call |= {"factors": [1, 1, 1], "drop": 0, "keep": frames, "first": seen == 0, "reflect": False}
            call |= {"out": calls.nans(2, 3, frames, 4, 5, dtype=torch.float64), "eps": 1e-6}
            with ops.use_backend(backend):
                calls.invoke(NAME, call)
            whole = padded(clip, weight, bias, None)[:, :, seen : seen + frames]
            assert_close(call["out"], whole, atol=1e-12, reason=SUMS)
        seen += frames
        past = torch.cat([clip[:, :, :1], clip[:, :, :1], clip[:, :, :seen]], 2)[:, :, -2:]
        assert torch.equal(histories[0], past) and torch.equal(histories[1], past)


def test_output_may_be_the_next_buffer():
    """A view of frames 2.. of another buffer: the room before them stays as it is."""
    call = calls.causal_conv3d()
    want = call | {name: call[name].clone() for name in calls.written(NAME)}
    calls.invoke(NAME, want)
    shape = list(call["normed"].shape)
    shape[2] += 2
    following = torch.randn(shape)
    room = following[:, :, :2].clone()
    calls.invoke(NAME, call | {"out": None, "pictures": None, "normed": following[:, :, 2:]})
    assert_close(following[:, :, 2:], want["normed"], atol=1e-6, reason="float32, roundings in another layout")
    assert_same_bits(following[:, :, :2], room, "room of the next buffer")


def test_the_future_is_not_seen():
    x, weight = randn(1, 2, 5, 3, 3), randn(2, 2, 3, 3, 3, seed=1)
    before, _ = functional.causal_convolution(x, weight, None, None)
    x[:, :, 3:] = torch.nan
    after, _ = functional.causal_convolution(x, weight, None, None)
    assert torch.equal(after[:, :, :3], before[:, :, :3])
    assert after[:, :, 3:].isnan().all()
