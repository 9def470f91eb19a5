"""What an engine asks of its model's family: a sampler, a stream for a place, and nobody's face for trial chunks."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import torch

from rest_fast.avatar import Avatar
from rest_fast.config.flashhead import DISTILLED_STEPS
from rest_fast.errors import ArgumentError
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.flashhead.sampling import levels
from rest_fast.models.network import Network
from rest_fast.models.rest import REST
from rest_fast.models.vae.state import read_mode
from rest_fast.streaming.decoding import Decoding
from rest_fast.streaming.flashhead import FlashHeadSampler, FlashHeadStream, Networks
from rest_fast.streaming.graphs import graphs_of
from rest_fast.streaming.plan import memory_plan
from rest_fast.streaming.sampler import ChunkSampler, branches, noise_levels
from rest_fast.streaming.stream import Stream
from rest_fast.streaming.viewing import Viewing
from rest_fast.streaming.work import Sampler


@dataclasses.dataclass(frozen=True)
class Places:
    """How many sessions there may be, and how they are to be computed."""

    sessions: int
    lanes: int
    graphs: str
    fewer_steps: int | None
    planned: bool  # their memory is checked before it is asked for


class Family(Protocol):
    """Of an engine's sessions."""

    together: int  # sessions in one evaluation

    @property
    def sampler(self) -> Sampler:
        """That of all sessions."""

    @property
    def fewer(self) -> Sampler | None:
        """One of fewer steps, for chunks that are late."""

    def stream(self, avatar: Avatar, place: int, *, decode: str | None = None, **options: Any) -> Viewing:
        """A stream in this place."""

    def nobody(self) -> Avatar:
        """A face for trial chunks."""

    def vacate(self) -> None:
        """Give back the memory."""


def family_of(model: Network, sampling: Any, places: Places) -> Family:
    """Raises: :class:`ArgumentError` for what the model's family cannot do."""
    if isinstance(model, FlashHead):
        return FlashHeadFamily(model, sampling, places)
    assert isinstance(model, REST), f"engine: expected a model of a known family, got {type(model).__name__}"
    return RESTFamily(model, sampling, places)


def streams(model: Network, avatar: Avatar, count: int) -> list[Viewing]:
    """Streams for so many viewers without an engine, whose chunks are lanes of one call of their sampler. They are
    seeded by their numbers."""
    sampling = model.config.sampling
    family = family_of(model, sampling, Places(count, count * branches(sampling), "auto", None, False))
    return [family.stream(avatar, place, seed=place) for place in range(count)]


def _require_memory(model: Network, sampling: Any, places: Places) -> None:
    """Raise ArgumentError where a GPU lacks memory for the places; elsewhere, the largest parts are asked for one by
    one."""
    if model.device.type == "cuda" and places.planned:
        config, counts = model.config.replace(sampling=sampling), (places.sessions, places.lanes)
        plan = memory_plan(config, sessions=counts[0], lanes=counts[1], dtype=model.dtype, device="cuda")
        plan.loaded().require(model.device)


class RESTFamily:
    """Lanes of a captured step, rows of a cache, and decoders that share memory."""

    fewer: ChunkSampler | None

    def __init__(self, model: REST, sampling: Any, places: Places):
        least, fewer_steps = branches(sampling), places.fewer_steps
        if fewer_steps is not None and model.config.stream.context == "per_step":
            raise ArgumentError("engine: fewer_steps: expected None for a model whose context is kept per step")
        self.model, self.captures = model, graphs_of(places.graphs, model.device)
        _require_memory(model, sampling, places)
        less = None if fewer_steps is None else dataclasses.replace(sampling, steps=fewer_steps)
        more = () if less is None else noise_levels(less)
        self.sampler = ChunkSampler.of(model, sampling, places.sessions, self.captures, lanes=places.lanes, levels=more)
        self.fewer = None if less is None else ChunkSampler(self.sampler.step, less)
        self.together = max(1, places.lanes // least) if model.device.type == "cuda" else 1
        self._decodings: dict[str, Decoding] = {}  # by mode

    def stream(self, avatar: Avatar, place: int, *, decode: str | None = None, **options: Any) -> Stream:
        """All streams of one ``decode`` are decoded in one memory."""
        mode = str(read_mode(decode, self.model.vae.causal))
        if mode not in self._decodings:
            capture = self.captures and self.captures("decoder")
            self._decodings[mode] = Decoding(self.model, mode, capture)
        session, decoding = self.sampler.session(place), self._decodings[mode]
        return Stream(self.model, avatar, self.sampler, session, decoding=decoding, **options)

    def nobody(self) -> Avatar:
        config, model = self.model.config, self.model
        size, tokens = (config.height, config.width, 3), (config.tokens, config.vae.latent_channels)
        reference, box = torch.zeros(tokens, device=model.device), (0, 0, config.width, config.height)
        return Avatar(np.zeros(size, np.uint8), box, reference, *model.null_sink, model.fingerprint)

    def vacate(self) -> None:
        self._decodings.clear()
        self.fewer = None
        self.__dict__.pop("sampler", None)


class FlashHeadFamily:
    """Lanes of a captured step, and networks that all streams share; streams keep what passes from chunk to chunk."""

    fewer: FlashHeadSampler | None

    def __init__(self, model: FlashHead, sampling: Any, places: Places):
        captures, fewer = graphs_of(places.graphs, model.device), places.fewer_steps
        if fewer is not None and fewer not in DISTILLED_STEPS:
            raise ArgumentError(f"engine: fewer_steps: expected 2 or None for a model of flashhead, got {fewer}")
        less = None if fewer is None else dataclasses.replace(sampling, steps=fewer)
        more = () if less is None else levels(less)
        _require_memory(model, sampling, places)
        self.model, self.together = model, places.lanes if model.device.type == "cuda" else 1
        self.sampler = FlashHeadSampler.of(model, sampling, places.sessions, captures, lanes=places.lanes, more=more)
        self.networks = model.compute(Networks, model, captures)
        self.fewer = None if less is None else FlashHeadSampler(self.sampler.step, less)

    def stream(self, avatar: Avatar, place: int, *, decode: str | None = None, **options: Any) -> FlashHeadStream:
        if decode is not None:
            raise ArgumentError(f"session: decode: expected None for a model of flashhead, got {decode!r}")
        return FlashHeadStream(self.networks, avatar, self.sampler, place, **options)

    def nobody(self) -> Avatar:
        config, model = self.model.config, self.model
        shape = (config.stream.window * config.tokens, config.vae.latent_channels)
        picture = np.zeros((config.height, config.width, 3), np.uint8)
        reference, none = torch.zeros(shape, device=model.device), torch.zeros(0, config.tokens, 0, 0)
        return Avatar(picture, (0, 0, config.width, config.height), reference, none, none, model.fingerprint)

    def vacate(self) -> None:
        self.fewer = None
        for name in ("sampler", "networks"):
            self.__dict__.pop(name, None)
