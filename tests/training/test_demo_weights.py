"""The demo weights: the whole chain at a toy's size, and each of its parts against what it should find."""

from __future__ import annotations

import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import rest_fast
from rest_fast.config import BasisVAEConfig, ModelConfig, preset
from rest_fast.model import Model
from rest_fast.models.vae import to_latents, to_tokens
from rest_fast.schedule import logit_normal_table
from rest_fast.training import demo_dit, demo_vae, demo_weights
from rest_fast.training.synthetic.clips import FRAMES, LEAD, TAIL
from rest_fast.training.synthetic.motion import FRAME


def small(**vae: int) -> ModelConfig:
    """The demo's configuration at 64 x 64 (a grid of 2 x 2), narrow."""
    sizes = {"latent_channels": 12, "spatial_rank": 8, "mixer_layers": 1, "mixer_heads": 1, "mixer_width": 16}
    return preset("demo").replace(
        height=64,
        width=64,
        vae=BasisVAEConfig(**sizes | {"post_channels": 8, "post_blocks": 1} | vae),
        speech__width=16,
        dit__layers=1,
        dit__heads=1,
        dit__head_dim=16,
    )


@pytest.fixture
def narrow(monkeypatch):
    """``demo`` is small."""
    monkeypatch.setattr(demo_weights, "preset", lambda name: small())
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# -- the chain


