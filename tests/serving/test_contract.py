"""What every transport owes a front end, tried with pictures that say whose they are, when, and with which sound."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import rest_fast
from rest_fast.serving import fake
from tests.kit.adapters import ADAPTERS, BEFORE, IN_PROCESS, NEEDS, SLOW
from tests.kit.serving import RATE, Served, fake_service

FRAME = RATE // 25
COMPRESSED = ("fmp4", "webrtc")  # sound, that is
ONE_FRAME = 1.0
NOTHING = 1  # of 255: the level of a codec's noise; the quietest speech here has 13


@pytest.fixture(scope="module", params=["toy", pytest.param("demo", marks=pytest.mark.slow)])
def service(request):
    """With the times of the smallest model, and with those of the shipped one."""
    made = fake_service(model=rest_fast.load("demo") if request.param == "demo" else None, sessions=4)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def served(service):
    with Served(service, page=False) as running:
        yield running


@pytest.fixture
def opener(service, served):
    """A function that opens the adapter of a name."""

    def choose(name):
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed: make front-ends")
        if name in BEFORE:
            BEFORE[name]()
        return lambda: ADAPTERS[name](service if name in IN_PROCESS else served)

    return choose


def some(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.fixture(params=some(ADAPTERS))
def adapter(request, opener):
    return opener(request.param)


@pytest.fixture(params=some(name for name in ADAPTERS if name not in COMPRESSED))
def exact(request, opener):
    """H.264's and VP8's companions AAC and Opus give back other samples than they were given."""
    return opener(request.param)


@pytest.fixture(params=COMPRESSED)
def compressed(request, served):
    return lambda: ADAPTERS[request.param](served)


def run(talk):
    return asyncio.run(asyncio.wait_for(talk, 60))


def tone(seconds, level=0.3, hz=440):
    times = np.arange(round(seconds * RATE)) / RATE
    return (32767 * level * np.sqrt(2) * np.sin(2 * np.pi * hz * times)).clip(-32767, 32767).astype(np.int16)


def codes(got):
    found = [fake.read(one.picture) for one in got]
    assert all(code is not None for code in found), "a picture that is none of the engine's"
    return found


def numbers(got):
    """Frames of the stream, less those that are held."""
    found = [code.frame for code in codes(got)]
    return [n for k, n in enumerate(found) if k == 0 or n != found[k - 1]]


def is_silent(one):
    return fake.level_of(one.sound) <= NOTHING


async def the_whole(watcher, segment):
    """Frames until the speech of a segment is over and its end told. How many silent ones lie before its first is
    the machine's affair: those that waited while it was busy come first."""
    got = await watcher.take(25)
    while not any(spoken := [code.level > 0 for code in codes(got)]) or spoken[-1] or not ended(watcher, segment):
        got += await watcher.take(25)
    return got


def ended(watcher, segment):
    return segment in [name for name, _ in watcher.finished]


def test_picture_and_sound_of_a_moment_come_together(exact):
    """Each frame with exactly its samples, whose level the picture says."""

    async def talk():
        async with exact() as watcher:
            loud = np.concatenate([tone(0.32, level) for level in (0.05, 0.6, 0.2, 0.4, 0.1, 0.5)])
            await watcher.push(loud)
            await watcher.end("a")
            got = await watcher.take(75)
            assert all(len(one.sound) == FRAME for one in got)
            for one, code in zip(got, codes(got)):
                assert code.level == fake.level_of(one.sound)
            levels = [code.level for code in codes(got) if code.level]
            assert len(levels) == 48 and len({round(level / 6) for level in levels}) == 6  # of 255, and one to and fro
            heard = np.concatenate([one.sound for one in got])
            start = np.flatnonzero(heard)[0] - np.flatnonzero(loud)[0]
            np.testing.assert_array_equal(heard[start : start + len(loud)], loud)  # nothing lost, nothing twice

    run(talk())


def test_compressed_sound_is_as_loud_and_begins_with_the_picture(compressed):
    """In the middle of what is equally loud for 0.32 s, each frame's sound has the level that its picture says, and
    the first sound is heard with the first picture of it, to a frame. AAC's priming would be 64 ms too late."""

    async def talk():
        async with compressed() as watcher:
            await watcher.push(np.concatenate([tone(0.32, level) for level in (0.5, 0.1, 0.4, 0.2, 0.6, 0.1)]))
            await watcher.end("a")
            got = await watcher.take(80)
            levels = np.array([code.level for code in codes(got)])
            assert np.count_nonzero(levels) == 48
            first = np.flatnonzero(levels)[0]
            middles = [first + 8 * k + i for k in range(6) for i in (3, 4, 5)]
            heard = [fake.level_of(got[k].sound) for k in middles]
            np.testing.assert_allclose(heard, levels[middles], rtol=0.1, atol=2)
            sound = np.concatenate([one.sound for one in got])
            onset = np.flatnonzero(np.abs(sound.astype(float)) > 0.1 * 32767)[0]
            assert abs(onset / len(got[0].sound) - first) < ONE_FRAME

    run(talk())


