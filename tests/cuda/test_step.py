"""A whole step in CUDA, on the CPU: chunks through the cache against one dense pass, and as a graph."""

from __future__ import annotations

import pytest
import torch

from rest_fast import ops
from rest_fast.ops.dispatch import Spec, capturing
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.sampler import ChunkSampler, noise_levels
from rest_fast.streaming.step import Branches, Step
from tests.cuda_shim import built
from tests.kit.captured import StandIn
from tests.kit.chunked import dense_and_chunked, dit_of
from tests.kit.compare import assert_same_bits, twice_eager
from tests.kit.models import toy

EVALUATION = {
    "qk_norm_rope_cache",
    "sink_ring_attention",
    "gate_norm_modulate",
    "frame_cross_attention",
    "frame_audio_update",
}
CONFIG = toy(dit__heads=1, dit__head_dim=64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_chunks_are_one_dense_computation(dtype):
    """Three chunks: the first one, one that fills the window, and one whose context was rotated."""
    with built.everywhere() as ran:
        mine, eager, truth = dense_and_chunked(CONFIG, dtype)
    assert set(ran) == EVALUATION | {"rotate_context"}
    twice_eager(mine, eager, truth, tiny=1e-6)


def sampled(capture: StandIn | None, chunks: int = 3) -> list[torch.Tensor]:
    """Latents of a guided session."""
    g = torch.Generator().manual_seed(2)
    dit, speech = dit_of(CONFIG, torch.bfloat16), CONFIG.speech
    cache = IDContextCache(CONFIG, 2, dtype=torch.bfloat16)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(torch.bfloat16)

    for row in (0, 1):
        k, v = dit.sink(normal(1, CONFIG.tokens, CONFIG.vae.latent_channels), normal(1, 1, speech.tokens, speech.width))
        cache.open(row, k[:, 0], v[:, 0])
    step = Step(dit, cache, noise_levels(CONFIG.sampling))
    if capture is not None:
        step.capture(capture)
    sampler, frames = ChunkSampler(step, CONFIG.sampling), CONFIG.stream.chunk
    made = []
    for _ in range(chunks):
        noise = normal(1, frames * CONFIG.tokens, CONFIG.vae.latent_channels).float()
        codes = normal(1, frames, speech.tokens, speech.width)
        made.append(sampler.sample([Branches(0, 1)], noise, codes))
    return made


@torch.no_grad()
def test_a_captured_step_is_the_eager_one():
    """Nothing in it reads the host or depends on a lane that is idle."""
    with built.everywhere() as ran:
        eager = sampled(None)
    assert set(ran) == EVALUATION | {"rotate_context", "cfg_euler_step"}
    with built.everywhere():
        for got, want in zip(sampled(StandIn()), eager, strict=True):
            assert_same_bits(got, want, "latents")


@pytest.mark.parametrize("name", sorted(EVALUATION | {"rotate_context", "cfg_euler_step"}))
def test_a_graph_can_hold_it(name):
    op = next(op for op in ops.ALL if op.name == name)
    dims = (("lengths", "on the device"), ("head_dim", 64), ("width", 64))
    with built.everywhere(), capturing():
        assert op.choose(Spec("cpu", torch.bfloat16, dims), "cuda").name == "cuda"
