"""Evaluation from folder to table, on drawn clips and on filmed ones; refusals before any work."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rest_fast.evaluation import batched, instruments, measures, readers, tables
from rest_fast.evaluation import clips as clip_study
from rest_fast.evaluation.clips import VIDEOS
from rest_fast.evaluation.evaluate import evaluate
from rest_fast.evaluation.instruments import Instruments
from rest_fast.evaluation.readers import LatentReader, PixelReader
from rest_fast.evaluation.sources import EvaluationError, Examples
from rest_fast.model import FlashHeadModel
from rest_fast.training import shards
from rest_fast.training.synthetic.clips import LEAD, Clips, write_clips
from tests.kit import flashhead, toys

SIZE = 64  # of the toy


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two drawn clips, and a reader beside them that was fitted on nothing."""
    folder = tmp_path_factory.mktemp("drawn")
    write_clips(folder / "test", 2, split="test", size=SIZE, workers=1)
    torch.manual_seed(0)
    PixelReader().save(folder / "reader.safetensors")
    return folder / "test"


@pytest.fixture(scope="module")
def filmed(drawn, tmp_path_factory):
    """The same clips as prepared ones, without the geometry that films lack: one for training, two for tests."""
    folder, clips = tmp_path_factory.mktemp("filmed"), Clips(drawn)
    manifest = shards.Manifest(height=SIZE, width=SIZE, speech={})
    for split, picks in (("train", [1]), ("test", [0, 1])):
        arrays = {"video": clips.video[picks], "samples": clips.samples[picks]}
        entry = shards.write_shard(
            folder, f"{split}.safetensors", {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
        )
        manifest.shards.append(entry | {"split": split})
    manifest.save(folder)
    return folder


def test_examples_are_the_same_from_both_kinds_of_folder(drawn, filmed):
    ours, theirs = Examples(drawn, "test"), Examples(filmed, "test")
    assert (ours.drawn, theirs.drawn, len(ours), len(theirs), len(Examples(filmed))) == (True, False, 2, 2, 2)
    for n in range(2):
        np.testing.assert_array_equal(ours[n].frames, theirs[n].frames)
        np.testing.assert_array_equal(ours[n].sound, theirs[n].sound)
        np.testing.assert_array_equal(ours[n].sound, Clips(drawn).samples[n, LEAD + 640 : LEAD + 97 * 640])
        np.testing.assert_array_equal(ours[n].gap, Clips(drawn).gap(n))
        assert theirs[n].gap is None and np.isnan(theirs[n].talk().gap).all()
    np.testing.assert_array_equal(Examples(filmed, "train")[0].frames, ours[1].frames)


def test_long_talks_of_filmed_people_go_on_with_the_next_clips(filmed):
    examples = Examples(filmed, "test")
    one, two = examples.talks(5, 9)  # no more people than there are
    assert len(one.samples) == len(two.samples) == 9 * 16000 and len(one.gap) == 225
    length = 96 * 640
    own, other = (examples[n].sound for n in (0, 1))
    np.testing.assert_array_equal(one.samples, np.concatenate([own, other, own])[: 9 * 16000])
    np.testing.assert_array_equal(two.samples[length : 2 * length], own)
    np.testing.assert_array_equal(two.photo, examples[1].frames[0])


@pytest.fixture(scope="module")
def result(model, drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    steps = []
    found = evaluate(model, drawn, out, clips=5, streams=1, seconds=20, progress=lambda *now: steps.append(now))
    assert steps == [(n, 2 + 21) for n in range(1, 24)]  # two clips; 500 frames are 21 chunks
    return found, out


def test_evaluation_of_drawn_clips(model, result):
    found, out = result
    assert json.loads((out / "evaluation.json").read_text()) == found
    assert found["data"] == {"folder": "test", "split": "test", "drawn": True, "clips": 2}
    assert found["model"]["fingerprint"] == model.fingerprint
    assert set(found["clips"]) == set(VIDEOS)
    for row in found["clips"].values():
        assert -1 <= row["opening_r"]["mean"] <= 1 and -5 <= row["best_lag"] <= 5
    assert found["clips"]["truth"]["amplitude"] == {"mean": 1, "std": 0}
    assert found["streams"]["count"] == 1 and found["streams"]["seconds"] == 20
    assert found["streams"]["colour_change_60"] == {"mean": None, "std": None}  # there is no second 60
    assert [len(s) for s in found["curves"]["drift"]["structure"] + found["curves"]["drift"]["colour"]] == [20, 20]
    assert set(found["not_measured"]) == {
        "identity by a face recogniser",
        "FID",
        "FVD",
        "SyncNet",
        "lip sync of latents",
    }
    for name in ("drift", "lag", "borders"):
        with Image.open(out / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors()) > 10


def test_the_vaes_measures_are_those_of_the_written_formulas(model, drawn, result):
    """PSNR by scikit-image, of the same decoder given the same photo; and of the photo that does not move."""
    from skimage.metrics import peak_signal_noise_ratio

    clips, found = Clips(drawn), {"psnr_db": [], "psnr_db_of_still_photo": [], "mouth_psnr_db": []}
    for n in range(2):
        truth = np.array(clips.video[n])
        video = clips.pixels(n)[None]
        made = model.vae.decode(model.vae.encode(video), reference=video[:, :, :1])[0, :, 1:]
        made = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
        found["psnr_db"].append(peak_signal_noise_ratio(truth[1:], made))
        found["mouth_psnr_db"].append(peak_signal_noise_ratio(truth[1:, 30:54, 18:46], made[:, 30:54, 18:46]))
        still = np.repeat(truth[:1], 96, 0)
        found["psnr_db_of_still_photo"].append(peak_signal_noise_ratio(truth[1:], still))
    for name, values in found.items():
        assert result[0]["vae"][name]["mean"] == pytest.approx(np.mean(values), abs=1e-3)


def test_the_latents_of_a_clip_are_those_of_its_videos(model, drawn):
    """The truth's are the encoder's; those that were generated give the video when they are decoded again."""
    study = clip_study.ClipStudy(model, Examples(drawn), Instruments(), videos=None, guidance=None)
    videos, latents = study.show(0, 1)
    assert tuple(videos) == VIDEOS and latents.keys() == {"truth", "generated", "wrong_sound"}
    assert torch.equal(latents["truth"], readers.latents(model, Clips(drawn).pixels(0)))
    photo, tokens = videos["truth"][0] * 0 + Clips(drawn).video[0, 0], model.config.tokens
    for name in ("generated", "wrong_sound"):
        z = latents[name].reshape(1, 12, tokens, model.config.vae.latent_channels)
        again = np.concatenate(list(batched.decode(model, photo[None], z)), 1)[0]
        assert abs(again.astype(int) - videos[name]).max() <= 1  # one stream and two: sums may round otherwise
    assert abs(videos["generated"].astype(int) - videos["wrong_sound"]).max() > 1
    with pytest.raises(ValueError, match="expected that of another clip, got clip 1's own"):
        study.show(1, 1)


def test_a_reader_of_latents_is_fitted_on_other_clips(model, drawn, tmp_path, monkeypatch):
    """What it says of the truth and of both generated videos is compared with the true mouth."""
    write_clips(tmp_path / "other", 1, split="train", size=SIZE, workers=1)
    truth, asked, fitted_on = Clips(drawn).gap(0)[1:], [], []

    def read(z):  # the true gap of clip 0, backwards where the sound was wrong
        asked.append(z)
        return truth if len(asked) % 3 else -truth

    monkeypatch.setattr(instruments, "training_crops", lambda clips: ())  # the toy's clips are none of 128 px
    monkeypatch.setattr(instruments, "fit_pixel_reader", PixelReader)
    monkeypatch.setattr(LatentReader, "fit", lambda m, clips: fitted_on.append((m, clips.about["split"])) or read)
    found = evaluate(model, drawn, tmp_path / "out", streams=0, reader=tmp_path / "other")
    assert fitted_on == [(model, "train")] and "lip sync of latents" not in found["not_measured"]
    assert torch.equal(asked[0], readers.latents(model, Clips(drawn).pixels(0)))
    other = measures.correlation(truth, Clips(drawn).gap(1)[1:])
    for name, sign in (("truth", 1), ("generated", 1), ("wrong_sound", -1)):
        values = found["clips"][name]["opening_r_latents"]
        assert values["mean"] == pytest.approx(sign * (1 + other) / 2, abs=1e-6)
    assert "opening_r_latents" not in found["clips"]["through_vae"]


def test_the_table_holds_every_section(result):
    found, out = result
    text = (out / "evaluation.md").read_text()
    assert text == tables.markdown(found)
    assert f"| PSNR, dB | {found['vae']['psnr_db']['mean']:.3g} ±" in text
    assert "| through vae |" in text and "| 1 streams of 20 s | |" in text and "| after 60 s | - |" in text
    assert '| FID | no weights: pip install "rest_fast[fid]" and --inception FILE |' in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4 and all(len({line.count("|") for line in block}) == 1 for block in blocks)


DETECTOR = """
import sys
import numpy as np
frames = np.load(sys.argv[1]).astype(float)
points = np.zeros((len(frames), 4, 2))
points[:, 1, 1] = frames[:, 36:42, 28:36].mean((1, 2, 3))
points[:, 3, 0] = 100
np.savez(sys.argv[2], points=points)
"""


def test_evaluation_of_films_with_a_detector(model, filmed, tmp_path):
    """Lip sync is against what the detector says of the true video; that of a video with itself is not reported."""
    (tmp_path / "detect.py").write_text(DETECTOR)
    command = f"{sys.executable} {tmp_path / 'detect.py'}"
    found = evaluate(model, filmed, tmp_path / "out", split="test", streams=0, landmark_command=command)
    assert "opening_r" not in found["clips"]["truth"] and "streams" not in found
    assert -1 <= found["clips"]["generated"]["opening_r"]["mean"] <= 1
    assert set(found["curves"]) == {"lag", "change"} and set(found["curves"]["lag"]) == set(VIDEOS[1:])
    videos = sorted(p.name for p in (tmp_path / "out" / "videos").iterdir())
    assert videos == sorted(f"{n:03d}_{video}.mp4" for n in range(2) for video in VIDEOS)
    assert not (tmp_path / "out" / "drift.png").exists()


def test_films_without_landmarks_say_how_to_get_them(model, filmed, tmp_path, monkeypatch):
    """The second run, with the landmarks of the videos of the first one, measures what the first one could not."""
    first = evaluate(model, filmed, tmp_path / "out", split="test", streams=0)
    assert "--landmarks FOLDER" in first["not_measured"]["lip sync"]
    folder = tmp_path / "landmarks"
    folder.mkdir()
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, 96)
    for n in range(2):
        for video in VIDEOS:
            points = np.zeros((96, 4, 2))
            points[:, 1, 1], points[:, 3, 0] = truth if video == "generated" else rng.uniform(0, 1, 96), 1
            points[:, 1, 1] = truth if video == "truth" else points[:, 1, 1]
            if n == 1 and video == "through_vae":
                points[:40] = np.nan
            np.savez(folder / f"{n:03d}_{video}.npz", points=points)
    found = evaluate(model, filmed, tmp_path / "again", split="test", streams=0, landmarks=folder)
    assert found["clips"]["generated"]["opening_r"]["mean"] == pytest.approx(1)
    assert abs(found["clips"]["wrong_sound"]["opening_r"]["mean"]) < 0.3
    assert "58%" in found["not_measured"]["lip sync of 001_through_vae"]  # and clip 0 has its own
    assert found["clips"]["through_vae"]["opening_r"]["std"] == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clips": 1}, "clips: expected at least 2"),
        ({"seconds": 19}, r"streams: expected 0, or some of at least 20 s, got 4 of 19 s"),
        ({"streams": -1}, "streams: expected 0"),
        ({"split": "train"}, "expected clips of the split train, got those of test"),
        ({"reader": "none"}, r"reader: expected a file, or a folder of drawn clips"),
        ({"reader": "bad.safetensors"}, r"bad\.safetensors: expected a fitted reader"),
        ({"landmarks": "none"}, "landmarks: expected a folder"),
        ({"landmarks": "none", "landmark_command": "x"}, "expected a folder or a command, got both"),
        ({"i3d": "none"}, "i3d: expected a file"),
        ({"embedder": "none"}, "embedder: expected a file"),
        ({"inception": "none"}, "inception: expected a file"),
        ({"syncnet": "none"}, "syncnet: expected a file"),
    ],
)
def test_what_is_refused_before_any_work(model, drawn, tmp_path, changes, says, monkeypatch):
    monkeypatch.setattr(clip_study.ClipStudy, "add", lambda *_: pytest.fail("work began"))
    (tmp_path / "bad.safetensors").write_text("no tensors")
    paths = {k: tmp_path / v if isinstance(v, str) and v != "train" and v != "x" else v for k, v in changes.items()}
    with pytest.raises(EvaluationError, match=says):
        evaluate(model, drawn, tmp_path / "out", **paths)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_family_is_refused(drawn, tmp_path):
    with pytest.raises(EvaluationError, match="expected a model of REST for clips, got flashhead-toy"):
        evaluate(FlashHeadModel(flashhead.toy()), drawn, tmp_path / "out")


def test_folders_and_models_that_do_not_fit(model, drawn, filmed, tmp_path):
    with pytest.raises(EvaluationError, match=r"expected clips with clips\.json or manifest\.json, found neither"):
        evaluate(model, tmp_path, tmp_path / "out")
    with pytest.raises(EvaluationError, match=r"expected clips of the model's 32 x 32, got \(64, 64\)"):
        evaluate(toys.basis_model(), drawn, tmp_path / "out")
    with pytest.raises(EvaluationError, match="reader: expected drawn clips to read, got filmed ones"):
        evaluate(model, filmed, tmp_path / "out", reader=drawn.parent / "reader.safetensors")
    with pytest.raises(EvaluationError, match="reader: expected other clips than those to evaluate on"):
        evaluate(model, drawn, tmp_path / "out", reader=drawn)
