"""Session in live use: interrupts, snapshots, asyncio, memory, metrics. The model is a toy with random weights."""

from __future__ import annotations

import asyncio
import re
import threading
import tracemalloc

import numpy as np
import pytest
import torch

from rest_fast.config import preset
from rest_fast.streaming import stream as stream_module
from rest_fast.streaming.session import Session
from rest_fast.streaming.snapshot import SessionState, StateError
from tests.kit.streams import play, same
from tests.kit.toys import photo, sound, toy

RATE = 22050  # 7056 samples a latent; not the model's rate, so the resampler takes part


def test_interrupt_drops_and_continues_from_what_was_shown(model, avatar):
    samples = sound(RATE, 4.0)
    with model.session(avatar, sample_rate=RATE) as s:
        s.push_audio(samples)
        stream = s.blocks()
        before = [next(stream) for _ in range(4)]
        s.interrupt(shown_pts=2 * 0.32 + 0.1)  # the third block was on screen
        assert not list(s.blocks())  # queued speech is gone
        after = play(s, samples[:30000])
    assert [b.epoch for b in before] == [0] * 4
    assert {b.epoch for b in after} == {1}
    assert after[0].pts == pytest.approx(3 * 0.32)
    assert np.array_equal(np.concatenate([b.audio for b in after])[:30000], samples[:30000])
    # noise is never used twice: the same stream without the interrupted part looks different
    with model.session(avatar, sample_rate=RATE) as s:
        s.push_audio(samples[: 3 * 7056])
        s.end_segment()
        plain = list(s.blocks()) + play(s, samples[:30000])
    assert not np.array_equal(plain[3].video, after[0].video)


def test_interrupt_rolls_the_decoder_back(model, avatar):
    """After taking back block k, decoding continues from the state before it, which lies inside of a chunk: replaying
    its latent gives block k."""
    with model.session(avatar) as s:
        s.push_audio(sound(16000, 3.0))
        stream = s.blocks()
        [next(stream) for _ in range(2)]
        latents = [latent.z for latent in s.stream.history]  # the last three are those of the chunk
        third = next(stream)
        s.interrupt(shown_pts=2 * 0.32)
        assert not list(s.blocks())
        with torch.inference_mode():
            s.stream.decoder.feed(latents, 3, True)
            assert np.array_equal(s.stream.decoder.take().numpy(), third.video)


def test_interrupt_during_a_chunk_delivers_nothing_old(model, avatar):
    with model.session(avatar) as s:
        s.push_audio(sound(16000, 3.0))
        entered, original = threading.Event(), s.stream.sampler.run

        def slow(*args):
            entered.set()
            interrupted.wait(10)
            return original(*args)

        interrupted = threading.Event()
        s.stream.sampler.run = slow
        got = []
        worker = threading.Thread(target=lambda: got.extend(s.blocks()))
        worker.start()
        assert entered.wait(10)
        s.interrupt()  # must not wait for the chunk
        interrupted.set()
        worker.join(20)
        assert not worker.is_alive()
        assert got == []


def test_interrupt_during_a_decode_delivers_nothing_old(model, avatar, monkeypatch):
    """The block that is being made belongs to the epoch before: the next one begins where the viewer is."""
    with model.session(avatar) as s:
        s.push_audio(sound(16000, 3.0))
        stream, conv = s.blocks(), model.vae.decoder.conv_out
        first, step = [next(stream) for _ in range(3)], conv.step  # the whole first chunk

        def slow(*args, **options):
            monkeypatch.setattr(conv, "step", step)
            interrupting = threading.Thread(target=s.interrupt)
            interrupting.start()
            interrupting.join(10)  # must not wait for the block
            assert s.epoch == 1
            return step(*args, **options)

        monkeypatch.setattr(conv, "step", slow)
        assert not list(stream)
        after = play(s, sound(16000, 1.0, seed=1))
    assert {b.epoch for b in first} == {0} and {b.epoch for b in after} == {1}
    assert after[0].pts == pytest.approx(0.96) and len(after) == 4


