"""Viewers against blocks that come at times made by hand, in an event loop whose sleeps take no time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from rest_fast.latency.viewers import BLOCK, LATENT, PIECE, Feed, Need, Player, Viewer, gaps, phases, recorded
from rest_fast.streaming.block import Block


class Jumping(asyncio.SelectorEventLoop):
    """Its clock jumps to the next event."""

    def __init__(self) -> None:
        super().__init__()
        self.now, select = 0.0, self._selector.select

        def jump(timeout: float | None = None) -> list:
            assert timeout is not None, "everybody waits for nothing"
            self.now += timeout
            return select(0)

        self._selector.select = jump

    def time(self) -> float:
        return self.now


def jumping(work):
    """What ``work(clock)`` returns."""
    loop = Jumping()
    try:
        return loop.run_until_complete(work(loop.time))
    finally:
        loop.close()


def block(number: int = 0, **more) -> Block:
    frames = 1 if more.get("held") else 8
    about = {"epoch": 0, "segment": 0, "idle": False, "segment_end": False, "true_samples": 0}
    return Block(np.zeros((frames, 1, 1, 3), np.uint8), np.zeros(0), number * BLOCK, **about | more)


class Source:
    """Blocks at given times; what was pushed when."""

    def __init__(self, clock, times, made=block, error=None):
        self.stream = SimpleNamespace(chunk=3, lookahead_ms=87.5, decoder=SimpleNamespace(ahead=0))
        self.clock, self.times, self.made, self.error = clock, times, made, error
        self.pushed: list[tuple[float, int]] = []

    def push_audio(self, pcm):
        self.pushed.append((self.clock(), len(pcm)))

    async def ablocks(self, *, idle=False):
        for number, at in enumerate(self.times):
            await asyncio.sleep(at - self.clock())
            yield self.made(number)
        if self.error:
            raise self.error
        await asyncio.sleep(1000)


def watched(times, seconds=4.0, buffer=0.32, start=0.0, **more):
    async def work(clock):
        source = Source(clock, times, **more)
        viewer = Viewer(source, np.zeros(160_000, np.float32), clock=clock, player=Player(buffer))
        await viewer.watch(start, seconds)
        return viewer

    return jumping(work)


# Playback of the first case begins at 1.42, and of chunks that come every 0.96 s each block is there 0.32 s before.
@pytest.mark.parametrize(("times", "until", "underruns", "stalled", "met", "missing"), [
    ([1.1] * 3 + [2.06] * 3 + [3.02] * 3, 4.0, 0, 0.0, 9, 0),
    ([1.1] * 3 + [2.37] * 3 + [3.02] * 3, 4.0, 0, 0.0, 9, 0),
    ([1.1] * 3 + [2.5] * 3 + [3.02] * 3, 4.0, 1, 0.12, 8, 0),  # due at 2.38, 2.7, 3.02; the rest comes in time
    ([1.1] * 3 + [2.8] * 3 + [4.0] * 3, 4.2, 2, 0.42 + 0.24, 4, 0),  # 2.38 -> 2.8; then 3.76 -> 4.0
    ([1.1] * 3 + [3.0] * 3, 5.0, 2, 0.62 + 1.04, 4, 6),  # 2.38 -> 3.0, played until 3.96, then nothing until the end
    ([1.1], 2.0, 1, 0.26, 1, 1),  # the next was due at 1.74
    ([], 2.0, 0, 0.0, 0, 0),
], ids=["in time", "just in time", "late once", "late twice", "too slow", "one block", "none"])  # fmt: skip
def test_underruns_and_deadlines(times, until, underruns, stalled, met, missing):
    player = Player()
    for at in times:
        player.take(at)
    player.finish(until)
    assert (player.underruns, player.met, player.missing) == (underruns, met, missing)
    assert player.stalled == pytest.approx(stalled, abs=1e-9) and player.blocks == len(times)


def test_without_a_buffer_every_delay_is_seen():
    player = Player(0.0)
    for at in (1.0, 1.32, 1.65, 1.96):
        player.take(at)
    assert player.underruns == 1 and player.stalled == pytest.approx(0.01)


def test_a_frame_that_is_held_spares_an_underrun():
    player = Player(0.0)
    player.take(1.0)
    player.hold(1.32, 0.04)
    player.take(1.36)
    assert (player.underruns, player.met) == (0, 1), "but the deadline was missed"


def test_a_viewer_speaks_and_watches_in_real_time():
    """The same case as above, late once, with the responses: chunk k of 0.96 s and 87.5 ms of sound after it are there
    with the piece that brings sample 15360 (k + 1) + 1400."""
    viewer = watched([1.1] * 3 + [2.5] * 3 + [3.02] * 3, start=0.01)
    assert [n for _, n in viewer.source.pushed] == [PIECE] * 200
    assert [at for at, _ in viewer.source.pushed] == pytest.approx([0.01 + 0.02 * k for k in range(200)])
    assert (viewer.player.underruns, viewer.player.stalled) == (1, pytest.approx(0.12))
    there = [0.01 + 0.02 * 52] * 3 + [0.01 + 0.02 * 100] * 3 + [0.01 + 0.02 * 148] * 3
    came = [seen.at for seen in viewer.seen]
    assert [seen.response for seen in viewer.seen] == pytest.approx([a - b for a, b in zip(came, there)])


def test_who_is_never_served_has_missed_every_deadline():
    """In 4 s, of which 1.0475 s pass before the first block can come: nine blocks of 0.32 s."""
    player = watched([]).player
    assert (player.until, player.met, player.missing) == (None, 0, 9)


def test_sound_that_comes_late_is_made_up_for():
    async def work(clock):
        viewer = Viewer(Source(clock, []), np.zeros(1600, np.float32), clock=clock)
        await asyncio.sleep(0.05)
        await viewer.speak(viewer.speech, 0.0)
        return viewer.pushed

    assert jumping(work) == pytest.approx([0.05, 0.05, 0.05, 0.06, 0.08])


def test_silence_and_held_frames_are_no_speech():
    kinds = [{"idle": True}, {"held": True}, {}, {"degraded": True}]
    viewer = watched([1.2, 1.3, 1.4, 1.5], made=lambda n: block(n, **kinds[n]))
    assert [(s.idle, s.held, s.degraded) for s in viewer.seen] == [
        (True, False, False),
        (False, True, False),
        (False, False, False),
        (False, False, True),
    ]
    assert [s.response is None for s in viewer.seen] == [True, True, False, False]
    assert viewer.player.blocks == 3


def test_what_a_computation_raises_comes_out():
    with pytest.raises(RuntimeError, match="broken"):
        watched([1.1], error=RuntimeError("broken"))


def test_the_sound_that_blocks_need():
    need = Need(chunk=3, ahead=1400)
    assert [need.block(n) for n in (0, 2, 3)] == [3 * LATENT + 1400] * 2 + [6 * LATENT + 1400]
    later = Need(chunk=3, ahead=1400, later=1)
    assert [later.block(n) for n in (0, 1, 2)] == [3 * LATENT + 1400] * 2 + [6 * LATENT + 1400]
    stream = SimpleNamespace(chunk=3, lookahead_ms=87.5 + 320, decoder=SimpleNamespace(ahead=1))
    assert Need.of(stream) == later


def test_a_feed_pushes_what_must_follow_first():
    async def work(clock):
        source = Source(clock, [0.2] * 3 + [0.5] * 3)
        feed = Feed(source, np.zeros(1000, np.float32), clock)
        took = [await feed.chunk(), await feed.chunk()]
        await feed.close()
        return took, [n for _, n in source.pushed]

    took, pushed = jumping(work)
    assert took == pytest.approx([0.2, 0.3]) and pushed == [1400, 3 * LATENT, 3 * LATENT]


def test_phases():
    assert phases(4, 0.96) == pytest.approx([0, 0.24, 0.48, 0.72])
    drawn = phases(50, 0.96, "random", seed=3)
    assert drawn == sorted(drawn) == phases(50, 0.96, "random", seed=3) != phases(50, 0.96, "random", seed=4)
    assert 0 <= drawn[0] < drawn[-1] < 0.96


def test_gaps():
    times = [1.0, 1.0, 1.0, 1.96, 2.06, 2.06, 2.96]
    assert gaps(times) == pytest.approx([-0.32, -0.32, 0.64, -0.22, -0.32, 0.58])
    assert gaps(times, 3) == pytest.approx([0.0, 0.04]) and gaps([1.0]) == []


def test_the_recording_goes_on():
    speech = recorded(20.0)
    assert len(speech) == 320_000 and speech.dtype == np.float32 and np.abs(speech[-16000:]).max() > 0.01
