"""``gate_norm_modulate`` in C++: both roundings, strided and shared vectors, every argument left out, error codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast import ops
from rest_fast.ops import functional
from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_close, assert_same_bits, same_bits, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.gate_norm_modulate import LEFT_OUT, NORMS, SHAPES, problems, without

NAME = "gate_norm_modulate"
pytestmark = cpp.MISSING
SIZES = SHAPES | {
    "demo": {"frames": 3, "tokens": 16, "width": 192},
    "wide": {"frames": 2, "tokens": 3, "width": 2048},
    "tail": {"frames": 2, "tokens": 2, "width": 63},
}
FLOATS = ("x", "branch", "gate", "scale", "shift", "out")
# Of the numbers that are added up: product and sum, square, eight levels of their sum, mean and root (halved by the
# root), 1 + scale, two products and a sum, on both sides.
FP32 = 24 * cpp.UNIT


def sizes_of_terms(call: calls.Call) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 sizes of what is added up in x and out: their roundings are relative to these."""
    x = call["x"].double()
    tokens = x.shape[1]

    def spread(name: str) -> torch.Tensor:
        return call[name].double().repeat_interleave(tokens // call[name].shape[1], 1)

    term = torch.zeros_like(x) if call["branch"] is None else call["branch"].double()
    term = term if call["gate"] is None else term * spread("gate")
    size_x = x.abs() + term.abs()
    if call["out"] is None:
        return size_x, size_x
    total = x + term
    if call.get("norm", "rms") != "rms":
        total = total - total.mean(-1, keepdim=True)
    root = (total.square().mean(-1, keepdim=True) + call["eps"]).rsqrt()
    normed = total.abs() * root
    # Where terms cancel, the rounding of the largest one moves all channels of its token.
    largest = size_x.amax(-1, keepdim=True) * root
    return size_x, (1 + normed) * largest * (1 + spread("scale").abs()) + spread("shift").abs()


def check_fp32(call: calls.Call) -> None:
    got, want = cpp.run(NAME, call), cpp.run(NAME, call, "reference")
    for name, size in zip(("x", "out"), sizes_of_terms(call)):
        if call[name] is not None:
            reason = "24 fp32 roundings relative to the terms"
            assert_close(got[name] / (size + 1e-30), want[name] / (size + 1e-30), atol=FP32, reason=reason)
    if call["branch"] is None:
        assert_same_bits(got["x"], call["x"], "x without a branch")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rounding", ["fused", "eager"])
@pytest.mark.parametrize("names", LEFT_OUT.values(), ids=LEFT_OUT)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_fp32_is_the_reference(shape, names, rounding, norm):
    check_fp32(without(calls.gate_norm_modulate(**shape), names) | {"rounding": rounding, "norm": norm})


def test_in_fp32_both_roundings_are_one():
    call = calls.gate_norm_modulate(**SIZES["demo"])
    fused, eager = (cpp.run(NAME, call | {"rounding": r}) for r in ("fused", "eager"))
    for name in ("x", "out"):
        assert_same_bits(fused[name], eager[name], name)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
@pytest.mark.parametrize("rounding", ["fused", "eager"])
@pytest.mark.parametrize("names", LEFT_OUT.values(), ids=LEFT_OUT)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_low_precision_is_at_most_twice_eager(shape, names, rounding, dtype, norm):
    call = without(calls.gate_norm_modulate(**shape, dtype=dtype), names) | {"norm": norm}
    exact = cpp.run(NAME, cpp.widened(call, *FLOATS), "reference")
    eager = cpp.run(NAME, call | {"rounding": "eager"}, "reference")
    got = cpp.run(NAME, call | {"rounding": rounding})
    for name in ("x", "out"):
        if call[name] is not None:
            twice_eager(got[name], eager[name], exact[name], tiny=1e-6)
            if rounding == "fused":
                reason = "fp32 inside, one rounding at the end"
                assert_close(got[name], exact[name], rtol=cpp.LOW[dtype] * 1.01, atol=2e-5, reason=reason)


@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
def test_the_two_roundings(dtype):
    """Each is what it says, and they differ."""
    call = calls.gate_norm_modulate(**SIZES["wide"], dtype=dtype)
    fused, eager = (cpp.run(NAME, call | {"rounding": r}) for r in ("fused", "eager"))

    # Eager: the functional reference bit for bit, but for out where the order of the sum of squares (and a fused
    # multiply-add) moves an fp32 value across a tie: 2^-20 of a value against a unit of at least 2^-11.
    x = functional.gated_residual(call["x"], call["branch"], call["gate"])
    assert_same_bits(eager["x"], x, "eager x")
    out = functional.norm_modulate(x, call["scale"], call["shift"], call["eps"])
    assert (~same_bits(eager["out"], out)).float().mean() < 2.0**-7
    assert_close(eager["out"], out, rtol=2 * cpp.LOW[dtype], atol=1e-6, reason="one unit in the last place")

    # Fused: x is the fp32 sum, rounded once; the product of two 8- or 11-bit numbers is exact.
    wide = [call[name].float() for name in ("x", "branch", "gate", "scale", "shift")]
    total = functional.gated_residual(*wide[:3])
    assert_same_bits(fused["x"], total.to(dtype), "fused x")
    out = functional.norm_modulate(total, *wide[3:], call["eps"]).to(dtype)
    assert (~same_bits(fused["out"], out)).float().mean() < 2.0**-7
    for name in ("x", "out"):
        assert (fused[name] != eager[name]).float().mean() > 0.05, name


def test_the_fused_norm_reads_the_unrounded_sum():
    """256 + 1 is stored as 256 in bf16; a shift takes most of the normed value away, so that 1 in 257 shows."""
    call = without(calls.gate_norm_modulate(dtype=torch.bfloat16, width=32), ["gate"])
    call["x"].fill_(256.0), call["branch"].fill_(1.0), call["scale"].zero_(), call["shift"].fill_(-0.875)
    call["x"][..., 0] = 768.0
    fused, eager = (cpp.run(NAME, call | {"rounding": r}) for r in ("fused", "eager"))
    for got, sums in ((fused, (769.0, 257.0)), (eager, (768.0, 256.0))):
        assert got["x"][0, 0, :2].tolist() == [768.0, 256.0]
        total = torch.tensor([sums[0]] + [sums[1]] * 31, dtype=torch.float64)
        want = total / total.square().mean().sqrt() - 0.875
        assert_close(got["out"][0, 0], want, rtol=1.01 * 2.0**-8, atol=1e-6, reason="one rounding to bf16")
    assert abs(float(fused["out"][0, 0, 1]) / float(eager["out"][0, 0, 1]) - 1) > 0.02  # five times the rounding


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_and_stride(call):
    check_fp32(call)


def test_vectors_of_another_stride_along_the_width_are_refused():
    call = calls.gate_norm_modulate()
    call["scale"] = torch.stack([call["scale"]] * 2, -1)[..., 0]
    with pytest.raises(OpError, match=rf"^{NAME}: argument scale: expected a contiguous last dimension, got strides"):
        calls.invoke(NAME, call)


@pytest.mark.parametrize("rounding", ["fused", "eager"])
@pytest.mark.parametrize("dtype, size", [(torch.bfloat16, 1e15), (torch.float16, 3e4), (torch.float32, 1e15)], ids=str)
def test_large_numbers(dtype, size, rounding):
    """Squares of 1e30 fit fp32, and squares of 3e4 do not fit float16."""
    call = calls.gate_norm_modulate(**SIZES["demo"])
    call = {n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in call.items()}
    call["x"] = (call["x"].clamp(-1, 1).float() * size).to(dtype)
    exact = cpp.run(NAME, cpp.widened(call, *FLOATS), "reference")
    eager = cpp.run(NAME, call | {"rounding": "eager"}, "reference")
    got = cpp.run(NAME, call | {"rounding": rounding})
    for name in ("x", "out"):
        twice_eager(got[name], eager[name], exact[name], tiny=1e-6 * float(exact[name].abs().max()))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_token_does_not_spread(value):
    call = calls.gate_norm_modulate(**SIZES["demo"])
    clean = cpp.run(NAME, call)
    call["x"][1, 17, 5] = value
    got, want = cpp.run(NAME, call), cpp.run(NAME, call, "reference")
    for name in ("x", "out"):
        assert torch.equal(got[name].isnan(), want[name].isnan())
        got[name][1, 17], clean[name][1, 17] = 0, 0
        assert_same_bits(got[name], clean[name], name)


def test_lanes_apart_and_threads():
    call = calls.gate_norm_modulate(frames=3, tokens=64, width=192)
    one, three = cpp.by_threads(NAME, call)
    for name in ("x", "out"):
        assert_same_bits(three[name], one[name], name)
        alone = cpp.run(NAME, {n: v[1:] if isinstance(v, torch.Tensor) else v for n, v in call.items()})
        assert_same_bits(alone[name][0], one[name][1], f"{name} of lane 1")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"dtype": -1}, "dtype is not one of"),
        ({"batch": -1}, "bad shape"),
        ({"tokens": -12}, "bad shape"),
        ({"width": -10}, "bad shape"),
        ({"rounding": 2}, "bad shape"),
        ({"norm": 3}, "bad shape"),
        ({"norm": -1}, "bad shape"),
        ({"gate_frames": 5}, "the latent frames do not divide the tokens"),
        ({"gate_frames": 0}, "the latent frames do not divide the tokens"),
        ({"norm_frames": 7}, "the latent frames do not divide the tokens"),
        ({"norm_frames": -3}, "the latent frames do not divide the tokens"),
        ({"x": 0}, "address of a required tensor is null"),
        ({"scale": 0}, "address of a required tensor is null"),
        ({"shift": 0}, "address of a required tensor is null"),
        ({"branch": 0}, "address of a required tensor is null"),
    ],
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.gate_norm_modulate()
    before = {n: call[n].clone() for n in ("x", "out")}
    assert text in cpp.direct(NAME, call, changes)
    for name, old in before.items():
        assert_same_bits(call[name], old, name)
    assert cpp.direct(NAME, call, {}) == "ok"
    assert_same_bits(call["out"], cpp.run(NAME, calls.gate_norm_modulate())["out"], "out")


@pytest.mark.parametrize("empty", [{"tokens": 0}, {"width": 0}, {"lanes": 0}], ids=str)
def test_nothing_to_do(empty):
    call = cpp.run(NAME, calls.gate_norm_modulate(**empty))
    assert call["out"].numel() == 0


def test_it_is_the_default_where_it_is_compiled():
    for dtype, name in ((torch.float32, "cpp"), (torch.float16, "cpp"), (torch.float64, "reference")):
        args, kwargs = calls.split(NAME, calls.gate_norm_modulate(dtype=dtype))
        op = ops.gate_norm_modulate
        assert op.choose(op.check(*args, **kwargs), None).name == name
