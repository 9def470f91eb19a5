"""Engine: whose piece comes next, what it costs, and what is given back."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
import weakref

import numpy as np
import pytest

from rest_fast import CapacityExhausted, EngineClosed, SessionClosed
from rest_fast.streaming.engine import Engine
from rest_fast.streaming.timeline import Timeline
from tests.kit.streams import alone, play, same
from tests.kit.toys import sound

RATE = 16000


# -- whose piece comes next


class Clock:
    """Stands still unless it is told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def scheduled(model, avatar, plays_until, cost=0.01):
    """The order in which sessions' pieces are computed, and the sessions; a piece takes ``cost`` seconds."""
    clock, order = Clock(), []
    engine = Engine(model, model.config.sampling, sessions=len(plays_until), admission=False, clock=clock)
    serve = engine.serve

    def served(sessions):
        order.extend(sessions)
        serve(sessions)
        clock.now += cost

    engine.serve = served
    sessions = [engine.session(avatar, seed=i) for i in range(len(plays_until))]
    with engine.alone:  # nothing is computed before all have pushed
        for session, until in zip(sessions, plays_until):
            session.mailbox.runs_out = until
            session.push_audio(sound(RATE, 1.2))
    while any(s.ready_seconds == 0 for s in sessions):
        time.sleep(0.001)
    return engine, [[s.seat for s in sessions].index(s) for s in order], sessions


def test_the_viewer_who_runs_out_first_is_served_first(model, avatar):
    engine, order, _ = scheduled(model, avatar, [130.0, 110.0, 120.0])
    assert sorted(order, key=[1, 2, 0].index) == order and set(order) == {0, 1, 2}
    engine.close()


def test_the_deadline_of_what_does_not_exist_yet(model, avatar):
    """What waits to be taken will be played first: a block was taken of one, two of another, at the same time."""
    clock = Clock()
    with Engine(model, model.config.sampling, sessions=2, admission=False, clock=clock) as engine:
        sessions = [engine.session(avatar, seed=i) for i in range(2)]
        for session in sessions:
            session.push_audio(sound(RATE, 1.2))
            next(session.blocks())
        next(sessions[1].blocks())
        engine.compute(lambda: [session.seat.look() for session in sessions])
        assert [session.seat.deadline - clock.now for session in sessions] == pytest.approx([0.96, 0.96])
        assert [session.mailbox.plays_until - clock.now for session in sessions] == pytest.approx([0.32, 0.64])


def test_an_urgent_session_waits_for_a_piece_and_not_for_a_chunk(model, avatar):
    clock, order = Clock(), []
    engine = Engine(model, model.config.sampling, sessions=2, admission=False, clock=clock)
    early, urgent = (engine.session(avatar, seed=i) for i in range(2))
    serve = engine.serve

    def served(sessions):
        order.extend(sessions)
        serve(sessions)
        clock.now += 0.01
        if order == [early.seat, early.seat]:  # its features and one evaluation
            assert early.watch.chunks == 0
            urgent.push_audio(sound(RATE, 1.2))

    engine.serve = served
    early.mailbox.runs_out = 200.0
    early.push_audio(sound(RATE, 1.2))
    assert len(list(early.blocks())) == len(list(urgent.blocks())) == 3
    assert order[:3] == [early.seat, early.seat, urgent.seat]
    assert order.index(early.seat, 2) == 2 + order.count(urgent.seat)  # it goes on when the urgent one is done
    engine.close()


def test_late_sessions_take_turns(model, avatar):
    """All are late by the same: none gets more chunks than another by more than one."""
    clock = Clock()
    engine = Engine(model, model.config.sampling, sessions=3, admission=False, clock=clock)
    sessions, counts = [engine.session(avatar, seed=i) for i in range(3)], []
    serve = engine.serve

    def served(serving):
        serve(serving)
        clock.now += 0.3  # a chunk of four pieces and more takes longer than it lasts
        counts.append([s.watch.chunks for s in sessions])

    engine.serve = served
    with engine.alone:
        for session in sessions:
            session.push_audio(sound(RATE, 6.0))
    got = [0, 0, 0]
    while min(got) < 8:
        time.sleep(0.002)
        for i, session in enumerate(sessions):
            if session.ready_seconds:
                next(session.blocks())
                got[i] += 1
    assert max(max(c) - min(c) for c in counts) <= 2
    engine.close()


