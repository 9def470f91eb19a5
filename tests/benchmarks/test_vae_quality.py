"""The metrics of ``benchmarks/vae_quality.py`` on constructed pictures, and what is stored of its run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kit.bench import script

pytest.importorskip("skimage")

ROOT = Path(__file__).parents[2]
quality = script("vae_quality")


def ramp(levels):
    """Even pictures of these levels, uint8 [n, 32, 32, 3]."""
    return np.broadcast_to(np.asarray(levels, np.uint8)[:, None, None, None], (len(levels), 32, 32, 3))


def test_psnr_of_a_known_error():
    truth = np.random.default_rng(0).integers(20, 200, (2, 32, 32, 3)).astype(np.uint8)
    off = truth + np.uint8(5)
    assert quality.psnr(off, truth) == pytest.approx(20 * math.log10(255 / 5))
    assert quality.psnr(truth, off) == quality.psnr(off, truth)  # uint8 does not wrap round
    assert quality.psnr(truth, truth) == math.inf


def test_scores_of_the_mouth_and_of_the_worst_frame():
    """An error in the mouth's box alone, of one frame alone."""
    truth = np.random.default_rng(0).integers(20, 200, (4, 128, 128, 3)).astype(np.uint8)
    video, box = truth.copy(), quality.measures.mouth_box(128, 128)
    video[2][box] += np.uint8(10)
    inside = video[2][box].size / video[2].size
    found = quality.picture_scores(video, truth)
    assert found["mouth_psnr_db"] == pytest.approx(20 * math.log10(255 / 10) + 10 * math.log10(4))
    assert found["psnr_db"] == pytest.approx(found["mouth_psnr_db"] - 10 * math.log10(inside))
    assert found["psnr_db_worst_frame"] == pytest.approx(found["psnr_db"] - 10 * math.log10(4))
    assert found["ssim_worst_frame"] < found["ssim"] < 1 and found["mouth_ssim"] < found["ssim"]
    assert quality.picture_scores(truth, truth)["ssim"] == pytest.approx(1)


def test_seam_and_flicker_of_constructed_clips():
    """Two levels a frame, and six at latent borders: a seam of 3, also where the truth moves by one everywhere."""
    n = 25
    steps = np.where(np.arange(n - 1) % 8 == 0, 6, 2)  # step k leads from frame k to k + 1
    steps[0] = 50  # from the photo to the first decoded frame: no seam
    video = ramp(np.concatenate([[0], np.cumsum(steps)]))
    truth = ramp(np.arange(n))
    assert quality.seam_ratio(video, truth) == pytest.approx(3)
    assert quality.seam_ratio(truth, truth) == 1
    assert quality.seam_ratio(video, video) == 1  # a truth that jumps there itself excuses it
    assert quality.flicker_ratio(video[1:], truth[1:]) == pytest.approx((2 * 6 + 21 * 2) / 23)


def test_frames_at_another_rate():
    """12 frames a second seen at 24: each twice, the last one once; at 6 every second one."""
    times = [1.0 + i / 12 for i in range(5)]
    assert quality.at_rate(times, 24) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert quality.at_rate(times, 6) == [0, 2, 4]
    assert quality.at_rate(times, 12) == list(range(5))


def test_whole_latents():
    assert [len(quality.whole_latents(ramp(np.zeros(n)))) for n in (17, 24, 25)] == [17, 17, 25]
    with pytest.raises(ValueError, match="expected at least 17 frames, got 16"):
        quality.whole_latents(ramp(np.zeros(16)))


def test_decoding_latent_by_latent_and_a_photo_that_helps():
    model = quality.rest_fast.load("demo", dtype=torch.float32)
    video = np.concatenate([quality.pictures(128)["portrait"]] * 17)
    videos, worst = quality.through(model, video)
    assert {way: found.shape for way, found in videos.items()} == dict.fromkeys(quality.WAYS, video.shape)
    assert worst < 1e-4
    known, alone = (quality.psnr(videos[way], video) for way in quality.WAYS)
    assert known > alone + 3


def test_stored_results():
    stored = json.loads((ROOT / "benchmarks" / "results" / "vae_quality.json").read_text())
    assert {"astronaut_face", "astronaut_whole", "portrait"} <= set(stored["pictures"])
    assert {"film", "drawn_0", "drawn_1"} <= set(stored["clips"]) and len(stored["film"]["sha256"]) == 64
    rows = {**stored["pictures"], **stored["clips"]}
    assert max(row["streaming_difference"] for row in rows.values()) < 1e-4
    assert len(quality.markdown(stored).splitlines()) == 2 + len(stored["pictures"]) + 3 + 3 * len(stored["clips"])
    assert (ROOT / "docs" / "vae_pictures.png").stat().st_size <= quality.LIMIT
