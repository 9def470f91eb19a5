"""Engine: who is let in, and what is refused, without harm to anyone."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import numpy as np
import pytest

from rest_fast import ArgumentError, AvatarError, BacklogFull, CapacityExhausted, EngineClosed, MediaError
from rest_fast.streaming.engine import Engine
from tests.kit.streams import alone, play, same
from tests.kit.toys import photo, sound, toy

RATE = 16000


def test_one_session_too_many_is_refused_with_the_reason(model, avatar):
    with model.engine(sessions=2) as engine:
        first = engine.session(avatar)
        second = engine.session(avatar)
        with pytest.raises(CapacityExhausted, match="expected at most 2 sessions, its places, got one more") as refused:
            engine.session(avatar)
        assert refused.value.code == "CAPACITY_EXHAUSTED"
        second.close()
        third = engine.session(avatar)
        engine.costs.chunks.clear()
        engine.costs.chunks.append(0.5)  # seconds of a chunk: one session fits into 0.85 of 0.96
        assert engine.capacity() == 1
        third.close()
        with pytest.raises(CapacityExhausted, match=r"at most 1 sessions, since a chunk of 960 ms takes 500 ms"):
            engine.session(avatar)
        assert len(play(first, sound(RATE, 1.0))) == 4
        assert engine.metrics().refused == 2 and engine.metrics().sessions == 1


@pytest.mark.parametrize(("chunk", "capacity"), [(0.0001, 3), (0.3, 2), (0.8159, 1), (0.8161, 0)])
def test_capacity_is_a_share_of_the_time_of_a_chunk(engine, chunk, capacity):
    engine.costs.chunks.append(chunk)
    assert engine.capacity() == capacity  # floor(0.85 x 0.96 / chunk), of three places


def test_a_trial_measures_before_anyone_is_let_in(model):
    with model.engine(sessions=2) as engine:
        assert 0 < engine.costs.chunk < 5
        report = engine.metrics()
        assert report.sessions == report.opened == report.chunks == 0 and report.places == 2


def test_a_cold_chunk_decides_nothing_and_one_chunk_alone_neither(model):
    """Every chunk takes longer than the trial may: the two that warm up are not counted all the same."""
    clock = itertools.count(0.0, 1.0)
    engine = Engine(model, model.config.sampling, sessions=2, clock=lambda: next(clock))
    assert len(engine.costs.chunks) == 2
    engine.measure(0.1)  # warm by now
    assert len(engine.costs.chunks) == 2
    engine.close()


def test_what_was_measured_stands_until_something_else_was(model, monkeypatch):
    """While chunks are timed anew, and where that fails, the engine does not forget what it knows and let all in."""
    with model.engine(sessions=4) as engine:
        engine.costs.replace([0.5])
        seen = []

        def fails(stream):
            seen.append(engine.capacity())
            raise MemoryError

        monkeypatch.setattr(engine, "_work", fails)
        with pytest.raises(MemoryError):
            engine.measure()
        assert seen == [1] and engine.capacity() == 1


def test_too_much_sound_is_refused_and_nothing_of_it_taken(model, avatar):
    samples = sound(RATE, 1.5)
    with model.engine(sessions=1, backlog=2.2, admission=False) as engine, engine.session(avatar) as s:
        s.push_audio(samples)
        with pytest.raises(
            BacklogFull, match=r"expected at most 2.2 s of sound in the queue, got 1.50 s on top of 1.50"
        ):
            s.push_audio(samples)
        blocks = list(s.blocks())
        s.push_audio(samples)  # there is room again
        s.end_segment()
        blocks += s.blocks()
        assert s.metrics().refused == 1
    same(blocks, alone(model, avatar, np.concatenate([samples, samples])))


# -- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lanes": 0}, r"engine: lanes: expected an integer of at least 2 \(guidance takes two\), got 0"),
        ({"lanes": 1}, r"engine: lanes: expected an integer of at least 2"),
        ({"lanes": 0, "guidance": 1.0}, r"engine: lanes: expected an integer of at least 1, got 0"),
        ({"lanes": True}, "engine: lanes"),
        ({"sessions": 0}, "engine: sessions: expected an integer of at least 1, got 0"),
        ({"sessions": 1.5}, "engine: sessions"),
        ({"graphs": "maybe"}, "graphs: expected auto, on or off, got 'maybe'"),
        ({"backlog": 0}, "engine: backlog: expected seconds above 0 or None, got 0"),
        ({"fewer_steps": 2}, r"engine: fewer_steps: expected an integer in 1..1 or None, got 2"),
        ({"steps": 0}, "steps"),
    ],
)
def test_an_engine_that_cannot_be(model, options, message):
    with pytest.raises(ArgumentError if "steps" not in options else ValueError, match=message):
        model.engine(**options)


def test_fewer_steps_need_a_context_that_has_none():
    with pytest.raises(ArgumentError, match="expected None for a model whose context is kept per step"):
        toy(stream__context="per_step").engine(fewer_steps=1)


def test_bad_input_leaves_the_session_and_others_as_they_were(model, avatar, engine):
    samples = sound(RATE, 2.5)
    want = alone(model, avatar, samples, seed=1), alone(model, avatar, samples, seed=2)
    bad, other = engine.session(avatar, seed=1), engine.session(avatar, seed=2)
    halves = np.split(samples, 2)
    for session in (bad, other):
        session.push_audio(halves[0])
    hole = halves[0].copy()
    hole[5] = np.nan
    for wrong in (halves[0].astype(np.float64).astype(np.int64), halves[0].astype(np.int16), hole, "sound",
                  np.stack([halves[0]] * 2, 1)):  # fmt: skip
        with pytest.raises(MediaError):
            bad.push_audio(wrong)
    with pytest.raises(ArgumentError):
        bad.interrupt(float("nan"))
    with pytest.raises(AvatarError, match=r"expected what model\.prepare"):
        engine.session("face.png")
    with pytest.raises(AvatarError):
        engine.session(toy(seed=1).prepare(photo()))
    with pytest.raises(ArgumentError):
        engine.session(avatar, seed=-1)
    assert len(engine.seats) == 2 and len(engine.free) == 1
    got = []
    for session in (bad, other):
        session.push_audio(halves[1])
        session.end_segment()
        got.append(list(session.blocks()))
    same(want[0], got[0])
    same(want[1], got[1])


# -- opening that is given up, measuring again


def test_a_session_is_closed_though_the_event_loop_that_opened_it_has_ended(model, avatar):
    with model.engine(sessions=2, admission=False) as engine:
        busy = threading.Event()
        model.submit(busy.wait, 30)
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(asyncio.wait_for(engine.asession(avatar), 0.1))
        busy.set()
        deadline = time.monotonic() + 10
        while (engine.metrics().opened, engine.metrics().sessions) != (1, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (engine.metrics().opened, engine.metrics().sessions) == (1, 0)


def test_an_engine_that_is_closed_while_a_session_is_opened(model, avatar):
    engine, opening, closed = model.engine(sessions=2, admission=False), threading.Event(), threading.Event()
    stream = engine.family.stream
    engine.family.stream = lambda *a, **o: (opening.set(), closed.wait(30), stream(*a, **o))[2]
    future = model.submit(engine.open, avatar, sample_rate=RATE, seed=0, decode=None)
    assert opening.wait(30)
    engine.close()
    closed.set()
    with pytest.raises(EngineClosed, match="closed meanwhile"):
        future.result(30)
    model.compute(lambda: None)
    assert engine.metrics().sessions == 0 and not hasattr(engine, "sampler")


def test_a_clock_that_is_too_coarse_for_a_chunk(model, avatar):
    engine = Engine(model, model.config.sampling, sessions=2, clock=lambda: 100.0)
    assert engine.costs.chunk == 0 and engine.capacity() == engine.metrics().capacity == 2
    engine.session(avatar)
    engine.close()


def test_a_machine_that_was_slow_is_measured_again(model, avatar):
    """While nobody is served, no chunk shows that others have left the processor."""
    with model.engine(sessions=2) as engine:
        engine.costs.chunks.clear()
        engine.costs.chunks.append(5.0)
        assert engine.capacity() == 0
        engine.measure = lambda seconds: engine.costs.replace([0.3])
        engine.session(avatar)
        assert engine.capacity() == 2 and engine.metrics().refused == 0


def test_old_times_refuse_nobody(model, avatar):
    """The one who is served is silent: before another is refused, a chunk is timed, in a place that nobody has."""
    clock = [100.0]
    engine = Engine(model, model.config.sampling, sessions=3, clock=lambda: clock[0])
    samples = sound(RATE, 3.0)
    with engine, engine.session(avatar, seed=2) as first:
        first.push_audio(samples[:20000])
        blocks = list(first.blocks())
        engine.costs.chunks.clear()
        engine.costs.chunks.append(0.5)
        with pytest.raises(CapacityExhausted):
            engine.session(avatar)
        clock[0] += 11
        assert engine.session(avatar) and list(engine.costs.chunks) == [0.0] * 5
        first.push_audio(samples[20000:])
        first.end_segment()
        same(blocks + list(first.blocks()), alone(model, avatar, samples, seed=2))
