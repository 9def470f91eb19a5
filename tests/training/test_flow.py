"""What a step draws and what the DiT sees of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rest_fast.config import preset
from rest_fast.model import Model
from rest_fast.streaming.schedule import logit_normal_table
from rest_fast.training.config import Corruption, TrainingConfig, training_preset
from rest_fast.training.flow import (
    Batch,
    FlowData,
    Network,
    clip_codes,
    draw_dropouts,
    flow_loss,
    frames_after_reference,
    pick,
    token_weights,
)
from rest_fast.training.shards import FRAMES, DataError, Shards
from rest_fast.training.synthetic.clips import LEAD, TAIL
from rest_fast.training.teacher import Teacher
from rest_fast.units import FRAME
from tests.kit.clips import small, write_clips
from tests.kit.compare import assert_same_bits
from tests.kit.models import randomise

CLIPS = 5
FLOW = ("features", "latents")


def config_of(**changes) -> TrainingConfig:
    return training_preset("toy").replace(model=small(), precision="fp32", **changes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return Shards(write_clips(tmp_path_factory.mktemp("flow"), small(), CLIPS, fields=FLOW))


def draw(shards: Shards, step: int = 0, batch: int = 4, rows: range | None = None, **changes) -> Batch:
    return FlowData(config_of(**changes), shards, shards, batch)(step, rows or range(batch))


# -- which clips


@pytest.mark.parametrize("clips, batch", [(5, 2), (4, 4), (3, 7), (1, 3), (12, 5)])
def test_every_epoch_goes_through_all_clips_once(clips, batch):
    epochs = 6
    picked = [clip for step in range(clips * epochs) for clip in pick(clips, batch, 3, step)]
    assert len(picked) == clips * epochs * batch
    orders = [tuple(picked[i : i + clips]) for i in range(0, len(picked), clips)]
    assert all(sorted(order) == list(range(clips)) for order in orders)
    if clips > 3:
        assert len(set(orders)) > 1 and pick(clips, clips, 3, 0) != pick(clips, clips, 4, 0)


# -- what a step draws


def test_a_step_is_its_number(shards):
    first, again, other, seeded = (draw(shards, s, **c) for s, c in ((3, {}), (3, {}), (4, {}), (3, {"seed": 1})))
    for name, tensor in vars(first).items():
        assert_same_bits(getattr(again, name), tensor, name)
    for unlike in (other, seeded):
        assert not torch.equal(unlike.noise, first.noise) and not torch.equal(unlike.t, first.t)
        assert not torch.equal(unlike.roll, first.roll)
    assert abs(first.noise.mean()) < 0.1 and first.noise.std().item() == pytest.approx(1, abs=0.05)
    rows = first.noise.flatten(1)
    assert torch.corrcoef(torch.cat([rows, other.noise.flatten(1)])).fill_diagonal_(0).abs().max() < 0.2


@pytest.mark.parametrize("step", [0, 7])
def test_rows_of_a_step_are_the_same_whoever_draws_them(shards, step):
    """However accumulation and processes cut the batch."""
    whole = draw(shards, step)
    for cuts in ([range(0, 2), range(2, 4)], [range(i, i + 1) for i in range(4)]):
        parts = [draw(shards, step, rows=rows) for rows in cuts]
        for name, tensor in vars(whole).items():
            assert_same_bits(torch.cat([getattr(part, name) for part in parts]), tensor, name)


def test_a_batch_is_the_clips_that_were_picked(shards):
    batch = draw(shards, 2)
    index = pick(CLIPS, 4, 0, 2)
    assert torch.equal(batch.z0, shards.read("latents", index).float())
    assert torch.equal(batch.features, shards.read("features", index).float())
    assert batch.z0.dtype == batch.features.dtype == torch.float32 and batch.features.shape == (4, 96, 20, 80)


@pytest.mark.parametrize("synchronous", [0.0, 1.0, 0.5])
def test_timesteps_of_a_batch(shards, synchronous):
    """CANS of the model's own distribution, one timestep for the three latents of a chunk, the reference at 0."""
    t = torch.cat([draw(shards, s, 8, corruption__synchronous=synchronous).t for s in range(12)])
    assert t.shape == (96, 13) and not t[:, 0].any()
    chunks = t[:, 1:].unflatten(1, (4, 3))
    assert torch.equal(chunks.amin(-1), chunks.amax(-1))
    together = (chunks[:, 0, 0] == chunks[:, 3, 0]).float().mean().item()
    assert together == pytest.approx(synchronous, abs=0 if synchronous in (0, 1) else 0.2)  # 4 deviations of 96
    sampling = small().sampling
    table = logit_normal_table(sampling.train_mu, sampling.train_sigma).float()
    assert torch.isin(chunks, table).all()
    if synchronous == 0:
        quarters = table.unflatten(0, (4, -1))
        for i in range(4):
            assert quarters[i, 0] <= chunks[:, i].min() and chunks[:, i].max() <= quarters[i, -1]


