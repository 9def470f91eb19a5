"""Model, load, prepare, render."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import rest_fast
from rest_fast import media
from rest_fast.checkpoint import CheckpointError, Unfilled
from rest_fast.model import ASSETS, find_checkpoint
from rest_fast.streaming.sampler import ChunkSampler
from tests.kit.toys import photo, sound, toy


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    model.save(path, torch.float32)
    return path


def test_saved_model_streams_the_same_frames(model, folder):
    loaded = rest_fast.load(folder, device="cpu")
    assert loaded.fingerprint == model.fingerprint

    def video(m):
        with m.session(m.prepare(photo())) as s:
            s.push_audio(sound(16000, 1.2))
            return np.stack([b.video for b in s.blocks()])

    assert np.array_equal(video(model), video(loaded))


def test_loading_draws_no_weights(folder):
    """All are replaced: drawing them costs time, and numbers of the caller's generator."""
    before = torch.get_rng_state()
    demo, toy_model = rest_fast.load("demo", device="cpu"), rest_fast.load(folder, device="cpu")
    vae = rest_fast.models.TemporalVAE.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)
    for module in (demo, toy_model, vae):  # what is allocated and not filled is NaN (conftest.py)
        assert all(t.isfinite().all() for t in module.state_dict().values())
    matrix = torch.full((5, 3), 2.0)
    with Unfilled():  # a QR decomposition of the demo's bases takes seconds on a busy machine
        assert torch.equal(torch.linalg.qr(matrix)[0], matrix)


def test_prepare_takes_the_crop_that_it_was_given(model):
    picture = photo()
    avatar = model.prepare(picture, crop=(10, 5, 74, 69))
    assert avatar.box == (10, 5, 74, 69)
    assert np.array_equal(avatar.picture, picture[5:69, 10:74])  # 64 x 64: no resizing
    centred = model.prepare(picture)
    assert centred.box == (10, 0, 90, 80)
    pixels = torch.from_numpy(avatar.picture).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    want = model.vae.encode(pixels)[0].flatten(1).T
    torch.testing.assert_close(avatar.reference, want)


@pytest.mark.parametrize(("source", "text"), [
    ("rest-512", "preset without published weights"), ("./missing/folder", "expected a folder, 'demo' or a hub id"),
    ("face.pt", "expected a folder"),
])  # fmt: skip
def test_load_names_what_it_wants(source, text):
    with pytest.raises(CheckpointError, match=text):
        rest_fast.load(source)


def test_nothing_in_the_working_directory_hides_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("./demo", Path("demo")):
        with pytest.raises(CheckpointError, match="expected a folder"):
            find_checkpoint(source)
    (tmp_path / "demo").mkdir()
    assert find_checkpoint("demo") == ASSETS / "demo"
    assert [find_checkpoint("./demo"), find_checkpoint(Path("demo"))] == [Path("demo")] * 2


def test_load_never_opens_a_pickle(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="pickle-type file, which is never loaded"):
        rest_fast.load(path)


