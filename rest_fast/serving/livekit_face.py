"""A session as LiveKit Agents' ``AvatarRunner`` wants it, and the agent's sound on its way there.

The runner counts what is played by what it takes, and takes as much as it is given: bursts would have sound lead the
picture. So it is given a frame and its sound at their time and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from livekit import rtc
from livekit.agents.voice import avatar as lk

from rest_fast.avatar import Avatar
from rest_fast.errors import SessionClosed
from rest_fast.serving.pacer import Mark
from rest_fast.serving.viewer import Viewer
from rest_fast.streaming.engine import Engine
from rest_fast.units import FPS

RATE = 24_000  # samples a second, as most voices have them; others are resampled
QUEUE = 30.0  # seconds of sound that wait for their video; beyond that the agent waits
TAKEN = 0.2  # seconds in which the runner takes a frame and its sound, whose queues hold 0.1 s


class Face(lk.VideoGenerator):
    """A session as the library's ``VideoGenerator``: 25 frames a second, idle ones included, and sound where somebody
    speaks. Open with :meth:`open`. ``cleared`` is called behind each clear, when the runner has told of it or not."""

    def __init__(self, viewer: Viewer):
        self.viewer = viewer
        self.cleared: Callable[[], None] = lambda: None
        self._numbers = itertools.count()
        self._ending: set[str] = set()  # segments that were ended and not shown to their ends
        self._moved = asyncio.Event()
        self._taken = asyncio.Event()  # the runner has taken the frame with its sound, and counted it
        self._taken.set()

    @classmethod
    async def open(
        cls, engine: Engine, avatar: Avatar, *, sample_rate: int = RATE, seed: int = 0, mark: Mark | None = None
    ) -> Face:
        """``sample_rate`` is that of the sound that comes out; ``mark``: see
        :class:`~rest_fast.serving.pacer.Pacer`. Raises: what :meth:`rest_fast.Engine.session` does."""
        return cls(await Viewer.open(engine, avatar, sample_rate=sample_rate, seed=seed, mark=mark))

    @property
    def options(self) -> lk.AvatarOptions:
        """For ``AvatarRunner``."""
        height, width = self.viewer.session.avatar.picture.shape[:2]
        return lk.AvatarOptions(width, height, FPS, self.viewer.session.rate, 1)

    async def push_audio(self, frame: rtc.AudioFrame | lk.AudioSegmentEnd) -> None:
        """Sound of any rate and 1..8 channels, or the end of what is said. That waits until all of it was shown, since
        the runner counts one segment at a time.

        Raises: :class:`rest_fast.MediaError`, :class:`rest_fast.SessionClosed`.
        """
        session, epoch = self.viewer.session, self.viewer.session.epoch
        if isinstance(frame, lk.AudioSegmentEnd):
            name = str(next(self._numbers))
            self.viewer.end(name)
            self._ending.add(name)
            await self._while(lambda: name in self._ending)
            return
        await self._while(lambda: session.queued_seconds > QUEUE and session.epoch == epoch)
        if session.epoch == epoch:  # else it was cleared meanwhile
            self.viewer.push_bytes(bytes(frame.data), rate=frame.sample_rate, channels=frame.num_channels)

    async def clear_buffer(self) -> None:
        """Barge-in. Returns when the runner has counted the sound that it was just taking, which would count as the
        beginning of the next segment otherwise."""
        if not self.viewer.session.closed:
            self.viewer.interrupt()
        self._ending.clear()
        self.viewer.finished.clear()
        self._moved.set()
        with contextlib.suppress(asyncio.TimeoutError):  # nobody may have subscribed to the tracks yet
            await asyncio.wait_for(self._taken.wait(), TAKEN)
        asyncio.get_running_loop().call_soon(self.cleared)

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | lk.AudioSegmentEnd]:
        session = self.viewer.session
        try:
            async for shown in self.viewer.frames():
                while self.viewer.finished:
                    self._ending.discard(self.viewer.finished.popleft().id)
                    yield lk.AudioSegmentEnd()
                self._moved.set()
                height, width = shown.picture.shape[:2]
                self._taken.clear()
                yield rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, shown.picture.tobytes())
                if shown.spoken and shown.epoch == session.epoch:  # it may have been cleared meanwhile
                    sound = shown.sound[: shown.spoken]
                    yield rtc.AudioFrame(sound.tobytes(), session.rate, 1, len(sound))
                self._taken.set()
        finally:
            self._taken.set()
            self._moved.set()
        raise SessionClosed("face: expected an open session, got one that was closed")

    async def _while(self, waits: Callable[[], bool]) -> None:
        while waits() and not self.viewer.session.closed:
            self._moved.clear()
            await self._moved.wait()

    def close(self) -> None:
        self.viewer.close()
        self._moved.set()


class Voice(lk.QueueAudioOutput):
    """The agent's sound on its way to a face in this process. Each segment is told to be finished, also one that was
    cleared before the runner saw it, and those behind the end of the face: an agent would wait for them for ever."""

    def __init__(self, face: Face):
        super().__init__(sample_rate=face.viewer.session.rate, wait_playback_start=True)
        self._told = self._cut = 0  # segments, of which it was told that they are finished, and that are cleared
        self._ended = False
        face.cleared = self._settle

    def notify_playback_finished(self, playback_position: float, interrupted: bool) -> None:
        self._told += 1
        super().notify_playback_finished(playback_position, interrupted)

    def clear_buffer(self) -> None:
        self._cut = self.captured_playout_segments
        super().clear_buffer()

    def flush(self) -> None:
        super().flush()
        if self._ended:
            self.end()

    def end(self) -> None:
        """There is no face any more."""
        self._ended, self._cut = True, self.captured_playout_segments
        self._settle()

    def _settle(self) -> None:
        while self._told < self._cut:
            self.notify_playback_finished(0.0, True)


class RemoteVoice(lk.DataStreamAudioReceiver):
    """The agent's sound from another participant. ``lk.clear_buffer`` is always answered by ``lk.playback_finished``,
    for which an agent that wants to speak waits up to 2 s."""

    def __init__(self, face: Face, room: rtc.Room, sender: str | None):
        super().__init__(room, sender_identity=sender)
        self.room, self._owed = room, False
        face.cleared = self._settle
        self.on("clear_buffer", self._owe)

    def _owe(self) -> None:
        self._owed = True

    def notify_playback_finished(self, playback_position: float, interrupted: bool) -> None:
        self._owed = False
        super().notify_playback_finished(playback_position, interrupted)

    def _settle(self) -> None:
        if self._owed:
            self.notify_playback_finished(0.0, True)

    @classmethod
    def _register_clear_buffer_rpc(cls, room: rtc.Room, *, caller_identity: str, handler: Any) -> None:
        """In this room alone. The library has one table for all rooms of the process, by the agent's identity, and
        keeps what is in it."""
        room.local_participant.register_rpc_method("lk.clear_buffer", handler)

    async def aclose(self) -> None:
        await super().aclose()
        self.room.local_participant.unregister_rpc_method("lk.clear_buffer")
        self.room.unregister_byte_stream_handler("lk.audio_stream")
