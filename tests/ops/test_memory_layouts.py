"""Names of layouts, and outputs that share memory."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops.dispatch import OpError
from rest_fast.ops.memory_layouts import halo, haloed, layout
from tests.kit.volumes import ORDERS, laid_out
from tests.ops import calls


@pytest.mark.parametrize("name", ORDERS)
def test_name_of_a_layout(name):
    x, memory = laid_out(torch.randn(2, 3, 4, 5, 6), name)
    assert layout(x) == (name if name in ("contiguous", "channels_last") else "strided")
    assert x.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()


def test_a_single_pixel_or_channel_is_contiguous():
    for shape in ((2, 3, 1, 1, 1), (2, 1, 4, 5, 6)):
        assert layout(torch.randn(shape).to(memory_format=torch.channels_last_3d)) == "contiguous"


@pytest.mark.parametrize("op", ["pixel_norm_silu", "depth_to_space"])
def test_an_expanded_output_is_refused(op):
    call = calls.VALID[op]()
    call["out"] = call["out"][..., :1].expand(call["out"].shape)
    with pytest.raises(OpError, match=rf"{op}: argument out: expected elements that share no memory, got strides \("):
        calls.invoke(op, call)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (4, 5)])
def test_a_border_is_seen_whatever_it_surrounds(size):
    """A picture of one pixel is contiguous in any layout: what lies around it is what a kernel asks for."""
    x = haloed((1, 16, 1, *size))
    assert layout(x) == "haloed" and halo(x).shape == (1, 16, 1, size[0] + 2, size[1] + 2)
    for plain in (torch.zeros(1, 16, 1, *size), torch.zeros(16)):
        assert layout(plain) != "haloed" and halo(plain) is None
