"""Which latents of a stream exist, which are due, and the sound that goes with them: only integers and samples.

Time is counted in latents of 8 frames from the start of the stream:

    0 .. floor .. delivered .. generated ..      floor <= delivered <= generated

Latents below ``floor`` are forgotten, those below ``delivered`` were handed out, those below ``generated`` exist. An
interrupt takes ``generated`` and ``delivered`` back, at most to ``floor``, and begins a new ``epoch``, so that a latent
that is generated again gets other noise.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from rest_fast import media, noise
from rest_fast.config import TEMPORAL
from rest_fast.errors import MediaError, StateError
from rest_fast.streaming.snapshot import Fields
from rest_fast.streaming.sound import SoundTimeline
from rest_fast.units import FRAME


@dataclass(frozen=True)
class ChunkPlan:
    """A chunk to generate: the latents from ``first`` on, of which the first ``keep`` are kept."""

    first: int
    keep: int
    limit: int  # the chunk hears silence from this sample on
    idle: bool  # it hears silence from its first frame on, since nothing was due


class Timeline:
    """The counts of a stream's latents, its segments and its sound.

    Args:
    rate: of the sound, Hz.
    chunk: latents that are generated at once.
    lead: delivered latents that an interrupt can take back.
    back, ahead: samples at 16 kHz that the features need before and after the frames they are computed for.
    """

    def __init__(self, rate: int, *, chunk: int, lead: int, back: int, ahead: int):
        self.sound = SoundTimeline(rate)
        self.chunk, self.lead, self.back, self.ahead = chunk, lead, back, ahead
        self.segments: deque[tuple[int, int]] = deque()  # (latent where it ends, its last true sample), not yet passed
        self.passed = 0  # segments that are not among them any more
        self.generated = self.delivered = self.floor = 0
        self.epoch = 0  # interrupts so far
        self.idle = False  # whether the latest chunk is idle

    # -- what comes in, in order

    def end_segment(self) -> None:
        """End a segment: silence fills the sound up to the next latent border."""
        end = self.sound.end
        recorded = self.segments[-1][0] if self.segments else 0
        latent = start = max(self.generated, recorded)
        while self.border(latent) < end:
            latent += 1
        # sound that ends on the latest chunk's border leaves no latent to generate, but still ends a segment
        ends_here = start > recorded and self.waiting > 0 and not self.idle
        if latent > start or ends_here:
            self.segments.append((latent, end))
            self.sound.pad_to(self.border(latent))

    def deliver(self) -> None:
        """One more latent was handed out."""
        self.delivered += 1
        self.floor = max(self.floor, self.delivered - self.lead)

    def take_back(self, count: int) -> None:
        """Forget the latest latents, which are idle, and the silence that they brought."""
        first = self.generated - count
        self.sound.cut(self.border(first), self.border(self.generated))
        self.generated, self.idle = first, False

    def back_to(self, shown: int) -> None:
        """Forget latents from ``shown`` on, and all that was queued: a new epoch begins."""
        self.epoch += 1
        self.passed = self.segment(shown) + 1
        self.segments.clear()
        self.sound.truncate(self.border(shown))
        self.generated = self.delivered = shown

    # -- what is there

    @property
    def waiting(self) -> int:
        """Latents that were generated and not handed out."""
        return self.generated - self.delivered

    @property
    def at_segment_end(self) -> bool:
        """Whether a segment ends with the latest latent."""
        return any(end == self.generated for end, _ in self.segments)

    def border(self, latent: int) -> int:
        """The sample with which a latent begins."""
        return self.sound.sample_of(TEMPORAL * latent)

    def segment(self, latent: int) -> int:
        """The number of the segment that a latent belongs to."""
        return self.passed + sum(end <= latent for end, _ in self.segments)

    def true_end(self, latent: int) -> int | None:
        """The last true sample of the segment that ends with this latent; None where none does."""
        return next((last for end, last in self.segments if end == latent + 1), None)

    def forget(self) -> None:
        """Drop sound and segments that nothing can ask for again."""
        while self.segments and self.segments[0][0] <= self.floor:
            self.segments.popleft()
            self.passed += 1
        self.sound.drop_before(self._oldest(self.floor))

    def _oldest(self, floor: int) -> int:
        """A sample that lies before all sound that the features of the latents from ``floor`` on read."""
        return self.sound.oldest(TEMPORAL * (floor - 1), self.back)

    # -- what comes next

    def due(self, without: int = 0) -> bool:
        """Whether the sound for the next chunk is there; for ``without``, if so many idle latents were taken back."""
        if self._segment() is not None:
            return True
        first = self.generated - without
        there = self.sound.end - (self.border(self.generated) - self.border(first))
        return there >= self.sound.needed(TEMPORAL * (first + self.chunk) * FRAME + self.ahead)

    def queued(self) -> int:
        """Samples behind the latents that exist."""
        return max(0, self.sound.end - self.border(self.generated))

    def plan(self, idle: bool = False) -> ChunkPlan:
        """The next chunk. Past a segment's end it hears silence, and latents past that end are dropped."""
        first, end = self.generated, self._segment()
        if idle:
            return ChunkPlan(first, self.chunk, self.border(first), True)
        if end is None:
            return ChunkPlan(first, self.chunk, self.sound.end, False)
        return ChunkPlan(first, min(self.chunk, end - first), self.border(end), False)

    def accept(self, plan: ChunkPlan) -> None:
        """Record that the chunk was generated."""
        if plan.idle:  # what is queued comes after it
            self.sound.insert_silence(plan.limit, self.border(plan.first + self.chunk) - plan.limit)
        self.generated += plan.keep
        self.idle = plan.idle

    def _segment(self) -> int | None:
        """The latent where the segment that holds the next latent ends; None while that segment is open."""
        return next((end for end, _ in self.segments if end > self.generated), None)

    # -- as data

    def to_meta(self) -> dict[str, object]:
        return {
            "segments": list(self.segments),
            "passed": self.passed,
            "sound_start": self.sound.start,
            "sound_fixed": self.sound.fixed,
            "epoch": self.epoch,
            "_next": self.generated,
            "_delivered": self.delivered,
            "_floor": self.floor,
        }

    def read(self, fields: Fields) -> Timeline:
        """The timeline that :meth:`to_meta` and the tensor ``sound`` describe, for the same model and rate.

        Raises: :class:`rest_fast.StateError`.
        """
        found = Timeline(self.sound.rate, chunk=self.chunk, lead=self.lead, back=self.back, ahead=self.ahead)
        found.epoch = fields.integer("epoch", 0, noise.MOST)
        found.generated = fields.integer("_next", 0, noise.MOST)
        found.delivered = fields.integer("_delivered", 0, found.generated)
        found.floor = fields.integer("_floor", max(0, found.delivered - self.lead), found.delivered)
        found.sound = found._read_sound(fields)
        found.segments, found.passed = found._read_segments(fields), fields.integer("passed", 0)
        return found

    def _read_sound(self, fields: Fields) -> SoundTimeline:
        """The kept sound: from before the oldest window that can be asked for, at least to the end of the latents."""
        fixed = fields.flag("sound_fixed")
        try:
            samples = media.own_pcm(fields.tensors.get("sound"))
        except MediaError as e:
            raise StateError(f"restore: sound: {e}") from None
        silent = samples.ndim == 1 and samples.dtype == np.float32 and not samples.any()
        fields.require(fixed or silent, "sound", "float32 silence, since sound_fixed is false", "something else")
        start = fields.integer("sound_start", 0, max(0, self._oldest(self.floor)))
        end, made = start + len(samples), self.border(self.generated)
        fields.require(end >= made, "sound", f"samples up to {made}, what is generated", f"{start} to {end}")
        return SoundTimeline.restore(self.sound.rate, start, samples, fixed)

    def _read_segments(self, fields: Fields) -> deque[tuple[int, int]]:
        """Ends of segments, in order and within the sound."""
        pairs, before, end = fields.pairs("segments"), 0, self.sound.end
        for latent, last in pairs:
            ok = before < latent and self.border(latent - 1) < last <= self.border(latent) <= end
            fields.require(ok, "segments", f"ends in order and within {end} samples", pairs)
            before = latent
        return deque(pairs)
