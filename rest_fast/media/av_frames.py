"""Pictures and sound as PyAV's frames, which WebRTC and all encoders take, and sound from them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from rest_fast.media.sources import UInt8, media_error
from rest_fast.units import FPS

CLOCK = 90_000  # units of a second in timestamps of video, as in WebRTC
PACKET = 0.02  # seconds of a frame of sound
COLOURS = ("ITU709", "ITU601")
SAMPLES = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}  # sound as bytes


def video_frame(picture: UInt8, index: int, colours: str = "ITU709") -> av.VideoFrame:
    """A picture uint8 [H, W, 3] as I420, shown at ``index`` / 25 s.

    ``colours``: ``ITU709`` as files say it, or ``ITU601``, which receivers of WebRTC assume.
    """
    if colours not in COLOURS:
        raise media_error("colours", " or ".join(COLOURS), repr(colours))
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
    frame = rgb.reformat(format="yuv420p", dst_colorspace=colours, dst_color_range="MPEG")
    frame.pts, frame.time_base = index * (CLOCK // FPS), Fraction(1, CLOCK)
    return frame


def sound_frame(samples: NDArray[np.int16], rate: int, first: int) -> av.AudioFrame:
    """Samples int16 [n] or [n, 1 or 2] as one packed frame that begins ``first`` samples after time 0."""
    sound = samples[:, None] if samples.ndim == 1 else samples
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(sound).reshape(1, -1), "s16", "mono" if sound.shape[1] == 1 else "stereo"
    )
    frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
    return frame


def sound_frames(samples: NDArray[np.int16], rate: int, first: int) -> list[av.AudioFrame]:
    """The same in frames of 20 ms, as WebRTC sends them; the last one may be shorter."""
    size = round(PACKET * rate)
    return [sound_frame(samples[at : at + size], rate, first + at) for at in range(0, len(samples), size)]


def as_int16(samples: NDArray[Any]) -> NDArray[np.int16]:
    """Samples int16, or float in -1..1, as int16 of the same shape."""
    if samples.dtype == np.int16:
        return samples
    return np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def samples_of(frame: av.AudioFrame) -> NDArray[Any]:
    """Samples [n, channels] of a frame, planar or packed, int16 or float32."""
    name = frame.format.name
    kind = name.removesuffix("p")
    if kind not in ("s16", "s32", "flt", "dbl"):
        raise media_error("sound", "a frame of s16, s32, flt or dbl samples", name)
    array = frame.to_ndarray()
    channels = len(frame.layout.channels)
    sound = array.T if frame.format.is_planar else array.reshape(-1, channels)
    return sound if kind == "s16" else _floats(sound)


def samples_of_bytes(data: bytes, form: str, channels: int = 1, planar: bool = False) -> NDArray[Any]:
    """Samples [n, channels] of bytes in one of :data:`SAMPLES`, channel after channel if ``planar``."""
    if form not in SAMPLES:
        raise media_error("sound", f"bytes of {', '.join(SAMPLES)}", repr(form))
    if type(channels) is not int or not 1 <= channels <= 8:
        raise media_error("sound", "1..8 channels", repr(channels))
    kind = np.dtype(SAMPLES[form])
    if len(data) % (kind.itemsize * channels):
        raise media_error("sound", f"whole samples of {kind.itemsize * channels} bytes ({form})", f"{len(data)} bytes")
    flat = np.frombuffer(data, kind)
    sound = flat.reshape(channels, -1).T if planar else flat.reshape(-1, channels)
    return sound.astype(np.int16) if form == "s16le" else _floats(sound)


def _floats(sound: NDArray[Any]) -> NDArray[np.float32]:
    scale = np.float32(2**31) if sound.dtype.kind == "i" else np.float32(1)
    made: NDArray[np.float32] = sound.astype(np.float32) / scale
    return made
