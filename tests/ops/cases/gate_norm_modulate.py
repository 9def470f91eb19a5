"""Cases of ``gate_norm_modulate``, for the tests of all its backends."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.ops import calls

ROUNDINGS = ("fused", "eager")
NORMS = ("rms", "layer", "affine")
# Product and sum; three units for a device's reciprocal root, four of the sum of squares (halved by the root); a
# product, 1 + scale, a product, a sum: under 14 units of 2^-24 of the largest result. Where a mean is taken away, four
# of its sum and the difference, of the largest number, which is not the largest result: twice as many.
FP32, WHY = 14 * 2.0**-24, "14 fp32 roundings"
CENTRED, WHY_CENTRED = 28 * 2.0**-24, "28 fp32 roundings"
SIZES = {
    "odd": {},
    "one_frame": {"frames": 1, "tokens": 3, "width": 7},
    "frame_a_token": {"frames": 5, "tokens": 1, "width": 3},
    "demo": {"frames": 3, "tokens": 2, "width": 192},
    "width_2048": {"frames": 2, "tokens": 1, "width": 2048, "lanes": 1},
}
SHAPES = {"odd": {}, "one_frame": {"frames": 1, "tokens": 7}, "frame_a_token": {"frames": 5, "tokens": 1, "width": 3}}


LEFT_OUT = {
    "nothing": [],
    "gate": ["gate"],
    "branch": ["gate", "branch"],
    "out": ["scale", "shift", "out"],
    "gate_and_out": ["gate", "scale", "shift", "out"],
    "everything": ["branch", "gate", "scale", "shift", "out"],
}


def without(call: calls.Call, names: list[str]) -> calls.Call:
    return call | {name: None for name in names}


@st.composite
def problems(draw):
    lanes, unit = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    frames, gate_frames = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    tokens, width = 6 * unit, draw(st.integers(1, 70))
    call = calls.gate_norm_modulate(
        frames, tokens // frames, width, lanes=lanes, gate_frames=gate_frames, seed=draw(st.integers(0, 99))
    )
    for name in ("gate", "scale", "shift"):
        layout = draw(st.sampled_from(["contiguous", "shared by lanes", "shared by frames", "slice of a table"]))
        if layout == "shared by lanes":
            call[name] = call[name][:1].expand(lanes, -1, -1)
        elif layout == "shared by frames":
            call[name] = call[name][:, :1].expand_as(call[name])
        elif layout == "slice of a table":
            call[name] = torch.stack([call[name], torch.full_like(call[name], torch.nan)], 2)[:, :, 0]
    return without(call, draw(st.sampled_from(list(LEFT_OUT.values()))))
