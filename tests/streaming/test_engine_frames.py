"""Nobody's frames depend on who else is served: scripts beside each other and bad neighbours, against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rest_fast.streaming import family as family_module
from tests.kit.captured import StandIn
from tests.kit.neighbours import Rowdy, Viewer
from tests.kit.oracle import Oracle
from tests.kit.scripts import long_script, looking_ahead, scripts
from tests.kit.streams import alone, perform, play, same
from tests.kit.toys import photo, sound, toy

RATE = 16000


def test_sessions_show_what_they_show_alone(model, engine):
    """Three viewers at once, with other faces, seeds, rates and decodes."""
    cases = [({"seed": 1}, 0), ({"seed": 2, "sample_rate": 22050}, 1), ({"seed": 1}, 2)]
    sounds = [sound(options.get("sample_rate", RATE), 4.0, seed=i) for options, i in cases]
    faces = [model.prepare(photo(seed=i)) for i in range(3)]
    want = [alone(model, face, x, **options) for (options, _), face, x in zip(cases, faces, sounds)]
    sessions = [engine.session(face, **options) for (options, _), face in zip(cases, faces)]
    for session, samples in zip(sessions, sounds):
        session.push_audio(samples)
        session.end_segment()
    got = [[], [], []]
    while any(fresh := [next(session.blocks(), None) for session in sessions]):
        for blocks, block in zip(got, fresh):
            blocks += [block] if block else []
    for a, b in zip(want, got, strict=True):
        same(a, b)


def together(make, plays, seed, **options):
    """Scripts on one engine, in random turns beside a rowdy neighbour: each shows what its oracle says."""
    model = make()
    rng = np.random.default_rng(seed)
    faces = [model.prepare(photo(seed=i), crop="center") for i in range(len(plays))]
    with model.engine(sessions=len(plays) + 1, admission=False) as engine:
        viewers = [
            Viewer(engine, face, script, seed=i, **options) for i, (face, script) in enumerate(zip(faces, plays))
        ]
        rowdy, busy = Rowdy(engine, faces[0], rng), list(viewers)
        while busy:
            viewer = busy[int(rng.integers(len(busy)))]
            if not viewer.step():
                busy.remove(viewer)
            rowdy.act()
    for i, (viewer, face, script) in enumerate(zip(viewers, faces, plays)):
        want = perform(script, lambda **o: Oracle(model, face, **o), seed=i, **options)  # noqa: B023 (called at once)
        assert [x for x in viewer.blocks if isinstance(x, str)] == [x for x in want if isinstance(x, str)]
        shown, wanted = ([x for x in found if not isinstance(x, str)] for found in (viewer.blocks, want))
        same(shown, wanted)


@pytest.mark.parametrize("kind", ["causal", "look-ahead"])
def test_a_long_script_beside_a_rowdy_neighbour(kind):
    together(toy if kind == "causal" else looking_ahead, [long_script()], seed=1)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plays=st.lists(scripts(), min_size=2, max_size=2), seed=st.integers(0, 99), causal=st.booleans())
def test_any_scripts_beside_each_other(plays, seed, causal):
    together(toy if causal else looking_ahead, plays, seed)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plays=st.lists(scripts(), min_size=1, max_size=3), seed=st.integers(0, 99), causal=st.booleans())
def test_any_scripts_beside_each_other_at_length(plays, seed, causal):
    together(toy if causal else looking_ahead, plays, seed)


def test_samples_in_small_pieces_while_it_computes(model, avatar, engine):
    """Generation runs ahead as far as it gets; how far is not seen."""
    samples = sound(RATE, 4.0)
    want = alone(model, avatar, samples, seed=5)
    for piece in (997, 20000):
        with engine.session(avatar, seed=5) as s:
            same(want, play(s, samples, range(piece, len(samples), piece)))


@pytest.mark.parametrize("lanes", [2, 4])
def test_captured_lanes_at_other_steps_do_not_matter(lanes, monkeypatch):
    """Evaluations of two sessions in one replay, each at its own step: the bits of a session that has it for itself."""
    monkeypatch.setattr(family_module, "graphs_of", lambda choice, device: lambda name: StandIn())
    model = toy()
    avatar, samples = model.prepare(photo()), [sound(RATE, 3.0, seed=i) for i in range(2)]

    def shown(which):
        with model.engine(lanes=lanes, sessions=3, admission=False) as engine:
            engine.together = lanes // 2
            counts, run = [], engine.sampler.step.run
            engine.sampler.step.run = lambda turns: (counts.append(len(turns)), run(turns))
            sessions = [engine.session(avatar, seed=i) for i in which]
            for i, session in zip(which, sessions):
                session.push_audio(samples[i])
                session.end_segment()
            blocks = [list(session.blocks()) for session in sessions]
            return blocks, counts

    (first,), _ = shown([0])
    (second,), _ = shown([1])
    both, counts = shown([0, 1])
    same(first, both[0])
    same(second, both[1])
    assert max(counts) == lanes // 2


def test_idle_that_nobody_has_seen_gives_way_to_speech(model, avatar):
    """One of three idle blocks was shown: the speech comes next, with all its sound, from a rebuilt context."""
    samples = sound(RATE, 1.2, dtype=np.int16)
    with model.session(avatar) as s:
        first = next(s.blocks(idle=True))
        s.push_audio(samples[:8000])
        second = next(s.blocks())  # speech is not due yet
        s.push_audio(samples[8000:])
        s.end_segment()
        rest = list(s.blocks())
    assert [first.idle, second.idle] == [True, True] and not any(b.idle for b in rest)
    assert [b.pts for b in rest] == pytest.approx([0.64, 0.96, 1.28, 1.60])
    assert np.array_equal(np.concatenate([b.audio for b in rest])[: len(samples)], samples)
    assert rest[-1].segment_end and sum(b.true_samples for b in rest) == len(samples)


def test_an_interrupt_abandons_the_work_in_flight(model, avatar):
    """Between two evaluations of a chunk: what comes next is what a session shows whose chunk had not begun."""
    samples, shown = sound(RATE, 3.0), []
    for early in (False, True):
        with model.engine(sessions=2, admission=False) as engine:
            session, served = engine.session(avatar, seed=4), []
            serve = engine.serve

            def interrupting(seats, session=session, served=served, serve=serve, early=early):
                serve(seats)
                served.append(seats)
                if early and session.watch.chunks == 1 and session.seat.work.turn is not None:
                    session.interrupt()  # in the middle of the second chunk

            engine.serve = interrupting
            session.push_audio(samples)
            first = [block for block in session.blocks() if block.epoch == 0]
            if not early:
                first = first[:3]
                assert session.epoch == 0
            shown.append((first, session))
            if early:
                assert session.epoch == 1
                engine.serve = serve
                got = play(session, samples[:20000])
    with model.session(avatar, seed=4) as session:
        session.push_audio(samples)
        taken = [next(session.blocks()) for _ in range(len(shown[1][0]))]
        session.interrupt()
        same(taken + play(session, samples[:20000]), shown[1][0] + got)
