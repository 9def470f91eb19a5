"""Session when something goes wrong or comes at a bad moment. The model is a toy with random weights."""

from __future__ import annotations

import asyncio
import threading
from unittest import mock

import numpy as np
import pytest
import torch

from rest_fast import SessionClosed, preset
from rest_fast.media import MediaError
from rest_fast.streaming.metrics import Stopwatch
from rest_fast.streaming.snapshot import SessionState
from rest_fast.streaming.stream import Stream
from tests.kit.streams import play, same
from tests.kit.toys import photo, sound, toy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_codes_hear_the_first_sound(dtype):
    """Frames before the stream are the zero vector, the ones after it are not touched: as training makes them."""
    model = toy().to(dtype)
    samples = sound(16000, 1.5)
    stream = model.compute(Stream.alone, model, model.prepare(photo()), model.config.sampling)
    stream.push(samples)
    got = stream.next_chunk().codes
    f = model.features
    padded = np.concatenate([np.zeros(f.back, np.float32), samples[: 24 * 640 + f.ahead]])
    windows = f(torch.from_numpy(padded)[None]).to(dtype)
    want = model.speech(torch.cat([torch.zeros_like(windows[:, :8]), windows], 1))
    rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5  # same numbers up to the order of a matrix product's sums
    torch.testing.assert_close(got, want, rtol=rounding, atol=rounding)


def test_lead_counts_from_what_was_delivered(model, avatar):
    """What an interrupt took back is gone: a second one cannot reach further, and the stream goes on."""
    with model.session(avatar) as s:
        blocks = play(s, sound(16000, 3.0))
        end = len(blocks) * 0.32
        assert s.interrupt(shown_pts=end - 3 * 0.32) == pytest.approx(end - 3 * 0.32)
        assert s.interrupt(shown_pts=end - 4 * 0.32) == pytest.approx(end - 3 * 0.32)
        assert len(play(s, sound(16000, 0.3))) == 1
        assert s.interrupt(shown_pts=end - 5 * 0.32) == pytest.approx(end - 3 * 0.32)
        after = play(s, sound(16000, 2.0))
    assert after[0].pts == pytest.approx(end - 3 * 0.32)
    assert len(after) == 7


@pytest.mark.parametrize("pts", [float("nan"), float("inf"), "0.5"])
def test_interrupt_with_what_is_no_time(model, avatar, pts):
    with model.session(avatar) as s:
        with pytest.raises(ValueError, match="interrupt: shown_pts: expected seconds or None, got"):
            s.interrupt(shown_pts=pts)
        assert s.epoch == 0


@pytest.mark.parametrize("pts", [-1.0, 0.5])
def test_interrupt_with_a_time_that_never_was(model, avatar, pts):
    """It is moved to what can be taken back, which here is the start."""
    with model.session(avatar) as s:
        assert s.interrupt(shown_pts=pts) == 0 and s.epoch == 1


def test_back_at_the_start_a_chunk_has_no_context(model, avatar):
    """An interrupt back to frame 0 leaves what a fresh session has: with the same noise, the same frames."""
    samples = sound(16000, 2.0)
    with model.session(avatar) as s:
        fresh = play(s, samples)
    with model.session(avatar) as s:
        next(iter(_pushed(s, samples)))
        s.interrupt(shown_pts=0.0)
        assert not list(s.blocks())  # the interrupt is read
        s.stream.timeline.epoch = 0
        again = play(s, samples)
    assert all(np.array_equal(a.video, b.video) for a, b in zip(fresh, again, strict=True))


def _pushed(session, samples):
    session.push_audio(samples)
    return session.blocks()


@pytest.mark.parametrize("context_chunks", [0, 2])
def test_other_windows_survive_interrupts(context_chunks):
    model = toy(stream__context_chunks=context_chunks)
    with model.session(model.prepare(photo())) as s:
        blocks = play(s, sound(16000, 4.2))
        for back in (1, 0):
            s.interrupt(shown_pts=blocks[-1].pts + 0.32 * (1 - back))
            blocks = play(s, sound(16000, 1.0))
            assert len(blocks) == 4


