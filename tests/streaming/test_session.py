"""Session: blocks, sound, segments, idling, slicing, bad input. The model is a toy with random weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import rest_fast
from rest_fast.avatar import Avatar, AvatarError
from rest_fast.media import MediaError
from rest_fast.streaming.session import SessionClosed
from tests.kit.streams import play, same
from tests.kit.toys import photo, sound, toy

RATE = 22050  # 7056 samples a latent; not the model's rate, so the resampler takes part


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 24000, 44100, 48000, 96000, 12345])
def test_blocks_cover_the_sound_exactly(model, avatar, rate):
    samples = sound(rate, 1.5, dtype=np.int16)
    with model.session(avatar, sample_rate=rate) as s:
        blocks = play(s, samples)
    assert len(blocks) == math.ceil(len(samples) * 25 / (8 * rate))
    audio = np.concatenate([b.audio for b in blocks])
    assert audio.dtype == np.int16
    assert np.array_equal(audio[: len(samples)], samples)  # the caller's own, bit for bit
    assert not audio[len(samples) :].any()
    edges = np.cumsum([0] + [len(b.audio) for b in blocks])
    assert all(edge == round(8 * i * rate / 25) for i, edge in enumerate(edges))  # the definition, in floats
    assert [b.pts for b in blocks] == pytest.approx([0.32 * i for i in range(len(blocks))])
    assert sum(b.true_samples for b in blocks) == len(samples)
    assert [b.segment_end for b in blocks] == [False] * (len(blocks) - 1) + [True]
    assert all(b.video.shape == (8, 64, 64, 3) and b.video.dtype == np.uint8 for b in blocks)


def test_stereo_floats_come_back_as_they_were(model, avatar):
    samples = np.stack([sound(RATE, 1.0), sound(RATE, 1.0, seed=5)], 1)
    with model.session(avatar, sample_rate=RATE) as s:
        audio = np.concatenate([b.audio for b in play(s, samples)])
    assert np.array_equal(audio[: len(samples)], samples)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 60000), max_size=6), st.integers(0, 3))
def test_any_slicing_gives_the_same_frames(model, avatar, cuts, idles):
    samples = sound(RATE, 60000 / RATE)

    def stream(cuts):
        with model.session(avatar, sample_rate=RATE, seed=7) as s:
            first = play(s, samples, cuts)
            silent = [b for _ in range(idles) for b in s.blocks(idle=True)]
            return first + silent + play(s, samples[:20000], [c // 4 for c in cuts])

    same(stream(sorted(cuts)), stream([]))


def test_starving_segment_idles_and_loses_nothing(model, avatar):
    """Half a chunk, an idle chunk in between, the rest: queued sound comes after the idle chunk, complete."""
    samples = sound(RATE, 2.0, dtype=np.int16)

    def stream(cuts):
        with model.session(avatar, sample_rate=RATE) as s:
            for a, b in zip([0, *cuts], [*cuts, 8000], strict=True):
                s.push_audio(samples[a:b])
                assert not list(s.blocks())
            silent = list(s.blocks(idle=True))
            s.push_audio(samples[8000:])
            s.end_segment()
            return silent, list(s.blocks())

    silent, spoken = stream([])
    assert [b.idle for b in silent] == [True] * 3
    assert not any(b.true_samples or b.audio.any() for b in silent)
    audio = np.concatenate([b.audio for b in spoken])
    assert np.array_equal(audio[: len(samples)], samples)
    assert spoken[0].pts == pytest.approx(0.96)
    again = stream([100, 101, 7999])
    same(silent + spoken, again[0] + again[1])


def test_idle_adds_nothing_while_something_is_due(model, avatar):
    with model.session(avatar, sample_rate=RATE) as s:
        s.push_audio(sound(RATE, 1.2))
        assert [b.idle for b in s.blocks(idle=True)] == [False] * 3
        assert [b.idle for b in s.blocks(idle=True)] == [True] * 3


def test_a_chunk_waits_for_its_lookahead_and_no_longer(model, avatar):
    with model.session(avatar) as s:
        assert s.lookahead_ms == pytest.approx(80 + 7.5)  # feature window, half an analysis window beyond its hop
        need = round((0.96 + s.lookahead_ms / 1000) * 16000)
        samples = sound(16000, 2.0)
        s.push_audio(samples[: need - 1])
        assert not list(s.blocks())
        s.push_audio(samples[need - 1 : need])
        assert len(list(s.blocks())) == 3
    with model.session(avatar, sample_rate=RATE) as s:
        assert s.lookahead_ms == pytest.approx(80 + 7.5 + 10)  # and the resampler's neighbourhood


def test_a_segment_end_is_silence_for_what_follows_it(model, avatar):
    """Frames up to a segment's end do not depend on whether the next segment has come already."""
    first, second = sound(RATE, 1.1), sound(RATE, 1.0, seed=9)

    def stream(together):
        with model.session(avatar, sample_rate=RATE) as s:
            s.push_audio(first)
            s.end_segment()
            got = [] if together else list(s.blocks())
            s.push_audio(second)
            s.end_segment()
            return got + list(s.blocks())

    blocks = stream(True)
    same(blocks, stream(False))
    assert [b.segment_end for b in blocks] == [False] * 3 + [True] + [False] * 3 + [True]
    assert blocks[3].true_samples == len(first) - 3 * 7056
    start = sum(len(b.audio) for b in blocks[:4])
    audio = np.concatenate([b.audio for b in blocks])
    assert np.array_equal(audio[start : start + len(second)], second)  # begins on the latent border