def test_viewers_of_held_frames_are_served_in_turn(model, avatar):
    """Each waits for its next block, and holds frames at its own times: no deadline moves by that."""
    clock, served = Clock(), []
    with Engine(model, model.config.sampling, sessions=3, admission=False, clock=clock) as engine:
        sessions = [engine.session(avatar, seed=i) for i in range(3)]
        for session in sessions:
            session.push_audio(sound(RATE, 12.0))
            next(session.blocks())
        serve = engine.serve

        def serving(seats):
            serve(seats)
            clock.now += 0.2  # five pieces of a chunk for three viewers: more than there is time for
            served.extend(seats)
            for i, session in enumerate(sessions):  # as their loops do
                while session.mailbox.plays_until < clock.now - 0.01 * i and session.mailbox.hold(0.04):
                    pass

        engine.serve = serving
        got = [1, 1, 1]
        while sum(got) < 45:
            time.sleep(0.001)
            for i, session in enumerate(sessions):
                if session.ready_seconds:
                    next(session.blocks())
                    got[i] += 1
        assert max(got) - min(got) <= 6  # two chunks


def test_a_consumer_that_stops_taking_holds_up_nobody(model, avatar, engine):
    """Its generation stops a chunk ahead of what was taken."""
    stopped, other = engine.session(avatar), engine.session(avatar, seed=1)
    stopped.push_audio(sound(RATE, 20.0))
    assert next(stopped.blocks()).pts == 0
    assert len(play(other, sound(RATE, 4.0))) == 13
    deadline = time.monotonic() + 10
    while stopped.stream.timeline.generated < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    timeline = stopped.stream.timeline
    assert (timeline.generated, timeline.delivered) == (6, 1)
    assert len(list(stopped.blocks())) == 59


def test_nothing_is_generated_before_a_block_was_taken(model, avatar, engine):
    session = engine.session(avatar)
    session.push_audio(sound(RATE, 20.0))
    while session.ready_seconds < 0.9:
        time.sleep(0.01)
    time.sleep(0.1)
    assert session.stream.timeline.generated == 3 and session.mailbox.error is None


# -- what it costs


def test_costs_are_those_of_whole_chunks(model, avatar):
    """Of pieces, by a clock that each moves: features, two evaluations, decoding."""
    engine, _, sessions = scheduled(model, avatar, [130.0, 110.0], cost=0.0)
    clock, serve = engine.clock, engine.serve

    def served(serving):
        serve(serving)
        clock.now += 0.25

    engine.serve = served
    engine.costs.chunks.clear()
    for session in sessions:
        list(session.blocks())
        session.push_audio(sound(RATE, 0.96))
        list(session.blocks())
    steps = model.config.sampling.steps
    assert list(engine.costs.chunks) == pytest.approx([0.25 * (steps + 2)] * 2)
    engine.close()


# -- what is given back


def test_a_hundred_sessions_leave_nothing_behind(model, avatar):
    with model.engine(sessions=2, admission=False) as engine:
        levels, streams = [], []
        for i in range(100):
            session = engine.session(avatar, seed=i)
            streams.append(weakref.ref(session.stream))
            if i % 5 == 0:
                session.push_audio(sound(RATE, 1.1))
                next(session.blocks())
            session.close()
            if i in (9, 99):
                model.compute(lambda: None)  # behind the job that frees the session
                gc.collect()
                if i == 9:
                    tracemalloc.start()
                levels.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert not any(stream() is not None for stream in streams)
        assert levels[1] < 300_000
        assert sorted(engine.free) == [0, 1]


def test_a_closed_engine_has_closed_its_sessions_and_gives_its_memory_back(model, avatar):
    engine = model.engine(sessions=2, admission=False)
    session, cache = engine.session(avatar), weakref.ref(engine.sampler.cache)
    engine.close()
    engine.close()
    with pytest.raises(SessionClosed):
        session.push_audio(sound(RATE, 1.0))
    with pytest.raises(EngineClosed, match="expected an open engine"):
        engine.session(avatar)
    model.compute(lambda: None)
    gc.collect()
    assert cache() is None