def test_from_nothing_to_a_checkpoint(tmp_path, narrow, monkeypatch):
    """All stages one by one; then all at once over their results, where nothing is left to do."""
    pytest.importorskip("skia")
    pytest.importorskip("espeakng_loader")
    work, out = tmp_path / "work", tmp_path / "out"
    options = {"clips": 4, "dit_steps": 2, "mixer_steps": 3, "decoder_steps": 2, "workers": 1}
    for stage, leaves in (
        ("data", "train/clips.json"),
        ("basis", "basis.safetensors"),
        ("dit", "dit.safetensors"),
        ("decoder", "decoder.safetensors"),
    ):
        assert not (work / leaves).exists()
        demo_weights.run(stage, work, None, **options)
        assert (work / leaves).exists()
    demo_weights.run("pack", work, out)

    model = rest_fast.load(out, device="cpu")
    assert model.config == small()
    fresh = Model(small()).state_dict()
    for name in ("vae.decoder.mixer.proj_out", "vae.decoder.post.conv_out.weight"):  # were zero: now trained
        assert not fresh[name].any() and model.state_dict()[name].any()
    for name in ("portrait.png", "portrait_2.png"):
        assert Image.open(out / name).size == (512, 512)
        avatar = model.prepare(out / name, crop="center")
    with wave.open(str(out / "speech.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        speech = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert 3 < len(speech) / 16_000 < 15 and 16_000 < np.abs(speech.astype(int)).max() <= 32_767
    with model.session(avatar) as session:
        session.push_audio(speech[:32_000])
        assert sum(len(block.video) for block in session.blocks()) >= 24

    def again(*_, **__):
        pytest.fail("a finished stage is done again")

    monkeypatch.setattr(demo_weights.synthetic, "write_clips", again)
    monkeypatch.setattr(demo_vae, "fit_basis", again)
    monkeypatch.setattr(demo_dit, "flow_loss", again)
    monkeypatch.setattr(demo_vae, "pixel_loss", again)
    demo_weights.run("all", work, tmp_path / "again", **options)
    for path in out.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_stages_that_cannot_be_run(tmp_path, narrow, monkeypatch):
    monkeypatch.setattr(demo_weights.synthetic, "Clips", lambda folder: None)
    work = tmp_path / "work"
    with pytest.raises(ValueError, match="stage: expected one of data, basis, dit, decoder, pack or all, got 'bake'"):
        demo_weights.run("bake", work, None)
    for stage in ("pack", "all"):
        with pytest.raises(ValueError, match="pack needs --out"):
            demo_weights.run(stage, work, None)
    assert not work.exists()  # refused before anything is done
    for stage in ("dit", "decoder", "pack"):
        with pytest.raises(ValueError, match=r"result of the stage basis, found no .*basis\.safetensors"):
            demo_weights.run(stage, work, tmp_path / "out")


def test_untrained_weights_are_not_packed(tmp_path, narrow, monkeypatch):
    monkeypatch.setattr(demo_weights.synthetic, "Clips", lambda folder: None)
    monkeypatch.setattr(demo_weights, "_basis", lambda *_, **__: (None, None))
    for state, stage in (("dit", "dit"), ("mixer", "decoder"), ("decoder", "decoder")):
        with pytest.raises(ValueError, match=rf"result of the stage {stage}, found no .*{state}\.safetensors"):
            demo_weights.run("pack", tmp_path, tmp_path / "out")
        (tmp_path / f"{state}.safetensors").touch()
    assert not (tmp_path / "out").exists()


def test_no_clips(tmp_path, narrow):
    with pytest.raises(ValueError, match=r"clips\.json"):
        demo_weights.run("basis", tmp_path, None)


# -- the basis


class Planted:
    """Clips whose blocks move on straight lines in few directions of pixel space: of rank 3 in space, 6 with time."""

    RANK = 3

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


@pytest.fixture(scope="module")
def planted():
    """A model whose basis was fitted to planted clips, those clips and their latents."""
    model, clips = Model(small(latent_channels=8, spatial_rank=5)).requires_grad_(False), Planted()
    demo_vae.fit_basis(model.vae.encoder.basis, clips)
    return model, clips, demo_vae.encode_all(model, clips)


def linear(model: Model, latents: torch.Tensor) -> torch.Tensor:
    """What the basis alone shows of latents [1, C, n, h, w]: [3, 8n, H, W]."""
    basis, _ = demo_vae.parts(model)
    return basis.pictures(basis.synthesise(basis.expand(latents)))[0]


def test_fit_finds_what_was_planted(planted):
    """Rank and channels suffice, so nothing is lost; blocks of the fit are fp16, so some 1e-3 of it is."""
    model, clips, latents = planted
    new = Planted()
    new.start, new.speed = new.start.flip(0), new.speed.roll(3, 0)  # other motion in the same directions
    for source in (clips, new):
        whole = source.pixels(5)
        again = linear(model, model.vae.encode(whole[None]))[:, 7:]
        assert whole.std() > 0.3 and (again - whole).square().mean().sqrt() < 1e-3 * whole.std()
    assert latents.shape == (12, 13 * 4, 8) and latents.dtype == torch.float16
    assert latents.float().square().mean() == pytest.approx(1, rel=0.5)  # exactly 1 for the pieces of the fit
    basis = model.vae.encoder.basis
    for vectors in (basis.spatial, basis.temporal):
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(vectors.shape[-1]).expand(4, -1, -1))


def test_fit_keeps_what_is_largest():
    """With room for two directions of three, the third and smallest is lost, and nothing else."""
    clips = Planted()
    size = torch.tensor([3.0, 1.0, 0.1])
    clips.start, clips.speed = clips.start * size, clips.speed * size
    model = Model(small(latent_channels=8, spatial_rank=2)).requires_grad_(False)
    demo_vae.fit_basis(model.vae.encoder.basis, clips)
    kept = torch.einsum("pxr,pxs->prs", clips.directions, model.vae.encoder.basis.spatial).square().sum(-1)
    assert kept[:, :2].min() > 0.99 and kept[:, 2].max() < 0.05


def test_true_coefficients_of_all_clips(planted, tmp_path):
    model, clips, _ = planted
    basis = model.vae.encoder.basis
    demo_vae.write_coefficients(basis, clips, tmp_path / "truth.npy")
    truth = np.load(tmp_path / "truth.npy")
    assert truth.shape == (12, 13, 4, 8, 5) and truth.dtype == np.float16
    pictures = basis.pictures(basis.synthesise(torch.from_numpy(truth[7:8]).float()))[0]
    want = clips.pixels(7)
    torch.testing.assert_close(pictures[:, 7:], want, rtol=0, atol=0.02)  # fp16 of numbers near 20
    torch.testing.assert_close(pictures[:, :7], want[:, :1].expand(-1, 7, -1, -1), rtol=0, atol=0.02)


def test_mixer_starts_at_the_size_of_things(planted):
    """Its inputs have variance 1 (nearly, by a guard for what is never there), its reach is the linear error."""
    model, _, latents = planted
    basis, decoder = demo_vae.parts(model)
    coefficients = basis.expand(to_latents(latents.float(), (2, 2)))
    truth = (coefficients + torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])).numpy()
    before = decoder.mixer.proj_in.clone()
    demo_vae.calibrate_mixer(model, latents, truth, count=12)
    want = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]).expand(4, 1, 5)
    torch.testing.assert_close(decoder.mixer.reach, want, rtol=1e-3, atol=1e-5)
    spread = torch.from_numpy(truth.std((0, 1, 3)))
    scaled = spread[..., None] * decoder.mixer.proj_in / before
    assert scaled[:, 0].min() > 0.9 and scaled.max() < 1


