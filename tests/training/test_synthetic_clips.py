"""Clips of drawn talking heads: the same everywhere, new in every split, in step with their sound, safe on disk."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from rest_fast import media
from rest_fast.training.synthetic import clips as synthetic
from rest_fast.training.synthetic.clips import FRAMES, LEAD, TAIL, Clips, make_clip, make_clips, write_clips
from rest_fast.training.synthetic.identity import Identity
from rest_fast.training.synthetic.motion import blinks, emphasis, head_motion, sway
from rest_fast.training.synthetic.portraits import GEOMETRY, MOTION, draw, mouth_geometry, neutral
from rest_fast.training.synthetic.speech import VOICES, utterance
from rest_fast.training.synthetic.visemes import MOUTH, mouth_track
from rest_fast.training.synthetic.words import SPLITS, WORDS
from rest_fast.units import FPS, FRAME, RATE

pytest.importorskip("skia")
pytest.importorskip("espeakng_loader")

LIPS = [MOTION.index(name) for name in MOUTH]


def undrawn(split: str, index: int):
    """Everything of a clip but its pictures, which take nearly all the time: person, speech, mouth, motion."""
    rng = synthetic.generator(split, index)
    person = Identity.random(rng)
    said = utterance(rng, split, (LEAD + FRAMES * FRAME + TAIL) / RATE)
    mouth = mouth_track(said.phonemes, said.samples, FRAMES, offset=LEAD)
    return person, said, mouth, head_motion(rng, mouth, said.samples[LEAD : LEAD + FRAMES * FRAME])


@pytest.fixture(scope="module")
def clip():
    return make_clip("train", 3, size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips of the test split, the first as mp4 too, and what ``progress`` was told."""
    path = tmp_path_factory.mktemp("clips") / "deep" / "held"
    calls = []
    write_clips(path, 2, split="test", first=3, size=64, workers=1, videos=1, progress=lambda *n: calls.append(n))
    return path, calls


# -- what a clip is


def test_shapes_and_ranges(clip):
    assert clip.video.shape == (FRAMES, 32, 32, 3) and clip.video.dtype == np.uint8
    assert clip.samples.shape == (LEAD + FRAMES * FRAME + TAIL,) and clip.samples.dtype == np.float32
    assert clip.motion.shape == (FRAMES, len(MOTION)) and clip.geometry.shape == (FRAMES, len(GEOMETRY))
    assert FRAMES == 97 and (RATE, FPS, FRAME) == (16_000, 25, 640)
    assert np.abs(clip.samples).max() <= 1 and clip.video.std() > 20


def test_other_processes_make_the_same_clips(clip):
    """Spawned workers, and the order is kept; a batch of one process and a single clip are no different."""
    here = list(make_clips("train", range(2, 4), size=32, workers=1))
    there = list(make_clips("train", range(2, 7), size=32, workers=2))
    for one, other in [*zip(here, there), (clip, there[1])]:
        for name in ("video", "samples", "motion", "geometry"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.text, one.voice) == (other.text, other.voice)
    assert len({c.samples.tobytes() for c in there}) == len({c.video.tobytes() for c in there}) == 5


def test_splits_share_no_person_no_voice_and_no_word():
    people = [synthetic.identity(split, i) for split in SPLITS for i in range(40)]
    assert len(set(people)) == len(people)
    heard: dict[str, set[str]] = {}
    spoken: dict[str, set[str]] = {}
    for split in SPLITS:
        clips = [make_clip(split, i, frames=1, size=32) for i in range(12)]
        heard[split] = {c.voice for c in clips}
        spoken[split] = {word for c in clips for word in re.findall(r"\w+", c.text)}
        assert heard[split] <= set(VOICES[split]) and spoken[split] <= set(WORDS[split])
    for one, other in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not heard[one] & heard[other] and not spoken[one] & spoken[other]


def test_identity_is_the_person_of_the_clip(clip):
    np.testing.assert_array_equal(draw(synthetic.identity("train", 3), clip.motion[40:42], 32), clip.video[40:42])


def test_frame_0_is_a_photo_at_rest(clip):
    """Mouth shut and eyes open, even where somebody speaks already; the head is where it is."""
    rest = neutral()
    for name in ("dx", "dy", "roll", "yaw", "pitch", "brow"):
        rest[0, MOTION.index(name)] = clip.motion[0, MOTION.index(name)]
    np.testing.assert_array_equal(clip.video[0], draw(synthetic.identity("train", 3), rest, 32)[0])
    talking = 0
    for i in range(30):
        person, _, mouth, motion = undrawn("train", i)
        assert mouth_geometry(person, motion)[0, GEOMETRY.index("gap")] == 0
        assert not motion[0, LIPS].any() and motion[0, MOTION.index("blink")] == 0
        np.testing.assert_allclose(motion[1, LIPS], mouth[1] / 2, atol=1e-6)  # half way, then there
        np.testing.assert_array_equal(motion[2:, LIPS], mouth[2:])
        talking += mouth[0, 0] > 0.2
    assert talking >= 5


