"""FlashHead's memory plan against the tensors of real objects: a model, a sampler, networks, a stream."""

from __future__ import annotations

import functools

import pytest
import torch

from rest_fast import cli, ops
from rest_fast.config import ConvVAEConfig
from rest_fast.config.flashhead import FlashHeadConfig
from rest_fast.errors import ArgumentError
from rest_fast.model import FlashHeadModel
from rest_fast.streaming import budget
from rest_fast.streaming.flashhead import FlashHeadSampler, FlashHeadStream, Networks
from rest_fast.streaming.plan import memory_plan
from rest_fast.streaming.windows_plan import peak
from tests.kit import flashhead
from tests.kit.models import randomise
from tests.kit.streams import play
from tests.kit.toys import photo, sound

CONFIG = flashhead.toy(height=32, width=32)


@functools.cache
def planned(**options):
    return memory_plan(CONFIG, sessions=3, lanes=2, dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def model() -> FlashHeadModel:
    toy = FlashHeadModel(CONFIG, threads=1)
    randomise(toy, 5)
    toy.vae.pack()
    return toy.requires_grad_(False).eval()


def test_weights_slots_and_lanes(model):
    plan, step = planned(), FlashHeadSampler.of(model, CONFIG.sampling, 3, lanes=2).step
    assert plan.weights == sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    pools = (step.z, step.fresh, step.reference, *(x for kv in step.audio for x in kv))
    assert 4 * plan.slot == sum(x.nbytes for x in pools)  # one more for idle lanes, which is a constant
    assert plan.constants > plan.slot + step.modulations.vectors.nbytes
    work = step.work
    buffers = sum(x.nbytes for x in (work.x, work.y, work.q, work.out, work.k, work.v))
    assert buffers < 2 * plan.per_lane < 4 * buffers + 2 * plan.slot


def test_networks_take_what_they_take_on_a_device(model):
    """The same count of what lives, of real tensors: meta tensors have the same shapes and the same order of calls."""
    networks, plan = Networks(model), planned()
    parts = (networks.hear, networks.encode, networks.show)
    with ops.use_backend("reference"):
        most = max(peak(part, *part.given) for part in parts)
    given = sum(x.nbytes for part in parts for x in part.given)
    assert plan.decoding == pytest.approx(most + given, rel=0.02)  # tables that are made once, before or in it
    assert planned(device="cuda").decoding > plan.decoding  # what graphs give lies still


def test_a_stream_keeps_what_the_plan_says(model):
    avatar = model.prepare(photo(), crop="center")
    with model.session(avatar) as s:
        play(s, sound(16000, 3.9))
        history = s.stream.history
        kept = sum(latent.frames.nbytes for latent in history)
        assert len(history) == history.maxlen and planned().history == kept
        assert isinstance(s.stream, FlashHeadStream)
        own = s.stream.reference.nbytes + avatar.reference.nbytes + s.stream.photo.nbytes
        assert planned().avatar == own


def test_peak_counts_what_lives():
    x = torch.zeros(1000)

    def work(x):
        y = x + 1  # 4000
        y = y * 2  # 8000, then 4000
        z = y[:10].expand(5, 10)  # the same memory
        return torch.cat([y, z.flatten()])  # 4000 + 4200 and the copy of the view, 200

    assert peak(work, x) == 8400
    assert peak(lambda x: x.add_(1), x) == 0


@pytest.mark.slow
def test_the_published_model_takes_no_memory_to_plan():
    """By hand: keys and values of 5 x 32 tokens in 30 blocks, six numbers of latents; 11 latents of 8 frames."""
    lite = FlashHeadConfig("lite", 512, 512, ConvVAEConfig())
    plan = memory_plan(lite, sessions=8, lanes=4, dtype=torch.bfloat16, device="cuda")
    assert plan.slot == 2 * 30 * 5 * 32 * 1536 * 2 + 1280 * 128 * (5 * 4 + 2)
    assert plan.history == 11 * 8 * 3 * 512 * 512 * 2 and plan.cache == plan.states == 0
    assert plan.host == 8 * 2 * 24 * 512 * 512 * 3
    video = 33 * 3 * 512 * 512 * 4  # the colour match holds several such tensors
    assert 3 * video < plan.decoding < 20 * video


def test_refusals_and_the_command(model, tmp_path, capsys, monkeypatch):
    with pytest.raises(ArgumentError, match="memory: decode: expected None for a model of flashhead, got 'causal'"):
        planned(decode="causal")
    with pytest.raises(ArgumentError, match="expected at least 1 session"):
        memory_plan(CONFIG, sessions=0, lanes=1, dtype=torch.float32)
    monkeypatch.setattr(budget, "free_bytes", lambda device: planned().total() - 1)
    with pytest.raises(ArgumentError, match=r"memory: 3 sessions and 2 lanes: .* which is 2 sessions"):
        planned().require(torch.device("cpu"))
    model.save(tmp_path / "head")
    assert (
        cli.main(["doctor", "--plan", "--weights", str(tmp_path / "head"), "--sessions", "3", "--device", "cpu"]) == 0
    )
    assert "flashhead-toy in float32, on cpu" in (out := capsys.readouterr().out) and "per session (3)" in out