@pytest.mark.parametrize(
    "what", [Corruption(), Corruption(0.05, 0.2, 0.1), Corruption(0, 0, 1), Corruption(0.5, 0.5, 0)]
)
def test_shares_of_what_is_dropped(what):
    n = 4000
    reference, audio = draw_dropouts(what, n, torch.Generator().manual_seed(0))
    assert set(reference.tolist()) <= {0.0, 1.0} and reference.dtype == torch.float32
    kept = 1 - what.reference - what.audio - what.both
    cases = {(0, 0): what.both, (0, 1): what.reference, (1, 0): what.audio, (1, 1): kept}
    for (r, a), share in cases.items():
        got = ((reference == r) & (audio == a)).float().mean().item()
        assert abs(got - share) <= 4 * (share * (1 - share) / n) ** 0.5 + 1e-9


def test_data_that_does_not_fit(tmp_path, shards):
    config = config_of()
    for missing, there in (("latents", "features"), ("features", "latents")):
        other = Shards(write_clips(tmp_path / there, small(), 2, fields=[there]))
        with pytest.raises(DataError, match=rf"expected clips with {missing}, found \['{there}'\]"):
            FlowData(config, other, other, 2)
    with pytest.raises(ValueError, match="expected latents of 5 clips, got 2"):
        FlowData(config, shards, other, 2)
    wide = config.replace(model__speech__positions=24)
    with pytest.raises(DataError, match=r"features of another configuration: expected speech.positions 24 \(got 20\)"):
        FlowData(wide, shards, shards, 2)


# -- what the DiT sees


class Oracle(nn.Module):
    """In place of the DiT: knows the clean latents, so it reads the velocity (z - z0) / t off every noised frame."""

    def __init__(self, z0: torch.Tensor, tokens: int, add: torch.Tensor | float = 0.0):
        super().__init__()
        self.z0, self.tokens, self.add, self.seen = z0, tokens, add, []

    def forward(self, z, t, codes, layout, context):
        self.seen.append(SimpleNamespace(z=z, t=t, codes=codes, layout=layout, context=context))
        v = (z - self.z0) / t.repeat_interleave(self.tokens, 1)[..., None]
        v[:, : self.tokens] = 1e6  # frame 0 is the reference: its velocity means nothing
        return v + self.add


def seen(batch: Batch, add: torch.Tensor | float = 0.0) -> tuple[SimpleNamespace, float]:
    """What an oracle sees of a batch, and the loss of what it says."""
    model = Model(small()).requires_grad_(False)
    oracle = model.dit = Oracle(batch.z0, 4, add)
    v = Network(model)(batch, "streaming")
    return oracle.seen[0], flow_loss(v, batch, token_weights(small(), 3.0)).item()


def test_the_loss_of_the_true_velocity_is_zero(shards):
    batch = draw(shards)
    assert seen(batch)[1] < 1e-7  # a difference of fp32 divided by t > 0.01
    assert seen(batch, 0.1)[1] == pytest.approx(0.01, rel=1e-2)
    add = torch.zeros(13 * 4, 1)
    add[7 * 4 + 2] = 1  # one token of the lower face in one of 12 frames
    assert seen(batch, add)[1] == pytest.approx(1.5 / (12 * 4), rel=1e-2)
    add = torch.zeros(13 * 4, 1)
    add[:4] = 1  # the reference's velocity means nothing
    assert seen(batch, add)[1] < 1e-7


