"""The memory plan of a configuration against the tensors of real objects: a model, a sampler, a decoder, an avatar."""

from __future__ import annotations

import pytest
import torch

from rest_fast import Model, preset
from rest_fast.config import ConfigError, MotionVAEConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.vae import to_latents
from rest_fast.models.vae.layers import DecodeWorkspace
from rest_fast.streaming import budget
from rest_fast.streaming import plan as plans
from rest_fast.streaming.decoder import BlockDecoder
from rest_fast.streaming.decoding import Decoding
from rest_fast.streaming.plan import memory_plan
from rest_fast.streaming.sampler import ChunkSampler
from rest_fast.streaming.stream import Stream
from tests.kit.models import basis_toy
from tests.kit.releases import LAYOUTS

BF16 = torch.bfloat16
TOY, DEMO = preset("toy"), preset("demo")
LTX = TOY.replace(vae=LAYOUTS["0.9.5"], height=96)
MOTION = MotionVAEConfig(
    patch_size=32,
    latent_channels=16,
    encoder_channels=(4, 6, 8, 8),
    photo_channels=(6, 8, 8, 8),
    flow_channels=(6, 8, 8, 8),
    code_width=12,
)
CASES = {  # configuration, dtype, options
    "toy": (TOY, BF16, {}),
    "toy without guidance": (TOY, torch.float32, {"guidance": 1.0, "steps": 3}),
    "banks, double precision": (TOY.replace(stream__context="per_step"), torch.float64, {}),
    "one audio token, no text": (TOY.replace(speech__tokens=1, dit__text_tokens=0), torch.float32, {}),
    "no audio, no context": (TOY.replace(dit__audio=False, stream__context_chunks=0), torch.float32, {}),
    "demo": (DEMO, torch.float32, {}),
    "basis, mixed": (basis_toy(), torch.float32, {"decoder_dtype": BF16}),
    "motion": (TOY.replace(vae=MOTION, height=128, width=128), torch.float32, {}),
    "0.9.5, causal": (LTX.replace(vae__causal_decoder=True), torch.float32, {}),
    "0.9.5 that looks far ahead": (LTX, BF16, {"decode": "lookahead(2)"}),
    "0.9.1": (TOY.replace(vae=LAYOUTS["0.9.1"]), torch.float32, {"decode": "lookahead(0)"}),
}


