"""One visitor of a server: a session with its pacer and its sound, whatever the transport."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from rest_fast.avatar import Avatar
from rest_fast.errors import StateError
from rest_fast.serving import protocol
from rest_fast.serving.pacer import Mark, Pacer, Shown
from rest_fast.serving.protocol import Start
from rest_fast.serving.saved import Saved
from rest_fast.serving.sound_in import SoundIn
from rest_fast.streaming.engine import Engine
from rest_fast.streaming.session import Session
from rest_fast.streaming.snapshot import SessionState


@dataclass(frozen=True)
class Finished:
    """A segment was played to its end, or as far as ``position``, in seconds from its first frame."""

    id: str
    position: float
    interrupted: bool


class Viewer:
    """Open with :meth:`open`; ``frames`` are to be taken by one transport, which calls :meth:`close` at the end.

    ``name`` is random. ``finished``: segments of which the client is to be told.
    """

    def __init__(self, session: Session, mark: Mark | None = None):
        self.session, self.name = session, secrets.token_hex(8)
        self.pacer, self.sound = Pacer(session, mark=mark), SoundIn(session)
        self.opened = self.heard = time.monotonic()  # when sound came last
        self.finished: deque[Finished] = deque()
        self._ids: deque[str] = deque()  # of the segments that were ended and not shown to their ends
        self._began: float | None = None  # on the media clock, of the speech that is shown
        self.showing = asyncio.Lock()  # held by the transport while it sends a frame and what belongs to it

    @classmethod
    async def open(
        cls,
        engine: Engine,
        avatar: Avatar,
        *,
        sample_rate: int = 16000,
        seed: int = 0,
        mark: Mark | None = None,
        saved: Saved | None = None,
    ) -> Viewer:
        """``mark``: see :class:`~rest_fast.serving.pacer.Pacer`; ``saved``: what goes on here.

        Raises: what :meth:`rest_fast.Engine.session` does; :class:`rest_fast.StateError`.
        """
        session = await engine.asession(avatar, sample_rate=sample_rate, seed=seed)
        try:
            if saved is not None:
                await asyncio.to_thread(session.restore, saved.state)
            viewer = cls(session, mark)
            if saved is not None:
                viewer._put_back(saved)
            return viewer
        except BaseException:
            session.close()
            raise

    def _put_back(self, saved: Saved) -> None:
        if any(frame.picture.shape != self.session.avatar.picture.shape for frame in saved.waiting):
            raise StateError("restore: pictures: expected the size of this avatar's, got others")
        self.pacer.put_back(saved.waiting, saved.pts)
        self._ids.extend(saved.ids)
        self._began = None if saved.position is None else -saved.position
        self.sound.pushed = saved.pushed
        self.opened -= saved.age

    def save(self, start: Start, state: SessionState) -> Saved:
        """What goes on elsewhere; ``state`` is a snapshot of the session that was taken a moment ago. Within
        :meth:`still`."""
        end = state.meta["_delivered"] * self.session.mailbox.duration
        # later blocks are made again there; what was shown of them meanwhile comes again
        waiting = [frame for frame in self.pacer.waiting if frame.pts < end - 1e-6 and not frame.held]
        position = None if self._began is None else self._position
        age = time.monotonic() - self.opened
        pts = waiting[0].pts if waiting else end
        return Saved(start, state, waiting, list(self._ids), position, self.sound.pushed, age, pts)

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Nothing is shown meanwhile, and all that was shown before has been sent."""
        self.pacer.pause()
        try:
            async with self.showing:
                yield
        finally:
            self.pacer.go_on()

    def push_bytes(self, data: bytes, **form: Any) -> None:
        """Sound as bytes: ``form`` s16le, s32le or f32le; ``rate``, Hz, None for the session's; ``channels``."""
        self.heard = time.monotonic()
        self.sound.push_bytes(data, **form)

    def push(self, samples: Any, rate: int | None = None) -> None:
        """Sound int16 or float in -1..1, [n] or [n, channels]; ``rate``, Hz, None for the session's."""
        self.heard = time.monotonic()
        self.sound.push(samples, rate)

    def push_frame(self, frame: Any) -> None:
        self.heard = time.monotonic()
        self.sound.push_frame(frame)

    def end(self, name: str = "") -> None:
        """The segment is complete; ``name`` comes back in :attr:`finished`. Without sound before, nothing happens but
        that."""
        if self.sound.end_segment():
            self._ids.append(name)
        else:
            self.finished.append(Finished(name, 0.0, False))

    def interrupt(self) -> float:
        """Barge-in. Returns: seconds of the stream where the picture goes on."""
        cut = [*self._ids, *([""] if self.sound.forget() else [])]
        resume = self.pacer.interrupt()
        self._ids.clear()
        for k, name in enumerate(cut):
            self.finished.append(Finished(name, self._position if k == 0 else 0.0, True))
        self._began = None
        return resume

    @property
    def _position(self) -> float:
        return 0.0 if self._began is None else self.pacer.media_time - self._began

    async def frames(self) -> AsyncIterator[Shown]:
        """The frames at their times; see :class:`rest_fast.serving.pacer.Pacer`."""
        async for shown in self.pacer:
            if self._began is None and not (shown.idle or shown.held):
                self._began = shown.time
            yield shown
            if shown.segment_end and self._ids:
                self.finished.append(Finished(self._ids.popleft(), self._position, False))
                self._began = None

    def tell_finished(self) -> list[str]:
        """Messages about segments that were played, each once."""
        told = []
        while self.finished:
            one = self.finished.popleft()
            about = {"id": one.id, "position": round(one.position, 3), "interrupted": one.interrupted}
            told.append(protocol.text("playback.finished", **about))
        return told

    def stats(self) -> dict[str, Any]:
        """What a client may want to plot: seconds and counts."""
        metrics = self.session.metrics()
        return {
            "time": self.pacer.media_time,
            "frames": self.pacer.frames,
            "held": self.pacer.held,
            "late": round(self.pacer.late, 3),
            "queued": round(self.session.queued_seconds, 3),
            "ready": round(self.session.ready_seconds + self.pacer.ready_seconds, 3),
            "underruns": metrics.held,
            "interrupts": metrics.interrupts,
        }

    def close(self) -> None:
        """Ends the session; :meth:`frames` end with it."""
        self.session.close()
