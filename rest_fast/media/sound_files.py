"""Reads sound: any file becomes float32 ``[n, channels]`` at its own rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import av
import numpy as np
from numpy.typing import NDArray

from rest_fast.errors import warn
from rest_fast.media import downmix, wav
from rest_fast.media.containers import choose, open_container
from rest_fast.media.sources import Float32, MediaError, Source, is_empty, media_error, open_source, source_name

MAX_SECONDS = 7200  # of a file of sound: two hours
MAX_SAMPLES = 1 << 30  # of all channels together: 4 GiB as float32
MAX_PEAK = 8.0  # floats beyond this are integers in disguise, not a loud voice
SOUND_RATES = (1000, 768_000)  # Hz, lowest and highest
LOOSE = 0.02  # s by which timestamps may be off the samples (Matroska rounds, clocks drift); beyond, sound is missing
# Containers whose header says how long the sound is, and the seconds by which it may say too much. Two of them also
# count an encoder's priming, which is not played. The others guess, or say what is there.
PROMISES = {"aiff": 0.01, "au": 0.01, "flac": 0.01, "tta": 0.01, "mov": 0.25, "matroska": 0.25}


@dataclass(frozen=True, eq=False)
class Audio:
    """Decoded sound: ``samples`` float32 ``[n, channels]`` in -1..1 at ``rate`` Hz.

    ``layout`` names the channels as FFmpeg does ("FL", "FR", "FC", ...), where that is known.
    """

    samples: Float32
    rate: int
    layout: tuple[str, ...] = ()

    @property
    def mono(self) -> Float32:
        """All channels as one, float32 ``[n]``: half the sum of two, surround as in ``rest_fast.media.downmix``."""
        return downmix.mono_of_whole(self.samples, self.layout)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate


def check_length(name: str, seconds: float, values: int = 0, more: str = "") -> None:
    if seconds > MAX_SECONDS:
        raise media_error(name, f"at most {MAX_SECONDS} s of sound", f"{more} {seconds:.2f} s")
    if values > MAX_SAMPLES:
        raise media_error(name, f"at most {MAX_SAMPLES} samples, all channels together", f"{more} {values}")


def join(blocks: list[NDArray[Any]]) -> NDArray[Any]:
    """The blocks as one array; it empties the list, so that the memory is not needed twice."""
    if len({block.shape[1:] for block in blocks}) > 1:
        raise ValueError("channels or picture size change part way")
    at = sum(map(len, blocks))
    whole = np.empty((at, *blocks[0].shape[1:]), blocks[0].dtype)
    while blocks:
        block = blocks.pop()
        at -= len(block)
        whole[at : at + len(block)] = block
    return whole


class _Heard:
    """Sound as it is read; each piece is checked at once, so that bad sound is refused early."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.layout: tuple[str, ...] = ()
        self._rate, self._form = 0, ""
        self._blocks: list[Float32] = []

    @property
    def seconds(self) -> float:
        return self.count / self._rate if self.count else 0.0

    def add(self, block: Float32, rate: int, layout: Sequence[str] = ()) -> None:
        form = f"{rate} Hz with {block.shape[1]} channel{'s' * (block.shape[1] > 1)}"
        if not self._blocks:
            self._rate, self._form, self.layout = rate, form, tuple(layout)
            if not SOUND_RATES[0] <= rate <= SOUND_RATES[1]:
                raise media_error(self.name, f"a sample rate in {SOUND_RATES[0]}..{SOUND_RATES[1]} Hz", f"{rate} Hz")
        elif form != self._form:
            raise media_error(self.name, f"one format ({self._form})", form, f"after {self.seconds:.2f} s")
        peak = max(block.max(), -block.min()) if block.size else 0.0
        if not np.isfinite(peak):
            raise media_error(self.name, "finite samples", f"NaN or infinity after {self.seconds:.2f} s")
        if peak > MAX_PEAK:
            scale = "divide them by 32768" if peak <= 32768 else "scale them"
            raise media_error(self.name, "float samples in -1..1", f"a peak of {peak:g} (integers as floats? {scale})")
        self._blocks.append(block)
        self.count += len(block)
        check_length(self.name, self.seconds, self.count * block.shape[1], "more, stopped at")

    def audio(self) -> Audio:
        if not self.count:
            raise media_error(self.name, "some audio", "an empty stream")
        return Audio(join(self._blocks), self._rate, self.layout)


