"""Triton's ``depth_to_space`` against the reference: bit for bit, for any factors, layouts, dtypes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rest_fast import ops
from rest_fast.kernels import depth_to_space as package
from rest_fast.ops import functional
from rest_fast.ops.dispatch import Spec
from tests.kernels import kit
from tests.kit.compare import assert_same_bits
from tests.kit.pictures import LAYOUTS, assert_untouched_around, placed
from tests.ops.cases.depth_to_space import FACTORS, numbered

NAME = "depth_to_space"


def check(x: torch.Tensor, factors: tuple[int, int, int], drop: int, layout: str, out_layout: str) -> None:
    want = functional.depth_to_space(x, factors, drop).contiguous()
    source, _ = placed(x, layout, kit.DEVICE)
    out, buffer = placed(torch.zeros_like(want), out_layout, kit.DEVICE)
    with ops.use_backend("triton"):
        ops.depth_to_space(source, out, factors=list(factors), drop=drop)
    same = out.cpu().contiguous()
    as_bytes = [v.view(torch.uint8) for v in (same, want)]
    assert_same_bits(*as_bytes, f"{factors}, drop {drop}, {layout} to {out_layout}")
    assert_untouched_around(out, buffer)


@pytest.mark.parametrize("out_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factors", [(2, 2, 2), (2, 3, 2)], ids=str)
def test_any_layout_to_any(factors, layout, out_layout):
    channels = 5 * torch.Size(factors).numel()
    check(numbered((2, channels, 2, 3, 5), torch.float32), factors, 1, layout, out_layout)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    factors=st.sampled_from(FACTORS),
    channels=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 19)),
    dropped=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.uint8, torch.int64, torch.bool]),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
)
def test_any_call(factors, channels, sizes, dropped, dtype, layouts):
    (b, t, h, w), cell = sizes, torch.Size(factors).numel()
    check(numbered((b, channels * cell, t, h, w), dtype), factors, dropped % (t * factors[0]), *layouts)


@pytest.mark.parametrize("layout", ["planes", "channels_last", "sideways"])
def test_several_tiles(layout):
    """More cells and more channels than a tile holds."""
    check(numbered((1, 8 * 130, 1, 3, 5), torch.float16), (2, 2, 2), 1, layout, layout)
    check(numbered((1, 8, 2, 17, 16), torch.float16), (2, 2, 2), 0, layout, layout)


def test_patches_of_the_decoder():
    """(c, column, row): LTX-Video counts the columns of a patch before its rows."""
    x = numbered((1, 48, 2, 4, 6), torch.float32)
    out = torch.zeros(1, 3, 2, 16, 24, device=kit.DEVICE)
    with ops.use_backend("triton"):
        ops.depth_to_space(x.to(kit.DEVICE).transpose(3, 4), out.transpose(3, 4), factors=[1, 4, 4], drop=0)
    for c, row, column in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(4)).tolist():
        want = x[:, c * 16 + column * 4 + row]
        assert_same_bits(out.cpu()[:, c, :, row::4, column::4].contiguous(), want.contiguous(), f"{c} {row} {column}")


def test_no_cells():
    call = {"x": torch.zeros(0, 8, 1, 2, 2), "out": torch.zeros(0, 1, 2, 4, 4), "factors": [2, 2, 2], "drop": 0}
    assert kit.run(NAME, call, "triton")["out"].numel() == 0


@pytest.mark.parametrize(
    "spec, reason",
    [
        (Spec(kit.DEVICE, torch.complex128, (("channels", 8),)), "real numbers only, got torch.complex128"),
        (Spec(kit.DEVICE, torch.complex64, (("channels", 8),)), "real numbers only, got torch.complex64"),
        (Spec(kit.DEVICE, torch.float16, (("channels", 2**16 + 8),)), "at most 65536 channels, got 65544"),
        (Spec(kit.DEVICE, torch.float16, (("pixels", 2**31 - 2**13),)), "fewer than 2147475456 pixels, got 2147475456"),
    ],
    ids=["complex128", "complex64", "channels", "pixels"],
)
def test_refused_with_a_reason(spec, reason):
    ok, said = next(b for b in ops.depth_to_space.backends if b.name == "triton").supports(spec)
    assert not ok and reason in said


def test_more_pixels_than_numbers():
    """Seen by the op, over the whole batch: there is no memory behind these tensors."""
    for batch, fits in ((1, True), (2, False)):
        x = torch.empty(batch, 4, 2**10, 2**9, 2**9, dtype=torch.int8, device="meta")
        out = torch.empty(batch, 1, 2**10, 2**10, 2**10, dtype=torch.int8, device="meta")
        assert package.supports(ops.depth_to_space.check(x, out, factors=[1, 2, 2], drop=0))[0] == fits


@pytest.mark.skipif(not kit.ON_GPU, reason="real shapes take a GPU")
@pytest.mark.parametrize("layouts", [("planes",) * 2, ("channels_last",) * 2, ("channels_last", "planes")], ids=str)
@pytest.mark.parametrize("shape", [(1, 4096, 1, 16, 16), (1, 2048, 2, 32, 32), (2, 1024, 12, 64, 64)])
def test_real_shapes(shape, layouts):
    for dtype in (torch.bfloat16, torch.float32):
        check(numbered(shape, dtype), (2, 2, 2), 1, *layouts)
