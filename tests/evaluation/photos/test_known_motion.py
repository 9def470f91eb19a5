"""A photo driven by known motion: from its own motion to the known one, and shown by the decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rest_fast.config import MotionVAEConfig, preset
from rest_fast.evaluation.photos import known_motion
from rest_fast.evaluation.photos.drivers import Portrait, Sound
from rest_fast.models.vae import TemporalVAE
from rest_fast.training.motion_clips import from_photo
from rest_fast.training.motion_pairs import labels_to_codes, scales
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION

SMALL = MotionVAEConfig(
    encoder_channels=(4, 6, 8, 8), photo_channels=(6, 8, 8, 8), flow_channels=(6, 8, 8, 8), code_width=12
)


def motion(**values):
    return np.array([values.get(name, 0.0) for name in HEAD_MOTION], np.float32)


def test_the_photo_goes_over_into_the_known_motion():
    own = motion(open=0.4, smile=0.5, yaw=0.3, blink=1)
    known = np.stack([motion(open=1, yaw=-0.2, smile=0.3)] * 12)
    rows = from_photo(own, known)
    want = motion(open=1, yaw=0.1, smile=0.15)  # the head's own turn and three tenths of the smile
    np.testing.assert_allclose(rows[7:], np.stack([want] * 5), atol=1e-6)
    np.testing.assert_allclose(rows[3], (own + want) / 2, atol=1e-6)
    np.testing.assert_allclose(rows[0], own + (want - own) / 8, atol=1e-6)


def test_codes_stand_for_the_motion_beside_what_the_photo_has_of_its_own():
    own = motion(open=0.2, dx=3)
    beside = torch.randn(128, generator=torch.Generator().manual_seed(0))
    codes = labels_to_codes(8)
    beside -= codes @ (codes.T @ beside)  # what stands for no label
    photo = (codes @ (torch.from_numpy(own) * scales()) + beside).view(1, 8, 4, 4)
    known = np.stack([motion(open=0.7), motion(press=1), motion(open=0.1)])
    found = known_motion.driven(photo, known)
    assert found.shape == (1, 3, 8, 4, 4)
    want = from_photo(own, known)
    np.testing.assert_allclose(known_motion.labels_of(found)[0].numpy(), want, atol=1e-5)
    rest = found[0].flatten(1) - found[0].flatten(1) @ codes @ codes.T
    torch.testing.assert_close(rest, beside.expand(3, -1), atol=1e-5, rtol=0)


def test_a_driver_gives_the_frames_of_the_decoder(tmp_path):
    torch.manual_seed(0)
    vae = TemporalVAE(preset("demo").replace(vae=SMALL, height=256, width=256, dit__positionwise_io=False)).eval()
    for part in (vae.decoder.flow.coarse, vae.decoder.flow.inner):
        torch.nn.init.normal_(part.weight, std=0.3)
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    portrait = Portrait("x", picture, (0, 0, 256, 256), picture)
    known = np.stack([motion(open=i / 10) for i in range(11)])  # no whole number of latents
    driver = known_motion.known_motion(vae, known, name="known")
    video = np.concatenate(list(driver.pieces(portrait)))
    assert video.shape == (11, 256, 256, 3) and (video[3] != video[10]).any()
    still = np.concatenate(list(known_motion.known_motion(vae, 0 * known, name="still").pieces(portrait)))
    assert (video[0] != picture).any() and not np.array_equal(video, still)


def test_spoken_motion_closes_lips_where_p_b_and_m_are():
    pytest.importorskip("espeakng_loader")
    sound = Sound.sentence()
    rows = known_motion.spoken_motion(sound)
    assert (
        rows.shape == (sound.frames, len(HEAD_MOTION))
        and (rows[:, HEAD_MOTION.index("smile")] == np.float32(0.3)).all()
    )
    opening = rows[:, HEAD_MOTION.index("open")]
    closed = [opening[frame] for frame in sound.closures() if frame < len(opening)]
    assert len(closed) == 27 and np.median(closed) < 0.1 < np.median(opening[opening > 0.15])
