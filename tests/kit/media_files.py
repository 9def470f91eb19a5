"""Pictures, sounds and files made for the tests of media."""

from __future__ import annotations

import io
import re
import struct
import wave
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rest_fast.media import MediaError


def refuses(*words: str):
    """One MediaError of one line that says each of ``words``."""
    pattern = "^" + "".join(f"(?=.*{re.escape(word)})" for word in words) + "[^\n]+$"
    return pytest.raises(MediaError, match=pattern)


def photo(height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth coloured picture without any symmetry."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3].astype(np.float64)
    return np.uint8(128 + 60 * np.sin(x / 11 + c) + 50 * np.cos(y / 9 - 2 * c) + x * y / 900 % 16)


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _png(width: int, height: int, bits: int, rows: bytes, profile: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    colours = chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile)) if profile else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + colours + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and holds no pixel."""
    return _png(width, height, 8, b"")


def png16(values: np.ndarray, profile: bytes = b"") -> bytes:
    """uint16 [H, W, 3] as a PNG, which Pillow reads but does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return _png(values.shape[1], values.shape[0], 16, zlib.compress(rows), profile)


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def chirp(rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """float32 [n, channels]: sweeps that correlate with themselves at lag 0 only."""
    t = np.arange(round(rate * seconds))[:, None] / rate
    start = 200 + 90 * np.arange(channels)
    return np.float32(0.4 * np.sin(2 * np.pi * (start * t + 700 * t**2)) * np.minimum(1, 8 * t))


def sine(rate: int, hz: float = 440, peak: float = 0.5, seconds: float = 1.0) -> np.ndarray:
    """float32 [n, 1]."""
    return np.float32(peak * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate))[:, None]


def tone(samples: np.ndarray, rate: int) -> tuple[float, float]:
    """Pitch (Hz, to 0.1) and peak of the strongest sine in the middle half of samples [n]."""
    middle = samples[len(samples) // 4 : len(samples) * 3 // 4].astype(np.float64)
    window = np.hanning(len(middle))
    spectrum = np.abs(np.fft.rfft(middle * window, 16 * len(middle)))
    return int(spectrum.argmax()) * rate / (16 * len(middle)), float(2 * spectrum.max() / window.sum())


def lag(got: np.ndarray, want: np.ndarray) -> int:
    """Samples by which ``got`` [n] comes later than ``want`` [n]: where they correlate most."""
    size = 1 << (len(got) + len(want)).bit_length()
    peak = int(np.fft.irfft(np.fft.rfft(got, size) * np.fft.rfft(want, size).conj(), size).argmax())
    return peak - size if peak > size // 2 else peak


def encode_sound(path: Path, codec: str, samples: np.ndarray, rate: int, **options: str) -> None:
    """float32 [n, channels] as a file; ``options`` are those of the container."""
    with av.open(str(path), "w", container_options=options) as file:
        layout = LAYOUTS[samples.shape[1]]
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def wav(values: np.ndarray, rate: int, width: int) -> bytes:
    """Integers [n, channels] as WAV of ``width`` bytes a sample, by the standard library."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((values.shape[1], width, rate, 0, "NONE", ""))
        shifted = np.ascontiguousarray(values + (128 if width == 1 else 0)).astype("<i8")
        out.writeframes(shifted.reshape(-1, 1).view(np.uint8)[:, :width].tobytes())
    return file.getvalue()


def riff(form: bytes, data: bytes, order: str = "<", size: int | None = None, before: bytes = b"") -> bytes:
    """A WAV of a ``fmt `` chunk and samples, little-endian or (">") big-endian; ``before``: chunks in between."""
    head = b"WAVEfmt " + struct.pack(order + "I", len(form)) + form + before
    head += b"data" + struct.pack(order + "I", len(data) if size is None else size)
    kind = b"RIFF" if order == "<" else b"RIFX"
    return kind + struct.pack(order + "I", len(head) + len(data)) + head + data


def float_wav(values: np.ndarray, rate: int) -> bytes:
    """Floats [n] as WAV of IEEE floats, byte by byte."""
    bits = values.dtype.itemsize
    return riff(struct.pack("<HHIIHH", 3, 1, rate, rate * bits, bits, bits * 8), values.tobytes())


def wav_extensible(
    values: np.ndarray, rate: int, bits: int, valid: int | None = None, mask: int = 0, order: str = "<"
) -> bytes:
    """Integers [n, channels] of ``bits`` as WAVE_EXTENSIBLE, of which the upper ``valid`` ones count."""
    width, channels = bits // 8, values.shape[1]
    form = struct.pack(order + "HHIIHH", 0xFFFE, channels, rate, rate * channels * width, channels * width, bits)
    form += struct.pack(order + "HHI", 22, valid or bits, mask)
    form += struct.pack(order + "IHH", 1, 0, 16) + bytes.fromhex("800000aa00389b71")  # PCM, by its GUID
    wide = np.ascontiguousarray(values).astype(order + "i8").reshape(-1, 1).view(np.uint8)
    return riff(form, (wide[:, :width] if order == "<" else wide[:, -width:]).tobytes(), order)


def id3(size: int, version: int = 3) -> bytes:
    """An ID3v2 tag with a title of about ``size`` bytes."""
    body = b"TIT2" + struct.pack(">IH", size + 1, 0) + b"\0" + b"t" * size
    length = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3" + bytes([version, 0, 0]) + length + body


def film(n: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [n, H, W, 3]: the photo drifting, every frame different."""
    return np.stack([np.roll(photo(height, width * 2), k, 1)[:, :width] for k in range(n)])


def psnr(got: np.ndarray, want: np.ndarray) -> float:
    """dB of the worst frame."""
    return float(10 * np.log10(255**2 / ((got - want.astype(float)) ** 2).mean((1, 2, 3)).max()))
