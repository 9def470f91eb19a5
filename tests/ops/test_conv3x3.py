"""``conv3x3``: the reference by shifted products in float64, C++ against it, and what must not depend on anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops import functional
from rest_fast.ops.conv3x3 import at_points
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls, cpp

NAME = "conv3x3"
FLOATS = ("x", "weight", "bias", "added", "scale", "shift")
SIZES = {
    "one pixel": {"channels": 1, "out": 1, "frames": 1, "size": (1, 1), "added": 1},
    "less than a tile": {"size": (3, 2)},
    "whole tiles": {"channels": 16, "out": 16, "size": (8, 12)},
    "borders": {"channels": 7, "out": 17, "size": (9, 13)},
    "more tiles than are made at a time": {"channels": 4, "out": 2, "frames": 2, "size": (8, 120), "added": 1},
    "many small frames": {"channels": 12, "out": 20, "frames": 30, "size": (4, 8), "added": 3},
    "the painter's": {"channels": 44, "out": 32, "frames": 3, "size": (40, 40), "added": 3},
    "the flow branch's": {"channels": 40, "out": 40, "frames": 2, "size": (32, 32), "added": 1},
}


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def shifted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The convolution as the docstring says it: nine products of matrices, each of x moved by a pixel."""
    n, channels, height, width = x.shape
    outside = x.new_zeros(n, channels, height + 2, width + 2)
    outside[..., 1:-1, 1:-1] = x
    return sum(
        torch.einsum("oc,nchw->nohw", weight[:, :, u, v], outside[..., u : u + height, v : v + width])
        for u in range(3)
        for v in range(3)
    )


