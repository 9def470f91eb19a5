"""Videos in, shards out: what is in them, what is dropped by which rule, and that a stopped run goes on."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from rest_fast import load, media, preset
from rest_fast.models.speech import speech_features
from rest_fast.models.vae import to_tokens
from rest_fast.training.preparation.units import find_units
from rest_fast.training.shards import Shards, encoder_fingerprint
from rest_fast.training.synthetic.clips import LEAD, LIPS, Clips, write_clips
from tests.kit.films import BOX, TOY, boxes, even, jittered, run, speaking, write_film
from tests.kit.toys import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four whole videos, one of them of two clips, one with a name of its own, and one that is short."""
    source = tmp_path_factory.mktemp("videos") / "in"
    (source / "more").mkdir(parents=True)
    speaking(source / "a.mov", 200)
    speaking(source / "b b.mkv", 97, sound_at=Fraction(1, 8))
    speaking(source / "c.mov", 50)
    speaking(source / "more/é.mp4", 110)
    speaking(source / "z.mov", 98)
    (source / "notes.txt").write_text("no video")
    (source / ".hidden.mov").write_text("no video")
    return source


@pytest.fixture(scope="module")
def prepared(folder):
    out = folder.parent / "out"
    return out, run(folder, out, boxes=boxes(folder), video=True)


# -- what is in the shards


def test_clips_and_their_sources(prepared):
    out, report = prepared
    shards = Shards(out)
    starts = [(s["file"], s["start"], s["crop"]) for s in map(shards.source, range(len(shards)))]
    names = [("a.mov", 0.0), ("a.mov", 3.88), ("b b.mkv", 0.0), ("more/é.mp4", 0.0), ("z.mov", 0.0)]
    assert starts == [(name, start, BOX) for name, start in names]
    assert report.clips == 5 and report.seconds == 19.4 and report.splits == {"train": 5} and report.sources == 5
    assert report.rules == {"short": 1} and report.skipped == {"hidden": 1, "not a video (.txt)": 1}
    assert report.rest == pytest.approx((200 - 194 + 110 - 97 + 1) / 25)
    assert report.bytes == sum(p.stat().st_size for p in out.glob("*.safetensors"))
    saved = json.loads((out / "report.json").read_text())
    assert saved["drops"] == [vars(drop) for drop in report.drops] and saved["rules"] == report.rules
    for words in ("5 clips (5 train)", "dropped  short", "1 file ", "c.mov: short: ", "1 not a video (.txt)"):
        assert words in report.text()


def test_pictures_and_sound_are_those_of_the_file(folder, prepared):
    """Second clip of a file: pictures by slicing and Pillow, sound by media, both read in another way."""
    shards = Shards(prepared[0])
    pictures, _ = media.read_video(folder / "a.mov")
    want = [Image.fromarray(p).crop(BOX) for p in pictures[97:194]]
    np.testing.assert_array_equal(shards.read("video", [1])[0], np.stack(want))
    sound = np.pad(media.load_audio(folder / "a.mov").mono, LEAD)
    got = shards.read("samples", [0, 1]).numpy()
    for clip in range(2):
        at = clip * 97 * 640
        np.testing.assert_allclose(got[clip], sound[at : at + 97 * 640 + 8000], atol=1e-6)
    offset = shards.read("samples", [2])[0].numpy()  # b b.mkv: its sound comes 1/8 s after its pictures
    assert np.abs(offset[: LEAD + 2000 - 1]).max() == 0
    np.testing.assert_allclose(offset[LEAD + 2000 :][:50_000], sound[LEAD:][:50_000], atol=1e-2)


def test_features_are_those_of_one_call_over_all(folder, prepared):
    """Log-mel looks at nothing but its window: four calls are one, on the sound of the whole file."""
    features = speech_features(TOY.speech)
    sound = np.pad(media.load_audio(folder / "a.mov").mono, (LEAD, 3 * LEAD))
    got = Shards(prepared[0]).read("features", [0, 1])
    assert got.dtype == torch.float16 and got.shape == (2, 96, 20, 80)
    for clip in range(2):
        first = LEAD + (97 * clip + 1) * 640
        window = sound[first - features.back : first + 96 * 640 + features.ahead]
        want = features(torch.from_numpy(window)[None])[0]
        torch.testing.assert_close(got[clip].float(), want, rtol=2**-10, atol=1e-4)  # one rounding to fp16


