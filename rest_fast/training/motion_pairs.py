"""What the motion VAE's decoder learns from: pairs of drawn heads, made more various while they are read.

The flow from photo to frame is known, so whatever is laid over the photo, a texture or other colours, can be carried
along exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rest_fast.models.vae.motion import CELLS, WORK, at_work_size, moved
from rest_fast.training.flow import pick, step_generator
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.heads.pairs import PLACES
from rest_fast.units import from_levels

# What one number of a motion is worth beside the others: they then deviate by about 1.
SCALES = dict.fromkeys(HEAD_MOTION, 3.0) | {
    "dx": 0.3, "dy": 0.4, "roll": 16.0, "yaw": 2.0, "pitch": 2.5, "width": 2.0, "brow": 2.0
}  # fmt: skip
POSE = ("dx", "dy", "roll", "yaw", "pitch")  # where the head is
MIRRORED = ("dx", "roll", "yaw")  # change their sign when a picture is mirrored
WALL, HIDDEN, SEEN = 0, 1, 2  # of ``visible``
GRAINS = (4, 12, 32)  # cells a side of the noise in textures


class PairsLike(Protocol):
    """People in number: of person ``n`` a dataclass as :class:`rest_fast.training.synthetic.heads.pairs.Pairs`."""

    def __len__(self) -> int: ...

    def __getitem__(self, n: int) -> object: ...


def scales() -> torch.Tensor:
    return torch.tensor([SCALES[name] for name in HEAD_MOTION])


def mirror() -> torch.Tensor:
    return torch.tensor([-1.0 if name in MIRRORED else 1.0 for name in HEAD_MOTION])


def labels_to_codes(channels: int) -> torch.Tensor:
    """Orthonormal columns [c 16, 14]: the codes that stand for scaled motion labels until an encoder makes codes.

    Fixed, so that decoder and encoder agree on them without having met.
    """
    g = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(channels * CELLS**2, len(HEAD_MOTION), generator=g))[0]


def pose_directions(channels: int) -> torch.Tensor:
    """Those of the columns that say where the head is, [c 16, 5]."""
    return labels_to_codes(channels)[:, [HEAD_MOTION.index(name) for name in POSE]]


@dataclass(eq=False)
class PairBatch:
    """B photos and F frames of each; G cells of labels along a side."""

    photo: torch.Tensor  # [B, 3, 128, 128] in -1..1
    frames: torch.Tensor  # [B, F, 3, 128, 128]
    flow: (
        torch.Tensor
    )  # [B, F, 2, G, G], in sides of the picture, from a point of the frame to where it is in the photo
    visible: torch.Tensor  # [B, F, 1, G, G]: WALL that does not move; HIDDEN in the photo; head that is SEEN in it
    focus: torch.Tensor  # [B, F, 1, G, G], 1 in the middle of the mouth and of the eyes, falling to 0 around them
    labels: torch.Tensor  # [B, 1 + F, 14], scaled; the photo's first

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(*(getattr(self, f.name).to(device) for f in fields(self)))


class PairBatches:
    """Batches of a seed, the same after a resume."""

    def __init__(self, pairs: PairsLike, batch: int, seed: int, frames: int = 3, textures: list[NDArray] | None = None):
        """``textures``: pictures uint8 [H, W, 3] of at least 128 px, laid over heads and walls."""
        self.pairs, self.batch, self.seed, self.frames = pairs, batch, seed, frames
        self.textures = [
            from_levels(torch.from_numpy(np.ascontiguousarray(t)).permute(2, 0, 1)) for t in textures or ()
        ]
        self.scales, self.mirror = scales(), mirror()

    def __call__(self, step: int, rows: range) -> PairBatch:
        index = pick(len(self.pairs), self.batch, self.seed, step)
        made = [self._person(index[row], step_generator(self.seed, step, row)) for row in rows]
        return PairBatch(*(torch.stack(column) for column in zip(*made)))

    def _person(self, n: int, g: torch.Generator) -> tuple[torch.Tensor, ...]:
        person = self.pairs[n]
        count = len(person.motion)  # type: ignore[attr-defined]
        picks = [0, *(1 + torch.randperm(count - 1, generator=g)[: self.frames]).tolist()]
        names = ("images", "flow", "visible", "places", "motion")
        read = {name: np.array(getattr(person, name)[picks]) for name in names}
        images = at_work_size(from_levels(torch.from_numpy(read["images"]).permute(0, 3, 1, 2)))
        flow = torch.from_numpy(read["flow"][1:].astype(np.float32)).permute(0, 3, 1, 2) / WORK
        before, visible = (torch.from_numpy(v)[:, None] for v in (read["visible"][:1], read["visible"][1:]))
        # a wall that the head of the photo covers is hidden, too
        visible = torch.where((visible == WALL) & (before != WALL), HIDDEN, visible)
        labels = torch.from_numpy(read["motion"]) * self.scales
        focus = focus_on(torch.from_numpy(read["places"][1:]), flow.shape[3])
        if torch.rand(1, generator=g) < 0.5:
            images, visible, focus, labels = images.flip(3), visible.flip(3), focus.flip(3), labels * self.mirror
            flow = flow.flip(3) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        images = self._textured(images, flow, visible, g)
        images = coloured(images, g)
        photo = images[0] + 0.04 * torch.rand(1, generator=g) * torch.randn(images[0].shape, generator=g)
        return photo.clamp(-1, 1), images[1:], flow, visible, focus, labels

    def _textured(
        self, images: torch.Tensor, flow: torch.Tensor, visible: torch.Tensor, g: torch.Generator
    ) -> torch.Tensor:
        """A texture over photo and frames, carried along by the true flow; what the photo hides has none."""
        strength = torch.rand(len(GRAINS), generator=g) ** 2 * 0.3
        texture = sum(
            s * larger(torch.randn(1, 3, cells, cells, generator=g), WORK) for s, cells in zip(strength, GRAINS)
        )
        assert isinstance(texture, torch.Tensor)
        if self.textures and torch.rand(1, generator=g) < 0.5:
            other = self.textures[int(torch.randint(len(self.textures), (1,), generator=g))]
            y, x = (int(torch.randint(size - WORK + 1, (1,), generator=g)) for size in other.shape[1:])
            piece = other[None, :, y : y + WORK, x : x + WORK]
            texture = texture + 0.6 * torch.rand(1, generator=g) * (piece - piece.mean((2, 3), keepdim=True))
        seen, wall = (larger((visible == kind).float(), WORK) for kind in (SEEN, WALL))
        # the wall does not move; neither does what is laid over it
        carried = moved(texture, larger(flow, WORK)) * seen + texture * wall
        both = torch.cat([texture, carried])
        return (images + both * (1 + images) * 0.6).clamp(-1, 1)


def focus_on(places: torch.Tensor, cells: int) -> torch.Tensor:
    """The focus [F, 1, G, G] of places [F, 10, 2] in pixels of 128 (:data:`PLACES`)."""
    x, y = ((torch.arange(cells) + 0.5) * (WORK / cells) for _ in range(2))
    at = {name: places[:, PLACES.index(name)] for name in ("right_eye", "left_eye", "upper_lip", "lower_lip")}
    apart = (at["right_eye"] - at["left_eye"]).norm(dim=1).clamp(min=8)
    mouth = (at["upper_lip"] + at["lower_lip"]) / 2
    found = torch.zeros(len(places), cells, cells)
    for place, reach in ((mouth, 0.45), (at["right_eye"], 0.28), (at["left_eye"], 0.28)):
        off = torch.stack(torch.broadcast_tensors((x - place[:, :1])[:, None], (y - place[:, 1:])[:, :, None]))
        found = torch.maximum(found, (-(off / (reach * apart)[:, None, None]).square().sum(0)).exp())
    return found[:, None]


def coloured(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Other light for all pictures [N, 3, H, W] of a person: gamma, gains of the channels, saturation."""

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=g)

    light = ((images + 1) / 2) ** draw(0.6, 1.6, 1) * draw(0.8, 1.2, 1) * draw(0.8, 1.2, 3, 1, 1)
    light = torch.lerp(light.mean(1, keepdim=True), light, draw(0.0, 1.6, 1))
    return light.clamp(0, 1) * 2 - 1


def larger(x: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
