"""Training of a VAE: the basis finds what was planted, trainings see the clip's own frames, and both kinds learn."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rest_fast.config import preset
from rest_fast.model import Model
from rest_fast.models.vae.state import StreamState
from rest_fast.training import losses, vae, vae_basis
from rest_fast.training.config import Stage, TrainingConfig, training_preset
from rest_fast.training.distributed import World
from rest_fast.training.flow import pick
from rest_fast.training.loop import Trainer
from rest_fast.training.reports import read_log
from rest_fast.training.shards import FRAMES, DataError, Shards
from tests.kit.clips import small, write_clips
from tests.kit.compare import assert_same_bits


class Planted:
    """Clips whose blocks move on straight lines in few directions of pixel space: of rank 3 in space, 6 with time."""

    RANK = 3
    folder = Path("planted")

    def __init__(self, count: int = 12, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        pixels = 3 * 32 * 32
        self.directions = torch.linalg.qr(torch.randn(4, pixels, self.RANK, generator=g))[0]
        self.mean = 0.3 * torch.randn(4, pixels, generator=g)
        self.start = 10 * torch.randn(count, 4, self.RANK, generator=g)
        self.speed = 0.2 * torch.randn(count, 4, self.RANK, generator=g)

    def __len__(self) -> int:
        return len(self.start)

    def pixels(self, clip: int, frames: slice = slice(None)) -> torch.Tensor:
        time = torch.arange(FRAMES)[frames]
        along = self.start[clip] + time[:, None, None] * self.speed[clip]  # [n, P, rank]
        blocks = self.mean + torch.einsum("npr,pxr->npx", along, self.directions)
        x = blocks.view(len(time), 2, 2, 3, 32, 32)  # [n, row, column, c, y, x]
        return x.permute(3, 0, 1, 4, 2, 5).reshape(3, len(time), 64, 64)


def basis_config(**vae_sizes: int) -> TrainingConfig:
    return training_preset("toy").replace(model=small(**vae_sizes), precision="fp32")


@pytest.fixture(scope="module")
def planted():
    """A model whose basis was fitted to planted clips, and those clips."""
    torch.manual_seed(0)
    model, clips = Model(small(latent_channels=8, spatial_rank=5)).requires_grad_(False), Planted()
    vae_basis.fit_basis(model.vae.encoder.basis, clips, 700)
    return model, clips


def linear(model: Model, latents: torch.Tensor) -> torch.Tensor:
    """What the basis alone shows of latents [1, C, n, h, w]: [3, 8n, H, W]."""
    basis, _ = vae_basis.parts(model)
    return basis.pictures(basis.synthesise(basis.expand(latents)))[0]


# -- the basis


def test_fit_finds_what_was_planted(planted):
    """Rank and channels suffice, so nothing is lost; blocks of the fit are fp16, so some 1e-3 of it is."""
    model, clips = planted
    new = Planted()
    new.start, new.speed = new.start.flip(0), new.speed.roll(3, 0)  # other motion in the same directions
    sizes = []
    for source in (clips, new):
        whole = source.pixels(5)
        latents = model.vae.encode(whole[None])
        sizes.append(latents.square().mean().item())
        again = linear(model, latents)[:, 7:]
        assert whole.std() > 0.3 and (again - whole).square().mean().sqrt() < 1e-3 * whole.std()
    assert max(sizes) < 4 and min(sizes) > 0.1  # of the pieces of the fit, all together, exactly 1
    basis = model.vae.encoder.basis
    for vectors in (basis.spatial, basis.temporal):
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(vectors.shape[-1]).expand(4, -1, -1))


def test_fit_keeps_what_is_largest():
    """With room for two directions of three, the third and smallest is lost, and nothing else."""
    clips = Planted()
    size = torch.tensor([3.0, 1.0, 0.1])
    clips.start, clips.speed = clips.start * size, clips.speed * size
    model = Model(small(latent_channels=8, spatial_rank=2)).requires_grad_(False)
    vae_basis.fit_basis(model.vae.encoder.basis, clips, 700)
    kept = torch.einsum("pxr,pxs->prs", clips.directions, model.vae.encoder.basis.spatial).square().sum(-1)
    assert kept[:, :2].min() > 0.99 and kept[:, 2].max() < 0.05


def test_fit_needs_clips():
    model = Model(preset("drawn").replace(height=64, width=64)).requires_grad_(False)  # 80 components
    with pytest.raises(DataError, match="planted: expected at least 8 clips for 80 components, got 2"):
        vae_basis.fit_basis(model.vae.encoder.basis, Planted(2), 700)


def test_mixer_starts_at_the_size_of_things(planted):
    """Its inputs have variance 1 (nearly, by a guard for what is never there), its reach is the linear error."""
    model, clips = planted
    basis, decoder = vae_basis.parts(model)
    got = torch.cat([basis.expand(model.vae.encode(clips.pixels(i)[None])) for i in range(12)])
    truth = got + torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    before = decoder.mixer.proj_in.clone()
    vae_basis.calibrate_mixer(model, got, truth)
    want = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).expand(4, 1, 5)
    torch.testing.assert_close(decoder.mixer.reach, want, rtol=1e-3, atol=1e-5)
    spread = torch.from_numpy(truth.numpy().std((0, 1, 3)))
    scaled = spread[..., None] * decoder.mixer.proj_in / before
    assert scaled[:, 0].min() > 0.9 and scaled.max() < 1


def test_calibration_compares_latents_with_the_truth(planted):
    """The basis loses nothing of planted clips: what the decoder has is the truth."""
    model, clips = planted
    got, want = vae_basis.calibration_pieces(model, clips, basis_config(latent_channels=8, spatial_rank=5))
    assert got.shape == want.shape == (200, 3, 4, 8, 5) and want.std() > 1
    assert (got - want).square().mean().sqrt() < 1e-3 * want.std()


def test_a_basis_is_fitted_once(tmp_path, planted, monkeypatch):
    _, clips = planted
    config = basis_config(latent_channels=8, spatial_rank=5)
    models = [Model(config.model).requires_grad_(False) for _ in range(2)]
    path = tmp_path / "deep" / "basis.safetensors"
    vae_basis.fit_or_load(models[0], clips, config, path, World())
    assert [p.name for p in path.parent.iterdir()] == ["basis.safetensors"]
    monkeypatch.setattr(vae_basis, "fit_basis", lambda *_: pytest.fail("fitted again"))
    vae_basis.fit_or_load(models[1], clips, config, path, World())
    (basis, decoder), (other, reader) = (vae_basis.parts(model) for model in models)
    for name, tensor in basis.state_dict().items():
        assert_same_bits(other.state_dict()[name], tensor, name)
    assert torch.equal(decoder.mixer.proj_in, reader.mixer.proj_in)
    assert torch.equal(decoder.mixer.reach, reader.mixer.reach) and not torch.equal(basis.mean, 0 * basis.mean)


# -- what the trainings see


def numbered(frames: int = FRAMES):
    """Clips whose frame k of clip c is the number 100 c + k."""
    return SimpleNamespace(
        pixels=lambda clip, at: torch.arange(100 * clip, 100 * clip + float(frames))[at].view(1, -1, 1, 1),
        __len__=lambda: 4,
    )


def test_pieces_of_the_decoder_s_training_are_the_clip_s():
    """First latent: 8 copies of frame 0; then frames 8k - 7 to 8k."""
    copies = vae_basis.frames_of(numbered(), 2, 0, 3).flatten().tolist()
    assert copies == [200] * 8 + list(range(201, 217))
    assert vae_basis.frames_of(numbered(), 0, 1, 3).flatten().tolist() == list(range(1, 25))
    assert vae_basis.frames_of(numbered(), 0, 10, 3).flatten().tolist() == list(range(73, 97))
    assert vae_basis.frames_of(numbered(), 1, 0, 13).flatten().tolist() == [100] * 8 + list(range(101, 197))


def test_pieces_begin_anywhere_and_are_the_same_whoever_draws_them(planted, monkeypatch):
    _, clips = planted
    config = basis_config(latent_channels=8, spatial_rank=5).replace(vae__batch=4)
    data, seen = vae_basis.PieceData(clips, config), []
    whole = data(3, range(4))
    assert whole.frames.shape == (4, 3, 24, 64, 64) and whole.noise.shape == (4, 8, 3, 2, 2)
    for rows in ([range(0, 2), range(2, 4)], [range(i, i + 1) for i in range(4)]):
        parts = [data(3, part) for part in rows]
        for name in ("frames", "photo", "noise"):
            assert_same_bits(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name), name)
    for row, clip in enumerate(pick(12, 4, 0, 3)):
        assert torch.equal(whole.photo[row], clips.pixels(clip, slice(0, 1)))
    assert 0 < whole.noise.std() < vae_basis.NOISE
    monkeypatch.setattr(vae_basis, "frames_of", lambda _, clip, first, n: seen.append(first) or torch.zeros(1))
    for step in range(60):
        data(step, range(4))
    assert set(seen) == set(range(11))


def test_latents_and_frames_of_a_piece_belong_together(planted):
    """What the decoder is trained to say: without noise and with a basis that loses nothing, it says it already."""
    model, clips = planted
    latents = model.vae.encode(clips.pixels(3)[None])
    for first in (0, 4, 10):
        shown = linear(model, latents[:, :, first : first + 3])
        want = vae_basis.frames_of(clips, 3, first, 3)
        assert (shown - want).square().mean().sqrt() < 1e-3 * want.std()
    stage = vae_basis.MixerStage(model, basis_config(latent_channels=8, spatial_rank=5))
    assert not model.vae.decoder.mixer.proj_out.any()  # a fresh mixer corrects nothing
    frames = vae_basis.frames_of(clips, 3, 4, 3)[None]
    silent = vae_basis.PieceBatch(frames, frames[:, :, :1], torch.zeros(1, 8, 3, 2, 2))
    variance = (frames - frames.mean(2, keepdim=True)).square().mean()
    assert stage(silent)["loss"] < 1e-4 * variance
    assert stage(vae_basis.PieceBatch(frames, frames[:, :, :1], torch.ones(1, 8, 3, 2, 2)))["loss"] > 1e-2


def test_weights_of_the_mouth_s_row():
    stage = vae_basis.MixerStage(Model(preset("drawn")), training_preset("drawn"))
    weight = stage.weight.flatten()
    assert (weight > 1.5 * weight.min()).nonzero().flatten().tolist() == [9, 10]
    assert weight.mean().item() == pytest.approx(1) and (weight.max() / weight.min()).item() == pytest.approx(3)


# -- the convolutional one


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return Shards(write_clips(tmp_path_factory.mktemp("vae"), preset("toy"), 4, fields=["video"]))


def test_clips_of_the_conv_training(shards):
    """Stretches of 1 + 8 n frames of the clips that were picked; the same whoever draws them, their noise too."""
    config = training_preset("toy").replace(vae__batch=4, vae__pieces=2, precision="fp32")
    data = vae.VideoData(shards, config)
    whole = data(5, range(4))
    assert whole.frames.shape == (4, 3, 17, 64, 64)
    for row, clip in enumerate(pick(4, 4, 0, 5)):
        frames = shards.pixels(clip)
        starts = [i for i in range(81) if torch.equal(frames[:, i : i + 17], whole.frames[row])]
        assert len(starts) == 1
    parts = [data(5, range(i, i + 1)) for i in range(4)]
    assert torch.equal(torch.cat([p.frames for p in parts]), whole.frames)
    assert [p.seeds[0] for p in parts] == whole.seeds and len(set(whole.seeds)) == 4
    assert not set(whole.seeds) & set(data(6, range(4)).seeds)
    with torch.no_grad():
        stage = vae.ConvVAE(Model(config.model), config)
        means = torch.stack([stage(part)["loss"] for part in parts]).mean()
        torch.testing.assert_close(stage(whole)["loss"], means, rtol=1e-5, atol=0)


def test_the_conv_loss(shards):
    """Pixels, and a little of the divergence; a fresh posterior is narrow, so its sample is nearly its mean."""
    config = training_preset("toy").replace(vae__pieces=1, vae__kl=0.01, precision="fp32")
    model = Model(config.model).requires_grad_(False)
    stage, video = vae.ConvVAE(model, config), vae.VideoData(shards, config)(0, range(2))
    terms = stage(video)
    moments = model.vae.encoder(video.frames, StreamState())
    assert torch.equal(moments[:, -1], torch.full_like(moments[:, -1], -5.0))
    kl = losses.divergence(moments[:, :8], moments[:, 8:])
    torch.testing.assert_close(terms["kl"], kl, rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["loss"], terms["pixels"] + 0.01 * kl, rtol=1e-6, atol=0)
    plain = losses.pixel_loss(model.vae.decoder(moments[:, :8], StreamState()), video.frames)
    assert terms["pixels"] == pytest.approx(plain.item(), rel=0.05)


def test_a_decoder_that_is_not_causal_is_trained_on_whole_clips(shards):
    """What it learns to make is its decode of the whole clip, each frame knowing the next; causal ones as before."""
    for causal in (False, True):
        config = training_preset("toy").replace(
            model__vae__causal_decoder=causal, vae__pieces=2, vae__kl=0.0, precision="fp32"
        )
        torch.manual_seed(0)
        model = Model(config.model).requires_grad_(False)
        stage, clip = vae.ConvVAE(model, config), vae.VideoData(shards, config)(0, range(2))
        model.vae.encoder.conv_out.bias[-1] = -40.0  # no noise
        found = stage(clip)["pixels"]
        means = model.vae.encode(clip.frames)
        torch.testing.assert_close(found, losses.pixel_loss(model.vae.decode(means), clip.frames), rtol=1e-5, atol=0)
        other = model.vae.decoder(means, StreamState(1 if causal else 2))
        assert abs(losses.pixel_loss(other, clip.frames) - found) > 1e-3 * found


def test_latents_are_measured_to_be_normal(shards):
    model = Model(preset("toy")).requires_grad_(False)
    model.vae.latents_mean.fill_(7)
    vae.measure_latents(model, shards)
    latents = torch.cat([model.vae.encode(shards.pixels(i)[None]) for i in range(4)])
    flat = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(flat.std(1), torch.ones(8), rtol=1e-3, atol=0)


# -- both learn


def test_the_conv_vae_learns(shards, tmp_path):
    """To 40 to 43 % of the first steps' error, over draws of the weights."""
    config = training_preset("toy").replace(
        vae__steps=12, vae__rate=3e-3, vae__warmup=2, vae__pieces=1, precision="fp32", report_every=1, save_every=12
    )
    stage = vae.ConvVAE(Model(config.model).requires_grad_(False), config).requires_grad_(True)
    Trainer(stage, config.vae, config, tmp_path, World()).run(vae.VideoData(shards, config))
    course = [line["pixels"] for line in read_log(tmp_path)]
    assert sum(course[-3:]) < 0.7 * sum(course[:3])