def test_a_private_session_gives_its_memory_back(model, avatar):
    session = model.session(avatar)
    cache = weakref.ref(session.stream.cache)
    play(session, sound(RATE, 1.0))
    session.close()
    model.compute(lambda: None)
    gc.collect()
    assert cache() is None and session.metrics().blocks == 4


# -- long


@pytest.mark.parametrize("rate", [16000, 44100, 12345])
def test_a_day_of_positions(rate):
    """90 000 chunks of integers: borders are exact, and nothing piles up."""
    timeline = Timeline(rate, chunk=3, lead=3, back=1400, ahead=1400)
    rng, pushed, pieces = np.random.default_rng(0), 0, [np.zeros(n, np.int16) for n in (rate, rate + 1)]
    for i in range(90_000):
        while not timeline.due():
            piece = pieces[int(rng.integers(2))]
            timeline.sound.append(piece)
            pushed += len(piece)
        timeline.accept(timeline.plan())
        for _ in range(3):
            timeline.deliver()
        if i % 100 == 0:
            timeline.forget()
    assert timeline.delivered == 270_000 and timeline.border(270_000) == round(86_400 * rate)
    assert timeline.sound.end == pushed and timeline.sound.end - timeline.sound.start < 110 * rate
    assert len(timeline.segments) == 0


def test_many_threads(model, avatar):
    """Pushing, taking, interrupting, opening and closing from six threads: nothing hangs and nothing is lost."""
    errors = []
    with model.engine(sessions=6, admission=False) as engine:

        def live(i):
            try:
                rng = np.random.default_rng(i)
                for _ in range(3):
                    with engine.session(avatar, seed=i) as s:
                        count = 0
                        for _ in range(4):
                            s.push_audio(sound(RATE, float(rng.uniform(0.2, 1.2))))
                            count += len(list(s.blocks()))
                            if rng.random() < 0.3:
                                s.interrupt()
                        s.end_segment()
                        list(s.blocks())
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=live, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert not errors


def test_fewer_steps_are_flagged_and_leave_the_rest_of_the_stream_alone(model, avatar):
    """A chunk that is late is made with one step; one that is not, with two."""
    clock = Clock()
    sampling = model.config.sampling
    engine = Engine(model, sampling, sessions=2, admission=False, clock=clock, fewer_steps=1)
    session, evaluations, run = engine.session(avatar), [], engine.sampler.step.run
    engine.sampler.step.run = lambda turns: (evaluations.append(turns), run(turns))
    engine.costs.chunks.append(0.1)
    samples = sound(RATE, 3.2)
    session.push_audio(samples[:20000])
    blocks = list(session.blocks())
    with engine.alone:
        session.push_audio(samples[20000:35000])
        session.seat.look()  # since now it is due
        clock.now += 60
    blocks += list(session.blocks())
    session.push_audio(samples[35000:])
    session.end_segment()
    blocks += list(session.blocks())
    assert [b.degraded for b in blocks] == [False] * 3 + [True] * 3 + [False] * 4
    assert session.metrics().degraded == 3 and len(evaluations) == 2 + 1 + 2 * 2
    want = alone(model, avatar, samples)
    same(want[:3], blocks[:3])
    assert not np.array_equal(want[3].video, blocks[3].video)
    assert [b.pts for b in want] == [b.pts for b in blocks]
    engine.close()


def test_a_session_may_be_opened_from_many_places(model, avatar):
    """Opening waits its turn in the worker; an event loop goes on meanwhile, and a cancelled wait leaves no session."""

    async def run():
        with model.engine(sessions=2, admission=False) as engine:
            sessions = await asyncio.gather(*(engine.asession(avatar, seed=i) for i in range(2)))
            with pytest.raises(CapacityExhausted):
                await engine.asession(avatar)
            sessions[0].close()
            task = asyncio.ensure_future(engine.asession(avatar))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            deadline = time.monotonic() + 10
            while engine.metrics().sessions > 1 and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert engine.metrics().sessions == 1

    asyncio.run(run())
