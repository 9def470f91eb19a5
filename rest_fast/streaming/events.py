"""What a session tells those who listen, when a block is handed out or an interrupt comes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeechStarted:
    """The first block of speech after silence, after an interrupt, or of a segment."""

    pts: float
    epoch: int
    segment: int


@dataclass(frozen=True)
class SegmentEnded:
    """The last block of a segment. ``pts``: where it ends."""

    pts: float
    epoch: int
    segment: int


@dataclass(frozen=True)
class Interrupted:
    """``pts``: where the new epoch continues."""

    pts: float
    epoch: int


@dataclass(frozen=True)
class Starved:
    """A block of silence inside a segment, whose sound did not come in time."""

    pts: float
    epoch: int


@dataclass(frozen=True)
class Late:
    """A frame was repeated, since computation was late. ``pts``: of the block that is late."""

    pts: float
    epoch: int


Event = SpeechStarted | SegmentEnded | Interrupted | Starved | Late
