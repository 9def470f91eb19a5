"""pipecat's own pipelines, transport and ``run_test`` around a face. What every transport owes is in the contract."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pipecat", reason="pipecat-ai is not installed: make front-ends")

from pipecat.frames.frames import (
    EndFrame,
    InterruptionFrame,
    OutputImageRawFrame,
    TextFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.tests.utils import SleepFrame, run_test
from pipecat.workers.runner import WorkerRunner

from rest_fast.model import ASSETS
from rest_fast.serving import fake
from rest_fast.serving.pipecat_avatar import FaceProcessor
from tests.kit.pipecat_bots import Bot, Ear, Screen, open_bot, params_of
from tests.kit.serving import RATE, fake_service, now
from tests.kit.toys import sound

ROOT = Path(__file__).resolve().parents[2]
LATE = 0.06  # seconds between a sound and its picture: a tick of the screen is 0.02


@pytest.fixture(scope="module")
def service():
    made = fake_service(sessions=3)
    yield made
    made.engine.close()


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


def speech(seconds):
    return np.rint(sound(RATE, seconds).clip(-1, 1) * 20000).astype(np.int16)


def voice(samples, **options):
    return TTSAudioRawFrame(samples.astype("<i2").tobytes(), RATE, 1, **options)


async def until(condition, seconds=15):
    end = now() + seconds
    while not condition():
        assert now() < end, "it never came"
        await asyncio.sleep(0.005)


def face_of(service, **options):
    return FaceProcessor(service.engine, service.engine.avatar, **{"sample_rate": RATE, **options})


def only(kind, frames):
    return [frame for frame in frames if isinstance(frame, kind)]


async def free(service, seats=0):
    await until(lambda: len(service.engine.seats) == seats)


async def says(bot, samples):
    """Speak and wait until it was said; what was heard meanwhile."""
    before, stops = len(bot.screen.heard), len(only(TTSStoppedFrame, bot.behind.passed))
    await bot.say(samples)
    await bot.worker.queue_frame(TTSStoppedFrame())
    await until(lambda: len(only(TTSStoppedFrame, bot.behind.passed)) > stops)
    return b"".join(piece for _, _, piece in bot.screen.heard[before:])


def test_the_librarys_run_test(service):
    """All of the voice comes with pictures, its end behind it, and the pipeline's end behind that; the rest goes
    through."""

    async def talk():
        said = speech(1.5)
        frames = [SleepFrame(0.3), TTSStartedFrame(), voice(said), TextFrame("hello"), TTSStoppedFrame()]
        down, up = await run_test(face_of(service), frames_to_send=frames)
        assert not up
        heard = b"".join(frame.audio for frame in only(TTSAudioRawFrame, down))
        assert heard == said.tobytes()
        pictures = only(OutputImageRawFrame, down)
        assert all(one.sync_with_audio and one.size == (fake.SIDE,) * 2 and one.format == "RGB" for one in pictures)
        first, last = (down.index(only(TTSAudioRawFrame, down)[k]) for k in (0, -1))
        assert isinstance(down[first - 1], OutputImageRawFrame)
        stop = down.index(only(TTSStoppedFrame, down)[0])
        assert last < stop and len(only(TextFrame, down)) == 1
        code = fake.read(np.frombuffer(down[first - 1].image, np.uint8).reshape(fake.SIDE, fake.SIDE, 3))
        assert code.level == fake.level_of(np.frombuffer(down[first].audio, np.int16))
        await free(service)

    run(talk())


def test_the_end_of_the_pipeline_waits_for_what_is_said(service):
    """Also where synthesis has told no end."""

    async def talk():
        said = speech(1.3)
        down, _ = await run_test(face_of(service), frames_to_send=[voice(said)])
        assert b"".join(frame.audio for frame in only(TTSAudioRawFrame, down)) == said.tobytes()
        await free(service)

    run(talk())


def test_a_picture_is_drawn_with_its_sound(service):
    async def talk():
        async with open_bot(service) as watched:
            bot = watched.bot
            await says(bot, speech(6))
            drawn = {id(picture): at for at, picture in bot.screen.seen}
            lags = [drawn[id(picture)] - at for at, picture, _ in bot.screen.heard if id(picture) in drawn]
            assert len(lags) > 0.9 * 150 and 0 <= np.median(lags) < LATE

    run(talk())


@pytest.mark.parametrize("changes", [{"video_out_is_live": True}, {"video_out_enabled": False}])
def test_a_transport_that_would_draw_nothing_is_refused(service, changes):
    """One error, and the bot speaks without a face."""

    async def talk():
        async with Bot(face_of(service), params_of(**changes)) as bot:
            heard = await says(bot, speech(0.5))
            assert np.frombuffer(heard, np.int16).any()
            assert len(bot.errors) == 1 and "video_out_is_live=False" in bot.errors[0]
            assert not bot.face.is_usable and not bot.screen.seen
        await free(service)

    run(talk())


def test_one_bot_too_many_speaks_without_a_face():
    service = fake_service(sessions=1)

    async def talk():
        async with open_bot(service):
            async with Bot(face_of(service), params_of()) as bot:
                heard = await says(bot, speech(0.5))
                assert np.frombuffer(heard, np.int16).any() and not bot.screen.seen
                assert len(bot.errors) == 1 and not bot.face.is_usable
        await free(service)

    run(talk())
    service.engine.close()


@pytest.mark.parametrize("rate, channels, size", [(5, 1, 200), (RATE, 9, 1800), (RATE, 1, 333)])
def test_bad_sound_is_one_error_and_is_left_out(service, rate, channels, size):
    async def talk():
        async with open_bot(service) as neighbour, open_bot(service) as watched:
            bot = watched.bot
            for _ in range(20):
                await bot.worker.queue_frame(TTSAudioRawFrame(bytes(size), rate, channels))
            await until(lambda: bot.errors)
            assert np.frombuffer(await says(bot, speech(0.5)), np.int16).any()
            assert len(bot.errors) == 1 and "expected" in bot.errors[0] and bot.face.is_usable
            assert not neighbour.bot.errors and np.frombuffer(await says(neighbour.bot, speech(0.3)), np.int16).any()
        await free(service)

    run(talk())


def test_other_rates_and_channels_are_taken(service):
    async def talk():
        async with open_bot(service) as watched:
            stereo = np.repeat(speech(1.5)[:, None], 2, 1)
            await watched.bot.worker.queue_frame(TTSAudioRawFrame(stereo.tobytes(), 24_000, 2))
            await watched.bot.worker.queue_frame(TTSStoppedFrame())
            await until(lambda: only(TTSStoppedFrame, watched.bot.behind.passed))
            heard = b"".join(piece for _, _, piece in watched.bot.screen.heard)
            assert len(heard) / 2 / RATE == pytest.approx(1.0, abs=0.05)

    run(talk())


def test_interruptions_that_come_early_late_or_twice_change_nothing(service):
    async def talk():
        async with open_bot(service) as watched:
            bot = watched.bot
            for _ in range(2):
                await bot.worker.queue_frame(InterruptionFrame())
            await bot.say(speech(3))
            await until(lambda: bot.screen.heard)
            for _ in range(3):
                await bot.worker.queue_frame(InterruptionFrame())
            await asyncio.sleep(0.5)
            silent = len(bot.screen.heard)
            await asyncio.sleep(0.5)
            assert len(bot.screen.heard) == silent and not bot.errors
            assert len(await says(bot, speech(0.8))) / 2 / RATE == pytest.approx(0.8, abs=0.04)
            await bot.worker.queue_frame(InterruptionFrame())

    run(talk())


def test_what_is_not_to_be_interrupted_is_said_to_its_end(service):
    async def talk():
        async with open_bot(service) as watched:
            bot, frame = watched.bot, voice(speech(2))
            frame.interruptible = False
            await bot.worker.queue_frame(frame)
            await bot.worker.queue_frame(TTSStoppedFrame())
            await until(lambda: bot.screen.heard)
            await bot.worker.queue_frame(InterruptionFrame())
            await asyncio.sleep(2.5)
            heard = b"".join(piece for _, _, piece in bot.screen.heard)
            assert len(heard) / 2 / RATE == pytest.approx(2.0, abs=0.05)

    run(talk())


def test_an_engine_that_ends_is_one_error_and_the_voice_goes_on():
    service = fake_service(sessions=2)

    async def talk():
        async with open_bot(service) as watched:
            bot = watched.bot
            await bot.say(speech(3))
            await bot.worker.queue_frame(TTSStoppedFrame())
            await until(lambda: bot.screen.heard)
            service.engine.close()
            await until(lambda: bot.errors)
            await until(lambda: only(TTSStoppedFrame, bot.behind.passed))  # nobody waits for it for ever
            assert np.frombuffer(await says(bot, speech(0.4)), np.int16).any()
            assert len(bot.errors) == 1 and not bot.face.is_usable
            await bot.worker.queue_frame(EndFrame())
            await asyncio.wait_for(bot.running, 10)

    run(talk())


def test_a_pipeline_that_is_cancelled_leaves_nothing(service):
    async def talk():
        before = asyncio.all_tasks()
        async with open_bot(service) as watched:
            await watched.bot.say(speech(30))
            await until(lambda: watched.bot.screen.heard)
        await free(service)
        assert not [task for task in asyncio.all_tasks() - before if not task.done()]

    run(talk())


def test_the_guide_runs(monkeypatch, tmp_path):
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pipecat.md").read_text(), re.S)
    shutil.copy(ASSETS / "demo" / "portrait.png", tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    guide = {}
    exec(compile(text, "docs/pipecat.md", "exec"), guide)

    async def talk():
        screen = Screen(guide["params"])
        transport = SimpleNamespace(input=Ear, output=lambda: screen)
        worker = PipelineWorker(guide["pipeline"](transport), params=PipelineParams(audio_out_sample_rate=RATE))
        await worker.queue_frames([voice(speech(1)), EndFrame()])
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
        assert sum(len(piece) for _, _, piece in screen.heard) / 2 / RATE >= 1 and len(screen.seen) > 20
        assert screen.seen[0][1].size == guide["engine"].model.prepare("face.png").picture.shape[1::-1]

    run(talk())
    guide["engine"].close()