@pytest.mark.parametrize("rate, sound_at", [(16000, Fraction(0)), (44100, Fraction(1, 6)), (48000, Fraction(-1, 5))])
@pytest.mark.parametrize("times", [even(25, 200), even(30, 240), jittered(170)], ids=["25", "30", "variable"])
def test_flash_and_click_fall_into_the_same_frame(tmp_path, times, rate, sound_at):
    """In both clips of a file whose streams start apart; the picture nearest to a click's frame shows the flash."""
    source, clicks = tmp_path / "a.mov", [Fraction(70, 25), Fraction(160, 25)]
    times = [t - times[0] for t in times]
    dark, flash = np.full((64, 80, 3), 60, np.uint8), np.full((64, 80, 3), 60, np.uint8)
    flash[20:44, 20:60] = 150  # small enough not to be a cut
    samples = np.zeros((9 * rate, 1), np.float32)
    for click in clicks:
        samples[round((click + Fraction(1, 50) - sound_at) * rate)] = 0.9  # in the middle of its frame
    lit = {min(range(len(times)), key=lambda i, click=click: abs(times[i] - click)) for click in clicks}
    pictures = [flash if i in lit else dark for i in range(len(times))]
    write_film(source, pictures, [1 + t for t in times], samples, rate, 1 + sound_at)
    report = run(source, tmp_path / "out", boxes=boxes(source), video=True)
    assert report.clips == 2, report.text()
    shards = Shards(tmp_path / "out")
    for clip in range(2):
        frame = round(clicks[clip] * 25) - 97 * clip
        bright = shards.read("video", [clip])[0, :, 30, 30, 0] > 100
        assert bright[frame] and bright.sum() <= 3
        peak = int(shards.read("samples", [clip])[0].abs().argmax())
        assert (peak - LEAD) // 640 == frame


def test_latents_are_the_models(tmp_path, folder, prepared):
    model = toy()
    model.save(tmp_path / "toy")
    out = tmp_path / "out"
    report = run(folder, out, boxes=boxes(folder), weights=tmp_path / "toy")
    shards, pixels = Shards(out), Shards(prepared[0])
    assert report.clips == 5 and shards.fields == {"samples", "features", "latents"}
    saved = load(tmp_path / "toy", device="cpu")
    shards.require_encoder(saved)
    assert shards.manifest.vae == encoder_fingerprint(saved.vae)
    for clip in (1, 4):
        want = to_tokens(saved.vae.encode(pixels.pixels(clip)[None]))
        torch.testing.assert_close(shards.read("latents", [clip]), want.half(), rtol=2e-3, atol=1e-3)
    both = run(folder, tmp_path / "both", boxes=boxes(folder), weights=tmp_path / "toy", video=True)
    assert both.clips == 5 and Shards(tmp_path / "both").fields == {"samples", "features", "latents", "video"}


def test_whisper_hears_the_window_of_a_session(tmp_path, folder):
    """The second chunk's features come from one call on the samples of its 24 frames and of the 8 before them."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    whisper = transformers.WhisperModel(
        transformers.WhisperConfig(**sizes, decoder_layers=1, decoder_attention_heads=2, vocab_size=9, pad_token_id=0)
    )
    whisper.eval().save_pretrained(tmp_path / "whisper")
    config = TOY.replace(speech__features="whisper", speech__positions=10, speech__channels=16, speech__position_ms=20)
    config = config.replace(speech__history_ms=400)
    out = tmp_path / "out"
    box = tmp_path / "boxes.json"
    box.write_text(json.dumps({"a.mov": BOX}))
    run(folder / "a.mov", out, config=config, whisper=str(tmp_path / "whisper"), boxes=box)
    features = speech_features(config.speech, whisper)
    sound = torch.from_numpy(np.pad(media.load_audio(folder / "a.mov").mono, 8000))
    first = 8000 + (1 + 24 - 8) * 640
    want = features(sound[None, first - features.back : first + 32 * 640 + features.ahead])[0, 8:]
    torch.testing.assert_close(Shards(out).read("features", [0])[0, 24:48], want.half(), rtol=1e-3, atol=1e-3)


# -- drawn clips


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two folders of rest-fast synth."""
    pytest.importorskip("skia")
    pytest.importorskip("espeakng_loader")
    source = tmp_path_factory.mktemp("drawn") / "in"
    for split, count in (("train", 3), ("validation", 1)):
        write_clips(source / split, count, split=split, first=5, size=64, workers=1)
    return source


