"""What a server serves with: the model's engine, its avatars, its limits, and the visitors who are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from rest_fast.errors import CapacityExhausted, EngineClosed, RestFastError
from rest_fast.model import Model
from rest_fast.serving.access import Access
from rest_fast.serving.avatars import Avatars
from rest_fast.serving.limits import Limits, Uploads
from rest_fast.serving.pacer import Mark
from rest_fast.serving.protocol import ProtocolError
from rest_fast.serving.saved import Saved
from rest_fast.serving.viewer import Viewer
from rest_fast.streaming.engine import Engine

LOG = logging.getLogger(__name__)


@dataclass
class Counts:
    """Since the server began."""

    opened: int = 0
    refused: int = 0
    failed: int = 0  #: sessions that an error of ours has ended
    frames: int = 0
    held: int = 0


@dataclass(eq=False)
class Service:
    """One engine and its visitors. ``mark``: what is written into all pictures, see
    :class:`rest_fast.serving.pacer.Pacer`; ``ready``: loaded and warm; ``draining``: nobody new is let in; ``routed``:
    nobody but a router has the token, which may move sessions (:class:`rest_fast.serving.router.Router`)."""

    model: Model
    engine: Engine
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    mark: Mark | None = None
    ready: bool = True
    draining: bool = False
    routed: bool = False
    viewers: set[Viewer] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.avatars = Avatars(self.model, self.limits)
        self._tasks: set[asyncio.Task[None]] = set()
        self.uploads = Uploads(self.limits)

    @property
    def status(self) -> str:
        """``ok``, ``loading`` or ``draining``: only the first lets visitors in."""
        return "draining" if self.draining else "ok" if self.ready else "loading"

    @property
    def busy(self) -> bool:
        """Whether visitors are there."""
        return bool(self.viewers)

    @contextlib.asynccontextmanager
    async def viewer(
        self, avatar: str, *, sample_rate: int = 16000, seed: int = 0, saved: Saved | None = None
    ) -> AsyncIterator[Viewer]:
        """A visitor's session, closed at the end whatever happens. ``saved``: one of elsewhere that goes on here.

        Raises: :class:`ProtocolError`.
        """
        if self.draining or not self.ready:
            raise ProtocolError("NOT_NOW", f"session: expected a server that is ok, got one that is {self.status}")
        face = self.avatars.find(avatar)
        try:
            viewer = await Viewer.open(
                self.engine, face, sample_rate=sample_rate, seed=seed, mark=self.mark, saved=saved
            )
        except (CapacityExhausted, EngineClosed) as e:
            self.counts.refused += 1
            raise ProtocolError(getattr(e, "code", "NOT_NOW"), str(e)) from None
        except RestFastError as e:
            raise ProtocolError("BAD_MESSAGE", str(e)) from None
        self.viewers.add(viewer)
        self.counts.opened += 1
        try:
            yield viewer
        finally:
            self.viewers.discard(viewer)
            self.counts.frames += viewer.pacer.frames
            self.counts.held += viewer.pacer.held
            viewer.close()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to work in the background until it ends."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def overdue(self, viewer: Viewer) -> str | None:
        """Why a session is to end; None where it is not."""
        now = time.monotonic()
        if now - viewer.opened > self.limits.session:
            return f"session: expected at most {self.limits.session:g} s, got more"
        if now - viewer.heard > self.limits.idle:
            return f"session: expected sound within {self.limits.idle:g} s, got none"
        return None

    async def drain(self) -> None:
        """Let nobody new in, wait for those who are there, and close what is left."""
        self.draining = True
        end = time.monotonic() + self.limits.drain
        while self.viewers and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for viewer in list(self.viewers):
            viewer.close()
        while self.viewers and time.monotonic() < end + 1:  # they are told
            await asyncio.sleep(0.05)
        self.engine.close()
