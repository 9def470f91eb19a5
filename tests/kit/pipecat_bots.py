"""pipecat's bots without a network, and faces of theirs as a front end sees them (``tests/kit/serving.py``)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputImageRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from rest_fast.serving.fake import SIDE
from rest_fast.serving.pipecat_avatar import FaceProcessor, video_params
from rest_fast.serving.service import Service
from tests.kit.serving import RATE, Got, now

FRAME = RATE // 25


class Screen(BaseOutputTransport):
    """The library's output, whose media go nowhere. A write of sound takes as long as the sound, as it does where a
    loudspeaker takes it.

    ``seen``: pictures, when each was drawn first; ``heard``: sound as it was written, when, and the picture that it was
    sent behind. Both go through one queue, so that is the order in which they are played.
    """

    def __init__(self, params: TransportParams):
        super().__init__(params)
        self.seen: list[tuple[float, OutputImageRawFrame]] = []
        self.heard: list[tuple[float, OutputImageRawFrame | None, bytes]] = []
        self.changed = asyncio.Event()
        self._latest: OutputImageRawFrame | None = None
        self._due: deque[tuple[OutputImageRawFrame | None, bytes]] = deque()
        self._free = 0.0  # when the loudspeaker has played what it has

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, OutputImageRawFrame):
            self._latest = frame
        elif isinstance(frame, OutputAudioRawFrame):
            self._due.append((self._latest, bytes(frame.audio)))
        await super().process_frame(frame, direction)

    async def write_video_frame(self, frame: OutputImageRawFrame) -> bool:
        if not self.seen or self.seen[-1][1] is not frame:  # each is drawn several times
            self.seen.append((now(), frame))
            self.changed.set()
        return True

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        picture = None
        while self._due:  # less what an interruption has dropped
            picture, sent = self._due.popleft()
            if frame.audio.startswith(sent):  # silence fills the last one
                break
        self.heard.append((now(), picture, bytes(frame.audio)))
        self._free = max(self._free, now()) + len(frame.audio) / 2 / self.sample_rate
        await asyncio.sleep(max(0.0, self._free - now()))
        return True


class Ear(FrameProcessor):
    """Keeps what goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.passed.append(frame)
        await self.push_frame(frame, direction)


class Bot:
    """A pipeline of a face and a screen, as a worker that runs."""

    def __init__(self, face: FaceProcessor, params: TransportParams, rate: int = RATE):
        self.face, self.screen, self.before, self.behind = face, Screen(params), Ear(), Ear()
        pipeline = Pipeline([self.before, face, self.screen, self.behind])
        rates = PipelineParams(audio_in_sample_rate=rate, audio_out_sample_rate=rate)
        self.worker = PipelineWorker(pipeline, params=rates, cancel_on_idle_timeout=False)

    async def __aenter__(self) -> Bot:
        self._runner = WorkerRunner(handle_sigint=False)
        await self._runner.add_workers(self.worker)
        started = asyncio.Event()

        @self.worker.event_handler("on_pipeline_started")
        async def begun(*_: Any) -> None:
            started.set()

        self.running = asyncio.create_task(self._runner.run())
        await started.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.cancel()
        await asyncio.wait_for(self.running, 10)

    @property
    def errors(self) -> list[str]:
        return [frame.error for frame in self.before.passed if isinstance(frame, ErrorFrame)]

    async def say(self, samples: np.ndarray, rate: int = RATE) -> None:
        for at in range(0, len(samples), rate // 2):
            piece = samples[at : at + rate // 2].astype("<i2").tobytes()
            await self.worker.queue_frame(TTSAudioRawFrame(piece, rate, 1))
            await asyncio.sleep(0)  # as between two messages of a network, which are as long in pipecat's services


def params_of(**changes: Any) -> TransportParams:
    """Of a screen for the fake engine's faces, whose frames are larger than its avatar."""
    size = {"video_out_width": SIDE, "video_out_height": SIDE}
    return TransportParams(**{**video_params(FAKE), "audio_out_end_silence_secs": 0, **size, **changes})


class _Square:
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)


FAKE: Any = _Square()


@dataclass(eq=False)
class Watched:
    """A bot's face, and the speech synthesis in front of it."""

    exact, transit, dropped = True, 5, 6  # 0.24 s that a loaded machine is late
    bot: Bot
    finished: list[tuple[str, bool]] = field(default_factory=list)
    names: deque[str] = field(default_factory=deque)
    shown: int = 0  # pictures that were given out
    stops: int = 0  # frames that were looked at for the end of what is said

    async def push(self, samples: np.ndarray) -> None:
        await self.bot.say(samples)

    async def end(self, name: str) -> None:
        self.names.append(name)
        await self.bot.worker.queue_frame(TTSStoppedFrame())

    async def interrupt(self) -> None:
        await self.bot.worker.queue_frame(InterruptionFrame())
        while not any(isinstance(frame, InterruptionFrame) for frame in self.bot.behind.passed[self.stops :]):
            await asyncio.sleep(0.005)
        self._listen()

    def _listen(self) -> None:
        """An end that was told, or an interruption, with which what was being said is over."""
        for frame in self.bot.behind.passed[self.stops :]:
            if isinstance(frame, TTSStoppedFrame):
                self.finished.append((self.names.popleft(), False))
            elif isinstance(frame, InterruptionFrame):
                self.finished += [(name, True) for name in self.names]
                self.names.clear()
        self.stops = len(self.bot.behind.passed)

    async def take(self, count: int) -> list[Got]:
        """Pictures that were drawn, and the sound that was written with each."""
        screen = self.bot.screen
        while len(screen.seen) < self.shown + count + 2:
            screen.changed.clear()
            await screen.changed.wait()
        self._listen()
        sounds = {id(picture): np.frombuffer(sound, np.int16) for _, picture, sound in screen.heard}
        got = []
        for at, picture in screen.seen[self.shown : self.shown + count]:
            pixels = np.frombuffer(picture.image, np.uint8).reshape(picture.size[1], picture.size[0], 3)
            got.append(Got(pixels, sounds.get(id(picture), np.zeros(FRAME, np.int16)), at))
        self.shown += count
        return got


@contextlib.asynccontextmanager
async def open_bot(service: Service) -> AsyncIterator[Watched]:
    async with Bot(FaceProcessor(service.engine, service.avatars.find("fake")), params_of()) as bot:
        yield Watched(bot)
