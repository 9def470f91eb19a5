"""Engine: computations that fail, and what consumers see while the worker reads."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import types

import pytest

from rest_fast.streaming.mailbox import Mailbox, SegmentEnd
from tests.kit.streams import alone, same
from tests.kit.toys import sound

RATE = 16000


def take(session, in_a_loop, got):
    """All blocks into ``got``, one by one, until something is raised."""

    async def watch():
        async for block in session.ablocks():
            got.append(block)

    if in_a_loop:
        asyncio.run(asyncio.wait_for(watch(), 20))
    for block in session.blocks():
        got.append(block)


def test_a_failed_generation_reaches_its_consumer_and_no_other(model, avatar, engine):
    samples = sound(RATE, 3.0)
    want = alone(model, avatar, samples, seed=1), alone(model, avatar, samples, seed=2)
    failing, other = engine.session(avatar, seed=1), engine.session(avatar, seed=2)
    begin, calls = failing.seat.work.begin, []

    def fails(late):
        calls.append(late)
        if len(calls) == 2:
            raise MemoryError("the second chunk")
        begin(late)

    failing.seat.work.begin = fails
    for session in (failing, other):
        session.push_audio(samples)
        session.end_segment()
    got = list(itertools.islice(failing.blocks(), 3))  # what was made before is handed out first
    with pytest.raises(MemoryError, match="the second chunk"):
        next(failing.blocks())
    same(want[1], list(other.blocks()))
    rest = list(failing.blocks())  # asked again, it goes on
    assert [b.pts for b in got + rest] == [b.pts for b in want[0]]


@pytest.mark.parametrize("idle", [False, True])
def test_a_failed_generation_reaches_an_event_loop(model, avatar, engine, idle):
    async def run():
        async with await engine.asession(avatar) as session:
            session.seat.work.begin = lambda late: (_ for _ in ()).throw(MemoryError("no room"))
            session.push_audio(sound(RATE, 2.0))
            async for _ in session.ablocks(idle=idle):
                pass

    with pytest.raises(MemoryError, match="no room"):
        asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_fault_of_the_engine_itself_reaches_all_consumers(model, avatar, engine, monkeypatch, in_a_loop):
    """It belongs to no session's work, so no session may wait for what will not come."""
    samples = sound(RATE, 1.5)
    want = [alone(model, avatar, samples, seed=seed) for seed in (1, 2)]
    sessions = [engine.session(avatar, seed=seed) for seed in (1, 2)]

    async def watched(session):
        found = []
        async for block in session.ablocks():
            found.append(block)
            if block.segment_end:
                break
        return found

    def blocks(session):
        return asyncio.run(asyncio.wait_for(watched(session), 20)) if in_a_loop else list(session.blocks())

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_together", lambda _: (_ for _ in ()).throw(AssertionError("who is first?")))
        for session in sessions:
            session.push_audio(samples)
            session.end_segment()
        for session in sessions:
            with pytest.raises(AssertionError, match="who is first"):
                blocks(session)
    model.compute(lambda: None)  # a piece that failed meanwhile has failed by now
    for session, frames in zip(sessions, want):
        if session.mailbox.error is not None:  # it was asked again while the fault lasted
            with pytest.raises(AssertionError, match="who is first"):
                blocks(session)
        same(frames, blocks(session))


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_message_that_cannot_be_read_reaches_the_consumer_behind_what_was_made(model, avatar, engine, in_a_loop):
    session = engine.session(avatar)
    session.push_audio(sound(RATE, 1.3))
    while session.ready_seconds < 0.9:
        time.sleep(0.001)
    session.stream.end_segment = lambda: (_ for _ in ()).throw(MemoryError("no room"))
    session.end_segment()
    got = []

    with pytest.raises(MemoryError, match="no room"):
        take(session, in_a_loop, got)
    assert [b.pts for b in got] == pytest.approx([0, 0.32, 0.64])


def test_an_error_does_not_overtake_a_block_that_waits_for_what_is_being_read():
    """Between the reading of a segment's end and what follows from it, the block is there and cannot be taken."""
    mailbox, made = Mailbox(time.monotonic, 3, 0.32), types.SimpleNamespace(idle=False, about={"audio": ()})
    mailbox.ready.append(made)
    mailbox.reading.append(SegmentEnd())
    mailbox.error = MemoryError("no room")
    assert mailbox.take() is None
    mailbox.reading.clear()
    assert mailbox.take() is made
    mailbox.messages.clear()  # that it was delivered
    with pytest.raises(MemoryError):
        mailbox.take()


# -- what consumers see while the worker reads


@pytest.mark.parametrize("how", ["slowly", "snapshot"])
def test_silence_is_not_handed_out_once_the_speech_behind_it_is_being_read(model, avatar, how):
    """It may be taken back: while the push is read by a worker, and behind a snapshot, which reads it, too."""
    with model.session(avatar) as s:
        got = [next(s.blocks(idle=True))]
        if how == "slowly":
            push, reading = s.stream.push, threading.Event()
            s.stream.push = lambda samples: (reading.set(), time.sleep(0.2), push(samples))
            other = threading.Thread(target=s.engine.kick)
            s.push_audio(sound(RATE, 1.3))
            other.start()
            assert reading.wait(10)
        else:
            s.push_audio(sound(RATE, 1.3))
            s.snapshot()
        got += s.blocks()
        assert [(round(b.pts, 2), b.idle) for b in got] == [(0, True), (0.32, False), (0.64, False), (0.96, False)]
        assert s.stream.timeline.delivered == s.stream.timeline.generated == 4


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_failure_comes_behind_what_was_made_though_a_segment_ends(model, avatar, engine, in_a_loop):
    """Blocks wait until the worker has read that the segment ends: that is not the time to tell of the failure."""
    session = engine.session(avatar)
    session.push_audio(sound(RATE, 3.0))
    while session.ready_seconds < 0.9:
        time.sleep(0.001)
    session.seat.work.begin = lambda late: (_ for _ in ()).throw(MemoryError("no room"))
    got = [next(session.blocks())]
    while session.mailbox.error is None:
        time.sleep(0.001)
    model.submit(time.sleep, 0.3)
    session.end_segment()

    with pytest.raises(MemoryError, match="no room"):
        take(session, in_a_loop, got)
    assert [b.pts for b in got] == pytest.approx([0, 0.32, 0.64])


def test_a_worker_that_cannot_be_started_is_tried_again(model, avatar, monkeypatch):
    with model.session(avatar) as s:
        s.push_audio(sound(RATE, 1.0))
        s.end_segment()
        with monkeypatch.context() as patched:
            patched.setattr(model, "submit", lambda *_: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
            with pytest.raises(RuntimeError, match="can't start"):
                next(s.blocks())
        assert s.engine.pump.running == 0
        assert len(list(s.blocks())) == 4