def test_the_basis_vae_learns(tmp_path):
    """Basis, mixer and post-net in their order: without what either has learned, its own error is larger.

    Two components and one channel leave both a lot to learn. Over draws of weights and data the mixer is left with 12
    to 32 % of its error and the post-net with 73 to 82 %; another order of sums is such a draw, too. Who learns nothing
    is left with all of it. The limits lie between.
    """
    config = basis_config(latent_channels=1, spatial_rank=2).replace(report_every=20, save_every=100)
    mixer = Stage(40, 1e-2, 4, 1, warmup=2, ema=0.9)
    few = dataclasses.replace(config.vae, steps=40, rate=5e-3, warmup=2, pieces=1, fit_clips=4, mixer=mixer, ema=0.9)
    config = config.replace(vae=few)
    shards = Shards(write_clips(tmp_path / "data", config.model, 4, fields=["video"]))
    torch.manual_seed(0)
    model = Model(config.model).requires_grad_(False)
    decoder = model.vae.decoder
    begun = copy.deepcopy(decoder.post.conv_out.state_dict())
    vae.train(model, config, shards, tmp_path / "vae", World())
    assert not any(p.requires_grad for p in model.parameters())
    assert (tmp_path / "vae" / "basis.safetensors").is_file()
    assert len(read_log(tmp_path / "vae" / "mixer")) == 2 and len(read_log(tmp_path / "vae")) == 2
    batch = vae_basis.PieceData(shards, config, 24)(999, range(24))
    learned = vae_basis.PixelStage(model, config)(batch)["loss"]
    decoder.post.conv_out.load_state_dict(begun)
    assert learned < 0.9 * vae_basis.PixelStage(model, config)(batch)["loss"]
    learned = vae_basis.MixerStage(model, config)(batch)["loss"]
    decoder.mixer.proj_out.zero_()
    assert learned < 0.5 * vae_basis.MixerStage(model, config)(batch)["loss"]
