"""What the motion VAE learns from: augmented pairs whose flow stays true, losses that vanish where they should."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rest_fast.config import MotionVAEConfig
from rest_fast.errors import CheckpointError
from rest_fast.models.vae import TemporalVAE, motion
from rest_fast.models.vae.layers import name_memories
from rest_fast.training import motion_decoder, motion_pairs, motion_vae
from rest_fast.training.config import TrainingConfig
from rest_fast.training.motion_decoder import MotionDecoderStage, non_rigid, share_errors
from rest_fast.training.motion_encoder import MotionEncoderStage, PictureBatch, PictureBatches
from rest_fast.training.motion_pairs import HIDDEN, SEEN, WALL, PairBatch, PairBatches, labels_to_codes, mirror, scales
from rest_fast.training.motion_vae import motion_model
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.heads.pairs import PLACES, write_pairs

SMALL = MotionVAEConfig(
    encoder_channels=(4, 6, 8, 8), photo_channels=(6, 8, 8, 8), flow_channels=(6, 8, 8, 8), code_width=12
)
GRID = 64
SHIFT = 6  # pixels of 128
# Eyes 20 pixels apart, the mouth below them, everything else nowhere.
PLACED = np.array(
    [
        {"right_eye": (42, 50), "left_eye": (62, 50), "upper_lip": (52, 77), "lower_lip": (52, 81)}.get(n, (0, 0))
        for n in PLACES
    ]
)


@dataclass
class Sliding:
    """People that are a smooth pattern, which slides over a grey wall: frame k lies k * SHIFT pixels to the right."""

    count: int = 5
    seed: int = 0

    def __len__(self):
        return self.count

    def __getitem__(self, n):
        rng = np.random.default_rng((self.seed, n))
        pattern = torch.nn.functional.interpolate(
            torch.from_numpy(rng.uniform(40, 215, (1, 3, 6, 6))), (64, 64), mode="bicubic"
        )[0].permute(1, 2, 0)
        images = np.full((4, 128, 128, 3), 128, np.uint8)
        visible, flow = np.zeros((4, GRID, GRID), np.uint8), np.zeros((4, GRID, GRID, 2), np.float16)
        motions, places = np.zeros((4, len(HEAD_MOTION)), np.float32), np.zeros((4, len(PLACES), 2), np.float32)
        for k in range(4):
            left = 20 + k * SHIFT
            images[k, 30:94, left : left + 64] = pattern.clamp(0, 255).byte()
            cells = slice(15, 47), slice(left // 2, left // 2 + 32)
            visible[k][cells], flow[k][cells] = SEEN, (-k * SHIFT, 0)
            motions[k, HEAD_MOTION.index("dx")] = k * SHIFT
            places[k] = PLACED + np.array([k * SHIFT, 0])
        return SimpleNamespace(images=images, flow=flow, visible=visible, motion=motions, places=places)


def batch_of(seed: int, **given):
    return PairBatches(Sliding(), 4, seed, **given)(0, range(4))


def test_codes_of_labels_are_read_back():
    codes = labels_to_codes(8)
    assert codes.shape == (128, 14) and torch.equal(codes, labels_to_codes(8))
    torch.testing.assert_close(codes.T @ codes, torch.eye(14), atol=1e-6, rtol=0)
    assert scales().shape == mirror().shape == (14,) and (scales() > 0).all()
    assert [name for name, sign in zip(HEAD_MOTION, mirror()) if sign < 0] == ["dx", "roll", "yaw"]


@pytest.mark.parametrize("textured", [False, True])
def test_the_photo_moved_by_the_flow_is_the_frame(textured):
    """Mirrored, in other colours and under a texture: wherever a frame shows what the photo shows, moved, it is the
    same; the wall, which does not move, too."""
    rng = np.random.default_rng(0)
    textures = [rng.integers(0, 255, (130, 140, 3), dtype=np.uint8)] if textured else None
    directions = set()
    for seed in range(4):
        batch = batch_of(seed, textures=textures)
        assert batch.photo.shape == (4, 3, 128, 128) and batch.frames.shape == (4, 3, 3, 128, 128)
        flow = motion_pairs.larger(batch.flow.flatten(0, 1), 128)
        moved = motion.moved(batch.photo, flow).unflatten(0, (4, 3))
        for row in range(4):
            for f in range(3):
                visible, error = batch.visible[row, f, 0], (moved - batch.frames)[row, f].abs().mean(0)
                for kind in (SEEN, WALL):
                    inside = torch.nn.functional.avg_pool2d((visible == kind).float()[None, None], 7, 1, 3)[0, 0] > 0.99
                    inside = inside.repeat_interleave(2, 0).repeat_interleave(2, 1)
                    # noise of the photo alone: at most 0.04, and half of that and more by interpolation
                    assert error[inside].mean() < 0.05, (seed, row, f, kind)
                sign = torch.sign(batch.flow[row, f, 0][visible == SEEN].mean())
                directions.add(float(sign))
                # dx of the label and the flow have opposite signs, mirrored or not
                assert sign == -torch.sign(batch.labels[row, 1 + f, HEAD_MOTION.index("dx")])
    assert directions == {-1.0, 1.0}


def test_a_wall_behind_the_photos_head_is_hidden():
    batch = batch_of(0)
    counts = [(batch.visible == kind).sum(dim=(2, 3, 4)) for kind in (WALL, HIDDEN, SEEN)]
    assert (counts[2] == 32 * 32).all()
    # what the head leaves by k * SHIFT pixels: 3 k cells of 32 rows
    assert sorted(set((counts[1] // 32).flatten().tolist())) == [3, 6, 9]


def test_the_focus_is_on_mouth_and_eyes():
    frames = [pair for b in map(batch_of, range(2)) for pair in zip(b.focus.flatten(0, 1)[:, 0], b.flow.flatten(0, 1))]
    assert {bool(flow[0].max() > 0) for _, flow in frames} == {False, True}  # some people are mirrored
    for focus, flow in frames:
        shift = -float(flow[0].flatten()[flow[0].abs().argmax()]) * 128  # of the head, mirrored or not
        mouth = 52 + shift if shift > 0 else 128 - (52 - shift)
        eyes = (mouth - 10, mouth + 10)
        assert focus.max() <= 1
        for x, y, low in ((mouth, 79, 0.9), (eyes[0], 50, 0.9), (eyes[1], 50, 0.9)):
            assert focus[int(y / 2), int(min(x, 127) / 2)] > low
        # 9 pixels beside the mouth, 0.45 of the distance of the eyes: 1 / e
        assert focus[39, int((mouth - 9) / 2)] == pytest.approx(np.exp(-1), abs=0.1)
        assert focus[:10].max() < 1e-3 and focus[60:].max() < 1e-3


def test_a_step_has_the_same_batch_again():
    one, two = (PairBatches(Sliding(), 4, 3)(7, range(4)) for _ in range(2))
    other = PairBatches(Sliding(), 4, 3)(8, range(4))
    assert torch.equal(one.frames, two.frames) and not torch.equal(one.frames, other.frames)
    part = PairBatches(Sliding(), 4, 3)(7, range(2, 4))
    assert torch.equal(one.frames[2:], part.frames)


def test_an_affine_motion_is_rigid_and_a_mouth_is_not():
    y, x = torch.meshgrid(torch.linspace(-1, 1, GRID), torch.linspace(-1, 1, GRID), indexing="ij")
    flow = torch.stack([0.02 + 0.05 * x - 0.01 * y, 0.03 * y])[None]
    seen = (x.square() + y.square() < 0.6).float()[None, None]
    assert non_rigid(flow, seen).max() < 0.02
    flow[:, 1, 44:48, 28:36] += 4 / 128  # 4 pixels down, in 32 cells of about 1900
    own = non_rigid(flow, seen)[0, 0]
    assert own[44:48, 28:36].mean() == pytest.approx(4, abs=0.3)
    assert own[:40].mean() < 0.3


def test_shares_are_held_against_what_the_photo_hides():
    """A hidden square in the window, and one beside it; each share right, then wrong in one place."""
    hidden = torch.zeros(1, 1, GRID, GRID)
    hidden[..., 40:48, 20:28] = hidden[..., 4:8, 4:8] = 1
    focus, window = torch.zeros(1, 1, GRID, GRID), SMALL.window
    share = torch.nn.functional.avg_pool2d(hidden, 2)
    inner = hidden[..., 16:56, 12:52].repeat_interleave(2, 2).repeat_interleave(2, 3)
    flow, inner_flow = torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 40, 40)

    def errors(share: torch.Tensor, inner: torch.Tensor) -> list[float]:
        maps = motion.Maps(flow, share.expand(-1, 4, -1, -1), inner_flow, inner.expand(-1, 4, -1, -1))
        return [float(e) for e in share_errors(maps, hidden, focus, window)]

    # Of the picture's 4096 points 80 are hidden, and of the window's 1600 are 64: each weighs five times as much.
    whole, part = 1 + 4 * 80 / 4096, 1 + 4 * 64 / 1600
    least = -np.log(1 - 1e-3)  # of a share that is right
    assert errors(share, inner) == pytest.approx([whole * least, part * least], rel=1e-3)
    wrong = share.clone()
    wrong[..., 2:4, 2:4] = 0  # 4 of 1024 cells, all hidden
    assert errors(wrong, inner)[0] == pytest.approx(whole * least + 5 * 4 / 1024 * (-np.log(1e-3) - least), rel=1e-3)
    assert errors(share, torch.full_like(inner, 0.5)) == pytest.approx([whole * least, part * np.log(2)], rel=1e-3)
    focus[..., 40:48, 20:28] = 1  # where a mouth is, what is hidden weighs 5 + 8 x 4
    assert errors(share, torch.full_like(inner, 0.5))[1] == pytest.approx((part + 32 * 64 / 1600) * np.log(2), rel=1e-3)


def test_a_decoder_learns_to_slide():
    """Of the flow that is to be found, an untrained decoder gets nothing and one of a few steps most."""
    torch.manual_seed(0)
    decoder = motion.MotionDecoder(SMALL)
    name_memories(decoder)
    stage = MotionDecoderStage(decoder, 8, TrainingConfig(motion_model(), precision="fp32"))
    batches = PairBatches(Sliding(), 2, 0, frames=2)
    optimiser = torch.optim.Adam(decoder.parameters(), 1e-2)
    errors = []
    for step in range(60):
        terms = stage(batches(step, range(2)))
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        errors.append(float(terms["flow"].detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    # |flow| of 6 to 18 pixels, halved by the mean over x and y: about 6 at first
    assert np.mean(errors[:3]) > 4 and np.mean(errors[-10:]) < 0.7 * np.mean(errors[:3])
    assert np.isfinite(errors).all()


def test_true_maps_have_little_loss(monkeypatch):
    """What the photo shows is moved, what it hides is painted; the other way round, and unmoved, nothing is right."""
    batch = batch_of(0)
    decoder = motion.MotionDecoder(SMALL)
    stage = MotionDecoderStage(decoder, 8, TrainingConfig(motion_model(), precision="fp32"))
    photo = batch.photo.repeat_interleave(3, 0)
    target, flow, hidden = (x.flatten(0, 1) for x in (batch.frames, batch.flow, (batch.visible == HIDDEN).float()))

    def terms(flow: torch.Tensor, share: torch.Tensor) -> dict[str, float]:
        paint = torch.cat([share, share * motion_pairs.larger(target, GRID)], 1)
        inner = motion_pairs.larger(paint[..., 16:56, 12:52], 80)
        small = (torch.nn.functional.avg_pool2d(x, 2) for x in (flow, paint))
        maps = motion.Maps(*small, torch.zeros(12, 2, 40, 40), inner)
        monkeypatch.setattr(stage, "maps", lambda batch: (photo, maps))
        return {name: float(term) for name, term in stage(batch).items()}

    true, unmoved, inverse = terms(flow, hidden), terms(0 * flow, hidden), terms(flow, 1 - hidden)
    # At its border a head of 32 cells a side takes part of its flow from the wall, 2 of 16 cells of the coarse map.
    assert true["flow"] < 0.3 * unmoved["flow"]
    assert true["share"] < 0.2 and inverse["share"] > 3
    assert true["pixels"] < 0.5 * unmoved["pixels"] and true["moved"] < unmoved["moved"]


def test_each_frame_is_made_of_its_own_photo(monkeypatch):
    """The maps of two people are those of each alone."""
    for name in ("NOISE", "SHARED", "SPEED"):
        monkeypatch.setattr(motion_decoder, name, 0.0)
    torch.manual_seed(0)
    decoder = motion.MotionDecoder(SMALL)
    name_memories(decoder)
    for last in (decoder.flow.coarse, decoder.flow.inner, decoder.painter.conv_out, decoder.flow.memory.conv):
        torch.nn.init.normal_(last.weight, std=0.2)
    stage = MotionDecoderStage(decoder, 8, TrainingConfig(motion_model(), precision="fp32"))
    batches = PairBatches(Sliding(), 2, 0, frames=2)

    def people(rows: range) -> PairBatch:
        """Whose labels differ, those of the photos, too."""
        batch = batches(0, rows)
        batch.labels.add_(torch.tensor(list(rows)).view(-1, 1, 1))
        return batch

    with torch.no_grad():
        photos, both = stage.maps(people(range(2)))
        alone = [stage.maps(people(range(n, n + 1))) for n in range(2)]
    assert torch.equal(photos, torch.cat([photo for photo, _ in alone]))
    for whole, *parts in zip(both, *(maps for _, maps in alone)):
        torch.testing.assert_close(whole, torch.cat(parts), atol=1e-4, rtol=0)
        assert (parts[0] - parts[1]).abs().max() > 1e-3


def test_an_encoder_that_reads_the_labels_has_no_loss(monkeypatch):
    torch.manual_seed(0)
    encoder = motion.MotionEncoder(SMALL)
    stage = MotionEncoderStage(encoder, TrainingConfig(motion_model(), precision="fp32"))
    batch = PictureBatches(PairBatches(Sliding(), 2, 0))(0, range(2))
    assert batch.pictures.shape == (8, 3, 128, 128) and batch.labels.shape == (8, 14)
    assert float(stage(batch)["loss"]) > 0.1
    true = (batch.labels @ labels_to_codes(8).T).view(8, 8, 4, 4)
    monkeypatch.setattr(encoder, "codes", lambda pictures: true)
    assert float(stage(batch)["loss"]) < 1e-9
    # what stands for no label counts, too
    beside = torch.linalg.svd(labels_to_codes(8).T)[2][-1].view(1, 8, 4, 4)
    monkeypatch.setattr(encoder, "codes", lambda pictures: true + 3 * beside)
    assert float(stage(PictureBatch(batch.pictures, batch.labels))["loss"]) == pytest.approx(0.1 * 9 / 128, rel=1e-3)


@pytest.mark.parametrize("columns", [13, 14], ids=["drawn", "heads"])
def test_frames_of_clips_stand_beside_heads(columns):
    """Drawn faces have no smile."""
    clips = SimpleNamespace(
        video=np.zeros((2, 3, 128, 128, 3), np.uint8),
        motion=np.arange(2 * 3 * columns, dtype=np.float32).reshape(2, 3, columns),
        pixels=lambda clip, frames: torch.zeros(3, 1, 128, 128),
    )
    batch = PictureBatches(PairBatches(Sliding(), 2, 0, frames=1), clips, drawn=3)(0, range(2))
    assert batch.pictures.shape[0] == 2 * 2 + 2 * 3
    for row in batch.labels[4:] / scales():
        assert float(row[0]) % columns == pytest.approx(0, abs=1e-4)
        torch.testing.assert_close(row[:columns].diff(), torch.ones(columns - 1), atol=1e-4, rtol=0)
        assert columns == 14 or row[13] == 0


@pytest.mark.parametrize(
    "words, says",
    [
        ("pairs", "--pairs: expected a folder for pairs, got none"),
        ("pairs --pairs IN --count 0", "--count: expected a whole number of at least 1, got 0"),
        ("pairs --pairs IN --workers -1", "--workers: expected a whole number of at least 0, got -1"),
        ("decoder --pairs IN --out IN --steps 0", "--steps: expected a whole number of at least 1, got 0"),
        ("decoder --pairs IN --out IN --clips IN", "--clips: expected it with encoder, got it with decoder"),
        ("decoder --pairs IN --out IN", "IN: expected pairs with pairs.json (write_pairs), found none"),
        ("join --out IN", "IN/decoder.safetensors: expected weights of the motion VAE, got no file"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["motion_vae", *words.replace("IN", str(tmp_path)).split()])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.raises(SystemExit) as stopped:
        motion_vae.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"motion_vae: error: {says.replace('IN', str(tmp_path))}"


def test_weights_that_are_none_of_a_motion_vae(tmp_path):
    (tmp_path / "none").write_text("none")
    with pytest.raises(CheckpointError, match="none: expected weights of the motion VAE in safetensors, got "):
        motion_vae.load(tmp_path / "none")
    motion_vae.write(torch.nn.Linear(2, 2), tmp_path / "half")
    with pytest.raises(
        CheckpointError, match=r"half: expected the motion VAE's \d+ weights, got others in \d+ places, bias "
    ):
        motion_vae.load(tmp_path / "half")
    for part in ("decoder", "encoder"):
        motion_vae.write(torch.nn.Linear(2, 2), tmp_path / f"{part}.safetensors")
    with pytest.raises(CheckpointError, match=r"expected the motion VAE's \d+ weights"):
        motion_vae.join(tmp_path)
    assert not (tmp_path / "vae.safetensors").exists()


def test_a_training_goes_on_from_an_earlier_file(tmp_path):
    """By steps too small to see: the half that is trained is the earlier one, and so is the half that is not."""
    torch.manual_seed(3)
    earlier, out = TemporalVAE(motion_model()), tmp_path / "out"
    for part in motion_vae.STAGES:
        motion_vae.write(getattr(earlier, part), tmp_path / f"{part}.safetensors")
    init = motion_vae.join(tmp_path)
    write_pairs(tmp_path / "pairs", 2, frames=2, size=128, grid=64, workers=1)
    settings = {"steps": 1, "rate": 1e-12, "batch": 1}
    motion_vae.train("decoder", tmp_path / "pairs", out, init=init, precision="fp32", **settings)
    assert not (out / "encoder.safetensors").exists()
    before, after = load_file(init), load_file(motion_vae.join(out, init))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