def test_what_the_dit_sees(shards):
    """(1 - t) z0 + t noise; the reference clean or zero, and the codes of the sound or zeros, as the batch says."""
    keep = {"corruption__reference": 0.3, "corruption__audio": 0.3, "corruption__both": 0.1}
    batch = draw(shards, batch=24, **keep)
    got, _ = seen(batch)
    assert got.layout == "streaming" and torch.equal(got.t, batch.t) and got.context is None
    model = Model(small()).requires_grad_(False)
    pairs = set()
    for row in range(24):
        r, a = batch.keep_reference[row].item(), batch.keep_audio[row].item()
        pairs.add((r, a))
        torch.testing.assert_close(got.z[row, :4], r * batch.z0[row, :4], rtol=0, atol=0)
        for frame in range(1, 13):
            t, at = batch.t[row, frame], slice(4 * frame, 4 * frame + 4)
            want = batch.z0[row, at] + t * (batch.noise[row, at] - batch.z0[row, at])
            torch.testing.assert_close(got.z[row, at], want, rtol=0, atol=2e-6)
        assert bool(got.codes[row, 1:].any()) == bool(a)
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert got.codes.shape == (24, 13, 4, 16) and not got.codes[:, 0].any()
    assert clip_codes(model.speech, batch.features[:1]).shape == (1, 12, 4, 16)


def test_weights_of_the_lower_face():
    """A mean of 1, and three times as much where the mouth is."""
    for config, lower in ((preset("demo"), [9, 10, 13, 14]), (small(), [2, 3])):
        weight = token_weights(config, 3.0)
        assert weight.mean().item() == pytest.approx(1) and len(weight) == config.tokens
        heavy = (weight > 1.5 * weight.min()).nonzero().flatten().tolist()
        assert heavy == lower and weight.max() / weight.min() == pytest.approx(3)
        assert torch.equal(token_weights(config, 1.0), torch.ones(config.tokens))


def test_frames_after_the_reference():
    v = torch.arange(2 * 12 * 5).view(2, 12, 5)  # 3 frames of 4 tokens
    got = frames_after_reference(v, 4)
    assert got.shape == (2, 2, 20)
    assert torch.equal(got[1, 0], v[1, 4:8].flatten()) and torch.equal(got[0, 1], v[0, 8:].flatten())


def test_codes_hear_their_own_frames():
    """Latent k shows frames 8k - 7 to 8k: their sound moves its code, and that of no latent further away than the
    window of a frame reaches."""
    model = Model(small()).requires_grad_(False)
    samples = 0.1 * torch.randn(1, LEAD + FRAMES * FRAME + TAIL, generator=torch.Generator().manual_seed(0))
    side = model.config.speech.side_ms / 40
    assert side == 2

    def codes(samples: torch.Tensor) -> torch.Tensor:
        heard = samples[:, LEAD + FRAME - model.features.back : LEAD + FRAMES * FRAME + model.features.ahead]
        return clip_codes(model.speech, model.features(heard))[0]

    whole = codes(samples)
    assert whole.shape == (12, 4, 16)
    for frame in (0, 1, 4, 8, 9, 37, 92, 96):
        other = samples.clone()
        other[:, LEAD + frame * FRAME : LEAD + (frame + 1) * FRAME] *= -0.5
        changed = (codes(other) != whole).flatten(1).any(1).nonzero().flatten().tolist()
        if frame:
            assert (frame - 1) // 8 in changed
        # beside the window's own reach, log-mel frames of 25 ms begin before and end after their position; codes see
        # what the encoder's convolutions remember, which is the past
        assert min(changed, default=0) >= max(0, (frame - 1 - side - 1) // 8)


def test_precision_is_that_of_the_computation(shards):
    """bf16 moves the loss by some 2^-8 of it, and leaves weights and gradients in fp32."""
    model = Model(small()).requires_grad_(False)
    randomise(model.dit)
    model.dit.requires_grad_(True)
    batch, found = draw(shards), {}
    for precision in ("fp32", "bf16"):
        stage = Teacher(model, config_of().replace(precision=precision))
        loss = stage(batch)["loss"]
        loss.backward()
        assert loss.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in model.dit.parameters())
        found[precision] = loss.item()
    assert found["bf16"] != found["fp32"] and found["bf16"] == pytest.approx(found["fp32"], rel=0.02)