def test_hub_id_downloads_two_files(folder, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(folder)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for name in ("owner/model", "owner/model-v1.0"):
        rest_fast.load(name, device="cpu")
        assert asked[name] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("seconds", [0.04, 0.33, 1.0, 2.01])
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_render_has_every_frame_and_all_sound(model, tmp_path, seconds, rate, channels):
    samples = np.stack([sound(rate, seconds, seed=i) for i in range(channels)], 1)
    out = tmp_path / "out.mp4"
    done = rest_fast.render(model, model.prepare(photo()), media.Audio(samples, rate), out)
    frames, fps = media.read_video(out)
    assert fps == 25
    assert len(frames) == done.frames == -(-len(samples) * 25 // rate)  # ceil in integers
    back = media.load_audio(out)
    assert abs(len(back.samples) / back.rate - seconds) <= 1024 / back.rate + 0.04  # an AAC frame, a video frame


def test_render_sound_is_in_place(model, tmp_path):
    """Cross-correlation of the mp4's sound with the input peaks at lag 0."""
    rate, samples = 48000, sound(48000, 1.5)
    out = tmp_path / "out.mp4"
    rest_fast.render(model, model.prepare(photo()), media.Audio(samples[:, None], rate), out)
    back = media.load_audio(out)
    assert back.rate == rate
    n = min(len(samples), len(back.samples))
    spectrum = np.fft.rfft(back.mono[:n], 2 * n) * np.fft.rfft(samples[:n], 2 * n).conj()
    lag = int(np.argmax(np.fft.irfft(spectrum)))
    assert min(lag, 2 * n - lag) <= rate // 1000  # a millisecond


def test_interrupted_render_leaves_a_playable_file(model, tmp_path, monkeypatch):
    """A session that breaks in the middle: the blocks before are in the file."""
    out, avatar = tmp_path / "out.mp4", model.prepare(photo())
    broken = toy()
    sampler = ChunkSampler.of(broken, broken.config.sampling)
    original, calls = sampler.run, []

    def sample(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*args)

    sampler.run = sample
    monkeypatch.setattr(ChunkSampler, "of", lambda *_, **__: sampler)
    with pytest.raises(KeyboardInterrupt):
        rest_fast.render(broken, avatar, media.Audio(sound(16000, 4.0)[:, None], 16000), out)
    frames, _ = media.read_video(out)
    assert len(frames) == 48


@pytest.mark.parametrize("rate", [6000, 192000])
def test_render_takes_rates_that_a_session_does_not(model, tmp_path, rate):
    samples = sound(rate, 1.01)
    done = rest_fast.render(model, model.prepare(photo()), media.Audio(samples[:, None], rate), tmp_path / "out.mp4")
    assert done.frames == len(media.read_video(tmp_path / "out.mp4")[0]) == -(-len(samples) * 25 // rate) == 26


def test_render_mixes_surround_down(model, tmp_path):
    samples = np.stack([sound(16000, 0.5, seed=i) for i in range(6)], 1)
    rest_fast.render(model, model.prepare(photo()), media.Audio(samples, 16000), tmp_path / "out.mp4")
    assert media.load_audio(tmp_path / "out.mp4").samples.shape[1] == 1


def test_refused_sound_leaves_the_output_alone(model, tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    loud = media.Audio(np.full((16000, 1), 9, np.float32), 16000)
    with pytest.raises(media.MediaError, match="a peak of 9"):
        rest_fast.render(model, model.prepare(photo()), loud, out)
    assert out.read_bytes() == b"precious"


def test_whisper_stays_the_user_s(tmp_path):
    """A loaded Whisper is no part of the checkpoint, and its features drive a session."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = transformers.WhisperConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
                                       decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32)  # fmt: skip
    whisper = transformers.WhisperModel(small)
    speech = {"features": "whisper", "positions": 10, "channels": 48, "position_ms": 20, "history_ms": 4000}
    config = rest_fast.preset("toy").replace(**{f"speech__{k}": v for k, v in speech.items()})
    rest_fast.Model(config).save(tmp_path / "w")
    loaded = rest_fast.load(tmp_path / "w", device="cpu", whisper=whisper)
    assert not any("whisper" in name for name in loaded.state_dict())
    with loaded.session(loaded.prepare(photo())) as session:
        session.push_audio(sound(16000, 1.1))
        assert len(list(session.blocks())) == 3
    without = rest_fast.load(tmp_path / "w", device="cpu")
    avatar = without.prepare(photo())
    with pytest.raises(ValueError, match=r"expected a loaded transformers\.WhisperModel"):
        without.session(avatar)


def test_another_dtype_renews_what_was_derived():
    model = toy()
    before = model.fingerprint, model.prepare(photo()).sink_k.dtype
    list(model.session(model.prepare(photo())).blocks())
    model.to(torch.bfloat16)
    avatar = model.prepare(photo())
    assert avatar.sink_k.dtype == torch.bfloat16 != before[1]
    assert model.fingerprint != before[0]
    with model.session(avatar) as session:
        session.push_audio(sound(16000, 1.1))
        assert len(list(session.blocks())) == 3


def test_bfloat16_follows_float32():
    """The dtype of GPUs: same stream, same noise. bf16 keeps 8 bits; after 4 steps and the decoder the demo's pictures
    differ by 0.2 of 255 levels on average, where another seed differs by 2.4."""
    speech = media.load_audio(ASSETS / "demo" / "speech.wav").mono[:32000]
    videos = []
    for dtype, seed in ((torch.float32, 0), (torch.bfloat16, 0), (torch.float32, 1)):
        model = rest_fast.load("demo", device="cpu", dtype=dtype)
        with model.session(model.prepare(ASSETS / "demo" / "portrait.png"), seed=seed) as session:
            session.push_audio(speech)
            videos.append(np.concatenate([b.video for b in session.blocks()]).astype(np.float32))
    assert np.abs(videos[1] - videos[0]).mean() < 0.8
    assert np.abs(videos[2] - videos[0]).mean() > 1.5


def test_import_is_light():
    """No GPU library, no compiled module and no optional package is needed or loaded by the import."""
    code = ("import sys, rest_fast; heavy = {'triton', 'transformers', 'diffusers', 'huggingface_hub', "
            "'rest_fast._cpu', 'rest_fast._cuda'}; sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) "
            "else 0)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr


def test_show_config_names_every_op(capsys):
    rest_fast.show_config()
    text = capsys.readouterr().out
    assert all(op.name in text for op in rest_fast.ops.ALL)
    assert "_cpu" in text
    assert "_cuda" in text
