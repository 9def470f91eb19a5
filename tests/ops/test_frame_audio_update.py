"""``frame_audio_update``: attention, projection and residual by loops in float64, and by the ops that it replaces."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.frame_audio_update import SHAPES

NAME = "frame_audio_update"
ATTENTION = {
    "two_tokens": {"audio": 2},
    "four_tokens": {"audio": 4, "heads": 3, "dim": 8},
    "one_frame": {"frames": 1, "audio": 3, "tokens": 6},
}


def closed_form(call: calls.Call) -> torch.Tensor:
    """float64 [B, F T, W], one token at a time."""
    _, frames, others, heads, dim = call["keys"].shape
    x, q, keys, base, update, null = (call[n].double() for n in ("x", "q", "keys", "base", "update", "null"))
    slot, tokens, result = call["slot"].tolist(), x.shape[1] // frames, x.clone()
    for b in range(len(x)):
        for i in range(x.shape[1]):
            if b >= len(slot) or slot[b] < 0:
                result[b, i] += null
                continue
            f, s = i // tokens, slot[b]
            root = 1 / math.sqrt(math.fsum(c * c for c in q[b, i].tolist()) / (heads * dim) + call["eps"])
            result[b, i] += base[s, f]
            for h in range(heads):
                query = q[b, i, h * dim : (h + 1) * dim] * root
                scores = [0.0, *(float(query @ keys[s, f, a, h]) for a in range(others))]
                weights = [math.exp(score - max(scores)) for score in scores]
                for a in range(others):
                    result[b, i] += weights[1 + a] / math.fsum(weights) * update[s, f, a, h]
    return result


def attention(dtype: torch.dtype = torch.float64, **shape: int) -> tuple[calls.Call, torch.nn.Linear, torch.Tensor]:
    """Keys, values and queries of two lanes, an output projection, a residual stream."""
    call = calls.frame_cross_attention(**shape, dtype=dtype)
    width = call["q"].shape[-1]
    g = torch.Generator().manual_seed(1)
    out = torch.nn.Linear(width, width, dtype=dtype).requires_grad_(False)
    for parameter in out.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=g) * width**-0.5)
    return call, out, torch.randn(call["q"].shape, generator=g).to(dtype)


def unfused(call: calls.Call, out: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    seen = functional.frame_attention(call["q"], call["q_weight"], call["k"], call["v"], eps=call["eps"])
    return x + out(seen)


def constants(call: calls.Call, out: torch.nn.Linear) -> tuple[torch.Tensor, ...]:
    return functional.audio_constants(call["k"], call["v"], call["q_weight"], out.weight, out.bias)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_op_is_the_formula(shape):
    call = calls.frame_audio_update(**shape, dtype=torch.float64)
    want = closed_form(call)
    calls.invoke(NAME, call)
    assert_close(call["x"], want, atol=3e-14, reason="sums of at most 20 float64 terms below 10")


@pytest.mark.parametrize("shape", ATTENTION.values(), ids=ATTENTION)
def test_it_is_attention_and_the_output_projection(shape):
    """In float64, with the constants of keys, values and projection: the algebra loses nothing."""
    call, out, x = attention(**shape)
    got = functional.audio_update(x, call["q"], *constants(call, out), eps=call["eps"])
    assert_close(got, unfused(call, out, x), atol=1e-13, reason="two orders of float64 sums of numbers below 10")


@pytest.mark.parametrize("shape", ATTENTION.values(), ids=ATTENTION)
def test_equal_audio_tokens_leave_a_constant(shape):
    """The null branch: no update, whatever the query, and base is the projected value."""
    call, out, x = attention(**shape)
    for name in "kv":
        call[name][:] = call[name][:, :1, :1].clone()
    keys, base, update = constants(call, out)
    assert not keys.any() and not update.any()
    want = x + out(call["v"][:, :1, 0].flatten(-2))
    assert_close(
        functional.audio_update(x, call["q"], keys, base, update, eps=1e-5), want, atol=1e-14, reason="one float64 sum"
    )
    assert_close(unfused(call, out, x), want, atol=1e-13, reason="a softmax over equal scores adds up to one")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_place_is_functional(shape, dtype):
    call = calls.frame_audio_update(**shape, dtype=dtype)
    before = {name: v.clone() for name, v in call.items() if isinstance(v, torch.Tensor)}
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    slots = call["slot"].tolist()
    for lane, slot in enumerate(slots + [-1] * (len(call["x"]) - len(slots))):
        x, q = (before[name][lane : lane + 1] for name in "xq")
        here = slice(slot, slot + 1)
        if slot < 0:
            want = x + before["null"]
        else:
            constant = (before[name][here] for name in ("keys", "base", "update"))
            want = functional.audio_update(x, q, *constant, eps=call["eps"])
        # A batch of one may add in another order; in low precision that moves a number across a border now and then.
        unit = torch.finfo(dtype).eps
        assert_close(call["x"][lane : lane + 1], want, atol=16 * unit, reason="one rounding of numbers below 16")
    for name in set(before) - {"x"}:
        assert_same_bits(call[name], before[name], name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("audio", [2, 4])
def test_low_precision_is_at_most_twice_eager(audio, dtype):
    """Against norm, attention, projection and sum as eager PyTorch computes them in that precision."""
    call, out, x = attention(dtype, tokens=16, heads=2, dim=32, audio=audio)
    exact = attention(torch.float64, tokens=16, heads=2, dim=32, audio=audio)
    for name in ("q", "q_weight", "k", "v"):
        exact[0][name] = call[name].double()
    exact[1].load_state_dict({name: p.double() for name, p in out.state_dict().items()})
    lanes, frames, _, heads, dim = call["k"].shape
    q = call["q"] * (call["q"] * call["q"]).mean(-1, keepdim=True).add(call["eps"]).rsqrt() * call["q_weight"]
    q = q.view(lanes * frames, -1, heads, dim).transpose(1, 2)
    k, v = (call[name].flatten(0, 1).transpose(1, 2) for name in "kv")
    seen = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(call["q"].shape)
    eager, truth = x + out(seen), unfused(*exact[:2], x.double())
    keys, base, update = constants(call, out)
    null, slot = base[0, 0].clone(), calls.ints(0, 1)
    ops.frame_audio_update(x, call["q"], keys, base, update, null, slot=slot, eps=call["eps"])
    twice_eager(x, eager, truth, tiny=1e-6)


def test_gradients_are_those_of_attention_and_projection():
    """Of everything that is learned: the projection, the norm, keys, values, queries and the stream."""
    call, out, x = attention(audio=3)
    leaves = [x, *(call[name] for name in ("q", "q_weight", "k", "v")), out.weight, out.bias]
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for run in (unfused, lambda c, o, s: functional.audio_update(s, c["q"], *constants(c, o), eps=c["eps"])):
        for leaf in leaves:
            leaf.grad = None
            leaf.requires_grad_(True)
        (run(call, out, x) * weights).sum().backward()
        found.append([leaf.grad.clone() for leaf in leaves])
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, atol=1e-11, reason="sums of hundreds of float64 products below 100")


def test_other_frames_and_slots_are_not_heard():
    """NaN in the audio of frame 1 of a slot reaches the tokens of frame 1 of its lane and no others."""
    call = calls.frame_audio_update(frames=3, tokens=4)
    call["update"][2, 1] = torch.nan
    calls.invoke(NAME, call)
    lost = torch.zeros(3, 12, dtype=torch.bool)
    lost[0, 4:8] = True
    assert torch.equal(call["x"].isnan().all(-1), lost) and torch.equal(call["x"].isnan().any(-1), lost)


def test_a_slot_may_serve_several_lanes():
    call = calls.frame_audio_update(slot=(2, 2, 2))
    call["x"][1:], call["q"][1:] = call["x"][0].clone(), call["q"][0].clone()
    calls.invoke(NAME, call)
    assert_same_bits(call["x"][1], call["x"][0], "lane 1")
    assert_same_bits(call["x"][2], call["x"][0], "lane 2")
