"""Parts of the server by themselves: the reader of messages, sound of any form, the pacer's clock."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from dataclasses import fields, replace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from rest_fast.media import MediaError
from rest_fast.serving import protocol
from rest_fast.serving.pacer import BUFFER, ROOM, Pacer
from rest_fast.serving.protocol import ProtocolError
from rest_fast.serving.sound_in import SoundIn
from rest_fast.serving.tasks import end_all
from rest_fast.streaming.block import Block

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({f.name for made in protocol.TYPES.values() for f in fields(made)})
NEARLY = st.fixed_dictionaries(
    {"type": st.sampled_from([*protocol.TYPES, "", 0, None])},
    optional={name: JSON | st.sampled_from(["fake", "raw", 16000, 1]) for name in NAMES},
)


@settings(max_examples=300, deadline=None)
@given(st.text() | JSON.map(json.dumps) | NEARLY.map(json.dumps))
def test_a_message_is_one_of_the_known_or_refused(text):
    control = refusal = None
    try:
        control = protocol.read_control(text)
    except ProtocolError as error:  # and nothing else
        refusal = error
    if refusal is not None:
        assert refusal.code == "BAD_MESSAGE" and len(str(refusal)) < 400
        return
    raw = json.loads(text)
    assert protocol.TYPES[raw.pop("type")] is type(control)
    assert {name: getattr(control, name) for name in raw} == raw


class Pushes:
    """Of a session, its inbox alone."""

    def __init__(self, rate=16000):
        self.rate, self.pushed, self.ends = rate, [], 0

    def push_audio(self, samples):
        assert samples.dtype == np.int16 and samples.ndim == 1
        self.pushed.append(samples)

    def end_segment(self):
        self.ends += 1

    @property
    def sound(self):
        return np.concatenate(self.pushed)


def sine(rate, seconds=1.0, hz=440.0, channels=1):
    one = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)
    return np.repeat(one[:, None], channels, 1)


def frame_of(sound, form, rate):
    """A frame as a decoder makes it: of s16, s32, flt or dbl, planar with a ``p``."""
    kinds = {"s16": (np.int16, 2**15 - 1), "s32": (np.int32, 2**31 - 1), "flt": (np.float32, 1), "dbl": (float, 1)}
    kind, scale = kinds[form.removesuffix("p")]
    array = (sound * scale).astype(kind)
    array = array.T if form.endswith("p") else array.reshape(1, -1)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[sound.shape[1]]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(array), form, layout)
    frame.sample_rate = rate
    return frame


def fed(session, sound, form, rate, piece=960):
    into = SoundIn(session)
    for first in range(0, len(sound), piece):
        into.push_frame(frame_of(sound[first : first + piece], form, rate))
    assert into.end_segment() and session.ends == 1
    return session.sound


@pytest.mark.parametrize("form", ["s16", "s16p", "s32", "s32p", "flt", "fltp", "dbl", "dblp"])
@pytest.mark.parametrize("channels", [1, 2])
def test_frames_of_any_form_are_the_same_sound(form, channels):
    sound = sine(16000, 0.2, channels=channels)
    got = fed(Pushes(), sound, form, 16000)
    np.testing.assert_allclose(got, 32767 * sound[:, 0], atol=2)  # two roundings, and 32768 against 32767


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_is_resampled_as_scipy_does_it(rate, channels):
    sound = sine(rate, channels=channels) * (0.2 if channels == 6 else 1)  # the mix of equal channels is louder
    got = fed(Pushes(), sound, "flt", rate)
    up, down = 16000 // np.gcd(16000, rate), rate // np.gcd(16000, rate)
    expected = 32767 * resample_poly(sound[:, 0], up, down)
    if channels == 6:  # a mix of centre, front and surround: another level, the same wave
        got = got * (expected[4000:12000].std() / got[4000:12000].std())
    assert abs(len(got) - 16000) <= 1
    middle = slice(1000, 15000)  # the filters differ at the ends
    np.testing.assert_allclose(got[middle], expected[middle], atol=0.01 * 16384)


def test_mono_int16_at_the_sessions_rate_is_not_touched():
    sound = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    session = Pushes()
    into = SoundIn(session)
    into.push(sound[:1000])
    into.push(sound[1000:2000, None])
    into.push_bytes(sound[2000:3001].astype("<i2").tobytes())
    into.push(sound[3001:])
    np.testing.assert_array_equal(session.sound, sound)


def test_a_change_of_the_rate_within_a_segment_loses_and_swaps_nothing():
    session = Pushes()
    into = SoundIn(session)
    for rate in (48000, 16000, 24000, 16000):
        into.push((16384 * sine(rate, 0.5, hz=400)[:, 0]).astype(np.int16), rate)  # 200 whole periods
    assert into.end_segment()
    assert abs(len(session.sound) - 32000) <= 3
    expected = 16384 * np.tile(sine(16000, 0.5, hz=400)[:, 0], 4)
    got = session.sound[: len(expected)].astype(float)
    correlation = np.corrcoef(got[8000:8400], expected[8000:8400])[0, 1]
    assert correlation > 0.98  # behind the first change


def test_what_has_no_samples_ends_no_segment():
    session = Pushes()
    into = SoundIn(session)
    assert not into.end_segment() and not into.forget()
    into.push(np.zeros(0, np.int16))
    assert not into.end_segment()
    into.push(np.zeros(10, np.int16))
    assert into.forget() and not into.end_segment() and session.ends == 0


@pytest.mark.parametrize(
    "samples, rate",
    [
        (np.zeros(4, np.uint8), None),
        (np.array([np.nan]), None),
        (np.zeros((2, 9), np.int16), None),
        (np.zeros((2, 2, 2), np.int16), None),
        (np.zeros(4, np.int16), 7),
        (np.zeros(4, np.int16), 44100.5),
    ],
)
def test_sound_that_is_none_is_refused(samples, rate):
    session = Pushes()
    with pytest.raises(MediaError):
        SoundIn(session).push(samples, rate)
    assert not session.pushed


def test_work_that_loses_a_cancellation_is_ended_all_the_same():
    async def loses_one():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def talk():
        tasks = [asyncio.create_task(loses_one()) for _ in range(2)]
        await asyncio.sleep(0)
        await end_all(tasks)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(asyncio.wait_for(talk(), 20))


class Blocks:
    """Of a session, its blocks alone; ``come`` is set for each."""

    def __init__(self, count, gate=None):
        self.rate, self.epoch, self.closed, self.count, self.gate, self.taken = 16000, 0, False, count, gate, 0

    async def ablocks(self, idle):
        assert idle
        for k in range(self.count):
            if self.gate is not None:
                await self.gate.acquire()
            self.taken += 1
            video = np.full((8, 2, 2, 3), k, np.uint8)
            audio = np.arange(8 * 640, dtype=np.int16)
            yield Block(video, audio, 0.32 * k, 0, 0, False, False, 8 * 640)


class Clock:
    """Seconds that pass while the pacer sleeps, and not otherwise."""

    def __init__(self, monkeypatch):
        self.now, self.over = 100.0, 0.0
        sleep = asyncio.sleep

        async def passing(seconds, *_):
            self.now += seconds + (self.over if seconds else 0.0)
            await sleep(0)

        monkeypatch.setattr("rest_fast.serving.pacer.asyncio.sleep", passing)


def test_frames_of_a_burst_leave_at_their_times(monkeypatch):
    clock, at, sounds = Clock(monkeypatch), [], []

    async def talk():
        async for shown in Pacer(Blocks(10), clock=lambda: clock.now):
            at.append(clock.now)
            sounds.append(shown.sound)
            assert not shown.held and shown.index == len(at) - 1 and shown.first == 640 * shown.index

    asyncio.run(asyncio.wait_for(talk(), 20))
    np.testing.assert_allclose(at, 100 + BUFFER + np.arange(80) / 25, atol=1e-9)
    np.testing.assert_array_equal(np.concatenate(sounds), np.tile(np.arange(8 * 640), 10))


def test_a_mark_is_in_every_picture_and_moves_no_sound(monkeypatch):
    """Called with a block's pictures, and never twice with one."""
    clock, seen = Clock(monkeypatch), []

    def mark(video):
        seen.append(len(video))
        return 255 - video

    async def talk():
        plain = [shown async for shown in Pacer(Blocks(3), clock=lambda: clock.now)]
        marked = [shown async for shown in Pacer(Blocks(3), mark=mark, clock=lambda: clock.now)]
        for one, other in zip(plain, marked, strict=True):
            np.testing.assert_array_equal(other.picture, 255 - one.picture)
            np.testing.assert_array_equal(other.sound, one.sound)

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert seen == [8, 8, 8]


