"""Numbers from frames and landmarks; every one has a known answer on a constructed input.

Frames are uint8 [n, H, W, 3]; landmarks are MediaPipe's face mesh, (x, y) in pixels, [478, 2 or 3] of one picture or
[n, 478, 2 or 3]; NaN where no face was found. A curve is [n]. Levels are those of 0..255.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rest_fast.evaluation import measures
from rest_fast.evaluation.heads import blur
from rest_fast.units import FRAME

Array = NDArray[Any]

# Points of the mesh.
LIPS = (13, 14)  # inner edges of the upper and of the lower lip
EYES = (33, 263)  # outer corners: their distance is the unit of everything that opens
LIDS = ((159, 145), (386, 374))  # upper and lower lid of each eye
TOP, CHIN, SIDES = 10, 152, (234, 454)  # of the face's oval
# Corners of the eyes, bridge of the nose: neither speech nor blinks move them.
STILL = (33, 133, 362, 263, 168, 6, 197, 195)
SKIN = (151, 50, 280)  # middle of the forehead, both cheekbones

CLOSED = 0.25  # lips touch where the gap is below this share of its 95th percentile
BLINK, AWAKE = 0.5, 0.75  # a blink begins below the one and ends above the other share of the eyes' median opening
SHIFT, ROLL = 6 / 256, 1.7  # of the moved photo that sharpness is compared with: sides of the picture, degrees
NEAR = (3, 4, 5, 6)  # pixels from a cell border, on either side, of the lines that it is compared with
# A head in half widths and half heights of its oval, and by how many of the latter its middle lies higher.
HEAD = (1.9, 1.8, 0.25)
NARROW = 0.75  # half width of an oval seen from the front in half heights: one that is turned away looks narrower
SMOOTH = 5  # frames over which the place of a head is averaged before pictures are laid on each other
FINE = 1 / 128  # of the side: sigma of the blur that flicker is seen through; grain flickers when it is resampled


# -- the face in the frame


def similarity(landmarks: Array, photo: Array) -> Array:
    """What takes points of the photo to those of each frame, moved, rolled and scaled alone: [n, 2, 3].

    Least squares over :data:`STILL`; NaN where either has no face.
    """
    still = list(STILL)
    a, b = photo[still, :2].astype(np.float64), landmarks[:, still, :2].astype(np.float64)
    # As complex numbers a similarity is b = m a + c, whose least squares solution is a quotient of sums.
    source, target = a[:, 0] + 1j * a[:, 1], b[..., 0] + 1j * b[..., 1]
    middle, middles = source.mean(), target.mean(1)
    off = source - middle
    m = (target - middles[:, None]) @ off.conj() / (off @ off.conj()).real
    c = middles - m * middle
    return np.stack([np.stack([m.real, -m.imag, c.real], -1), np.stack([m.imag, m.real, c.imag], -1)], 1)


def smooth(curves: Array, span: int = SMOOTH) -> Array:
    """Running mean of curves [n, ...] over ``span`` frames, fewer at both ends; what is NaN does not count."""
    half, known = span // 2, np.isfinite(curves)
    total, count = (np.concatenate([np.zeros_like(x[:1]), np.cumsum(x, 0)]) for x in (
        np.where(known, curves, 0.0), known.astype(np.float64)
    ))  # fmt: skip
    n = np.arange(len(curves))
    first, last = np.maximum(n - half, 0), np.minimum(n + half + 1, len(curves))
    with np.errstate(invalid="ignore"):
        return (total[last] - total[first]) / (count[last] - count[first])


def growth(transforms: Array) -> float:
    """Mean size of a head over that in the photo, from what :func:`similarity` gives."""
    return float(np.nanmean(np.hypot(transforms[:, 0, 0], transforms[:, 1, 0])))


def sample(picture: Array, points: Array) -> Array:
    """Bilinear values of a picture [H, W, C] at points (x, y) in pixels [..., 2], its edges going on: fp32 [..., C]."""
    height, width = picture.shape[:2]
    grid = torch.from_numpy(np.ascontiguousarray(points, np.float32)).reshape(1, 1, -1, 2)
    grid = grid * 2 / torch.tensor([width - 1.0, height - 1.0]) - 1
    values = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
    found = F.grid_sample(values, grid, padding_mode="border", align_corners=True)
    return found[0, :, 0].T.reshape(*points.shape[:-1], picture.shape[2]).numpy()


def moved(photo: Array, transform: Array) -> Array:
    """A photo [H, W, 3] moved by [2, 3], which takes its points to those of the result: fp32 [H, W, 3]."""
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]].astype(np.float64)
    linear, shift = transform[:, :2], transform[:, 2]
    return sample(photo, (np.stack([x, y], -1) - shift) @ np.linalg.inv(linear).T)


def rolled(side: int, shift: float = SHIFT, degrees: float = ROLL) -> Array:
    """Roll about the middle of a square of ``side`` pixels and shift to the right (in sides): [2, 3]."""
    turn = np.exp(1j * np.radians(degrees))
    middle = (side - 1) / 2 * (1 + 1j)
    c = middle - turn * middle + shift * side
    return np.array([[turn.real, -turn.imag, c.real], [turn.imag, turn.real, c.imag]])


def resized(points: Array, times: float) -> Array:
    """Where points (x, y) of a picture lie once it is ``times`` as large; pixel k ends at its corners, k and k + 1."""
    return (points + 0.5) * times - 0.5


def resized_motion(transform: Array, times: float) -> Array:
    """The same motion of pictures ``times`` as large: [2, 3]."""
    linear, shift = transform[:, :2], transform[:, 2]
    return np.concatenate([linear, resized(linear @ resized(np.zeros(2), 1 / times) + shift, times)[:, None]], 1)


def face_box(landmarks: Array, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the landmarks of one picture, within it."""
    x, y = landmarks[:, 0], landmarks[:, 1]
    top, left = max(0, int(y.min())), max(0, int(x.min()))
    return slice(top, min(height, int(y.max()) + 1)), slice(left, min(width, int(x.max()) + 1))


