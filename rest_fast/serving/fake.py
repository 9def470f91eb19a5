"""An engine whose pictures say what they are, to test front ends with: whose frame, of which epoch, with which sound.

It is the engine with the smallest model, at random weights, so that times, queues, interrupts and refusals are the real
ones. Each picture is a board of 8 x 8 black and white fields, which survive every codec.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.avatar import Avatar
from rest_fast.config import preset
from rest_fast.media.av_frames import as_int16
from rest_fast.model import Model
from rest_fast.streaming.block import Block, Made
from rest_fast.streaming.engine import Engine
from rest_fast.streaming.session import Session
from rest_fast.units import FPS

FIELDS = 8  # of a board along one side
SIDE = 128  # pixels: a field fills a macroblock. Of smaller ones the noise filter of WebRTC's VP8 keeps old content
_SALT = 0xA5  # so that an all black and an all white board mean nothing


@dataclass(frozen=True)
class Code:
    """What a picture says."""

    viewer: int  # sessions that the engine had opened before, 0..255
    epoch: int  # 0..255
    frame: int  # of the stream, 0..65535
    level: int  # of the frame's sound: 0..255, 255 full scale (RMS)

    def bytes(self) -> list[int]:
        return [self.viewer, self.epoch, self.frame >> 8, self.frame & 255, self.level]


def paint(code: Code, side: int) -> NDArray[np.uint8]:
    """The board as a picture uint8 [side, side, 3]."""
    content = [*code.bytes(), 0, 0]
    rows = np.array([*content, _check(content)], np.uint8)
    board = np.unpackbits(rows[:, None], axis=1) * np.uint8(255)
    grey = board.repeat(side // FIELDS, 0).repeat(side // FIELDS, 1)
    return np.repeat(grey[:, :, None], 3, 2)


def read(picture: NDArray[np.uint8]) -> Code | None:
    """What a picture [S, S, 3] says, after a codec, too; None for a picture that is none of :func:`paint`."""
    cell = picture.shape[0] // FIELDS
    middle = picture[: cell * FIELDS, : cell * FIELDS].astype(np.float32).mean(2)
    inner = slice(cell // 4, cell - cell // 4)
    fields = middle.reshape(FIELDS, cell, FIELDS, cell)[:, inner, :, inner].mean((1, 3))
    rows = np.packbits(fields > 127.5, axis=1)[:, 0].tolist()
    if _check(rows[:-1]) != rows[-1]:
        return None
    viewer, epoch, high, low, level = rows[:5]
    return Code(viewer, epoch, high << 8 | low, level)


def _check(rows: list[int]) -> int:
    total = _SALT
    for row in rows:
        total = (total * 31 + row) % 256
    return total


def level_of(samples: NDArray[Any]) -> int:
    """The level of a frame's sound as a :class:`Code` has it."""
    if not len(samples):
        return 0
    sound = as_int16(samples).astype(np.float64) / 32768
    return round(255 * min(1.0, float(np.sqrt(np.square(sound).mean()))))


class FakeSession(Session):
    """A session whose pictures are boards. ``viewer``: its number."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        assert isinstance(self.engine, FakeEngine), "fake session: expected a fake engine"
        self.viewer = next(self.engine.numbers) % 256
        self.avatar = replace(self.avatar, picture=np.full((SIDE, SIDE, 3), 128, np.uint8))  # as large as its frames

    def _handed_out(self, made: Made) -> Block:
        block = super()._handed_out(made)
        count = len(block.video)
        borders = np.rint(np.arange(count + 1) * len(block.audio) / count).astype(int)
        boards = []
        for k in range(count):
            level = level_of(block.audio[borders[k] : borders[k + 1]])
            frame = (round(block.pts * FPS) + k) % 65536
            boards.append(paint(Code(self.viewer, block.epoch % 256, frame, level), SIDE))
        video = np.stack(boards)
        self._lasts[-1] = (block.pts, video[-1:])
        return replace(block, video=video)


class FakeEngine(Engine):
    """:class:`rest_fast.Engine` whose pictures are boards. ``avatar``: one that its sessions take.

    Args:
        model: whose times are to be real; None: the smallest, at random weights.
    """

    session_type = FakeSession

    def __init__(self, *, model: Model | None = None, sessions: int = 8, admission: bool = False, **options: Any):
        if model is None:
            torch.manual_seed(0)
            small = preset("toy").replace(sampling__steps=1, sampling__guidance=1.0)
            model = Model(small).eval().requires_grad_(False)
        self.numbers = itertools.count()
        self.avatar: Avatar = model.prepare(np.full((64, 64, 3), 128, np.uint8), crop="center")
        sampling = model.config.sampling
        super().__init__(model, sampling, sessions=sessions, admission=admission, **options)
