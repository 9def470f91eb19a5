"""A viewer who watches all the time: blocks by their time, silence where sound is missing, held frames where
computation is late, speech that takes the place of silence, and what listeners are told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time

import numpy as np
import pytest

from rest_fast.streaming import events
from tests.kit.streams import play, same
from tests.kit.toys import sound

RATE = 16000
JITTER = 0.25  # seconds by which a busy machine may be late; nothing below depends on less


@pytest.fixture(params=["engine", "private"])
def session(request, model, avatar):
    """One that generates by itself, and one that generates when it is asked."""
    if request.param == "private":
        with model.session(avatar, seed=3) as opened:
            yield opened
    else:
        with model.engine(sessions=2, admission=False) as engine, engine.session(avatar, seed=3) as opened:
            yield opened


class Watching:
    """Takes a session's live blocks; when each came, in seconds since the first."""

    def __init__(self, session, count, during=None):
        self.session, self.blocks, self.times = session, [], []
        asyncio.run(asyncio.wait_for(self._watch(count, during), 60))

    async def _watch(self, count, during):
        task = None if during is None else asyncio.ensure_future(during(self))
        async for block in self.session.ablocks(idle=True):
            self.blocks.append(block)
            self.times.append(time.monotonic())
            if len([b for b in self.blocks if not b.held]) == count:
                break
        if task is not None:
            await task
        self.times = [t - self.times[0] for t in self.times]


def test_silence_comes_block_by_block_at_its_time(session):
    """The second block by the end of the first, and not much before it."""
    seen = Watching(session, 7)
    assert all(b.idle or b.held for b in seen.blocks)
    blocks = [(b, t) for b, t in zip(seen.blocks, seen.times) if not b.held]
    assert [b.pts for b, _ in blocks] == pytest.approx([0.32 * i for i in range(7)])
    for i, (_, t) in enumerate(blocks[1:], 1):
        assert 0.32 * i - 0.05 < t < 0.32 * i + JITTER + 0.04 * sum(b.held for b in seen.blocks)


def test_speech_comes_at_once_but_not_further_ahead_than_can_be_taken_back(session):
    session.push_audio(sound(RATE, 4.0))
    session.end_segment()
    seen = Watching(session, 13)
    spoken = [b for b in seen.blocks if not b.held and not b.idle]
    assert [b.pts for b in spoken] == pytest.approx([0.32 * i for i in range(13)])
    for i, t in enumerate(seen.times):
        assert t > 0.32 * i - 0.96 - 0.05  # a chunk ahead of what is played at most
    assert seen.times[2] < JITTER  # the first chunk as soon as it is there


def test_speech_takes_the_place_of_silence_that_nobody_has_seen(session, model, avatar):
    """Whatever the clock made of it: the recorded order of what came gives the same frames in a session without one."""
    told, samples = [], sound(RATE, 2.2)
    session.listen(told.append)

    async def speak(watching):
        while len(watching.blocks) < 4:  # the first of a chunk of silence
            await asyncio.sleep(0.005)
        session.push_audio(samples)
        session.end_segment()

    seen = Watching(session, 11, speak)
    blocks = [b for b in seen.blocks if not b.held]
    idle = [b.idle for b in blocks]
    first = idle.index(False)
    assert 4 <= first <= 5  # not the whole chunk of silence
    spoken = blocks[first : first + 7]
    assert not any(b.idle for b in spoken) and spoken[-1].segment_end
    assert np.array_equal(np.concatenate([b.audio for b in spoken])[: len(samples)], samples)
    assert [e for e in told if isinstance(e, events.SpeechStarted)] == [
        events.SpeechStarted(pytest.approx(0.32 * first), 0, spoken[0].segment)
    ]
    with model.session(avatar, seed=3) as s:
        replayed = [next(s.blocks(idle=True))]
        replayed += list(s.blocks())  # three of silence
        replayed.append(next(s.blocks(idle=True)))
        replayed += [next(s.blocks()) for _ in range(first - 4)]
        replayed += play(s, samples)
        same(blocks[: first + 7], replayed)


def test_late_computation_holds_the_last_frame_and_skips_nothing(session, model, avatar):
    """A chunk that takes 1.3 s: the viewer sees the last frame meanwhile, then all that was said."""
    samples, told = sound(RATE, 3.0), []
    with model.session(avatar, seed=3) as s:
        want = play(s, samples)
    session.listen(told.append)
    begin, calls = session.seat.work.begin, []

    def slow(late):
        calls.append(1)
        if len(calls) == 2:
            time.sleep(0.96 + 1.3)
        begin(late)

    session.seat.work.begin = slow
    session.push_audio(samples)
    session.end_segment()
    seen = Watching(session, len(want))
    held = [i for i, b in enumerate(seen.blocks) if b.held]
    assert len(held) > 15  # 40 ms each
    for i in held:
        block, before = seen.blocks[i], seen.blocks[held[0] - 1]
        assert block.video.shape == (1, 64, 64, 3) and np.array_equal(block.video[0], before.video[-1])
        assert block.audio.shape == (0,) and block.audio.dtype == samples.dtype and block.true_samples == 0
        assert block.pts == pytest.approx(before.pts + 0.32) and block.duration == pytest.approx(0.04)
    same(want, [b for b in seen.blocks if not b.held])
    assert session.metrics().held == len(held) == len([e for e in told if isinstance(e, events.Late)])
    steps = np.diff([seen.times[i] for i in held])
    assert np.median(steps) == pytest.approx(0.04, abs=0.02)