def test_cancelled_waits_lose_nothing(model, avatar):
    """Consumers that give up: every block still comes, once, in order."""
    samples = sound(16000, 4.0)
    with model.session(avatar) as s:
        want = play(s, samples)

    async def run():
        got = []
        with model.session(avatar) as s:
            s.push_audio(samples)
            s.end_segment()
            for patience in [0.0005, 0.002, 0.02, 0.05] * 50:
                try:
                    got.append(await asyncio.wait_for(anext(s.ablocks()), patience))
                except asyncio.TimeoutError:
                    continue
                if len(got) == len(want):
                    return got
            while len(got) < len(want):
                got.append(await asyncio.wait_for(anext(s.ablocks()), 20))
        return got

    same(want, asyncio.run(run()))


@pytest.mark.parametrize("way", ["blocks", "ablocks"])
def test_close_between_a_block_and_its_delivery(model, avatar, way):
    """A block that is ready when another thread closes the session is not handed out any more."""
    session = model.session(avatar)
    session.push_audio(sound(16000, 3.0))
    session.end_segment()
    taken, take = [], session.mailbox.take

    def close_behind_the_first():
        if taken:  # the second block is ready, and close() comes first
            assert session.ready_seconds > 0
            closing = threading.Thread(target=session.close)
            closing.start()
            closing.join(10)
            assert session.closed
        return take()

    session.mailbox.take = close_behind_the_first

    async def consume():
        async for block in session.ablocks():
            taken.append(block)

    if way == "ablocks":
        asyncio.run(asyncio.wait_for(consume(), 20))
    else:
        for block in session.blocks():
            taken.append(block)
    assert [b.pts for b in taken] == [0.0]


def make_and_do_not_take(session):
    """As a consumer that is interrupted behind the making of a block."""

    def interrupted():
        if not session.ready_seconds:
            return None
        raise InterruptedError

    with mock.patch.object(session.mailbox, "take", interrupted), pytest.raises(InterruptedError):
        next(session.blocks())


def test_a_session_that_was_closed_gives_no_snapshot(model, avatar):
    """Its memory is gone, though metrics stay."""
    s = model.session(avatar)
    play(s, sound(16000, 2.0))
    s.close()
    for call in (s.snapshot, lambda: s.restore(model.session(avatar).snapshot())):
        with pytest.raises(SessionClosed, match="expected an open session"):
            call()
    assert not list(s.blocks()) and not list(s.blocks(idle=True)) and s.metrics().blocks == 7
    model.compute(lambda: None)  # behind the job that frees it
    assert not hasattr(s.seat, "stream")


def test_snapshot_while_an_interrupt_comes_in(model, avatar):
    """Counters and timeline of a snapshot belong together, whenever the interrupt falls."""
    samples = sound(16000, 3.0)
    with model.session(avatar) as s:
        play(s, samples)
        original, done = s.seat.read, []

        def late():
            epoch = original()
            if not done:
                done.append(1)
                s.interrupt(shown_pts=8 * 0.32)
            return epoch

        s.seat.read = late
        state = s.snapshot()
        want = play(s, samples)
    with model.session(avatar) as s:
        s.restore(state)
        got = play(s, samples)
    assert {b.epoch for b in got} == {1}
    same(want, got)


def test_snapshot_with_a_block_made_and_not_taken(model, avatar):
    samples = sound(16000, 3.0)
    with model.session(avatar) as s:
        want = play(s, samples)
    with model.session(avatar) as s:
        s.push_audio(samples)
        s.end_segment()
        make_and_do_not_take(s)
        state = s.snapshot()
        same(want, list(s.blocks()))
    with model.session(avatar) as s:
        s.restore(state)
        same(want, list(s.blocks()))