def by_hand(call: calls.Call) -> torch.Tensor:
    """float64 [N, O, H, W]."""
    x, weight, bias, added, scale, shift = (None if call[n] is None else call[n].double() for n in FLOATS)
    y = shifted(silu(x) if call["silu_before"] else x, weight)
    if bias is not None:
        y = y + bias[:, None, None]
    if call["silu_after"]:
        y = silu(y)
    if added is not None:
        y = y + added.repeat_interleave(len(y) // len(added), 0)
    return y if scale is None else y * scale[..., None, None] + shift[..., None, None]


def check(call: calls.Call) -> torch.Tensor:
    """C++ against float64. Tiles at points of 2 are sums of up to 100 times their numbers, whose roundings partly
    cancel on the way back: over 180 calls of these sizes and others the largest error was 33 units of the sum of
    absolute products, a third of what is allowed."""
    out = cpp.run(NAME, call)["out"]
    x = call["x"].double()
    products = shifted((silu(x) if call["silu_before"] else x).abs(), call["weight"].double().abs())
    largest = 1.0 if call["scale"] is None else float(call["scale"].abs().max())
    allowed = cpp.UNIT * (64 * float(products.max()) * largest + 16 * float(by_hand(call).abs().max()))
    assert_close(out, by_hand(call), atol=allowed, reason="roundings of F(4 x 4, 3 x 3)")
    return out


@pytest.mark.parametrize("silu_at", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("absent", [(), ("bias",), ("added",), ("scale", "shift"), FLOATS[2:]], ids="-".join)
def test_the_reference_is_the_formula(absent, silu_at):
    call = calls.conv3x3(silu=silu_at, dtype=torch.float64) | dict.fromkeys(absent)
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_close(call["out"], by_hand(call), atol=1e-13, reason="50 float64 roundings below 10")
    arguments, silus = [call[n] for n in FLOATS], {n: call[n] for n in ("silu_before", "silu_after")}
    assert_same_bits(functional.convolved(*arguments, **silus), call["out"].contiguous(), "the functional face")


@cpp.MISSING
@pytest.mark.parametrize("silu_at", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("absent", [(), ("bias",), ("added",), ("scale", "shift"), FLOATS[2:]], ids="-".join)
@pytest.mark.parametrize("out", [3, 32], ids=["part of a block", "whole blocks"])
def test_cpp_with_and_without(out, absent, silu_at):
    check(calls.conv3x3(silu=silu_at, out=out) | dict.fromkeys(absent))


@cpp.MISSING
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_cpp_at_every_kind_of_size(size):
    check(calls.conv3x3(**size))


@cpp.MISSING
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_width_of_vectors(size, width):
    call = calls.conv3x3(**size)
    want = cpp.run(NAME, call)["out"]
    assert_close(
        cpp.at_width(NAME, call, width),
        want,
        atol=5e-5,
        reason="sums in the same order, with or without fused products",
    )


@cpp.MISSING
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    whole = st.integers(1, 9)
    parts, each = data.draw(whole), data.draw(st.integers(1, 3))
    check(
        calls.conv3x3(
            data.draw(st.integers(1, 40)),
            data.draw(st.integers(1, 40)),
            parts * each,
            (data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))),
            added=parts,
            silu=(data.draw(st.booleans()), data.draw(st.booleans())),
            seed=data.draw(whole),
        )
    )


@cpp.MISSING
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_threads_and_frames_apart(size):
    call = calls.conv3x3(**size) | {"added": None}
    one, three = cpp.by_threads(NAME, call)
    assert_same_bits(three["out"], one["out"], "three threads")
    for n in range(len(call["x"])):
        alone = call | {name: call[name][n : n + 1] for name in ("x", "scale", "shift", "out")}
        assert_same_bits(cpp.run(NAME, alone)["out"][0], one["out"][n], f"frame {n} alone")


@cpp.MISSING
def test_a_weight_that_changes_is_read_anew():
    call = calls.conv3x3()
    before = at_points(call["weight"])
    assert at_points(call["weight"]) is before
    check(call)
    call["weight"].mul_(-2)
    check(call)


@cpp.MISSING
def test_what_is_no_number_stays_near():
    """It reaches the tiles that read it: up to five pixels away, where the reference stops after one."""
    call = calls.conv3x3(size=(20, 20), silu=(False, False))
    clean = cpp.run(NAME, call)["out"]
    call["x"][1, 2, 9, 10] = torch.nan
    out = cpp.run(NAME, call)["out"]
    near = torch.zeros_like(out, dtype=torch.bool)
    near[1, :, 4:15, 5:16] = True
    assert_same_bits(out[~near], clean[~near], "the others")
    assert out[1, :, 8:11, 9:12].isnan().all()


@cpp.MISSING
@pytest.mark.parametrize(
    "changes, text",
    [
        *(({"shape": shape}, "bad shape") for shape in ([-1, 5, 6, 5, 3], [4, 5, -6, 5, 3], [4, 5, 6, -5, 3])),
        ({"added_frames": 0}, "bad shape"),
        ({"added_frames": 3}, "bad shape"),
        ({"vector_width": 5}, "no vectors of that width"),
        *(({name: 0}, "address of a required tensor is null") for name in ("x", "points", "out", "scale", "shift")),
    ],
    ids=str,
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.conv3x3()
    assert text in cpp.direct(NAME, call, changes)
    assert call["out"].isnan().all()
    assert cpp.direct(NAME, call, {}) == "ok"
    assert not call["out"].isnan().any()


@cpp.MISSING
@pytest.mark.parametrize("sizes", [{"frames": 0, "added": 0}, {"size": (0, 5)}, {"size": (5, 0)}, {"out": 0}], ids=str)
def test_nothing_to_do(sizes):
    assert cpp.run(NAME, calls.conv3x3(**sizes))["out"].numel() == 0


@cpp.MISSING
def test_no_channels_are_zeros_behind_their_bias():
    call = calls.conv3x3(channels=5, silu=(False, False)) | {"added": None, "scale": None, "shift": None}
    call |= {"x": call["x"][:, :0].contiguous(memory_format=torch.channels_last), "weight": call["weight"][:, :0]}
    assert torch.equal(cpp.run(NAME, call)["out"], call["bias"][:, None, None].expand_as(call["out"]))


@cpp.MISSING
def test_it_is_the_default_where_channels_are_innermost():
    cases = [(calls.conv3x3(), "cpp"), (calls.conv3x3(dtype=torch.float64), "reference")]
    planes = {name: calls.conv3x3()[name].contiguous() for name in ("x", "added", "out")}
    cases += [(calls.conv3x3() | {name: planes[name]}, "reference") for name in planes]
    for call, name in cases:
        args, kwargs = calls.split(NAME, call)
        table = ops.conv3x3
        assert table.choose(table.check(*args, **kwargs), None).name == name