def test_a_starved_segment_is_told_and_counted(session):
    told = []
    session.listen(told.append)
    session.push_audio(sound(RATE, 1.3))  # a chunk, and a quarter of a second that is no chunk yet
    seen = Watching(session, 5)
    assert [b.idle for b in seen.blocks if not b.held] == [False] * 3 + [True] * 2
    assert session.metrics().starved == 2
    assert [e.pts for e in told if isinstance(e, events.Starved)] == pytest.approx([0.96, 1.28])


def test_listeners_are_told_in_order_and_cannot_break_a_stream(model, avatar, caplog):
    told = []

    def broken(_):
        raise ValueError("a listener's own fault")

    with model.session(avatar) as s:
        s.listen(broken)
        end = s.listen(told.append)
        with caplog.at_level(logging.ERROR):
            play(s, sound(RATE, 0.5))
        s.push_audio(sound(RATE, 1.1))
        next(s.blocks())
        at = s.interrupt()
        next(s.blocks(idle=True))
        end()
        end()
        next(s.blocks(idle=True))
    assert told == [
        events.SpeechStarted(0.0, 0, 0),
        events.SegmentEnded(pytest.approx(0.64), 0, 0),
        events.SpeechStarted(pytest.approx(0.64), 0, 1),
        events.Interrupted(at, 1),
    ]
    assert "a listener failed" in caplog.text


def test_an_interrupt_stops_what_the_viewer_would_have_seen(session):
    async def cut(watching):
        while len(watching.blocks) < 3:
            await asyncio.sleep(0.005)
        at = session.interrupt(shown_pts=watching.blocks[0].pts + 0.32)
        assert at == pytest.approx(0.32)
        session.push_audio(sound(RATE, 1.0, seed=1))
        session.end_segment()

    session.push_audio(sound(RATE, 8.0))
    seen = Watching(session, 7, cut)
    blocks = [b for b in seen.blocks if not b.held]
    assert [b.epoch for b in blocks[:3]] == [0] * 3 and {b.epoch for b in blocks[4:]} == {1}
    first = next(b for b in blocks if b.epoch == 1)
    assert first.pts == pytest.approx(0.32)


@pytest.mark.parametrize("idle", [False, True])
def test_a_cancelled_wait_loses_no_block(session, idle):
    """Cancelled at random moments, and begun again: every block comes once."""
    rng, got = np.random.default_rng(0), []

    async def watch():
        async for block in session.ablocks(idle=idle):
            if not block.held and not block.idle:
                got.append(block)
            if block.segment_end:
                return True

    async def run():
        while True:
            task = asyncio.ensure_future(watch())
            await asyncio.sleep(float(rng.uniform(0, 0.05)))
            if task.done() and task.result():
                return
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if await task:
                    return

    session.push_audio(sound(RATE, 2.0))
    session.end_segment()
    asyncio.run(asyncio.wait_for(run(), 60))
    assert [b.pts for b in got] == pytest.approx([0.32 * i for i in range(7)])


def test_close_ends_a_watching_viewer(session):
    timer = threading.Timer(0.5, session.close)
    timer.start()

    async def run():
        return [block async for block in session.ablocks(idle=True)]

    assert asyncio.run(asyncio.wait_for(run(), 20))
    assert not list(session.blocks())


def test_what_is_queued_and_what_is_ready(model, avatar):
    with model.engine(sessions=1, admission=False) as engine, engine.session(avatar) as s:
        s.push_audio(sound(RATE, 2.0))
        assert s.queued_seconds == pytest.approx(2.0)
        while s.ready_seconds < 0.9:
            time.sleep(0.005)
        next(s.blocks())
        assert s.queued_seconds == pytest.approx(1.68)
        report = s.metrics()
        assert report.queued == pytest.approx(1.68) and report.blocks == 1 and report.chunks >= 1
        s.interrupt()
        assert s.queued_seconds == 0
        assert report.as_dict()["stages"]["response"]["p50_ms"] > 0


def test_a_cancellation_together_with_a_change_is_not_lost(session):
    async def watch():
        async for _ in session.ablocks(idle=True):
            pass

    async def run():
        for turns in range(5):  # of the loop, between the change and the cancellation
            session.mailbox.plays_until = session.engine.clock() + 60  # nothing is handed out meanwhile
            task = asyncio.ensure_future(watch())
            await asyncio.sleep(0.2)
            session.mailbox.wake()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=1)
            assert task.cancelled(), turns

    asyncio.run(run())


def test_silence_is_not_queued_sound(model, avatar):
    with model.session(avatar) as s:
        next(s.blocks(idle=True))
        assert s.queued_seconds == 0
        s.push_audio(sound(RATE, 0.5))
        assert [next(s.blocks()).idle, s.queued_seconds] == [True, 0.5]
        assert [next(s.blocks()).idle, s.queued_seconds] == [True, 0.5]
        s.end_segment()
        assert [b.idle for b in s.blocks()] == [False, False] and s.queued_seconds == 0


def test_sound_that_begins_is_no_starved_segment(session):
    """Pieces of speech come while silence is shown, and nothing of their segment was shown yet."""
    told = []
    session.listen(told.append)

    async def speak(watching):
        while not watching.blocks:
            await asyncio.sleep(0.005)
        for piece in np.array_split(sound(RATE, 1.2), 8):
            session.push_audio(piece)
            await asyncio.sleep(0.1)

    seen = Watching(session, 8, speak)
    spoken = [i for i, b in enumerate(seen.blocks) if not b.held and not b.idle]
    assert len(spoken) == 3 and session.metrics().starved == 8 - spoken[-1] - 1 + sum(
        b.held for b in seen.blocks[spoken[-1] :]
    )
    kinds = [type(e) for e in told if isinstance(e, events.SpeechStarted | events.Starved)]
    assert kinds[0] is events.SpeechStarted
