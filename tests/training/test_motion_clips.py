"""Clips of motion without pictures: what their latents stand for, and that training takes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rest_fast import checkpoint
from rest_fast.config import MotionVAEConfig, preset
from rest_fast.errors import ArgumentError, DataError
from rest_fast.model import Model
from rest_fast.training import chain, motion_clips
from rest_fast.training.config import TrainingConfig
from rest_fast.training.flow import FlowData
from rest_fast.training.motion_pairs import labels_to_codes, scales
from rest_fast.training.shards import FRAMES, LEAD, TAIL, Shards
from rest_fast.training.synthetic.clips import LIPS, generator
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.speech import utterance
from rest_fast.training.synthetic.visemes import mouth_track
from rest_fast.units import FRAME, RATE

pytest.importorskip("espeakng_loader")
SMALL = MotionVAEConfig(
    encoder_channels=(4, 6, 8, 8), photo_channels=(6, 8, 8, 8), flow_channels=(6, 8, 8, 8), code_width=12
)


def small():
    model = preset("demo").replace(vae=SMALL, height=256, width=256)
    return model.replace(dit__layers=1, dit__heads=1, speech__width=16)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A checkpoint of a VAE alone, as ``motion_vae join`` writes it, with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model, folder = Model(small()), tmp_path_factory.mktemp("vae")
    model.vae.latents_mean.normal_()
    model.vae.latents_std.uniform_(0.5, 2)
    named = {f"vae.{name}": value.half() for name, value in model.vae.state_dict().items()}
    checkpoint.write(named, small(), folder)
    return folder


def test_a_clip_is_its_index_alone_and_its_mouth_says_its_words():
    samples, rows, about = motion_clips.make_clip("train", 3, "espeak")
    again = motion_clips.make_clip("train", 3, "espeak")
    np.testing.assert_array_equal(samples, again[0])
    np.testing.assert_array_equal(rows, again[1])
    assert samples.shape == (LEAD + FRAMES * FRAME + TAIL,) and rows.shape == (FRAMES, len(HEAD_MOTION))
    said = utterance(generator("train", 3), "train", len(samples) / RATE, "espeak")
    assert about["text"] == said.text
    mouth = mouth_track(said.phonemes, said.samples, FRAMES, offset=LEAD)
    np.testing.assert_allclose(rows[9:, LIPS], mouth[9:], atol=1e-6)  # from then on, the photo's mouth is forgotten


def test_a_smile_fades_where_its_owner_speaks_and_no_photo_smiles_more_than_it_did():
    smile = HEAD_MOTION.index("smile")
    smiles = [rows[:, smile] for rows in (motion_clips.make_clip("train", i, "espeak")[1] for i in range(12))]
    smiling = [track for track in smiles if track[0] > 0.3]
    assert smiling and all(np.median(track[20:]) < 0.6 * track[0] for track in smiling)
    assert all(track.max() <= track[0] + 1e-6 for track in smiles)


def test_latents_are_the_codes_of_the_motion(monkeypatch):
    monkeypatch.setattr(motion_clips, "SHARED", 0.0)
    monkeypatch.setattr(motion_clips, "NOISE", 0.0)
    rows = np.random.default_rng(0).normal(size=(FRAMES, len(HEAD_MOTION))).astype(np.float32)
    latents = motion_clips.clip_latents(rows, 8, torch.Generator().manual_seed(0))
    assert latents.shape == (13 * 16, 64)
    for frame in (0, 1, 8, 9, 96):  # channel 8 t + c of latent f is channel c of frame 8 (f - 1) + 1 + t
        f, t = divmod(frame + 7, 8)
        code = latents.view(13, 16, 8, 8)[f, :, t].T.flatten()
        torch.testing.assert_close(code @ labels_to_codes(8), torch.from_numpy(rows[frame]) * scales())
    photo = latents.view(13, 16, 8, 8)[0]
    assert (photo == photo[:, :1]).all()  # its code eight times


def test_all_of_a_clip_is_misread_alike_and_the_photo_has_noise_beside_it():
    rows = np.zeros((FRAMES, len(HEAD_MOTION)), np.float32)
    latents = motion_clips.clip_latents(rows, 8, torch.Generator().manual_seed(1)).view(13, 16, 8, 8)
    assert (latents[1:] == latents[1, :, :1][None]).all() and latents[1].abs().max() > 0
    assert (latents[0] - latents[1]).abs().max() > 0


def test_training_takes_them_and_a_call_goes_on_where_it_was(tmp_path, vae):
    out = tmp_path / "data"
    motion_clips.write_motion_clips(out, vae, small(), 2, voices="espeak", workers=1)
    motion_clips.write_motion_clips(out, vae, small(), 1, split="validation", voices="espeak", workers=1)
    kept = next(out.glob("train*.safetensors")).stat().st_mtime_ns
    motion_clips.write_motion_clips(out, vae, small(), 2, voices="espeak", workers=1)
    assert next(out.glob("train*.safetensors")).stat().st_mtime_ns == kept
    clips = Shards(out, "train")
    assert len(clips) == 2 and len(Shards(out, "validation")) == 1
    config = TrainingConfig.from_json((out / motion_clips.SETTINGS).read_text())
    quick = {"steps": 2, "batch": 2, "accumulate": 1}
    changes = {f"{s}__{k}": v for s in ("speech", "teacher") for k, v in quick.items()}
    config = config.replace(**changes)
    for stage in ("speech", "teacher"):
        chain.run(stage, config, out, tmp_path / "run", vae=vae, device="cpu", resume=stage == "teacher")
    lines = (tmp_path / "run" / "teacher" / "log.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
    # what training reads is what the VAE's decoder will be told
    batch = FlowData(config, clips, clips, 2)(0, range(2))
    model = Model(small())
    chain.read_parts(model, vae, "vae.")
    mean, std = model.vae.latents_mean.flatten(), model.vae.latents_std.flatten()
    _, rows, about = motion_clips.make_clip("train", 0, "espeak")
    at = next(i for i in range(2) if clips.source(i)["clip"] == about["clip"])
    g = torch.Generator().manual_seed(0)
    want = (motion_clips.clip_latents(rows, 8, g) - mean) / std
    torch.testing.assert_close(clips.read("latents", [at])[0].float(), want, atol=5e-3, rtol=2e-3)  # fp16
    assert batch.z0.shape == (2, 13 * 16, 64)


def test_what_is_refused(tmp_path, vae):
    with pytest.raises(ArgumentError, match="count of at least 1, got 0"):
        motion_clips.write_motion_clips(tmp_path / "a", vae, small(), 0)
    other = small().replace(vae__code_width=16)
    with pytest.raises(ArgumentError, match="expected the motion VAE of this model"):
        motion_clips.write_motion_clips(tmp_path / "a", vae, other, 1, voices="espeak")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a folder to write clips to"):
        motion_clips.write_motion_clips(tmp_path / "file", vae, small(), 1, voices="espeak")
