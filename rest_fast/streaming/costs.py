"""What computation costs, and how many sessions it suffices for."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence

import numpy as np

from rest_fast.streaming.metrics import Percentiles
from rest_fast.streaming.work import Piece

LOAD = 0.85  # share of the time that sessions may need together; the rest is for what is not measured
RECENT = 64  # chunks whose cost counts


class Costs:
    """Seconds of pieces and of whole chunks, of all sessions of an engine.

    Args:
        duration: seconds that a chunk lasts.
    """

    def __init__(self, duration: float):
        self.duration = duration
        self.chunks: deque[float] = deque(maxlen=RECENT)
        self.made, self.busy = 0, 0.0  # chunks and seconds in all
        self._pieces: deque[float] = deque(maxlen=16 * RECENT)
        self._spent: dict[Hashable, float] = {}  # for the chunk that is being made

    def charge(self, sessions: Sequence[Hashable], pieces: Sequence[Piece | None], seconds: float) -> None:
        """Sessions share the seconds of pieces that were computed together."""
        self.busy += seconds
        self._pieces.append(seconds)
        for session, piece in zip(sessions, pieces):
            if piece is Piece.BEGIN:
                self._spent[session] = 0.0
            if session in self._spent:
                self._spent[session] += seconds / len(sessions)
                if piece is Piece.DECODE:
                    self.chunks.append(self._spent.pop(session))
                    self.made += 1

    def replace(self, chunks: Sequence[float]) -> None:
        """What chunks cost now, whatever they did before."""
        self.chunks = deque(chunks, maxlen=RECENT)

    def forget(self, session: Hashable) -> None:
        """Of a chunk that does not go on."""
        self._spent.pop(session, None)

    @property
    def chunk(self) -> float:
        """Seconds that a chunk costs, all its pieces together: the mean of the latest; NaN where none was made."""
        return float(np.mean(list(self.chunks))) if self.chunks else math.nan

    def capacity(self, places: int) -> int:
        """Sessions that LOAD of the time suffices for, at most so many; these, where no chunk was made."""
        each = self.chunk
        return places if math.isnan(each) else min(places, int(LOAD * self.duration / max(each, 1e-9)))

    def pieces(self) -> Percentiles | None:
        """What an urgent session may have to wait for."""
        seconds = list(self._pieces)
        return Percentiles.of(seconds) if seconds else None