def turned(landmarks: Array) -> float:
    """Degrees by which a head is turned away from the camera to either side, from the depth of the eyes' corners."""
    across = landmarks[EYES[1]] - landmarks[EYES[0]]
    return float(np.degrees(np.arctan2(across[2], np.hypot(across[0], across[1]))))


def tilted(landmarks: Array) -> float:
    """Degrees by which the line of the eyes is rolled from the horizontal."""
    across = landmarks[EYES[1]] - landmarks[EYES[0]]
    return float(np.degrees(np.arctan2(across[1], across[0])))


# -- the person


def identity(descriptors: Array, photo: Array) -> tuple[float, float]:
    """Mean and largest distance of descriptors [n, 128] to the photo's [128]; NaN rows do not count."""
    distance = np.linalg.norm(descriptors - photo, axis=1)
    known = distance[np.isfinite(distance)]
    return (float(known.mean()), float(known.max())) if len(known) else (np.nan, np.nan)


def detail(picture: Array) -> float:
    """Variance of the Laplacian of the grey levels of [H, W, 3], its edges left out."""
    grey = picture @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())


def sharpness(frame: Array, photo: Array, transform: Array, landmarks: Array) -> float:
    """Detail of a frame's face over that of the photo, moved bilinearly by ``transform`` [2, 3].

    ``landmarks`` [478, 2] are the frame's; the photo's face lies where ``transform`` takes it. Bilinear sampling itself
    costs a third of the detail and more: against the unmoved photo even a perfect warp would look soft.
    """
    height, width = frame.shape[:2]
    box = face_box(landmarks, height, width)
    return detail(frame[box].astype(np.float64)) / max(detail(moved(photo, transform)[box]), 1e-9)


# -- seams, background, flicker


def seams(frames: Iterable[Array], photo: Array, cell: int, box: tuple[slice, slice]) -> dict[int, float]:
    """Step of the change from the photo across each cell border over that across its neighbours: name of line -> ratio.

    Lines between columns ``cell k - 1`` and ``cell k`` of ``box`` are called by ``cell k``, those between rows by
    ``- cell k``. The neighbours are the lines :data:`NEAR` pixels away on both sides. Without any change: 1.
    """
    columns, rows = (np.zeros(n) for n in (photo.shape[1], photo.shape[0]))
    for frame in frames:
        change = frame.astype(np.float32) - photo
        # [k] is the step from k - 1 to k
        columns[1:] += np.abs(np.diff(change, axis=1))[box[0]].mean((0, 2))
        rows[1:] += np.abs(np.diff(change, axis=0))[:, box[1]].mean((1, 2))
    found = {}
    for steps, part, sign in ((columns, box[1], 1), (rows, box[0], -1)):
        for border in range(cell, len(steps), cell):
            near = [border + off for reach in NEAR for off in (-reach, reach)]
            if part.start <= border < part.stop and min(near) >= 1 and max(near) < len(steps):
                beside = steps[near].mean()
                found[sign * border] = float(steps[border] / beside) if beside > 0 else 1.0
    return found


def outside_head(landmarks: Array, height: int, width: int) -> Array:
    """What is surely background: bool [height, width].

    The mesh ends at the hairline and before the ears, so the head is taken as an ellipse of :data:`HEAD` sizes of the
    oval: room for hair, ears and a head that sways. Everything below the chin is left out, too: neck, shoulders and
    long hair belong to the person and may move along.
    """
    top, chin, left, right = (landmarks[i, :2].astype(np.float64) for i in (TOP, CHIN, *SIDES))
    up, side = (top - chin) / 2, (right - left) / 2
    middle = (top + chin) / 2 + HEAD[2] * up
    y, x = np.mgrid[:height, :width]
    off = np.stack([x, y], -1) - middle
    wide = max(float(np.hypot(*side)), NARROW * float(np.hypot(*up)))
    across = off @ side / float(np.hypot(*side)) / wide / HEAD[0]
    along = off @ up / (up @ up) / HEAD[1]
    above_chin = (np.stack([x, y], -1) - chin) @ up > 0
    return (across**2 + along**2 > 1) & above_chin


