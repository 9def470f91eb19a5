"""A causal decoder out of one that is not: what it begins with, what a step sees and what it learns from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio

from rest_fast.config import preset
from rest_fast.models.vae.layers import CausalConv3d
from rest_fast.models.vae.ltx import Upsampler
from rest_fast.models.vae.state import StreamState
from rest_fast.training import causal_decoder as subject
from rest_fast.training import losses
from rest_fast.training.causal_decoder import CausalDecoder, DecoderData, measure, merge_future_taps, piece_loss
from rest_fast.training.config import TrainingConfig, training_preset
from rest_fast.training.flow import pick, stage_seed
from rest_fast.training.shards import Manifest, Shards
from tests.kit.clips import write_clips
from tests.kit.compare import assert_same_bits
from tests.kit.models import video
from tests.kit.teachers import RICH, teacher_of


def config_of(**changes) -> TrainingConfig:
    fields = {f"causal_decoder__{name}": value for name, value in changes.items()}
    return training_preset("toy").replace(precision="fp32", **fields)


def batch_of(frames: int, plan: list[int], rows: int = 2, dtype: torch.dtype = torch.float32) -> subject.DecoderBatch:
    g = torch.Generator().manual_seed(7)
    pixels = torch.rand(rows, 3, frames, 64, 64, generator=g).to(dtype) * 2 - 1
    return subject.DecoderBatch(pixels, list(range(5, 5 + rows)), plan)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Shards:
    return Shards(write_clips(tmp_path_factory.mktemp("clips"), preset("toy"), 4, fields=["video"]), "train")


# -- what it begins with


def test_a_convolution_with_merged_taps_shows_the_newest_frame_as_if_it_stayed():
    """What the symmetric one would show of the newest frame if the clip ended there, its last frame repeated."""
    torch.manual_seed(0)
    conv, x = CausalConv3d(3, 4).double().requires_grad_(False), torch.randn(1, 3, 6, 5, 5, dtype=torch.float64)
    want = torch.cat([conv(x[:, :, : t + 1], StreamState(1))[:, :, -1:] for t in range(6)], 2)
    merge_future_taps(conv)
    torch.testing.assert_close(conv(x, StreamState(2)), want, rtol=0, atol=1e-13)


def test_an_unchanged_convolution_shows_the_frame_before():
    torch.manual_seed(0)
    conv, x = CausalConv3d(3, 4).double().requires_grad_(False), torch.randn(1, 3, 6, 5, 5, dtype=torch.float64)
    inside = F.conv3d(x, conv.weight, conv.bias, padding=(0, 1, 1))  # of frames 1 to 4
    torch.testing.assert_close(conv(x, StreamState(2))[:, :, 2:], inside, rtol=0, atol=1e-13)


@pytest.mark.parametrize("start", ["folded", "unchanged"])
def test_what_stands_still_is_decoded_as_before(start):
    """Where time changes nothing, no tap matters by itself: one latent, and a still clip whose upsamplers make the two
    frames of a pair alike (in general they differ, and then the clip moves behind the first upsampler)."""
    teacher = teacher_of(decoder_residual=False, **RICH).double()
    z = torch.randn(1, 8, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student, still = subject.causal_copy(teacher, start), z.expand(-1, -1, 5, -1, -1)

    def both(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = teacher.decoder.images(latents, 3)
        return tuple(
            vae.decoder(latents, StreamState(past, images=images)) for vae, past in ((teacher, 1), (student, 2))
        )

    torch.testing.assert_close(*both(z), rtol=0, atol=1e-12)
    assert (torch.sub(*both(still))).abs().max() > 0.1
    for vae in (teacher, student):
        for up in vae.decoder.blocks:
            if isinstance(up, Upsampler):
                for tensor in (up.conv.weight, up.conv.bias):
                    pairs = tensor.view(up.channels, 2, -1)
                    pairs[:, 1] = pairs[:, 0]
    got = both(still)
    assert got[0].shape[2] == 33 and got[0].std() > 0.1
    torch.testing.assert_close(*got, rtol=0, atol=1e-12)


def test_a_copy_shares_the_encoder_and_leaves_the_teacher_alone():
    teacher = teacher_of(**RICH)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = subject.causal_copy(teacher, "folded")
    assert student.encoder is teacher.encoder and student.causal and not teacher.causal
    assert dataclasses.replace(student.config, causal_decoder=False) == teacher.config
    other = subject.causal_copy(teacher, "unchanged").decoder.state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in teacher.decoder.state_dict().items())
    assert not torch.equal(student.decoder.conv_in.weight, other["conv_in.weight"])
    student.decoder.conv_in.bias.add_(1)
    for name, tensor in teacher.state_dict().items():
        assert_same_bits(tensor, before[name], name)


# -- what a step sees


def test_pieces_add_up_to_the_loss_of_the_clip():
    got, want = video(teacher_of(), 17, 2).float(), video(teacher_of(), 17, 2, seed=1).float()
    for lengths in ([17], [1, 16], [1, 8, 8], [9, 8]):
        before, total = None, torch.zeros(())
        for error in (got - want).split(lengths, 2):
            total, before = total + piece_loss(error, before, 17), error[:, :, -1:]
        torch.testing.assert_close(total, losses.pixel_loss(got, want), rtol=1e-6, atol=0)


def test_stretches_begin_anywhere_and_spare_the_clip_that_is_measured(clips):
    config = config_of(batch=3, latents=5, piece=3)
    held, index, count = subject.held_out(clips)
    assert (held is clips, index, count) == (True, 3, 3)
    data, seed = DecoderData(clips, count, config), stage_seed(0, "causal-decoder")
    starts, plans = set(), set()
    for step in range(12):
        whole, picked = data(step, range(3)), pick(3, 3, seed, step)
        assert whole.frames.shape == (3, 3, 33, 64, 64) and set(picked) == {0, 1, 2}
        for row, clip in enumerate(picked):
            frames = clips.pixels(clip)
            at = [i for i in range(65) if torch.equal(frames[:, i : i + 33], whole.frames[row])]
            assert len(at) == 1
            starts.add(at[0])
        plans.add(tuple(whole.plan))
        parts = [data(step, range(i, i + 1)) for i in range(3)]
        assert_same_bits(torch.cat([part.frames for part in parts]), whole.frames)
        assert [part.seeds[0] for part in parts] == whole.seeds and all(part.plan == whole.plan for part in parts)
    assert len(starts) > 20 and len(plans) > 4
    assert {n for plan in plans for n in plan} == {1, 2, 3} and {sum(plan) for plan in plans} == {5}


def test_a_validation_split_is_measured_where_there_is_one(tmp_path):
    write_clips(tmp_path, preset("toy"), 4, fields=["video"])
    manifest = Manifest.load(tmp_path)
    manifest.shards[1]["split"] = "validation"
    manifest.save(tmp_path)
    held, index, count = subject.held_out(Shards(tmp_path, "train"))
    assert index == 0 and count == 2
    assert torch.equal(held.pixels(0), Shards(tmp_path).pixels(2))


def test_both_decoders_read_the_latents_of_the_encoder():
    """Normalised, noise mixed in by a seed of the row's own, and undone again: as a decode does it."""
    teacher, batch = teacher_of(**RICH), batch_of(17, [3])
    z, images = CausalDecoder(teacher, config_of()).latents(batch)
    for row, seed in enumerate(batch.seeds):
        own = teacher.encode(batch.frames[row : row + 1])
        torch.testing.assert_close(z[row : row + 1], teacher.denormalised(own, 0, seed), rtol=1e-5, atol=1e-5)
        want = teacher.decoder.images(own, seed)
        assert set(want) == set(images) and len(want) == 4
        assert all(torch.equal(images[path][row], image[0]) for path, image in want.items())
    quiet = teacher_of()
    moments = quiet.encoder(batch.frames, StreamState())
    drawn, _ = CausalDecoder(quiet, config_of(sampled=True)).latents(batch)
    noise = (drawn - moments[:, :8]) / (0.5 * moments[:, 8:]).exp()
    assert noise.mean().abs() < 0.2 and 0.8 < noise.std() < 1.2 and not torch.equal(noise[0], noise[1])


