"""Names of layouts, and outputs that share memory."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops.dispatch import OpError
from rest_fast.ops.layouts import layout
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
