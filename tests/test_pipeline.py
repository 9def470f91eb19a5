"""RestPipeline: the frames of ``render``, drawn seeds, callbacks, folders, bad input."""

from __future__ import annotations

import importlib
import math
import pickle
import re
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rest_fast
from rest_fast import RestPipeline, media
from rest_fast.model import ASSETS
from tests.kit.toys import photo, sound, toy

RATE = 16000
SOUND = sound(RATE, 2.1)  # three chunks, of which the last one is cut: 53 frames


@pytest.fixture
def pipe(model):
    return RestPipeline(model)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "toy"
    RestPipeline(model).save_pretrained(path)
    return path


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(one: torch.Generator) -> int:
    """What the pipeline draws, as docs/pipeline.md says it."""
    return int(torch.randint(2**63 - 1, (1,), generator=one))


def of_session(model, avatar, samples, **options) -> list[rest_fast.Block]:
    with model.session(avatar, sample_rate=RATE, **options) as session:
        session.push_audio(samples)
        session.end_segment()
        return list(session.blocks())


def levels(frames: np.ndarray) -> np.ndarray:
    """uint8 of frames in 0..1, each of which has to be a level exactly."""
    scaled = frames.astype(np.float64) * 255
    assert np.abs(scaled - scaled.round()).max() < 1e-4
    return scaled.round().astype(np.uint8)


# -- a call


def test_the_frames_are_those_of_render(model, avatar, pipe, tmp_path):
    """With the seed that the generator gives, bit for bit, before a file's codec has lost anything."""
    pictures = []

    def collect(frames):
        pictures.append(frames.copy())
        return frames

    seed = drawn(generator())
    rest_fast.render(model, avatar, media.Audio(SOUND[:, None], RATE), tmp_path / "a.mp4", seed=seed, mark=collect)
    out = pipe(photo(), SOUND, sampling_rate=RATE, generator=generator(), output_type="np")
    assert out.seed == seed and out.fps == 25
    assert out.frames.dtype == np.float32 and out.frames.shape == (1, math.ceil(2.1 * 25), 64, 64, 3)
    assert np.array_equal(levels(out.frames[0]), np.concatenate(pictures))
    assert out.sampling_rate == RATE and torch.equal(out.audio, torch.from_numpy(SOUND)[None, None])


def test_output_types_hold_the_same_pictures(avatar, pipe):
    samples = torch.from_numpy((SOUND[:8000] * 32767).astype(np.int16))[:, None].repeat(1, 2)
    outs = {
        kind: pipe(avatar, samples, sampling_rate=RATE, generator=generator(), output_type=kind)
        for kind in ("np", "pt", "pil")
    }
    want = levels(outs["np"].frames[0])
    assert torch.equal(outs["pt"].frames, torch.from_numpy(outs["np"].frames).permute(0, 1, 4, 2, 3))
    (pictures,) = outs["pil"].frames
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), want)
    heard = outs["pil"].audio  # float, whatever was given
    assert heard.shape == (1, 2, 8000) and torch.equal(heard[0], samples.T.float() / 32768)


@pytest.mark.slow  # importing diffusers takes seconds
def test_diffusers_can_write_what_comes(avatar, pipe, tmp_path):
    """Its own writer takes frames, sound and rate as they are."""
    export = pytest.importorskip("diffusers.utils.export_utils")
    if not hasattr(export, "encode_video"):
        pytest.skip("this diffusers writes no sound")
    out = pipe(avatar, SOUND[:8000], sampling_rate=RATE, output_type="np")
    path = str(tmp_path / "out.mp4")
    export.encode_video(out.frames[0], out.fps, path, audio=out.audio[0], audio_sample_rate=out.sampling_rate)
    frames, fps = media.read_video(path)
    assert fps == 25 and frames.shape == out.frames[0].shape
    grey, want = (video.mean(-1).ravel() for video in (frames, out.frames[0] * 255))
    assert (
        abs(grey.mean() - want.mean()) < 10 and np.corrcoef(grey, want)[0, 1] > 0.5
    )  # noise, of which H.264 keeps 0.87
    assert media.load_audio(path).duration == pytest.approx(0.5, abs=0.1)


def test_a_generator_advances_by_one_number(avatar, pipe):
    ours, theirs = generator(), generator()
    seeds = [pipe(avatar, SOUND[:2000], sampling_rate=RATE, generator=ours).seed for _ in range(2)]
    assert seeds == [drawn(theirs), drawn(theirs)] and seeds[0] != seeds[1]
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_without_a_generator_pytorchs_own_is_used(avatar, pipe):
    torch.manual_seed(3)
    seed = pipe(avatar, SOUND[:2000], sampling_rate=RATE).seed
    torch.manual_seed(3)
    assert seed == drawn(torch.default_generator)