def background(frames: Iterable[Array], photo: Array, outside: Array) -> float:
    """Mean change of the pixels of ``outside`` [H, W] from the photo, in levels."""
    return float(np.mean([np.abs(frame[outside].astype(np.float32) - photo[outside]).mean() for frame in frames]))


def skin_points(landmarks: Array) -> Array:
    """Points (x, y) of the photo, a pixel apart, in discs of skin that speech hardly moves: [m, 2]."""
    eyes = landmarks[list(EYES), :2].astype(np.float64)
    radius = 0.12 * float(np.linalg.norm(eyes[0] - eyes[1]))
    steps = np.arange(-int(radius), int(radius) + 1)
    disc = np.array([(x, y) for y in steps for x in steps if x * x + y * y <= radius * radius], np.float64)
    return np.concatenate([landmarks[i, :2] + disc for i in SKIN])


def flicker(frames: Iterable[Array], transforms: Array, points: Array) -> float:
    """Mean size of the second difference of frames in time, in levels, at the same points of the skin.

    ``points`` [m, 2] are the photo's, ``transforms`` [n, 2, 3] take them to each frame. A steady change of light counts
    nothing; a level that alternates by a counts 4 a.
    """

    def seen(frame: Array) -> Array:
        channels = torch.from_numpy(np.ascontiguousarray(frame, np.float32)).permute(2, 0, 1)
        return blur(channels, FINE * frame.shape[0]).permute(1, 2, 0).numpy()

    held: list[Array] = []
    sums = []
    for frame, transform in zip(frames, transforms):
        if not np.isfinite(transform).all():
            held = []
            continue
        held = [*held[-2:], sample(seen(frame), points @ transform[:, :2].T + transform[:, 2])]
        if len(held) == 3:
            sums.append(np.abs(held[0] - 2 * held[1] + held[2]).mean())
    return float(np.mean(sums)) if sums else np.nan


# -- lips and eyes


def mouth_points(landmarks: Array) -> Array:
    """Landmarks [n, 478, 2 or 3] as :func:`rest_fast.evaluation.mouths.opening` takes them: [n, 4, 2]."""
    return landmarks[:, [*LIPS, *EYES], :2].astype(np.float64)


def eye_opening(landmarks: Array) -> Array:
    """Mean distance of the lids of both eyes over the distance of the eyes: [n]."""
    points = landmarks[..., :2].astype(np.float64)
    lids = [np.linalg.norm(points[:, a] - points[:, b], axis=1) for a, b in LIDS]
    return np.mean(lids, 0) / np.linalg.norm(points[:, EYES[0]] - points[:, EYES[1]], axis=1)


def blinks(opening: Array) -> int:
    """How often eyes close: below :data:`BLINK` of the median opening, until above :data:`AWAKE` of it."""
    share = opening[np.isfinite(opening)]
    share = share / max(float(np.median(share)), 1e-9) if len(share) else share
    count, closed = 0, False
    for value in share:
        count += int(not closed and value < BLINK)
        closed = value < BLINK or (closed and value <= AWAKE)
    return count


def envelope(samples: Array) -> Array:
    """Loudness of sound [n] at 16 kHz in each frame of video, [ceil(n / 640)]: root mean square, over three frames."""
    frames = -(-len(samples) // FRAME)
    power = np.pad(samples.astype(np.float64), (0, frames * FRAME - len(samples))).reshape(frames, FRAME)
    return smooth(np.sqrt(np.square(power).mean(1)), 3)


def follows(gap: Array, wanted: Array) -> tuple[float, float, float]:
    """How a gap follows a curve, over the frames of both: r frame by frame, the lag of the highest r, and that r.

    A positive lag, in frames, means that the lips come late.
    """
    n = min(len(gap), len(wanted))
    curve = measures.lag_correlations(gap[:n], wanted[:n])
    return measures.correlation(gap[:n], wanted[:n]), measures.best_lag(curve), float(curve.max())


def closed(gap: Array) -> Array:
    """Frames in which the lips touch, by :data:`CLOSED`: bool [n]."""
    return gap < CLOSED * float(np.percentile(gap, 95))


def each(frames: Array, stride: int) -> Iterator[tuple[int, Array]]:
    """Every ``stride``-th frame with its number, one in memory at a time."""
    for i in range(0, len(frames), stride):
        yield i, np.asarray(frames[i])
