"""What sessions that share one step will take of memory: computed from a configuration, with nothing loaded.

The modules are made on PyTorch's meta device, where tensors have shapes and no memory, and decode a piece there. So
sizes are those of the objects themselves. Not counted is what PyTorch and its libraries take beside them: a CUDA
context, scratch of single products, activations that a decoder does not keep, and on a CPU the second copies of small
weights that :func:`rest_fast.models.linear.linear` makes. Nor are Whisper, the photos of avatars and queued sound.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from rest_fast import ops
from rest_fast.config import TEMPORAL, ModelConfig
from rest_fast.config.flashhead import FlashHeadConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.network import Network
from rest_fast.models.rest import REST
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.layers import DecodeWorkspace
from rest_fast.ops.derived import all_of
from rest_fast.streaming.budget import MemoryPlan, held_bytes
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.memory import cache_bytes, step_bytes
from rest_fast.streaming.sampler import noise_levels
from rest_fast.streaming.step import Step
from rest_fast.streaming.windows_plan import windows_plan

N = TypeVar("N", bound=Network)

# States of a session's decoder, at most: one at each border of the pieces that an interrupt may go back to. There are
# four: a chunk that can be taken back, the one that is shown, one run ahead, and a shorter one at a segment's end.
STATES = 5
WAITING = 2  # chunks of a session whose pictures were made and not taken: the one that is shown, and one run ahead


def memory_plan(
    config: ModelConfig | FlashHeadConfig,
    *,
    sessions: int,
    lanes: int,
    dtype: torch.dtype,
    decoder_dtype: torch.dtype | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    decode: str | None = None,
    device: torch.device | str = "cpu",
) -> MemoryPlan:
    """What so many sessions take in a step of so many lanes. Nothing is loaded, and no memory of these sizes is asked
    for; the first call in a process takes seconds, since PyTorch's meta device is slow to import.

    Args:
        dtype, decoder_dtype: see :func:`rest_fast.load`; here, too, None is that of the weights.
        steps, guidance: of the sampling; None for the configuration's own.
        decode: how the VAE sees time; see :meth:`rest_fast.models.vae.TemporalVAE.stream`.
        device: where it will be; on CUDA pictures wait in another memory, and a decoder's scratch has a border.
    Raises: :class:`rest_fast.errors.ArgumentError` or :class:`rest_fast.errors.ConfigError` for what no model takes.
    """
    if sessions < 1 or lanes < 1:
        raise ArgumentError(f"memory: expected at least 1 session and 1 lane, got {sessions} and {lanes}")
    changes = {"sampling__steps": steps, "sampling__guidance": guidance}
    config = config.replace(**{name: value for name, value in changes.items() if value is not None})
    on_gpu = torch.device(device).type == "cuda"
    with torch.inference_mode(False), torch.no_grad(), ops.use_backend("reference"):
        if isinstance(config, FlashHeadConfig):
            if decode is not None:
                raise ArgumentError(f"memory: decode: expected None for a model of flashhead, got {decode!r}")
            head = _without_memory(FlashHead, config, dtype, decoder_dtype)
            return windows_plan(head, sessions=sessions, lanes=lanes, on_gpu=on_gpu)
        model = _without_memory(REST, config, dtype, decoder_dtype)
        return _rest_plan(model, sessions, lanes, decode, on_gpu)


def _rest_plan(model: REST, sessions: int, lanes: int, decode: str | None, on_gpu: bool) -> MemoryPlan:
    config, dtype, guided = model.config, model.dtype, model.config.sampling.guidance != 1
    decoding, state, ahead = _decoder(model, decode, on_gpu)
    rows = 2 if guided else 1
    cache = IDContextCache(config, rows, dtype=dtype, device="meta", steps=config.sampling.steps)
    step = Step(model.dit, cache, noise_levels(config.sampling), lanes=lanes)
    weights = held_bytes([*model.parameters(), *model.buffers()])
    inputs = [x.packed for x in (*step.inputs, step.commits, step.heard_slot)]
    tables = [step.text, step.modulations.vectors, step.codes, cache.times, inputs]
    constants = held_bytes([*all_of(model), *tables]) - weights
    features = held_bytes(_features(model))
    latent = config.tokens * config.vae.latent_channels * max(dtype.itemsize, 4)
    sink = 2 * config.dit.layers * config.tokens * config.dit.width * dtype.itemsize
    idle = step.z[0].nbytes  # behind the last slot
    return MemoryPlan(
        sessions=sessions,
        lanes=lanes,
        weights=weights,
        constants=constants + idle + (sink if guided else 0),
        decoding=decoding,
        per_lane=step_bytes(model.dit, 0, 1),
        cache=cache_bytes(config, rows, cache.banks, cache.slots, dtype),
        slot=step_bytes(model.dit, 1, 0),
        states=STATES * state,
        history=_longest(config, ahead) * (latent + config.speech.tokens * config.speech.width * dtype.itemsize),
        avatar=sink + latent + features,
        pictures=WAITING * config.stream.chunk * TEMPORAL * config.height * config.width * 3,
        pictures_apart=on_gpu,
    )


def _without_memory(kind: type[N], config: Any, dtype: torch.dtype, decoder_dtype: torch.dtype | None) -> N:
    """The networks as :func:`rest_fast.load` makes them, on the meta device."""
    with torch.device("meta"):
        model = kind(config)
    vae: TemporalVAE = model.vae
    if decoder_dtype is not None:
        vae.convolve_in(decoder_dtype)
    model = model.to(dtype).eval().requires_grad_(False)
    vae.pack()
    return model


def _decoder(model: REST, decode: str | None, on_gpu: bool) -> tuple[int, int, int]:
    """Bytes of what decoders share and of one state, and the latents that a decoder looks ahead."""
    config = model.config
    empty = next(model.parameters()).new_empty
    photo = empty(1, 3, 1, config.height, config.width)
    stream = model.vae.stream(mode=decode, reference=photo, workspace=DecodeWorkspace(border=True if on_gpu else None))
    ahead, chunk = stream.mode.ahead, config.stream.chunk
    first = 1 if stream.mode.name == "causal" else 1 + chunk + ahead  # the reference leads, alone or with a chunk

    def piece(count: int) -> torch.Tensor:
        latents = empty(1, config.vae.latent_channels, count, *config.grid)
        return stream.piece(latents, min(ahead, count - 1), pictures=True)

    pieces, state = [piece(first), piece(chunk + ahead)], stream.state
    held = [stream.work.buffers(), state.places, state.histories, state.images, stream.given, pieces[1]]
    return held_bytes(held), state.snapshot().nbytes, ahead


def _features(model: REST) -> dict[str, torch.Tensor]:
    """What an avatar keeps for the decoder."""
    config, empty = model.config, next(model.parameters()).new_empty
    latents = empty(1, config.vae.latent_channels, 1, *config.grid)
    return model.vae.photo_features(latents, empty(1, 3, 1, config.height, config.width))


def _longest(config: ModelConfig, ahead: int) -> int:
    """Latents of a session's history: what a context may lead with, what can be taken back, what is shown, waits or
    runs ahead, and what a decoder decodes again."""
    chunk = config.stream.chunk
    return max(config.stream.context_chunks * chunk, 1) + chunk + 3 * chunk + 2 * ahead