def test_interrupt_range(model, avatar):
    with model.session(avatar) as s:
        s.push_audio(sound(16000, 4.0))
        s.end_segment()
        list(s.blocks())
        assert s.interrupt(shown_pts=5.0) == pytest.approx(4.16)
        assert s.interrupt(shown_pts=1.0) == pytest.approx(3.2)
        assert s.interrupt(shown_pts=3.2) == pytest.approx(3.2)


@pytest.mark.parametrize("context", ["last_step", "clean", "per_step"])
def test_streams_under_every_context_policy(context, avatar):
    model = toy(stream__context=context)
    face = model.prepare(photo())
    with model.session(face) as s:
        blocks = play(s, sound(16000, 2.2), [20000])
        s.interrupt(shown_pts=blocks[-1].pts)
        assert len(play(s, sound(16000, 1.0))) == 4


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_snapshot_continues_bit_equal(model, avatar, at):
    samples = sound(RATE, 3.0, dtype=np.int16)
    with model.session(avatar, sample_rate=RATE, seed=2) as s:
        whole = play(s, samples)
    with model.session(avatar, sample_rate=RATE, seed=2) as s:
        s.push_audio(samples[:50000])
        stream = s.blocks()
        head = [next(stream) for _ in range(at)]
        state = s.snapshot().to_bytes()
    with model.session(avatar, sample_rate=RATE, seed=2) as s:
        s.restore(SessionState.from_bytes(state))
        tail = list(s.blocks())
        s.push_audio(samples[50000:])
        s.end_segment()
        tail += s.blocks()
    same(whole, head + tail)


def test_snapshot_after_interrupt_and_partial_segment(model, avatar):
    samples = sound(RATE, 3.0)

    def first_half(s):
        blocks = play(s, samples[:40000])
        s.interrupt(shown_pts=blocks[-2].pts)
        return s

    with first_half(model.session(avatar, sample_rate=RATE)) as s:
        state = s.snapshot()
        want = play(s, samples)
    with model.session(avatar, sample_rate=RATE) as s:
        s.restore(state)
        same(want, play(s, samples))


def test_snapshot_of_another_stream_is_refused(model, avatar):
    state = model.session(avatar, seed=1).snapshot()
    with pytest.raises(StateError, match=r"restore: expected .* got one with \{'seed': 1\}"):
        model.session(avatar, seed=2).restore(state)
    with pytest.raises(StateError, match="restore: expected the bytes"):
        SessionState.from_bytes(b"\x80\x04not a snapshot")


def test_ablocks_follow_pushes_until_close(model, avatar):
    samples = sound(RATE, 2.0)
    with model.session(avatar, sample_rate=RATE) as s:
        want = play(s, samples)

    async def run():
        session, got = model.session(avatar, sample_rate=RATE), []

        async def consume():
            async for block in session.ablocks():
                got.append(block)
                if block.segment_end:
                    session.close()

        task = asyncio.create_task(consume())
        for cut in range(0, len(samples), 4000):
            session.push_audio(samples[cut : cut + 4000])
            await asyncio.sleep(0.001)
        session.end_segment()
        await asyncio.wait_for(task, 20)
        return got

    same(want, asyncio.run(run()))


def test_close_wakes_a_waiting_consumer(model, avatar):
    async def run():
        session = model.session(avatar)
        task = asyncio.create_task(anext(aiter(session.ablocks()), None))
        await asyncio.sleep(0.05)
        session.close()
        return await asyncio.wait_for(task, 5)

    assert asyncio.run(run()) is None


def test_memory_does_not_grow(model, avatar):
    """A hundred chunks after a warm-up: kept samples, histories and states are bounded."""
    samples = sound(16000, 0.96)
    with model.session(avatar) as s:
        tracemalloc.start()
        levels = []
        for i in range(120):
            s.push_audio(samples)
            for _ in s.blocks():
                pass
            if i in (20, 119):
                levels.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        line, history = s.stream.timeline.sound, s.stream.history
        assert line.end - line.start < 10 * 16000
        assert len(s.stream.decoder.states()) <= s.lead + 2
        assert len(history) <= history.maxlen
    assert levels[1] - levels[0] < 200_000  # 100 chunks of sound alone would be 6 MB


