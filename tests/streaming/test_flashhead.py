"""Sessions of SoulX-FlashHead: a chunk at a time against the published loop, and what REST's sessions hold, too."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
import torch

import rest_fast
from rest_fast import noise
from rest_fast.errors import ArgumentError, ConfigError
from rest_fast.latency import measures
from rest_fast.latency.measures import Options
from rest_fast.model import FlashHeadModel
from rest_fast.models.flashhead.colour import match_colours
from rest_fast.models.flashhead.sampling import levels
from rest_fast.models.vae import to_latents, to_tokens
from rest_fast.streaming.snapshot import SessionState
from tests.kit import flashhead
from tests.kit.streams import play, same
from tests.kit.toys import photo, sound

CHUNK = 24 * 640  # samples at 16 kHz


@pytest.fixture(scope="module")
def model() -> FlashHeadModel:
    """Of one token a latent frame, for what does not depend on places in a picture."""
    return flashhead.small(32)


@pytest.fixture(scope="module")
def avatar(model):
    return model.prepare(photo(), crop="center")


def keyed(seed: int, first: int, count: int, purpose: int, model) -> torch.Tensor:
    """Noise [1, count T, C], drawn number by number from the definition."""
    t, c = model.config.tokens, model.config.vae.latent_channels
    rows = [noise.normal(seed, first + k, t * c, purpose).view(t, c) for k in range(count)]
    return torch.cat(rows)[None]


def published(model, avatar, samples: np.ndarray, seed: int) -> np.ndarray:
    """The published loop, written down anew: a queue of sound, 33 frames a call, the first 9 dropped always."""
    config, stream = model.config, model.config.stream
    picture = torch.from_numpy(avatar.picture).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    mean, deviation = model.vae.posterior(picture.expand(-1, -1, stream.frames, -1, -1))
    reference = to_tokens(mean) + to_tokens(deviation) * keyed(0, 0, 5, noise.PHOTO, model)
    motion, queue, shown = reference[:, : config.tokens], np.zeros(model.speech.samples, np.float32), []
    for chunk in range(len(samples) // CHUNK):
        queue = np.concatenate([queue, samples[chunk * CHUNK : (chunk + 1) * CHUNK]])[-model.speech.samples :]
        features = model.speech(torch.from_numpy(queue)[None])
        audio = model.dit.hear(model.dit.audio(features))
        first = 3 * chunk
        z = keyed(seed, first, 5, noise.LATENT, model)
        for i, level in enumerate(levels(config.sampling)):
            z[:, : motion.shape[1]] = motion
            v = model.dit(z, reference, torch.tensor(level.timestep, dtype=torch.float64), audio)
            fresh = keyed(seed, first, 5, noise.RENOISE + 256 * i, model)
            z = (1 - level.after) * (z - level.now * v) + level.after * fresh
        z[:, : motion.shape[1]] = motion
        video = match_colours(model.vae.decode(to_latents(z, config.grid)), picture)
        mean, deviation = model.vae.posterior(video[:, :, -stream.motion_frames :])
        motion = to_tokens(mean) + to_tokens(deviation) * keyed(seed, first + 3, 2, noise.POSTERIOR, model)
        shown.append(video[0, :, stream.motion_frames :].permute(1, 2, 3, 0))
    levels_ = (torch.cat(shown) + 1) / 2 * 255
    return levels_.clip(0, 255).round().byte().numpy()


def frames(blocks) -> np.ndarray:
    return np.concatenate([block.video for block in blocks])


def test_a_stream_is_the_published_loop():
    """Three chunks: photo, then 9 frames encoded back; zeros before the start; frames 0 to 8 dropped of the first."""
    model = flashhead.small(64)
    avatar, samples = model.prepare(photo(), crop="center"), sound(16000, 2.88)
    with model.session(avatar, seed=3) as s:
        got = frames(play(s, samples, end=False))
    want = published(model, avatar, samples, 3)
    assert got.shape == want.shape == (72, 64, 64, 3)
    assert want.std() > 5  # there is something to see
    # the decoder's in-place pass rounds otherwise than the functional one: a level at a border of rounding
    off = np.abs(got.astype(int) - want)
    assert off.max() <= 1 and off.mean() < 0.01


def test_chunks_go_on_from_what_was_shown(model, avatar):
    """The trap: the colour match is not for show alone. It changes the first chunk, and what the second begins with."""
    samples = sound(16000, 1.92)
    with model.session(avatar) as s:
        whole = frames(play(s, samples, end=False))
    plain = FlashHeadModel(model.config.replace(stream__colour=0.0), threads=1)
    plain.load_state_dict(model.state_dict())
    plain.requires_grad_(False).eval()
    with plain.session(plain.prepare(photo(), crop="center")) as s:
        other = frames(play(s, samples, end=False))
    assert np.abs(whole[:24].astype(int) - other[:24]).max() > 3
    assert np.abs(whole[24:].astype(int) - other[24:]).max() > 3


def test_what_is_encoded_back_was_never_8_bit(model, avatar):
    """It is what is shown, but for the rounding: levels lie anywhere between whole ones, 1/4 from the next in mean."""
    with model.session(avatar) as s:
        shown = frames(play(s, sound(16000, 0.96), end=False))
        levels_ = (
            torch.cat([latent.frames for latent in s.stream.history], 1).permute(1, 2, 3, 0).numpy() * 127.5 + 127.5
        )
        held = s.snapshot().tensors["history.2"]
    off = np.abs(levels_ - shown)
    assert off.max() < 0.51 and off.mean() > 0.2
    assert np.array_equal(held.permute(1, 2, 3, 0).numpy() * 127.5 + 127.5, levels_[16:])


def test_mean_of_the_posterior_is_an_option(model):
    config = model.config.replace(stream__posterior="mean")
    calm = FlashHeadModel(config, threads=1)
    calm.load_state_dict(model.state_dict())
    calm.requires_grad_(False)
    video = torch.randn(1, 3, 9, 32, 32)
    noise_ = torch.randn(1, 2 * config.tokens, config.vae.latent_channels)
    mean, deviation = model.vae.posterior(video)
    assert torch.equal(calm.encode(video, noise_), to_tokens(mean))
    assert torch.allclose(model.encode(video, noise_) - to_tokens(mean), to_tokens(deviation) * noise_, atol=1e-5)


def test_a_chunk_waits_for_its_own_sound_alone(model, avatar):
    samples = sound(16000, 1.0)
    with model.session(avatar) as s:
        assert s.lookahead_ms == 0
        s.push_audio(samples[: CHUNK - 1])
        assert not list(s.blocks())
        s.push_audio(samples[CHUNK - 1 : CHUNK])
        assert len(list(s.blocks())) == 3
    with model.session(avatar, sample_rate=24000) as s:
        assert s.lookahead_ms == pytest.approx(10)


def test_any_slicing_gives_the_same(model, avatar):
    samples = sound(22050, 2.2)

    def stream(cuts):
        with model.session(avatar, sample_rate=22050, seed=7) as s:
            blocks = play(s, samples, cuts)
            return blocks + list(s.blocks(idle=True)) + play(s, samples[:9000])

    same(stream([]), stream([1, 5000, 21167, 21168, 40000]))


def test_sound_comes_back_and_segments_end(model, avatar):
    samples = sound(16000, 1.3, dtype=np.int16)
    with model.session(avatar) as s:
        blocks = play(s, samples)
        idle = list(s.blocks(idle=True))
    assert len(blocks) == 5 and [b.segment_end for b in blocks] == [False] * 4 + [True]
    assert np.array_equal(np.concatenate([b.audio for b in blocks])[: len(samples)], samples)
    assert [b.idle for b in idle] == [True] * 3 and frames(idle).std() > 1


@pytest.mark.parametrize("shown", [0, 1, 3, 5])
def test_an_interrupt_goes_on_from_what_was_shown(model, avatar, shown):
    """It depends on nothing behind the frames shown, and its noise is new."""
    first, second, later = sound(16000, 1.92), sound(16000, 1.92, seed=9), sound(16000, 0.96, seed=4)
    second[: shown * 8 * 640] = first[: shown * 8 * 640]

    def stream(samples, count):
        with model.session(avatar, seed=2) as s:
            s.push_audio(samples)
            taken = list(itertools.islice(s.blocks(), count))
            assert s.interrupt(shown_pts=0.32 * shown) == pytest.approx(0.32 * shown)
            return taken, play(s, later, end=False)

    _, after = stream(first, max(shown, 3))
    assert [b.pts for b in after] == pytest.approx([0.32 * (shown + k) for k in range(3)])
    assert {b.epoch for b in after} == {1}
    # At a chunk's border nothing behind it was part of what is shown; inside of a chunk its frames heard all of it.
    _, again = stream(second, max(shown, 3))
    assert np.array_equal(frames(after), frames(again)) is (shown % 3 == 0)
    same(after, stream(first, min(shown + 1, 6))[1])  # however much was taken before


def test_what_is_said_again_after_an_interrupt_has_new_noise(model, avatar):
    """From the photo on, with the same sound: nothing else could differ."""
    samples = sound(16000, 0.96)
    with model.session(avatar, seed=2) as s:
        first = play(s, samples, end=False)
        s.interrupt(shown_pts=0.0)
        again = play(s, samples, end=False)
    assert [block.pts for block in first] == [block.pts for block in again]
    assert np.abs(frames(first).astype(int) - frames(again)).mean() > 0.1


def test_too_few_frames_are_filled_up_with_the_photo(model, avatar, monkeypatch):
    """Eight were shown, nine are encoded back."""
    with model.session(avatar) as s:
        s.push_audio(sound(16000, 0.96))
        list(s.blocks())
        shown = s.stream.history[0].frames.clone()
        s.interrupt(shown_pts=0.32)
        networks, given = s.stream.networks, []
        encode = networks.encode
        monkeypatch.setattr(networks, "encode", lambda *of: given.append(of[0]) or encode(*of))
        play(s, sound(16000, 0.96, seed=4), end=False)
        (encoded,) = given
        assert torch.equal(encoded[:, :, :1], s.stream.photo) and torch.equal(encoded[0, :, 1:], shown)


def test_undecoded_chunks_are_not_seen_behind_an_interrupt(model, avatar):
    """An engine that has run ahead shows the same behind an interrupt as one that has not."""
    samples, later = sound(16000, 2.88), sound(16000, 0.96, seed=4)

    def stream(session):
        with session as s:
            s.push_audio(samples)
            taken = [next(iter(s.blocks())) for _ in range(4)]
            s.interrupt()
            return taken + play(s, later, end=False)

    ahead = model.engine(sessions=2, admission=False)
    with ahead:
        same(stream(ahead.session(avatar, seed=1)), stream(model.session(avatar, seed=1)))


def test_sessions_of_an_engine_do_not_see_each_other(model, avatar):
    samples = [sound(16000, 1.92, seed=i) for i in range(2)]
    alone = []
    for seed in range(2):
        with model.session(avatar, seed=seed) as s:
            alone.append(play(s, samples[seed], end=False))
    with model.engine(sessions=2, admission=False) as engine:
        both = [engine.session(avatar, seed=seed) for seed in range(2)]
        for session, pcm in zip(both, samples, strict=True):
            session.push_audio(pcm)
        streams = [iter(session.blocks()) for session in both]
        got = [[], []]
        for _ in range(6):
            for blocks, stream in zip(got, streams, strict=True):
                blocks.append(next(stream))
    for want, blocks in zip(alone, got, strict=True):
        same(want, blocks)


def test_an_engine_measures_its_chunks(model, avatar):
    with model.engine(sessions=1, admission=False) as engine:
        model.compute(engine.measure, 0.0)
        assert engine.metrics().chunk_ms > 0
        with engine.session(avatar) as s:
            assert len(play(s, sound(16000, 0.96), end=False)) == 3


@pytest.mark.parametrize("taken", [2, 4])
def test_a_snapshot_goes_on_bit_for_bit(model, avatar, taken):
    samples = sound(24000, 2.5)

    def open_one():
        return model.session(avatar, sample_rate=24000, seed=5)

    with open_one() as s:
        s.push_audio(samples)
        blocks = [next(iter(s.blocks())) for _ in range(taken)]
        state = SessionState.from_bytes(s.snapshot().to_bytes())
        s.end_segment()
        rest = list(s.blocks())
        s.interrupt(shown_pts=0.0)
    with open_one() as other:
        other.restore(state)
        other.end_segment()
        same(rest, list(other.blocks()))
    with open_one() as other:  # and an interrupt behind it finds the frames that were shown
        other.restore(state)
        other.interrupt()
        moved = play(other, samples[:24000], end=False)
    with open_one() as s:
        s.push_audio(samples)
        again = [next(iter(s.blocks())) for _ in range(taken)]
        s.interrupt()
        same(moved, play(s, samples[:24000], end=False))
    same(blocks, again)


def test_what_no_snapshot_of_it_can_hold_is_refused(model, avatar):
    with model.session(avatar) as s:
        play(s, sound(16000, 0.96), end=False)
        state = s.snapshot()
        state.tensors["history.0"] = torch.zeros(3, 8, 32, 64)
        with pytest.raises(rest_fast.StateError, match=r"history\.0: expected torch.float32 \[3, 8, 32, 32\]"):
            s.restore(state)
        state = s.snapshot()
        state.meta["idle"] = []
        with pytest.raises(rest_fast.StateError, match="idle: expected 3 to 3"):
            s.restore(state)


def test_steps_and_what_it_has_not(model, avatar):
    samples = sound(16000, 0.96)
    with model.session(avatar, steps=2) as s:
        seen = []
        two = play(s, samples, end=False)
    with model.session(avatar, on_step=lambda chunk, step: seen.append((chunk, step))) as s:
        four = play(s, samples, end=False)
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert not np.array_equal(frames(two), frames(four))
    for options, words in (
        ({"steps": 3}, "distilled"),
        ({"guidance": 2.0}, "distilled"),
        ({"decode": "causal"}, "decode: expected None"),
        ({"graphs": "on"}, "graphs: expected auto or off"),
    ):
        with pytest.raises((ArgumentError, ConfigError), match=words):
            model.session(avatar, **options)
    with pytest.raises(ArgumentError, match="fewer_steps: expected 2 or None for a model of flashhead, got 3"):
        model.engine(fewer_steps=3, admission=False)


def test_an_avatar_is_the_same_every_time_and_travels(model, avatar, tmp_path):
    again = model.prepare(photo(), crop="center")
    assert torch.equal(again.reference, avatar.reference) and avatar.reference.shape == (5, 8)
    avatar.save(tmp_path / "a.safetensors")
    loaded = rest_fast.Avatar.load(tmp_path / "a.safetensors")
    samples = sound(16000, 0.96)
    with model.session(avatar) as a, model.session(loaded) as b:
        same(play(a, samples, end=False), play(b, samples, end=False))


def test_rendered_from_a_converted_folder(tmp_path):
    """``rest-fast render --weights OUT``: converted, loaded by its configuration, 25 frames for a second of sound."""
    from PIL import Image
    from scipy.io import wavfile

    from rest_fast import cli
    from rest_fast.convert import convert_flashhead
    from tests.kit.flashhead_folder import write

    folder, wav2vec = write(tmp_path / "given")
    convert_flashhead(folder, tmp_path / "head", wav2vec=wav2vec, size=64)
    assert isinstance(rest_fast.load(tmp_path / "head"), FlashHeadModel)
    Image.fromarray(photo()).save(tmp_path / "face.png")
    wavfile.write(tmp_path / "speech.wav", 16000, sound(16000, 1.0, dtype=np.int16))
    words = ["render", tmp_path / "face.png", tmp_path / "speech.wav", "-o", tmp_path / "out.mp4"]
    assert cli.main([str(word) for word in [*words, "--weights", tmp_path / "head", "--quiet"]]) == 0
    import av

    with av.open(str(tmp_path / "out.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 25


def test_the_pipeline_and_its_folder(model, avatar, tmp_path):
    """Noise levels of its own schedule for a callback; a model card; and the same frames from the saved folder."""
    samples, seen = sound(16000, 0.96), []

    def shown(pipe, **options):
        seeded = torch.Generator().manual_seed(7)
        return pipe(photo(), samples, sampling_rate=16000, generator=seeded, output_type="np", **options).frames

    pipe = rest_fast.RestPipeline(model)
    whole = shown(pipe, callback_on_step_end=lambda _, step, level, more: seen.append((step, level, more["chunk"])))
    assert whole.shape == (1, 24, 32, 32, 3)
    assert seen == [(0, 1, 0), (1, 0.9375, 0), (2, 0.83203125, 0), (3, 0.625, 0)]
    pipe.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "wav2vec 2.0" in card and "| sampling | 4 steps, guidance 1," in card and "whisper" not in card
    assert np.array_equal(whole, shown(rest_fast.RestPipeline.from_pretrained(tmp_path, device="cpu")))


def test_the_bench_measures_it(model, avatar):
    """As ``rest-fast bench --peers``: stages of a chunk, and whole chunks of two sessions in one call."""
    few = Options(chunks=1, crowd=2, rounds=1)
    assert list(measures.parts(model, avatar, few)) == ["features", "denoise", "decode"]
    assert measures.crowd(model, avatar, few, 2, "batched")["chunks_per_second"] > 0


def test_a_server_takes_it_like_any_other(model):
    """A visitor's session of the service that ``rest-fast serve`` opens: sound in as bytes, frames out."""
    pytest.importorskip("uvicorn", reason="the extra server is not installed")
    from rest_fast.serving.run import open_service

    async def visit() -> list[np.ndarray]:
        async with service.viewer("portrait") as viewer:
            viewer.push(sound(16000, 0.96))
            frames = viewer.frames()
            return [(await anext(frames)).picture for _ in range(3)]

    service = open_service(model, sessions=1)
    service.engine.admission = False  # however busy the processor is
    try:
        seen = asyncio.run(visit())
    finally:
        service.engine.close()
    assert all(picture.shape == (32, 32, 3) and picture.std() > 1 for picture in seen)