def planned(config, dtype, options, sessions=3, lanes=4):
    return memory_plan(config, sessions=sessions, lanes=lanes, dtype=dtype, **options)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A plan, and what it is a plan of."""
    config, dtype, options = CASES[request.param]
    torch.manual_seed(0)
    model = Model(config)
    if "decoder_dtype" in options:
        model.vae.convolve_in(options["decoder_dtype"])
    model = model.to(dtype).eval().requires_grad_(False)
    sampling = {f"sampling__{name}": value for name, value in options.items() if name in ("steps", "guidance")}
    return planned(config, dtype, options), model, config.replace(**sampling).sampling, options.get("decode")


def test_weights_and_an_avatar(case):
    plan, model, *_ = case
    assert plan.weights == sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    k, v = model.null_sink
    latent = model.config.tokens * model.config.vae.latent_channels * max(4, model.dtype.itemsize)
    photo = torch.zeros(1, 3, 1, model.config.height, model.config.width, dtype=model.dtype)
    zeros = torch.zeros(1, model.config.vae.latent_channels, 1, *model.config.grid, dtype=model.dtype)
    features = model.vae.photo_features(zeros, photo)
    assert plan.avatar == k.nbytes + v.nbytes + latent + sum(x.nbytes for x in features.values())


def test_the_cache_and_the_step(case):
    plan, model, sampling, _ = case
    sampler = ChunkSampler.of(model, sampling, sessions=plan.sessions)
    step, cache = sampler.step, sampler.cache
    assert plan.sessions * plan.cache == cache.k.nbytes + cache.v.nbytes
    heard = sum(x.nbytes for audio in step.audio if audio is not None for x in audio.slots)
    assert plan.sessions * plan.slot == step.z[:-1].nbytes + heard
    work = sum(x.nbytes for x in (step.work.x, step.work.y, step.work.q, step.work.out))
    scratch = plan.per_lane - work // step.lanes  # of products, which allocate it as they run
    assert 0 < scratch <= 3 * work // step.lanes
    text = sum(x.nbytes for kv in step.text if kv is not None for x in kv)
    static = text + step.modulations.vectors.nbytes + step.z[-1:].nbytes + step.codes.nbytes
    static += sum(x.nbytes for x in model.null_sink) if sampler.guided else 0
    decoders = sum(x.nbytes for x in model.vae.decoder.parameters())  # reordered or in another dtype at most once
    assert static <= plan.constants <= static + decoders + 64 * 1024


def test_decoders(case):
    plan, model, _, mode = case
    config = model.config
    picture = torch.randint(256, (config.height, config.width, 3), dtype=torch.uint8).numpy()
    latents = [torch.randn(config.tokens, config.vae.latent_channels) for _ in range(7)]
    decoder = BlockDecoder(Decoding(model, mode), picture, latents[0])
    with torch.inference_mode():
        for end in (3, 6):
            decoder.feed(latents, end, False)
    assert {state.nbytes for state in decoder.states()[1:]} == {plan.states // plans.STATES}

    stream = model.vae.stream(mode=mode, reference=model.pixels(picture), workspace=DecodeWorkspace())
    ahead, kind = stream.mode.ahead, stream.mode.name
    z = torch.cat(latents).to(model.dtype)[None]
    with torch.no_grad():
        for count in (1 if kind == "causal" else 4 + ahead, 3 + ahead):
            made = stream.piece(to_latents(z[:, : count * config.tokens], config.grid), ahead, pictures=True)
    held = [made, *stream.state.histories.values(), *stream.state.images.values()]
    held += stream.given.values()
    assert plan.decoding == stream.work.nbytes + sum(x.untyped_storage().nbytes() for x in held)


def test_histories_and_pictures(avatar, model):
    plan = planned(model.config, model.dtype, {})
    stream = Stream.alone(model, avatar, model.config.sampling)
    latest = stream.history[0]
    longest = 3 + 3 + 3 * 3 + 2 * stream.decoder.ahead  # a context, what can be taken back, what is shown and waits
    assert plan.history == longest * (latest.z.nbytes + latest.code.nbytes) and longest == stream.history.maxlen
    assert plan.pictures == 6 * 8 * 64 * 64 * 3


def test_a_total_is_the_sum_of_its_parts():
    plan, gpu = (planned(TOY, BF16, {"device": device}, sessions=5, lanes=2) for device in ("cpu", "cuda"))
    assert plan.total() == plan.weights + plan.fixed + 5 * plan.per_session + 2 * plan.per_lane
    assert (plan.host, gpu.host) == (0, 5 * gpu.pictures)
    assert gpu.per_session == plan.per_session - plan.pictures and gpu.decoding > plan.decoding  # borders
    assert plan.loaded().total() == plan.total() - plan.weights
    most = plan.most_sessions(plan.total())
    assert most == 5 and plan.most_sessions(plan.total() - 1) == 4 and plan.most_sessions(0) == 0


def test_a_large_model_takes_no_memory():
    """Numbers that were computed by hand: 28 layers of 1792 slots in two rows, and a decoder's state in bfloat16."""
    plan = memory_plan(preset("rest-512"), sessions=8, lanes=4, dtype=BF16, device="cuda")
    assert plan.cache == 2 * 28 * 2 * 1792 * 2048 * 2
    assert plan.states == 5 * 173_146_112 and plan.weights == pytest.approx(2 * 3673.4e6, rel=1e-3)
    assert 20e9 < plan.total() < 25e9 and 75 < plan.most_sessions(140 << 30) < 85


def test_refusals(monkeypatch):
    plan = planned(TOY, BF16, {}, sessions=9)
    monkeypatch.setattr(budget, "free_bytes", lambda device: plan.total())
    plan.require(torch.device("cpu"))
    monkeypatch.setattr(budget, "free_bytes", lambda device: plan.total() - 1)
    says = r"memory: 9 sessions and 4 lanes: expected .* GiB that are free on cpu, which is 8 sessions, got .* GiB"
    with pytest.raises(ArgumentError, match=says):
        plan.require(torch.device("cpu"))
    monkeypatch.setattr(budget, "free_bytes", lambda device: None)
    plan.require(torch.device("cpu"))
    for numbers in ({"sessions": 0}, {"lanes": 0}):
        with pytest.raises(ArgumentError, match="expected at least 1 session and 1 lane"):
            planned(TOY, BF16, {}, **numbers)
    with pytest.raises(ConfigError, match=r"sampling\.steps"):
        planned(TOY, BF16, {"steps": 0})
    with pytest.raises(ArgumentError, match="mode: expected causal"):
        planned(TOY, BF16, {"decode": "lookahead(1)"})
    with pytest.raises(ArgumentError, match="convolve_in"):
        planned(TOY, BF16, {"decoder_dtype": BF16})


def test_the_table():
    plan = planned(TOY, torch.float32, {})
    assert str(plan) == plan.table() and "free" not in str(plan) and "host" not in str(plan)
    lines = plan.table(1 << 30).splitlines()
    assert lines[-2].split() == ["free", "1,024.0"] and lines[-1].split()[-1] == f"{plan.most_sessions(1 << 30):,}"
    assert len({len(line) for line in lines}) == 1
    assert "on the host: pictures that wait" in str(planned(TOY, BF16, {"device": "cuda"}))


def test_backends_that_are_asked_for_do_not_matter(monkeypatch):
    monkeypatch.setenv("REST_FAST_BACKEND", "triton")
    assert planned(TOY, torch.float32, {}).total() > 0