def test_mouths_follow_their_sound_at_once():
    """Loudness and opening of the mouth rise and fall together, neither before the other by more than two frames."""
    lags, found = range(-10, 11), []
    for i in range(12):
        _, said, mouth, _ = undrawn("validation", i)
        sound = said.samples[LEAD : LEAD + FRAMES * FRAME].reshape(FRAMES, FRAME)
        loudness = np.sqrt(np.square(sound, dtype=np.float64).mean(1))
        middle = slice(10, FRAMES - 10)
        found.append([np.corrcoef(np.roll(loudness, lag)[middle], mouth[middle, 0])[0, 1] for lag in lags])
    mean = np.mean(found, 0)
    assert abs(lags[int(mean.argmax())]) <= 2 and mean.max() > 0.5


# -- motion


def test_sway_is_slow():
    """Knots are 1.5 to 2.5 s apart: no full swing is faster than 3 s. A knot is a turn where it is the highest or
    lowest of three, twice in three times; so two turns take three knots on average, 4.5 to 7.5 s."""
    rng, seconds = np.random.default_rng(0), 400
    power, periods = np.zeros(seconds * FPS // 2 + 1), []
    for _ in range(30):
        curve = sway(rng, seconds * FPS)
        # Catmull-Rom through knots in -1..1: at most 20/16 between them, and a slope of 3 a knot
        assert np.abs(curve).max() <= 1.25 and np.abs(np.diff(curve)).max() <= 3 / (1.5 * FPS)
        power += np.abs(np.fft.rfft((curve - curve.mean()) * np.hanning(len(curve)))) ** 2
        turns = np.count_nonzero(np.diff(np.sign(np.diff(curve))))
        periods.append(2 * seconds / turns)
    frequency = np.fft.rfftfreq(seconds * FPS, 1 / FPS)
    assert power[frequency > 1 / 3].sum() < 0.03 * power.sum()
    assert power[frequency > 1].sum() < 1e-3 * power.sum()
    assert 4.5 < np.mean(periods) < 7.5


def test_blinks_last_7_to_9_frames_and_spare_frame_0():
    rng, lengths, gaps, firsts = np.random.default_rng(1), set(), set(), []
    for _ in range(200):
        shut = blinks(rng, 500)
        assert shut[0] == 0 and shut.min() >= 0 and shut.max() <= 1
        edges = np.diff((shut > 0).astype(int))
        starts, ends = np.flatnonzero(edges == 1) + 1, np.flatnonzero(edges == -1) + 1
        lengths |= set((ends - starts[: len(ends)]).tolist())
        gaps |= set(np.diff(starts).tolist())
        firsts.append(starts[0])
        assert all(shut[a:b].max() > 0.99 for a, b in zip(starts, ends))
    assert lengths == {7, 8, 9}
    assert min(gaps) >= 1.6 * FPS and max(gaps) <= 4.5 * FPS
    assert min(firsts) >= 4


def test_head_motion_keeps_to_what_can_be_drawn():
    bounds = {"blink": (0, 1), "brow": (-1, 1), "yaw": (-1.3, 1.3), "roll": (-0.12, 0.12), "dx": (-10, 10)}
    for i in range(20):
        motion = undrawn("test", i)[3]
        assert motion.dtype == np.float32 and np.isfinite(motion).all()
        for name, (low, high) in bounds.items():
            column = motion[:, MOTION.index(name)]
            assert low <= column.min() and column.max() <= high
    mouth = np.full((50, len(MOUTH)), 0.5, np.float32)
    running = head_motion(np.random.default_rng(0), mouth, np.zeros(50 * FRAME, np.float32), from_rest=False)
    np.testing.assert_array_equal(running[:, LIPS], mouth)


def test_emphasis_is_where_it_is_louder():
    assert not emphasis(np.zeros(60 * FRAME, np.float32), 60).any()
    samples = np.full(60 * FRAME, 0.02, np.float32)
    samples[20 * FRAME : 40 * FRAME] = 0.2
    stress = emphasis(samples, 60)
    assert stress[25:35].min() > 0.5 and not stress[:12].any() and not stress[48:].any()
    np.testing.assert_allclose(stress, stress[::-1], atol=1e-12)  # no delay
    np.testing.assert_allclose(emphasis(samples * 0.1, 60), stress, atol=1e-3)  # the level of a recording is no stress


# -- on disk


def test_what_is_written_is_read_back(folder):
    path, calls = folder
    clips = Clips(path)
    assert len(clips) == 2 and calls == [(1, 2), (2, 2)]
    assert not list(path.glob("*.partial"))
    made = [make_clip("test", index, size=64) for index in (3, 4)]
    for i, clip in enumerate(made):
        for name in ("video", "samples", "motion", "geometry"):
            np.testing.assert_array_equal(getattr(clips, name)[i], getattr(clip, name))
    about = clips.about
    assert (about["split"], about["first"], about["size"], about["frames"]) == ("test", 3, 64, FRAMES)
    assert (tuple(about["motion"]), tuple(about["geometry"])) == (MOTION, GEOMETRY)
    assert about["clips"] == [{"index": 3 + i, "text": c.text, "voice": c.voice} for i, c in enumerate(made)]


def test_what_a_training_asks_of_clips(folder):
    clips = Clips(folder[0])
    pixels = clips.pixels(1, slice(8, 16))
    assert pixels.shape == (3, 8, 64, 64) and pixels.dtype == torch.float32
    want = torch.from_numpy(np.array(clips.video[1, 8:16])).movedim(-1, 0).double() / 255 * 2 - 1
    torch.testing.assert_close(pixels.double(), want, rtol=0, atol=1e-6)
    assert clips.pixels(0).shape == (3, FRAMES, 64, 64)
    gap = clips.gap(0)
    assert gap.shape == (FRAMES,) and gap[0] == 0 and gap.max() > 2
    sound = clips.sound(0)
    assert len(sound) == 96 * 640
    np.testing.assert_array_equal(sound[640:], clips.samples[0, 4000 + 2 * 640 : 4000 + 97 * 640])


def test_preview_has_the_pictures_and_the_sound(folder):
    path, _ = folder
    (preview,) = path.glob("*.mp4")
    assert preview.name == "test_000003.mp4"
    frames, rate = media.read_video(preview)
    clips = Clips(path)
    assert frames.shape == (97, 64, 64, 3) and rate == 25
    assert np.abs(frames.astype(np.float32) - clips.video[0]).mean() < 8
    heard = media.load_audio(preview)
    assert heard.rate == RATE and abs(len(heard.mono) - 97 * 640) <= 2048  # AAC comes in blocks of 1024
    want = clips.samples[0, LEAD : LEAD + 97 * 640]
    n = min(len(want), len(heard.mono))
    spectrum = np.fft.rfft(heard.mono[:n], 2 * n) * np.fft.rfft(want[:n], 2 * n).conj()
    assert np.fft.irfft(spectrum).argmax() == 0  # in time to the sample
    assert np.corrcoef(heard.mono[:n], want[:n])[0, 1] > 0.9


@pytest.mark.parametrize(
    "options, words",
    [
        ({"count": 0}, "clips >= 1.*got 0"),
        ({"count": -2}, "clips >= 1.*got -2"),
        ({"size": 48}, "multiple of 32.*48"),
        ({"size": 0}, "multiple of 32.*0"),
        ({"split": "held"}, "train.*validation.*test.*'held'"),
        ({"first": -1}, "index >= 0.*-1"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, options, words):
    options = {"count": 1, "size": 32, "workers": 1} | options
    with pytest.raises(ValueError, match=words):
        write_clips(tmp_path / "out", options.pop("count"), **options)
    assert not (tmp_path / "out").exists()


def test_clips_are_not_overwritten(folder):
    path, _ = folder
    before = (path / "video.npy").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="holds clips already; choose another"):
        write_clips(path, 1, size=32, workers=1)
    assert (path / "video.npy").stat().st_mtime_ns == before and len(Clips(path)) == 2


def test_an_interrupted_folder_is_refused_and_can_be_written_anew(tmp_path):
    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clips(tmp_path, 2, size=32, workers=1, progress=stop)
    assert (tmp_path / "video.npy").exists()
    with pytest.raises(ValueError, match=r"clips\.json \(rest-fast synth\), found none"):
        Clips(tmp_path)
    write_clips(tmp_path, 1, size=32, workers=1)
    assert len(Clips(tmp_path)) == 1 and json.loads((tmp_path / "clips.json").read_text())["size"] == 32
