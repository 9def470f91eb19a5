"""Session with the demo's kind of VAE: linear basis, mixer, post-net, reference photo. Weights are random."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.streaming.snapshot import SessionState
from tests.kit.streams import play, same
from tests.kit.toys import basis_model, photo, sound

RATE = 22050


@pytest.fixture(scope="module")
def model():
    return basis_model()


@pytest.fixture(scope="module")
def avatar(model):
    return model.prepare(photo())


def stream(model, avatar, cuts=(), seconds=2.0):
    with model.session(avatar, sample_rate=RATE, seed=7) as s:
        return play(s, sound(RATE, seconds), cuts)


def video(blocks):
    return np.stack([b.video for b in blocks])


def test_frames_are_no_flat_or_saturated_ones(model, avatar):
    frames = video(stream(model, avatar))
    assert frames.shape[1:] == (8, 32, 32, 3)
    assert frames.std() > 10 and np.isin(frames, (0, 255)).mean() < 0.5
    assert not np.array_equal(frames[0], frames[1])


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 44100), max_size=6))
def test_any_slicing_gives_the_same_frames(model, avatar, cuts):
    same(stream(model, avatar, sorted(cuts)), stream(model, avatar))


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_snapshot_continues_bit_equal(model, avatar, at):
    samples = sound(RATE, 2.5)
    whole = stream(model, avatar, seconds=2.5)
    with model.session(avatar, sample_rate=RATE, seed=7) as s:
        s.push_audio(samples[:50000])
        blocks = s.blocks()
        head = [next(blocks) for _ in range(at)]
        state = s.snapshot().to_bytes()
    with model.session(avatar, sample_rate=RATE, seed=7) as s:
        s.restore(SessionState.from_bytes(state))
        same(whole, head + play(s, samples[50000:]))


@pytest.mark.parametrize("cuts", [[], [100, 20000]])
def test_interrupt_then_the_same_frames(model, avatar, cuts):
    """The decoder goes back, too: its past latent, its frames, its reference."""

    def interrupted(cuts):
        with model.session(avatar, sample_rate=RATE, seed=7) as s:
            before = play(s, sound(RATE, 2.0), cuts)
            s.interrupt(shown_pts=before[-2].pts)
            return before, play(s, sound(RATE, 1.5, seed=3), cuts)

    before, after = interrupted(cuts)
    same(before + after, [b for part in interrupted([]) for b in part])
    assert after[0].pts == before[-2].pts and after[0].epoch == 1
    assert not np.array_equal(after[0].video, before[-2].video)


def test_the_photo_itself_matters(model, avatar):
    """Same latent, same sink, another picture: the post-net shows it."""
    other = dataclasses.replace(avatar, picture=model.prepare(photo(seed=4)).picture)
    a, b = (video(stream(model, face)) for face in (avatar, other))
    assert all((x != y).mean() > 0.1 for x, y in zip(a, b, strict=True))  # in every block, to the end


def test_the_mixer_matters(model, avatar):
    plain = basis_model()
    plain.vae.decoder.mixer.proj_out.zero_()
    frames = video(stream(plain, plain.prepare(photo())))
    assert (frames != video(stream(model, avatar))).mean() > 0.1
