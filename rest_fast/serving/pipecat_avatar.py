"""pipecat: a face for the voice of a bot, between its speech synthesis and its output. docs/pipecat.md says how.

Each picture leaves at its time, in front of its 40 ms of sound and marked to go through the same queue, so that the
transport cannot part them. Pictures of a face that idles come without sound: silence would count as speech.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport

from rest_fast.avatar import Avatar
from rest_fast.errors import ConfigError, MediaError, SessionClosed
from rest_fast.serving.pacer import Mark, Shown
from rest_fast.serving.viewer import Viewer
from rest_fast.streaming.engine import Engine

QUEUE = 30.0  # seconds of sound that wait for their video; beyond that the pipeline waits
# The transport draws the latest picture so many times a second. That is twice for each, and late ones are not sent
# closer together than APART, so that none is missed.
DRAWN = 50
APART = 1.5 / DRAWN


def video_params(avatar: Avatar) -> dict[str, Any]:
    """Arguments of ``TransportParams`` with which the face is really drawn: of its size, and not as live video, whose
    queue pictures that go with sound never reach."""
    height, width = avatar.picture.shape[:2]
    size = {"video_out_width": width, "video_out_height": height}
    return {"audio_out_enabled": True, "video_out_enabled": True, "video_out_framerate": DRAWN, **size}


class FaceProcessor(FrameProcessor):
    """Takes the voice that comes from speech synthesis, and passes on pictures and that voice, all the time 25 pictures
    a second. All other frames go through. ``TTSStoppedFrame`` follows what is said, ``EndFrame`` waits for it.

    What cannot go on (no room for a session, settings that draw nothing, a failed computation) is one error by which
    the processor becomes unusable; the bot goes on with its voice alone. A sound that cannot be used is an error, too,
    and is left out.

    Args:
        engine, avatar: as in :meth:`rest_fast.Engine.session`.
        sample_rate: of the sound that goes out; None: the pipeline's.
        seed: of the session's noise.
        mark: see :class:`rest_fast.serving.pacer.Pacer`.
    """

    def __init__(
        self,
        engine: Engine,
        avatar: Avatar,
        *,
        sample_rate: int | None = None,
        seed: int = 0,
        mark: Mark | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        self.engine, self.avatar, self.rate = engine, avatar, sample_rate
        self.options: dict[str, Any] = {"seed": seed, "mark": mark}
        self.viewer: Viewer | None = None
        self._showing: asyncio.Task[None] | None = None
        self._ready, self._moved = asyncio.Event(), asyncio.Event()
        self._ending: dict[str, Frame] = {}  # ends of what is said, which are not shown yet
        self._interruptible = True  # what is being said
        self._refused = ""  # the error that was told last

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        down = direction == FrameDirection.DOWNSTREAM
        match frame:
            case StartFrame():
                await self.push_frame(frame, direction)
                await self._open()
                return
            case TTSAudioRawFrame() if down and self.viewer is not None:
                await self._speak(self.viewer, frame)
                return
            case TTSStoppedFrame() if down and self.viewer is not None:
                self._end(self.viewer, frame)
                return
            case OutputTransportReadyFrame():
                self._ready.set()
            case InterruptionFrame() if self.viewer is not None and self._interruptible:
                self.viewer.interrupt()
                self._ending.clear()
            case EndFrame() if self.viewer is not None:
                self._end(self.viewer, frame)
                while self.viewer is not None and self._ending:
                    self._moved.clear()
                    await self._moved.wait()
                await self._close()
            case CancelFrame():
                await self._close()
        await self.push_frame(frame, direction)

    async def cleanup(self) -> None:
        await self._close()
        await super().cleanup()

    async def _open(self) -> None:
        try:
            self._check()
            rate = self.rate or self.processor_setup.audio_out_sample_rate
            self.viewer = await Viewer.open(self.engine, self.avatar, sample_rate=rate, **self.options)
        except Exception as error:
            await self._fail(error)
            return
        self._showing = self.create_task(self._show(self.viewer))

    def _transport(self) -> BaseOutputTransport | None:
        found = self.next
        while found is not None and not isinstance(found, BaseOutputTransport):
            found = found.next
        return found

    def _check(self) -> None:
        """The transport says nothing of pictures that it never draws."""
        transport = self._transport()
        if transport is None:
            self._ready.set()
            return
        params = getattr(transport, "_params", None)
        if getattr(params, "video_out_is_live", False) or not getattr(params, "video_out_enabled", True):
            raise ConfigError(
                "transport: expected video_out_enabled=True and video_out_is_live=False (video_params has all that is "
                "needed), got a transport that would draw none of the pictures"
            )

    async def _speak(self, viewer: Viewer, frame: TTSAudioRawFrame) -> None:
        session, epoch = viewer.session, viewer.session.epoch
        while session.queued_seconds > QUEUE and session.epoch == epoch and not session.closed:
            self._moved.clear()
            await self._moved.wait()
        if session.epoch != epoch or session.closed:  # it was interrupted meanwhile
            return
        try:
            viewer.push_bytes(bytes(frame.audio), rate=frame.sample_rate, channels=frame.num_channels)
            self._interruptible, self._refused = frame.interruptible, ""
        except MediaError as error:
            if str(error) != self._refused:  # 50 a second would come
                self._refused = str(error)
                await self.push_error(str(error), exception=error)

    def _end(self, viewer: Viewer, frame: Frame) -> None:
        if not viewer.session.closed:
            self._ending[frame.name] = frame
            viewer.end(frame.name)

    async def _show(self, viewer: Viewer) -> None:
        await self._ready.wait()
        loop, sent = asyncio.get_running_loop(), 0.0
        try:
            async for shown in viewer.frames():
                await asyncio.sleep(max(0.0, sent + APART - loop.time()))
                sent = loop.time()
                while viewer.finished:
                    end = self._ending.pop(viewer.finished.popleft().id, None)
                    if isinstance(end, TTSStoppedFrame):
                        await self.push_frame(end)
                self._moved.set()
                await self._push(viewer, shown)
            raise SessionClosed("face: expected an open session, got one that was closed")
        except Exception as error:
            await self._fail(error)

    async def _push(self, viewer: Viewer, shown: Shown) -> None:
        height, width = shown.picture.shape[:2]
        picture = OutputImageRawFrame(image=shown.picture.tobytes(), size=(width, height), format="RGB")
        picture.sync_with_audio = True
        await self.push_frame(picture)
        if shown.spoken and shown.epoch == viewer.session.epoch:  # it may have been interrupted meanwhile
            sound = TTSAudioRawFrame(shown.sound[: shown.spoken].tobytes(), viewer.session.rate, 1)
            sound.interruptible = self._interruptible
            await self.push_frame(sound)

    async def _fail(self, error: Exception) -> None:
        """The voice goes on without the face."""
        viewer, self.viewer = self.viewer, None
        if viewer is not None:
            viewer.close()
        ends, self._ending = list(self._ending.values()), {}
        self._moved.set()
        await self.push_error(str(error), exception=error, force_treat_as_permanent=True)
        for end in ends:
            if isinstance(end, TTSStoppedFrame):
                await self.push_frame(end)

    async def _close(self) -> None:
        viewer, self.viewer = self.viewer, None
        showing, self._showing = self._showing, None
        if showing is not None:
            await self.cancel_task(showing)
        if viewer is not None:
            viewer.close()
        self._moved.set()