class _Clock:
    """Follows the timestamps of decoded sound, to find what is missing in between and at the end."""

    def __init__(self, heard: _Heard) -> None:
        self._heard = heard
        self._start: float | None = None  # s, of the first sample
        self._next = 0.0  # s, where the next sample should stand, from the first one on
        self.places, self._lost, self._first = 0, 0.0, 0.0
        self._broken: Exception | None = None  # an error after which nothing good has come yet

    def broken(self, error: Exception) -> None:
        if self._broken is None:
            self._note()
        self._broken = error

    def frame(self, frame: Any) -> None:
        length = frame.samples / frame.sample_rate
        if frame.pts is None:
            self._next += length
        else:
            time = float(frame.pts * frame.time_base)
            self._start = time if self._start is None else self._start
            late = time - self._start - self._next
            if late > LOOSE:  # earlier than expected: the next link of a chain, with a clock of its own
                if self._broken is None:
                    self._note()
                self._lost += late
            self._next = time - self._start + length
        self._broken = None

    def _note(self) -> None:
        if not self.places:
            self._first = self._heard.seconds
        self.places += 1

    def finish(self, promised: float, slack: float) -> None:
        """MediaError if the end is missing; one warning for everything that is missing elsewhere."""
        name, held = self._heard.name, max(self._next, self._heard.seconds)
        if self._broken is not None and not self._heard.count:
            raise self._broken
        if promised - held > slack:
            there = f"the header promises {promised:.2f} s, the file holds {held:.2f} s"
            raise media_error(name, "audio that FFmpeg can read to its end", f"truncated: {there}")
        if self.places:
            count = "1 damaged place" if self.places == 1 else f"{self.places} damaged places"
            lost = f", {self._lost:.2f} s of sound in all" if self._lost else ""  # not known at the end of a file
            warn(f"{name}: skipped {count}{lost}, the first after {self._first:.2f} s")


def _promised(container: Any, stream: Any) -> tuple[float, float]:
    """Seconds of sound by the header (0 if it does not say), and how many of them may be too many."""
    form = container.format.name.split(",")[0]
    if form in ("mp3", "aac"):  # FFmpeg would guess from the first frames
        return 0.0, 0.0
    if stream.duration is not None:
        length = float(stream.duration * stream.time_base)
    elif len(container.streams) == 1:
        length = (container.duration or 0) / av.time_base
    else:  # "00:00:04.021000000", of a Matroska track beside others
        clock = str(stream.metadata.get("DURATION", "0")).split(":")
        length = sum(float(part) * 60**i for i, part in enumerate(reversed(clock)))
    return length, PROMISES.get(form, float("inf"))


def _decode(file: IO[bytes], heard: _Heard) -> None:
    with open_container(file) as container:
        stream = choose(container, "audio")
        if stream is None:
            raise media_error(heard.name, "a file with audio in it", "no audio stream")
        if stream.codec_context.name == "flac":  # its checksums, else unread, tell damage from sound
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        promised, slack = _promised(container, stream)
        check_length(heard.name, promised)
        clock, form = _Clock(heard), ("", "", 0)
        for packet in container.demux(stream):
            try:
                frames = _without_tag(packet).decode() if packet.size else packet.decode()
            except av.FFmpegError as error:  # players go on with the next
                clock.broken(error)
                continue
            for frame in frames:
                clock.frame(frame)
                if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
                    packed = av.AudioResampler(format="flt")  # takes one form; not planar: PyAV crashes over 8 planes
                for block in packed.resample(frame):
                    values = np.asarray(block.to_ndarray(), np.float32).reshape(-1, block.layout.nb_channels)
                    # Not the stream's own rate: that is halved for some kinds of AAC.
                    heard.add(values, frame.sample_rate, [c.name for c in frame.layout.channels])
        clock.finish(promised, slack)


def _without_tag(packet: Any) -> Any:
    """A packet of MP3 without the tag that a piece of a joined file begins with: the decoder refuses both together."""
    data = bytes(packet)
    length = wav.id3_length(data[:10])
    if not length or length >= len(data):
        return packet
    rest = av.Packet(data[length:])
    rest.pts, rest.dts, rest.time_base, rest.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    return rest


def load_audio(source: Source) -> Audio:
    """Read sound from a path, a binary file or bytes: any codec, also the sound of a video.

    It takes the audio stream that is flagged as default, else the first one, from its first sample on, with its own
    rate and channels. Integers are scaled to -1..1; WAV and FLAC come out exactly. More than :data:`MAX_SECONDS` or
    :data:`MAX_SAMPLES`, which limit the memory, is refused: by the header if it says so, else as soon as it has been
    decoded. Damaged or missing parts in the middle are skipped, as players do, and reported by one
    :class:`rest_fast.RestFastWarning` (for MP3 and AAC without a container only those that their decoders notice).

    Raises: MediaError if there is no such file, no sound or no samples in it, NaN or infinity, floats beyond
        :data:`MAX_PEAK`, too much, another rate or number of channels part way, an error of reading (it says how many
        seconds were read), or a file that ends before its header says. A cut MP3, AAC or Ogg file has no such header,
        so it counts as a shorter one.
    """
    heard = _Heard(source_name("audio", source))
    try:
        with open_source("audio", source) as file:
            if is_empty(file):  # which FFmpeg calls an invalid argument
                raise media_error(heard.name, "a file with audio in it", "an empty file")
            header, file = wav.open_wav(heard.name, file)
            if header is None:
                _decode(file, heard)
            else:
                check_length(heard.name, header.seconds(header.size or 0))
                for block in wav.samples(heard.name, header, file):
                    heard.add(block, header.rate, header.layout)
        return heard.audio()
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        where, got = f"after {heard.seconds:.2f} s", error
        if (
            isinstance(error, av.error.PatchWelcomeError) and heard.count
        ):  # an Ogg stream with another number of channels
            raise media_error(heard.name, "one format of sound throughout", "another one", where) from error
        raise media_error(heard.name, "audio that FFmpeg can read to its end", got, where) from error
