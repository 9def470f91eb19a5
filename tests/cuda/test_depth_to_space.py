"""``depth_to_space`` in CUDA, on the CPU, against the reference: bit for bit, for any factors, layouts, dtypes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rest_fast.ops import functional
from rest_fast.ops.dispatch import Spec
from tests.cuda_shim import built
from tests.kit.compare import assert_same_bits
from tests.kit.pictures import LAYOUTS, assert_untouched_around, placed
from tests.ops import calls
from tests.ops.cases.depth_to_space import FACTORS, numbered

NAME = "depth_to_space"
CUDA = next(b for b in calls.OPS[NAME].backends if b.name == "cuda")


def check(x: torch.Tensor, factors: tuple[int, int, int], drop: int, layout: str, out_layout: str) -> None:
    want = functional.depth_to_space(x, factors, drop).contiguous()
    source, _ = placed(x, layout, "cpu")
    out, buffer = placed(torch.zeros_like(want), out_layout, "cpu")
    built.run(NAME, {"x": source, "out": out, "factors": list(factors), "drop": drop}, in_place=True)
    as_bytes = [v.view(torch.uint8) for v in (out.contiguous(), want)]
    assert_same_bits(*as_bytes, f"{factors}, drop {drop}, {layout} to {out_layout}")
    assert_untouched_around(out, buffer)


@pytest.mark.parametrize("out_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factors", [(2, 2, 2), (2, 3, 2)], ids=str)
def test_any_layout_to_any(factors, layout, out_layout):
    channels = 5 * torch.Size(factors).numel()
    check(numbered((2, channels, 2, 3, 5), torch.float32), factors, 1, layout, out_layout)


@pytest.mark.parametrize("drop", [0, 1])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (2, 2, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64], ids=str)
def test_axes_exchanged_in_registers(dtype, factors, drop):
    """Channels innermost at both ends, in whole vectors and in more than a block of them."""
    channels = 16 * torch.Size(factors).numel()
    for layout in ("channels_last", "channels_last_frames"):
        check(numbered((2, channels, 2, 3, 30), dtype), factors, drop, layout, layout)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    factors=st.sampled_from(FACTORS),
    channels=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9)),
    dropped=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.uint8, torch.int64, torch.bool]),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
)
def test_any_call(factors, channels, sizes, dropped, dtype, layouts):
    (b, t, h, w), cell = sizes, torch.Size(factors).numel()
    check(numbered((b, channels * cell, t, h, w), dtype), factors, dropped % (t * factors[0]), *layouts)


@pytest.mark.parametrize("misaligned", ["x", "out"])
@pytest.mark.parametrize("start, between", [(1, 0), (0, 2)], ids=["address", "strides"])
def test_cells_that_begin_inside_of_a_vector(misaligned, start, between):
    """The first one, or those behind it: numbers instead."""
    sizes = {"x": (1, 64, 1, 2, 3), "out": (1, 8, 2, 4, 6)}
    call = {"factors": [2, 2, 2], "drop": 0}
    for name, (b, c, t, h, w) in sizes.items():
        first, room = (start, between) if name == misaligned else (0, 0)
        memory = torch.zeros(first + b * (c + room) * t * h * w)[first:].view(b, t, h, w, c + room)
        call[name] = memory[..., :c].permute(0, 4, 1, 2, 3)
        assert call[name].data_ptr() % 16 == 4 * first
    call["x"].copy_(numbered(sizes["x"], torch.float32))
    built.run(NAME, call, in_place=True)
    assert_same_bits(call["out"].contiguous(), functional.depth_to_space(call["x"], (2, 2, 2)).contiguous(), "out")


def test_patches_of_the_decoder():
    """(c, column, row): LTX-Video counts the columns of a patch before its rows."""
    x = numbered((1, 48, 2, 3, 4), torch.float32)
    out = torch.zeros(1, 3, 2, 12, 16)
    call = {"x": x.transpose(3, 4), "out": out.transpose(3, 4), "factors": [1, 4, 4], "drop": 0}
    built.run(NAME, call, in_place=True)
    for c, row, column in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(4)).tolist():
        want = x[:, c * 16 + column * 4 + row]
        assert_same_bits(out[:, c, :, row::4, column::4].contiguous(), want.contiguous(), f"{c} {row} {column}")


def test_no_cells():
    call = {"x": torch.zeros(0, 8, 1, 2, 2), "out": torch.zeros(0, 1, 2, 4, 4), "factors": [2, 2, 2], "drop": 0}
    assert built.run(NAME, call)["out"].numel() == 0


def test_complex_numbers_are_refused():
    """They may be views that PyTorch conjugates as it reads; their bits do not tell."""
    assert CUDA.supports(Spec("cuda", torch.complex64)) == (False, "dtype torch.complex64 is not compiled in")
