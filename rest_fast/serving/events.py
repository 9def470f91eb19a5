"""What a client is told beside the frames, in the moment that they are shown."""

from __future__ import annotations

from rest_fast.serving import protocol
from rest_fast.serving.pacer import Shown


def events_of(shown: Shown, before: Shown | None) -> list[str]:
    """Messages about a frame, ``before`` being the one before it."""
    where = {"time": shown.time, "pts": shown.pts, "epoch": shown.epoch, "segment": shown.segment}
    # a frame that is held speaks or idles as the one that it repeats
    spoke = before is not None and not before.idle and before.segment == shown.segment
    speaks = not shown.idle
    found = []
    if speaks and not spoke:
        found.append(protocol.text("speech.started", **where))
    if shown.held and not (before is not None and before.held):
        found.append(protocol.text("underrun", **where))
    if shown.segment_end:
        found.append(protocol.text("segment.ended", **where))
    return found