def test_frames_come_at_25_a_second_however_sound_comes(adapter):
    """A burst of 8 s at once, and nothing before and behind it."""

    async def talk():
        async with adapter() as watcher:
            first = await watcher.take(10)
            await watcher.push(tone(8))
            rest = await watcher.take(90)
            frames = numbers(first + rest)
            assert frames == list(range(frames[0], frames[0] + len(frames)))
            gaps = np.diff([one.at for one in rest])
            assert 1 / 25 * 80 < rest[-1].at - rest[0].at < 1 / 25 * 120 and gaps.max() < 0.5

    run(talk())


def test_after_an_interrupt_nothing_of_the_old_speech_is_heard(adapter):
    async def talk():
        async with adapter() as watcher:
            await watcher.push(tone(6, 0.5))
            await watcher.end("long")
            before = await watcher.take(40)
            while codes(before)[-1].level == 0:  # a busy machine's first frames are late, and idle
                before += await watcher.take(10)
            await watcher.interrupt()
            after = await watcher.take(40)
            while (epochs := [code.epoch for code in codes(after)])[-1] == 0:
                after += await watcher.take(10)
            assert epochs == sorted(epochs) and epochs[-1] == 1
            # a block's end, and what was on its way
            assert len(set(numbers(after[: epochs.index(1)]))) <= 6 + watcher.transit
            frames = numbers(before + after)
            assert frames == sorted(set(frames))  # the picture goes on without a jump
            assert frames[-1] - frames[0] + 1 - len(frames) <= watcher.dropped
            assert all(map(is_silent, after[watcher.transit :]))
            assert watcher.finished == [("long", True)]
            await watcher.push(tone(1.5, 0.3))
            await watcher.end("new")
            again = await the_whole(watcher, "new")
            assert {code.epoch for code in codes(again)} == {1}
            assert sum(code.level > 0 for code in codes(again)) == pytest.approx(38, abs=1)
            assert watcher.finished == [("long", True), ("new", False)]

    run(talk())


def test_without_sound_the_face_idles_and_says_so_by_silence(adapter):
    async def talk():
        async with adapter() as watcher:
            got = await watcher.take(60)
            assert all(code.level == 0 for code in codes(got)) and all(map(is_silent, got))
            frames = numbers(got)
            assert frames == list(range(frames[0], frames[0] + len(frames))) and len(frames) > 50

    run(talk())


def test_ends_of_segments_are_told_behind_their_last_frames_and_once(adapter):
    async def talk():
        async with adapter() as watcher:
            for name in ("one", "two"):
                await watcher.push(tone(0.7))
                await watcher.end(name)
            early = await watcher.take(12)
            assert sum(code.level > 0 for code in codes(early)) < 17 and watcher.finished == []
            await watcher.take(100)
            assert watcher.finished == [("one", False), ("two", False)]

    run(talk())


def test_a_front_end_that_does_not_ask_for_a_while_loses_nothing(adapter):
    async def talk():
        async with adapter() as watcher:
            await watcher.push(tone(4))
            before = await watcher.take(20)
            await asyncio.sleep(0.7)
            after = await watcher.take(40)
            frames = numbers(before + after)
            assert frames == list(range(frames[0], frames[0] + len(frames)))

    run(talk())


def test_two_viewers_are_never_mixed(adapter):
    async def talk():
        async with adapter() as one, adapter() as other:
            await one.push(tone(3, 0.6))
            await other.push(tone(3, 0.1))
            await other.end("x")
            a, b = await asyncio.gather(one.take(70), other.take(70))
            mine, theirs = ({code.viewer for code in codes(got)} for got in (a, b))
            assert len(mine) == len(theirs) == 1 and mine != theirs
            assert max(code.level for code in codes(a)) > 4 * max(code.level for code in codes(b)) > 0
            await one.interrupt()
            assert {code.epoch for code in codes(await other.take(20))} == {0}

    run(talk())