# -- losses


@pytest.mark.parametrize("size", [64, 128])
def test_pixel_loss_closed_form(size):
    """L1 with the mouth three times, and steps along time, rows and columns once each."""
    want = torch.rand(2, 3, 4, size, size)

    def loss(error: torch.Tensor) -> float:
        return demo_vae.pixel_loss(want.double() + error, want.double()).item()

    one = torch.ones(2, 3, 4, size, size, dtype=torch.float64)
    sign = 1.0 - 2 * (torch.arange(size) % 2)
    assert loss(0 * one) == 0
    assert loss(0.1 * one) == pytest.approx(0.3) == loss(-0.1 * one)
    assert loss(0.1 * one * sign[:4, None, None]) == pytest.approx(0.5)  # flickering
    assert loss(0.1 * one * sign[:, None]) == pytest.approx(0.5) == pytest.approx(loss(0.1 * one * sign))
    assert loss(0.1 * one * sign * sign[:, None] * sign[:4, None, None]) == pytest.approx(0.9)
    lower = torch.zeros_like(one)
    lower[..., 85 * size // 128, size // 2] = 1  # one pixel of the mouth; as much of the forehead counts less
    upper = lower.roll(-size // 2, -2)
    box = 48 * 56 * (size / 128) ** 2
    assert loss(lower) - loss(upper) == pytest.approx(2 / box)


def test_weights_of_the_lower_face():
    """A mean of 1, and three times as much where the mouth is."""
    for config, lower in ((preset("demo"), [9, 10, 13, 14]), (small(), [2, 3])):
        weight = demo_dit.mouth_tokens(config)
        assert weight.mean().item() == pytest.approx(1) and len(weight) == config.tokens
        heavy = (weight > 1.5 * weight.min()).nonzero().flatten().tolist()
        assert heavy == lower and weight.max() / weight.min() == pytest.approx(3)
    weight = demo_vae._mouth_blocks(Model(preset("demo")))
    assert (weight > 1.5 * weight.min()).nonzero().flatten().tolist() == [9, 10] and weight.mean() == pytest.approx(1)


class Oracle:
    """In place of the DiT: knows the clean latents, so it reads the velocity (z - z0) / t off every noised frame."""

    def __init__(self, config: ModelConfig, z0: torch.Tensor, add: torch.Tensor | float = 0.0):
        self.config, self.z0, self.add, self.seen = config, z0, add, []

    def dit(self, z: torch.Tensor, t: torch.Tensor, codes: torch.Tensor, layout: str) -> torch.Tensor:
        self.seen.append(SimpleNamespace(z=z, t=t, codes=codes, layout=layout))
        tokens = self.config.tokens
        v = (z - self.z0) / t.repeat_interleave(tokens, 1)[..., None]
        v[:, :tokens] = 1e6  # frame 0 is the reference: its velocity means nothing
        return v + self.add


def flow_loss(oracle: Oracle, seed: int = 0) -> float:
    config, z0 = oracle.config, oracle.z0
    frames = z0.shape[1] // config.tokens
    codes = torch.ones(len(z0), frames - 1, config.speech.tokens, config.speech.width)
    table = logit_normal_table(config.sampling.train_mu, config.sampling.train_sigma)
    weight, g = demo_dit.mouth_tokens(config), torch.Generator().manual_seed(seed)
    return demo_dit.flow_loss(oracle, z0, codes, table, weight, g).item()


def test_flow_loss_of_the_true_velocity_is_zero():
    config = small()
    z0 = torch.randn(6, 13 * 4, 12, generator=torch.Generator().manual_seed(1))
    assert flow_loss(Oracle(config, z0)) < 1e-8  # a difference of fp32 divided by t > 0.005
    assert flow_loss(Oracle(config, z0, add=0.1)) == pytest.approx(0.01, rel=1e-3)
    add = torch.zeros(13 * 4, 1)
    add[7 * 4 + 2] = 1  # one token of the lower face in one of 12 frames
    assert flow_loss(Oracle(config, z0, add=add)) == pytest.approx(1.5 / (12 * 4), rel=1e-3)


def test_what_the_dit_sees_in_training():
    """The reference is clean or dropped, codes too; timesteps do not fall from chunk to chunk."""
    config, batch = small(), 400
    z0 = torch.randn(batch, 13 * 4, 12, generator=torch.Generator().manual_seed(2))
    oracle = Oracle(config, z0)
    flow_loss(oracle)
    (seen,) = oracle.seen
    assert seen.layout == "streaming"
    reference = [torch.equal(seen.z[i, :4], z0[i, :4]) for i in range(batch)]
    heard = seen.codes[:, 1:].flatten(1)
    assert not seen.codes[:, 0].any() and not seen.t[:, 0].any()
    assert all(kept or not seen.z[i, :4].any() for i, kept in enumerate(reference))
    assert torch.equal(heard.amin(1), heard.amax(1))
    lost = [(not kept, bool(h == 0)) for kept, h in zip(reference, heard[:, 0])]
    for case, share in (((True, True), 0.1), ((True, False), 0.05), ((False, True), 0.05)):
        assert abs(lost.count(case) / batch - share) < 4 * (share / batch) ** 0.5
    chunks = seen.t[:, 1:].unflatten(1, (4, 3))
    assert torch.equal(chunks.amin(-1), chunks.amax(-1)) and (chunks[:, :, 0].diff(dim=1) >= 0).all()


def test_codes_hear_their_own_frames():
    """Latent k shows frames 8k - 7 to 8k: their sound moves its code, and that of no latent further away than the
    window of a frame reaches."""
    model, rng = Model(small()).requires_grad_(False), np.random.default_rng(0)
    samples = rng.normal(0, 0.1, (1, LEAD + FRAMES * FRAME + TAIL)).astype(np.float32)
    side = model.config.speech.side_ms / 40
    assert side == 2

    def codes(samples: np.ndarray) -> torch.Tensor:
        return demo_dit.clip_codes(model, SimpleNamespace(samples=samples), torch.tensor([0]))[0]

    whole = codes(samples)
    assert whole.shape == (12, 4, 16)
    for frame in (0, 1, 4, 8, 9, 37, 92, 96):
        other = samples.copy()
        other[:, LEAD + frame * FRAME : LEAD + (frame + 1) * FRAME] *= -0.5
        changed = (codes(other) != whole).flatten(1).any(1).nonzero().flatten().tolist()
        if frame:
            assert (frame - 1) // 8 in changed
        # beside the window's own reach, log-mel frames of 25 ms begin before and end after their position; codes see
        # what the encoder's convolutions remember, which is the past
        assert min(changed, default=0) >= max(0, (frame - 1 - side - 1) // 8)


def test_pieces_of_the_decoder_s_training_are_the_clip_s():
    """First latent: 8 copies of frame 0; then frames 8k - 7 to 8k."""
    clips = SimpleNamespace(
        pixels=lambda clip, frames: torch.arange(100 * clip, 100 * clip + 97.0)[frames].view(1, -1, 1, 1)
    )
    copies = demo_vae._frames_of(clips, 2, 0).flatten().tolist()
    assert copies == [200] * 8 + list(range(201, 217))
    assert demo_vae._frames_of(clips, 0, 1).flatten().tolist() == list(range(1, 25))
    assert demo_vae._frames_of(clips, 0, 10).flatten().tolist() == list(range(73, 97))
    firsts = {demo_vae._pick(2, step, 5, 2)[2] for step in range(300)}
    assert firsts == set(range(11))
    assert demo_vae._pick(2, 7, 5, 2)[1].tolist() == demo_vae._pick(2, 7, 5, 2)[1].tolist()


def test_latents_and_frames_of_a_piece_belong_together(planted):
    """What the decoder is trained to say: without noise and with a basis that loses nothing, it says it already."""
    model, clips, latents = planted
    for first in (0, 4, 10):
        piece = latents[3:4, first * 4 : (first + 3) * 4].float()
        shown = linear(model, to_latents(piece, (2, 2)))
        want = demo_vae._frames_of(clips, 3, first)
        assert (shown - want).square().mean().sqrt() < 5e-3 * want.std()  # latents are fp16
    assert torch.equal(to_tokens(to_latents(piece, (2, 2))), piece)


def test_the_work_folder_is_made(tmp_path, narrow, monkeypatch):
    def write_clips(folder: Path, count: int, **options: object) -> None:
        assert (folder.name, count, options) == ("train", 7, {"size": 64, "workers": 3})

    monkeypatch.setattr(demo_weights.synthetic, "write_clips", write_clips)
    demo_weights.run("data", tmp_path / "deep" / "work", None, clips=7, workers=3)
    assert (tmp_path / "deep" / "work").is_dir()
