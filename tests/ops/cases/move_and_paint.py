"""Cases of ``move_and_paint``, for the tests of all its backends: ``run`` returns the frames that a call leaves."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from rest_fast.ops.move_and_paint import FADE, reference
from tests.ops import calls

NAME = "move_and_paint"
Run = Callable[[calls.Call], torch.Tensor]
SIZES = [(64, 128), (128, 64)]
WINDOWS = [(8, 16, 40, 32), (0, 0, 64, 64), (63, 0, 1, 64)]
NO_FLOWS = [math.nan, math.inf, -math.inf, 3e38]


def unmoved(**kwargs) -> calls.Call:
    """A call whose maps are all zero: no flow, no paint."""
    call = calls.move_and_paint(**kwargs)
    for name in ("flow", "paint", "inner_flow", "inner_paint"):
        call[name] = torch.zeros_like(call[name])
    return call


def in_levels(photo: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] -> [B, H, W, 3], in 0..255."""
    return ((photo + 1) * 127.5).permute(0, 2, 3, 1)


def one_pixel(call: calls.Call, n: int, y: int, x: int) -> list[float]:
    """A pixel of frame n as the docstring defines it, in floats, without a tensor operation."""
    (height, width), frames = call["photo"].shape[2:], len(call["flow"])
    top, left, rows, columns = (v * s // 64 for v, s in zip(call["window"], (height, width) * 2))

    def read(picture: torch.Tensor, v: float, u: float) -> list[float]:
        """Bilinearly at row v and column u; outside lies the border."""
        h, w = picture.shape[1:]
        v, u = min(max(v, 0), h - 1), min(max(u, 0), w - 1)
        i, j = min(int(v), h - 2), min(int(u), w - 2)
        corners = ((i, j, 1 - v + i, 1 - u + j), (i, j + 1, 1 - v + i, u - j))
        corners += ((i + 1, j, v - i, 1 - u + j), (i + 1, j + 1, v - i, u - j))
        return [sum(float(c[a, b]) * p * q for a, b, p, q in corners) for c in picture]

    def enlarged(name: str, v: int, u: int, size: tuple[int, int]) -> list[float]:
        small = call[name][n]
        rows, columns = small.shape[1:]
        return read(small, (v + 0.5) * rows / size[0] - 0.5, (u + 0.5) * columns / size[1] - 0.5)

    flow, (share, *paint) = (enlarged(name, y, x, (height, width)) for name in ("flow", "paint"))
    inside = top <= y < top + rows and left <= x < left + columns
    fade = 0.0
    if inside:
        depths = (min(i, size - 1 - i) for i, size in ((y - top, rows), (x - left, columns)))
        fade = math.prod(min(depth / (FADE * height // 64), 1) for depth in depths)
        more = enlarged("inner_flow", y - top, x - left, (rows, columns))
        flow = [a + fade * b for a, b in zip(flow, more)]
    photo = call["photo"][n * len(call["photo"]) // frames]
    colour = read(photo, y + height * flow[1], x + width * flow[0])
    colour = [c * (1 - share) + p for c, p in zip(colour, paint)]
    if inside:
        share, *paint = enlarged("inner_paint", y - top, x - left, (rows, columns))
        colour = [c * (1 - fade * share) + fade * p for c, p in zip(colour, paint)]
    return [(c + 1) * 127.5 for c in colour]


def check_nothing_moved_and_nothing_painted_is_the_photo(run: Run) -> None:
    call = unmoved()
    shown = run(call)
    want = in_levels(call["photo"]).round().to(torch.uint8).repeat_interleave(2, 0)
    assert (shown.int() - want.int()).abs().max() <= 1  # x + 0 x share may round to the other side of a half
    assert (shown == want).float().mean() > 0.999


def check_a_flow_by_whole_pixels(run: Run) -> None:
    call = unmoved()
    height, width = call["photo"].shape[2:]
    call["flow"][:, 0], call["flow"][:, 1] = 3 / width, -5 / height  # shown here: what is 3 to the right and 5 above
    rows, columns = (torch.arange(height) - 5).clamp(0), (torch.arange(width) + 3).clamp(max=width - 1)
    want = in_levels(call["photo"])[:, rows][:, :, columns].repeat_interleave(2, 0)
    assert (run(call) - want).abs().max() <= 0.5 + 0.02  # a place is right to 1e-5 pixels, of 255 levels


def check_pixels_by_hand(run: Run, size: tuple[int, int]) -> None:
    """In the middle and at borders of picture and window, each as written down in the op's docstring."""
    call = calls.move_and_paint(size=size)
    shown = run(call)
    places = torch.randint(0, 10**6, (60, 2), generator=torch.Generator().manual_seed(3)).tolist()
    for i, (y, x) in enumerate([*places, (0, 0), (size[0] - 1, size[1] - 1)]):
        n, y, x = i % 4, y % size[0], x % size[1]
        want = torch.tensor(one_pixel(call, n, y, x)).clamp(0, 255)
        assert (shown[n, y, x] - want).abs().max() <= 0.5 + 0.02, (n, y, x)


def check_like_the_reference(run: Run, **sizes: object) -> None:
    """Both round sums of fp32 products; a level differs only where a value lies within 1e-4 of the border of two."""
    call = calls.move_and_paint(**sizes)
    args, kwargs = calls.split(NAME, call | {"out": torch.empty_like(call["out"])})
    reference(*args, **kwargs)
    one, other = run(call).int(), args[-1].int()
    assert (one - other).abs().max() <= 1
    assert (one != other).float().mean() < 1e-3


def check_frames_alone(run: Run, size: tuple[int, int]) -> None:
    call = calls.move_and_paint(size=size, frames=6)
    whole = run(call)
    for n in range(6):
        names = ("flow", "paint", "inner_flow", "inner_paint", "out")
        alone = call | {name: call[name][n : n + 1] for name in names} | {"photo": call["photo"][n // 3 : n // 3 + 1]}
        assert torch.equal(run(alone)[0], whole[n])


def check_no_flow_leaves_the_photo(run: Run, value: float) -> None:
    """Whatever a flow is, what is read lies in the photo: elsewhere it is as it was."""
    call = calls.move_and_paint(size=(64, 64))
    before = run(call)
    call["flow"][0, 0, 2, 3] = value
    after = run(call)
    assert torch.equal(after[1:], before[1:])
    assert torch.equal(after[0, :10], before[0, :10])