def test_metrics(model, avatar):
    with model.session(avatar) as s:
        play(s, sound(16000, 2.0))
        report = s.metrics()
    assert report.chunks == 3
    assert report.blocks == 7
    for stage in ("features", "denoise", "decode"):
        p = report.stages[stage]
        assert 0 < p.p50_ms <= p.p95_ms <= p.p99_ms


# -- in an event loop


def test_opening_does_not_block_the_loop(model, avatar, monkeypatch):
    """While the worker opens a session, the loop goes on; the session shows what any other shows."""
    opening, seen = threading.Event(), []
    decoder = stream_module.BlockDecoder

    def slow(*args, **options):
        opening.wait(10)
        return decoder(*args, **options)

    monkeypatch.setattr(stream_module, "BlockDecoder", slow)

    async def run():
        task = asyncio.ensure_future(model.asession(avatar, seed=3))
        await asyncio.sleep(0.05)
        seen.append(task.done())
        opening.set()
        async with await task as s:
            blocks = play(s, sound(16000, 1.0))
        assert s.closed
        return blocks

    blocks = asyncio.run(run())
    assert seen == [False]
    with model.session(avatar, seed=3) as s:
        same(blocks, play(s, sound(16000, 1.0)))


def test_a_session_that_nobody_waits_for_is_closed(model, avatar, monkeypatch):
    opened, closed = [], threading.Event()
    start, close = Session.__init__, Session.close

    def remembered(self, *args, **options):
        start(self, *args, **options)
        opened.append(self)

    def noted(self):
        close(self)
        closed.set()

    monkeypatch.setattr(Session, "__init__", remembered)
    monkeypatch.setattr(Session, "close", noted)

    async def run():
        task = asyncio.ensure_future(model.asession(avatar))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not opened:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    asyncio.run(run())
    assert closed.wait(10) and opened[0].closed


def test_asession_refuses_as_session_does(model, avatar):
    for options in ({"seed": -1}, {"sample_rate": 1}, {"steps": 0}):
        with pytest.raises(ValueError) as plain:
            model.session(avatar, **options)
        with pytest.raises(ValueError, match=re.escape(str(plain.value))):
            asyncio.run(model.asession(avatar, **options))


def test_blocks_say_which_segment_they_belong_to(model, avatar):
    """Numbers grow at segment ends and at interrupts, and no two segments share one."""
    with model.session(avatar) as s:
        first = play(s, sound(16000, 1.0))
        second = play(s, sound(16000, 0.5))
        s.push_audio(sound(16000, 2.0))
        third = list(s.blocks())
        s.interrupt(shown_pts=third[0].pts)  # before the third segment begins
        fourth = play(s, sound(16000, 0.5))
        idle = list(s.blocks(idle=True))
    numbers = [{b.segment for b in part} for part in (first, second, third, fourth, idle)]
    assert numbers[:3] == [{0}, {1}, {2}] and max(numbers[2]) < min(numbers[3]) < min(numbers[4])
    assert all(b.duration == pytest.approx(0.32) for b in first)


@pytest.mark.parametrize("mode", [None, "lookahead(1)"])
def test_a_decoder_keeps_two_or_three_states(mode):
    """For chunks of a stream that is watched as it comes: memory of a size that the guide can name."""
    model = toy(vae=preset("toy").replace(vae__causal_decoder=mode is None).vae)
    with model.session(model.prepare(photo()), decode=mode) as s:
        s.push_audio(sound(16000, 12.0))
        counts = [len(s.stream.decoder.states()) for _ in s.blocks()]
    assert len(counts) > 30 and set(counts[9:]) <= {2, 3}
