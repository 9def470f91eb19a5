"""``frame_cross_attention``: tokens see the audio of their own frame, by loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.frame_cross_attention import SHAPES

NAME = "frame_cross_attention"


def closed_form(call: calls.Call) -> torch.Tensor:
    """float64 [B, F T, W], one token and one head at a time."""
    lanes, frames, audio, heads, dim = call["k"].shape
    q, weight, k, v = (call[name].double().tolist() for name in ("q", "q_weight", "k", "v"))
    width, tokens, result = heads * dim, call["q"].shape[1], []
    for b in range(lanes):
        for i in range(tokens):
            f, row = i // (tokens // frames), []
            root = math.sqrt(math.fsum(x * x for x in q[b][i]) / width + call["eps"])
            normed = [x / root * w for x, w in zip(q[b][i], weight)]
            for h in range(heads):
                query = normed[h * dim : (h + 1) * dim]
                scores = [math.fsum(x * y for x, y in zip(query, k[b][f][a][h])) / math.sqrt(dim) for a in range(audio)]
                weights = [math.exp(s - max(scores)) for s in scores]
                parts = [p / math.fsum(weights) for p in weights]
                row += [math.fsum(p * v[b][f][a][h][d] for a, p in enumerate(parts)) for d in range(dim)]
            result.append(row)
    return torch.tensor(result, dtype=torch.float64).view(call["q"].shape)


def functional_result(call: calls.Call) -> torch.Tensor:
    return functional.frame_attention(call["q"], call["q_weight"], call["k"], call["v"], eps=call["eps"])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_functional_is_the_formula(shape):
    call = calls.frame_cross_attention(**shape, dtype=torch.float64)
    assert_close(functional_result(call), closed_form(call), atol=1e-14, reason="20 float64 roundings below 3")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_place_is_functional(shape, dtype):
    call = calls.frame_cross_attention(**shape, dtype=dtype)
    before = {name: call[name].clone() for name in ("q", "k", "v", "q_weight")}
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_same_bits(call["out"], functional_result(call), "out")
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_at_most_twice_eager(dtype):
    call = calls.frame_cross_attention(tokens=16, heads=2, dim=32, dtype=dtype)
    lanes, frames, _, heads, dim = call["k"].shape
    q = call["q"] * (call["q"] * call["q"]).mean(-1, keepdim=True).add(call["eps"]).rsqrt() * call["q_weight"]
    q = q.view(lanes * frames, -1, heads, dim).transpose(1, 2)
    k, v = (call[name].flatten(0, 1).transpose(1, 2) for name in "kv")
    eager = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(call["q"].shape)
    calls.invoke(NAME, call)
    twice_eager(call["out"], eager, closed_form(call), tiny=1e-6)


def test_other_frames_are_not_seen():
    """NaN in the audio of frame 1 reaches the tokens of frame 1 and no others."""
    call = calls.frame_cross_attention(frames=3, tokens=4)
    call["k"][:, 1], call["v"][:, 1] = torch.nan, torch.nan
    calls.invoke(NAME, call)
    lost = call["out"].isnan().all(-1)
    assert torch.equal(lost, torch.tensor([[False] * 4 + [True] * 4 + [False] * 4] * 2))
    assert not call["out"][~lost].isnan().any()
