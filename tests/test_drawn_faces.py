"""The drawn faces: same bytes from the same seed, mouths that show the sound, honest loudness."""

import dataclasses
import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from rest_fast.training import drawn_faces as faces

DIGEST = """
import hashlib
from rest_fast.training.drawn_faces import make_clip
clip = make_clip(5, 9)
print(hashlib.sha256(clip.video.tobytes() + clip.samples.tobytes()).hexdigest())
"""


def person(seed):
    return faces.Identity.random(np.random.default_rng(seed))


def still(**tracks):
    """A motion at rest but for the given tracks, all of one length."""
    rest = np.zeros(len(next(iter(tracks.values()))))
    names = [f.name for f in dataclasses.fields(faces.Motion)]
    return faces.Motion(**{name: tracks.get(name, rest) for name in names})


def tone(decibels, frames=20):
    """A 1 kHz sine of a given RMS level (whole periods in every video frame)."""
    t = np.arange(frames * faces.FRAME) / faces.RATE
    return (2**0.5 * 10 ** (decibels / 20) * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)


def test_same_seed_same_bytes_in_another_process():
    clip = faces.make_clip(5, 9)
    digest = hashlib.sha256(clip.video.tobytes() + clip.samples.tobytes()).hexdigest()
    other = subprocess.run(
        [sys.executable, "-c", DIGEST],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert other.stdout.strip() == digest


def test_clip_has_the_stated_shapes_and_starts_neutral():
    clip = faces.make_clip(2, 12, 64)
    assert clip.video.shape == (12, 64, 64, 3) and clip.video.dtype == np.uint8
    assert clip.samples.shape == (faces.LEAD + 12 * faces.FRAME + faces.TAIL,)
    assert clip.samples.dtype == clip.mouth.dtype == np.float32
    for seed in range(3):
        clip = faces.make_clip(seed, 2, 64)
        assert clip.mouth[0] == 0
        assert np.array_equal(clip.video[0], faces.portrait(seed, 64))


def test_the_mouth_of_a_clip_is_that_of_its_sound():
    clip = faces.make_clip(1, 40, 32)
    start = faces.LEAD - 6 * faces.FRAME  # any whole number of frames earlier
    mouth, _ = faces.mouth_from_sound(clip.samples[start:])
    np.testing.assert_array_equal(clip.mouth[2:], mouth[8:46])


def test_mouth_pixels_follow_the_motion():
    rng = np.random.default_rng(0)
    for seed in range(4):
        who, zero = person(seed), np.zeros(60)
        motion = faces.random_motion(rng, np.abs(np.sin(np.arange(60) / 5)), zero)
        # Follow the head: the mouth box, and what is dark red in it but not when closed.
        dark = []
        for mouth in (motion.mouth, zero):
            video = faces.draw(who, dataclasses.replace(motion, mouth=mouth)).astype(int)
            x = np.round(who.x + motion.dx - 24 * motion.roll).astype(int)
            y = np.round(60 + motion.dy + 24).astype(int)
            box = np.stack([f[b - 8 : b + 24, a - 20 : a + 20] for f, a, b in zip(video, x, y)])
            dark.append((box.max(3) < 100) & (box[..., 0] > 1.5 * box[..., 1]))
        opened = (dark[0] & ~dark[1]).sum((1, 2))
        assert np.corrcoef(opened, motion.mouth)[0, 1] > 0.9
        assert opened.max() > 60  # large enough to see at 128 pixels


def test_motion_moves_what_it_says():
    who, rest = person(3), still(mouth=np.zeros(1))
    base = faces.draw(who, rest).astype(int)[0]
    x, y = round(who.x), 60
    for name, rows in (("blink", slice(y - 12, y + 5)), ("mouth", slice(y + 15, y + 56))):
        moved = np.abs(faces.draw(who, still(**{name: np.ones(1)})).astype(int)[0] - base).sum(2)
        assert moved[rows].sum() > 0.99 * moved.sum() > 0
    shifted = faces.draw(who, still(dx=np.array([4.0])))[0].astype(int)
    np.testing.assert_allclose(
        shifted[y - 20 : y + 25, x - 10 : x + 14], base[y - 20 : y + 25, x - 14 : x + 10], atol=2
    )


def test_random_motion_is_slow_and_blinks_last():
    rng = np.random.default_rng(0)
    zero = np.zeros(2000, np.float32)
    motion = faces.random_motion(rng, zero, zero)
    assert 4 < np.abs(motion.dx).max() < 12
    assert np.abs(np.diff(motion.dx)).max() < 1.5  # pixels a frame
    edges = np.flatnonzero(np.diff(np.concatenate(([0], motion.blink > 0, [0]))))
    assert set(np.diff(edges)[::2]) <= {7, 8, 9} and len(edges) > 30
    free = faces.random_motion(rng, zero + 1, zero, start_neutral=False)
    assert free.mouth[0] == 1 and free.dx[0] != 0


def test_loudness_closed_form():
    for decibels in (-40, -30, -20, -15):
        expected = (decibels - faces.FLOOR_DB) / (faces.CEILING_DB - faces.FLOOR_DB)
        np.testing.assert_allclose(faces.loudness(tone(decibels))[1:-1], expected, atol=1e-3)
    assert np.all(faces.loudness(np.zeros(6400, np.float32)) == 0)
    assert np.all(faces.loudness(tone(-5))[1:-1] == 1)


def test_loudness_is_monotone_in_level():
    sound = faces.speech_like(np.random.default_rng(2), 2)
    tracks = [faces.loudness(sound * np.float32(gain)) for gain in (0, 0.1, 0.3, 1, 3)]
    for quiet, loud in itertools.pairwise(tracks):
        assert np.all(loud >= quiet)
    assert tracks[-1].max() > tracks[1].max()


def test_mouth_hears_no_further_than_the_look_ahead():
    assert faces.LOOK_AHEAD <= 0.08 * faces.RATE
    sound = faces.speech_like(np.random.default_rng(1), 2)
    i = 20
    end = (i + 1) * faces.FRAME + faces.LOOK_AHEAD
    changed, near = sound.copy(), sound.copy()
    changed[end:] = 0.9
    near[end - 100 : end] = 0.9
    for track in range(2):
        before, after = (faces.mouth_from_sound(x)[track] for x in (sound, changed))
        np.testing.assert_array_equal(before[: i + 1], after[: i + 1])
    assert faces.loudness(near)[i] != faces.loudness(sound)[i]


def test_bright_sounds_are_wide():
    t = np.arange(16000) / faces.RATE
    low, high = (faces.mouth_from_sound(0.3 * np.sin(2 * np.pi * f * t))[1] for f in (250, 3000))
    assert low[5] < -0.3 and high[5] > 0.3


def test_speech_is_varied_and_within_bounds():
    sounds = [faces.speech_like(np.random.default_rng(seed), 3.0) for seed in range(12)]
    assert all(s.shape == (48000,) and s.dtype == np.float32 for s in sounds)
    assert all(np.abs(s).max() <= 1 for s in sounds)
    peaks = [faces.loudness(s).max() for s in sounds]
    assert max(peaks) - min(peaks) > 0.2 and max(peaks) > 0.6
    pauses = [np.mean(faces.loudness(s) < 0.1) for s in sounds]
    assert 0.05 < np.mean(pauses) < 0.6


def test_identities_differ():
    pictures = [faces.portrait(seed, 32).astype(int) for seed in range(6)]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert np.abs(first - second).mean() > 8


def test_workers_keep_the_order():
    seeds = [3, 1, 2]
    alone, together = (list(faces.make_clips(seeds, n, frames=3, size=32)) for n in (1, 2))
    for a, b, seed in zip(alone, together, seeds, strict=True):
        assert np.array_equal(a.video, b.video) and np.array_equal(a.samples, b.samples)
        assert np.array_equal(a.video, faces.make_clip(seed, 3, 32).video)


@pytest.mark.parametrize(
    "call",
    [
        lambda: faces.make_clip(-1),
        lambda: faces.make_clip(0, frames=0),
        lambda: faces.portrait(0, size=4),
        lambda: faces.speech_like(np.random.default_rng(0), 0),
        lambda: faces.loudness(np.zeros(6400, np.int16)),
        lambda: faces.loudness(np.zeros((2, 6400), np.float32)),
        lambda: faces.loudness(np.zeros(639, np.float32)),
        lambda: faces.loudness(np.full(6400, np.nan, np.float32)),
        lambda: faces.Motion(*np.zeros((6, 3)), np.zeros(2)),
        lambda: faces.Motion(*np.full((7, 3), np.inf)),
        lambda: next(faces.make_clips([0], workers=0)),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError):
        call()
