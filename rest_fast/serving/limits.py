"""What one visitor may ask of a server."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rest_fast.serving.protocol import ProtocolError


@dataclass(frozen=True)
class Limits:
    """Seconds and bytes; sessions are limited by the engine."""

    start: float = 10.0  #: from the connection to its first message
    stall: float = 10.0  #: that a client may leave a frame unread
    idle: float = 600.0  #: without any sound; the session is closed then
    session: float = 3600.0  #: that a session lasts at most
    control: int = 16 * 1024  #: bytes of a message of text
    sound: int = 1024 * 1024  #: bytes of a message of sound
    backlog: float = 120.0  #: seconds of sound that a session may queue
    messages: float = 200.0  #: a second, mean over `burst`
    burst: float = 5.0
    upload: int = 10 * 1024 * 1024  #: bytes of a picture
    uploads: float = 10.0  #: a minute, of all visitors together
    avatars: int = 64  #: uploaded ones that are kept, the oldest go first
    drain: float = 10.0  #: that sessions may go on when the server ends
    state: int = 512 * 1024 * 1024  #: bytes of a session that is moved, behind a router


class Rate:
    """At most so many events a second, mean over ``burst`` seconds."""

    def __init__(self, each_second: float, burst: float):
        self.each_second, self.most = each_second, each_second * burst
        self.left, self.at = self.most, 0.0

    def take(self, now: float) -> bool:
        """Whether one more is allowed now."""
        self.left = min(self.most, self.left + (now - self.at) * self.each_second) if self.at else self.most
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Uploads(Rate):
    """Pictures of all visitors together."""

    def __init__(self, limits: Limits):
        super().__init__(limits.uploads / 60, 60)
        self.limit = limits.uploads

    def require(self, now: float) -> None:
        """Raises: :class:`ProtocolError` for one too many."""
        if not self.take(now):
            raise ProtocolError("TOO_MANY", f"uploads: expected at most {self.limit:g} a minute, got more")


class Incoming:
    """Looks at all that one client sends. ``counted``: whether it may send so many messages; a router has counted
    them, and says again at once what a client has said for a while."""

    def __init__(self, limits: Limits, counted: bool = True):
        self.limits, self.counted, self._rate = limits, counted, Rate(limits.messages, limits.burst)

    def check(self, content: str | bytes, control: int = 0, data: int = 0) -> None:
        """``control``, ``data``: bytes of text, and of others, where more than usual may come.

        Raises: :class:`ProtocolError`.
        """
        if self.counted and not self._rate.take(time.monotonic()):
            raise ProtocolError("TOO_MANY", f"messages: expected at most {self.limits.messages:g} a second, got more")
        usual = self.limits.control if isinstance(content, str) else self.limits.sound
        limit = (control if isinstance(content, str) else data) or usual
        if len(content) > limit:
            raise ProtocolError("TOO_LARGE", f"message: expected at most {limit} bytes, got {len(content)}")