def test_steps_and_guidance_reach_the_sampling(model, avatar, pipe):
    options = {"num_inference_steps": 3, "guidance_scale": 1.5}
    out = pipe(avatar, SOUND[:16000], sampling_rate=RATE, generator=generator(), output_type="np", **options)
    blocks = of_session(model, avatar, SOUND[:16000], seed=out.seed, steps=3, guidance=1.5)
    assert np.array_equal(levels(out.frames[0]), np.concatenate([b.video for b in blocks])[:25])


# -- callbacks


@pytest.mark.parametrize("context", ["last_step", "clean"])
def test_a_callback_sees_every_step_of_every_chunk(context):
    """Also where a chunk ends with an evaluation that is no sampling step."""
    pipe = RestPipeline(toy(stream__context=context))
    avatar, seen = pipe.model.prepare(photo()), []

    def callback(*args):
        seen.append(args)

    options = {"sampling_rate": RATE, "num_inference_steps": 3, "output_type": "np"}
    watched = pipe(avatar, SOUND, generator=generator(), callback_on_step_end=callback, **options)
    assert [(one, step, more) for one, step, _, more in seen] == [
        (pipe, step, {"chunk": chunk}) for chunk in range(3) for step in range(3)
    ]
    noise = [level for _, _, level, _ in seen]
    assert noise[:3] == noise[3:6] == noise[6:] and 1 == noise[0] > noise[1] > noise[2] > 0
    assert np.array_equal(watched.frames, pipe(avatar, SOUND, generator=generator(), **options).frames)


