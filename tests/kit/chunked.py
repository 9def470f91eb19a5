"""A model's velocities of a clip twice: chunk by chunk through the cache, and in one dense pass."""

from __future__ import annotations

import torch

from rest_fast.config import ModelConfig
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.dit_block import Workspace
from rest_fast.streaming.cache import IDContextCache
from tests.kit.models import randomise


def dit_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> StreamingDiT:
    dit = StreamingDiT(config).eval()
    randomise(dit, 0)
    return dit.to(dtype)


def dense_and_chunked(config: ModelConfig, dtype: torch.dtype, chunks: int = 3):
    """Velocities of a clip, heard and unheard: chunk by chunk through the cache in ``dtype``; dense, in float64 too."""
    exact = dit_of(config, torch.float64)
    dit = dit_of(config, dtype)
    exact.load_state_dict({name: tensor.double() for name, tensor in dit.state_dict().items()})
    tokens, chunk, g = config.tokens, config.stream.chunk, torch.Generator().manual_seed(1)
    frames = 1 + chunks * chunk
    z = torch.randn(1, frames * tokens, config.vae.latent_channels, generator=g).to(dtype)
    codes = torch.randn(1, frames, config.speech.tokens, config.speech.width, generator=g).to(dtype)
    t = torch.rand(1, 1, generator=g).expand(1, frames).clone()
    t[:, 0], codes[:, 0] = 0, 0
    both = z.repeat(2, 1, 1), t.repeat(2, 1), torch.cat([codes, 0 * codes])
    with torch.no_grad():
        truth = exact(both[0].double(), both[1], both[2].double(), "streaming")
        eager = dit(*both, "streaming")
        cache, parts, text = IDContextCache(config, 2, dtype=dtype), [], dit.text_kv()
        k, v = dit.sink(z[:, :tokens], codes[:, :1])
        cache.open(0, k[:, 0], v[:, 0]), cache.open(1, k[:, 0], v[:, 0])
        for first in range(1, frames, chunk):
            now, here = slice(first, first + chunk), slice(first * tokens, (first + chunk) * tokens)
            work = Workspace(2, chunk * tokens, config.dit, dit.table)
            mod, audio = dit.modulation(t[:, now]), dit.hear(codes[:, now])
            parts.append(dit.step(z[:, here], mod, cache.lanes([0, 1], sessions=1), work, text, audio))
            cache.commit([0, 1])
    return (x[:, tokens:] for x in (torch.cat([truth[:, :tokens], *parts], 1), eager, truth))