def test_frames_say_how_much_of_their_sound_was_pushed(monkeypatch):
    """The last block of a segment is filled with silence; nothing of a frame that is muted counts."""
    clock, spoken = Clock(monkeypatch), []

    class Ends(Blocks):
        async def ablocks(self, idle):
            async for block in super().ablocks(idle):
                yield dataclasses.replace(block, true_samples=2 * 640 + 100, segment_end=True)

        def interrupt(self, shown_pts):
            self.epoch += 1
            return 0.32

    async def talk():
        pacer = Pacer(Ends(3), clock=lambda: clock.now)
        async for shown in pacer:
            spoken.append(shown.spoken)
            if len(spoken) == 16:
                pacer.interrupt()

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert spoken[:16] == [640, 640, 100, 0, 0, 0, 0, 0] * 2 and not any(spoken[16:])


def test_an_interrupt_beside_the_pacer_silences_nothing_behind_it(monkeypatch):
    """Somebody has called the session's own: its new epoch is shown and heard."""
    clock, heard = Clock(monkeypatch), []

    class Interrupted(Blocks):
        async def ablocks(self, idle):
            async for block in super().ablocks(idle):
                yield dataclasses.replace(block, epoch=int(block.pts > 0.5))

    async def talk():
        async for shown in Pacer(Interrupted(4), clock=lambda: clock.now):
            heard.append((shown.epoch, bool(shown.sound.any())))

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert heard == [(0, True)] * 16 + [(1, True)] * 16


