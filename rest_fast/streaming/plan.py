"""What sessions that share one step will take of memory: computed from a configuration, with nothing loaded.

The modules are made on PyTorch's meta device, where tensors have shapes and no memory, and decode a piece there. So
sizes are those of the objects themselves. Not counted is what PyTorch and its libraries take beside them: a CUDA
context, scratch of single products, activations that a decoder does not keep, and on a CPU the second copies of small
weights that :func:`rest_fast.models.linear.linear` makes. Nor are Whisper, the photos of avatars and queued sound.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from rest_fast import ops
from rest_fast.config import TEMPORAL, ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.rest import REST
from rest_fast.models.vae.layers import DecodeWorkspace
from rest_fast.ops.derived import Derived, all_of
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.memory import cache_bytes, free_bytes, step_bytes
from rest_fast.streaming.sampler import noise_levels
from rest_fast.streaming.step import Step

# States of a session's decoder, at most: one at each border of the pieces that an interrupt may go back to. There are
# four: a chunk that can be taken back, the one that is shown, one run ahead, and a shorter one at a segment's end.
STATES = 5
WAITING = 2  # chunks of a session whose pictures were made and not taken: the one that is shown, and one run ahead


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that sessions of one model take on its device; see :func:`memory_plan`."""

    sessions: int
    lanes: int
    weights: int  # parameters and buffers
    constants: int  # what follows from them: keys and values of the prompt, noise levels, orders; a step's integers
    decoding: int  # scratch and one state of a decoder, which all sessions share
    per_lane: int  # workspace and scratch of an evaluation
    cache: int  # of a session, as all that follow: its cache rows, one or (guided) two
    slot: int  # latents and audio in the step
    states: int  # of the decoder, for interrupts
    history: int  # its latest latents and codes
    avatar: int  # its sink, latent and features; sessions of one face share it
    pictures: int  # that wait to be taken
    pictures_apart: bool  # whether these are in the host's memory, and that is not the device's

    @property
    def fixed(self) -> int:
        """Of no session and no lane, beside the weights."""
        return self.constants + self.decoding

    @property
    def per_session(self) -> int:
        """On the device."""
        pictures = 0 if self.pictures_apart else self.pictures
        return self.cache + self.slot + self.states + self.history + self.avatar + pictures

    @property
    def host(self) -> int:
        """Of all sessions, beside the device."""
        return self.sessions * self.pictures if self.pictures_apart else 0

    def total(self) -> int:
        """On the device."""
        return self._shared() + self.sessions * self.per_session

    def most_sessions(self, free: int) -> int:
        """How many sessions fit into so many bytes, with this plan's lanes."""
        return max(0, free - self._shared()) // self.per_session

    def loaded(self) -> MemoryPlan:
        """The same for a model whose weights are on the device: what is still to come."""
        return dataclasses.replace(self, weights=0)

    def require(self, device: torch.device) -> None:
        """Raise ArgumentError where this is more than what is free on the device."""
        free = free_bytes(device)
        if free is not None and self.total() > free:
            raise ArgumentError(
                f"memory: {self.sessions} sessions and {self.lanes} lanes: expected at most what fits into the "
                f"{free / 2**30:.1f} GiB that are free on {device}, which is {self.most_sessions(free)} sessions, "
                f"got {self.total() / 2**30:.1f} GiB"
            )

    def table(self, free: int | None = None) -> str:
        """As text, in MiB; with ``free`` bytes also how many sessions would fit."""
        rows = [
            ("weights", self.weights),
            ("fixed", self.fixed),
            ("  constants of weights and step", self.constants),
            ("  decoding, shared", self.decoding),
            (f"per session ({self.sessions})", self.per_session),
            ("  cache rows", self.cache),
            ("  latents and audio", self.slot),
            ("  decoder states", self.states),
            ("  history", self.history),
            ("  avatar", self.avatar),
            *([] if self.pictures_apart else [("  pictures that wait", self.pictures)]),
            (f"per lane ({self.lanes})", self.per_lane),
            ("total", self.total()),
            *([("on the host: pictures that wait", self.host)] if self.pictures_apart else []),
            *([] if free is None else [("free", free)]),
        ]
        lines = [f"{'':34}{'MiB':>12}", *(f"{name:34}{count / 2**20:12,.1f}" for name, count in rows)]
        if free is not None:
            lines.append(f"{'sessions that fit':34}{self.most_sessions(free):12,}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _shared(self) -> int:
        return self.weights + self.fixed + self.lanes * self.per_lane


def memory_plan(
    config: ModelConfig,
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
    on_gpu, guided = torch.device(device).type == "cuda", config.sampling.guidance != 1
    with torch.inference_mode(False), torch.no_grad(), ops.use_backend("reference"):
        model = _without_memory(config, dtype, decoder_dtype)
        decoding, state, ahead = _decoder(model, decode, on_gpu)
        rows = 2 if guided else 1
        cache = IDContextCache(config, rows, dtype=dtype, device="meta", steps=config.sampling.steps)
        step = Step(model.dit, cache, noise_levels(config.sampling), lanes=lanes)
        weights = _bytes([*model.parameters(), *model.buffers()])
        inputs = [x.packed for x in (*step.inputs, step.commits, step.heard_slot)]
        tables = [step.text, step.modulations.vectors, step.codes, cache.times, inputs]
        constants = _bytes([*all_of(model), *tables]) - weights
        features = _bytes(_features(model))
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


def _without_memory(config: ModelConfig, dtype: torch.dtype, decoder_dtype: torch.dtype | None) -> REST:
    """The networks as :func:`rest_fast.load` makes them, on the meta device."""
    with torch.device("meta"):
        model = REST(config)
    if decoder_dtype is not None:
        model.vae.convolve_in(decoder_dtype)
    model = model.to(dtype).eval().requires_grad_(False)
    model.vae.pack()
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
    return _bytes(held), state.snapshot().nbytes, ahead


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


def _bytes(held: Any) -> int:
    """Of the tensors in nested lists, tuples and dicts; memory that several share counts once."""
    leaves = tree_leaves(held)
    tensors = tree_leaves([x.value if isinstance(x, Derived) else x for x in leaves])
    storages = [x.untyped_storage() for x in tensors if isinstance(x, torch.Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
