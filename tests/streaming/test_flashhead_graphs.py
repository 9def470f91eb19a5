"""Sessions of FlashHead whose step and networks are captured, by the stand-in for graphs, show what others show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rest_fast.errors import ArgumentError
from rest_fast.model import FlashHeadModel
from rest_fast.streaming import family as family_module
from rest_fast.streaming.engine import Engine
from rest_fast.streaming.snapshot import SessionState
from tests.kit import flashhead
from tests.kit.captured import StandIn
from tests.kit.streams import play, same
from tests.kit.toys import photo, sound


@pytest.fixture(scope="module")
def model() -> FlashHeadModel:
    return flashhead.small()


@pytest.fixture(scope="module")
def avatar(model):
    return model.prepare(photo(), crop="center")


@pytest.fixture
def graphs(monkeypatch):
    """From when it is called, sessions are captured; stand-ins by name."""
    made: dict[str, StandIn] = {}

    def captures(name):
        return made.setdefault(name, StandIn())

    def on():
        monkeypatch.setattr(family_module, "graphs_of", lambda choice, device: captures)
        return made

    return on


def talk(session):
    """The first chunk, whole ones, a segment cut inside one, an interrupt inside one, and idle."""
    blocks = play(session, sound(16000, 2.2))
    session.interrupt(shown_pts=blocks[-2].pts)
    return blocks + play(session, sound(16000, 0.7, seed=1)) + list(session.blocks(idle=True))


def test_the_same_frames(model, avatar, graphs):
    with model.session(avatar, seed=3) as s:
        want = talk(s)
    made = graphs()
    with model.session(avatar, seed=3) as s:
        same(want, talk(s))
        chunks = s.metrics().chunks
    # What is heard, and all evaluations of a chunk in one replay; wav2vec and the decoder; and encoding back, but for
    # the first chunk.
    assert made["denoising step"].replays == 2 * chunks
    assert made["audio, encoder and decoder"].replays == 3 * chunks - 1


def test_the_same_frames_step_by_step_and_from_a_snapshot(model, avatar, graphs):
    samples = sound(16000, 2.88)
    with model.session(avatar, seed=3) as s:
        s.push_audio(samples)
        blocks = [next(iter(s.blocks())) for _ in range(4)]
        state = s.snapshot().to_bytes()
        rest = list(s.blocks())
    made, seen = graphs(), []
    with model.session(avatar, seed=3, on_step=lambda *numbers: seen.append(numbers)) as s:
        same([*blocks, *rest], play(s, samples, end=False))
    assert len(seen) == 12 and made["denoising step"].replays == 3 * (1 + 4)
    with model.session(avatar, seed=3) as s:
        s.restore(SessionState.from_bytes(state))
        same(rest, list(s.blocks()))


@pytest.mark.parametrize("lanes", [1, 2])
def test_captured_lanes_at_other_steps_do_not_matter(model, avatar, lanes, graphs):
    """Two sessions in one replay, one of which begins later: the bits of a session that has it for itself."""
    graphs()
    samples = [sound(16000, seconds, seed=i) for i, seconds in enumerate((1.92, 0.96))]

    def shown(which):
        with model.engine(lanes=lanes, sessions=2, admission=False) as engine:
            engine.together = lanes
            counts, run = [], engine.sampler.step.run
            engine.sampler.step.run = lambda turns: (counts.append(len(turns)), run(turns))
            sessions = [engine.session(avatar, seed=i) for i in which]
            for i, session in zip(which, sessions):
                session.push_audio(samples[i])
                session.end_segment()
            return [list(session.blocks()) for session in sessions], counts

    (first,), _ = shown([0])
    (second,), _ = shown([1])
    both, counts = shown([0, 1])
    same(first, both[0])
    same(second, both[1])
    assert max(counts) == lanes


def test_fewer_steps_are_evaluated_by_the_same_step(model, avatar, graphs):
    samples, made = sound(16000, 0.96), graphs()
    with model.session(avatar, seed=3, steps=2) as s:
        want = play(s, samples, end=False)
    made.clear()
    now = [100.0]
    with Engine(
        model, model.config.sampling, sessions=1, admission=False, clock=lambda: now[0], fewer_steps=2
    ) as engine:
        session = engine.session(avatar, seed=3)
        engine.costs.chunks.append(0.1)
        with engine.alone:
            session.push_audio(samples)
            session.seat.look()  # since now it is due
            now[0] += 60
        got = list(session.blocks())
    assert [block.degraded for block in got] == [True] * 3
    assert all(np.array_equal(a.video, b.video) for a, b in zip(got, want, strict=True))
    assert made["denoising step"].replays == 1 + 2  # what is heard, and two evaluations


def test_words(model, avatar):
    with pytest.raises(ArgumentError, match="graphs: expected auto or off, since CUDA graphs need a CUDA device"):
        model.session(avatar, graphs="on")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_session_on_a_gpu_shows_the_same_with_graphs_and_without():
    toy = flashhead.small().to("cuda")
    avatar = toy.prepare(photo(), crop="center")
    with toy.session(avatar, seed=3, graphs="off") as s:
        want = talk(s)
    with toy.session(avatar, seed=3, graphs="on") as s:
        same(want, talk(s))
