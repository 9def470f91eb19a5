"""``move_and_paint``: a frame of the motion VAE, made of its photo: moved by a flow, and painted where it must be.

    moved(p) = photo(p + flow(p) + fade(p) inner_flow(p))
    out      = moved (1 - share) + painted;  then in the window the same with fade x (inner share and inner painted)

Flows and paint come as small maps, for which the photo's size does not matter: every map is enlarged bilinearly (the
middles of corner cells stay where they are), and the photo is read bilinearly, its border going on outside. The *inner*
maps belong to a *window* of the picture, (top, left, rows, columns) in 64ths of its sides; ``fade`` rises from 0 to 1
over :data:`FADE` 64ths of the picture's height at all four sides of the window. Paint comes times its share.

A *flow* [N, 2, h, w] holds (x, y) from each point of the frame to where it lies in the photo, in sides of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from rest_fast.ops import native
from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float
from rest_fast.ops.frames_to_uint8 import to_uint8

NAME = "move_and_paint"
UNITS = 64  # of a window, along each side of the picture
FADE = 4  # of those units, of the height
CUDA_SHARED = 48 * 1024  # bytes: kMostShared of csrc/cuda/move_and_paint.cu


def moved_and_painted(
    photo: torch.Tensor,  # [B, 3, H, W]
    flow: torch.Tensor,  # [N, 2, h, w]
    paint: torch.Tensor,  # [N, 4, h, w]: share in 0..1, and the paint times its share
    inner_flow: torch.Tensor,  # [N, 2, h', w']
    inner_paint: torch.Tensor,  # [N, 4, 2 h', 2 w']
    window: Sequence[int],
) -> torch.Tensor:
    """Functional reference: frames [N, 3, H, W], of which N / B belong to each photo. Differentiable."""
    size = photo.shape[2:]
    out = _laid_over(moved(photo, whole_flow(flow, inner_flow, size, window)), _larger(paint, size))
    top, left, rows, columns = scaled(window, size)
    inside = out[..., top : top + rows, left : left + columns].clone()  # a gradient needs it as it was
    laid = faded(_larger(inner_paint, (rows, columns)), fade_width(size))
    return _replaced(out, _laid_over(inside, laid), top, left)


def moved(photo: torch.Tensor, flow: torch.Tensor, place: Sequence[int] | None = None) -> torch.Tensor:
    """The photo [B, 3, H, W] seen through flows [N, 2, h, w]: of the whole picture, or of ``place`` of it, (top, left,
    rows, columns) in pixels."""
    height, width = photo.shape[2:]
    top, left, rows, columns = place or (0, 0, height, width)
    y = (torch.arange(rows, dtype=flow.dtype, device=flow.device) + (top + 0.5)) * (2 / height) - 1
    x = (torch.arange(columns, dtype=flow.dtype, device=flow.device) + (left + 0.5)) * (2 / width) - 1
    grid = torch.stack([x + 2 * flow[:, 0], y[:, None] + 2 * flow[:, 1]], -1)
    source = photo.repeat_interleave(len(flow) // len(photo), 0)
    return F.grid_sample(source, grid, padding_mode="border", align_corners=False)


def whole_flow(
    flow: torch.Tensor, inner_flow: torch.Tensor, size: Sequence[int], window: Sequence[int]
) -> torch.Tensor:
    """The flow [N, 2, H, W] that both make together."""
    whole = _larger(flow, size)
    top, left, rows, columns = scaled(window, size)
    inside = whole[..., top : top + rows, left : left + columns]
    return _replaced(whole, inside + faded(_larger(inner_flow, (rows, columns)), fade_width(size)), top, left)


def scaled(window: Sequence[int], size: Sequence[int]) -> tuple[int, int, int, int]:
    """A window in pixels of a picture of this size."""
    top, left, rows, columns = window
    height, width = size
    return top * height // UNITS, left * width // UNITS, rows * height // UNITS, columns * width // UNITS


def fade_width(size: Sequence[int]) -> int:
    return size[0] * FADE // UNITS


def faded(x: torch.Tensor, width: int) -> torch.Tensor:
    """Maps of a window, faded to nothing over ``width`` pixels at its rim."""
    ramps = []
    for size in x.shape[2:]:
        at = torch.arange(size, dtype=x.dtype, device=x.device)
        ramps.append((torch.minimum(at, size - 1 - at) / width).clamp(max=1))
    return x * (ramps[0][:, None] * ramps[1])


def _laid_over(x: torch.Tensor, paint: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(x + paint[:, 1:], x, paint[:, :1], value=-1)


def _larger(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _replaced(x: torch.Tensor, part: torch.Tensor, top: int, left: int) -> torch.Tensor:
    """``x`` with ``part`` in place of what was there. ``x`` belongs to the caller, and is written."""
    x[..., top : top + part.shape[2], left : left + part.shape[3]] = part
    return x


def check(photo, flow, paint, inner_flow, inner_paint, out, *, window) -> Spec:
    expect_float(NAME, "photo", photo)
    expect(NAME, "photo", photo, (-1, 3, -1, -1))
    b, _, height, width = photo.shape
    expect(NAME, "flow", flow, (-1, 2, -1, -1), dtype=photo.dtype, device=photo.device)
    frames = flow.shape[0]
    if b == 0 or frames % b:
        raise OpError(f"{NAME}: argument flow: expected a multiple of {b} frames, as photos, got {frames}")
    expect(NAME, "paint", paint, (frames, 4, *flow.shape[2:]), dtype=photo.dtype, device=photo.device)
    expect(NAME, "inner_flow", inner_flow, (frames, 2, -1, -1), dtype=photo.dtype, device=photo.device)
    rows, columns = inner_flow.shape[2:]
    expect(NAME, "inner_paint", inner_paint, (frames, 4, 2 * rows, 2 * columns), dtype=photo.dtype, device=photo.device)
    expect(NAME, "out", out, (frames, height, width, 3), dtype=torch.uint8, device=photo.device)
    for name, x in (("flow", flow), ("inner_flow", inner_flow)):
        if 0 in x.shape[2:]:
            raise OpError(f"{NAME}: argument {name}: expected at least one cell, got {list(x.shape)}")
    _check_window(window, height, width)
    sizes = {"photos": b, "frames": frames, "height": height, "width": width}
    sizes |= {"map_columns": flow.shape[3], "inner_columns": columns}
    return Spec(photo.device.type, photo.dtype, tuple(sizes.items()))


def _check_window(window: Sequence[int], height: int, width: int) -> None:
    top, left, rows, columns = window if len(window) == 4 else (-1, 0, 0, 0)
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > UNITS or left + columns > UNITS:
        expected = f"top, left, rows, columns in {UNITS}ths of the picture"
        raise OpError(f"{NAME}: argument window: expected {expected}, got {list(window)}")
    if 0 in (height, width) or height % UNITS or width % UNITS:
        raise OpError(f"{NAME}: argument photo: expected sides divisible by {UNITS}, got {height} x {width}")


def reference(photo, flow, paint, inner_flow, inner_paint, out, *, window) -> None:
    """N frames of B photos, as 8-bit pictures.

    Args:
        photo: [B, 3, H, W] in -1..1, floating, H and W divisible by 64.
        flow: [N, 2, h, w], N divisible by B: the first N / B frames belong to the first photo.
        paint: [N, 4, h, w]: share, and the paint times its share.
        inner_flow: [N, 2, h', w'], of the window.
        inner_paint: [N, 4, 2 h', 2 w'], of the window.
        out: uint8 [N, H, W, 3]. Written.
        window: top, left, rows and columns in 64ths of the picture's sides.
    """
    frames = moved_and_painted(photo, flow, paint, inner_flow, inner_paint, window)
    out.copy_(to_uint8(frames[:, :, None])[:, 0])


def _arguments(photo, flow, paint, inner_flow, inner_paint, out, *, window) -> tuple:
    """Those that csrc/ops/move_and_paint.h lists: addresses and sizes."""
    size = photo.shape[2:]
    return (
        *(t.data_ptr() for t in (photo, flow, paint, inner_flow, inner_paint, out)),
        (len(photo), len(flow), *size),
        flow.shape[2:],
        inner_flow.shape[2:],
        scaled(window, size),
        fade_width(size),
    )


def _cuda_unfit(spec: Spec) -> str:
    """A block holds a row of each map, of 6 or twice 4 and 2 numbers a column, and one of bytes."""
    outer, inner, width = (spec.get(name) or 0 for name in ("map_columns", "inner_columns", "width"))
    used = 24 * outer + 40 * inner + 3 * width
    return f"rows of all maps and of bytes: at most {CUDA_SHARED} bytes, got {used}" if used > CUDA_SHARED else ""


move_and_paint = Op(
    f"{NAME}(Tensor photo, Tensor flow, Tensor paint, Tensor inner_flow, Tensor inner_paint, Tensor(a!) out, *, "
    "int[] window)",
    check=check,
    reference=reference,
    backends=(
        native.cpp_backend(NAME, _arguments, dtypes=(torch.float32,), measured="audio_and_paint_cpu.json"),
        native.cuda_backend(NAME, _arguments, _cuda_unfit, dtypes=(torch.float32,)),
    ),
)