# -- what it learns from


def test_one_piece_has_the_gradient_of_the_whole_loss():
    """Of a teacher that sees the future, decoded whole, and of the clip itself.

    In float64: the slope of |x| turns at 0, and rounding decides on which side a float32 error of nearly 0 lies. The
    stage rounds what the student makes to float32, so its gradients are good to some 1e-7.
    """
    teacher, batch = teacher_of().double(), batch_of(17, [3], dtype=torch.float64)
    stage = CausalDecoder(teacher, config_of(truth=0.5))
    terms = stage(batch)
    (3 * terms["loss"]).backward()
    parameters = list(stage.student.decoder.parameters())
    z = teacher.encode(batch.frames)
    made = stage.student.stream(mode="causal").decode(z).float()
    shown = teacher.decode(z, mode="exact")
    want = [losses.pixel_loss(made, shown), losses.pixel_loss(made, batch.frames)]
    torch.testing.assert_close(torch.stack([terms["teacher"], terms["truth"]]), torch.stack(want).detach())
    torch.testing.assert_close(terms["loss"], (want[0] + 0.5 * want[1]).detach())
    for p, g in zip(parameters, torch.autograd.grad(3 * (want[0] + 0.5 * want[1]), parameters), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-6 * g.abs().max().item())
    assert {name.split(".")[0] for name, p in stage.named_parameters() if p.requires_grad} == {"student"}