def test_empty_segments_and_pushes_change_nothing(model, avatar):
    samples = sound(RATE, 1.0)
    with model.session(avatar, sample_rate=RATE) as s:
        plain = play(s, samples)
    with model.session(avatar, sample_rate=RATE) as s:
        s.end_segment()
        s.push_audio(samples[:0])
        blocks = play(s, samples)
        s.end_segment()
        assert not list(s.blocks())
    same(plain, blocks)


def test_seed_speech_and_face_all_matter(model, avatar):
    samples = sound(RATE, 1.0)

    def video(face=avatar, seed=0, speech=samples, **options):
        with model.session(face, sample_rate=RATE, seed=seed, **options) as s:
            return np.stack([b.video for b in play(s, speech)])

    base = video()
    assert np.array_equal(base, video())
    others = (
        video(seed=1),
        video(speech=samples[::-1].copy()),
        video(face=model.prepare(photo(seed=4))),
        video(steps=3),
        video(guidance=1.0),
    )
    assert not any(np.array_equal(base, other) for other in others)


def test_two_sessions_interleaved_equal_each_alone(model, avatar):
    samples = [sound(RATE, 2.0), sound(RATE, 2.0, seed=3)]
    alone = []
    for i in range(2):
        with model.session(avatar, sample_rate=RATE, seed=i) as s:
            alone.append(play(s, samples[i]))
    sessions = [model.session(avatar, sample_rate=RATE, seed=i) for i in range(2)]
    mixed = [[], []]
    for cut in range(0, len(samples[0]), 9000):
        for i, s in enumerate(sessions):
            s.push_audio(samples[i][cut : cut + 9000])
            mixed[i] += s.blocks()
    for i, s in enumerate(sessions):
        s.end_segment()
        same(alone[i], mixed[i] + list(s.blocks()))


NOT_PCM = {
    "list of ints": np.array([1, 2, 3]), "bytes": np.zeros(10, np.uint8), "three axes": np.zeros((2, 2, 2), np.float32),
    "nan": np.array([0, np.nan], np.float32), "int scaled": np.array([0, 3000.0], np.float32),
    "complex": np.zeros(4, np.complex64),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PCM)
def test_bad_sound_is_refused_and_the_stream_goes_on(model, avatar, name):
    samples = sound(16000, 1.0)
    with model.session(avatar) as s:
        want = play(s, samples)
    with model.session(avatar) as s:
        with pytest.raises(MediaError, match="expected"):
            s.push_audio(NOT_PCM[name])
        same(want, play(s, samples))


def test_one_format_per_stream(model, avatar):
    with model.session(avatar) as s:
        s.push_audio(np.zeros(100, np.int16))
        with pytest.raises(MediaError, match="push_audio: expected samples like the first push"):
            s.push_audio(np.zeros(100, np.float32))


def test_closed_session_refuses(model, avatar):
    s = model.session(avatar)
    s.push_audio(sound(16000, 2.0))
    s.close()
    assert not list(s.blocks(idle=True))
    for call in (lambda: s.push_audio(np.zeros(4, np.float32)), s.end_segment, s.interrupt):
        with pytest.raises(SessionClosed, match="expected an open session"):
            call()


@pytest.mark.parametrize("rate", [7999, 96001, 16000.0, True, "16000"])
def test_bad_rate(model, avatar, rate):
    with pytest.raises(ValueError, match=r"sample_rate: expected an integer in 8000..96000 Hz, got"):
        model.session(avatar, sample_rate=rate)


@pytest.mark.parametrize(("options", "text"), [
    ({"steps": 0}, "sampling.steps: expected"), ({"guidance": float("nan")}, "sampling.guidance: expected"),
    ({"seed": -1}, "seed: expected"), ({"seed": 1 << 64}, "seed: expected"),
])  # fmt: skip
def test_bad_options(model, avatar, options, text):
    with pytest.raises(ValueError, match=text):
        model.session(avatar, **options)


def test_avatar_round_trip_and_keys(model, avatar, tmp_path):
    path = tmp_path / "face.avatar"
    avatar.save(path)
    loaded = Avatar.load(path)
    samples = sound(16000, 1.0)
    with model.session(avatar) as a, model.session(loaded) as b:
        same(play(a, samples), play(b, samples))
    assert loaded.box == avatar.box
    assert np.array_equal(loaded.picture, avatar.picture)
    other = toy(seed=1)
    with pytest.raises(AvatarError, match="session: avatar: expected one prepared by this model"):
        other.session(avatar)
    with safe_open(path, "pt") as file:
        tensors, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, tmp_path / "old.avatar", metadata=facts | {"format": "rest_fast avatar 1"})
    with pytest.raises(
        AvatarError, match=r"'rest_fast avatar 2', got 'rest_fast avatar 1' \(prepare the photo again\)"
    ):
        Avatar.load(tmp_path / "old.avatar")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AvatarError, match="expected a saved avatar"):
        Avatar.load(path)
    with pytest.raises(AvatarError, match="expected a saved avatar"):
        Avatar.load(tmp_path / "missing")


def test_public_names():
    assert all(hasattr(rest_fast, name) for name in rest_fast.__all__)
