"""Reads WAV by its own header: RIFF, big-endian RIFX and RF64 with plain samples, also after an ID3 tag.

FFmpeg does not read these, because it takes 24 valid bits in 32 for packed 24, takes RIFX for noise, and believes a
wrong byte rate. Other codecs in a WAV are left to FFmpeg, after a check that the file is complete.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from rest_fast.media.sources import Float32, media_error

LOOK = 1 << 16  # bytes in which the header of a stream that cannot be rewound must lie
LACK = 0.01  # s that may be missing: headers exist that count a few bytes too many
UNKNOWN = 0x7FFFF000  # sizes from here on, and 0, are those of a writer that could not know the end
ORDERS = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">"}
GUID = 0, 0x10, bytes.fromhex("800000aa00389b71")  # of a WAVE_EXTENSIBLE format, after its old tag
SPEAKERS = ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR")  # bits of a channel mask
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


@dataclass(frozen=True)
class Header:
    """``kind``: a sample as in the file, a byte order, ``u``, ``i`` or ``f``, and its bytes."""

    rate: int
    channels: int
    kind: str
    layout: tuple[str, ...]
    size: int | None  # bytes of samples that it promises, None where its writer could not know

    @property
    def frame(self) -> int:
        """Bytes of one sample of all channels, computed, since too many headers are wrong about it."""
        return self.channels * int(self.kind[2:])

    def seconds(self, size: int) -> float:
        return size / (self.frame * self.rate)

    def check(self, name: str, held: int) -> None:
        """MediaError if a file that ends after ``held`` bytes of samples has less than was promised."""
        if self.size is not None and self.seconds(self.size) - self.seconds(held) > LACK:
            there = f"the header promises {self.seconds(self.size):.2f} s, the file holds {self.seconds(held):.2f} s"
            raise media_error(name, "a whole WAV", f"truncated: {there}")


def id3_length(head: bytes) -> int:
    """Bytes of the ID3v2 tag that ``head`` begins with, 0 without one."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0)))
    return 10 + size + (10 if head[5] & 0x10 else 0)


def open_wav(name: str, file: IO[bytes]) -> tuple[Header | None, Any]:
    """The header of a WAV with plain samples, or None, and the file: at its samples, or for FFmpeg to start at.

    Raises: MediaError for a file that visibly ends before its header says.
    """
    if hasattr(file, "seekable") and file.seekable():
        start = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
        header = _read(name, file, end)
        if header is None:
            file.seek(start)
            skip = _tags(file)
            file = _From(file, start + skip) if start + skip else file  # type: ignore[assignment]
        return header, file
    head = io.BytesIO(_fill(file, LOOK))
    header = _read(name, head, None)
    if header is None:
        head.seek(0)
        head.seek(_tags(head))
    return header, _Joined(head, file)


def _tags(file: IO[bytes]) -> int:
    """Bytes of ID3 tags in front of a WAV, which is where the file then stands; 0, and at its start, if it is none."""
    start = at = file.tell()
    while length := id3_length(head := file.read(12)):
        at += length
        file.seek(at)
    if head[:4] not in ORDERS or head[8:] != b"WAVE":
        at = start
    file.seek(at)
    return at - start


def _read(name: str, file: IO[bytes], end: int | None) -> Header | None:
    _tags(file)
    head = file.read(12)
    if head[:4] not in ORDERS or head[8:] != b"WAVE":
        return None
    order, form, long_size = ORDERS[head[:4]], b"", 0
    for _ in range(100):  # chunks; a bound, since a file may consist of empty ones
        if len(chunk := file.read(8)) < 8:
            return None
        size, at = struct.unpack(order + "I", chunk[4:])[0], file.tell()
        if chunk[:4] == b"ds64":
            long_size = struct.unpack("<Q", file.read(16)[8:].ljust(8, b"\0"))[0]
        elif chunk[:4] == b"fmt ":
            form = file.read(min(size, 40))
        elif chunk[:4] == b"data" and len(form) >= 16:
            if size == 0xFFFFFFFF and long_size:
                size = long_size
            elif not 0 < size < UNKNOWN:
                size = 0
            header = _header(order, form, size or None)
            if header and end is not None:
                header.check(name, end - at)
            elif end is not None and end - at < size - struct.unpack(order + "H", form[12:14])[0]:  # up to a block
                there = f"the header promises {size} bytes of sound, the file holds {end - at}"
                raise media_error(name, "a whole WAV", f"truncated: {there}")
            return header
        file.seek(at + size + size % 2)
    return None


def _header(order: str, form: bytes, size: int | None) -> Header | None:
    """What a ``fmt `` chunk says; None for other codecs than plain samples and for what makes no sense."""
    tag, channels, rate, _, align, bits = struct.unpack(order + "HHIIHH", form[:16])
    layout: tuple[str, ...] = ()
    if tag == EXTENSIBLE and len(form) >= 40:
        # The valid bits are the upper ones of a sample, the rest is zero: nothing to be done about them.
        mask = struct.unpack(order + "I", form[20:24])[0]
        layout = tuple(name for bit, name in enumerate(SPEAKERS) if mask >> bit & 1)
        tag, *guid = struct.unpack(order + "IHH8s", form[24:40])
        tag = tag if tuple(guid) == GUID else 0
    width = -(-bits // 8)
    if 16 < bits < 32 and align == 4 * channels:
        width = 4
    if tag == PCM and width in (1, 2, 3, 4):
        kind = f"{order}{'u' if width == 1 else 'i'}{width}"
    elif tag == FLOAT and width in (4, 8):
        kind = f"{order}f{width}"
    else:
        return None
    return Header(rate, channels, kind, layout, size) if rate and channels else None


def samples(name: str, header: Header, file: IO[bytes]) -> Iterator[Float32]:
    """The sound after a header, piece by piece, float32 ``[n, channels]``."""
    held, most = 0, header.size
    while True:
        want = max(1, (1 << 16) // header.frame) * header.frame
        data = _fill(file, want if most is None else min(want, most - held))
        held += len(data)
        if whole := len(data) // header.frame * header.frame:
            yield _floats(data[:whole], header.kind).reshape(-1, header.channels)
        if len(data) < want:
            break
    header.check(name, held)


def _floats(data: bytes, kind: str) -> Float32:
    width = int(kind[2:])
    if kind[1] == "f":
        with np.errstate(over="ignore"):  # infinity, which is refused by name
            return np.frombuffer(data, kind).astype(np.float32)
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if width == 3:  # as the upper bytes of four
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, slice(1, 4) if kind[0] == "<" else slice(0, 3)] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = wide.tobytes(), 4
    return np.frombuffer(data, f"{kind[0]}i{width}").astype(np.float32) / np.float32(1 << (8 * width - 1))


def _fill(file: IO[bytes], size: int) -> bytes:
    """``size`` bytes, fewer only at the end: it reads on where a pipe gives less."""
    parts, left = [], size
    while left > 0 and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class _From:
    """A file from ``start`` on, for FFmpeg, which counts from 0."""

    def __init__(self, file: IO[bytes], start: int) -> None:
        self._file, self._start = file, start
        self.read = file.read

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset + (self._start if whence == os.SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start


class _Joined:
    """What was read of a stream that cannot be rewound, and then the rest."""

    def __init__(self, head: IO[bytes], file: IO[bytes]) -> None:
        self._head, self._file = head, file

    def read(self, size: int = -1) -> bytes:
        return self._head.read(size) or self._file.read(size)