def test_drawn_clips_are_taken_as_they_are(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("rest_fast.training.preparation.units.DRAWN", 2)  # 25 clips take long to draw
    report = run(drawn, tmp_path / "out", video=True)
    assert report.splits == {"train": 3, "validation": 1} and not report.drops and not report.skipped
    for split, count in (("train", 3), ("validation", 1)):
        shards, clips = Shards(tmp_path / "out", split), Clips(drawn / split)
        every = range(count)
        for field, array in (
            ("video", clips.video),
            ("samples", clips.samples),
            ("labels", clips.motion[..., LIPS]),
            ("geometry", clips.geometry),
        ):
            np.testing.assert_array_equal(shards.read(field, every), array)
        assert [shards.source(i)["clip"] for i in every] == [f"{split}_{5 + i:06d}" for i in every]
        assert shards.source(0)["text"] == clips.about["clips"][0]["text"]
        features = speech_features(TOY.speech)
        window = clips.samples[:, LEAD + 640 - features.back : LEAD + 97 * 640 + features.ahead]
        want = features(torch.from_numpy(window.copy()))
        torch.testing.assert_close(shards.read("features", every).float(), want, rtol=2**-10, atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "out").glob("clips_*")) == [
        f"clips_00000{i}_00.safetensors" for i in range(3)
    ]
    one = run(drawn / "train", tmp_path / "one", video=True)
    assert one.clips == 3 and one.splits == {"train": 3}


# -- splits


def test_the_split_depends_on_the_name_alone(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(400):
        (source / f"{i}.mov").write_bytes(b"x")
    units, _ = find_units(source, 0.25)
    assert 70 <= sum(unit.split == "validation" for unit in units) <= 130  # 100, give or take 3.5 deviations
    before = {unit.name: unit.split for unit in units}
    for i in range(0, 400, 2):
        (source / f"{i}.mov").unlink()
    after = {unit.name: unit.split for unit in find_units(source, 0.25)[0]}
    assert len(after) == 200 and after.items() <= before.items()
    assert {unit.split for unit in find_units(source, 0.0)[0]} == {"train"}
    assert {unit.split for unit in find_units(source, 1.0)[0]} == {"validation"}


# -- given boxes and sizes


def test_files_without_a_box(tmp_path, folder):
    """With boxes alone they are dropped; with a detector beside them they are looked at."""
    pytest.importorskip("cv2")
    (tmp_path / "boxes.json").write_text(json.dumps({"a.mov": BOX}))
    alone = run(folder, tmp_path / "alone", boxes=tmp_path / "boxes.json")
    assert alone.clips == 2 and alone.rules == {"no_box": 4}
    beside = run(folder, tmp_path / "beside", boxes=tmp_path / "boxes.json", detector="opencv")
    assert beside.clips == 2 and beside.rules == {"short": 1, "no_face": 3}


def test_min_face(tmp_path, folder):
    for least, clips in ((64, 5), (65, 0)):
        assert run(folder, tmp_path / str(least), boxes=boxes(folder), min_face=least).clips == clips


def test_drawn_clips_that_cannot_be_used(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "in")
    with pytest.raises(ValueError, match=r"boxes: expected none for clips of rest-fast synth"):
        run(tmp_path / "in", tmp_path / "out", boxes=tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"train: expected clips of 97 frames of 256 px, got 97 of 64 px"):
        run(tmp_path / "in", tmp_path / "out", config=preset("demo"))
    (tmp_path / "in" / "film.mov").write_bytes(b"")
    with pytest.raises(ValueError, match=r"folders of rest-fast synth and nothing else, found \['film.mov'\] too"):
        run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "film.mov").unlink()
    (tmp_path / "in" / "train" / "samples.npy").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"train: expected whole clips of rest-fast synth, got "):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
