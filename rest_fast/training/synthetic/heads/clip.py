"""Talking clips of photo-like heads, by the same voices, words and mouth tracks as the drawn clips."""

from __future__ import annotations

import numpy as np

from rest_fast.training.shards import FRAMES, LEAD, TAIL
from rest_fast.training.synthetic.clips import Clip, Style, generator
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.heads.studio import Studio
from rest_fast.training.synthetic.motion import head_motion, sway
from rest_fast.training.synthetic.speech import Phoneme, Voices, utterance
from rest_fast.training.synthetic.visemes import mouth_track
from rest_fast.units import FPS, FRAME, RATE

Array = np.ndarray
_LEFT = 0.3  # of a smile while its owner speaks
_FADE = 0.35  # seconds in which it comes and goes


def make_clip(split: str, index: int, frames: int = FRAMES, size: int = 128, voices: Voices = "espeak") -> Clip:
    """Draw and speak one clip, the same bits in every process. Every other photo (frame 0) is taken in mid-speech."""
    rng = generator(split, index)
    studio = Studio(rng, size)
    said = utterance(rng, split, (LEAD + frames * FRAME + TAIL) / RATE, voices)
    mouth = mouth_track(said.phonemes, said.samples, frames, offset=LEAD)
    spoken = said.samples[LEAD : LEAD + frames * FRAME]
    motion = head_motion(rng, mouth, spoken, from_rest=bool(rng.random() < 0.5))
    smile = smile_track(rng, said.phonemes, frames, LEAD / RATE)
    motion = np.concatenate([motion, smile[:, None]], 1)
    video, geometry = np.empty((frames, size, size, 3), np.uint8), np.empty((frames, 4), np.float32)
    for k, row in enumerate(motion):
        frame = studio.shoot(row)
        video[k], geometry[k] = studio.picture(frame), studio.measure(frame)[0]
    return Clip(video, said.samples, motion, geometry, said.text, said.voice)


def smile_track(
    rng: np.random.Generator, phonemes: tuple[Phoneme, ...], frames: int, offset: float, own: float | None = None
) -> Array:
    """float32 [frames], 0..1: a smile of the person's own, which fades while they speak: /u/ cannot be smiled.

    Args:
        phonemes: timed in seconds; frame 0 begins at `offset`.
        own: how much they smile when they are silent; None: drawn.
    """
    if own is None:
        own = rng.uniform(0.3, 1.0) if rng.random() < 0.45 else rng.uniform(0, 0.15)
    times = offset + (np.arange(frames) + 0.5) / FPS
    away = np.full(frames, np.inf)  # seconds to the nearest sound
    for phoneme in phonemes:
        if not phoneme.name.startswith("_"):
            away = np.minimum(away, np.maximum(np.maximum(phoneme.start - times, times - phoneme.end), 0))
    calm = np.clip(away / _FADE, 0, 1)
    calm[0] = 1  # in the photo nobody has begun
    follow = np.empty(frames)
    level = 1.0
    for k in range(frames):
        level += (calm[k] - level) * (1 / (FPS * _FADE / 2))
        follow[k] = level
    track = own * (_LEFT + (1 - _LEFT) * follow) + 0.15 * own * sway(rng, frames)
    return np.clip(track, 0, 1).astype(np.float32)


HEADS = Style("heads", make_clip, HEAD_MOTION)