@pytest.mark.parametrize("name", ["interrupt", "_interrupt"])  # the second is what diffusers' callbacks set
@pytest.mark.parametrize(("chunk", "step", "frames"), [(0, 0, 0), (1, 0, 24), (1, 1, 24), (2, 1, 48)])
def test_a_callback_can_stop(avatar, pipe, name, chunk, step, frames):
    """The chunks before are there, with their sound; the next call is a whole one."""
    seen = []

    def callback(one, at, level, more):
        seen.append((more["chunk"], at))
        if seen[-1] == (chunk, step):
            setattr(one, name, True)

    options = {"sampling_rate": RATE, "output_type": "np"}
    stopped = pipe(avatar, SOUND, generator=generator(), callback_on_step_end=callback, **options)
    assert seen == [(n // 2, n % 2) for n in range(2 * chunk + step + 1)] and pipe.interrupt
    whole = pipe(avatar, SOUND, generator=generator(), **options)
    assert len(whole.frames[0]) == 53 and not pipe.interrupt
    assert np.array_equal(stopped.frames, whole.frames[:, :frames]) and stopped.frames.shape[1] == frames
    assert torch.equal(stopped.audio, whole.audio[..., : frames * RATE // 25])


def test_an_error_in_a_callback_is_the_calls_own(avatar, pipe):
    def fail(*_):
        raise LookupError("of the caller")

    with pytest.raises(LookupError, match="of the caller"):
        pipe(avatar, SOUND, sampling_rate=RATE, callback_on_step_end=fail)
    assert len(pipe(avatar, SOUND[:2000], sampling_rate=RATE).frames[0]) == 4


# -- blocks


def test_stream_gives_the_blocks_of_a_session(model, avatar, pipe):
    got = list(pipe.stream(avatar, SOUND, sampling_rate=RATE, generator=generator()))
    want = of_session(model, avatar, SOUND[:, None], seed=drawn(generator()))
    assert len(got) == len(want) == 7
    for a, b in zip(got, want):
        assert np.array_equal(a.video, b.video) and np.array_equal(a.audio, b.audio)
        assert (a.pts, a.true_samples, a.segment_end) == (b.pts, b.true_samples, b.segment_end)


def test_a_stream_that_is_left_computes_no_more(avatar, pipe):
    seen = []
    blocks = pipe.stream(avatar, SOUND, sampling_rate=RATE, callback_on_step_end=lambda *args: seen.append(args[1]))
    assert not seen  # nothing is computed before a block is asked for
    next(blocks)
    blocks.close()
    assert seen == [0, 1] and not list(blocks)


# -- folders


def test_a_saved_pipeline_comes_back(model, avatar, pipe, folder, monkeypatch):
    """The same frames, and neither a network nor the hub's library."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it fails
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = RestPipeline.from_pretrained(folder, device="cpu")
    assert loaded.model.fingerprint == model.fingerprint
    calls = [
        one.to("cpu")(photo(), SOUND[:8000], sampling_rate=RATE, generator=generator(), output_type="np")
        for one in (pipe, loaded)
    ]
    assert np.array_equal(calls[0].frames, calls[1].frames)


def test_a_card_that_is_there_stays(pipe, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    pipe.save_pretrained(tmp_path, dtype=torch.float16)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert RestPipeline.from_pretrained(tmp_path, device="cpu", dtype=torch.float32).model.dtype == torch.float32


class Opened:
    """A pickle of it leaves a trace when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_with_a_pickle_is_refused(folder, tmp_path, with_config):
    if with_config:
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Opened(tmp_path / "opened")))
    with pytest.raises(rest_fast.CheckpointError, match=r"model\.safetensors.*never loaded .pytorch_model\.bin"):
        RestPipeline.from_pretrained(tmp_path, device="cpu")
    assert not (tmp_path / "opened").exists()


def test_a_file_is_no_folder_to_save_to(pipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(rest_fast.CheckpointError, match="expected a folder or a new name, got a file"):
        pipe.save_pretrained(tmp_path / "file")


# -- bad input


@pytest.mark.parametrize(("changes", "says"), [
    ({"sampling_rate": None}, "sampling_rate: expected Hz"),
    ({"sampling_rate": 0}, "sampling_rate: expected a whole number in 1000..768000, got 0"),
    ({"sampling_rate": 16000.5}, "sampling_rate: expected a whole number"),
    ({"sampling_rate": True}, "sampling_rate: expected a whole number"),
    ({"audio": "speech.wav"}, "sampling_rate: expected None, since the audio has a rate, got 16000"),
    ({"audio": "speech.wav", "sampling_rate": None}, "speech.wav"),
    ({"audio": [0.0] * 16000, "sampling_rate": None}, "got list"),
    ({"audio": np.zeros((2, 16000), np.float32)}, r"samples \[n, 1..8 channels\], got shape \[2, 16000\]"),
    ({"audio": np.zeros((16000, 9), np.float32)}, r"1..8 channels"),
    ({"audio": np.zeros((1, 16000, 1), np.float32)}, r"1..8 channels"),
    ({"audio": np.full(16000, np.nan, np.float32)}, "finite floats"),
    ({"audio": np.zeros(16000, np.uint8)}, "int16, float32 or float64"),
    ({"audio": np.zeros(0, np.float32)}, "audio: expected some sound"),
    ({"audio": np.zeros(7_300_000, np.int16), "sampling_rate": 1000}, "at most 7200 s"),
    ({"image": np.zeros((4, 4, 3), np.uint8)}, "image"),
    ({"image": np.zeros((1, 64, 64, 3), np.uint8)}, r"image .*expected uint8 \[H, W, 3\], got uint8 \[1, 64, 64, 3\]"),
    ({"image": [photo()]}, "image: expected .*got list"),
    ({"output_type": "latent"}, "output_type: expected 'pil', 'np' or 'pt', got 'latent'"),
    ({"generator": 7}, "generator: expected a torch.Generator or None, got int"),
])  # fmt: skip
def test_what_is_refused_leaves_the_generator_alone(pipe, changes, says):
    one = generator()
    given = {"image": photo(), "audio": SOUND[:8000], "sampling_rate": RATE, "generator": one}
    with pytest.raises(rest_fast.RestFastError, match=says) as caught:
        pipe(**given | changes)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)
    assert torch.equal(one.get_state(), generator().get_state())


@pytest.mark.parametrize(("changes", "says"), [
    ({"num_inference_steps": 0}, "sampling.steps"), ({"guidance_scale": 1000.0}, "sampling.guidance"),
    ({"guidance_scale": float("nan")}, "sampling.guidance"), ({"num_inference_steps": 2.5}, "sampling.steps"),
])  # fmt: skip
def test_sampling_is_checked(avatar, pipe, changes, says):
    with pytest.raises(rest_fast.ConfigError, match=says):
        pipe(avatar, SOUND[:8000], sampling_rate=RATE, **changes)


def test_an_avatar_of_another_model_is_refused(avatar):
    with pytest.raises(rest_fast.AvatarError, match="expected one prepared by this model"):
        RestPipeline(toy(seed=1))(avatar, SOUND, sampling_rate=RATE)


def test_it_needs_neither_diffusers_nor_the_hubs_library(monkeypatch):
    """Its modules are run again while importing either fails."""
    for name in ("diffusers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("hub", "pipeline"):
        monkeypatch.setattr(rest_fast, name, importlib.import_module(f"rest_fast.{name}"))  # to be put back
        monkeypatch.delitem(sys.modules, f"rest_fast.{name}")
        assert getattr(importlib.import_module(f"rest_fast.{name}"), "RestPipeline", None) is not RestPipeline


def test_the_example_of_the_page_runs(folder, tmp_path, monkeypatch, capsys):
    """As it stands, but for the toy in the demo's place, with half a second of sound."""
    page = (Path(__file__).parents[1] / "docs" / "pipeline.md").read_text()
    shutil.copy(ASSETS / "demo" / "portrait.png", tmp_path / "face.png")
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((SOUND[:8000] * 32767).astype("<i2").tobytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(example.replace('"demo"', repr(str(folder))), "docs/pipeline.md", "exec"), names)
    assert names["out"].frames.shape == (1, 13, 64, 64, 3)
    assert capsys.readouterr().out.splitlines() == [f"{pts:.2f} (8, 64, 64, 3) 5120" for pts in (0, 0.32)]