def test_pieces_change_no_loss_and_cut_the_gradient():
    """The first pieces learn from their own frames alone: what they see is what a shorter clip would show them."""
    stage = CausalDecoder(teacher_of(**RICH), config_of())
    found = []
    for plan in ([3], [1, 2], [1, 1, 1]):
        stage.zero_grad()
        terms = stage(batch_of(17, plan))
        terms["loss"].backward()
        found.append((terms["loss"].detach(), stage.student.decoder.conv_in.weight.grad.clone()))
    for value, _ in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-5, atol=0)
    assert all((g - found[0][1]).abs().max() > 1e-3 * g.abs().max() for _, g in found[1:])


def test_each_piece_adds_its_own_gradient():
    """Piece by piece from the memory that a stream without gradients has left, with everything that a release has; in
    float64, as above."""
    stage = CausalDecoder(teacher_of(**RICH).double(), config_of(truth=0.0))
    batch = batch_of(17, [1, 2], rows=1, dtype=torch.float64)
    stage(batch)["loss"].backward()
    parameters = dict(stage.student.decoder.named_parameters())
    got = {name: p.grad.clone() for name, p in parameters.items()}
    stage.zero_grad()
    z = stage.teacher.encode(batch.frames)
    streams = [stage.student.stream(mode="causal", seed=batch.seeds[0]) for _ in range(2)]
    wanted = stage.teacher.decode(z, mode="exact", seed=batch.seeds[0])
    with torch.no_grad():
        first = streams[0].decode(z[:, :, :1]).float() - wanted[:, :, :1]
    piece_loss(streams[1].decode(z[:, :, :1]).float() - wanted[:, :, :1], None, 17).backward()
    piece_loss(streams[0].decode(z[:, :, 1:]).float() - wanted[:, :, 1:], first, 17).backward()
    for name, p in parameters.items():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-5, atol=1e-6 * p.grad.abs().max().item(), msg=name)


def test_memory_is_that_of_a_piece():
    """What is kept for gradients, most at once: it grows with the pieces, and not with the clip."""

    class Kept:
        now = most = 0

        def __init__(self, tensor: torch.Tensor):
            self.tensor = tensor
            Kept.now += tensor.nbytes
            Kept.most = max(Kept.most, Kept.now)

        def __del__(self):
            Kept.now -= self.tensor.nbytes

    stage, most = CausalDecoder(teacher_of(**RICH), config_of()), {}
    for plan in ([1] * 3, [1] * 6, [6]):
        Kept.now = Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            stage(batch_of(8 * sum(plan) - 7, plan, rows=1))["loss"].backward()
        most[len(plan)] = Kept.most
    assert most[6] < 1.05 * most[3] and most[1] > 4 * most[6]


def test_rows_do_not_see_each_other():
    """What makes several processes the same as one: a batch's loss is the mean of its rows'."""
    stage, batch = CausalDecoder(teacher_of(**RICH), config_of()), batch_of(17, [1, 2])
    rows = [subject.DecoderBatch(batch.frames[i : i + 1], batch.seeds[i : i + 1], batch.plan) for i in range(2)]
    with torch.no_grad():
        means = torch.stack([stage(row)["loss"] for row in rows]).mean()
        torch.testing.assert_close(stage(batch)["loss"], means, rtol=1e-5, atol=0)


def test_what_is_measured(clips):
    """dB between what a viewer of the stream sees and what the teacher shows of the whole clip, range -1..1."""
    stage, frames = CausalDecoder(teacher_of(), config_of()), clips.pixels(3, slice(0, 17))
    values = measure(stage, frames)
    with torch.no_grad():
        z = stage.teacher.encode(frames[None])
        want = stage.teacher.decode(z, mode="exact").clamp(-1, 1).numpy()
        stream = stage.student.stream(mode="causal")
        got = torch.cat([stream.decode(part) for part in z.split(1, 2)], 2).clamp(-1, 1).numpy()
    pairs = {
        "psnr": (want, got),
        "psnr_first": (want[:, :, 0], got[:, :, 0]),
        "psnr_truth": (frames[None].numpy(), got),
        "psnr_teacher_truth": (frames[None].numpy(), want),
    }
    for name, pair in pairs.items():
        assert values[name] == pytest.approx(peak_signal_noise_ratio(*pair, data_range=2), abs=1e-3), name
    single = [peak_signal_noise_ratio(want[:, :, i], got[:, :, i], data_range=2) for i in range(17)]
    assert values["psnr_worst"] == pytest.approx(min(single), abs=1e-3)
