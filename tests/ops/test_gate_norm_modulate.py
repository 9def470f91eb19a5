"""``gate_norm_modulate`` against the formula, channel by channel; every argument left out in turn."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.gate_norm_modulate import LEFT_OUT, NORMS, SHAPES, without

NAME = "gate_norm_modulate"


def closed_form(call: calls.Call) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, out) in float64; out is zero without scale and shift."""
    lanes, tokens, width = call["x"].shape
    x, out = torch.zeros(call["x"].shape, dtype=torch.float64), torch.zeros(call["x"].shape, dtype=torch.float64)

    def at(name: str, lane: int, token: int, channel: int) -> float:
        vector = call[name]
        return float(vector[lane, token // (tokens // vector.shape[1]), channel])

    for b in range(lanes):
        for i in range(tokens):
            row = call["x"][b, i].double().tolist()
            if call["branch"] is not None:
                branch = call["branch"][b, i].double().tolist()
                gates = [1.0 if call["gate"] is None else at("gate", b, i, c) for c in range(width)]
                row = [x_ + g * y for x_, g, y in zip(row, gates, branch)]
            x[b, i] = torch.tensor(row, dtype=torch.float64)
            if call["scale"] is not None:
                norm = call.get("norm", "rms")
                mean, one = 0.0 if norm == "rms" else math.fsum(row) / width, norm != "affine"
                row = [v - mean for v in row]
                root = math.sqrt(math.fsum(v * v for v in row) / width + call["eps"])
                moved = [v / root * (one + at("scale", b, i, c)) + at("shift", b, i, c) for c, v in enumerate(row)]
                out[b, i] = torch.tensor(moved, dtype=torch.float64)
    return x, out


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_functional_is_the_formula(shape, norm):
    call = calls.gate_norm_modulate(**shape, dtype=torch.float64) | {"norm": norm}
    x, out = closed_form(call)
    # Values below 20, six float64 roundings.
    got = functional.gated_residual(call["x"], call["branch"], call["gate"])
    assert_close(got, x, atol=1e-14, reason="two float64 roundings")
    got = functional.norm_modulate(got, call["scale"], call["shift"], call["eps"], norm)
    assert_close(got, out, atol=2e-14, reason="six float64 roundings")
    plain = functional.gated_residual(call["x"], call["branch"], None)
    assert_close(plain, closed_form(without(call, ["gate"]))[0], reason="one addition, the same in both")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("names", LEFT_OUT.values(), ids=LEFT_OUT)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_place_is_the_formula(shape, names, norm):
    call = without(calls.gate_norm_modulate(**shape, dtype=torch.float64), names) | {"norm": norm}
    x, out = closed_form(call)
    calls.invoke(NAME, call)
    assert_close(call["x"], x, atol=1e-14, reason="two float64 roundings")
    if call["out"] is not None:
        assert_close(call["out"], out, atol=2e-14, reason="six float64 roundings")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("names", [[], ["gate"], ["gate", "branch"]], ids=["all", "no_gate", "no_branch"])
def test_in_place_is_functional(names, dtype):
    call = without(calls.gate_norm_modulate(dtype=dtype), names) | {"rounding": "eager"}
    x = call["x"].clone()
    if call["branch"] is not None:
        x = functional.gated_residual(x, call["branch"], call["gate"])
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_same_bits(call["x"], x, "x")
    assert_same_bits(call["out"], functional.norm_modulate(x, call["scale"], call["shift"], call["eps"]), "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_at_most_twice_eager(dtype):
    call = calls.gate_norm_modulate(frames=2, tokens=16, width=96, dtype=dtype)
    x, out = closed_form(call)
    frames = [call[name].repeat_interleave(16, 1) for name in ("gate", "scale", "shift")]
    eager_x = call["x"] + frames[0] * call["branch"]
    root = (eager_x * eager_x).mean(-1, keepdim=True).add(call["eps"]).rsqrt()
    eager_out = eager_x * root * (1 + frames[1]) + frames[2]
    calls.invoke(NAME, call)
    twice_eager(call["x"], eager_x, x, tiny=1e-6)
    twice_eager(call["out"], eager_out, out, tiny=1e-6)


def test_modulation_may_be_a_view():
    """AdaLN hands over slices of one table: strides are free, and the neighbours in the table stay."""
    call = calls.gate_norm_modulate()
    want = call | {name: call[name].clone() for name in ("x", "out")}
    calls.invoke(NAME, want)
    table = torch.stack([call["gate"], call["scale"], call["shift"]], 2)
    before = table.clone()
    for i, name in enumerate(("gate", "scale", "shift")):
        call[name] = table[:, :, i]
    assert not call["gate"].is_contiguous()
    calls.invoke(NAME, call)
    assert_same_bits(table, before, "the table")
    for name in ("x", "out"):
        assert_same_bits(call[name], want[name], name)


def test_affine_is_a_layer_norm_of_torch():
    call = calls.gate_norm_modulate(dtype=torch.float64) | {"norm": "affine"}
    weight, bias = (call[name][0, 0].contiguous() for name in ("scale", "shift"))
    call |= {name: v.expand(2, 1, -1) for name, v in (("scale", weight), ("shift", bias))} | {
        "branch": None,
        "gate": None,
    }
    want = torch.nn.functional.layer_norm(call["x"], (10,), weight, bias, call["eps"])
    calls.invoke(NAME, call)
    assert_close(call["out"], want, atol=2e-14, reason="six float64 roundings")


@pytest.mark.parametrize("norm", NORMS)
def test_zero_tokens_stay_finite(norm):
    call = calls.gate_norm_modulate() | {"norm": norm}
    call["x"].zero_(), call["branch"].zero_()
    calls.invoke(NAME, call)
    assert_close(call["out"], call["shift"].repeat_interleave(4, 1), reason="0 times anything plus shift")
