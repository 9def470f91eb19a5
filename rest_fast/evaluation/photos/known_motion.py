"""Drives the motion VAE's decoder by motion that is known, with no transformer and no voice's model between.

What is spoken gives the mouth (:mod:`rest_fast.training.synthetic.visemes`), its stress the head's nods. The photo's
own motion is read by the encoder, and the frames' codes are the photo's plus what the known motion differs from it, so
that a person who tilts the head keeps the tilt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.config import TEMPORAL
from rest_fast.evaluation.photos.drivers import Driver, Film, Portrait, Sound
from rest_fast.models.vae import TemporalVAE, motion, to_uint8
from rest_fast.training.motion_clips import from_photo, modest
from rest_fast.training.motion_pairs import labels_to_codes, scales
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.motion import head_motion
from rest_fast.training.synthetic.visemes import mouth_track
from rest_fast.units import FRAME, from_levels

SMILE = 0.3  # share of the photo's smile that stays while a mouth speaks
Array = NDArray


def spoken_motion(sound: Sound, seed: int = 0) -> Array:
    """Motion [n, 14] of a sound whose phonemes are known, in HEAD_MOTION's order; of the photo's smile a share
    stays."""
    assert sound.phonemes, f"known motion: expected a sound with phonemes, got {sound.name}"
    mouth = mouth_track(sound.phonemes, sound.samples, sound.frames)
    whole = np.pad(sound.samples, (0, sound.frames * FRAME - len(sound.samples)))
    rows = head_motion(np.random.default_rng(seed), mouth, whole)
    made = np.zeros((len(rows), len(HEAD_MOTION)), np.float32)
    made[:, : rows.shape[1]] = rows
    made[:, HEAD_MOTION.index("smile")] = SMILE
    return modest(made)


def labels_of(codes: torch.Tensor) -> torch.Tensor:
    """Motion labels [..., 14] that codes [..., c, 4, 4] stand for."""
    found: torch.Tensor = codes.flatten(-3) @ labels_to_codes(codes.shape[-3]).to(codes) / scales().to(codes)
    return found


def driven(photo: torch.Tensor, known: Array) -> torch.Tensor:
    """Codes [1, n, c, 4, 4] of known motion [n, 14] behind the photo's own code [1, c, 4, 4]."""
    own = labels_of(photo)
    change = torch.from_numpy(from_photo(own[0].numpy(), known)) - own
    moved = (change * scales()) @ labels_to_codes(photo.shape[1]).T
    return (photo + moved.unflatten(1, photo.shape[1:]))[None]


def known_motion(
    vae: TemporalVAE, known: Array, *, name: str, sound: Sound | None = None, gap: Array | None = None
) -> Driver:
    """A driver of the decoder by motion [n, 14]; ``gap`` as of :class:`Driver`."""
    return Driver(name, len(known), _film(vae, known), sound, gap)


def _film(vae: TemporalVAE, known: Array) -> Film:
    @torch.inference_mode()
    def film(portrait: Portrait) -> Iterator[Array]:
        pixels = from_levels(torch.from_numpy(portrait.picture)).permute(2, 0, 1)[None, :, None]
        reference = vae.encode(pixels)
        stream = vae.stream(reference=pixels)
        stream.decode(reference)
        codes = driven(motion.to_codes(denormalised(vae, reference))[0, -1:], known)
        lacking = -len(known) % TEMPORAL
        codes = torch.cat([codes, codes[:, -1:].expand(-1, lacking, -1, -1, -1)], 1)
        latents = (motion.from_codes(codes) - vae.latents_mean) / vae.latents_std
        for piece in latents.split(3, 2):
            yield to_uint8(stream.decode(piece))[0].numpy()

    return film


def denormalised(vae: TemporalVAE, latents: torch.Tensor) -> torch.Tensor:
    return latents * vae.latents_std + vae.latents_mean