@pytest.mark.parametrize("causal", [True, False])
def test_a_failed_decode_is_repeated_from_its_start(causal, monkeypatch):
    model = toy(vae=preset("toy").replace(vae__causal_decoder=causal).vae)
    avatar, samples = model.prepare(photo()), sound(16000, 2.0)
    with model.session(avatar) as s:
        want = play(s, samples)
    with model.session(avatar) as s:
        s.push_audio(samples)
        s.end_segment()
        stream = s.blocks()
        got = [next(stream) for _ in range(3 if causal else 2)]  # all that is decoded of the first chunk

        def fail(*_, **__):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(model.vae.decoder.conv_out, "step", fail)  # most histories have moved on by then
            with pytest.raises(MemoryError):
                next(s.blocks())
        same(want, got + list(s.blocks()))


def test_a_failed_idle_chunk_adds_no_silence(model, avatar):
    with model.session(avatar) as s:
        original = s.stream.sampler.run
        s.stream.sampler.run = lambda *_: (_ for _ in ()).throw(MemoryError())
        with pytest.raises(MemoryError):
            list(s.blocks(idle=True))
        s.stream.sampler.run = original
        assert s.stream.timeline.sound.end == 0
        assert [b.pts for b in s.blocks(idle=True)] == pytest.approx([0, 0.32, 0.64])


def test_histories_own_their_memory(model, avatar):
    """A view would keep the convolution's whole input alive, in every snapshot."""
    with model.session(avatar) as s:
        play(s, sound(16000, 1.0))
        kept = [h for state in s.stream.decoder.states() for h in state.histories.values()]
    assert kept
    assert all(h.untyped_storage().nbytes() == h.numel() * h.element_size() for h in kept)


def test_restore_wakes_and_a_closed_loop_is_forgotten(model, avatar):
    with model.session(avatar) as s:
        s.push_audio(sound(16000, 2.0))
        state = s.snapshot()

    async def run():
        s = model.session(avatar)
        waiting = asyncio.create_task(anext(s.ablocks()))
        await asyncio.sleep(0.05)
        s.restore(state)
        block = await asyncio.wait_for(waiting, 10)
        return s, block

    s, block = asyncio.run(run())
    assert block.pts == 0
    loop = asyncio.new_event_loop()
    s.mailbox.loops.add((loop, asyncio.Event()))
    loop.close()
    s.push_audio(sound(16000, 0.1))  # must not raise
    assert not s.mailbox.loops


def test_equal_sampling_is_equal_however_written(model, avatar):
    state = model.session(avatar, guidance=2).snapshot()
    model.session(avatar, guidance=2.0).restore(SessionState.from_bytes(state.to_bytes()))


def test_slow_blocks_take_longer_than_they_last():
    clock = [0.0]
    watch = Stopwatch(lambda: clock[0])

    def spend(stage, seconds):
        with watch(stage):
            clock[0] += seconds

    late, denoise = 0, 0.6
    for decode, slow in ((0.30, False), (0.39, True), (0.33, False)):  # a third and 0.2 s, against 0.32 s
        spend("denoise", denoise)
        watch.chunk(3)  # 0.2 s a block
        denoise = 0.3  # of the next chunk; the other half is done while this one's blocks are taken
        spend("decode", decode)
        watch.share(3, more=True)
        for _ in range(3):
            with watch("denoise", more=True):  # an engine makes the next chunk meanwhile
                clock[0] += 0.1
            watch.block(0.32)
            late += slow
            assert watch.slow == late
    assert watch.percentiles()["decode"].p50_ms == pytest.approx(330)


def test_a_tensor_that_numpy_does_not_know(model, avatar):
    with model.session(avatar) as s, pytest.raises(MediaError, match=r"pcm: expected .* got Tensor torch\.bfloat16"):
        s.push_audio(torch.zeros(100, dtype=torch.bfloat16))


def test_avatars_and_blocks_compare_by_identity(model, avatar):
    """Fields are arrays: comparing or hashing them would raise."""
    assert avatar == avatar
    assert avatar in {avatar}
    assert avatar != model.prepare(photo())