def test_who_asks_late_is_later_by_as_much_and_loses_nothing(monkeypatch):
    clock, at = Clock(monkeypatch), []
    pacer = Pacer(Blocks(5), clock=lambda: clock.now)

    async def talk():
        async for shown in pacer:
            at.append((shown.index, clock.now))
            if shown.index == 9:
                clock.now += 2.0

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert [index for index, _ in at] == list(range(40)) and pacer.held == 0
    gap = at[10][1] - at[9][1]
    assert gap == pytest.approx(2.0) and pacer.late == pytest.approx(2.0 - 1 / 25)
    np.testing.assert_allclose(np.diff([time for _, time in at[10:]]), 1 / 25, atol=1e-9)


def test_a_wait_that_ends_a_little_late_moves_no_frame(monkeypatch):
    clock, at = Clock(monkeypatch), []
    clock.over = 0.01
    pacer = Pacer(Blocks(10), clock=lambda: clock.now)

    async def talk():
        async for _ in pacer:
            at.append(clock.now)

    asyncio.run(asyncio.wait_for(talk(), 20))
    lateness = np.array(at) - (100 + BUFFER + np.arange(80) / 25)
    assert lateness.min() >= 0 and lateness.max() <= 0.0101 and pacer.late == 0


def test_a_pacer_that_is_paused_twice_shows_nothing_between():
    """The second pause begins before whoever waits has heard of the end of the first."""

    async def talk():
        pacer = Pacer(Blocks(100), buffer=0.0)
        frames = pacer.__aiter__()
        await anext(frames)
        pacer.pause()
        waits = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0.1)
        pacer.go_on()
        pacer.pause()
        await asyncio.sleep(0.05)
        assert not waits.done() and pacer.frames == 1
        pacer.go_on()
        assert (await waits).index == 1
        await frames.aclose()

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_no_more_frames_wait_than_there_is_room_for():
    async def talk():
        session = Blocks(100)
        frames = Pacer(session).__aiter__()
        await anext(frames)
        for _ in range(50):
            await asyncio.sleep(0)
        assert ROOM // 8 <= session.taken <= ROOM // 8 + 2  # the one that passes the border, and one in hand
        await frames.aclose()

    asyncio.run(asyncio.wait_for(talk(), 20))


def test_of_a_segment_that_is_cut_the_pictures_still_come_and_no_end(monkeypatch):
    clock, shown = Clock(monkeypatch), []

    class Cut(Blocks):
        async def ablocks(self, idle):
            async for block in super().ablocks(idle):
                yield replace(block, segment_end=True)

        def interrupt(self, shown_pts):
            assert shown_pts == pytest.approx(3 / 25)
            self.epoch = 1
            return 0.32

    async def talk():
        pacer = Pacer(Cut(1), clock=lambda: clock.now)
        async for frame in pacer:
            shown.append(frame)
            if len(shown) == 3:
                assert pacer.interrupt() == 0.32

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert len(shown) == 8 and not any(frame.segment_end for frame in shown)
    assert [bool(frame.sound.any()) for frame in shown] == [True] * 3 + [False] * 5


def test_a_frame_that_is_late_is_the_one_before_in_silence(monkeypatch):
    clock, shown = Clock(monkeypatch), []

    async def talk():
        gate = asyncio.Semaphore(1)
        pacer = Pacer(Blocks(2, gate), clock=lambda: clock.now)
        async for frame in pacer:
            shown.append(frame)
            if len(shown) == 12:
                gate.release()
                for _ in range(5):
                    await asyncio.sleep(0)
        assert pacer.held == 4 and pacer.position == pytest.approx(0.64)

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert [frame.held for frame in shown] == [False] * 8 + [True] * 4 + [False] * 8
    assert all(not frame.sound.any() and len(frame.sound) == 640 for frame in shown[8:12])
    assert {frame.pts for frame in shown[8:12]} == {shown[7].pts}
    assert [frame.first for frame in shown] == [640 * k for k in range(20)]
