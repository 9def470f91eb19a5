"""A stream of SoulX-FlashHead, and its sampler.

A chunk begins with the last 9 frames shown, encoded: nothing else passes from chunk to chunk, so there is no cache and
no decoder's memory. What was shown is kept as it was before it became 8-bit, as far as an interrupt can go back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rest_fast import noise
from rest_fast.avatar import Avatar
from rest_fast.config import TEMPORAL
from rest_fast.config.flashhead import FlashHeadConfig, FlashHeadSamplingConfig
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.flashhead.sampling import Level, levels
from rest_fast.models.vae import to_uint8
from rest_fast.ops.derived import all_of
from rest_fast.ops.latent_noise import drawn
from rest_fast.ops.transfer import sent
from rest_fast.streaming.block import Pictures
from rest_fast.streaming.graphs import Fixed, Graphs
from rest_fast.streaming.snapshot import Fields, SessionState
from rest_fast.streaming.timeline import ChunkPlan, Timeline
from rest_fast.streaming.viewing import Viewing
from rest_fast.streaming.windows import Turn, Window, WindowStep
from rest_fast.units import FRAME, RATE


@dataclass(frozen=True, eq=False)
class Job:
    """All that is needed to generate a stream's next chunk."""

    slot: int  # of the step, this stream's own
    window: Window
    plan: ChunkPlan


class FlashHeadSampler:
    """The steps of a chunk; see :mod:`rest_fast.models.flashhead.sampling`. What belongs to a stream lies in a slot."""

    def __init__(self, step: WindowStep, sampling: FlashHeadSamplingConfig):
        self.step, self.sampling, self.levels = step, sampling, levels(sampling)
        self.sigmas = [level.now for level in self.levels]

    @classmethod
    def of(
        cls,
        model: FlashHead,
        sampling: FlashHeadSamplingConfig,
        sessions: int = 1,
        graphs: Graphs | None = None,
        *,
        lanes: int | None = None,
        more: Sequence[Level] = (),
    ) -> FlashHeadSampler:
        """A sampler with a step for so many sessions of a model.

        Args:
            graphs: the step is captured; for a single session with all evaluations of a chunk as one graph.
            lanes: of the step; as many as there are sessions by default.
            more: levels for further samplers of the same step.
        """
        every, lanes = [*levels(sampling), *more], sessions if lanes is None else lanes
        step = model.compute_once(lambda: WindowStep(model, every, sampling.steps, slots=sessions, lanes=lanes))
        if graphs is not None:
            chunk = sampling.steps if sessions == 1 else 0
            model.compute(step.capture, graphs("denoising step"), evaluations=chunk)
        elif model.device.type == "cuda":
            model.compute(step.warm)
        return cls(step, sampling)

    def turns(self, job: Job) -> Generator[Turn, None, torch.Tensor]:
        """Each is to be evaluated before the next is asked for. Returns: latents [N, C]."""
        self.step.load(job.slot, job.window)
        yield from self._turns(job)
        return self.step.latents(job.slot)[0]

    def run(self, jobs: Sequence[Job]) -> torch.Tensor:
        """The chunks of S jobs: latents [S, N, C]."""
        for job in jobs:
            self.step.load(job.slot, job.window)
        self.step.run(*map(list, zip(*(self._turns(job) for job in jobs), strict=True)))
        return torch.cat([self.step.latents(job.slot) for job in jobs])

    def _turns(self, job: Job) -> list[Turn]:
        """The noise of the last step is that of the first, of which it takes nothing."""
        held, count = job.window.motion.shape[1], len(self.levels)
        return [Turn(job.slot, level, (i + 1) % count, held) for i, level in enumerate(self.levels)]


class Networks:
    """What stands before and behind the evaluations of a chunk, for all streams of an engine: each is of one shape, and
    so can be a graph.

    Args:
        graphs: they are captured. All of them share memory: a stream's chunk waits for the decoding of the one before,
            and other streams' pieces come one after another.
    """

    def __init__(self, model: FlashHead, graphs: Graphs | None = None):
        self.model, config, stream = model, model.config, model.config.stream
        self.chunk_frames = stream.chunk * TEMPORAL
        capture = graphs and graphs("audio, encoder and decoder")
        new = functools.partial(torch.zeros, device=model.device)
        with torch.inference_mode(False):
            picture, channels = (config.height, config.width), config.vae.latent_channels
            sound = new(1, model.speech.samples)
            latents = new(1, stream.window * config.tokens, channels, dtype=model.wide)
            motion = new(1, stream.motion * config.tokens, channels, dtype=model.wide)
            shown = new(1, 3, stream.motion_frames, *picture, dtype=model.dtype)
            photo = new(1, 3, 1, *picture, dtype=model.dtype)
        self.hear = Fixed(lambda sound: (model.hear(sound),), (sound,), capture)
        self.encode = Fixed(lambda frames, noise: (model.encode(frames, noise),), (shown, motion), capture)
        self.show = Fixed(self._shown, (latents, photo), capture)
        self._kept = all_of(model) if capture else []  # what graphs read by address, whatever takes its place

    def _shown(self, latents: torch.Tensor, photo: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """A window of latents -> its new frames, as pictures [8 n, H, W, 3] and to be encoded [3, 8 n, H, W]."""
        new = self.model.frames(latents, photo)[:, :, -self.chunk_frames :].contiguous()
        return to_uint8(new)[0], new[0].to(self.model.dtype)


@dataclass(frozen=True, eq=False)
class Spoken:
    """A latent frame that was generated: its video frames, once they are decoded."""

    frames: torch.Tensor | None  # [3, 8, H, W], about -1..1, in the dtype in which they would be encoded
    idle: bool
    degraded: bool


class Finished:
    """Pictures that wait to be taken. None is withheld: a window is decoded whole."""

    ahead = 0

    def __init__(self) -> None:
        self.made: deque[Pictures] = deque()

    def take(self) -> Pictures:
        return self.made.popleft()

    def forget(self, floor: int) -> None:
        """Nothing is kept for a return."""


@dataclass(frozen=True, eq=False)
class Content:
    """What a snapshot holds of a stream, read and checked."""

    timeline: Timeline
    idle_wanted: bool
    history: list[Spoken]
    made: list[Pictures]


def longest_history(config: FlashHeadConfig) -> int:
    """Latents of a session's history: what can be taken back, what is shown and runs ahead, and what motion is of."""
    return 3 * config.stream.chunk + config.stream.motion


class FlashHeadStream(Viewing):
    """One viewer's stream; further arguments as :class:`rest_fast.streaming.stream.Stream` has them.

    Args:
        slot: of the sampler's step, this stream's own.
    """

    decoder: Finished
    history: deque[Spoken]

    def __init__(
        self,
        networks: Networks,
        avatar: Avatar,
        sampler: FlashHeadSampler,
        slot: int = 0,
        *,
        rate: int = RATE,
        seed: int = 0,
    ):
        model = networks.model
        config, stream = model.config, model.config.stream
        self.model, self.networks, self.avatar, self.sampler, self.slot = model, networks, avatar, sampler, slot
        super().__init__(config, rate, seed, back=model.speech.samples - stream.chunk * TEMPORAL * FRAME, ahead=0)
        self.photo = model.pixels(avatar.picture)
        self.reference = avatar.reference.to(model.device, model.wide)[None]
        self.decoder = Finished()
        self.history = deque(maxlen=longest_history(config))
        self._window: torch.Tensor | None = None  # latents [N, C] that were accepted and not decoded

    # -- one chunk

    @torch.inference_mode()
    def next_chunk(self) -> Job:
        """The next chunk; after :meth:`request_idle` one of silence, which comes before what is queued."""
        assert self._window is None, "stream: expected the latest chunk to be decoded first"
        timeline = self.timeline
        with self.watch("features"):
            plan = timeline.plan(self.idle_wanted)
            start, end = ((plan.first + k) * TEMPORAL * FRAME for k in (0, self.chunk))
            sound = timeline.sound.window16(start - timeline.back, end, plan.limit)
            heard = self.networks.hear(sent(torch.from_numpy(sound)[None], self.model.device))[0].clone()
        with self.watch("encode"):
            motion = self._motion()
        purposes = [noise.LATENT, *(noise.at_step(noise.RENOISE, i) for i in range(self.sampler.sampling.steps - 1))]
        drawn_ones = tuple(self._noise(purpose, self.model.config.stream.window) for purpose in purposes)
        return Job(self.slot, Window(self.reference, motion, heard, drawn_ones), plan)

    def _motion(self) -> torch.Tensor:
        """Latents [1, M T, C] of the last frames shown; at the start the first one of the photo."""
        config, stream = self.model.config, self.model.config.stream
        if not self.timeline.generated:
            return self.reference[:, : config.tokens]
        latest = [latent.frames for latent in list(self.history)[-stream.motion :]]
        frames = torch.cat([frames for frames in latest if frames is not None], 1)[None, :, -stream.motion_frames :]
        missing = stream.motion_frames - frames.shape[2]  # behind an interrupt of the first chunk: the photo
        frames = torch.cat([self.photo.expand(-1, -1, missing, -1, -1), frames], 2)
        return self.networks.encode(frames, self._noise(noise.POSTERIOR, stream.motion))[0].clone()

    def _noise(self, purpose: int, count: int) -> torch.Tensor:
        """[1, count T, C]: a function of seed, epoch, purpose and the number of a latent, the window's first being that
        of the first one shown: what lies before it at the start has numbers, too."""
        config, first = self.model.config, noise.in_epoch(self.timeline.epoch, self.timeline.generated)
        each = config.tokens * config.vae.latent_channels
        made = drawn(self.seed, range(first, first + count), each, purpose, self.model.device)
        return made.view(1, count * config.tokens, -1).to(self.model.wide)

    def drop(self) -> None:
        """A job that was run leaves no trace."""

    def accept(self, job: Job, latents: torch.Tensor, degraded: bool = False) -> None:
        plan = job.plan
        self.timeline.accept(plan)
        self.history.extend(Spoken(None, plan.idle, degraded) for _ in range(plan.keep))
        self._window, self.idle_wanted = latents, plan.idle and self._nothing_to_show
        self.watch.chunk(plan.keep)

    def _forget_latents(self, count: int) -> None:
        for _ in range(count):
            self.history.pop()
        if count:  # a window that is not decoded is nobody's yet, so all of it goes
            self._window = None
        while len(self.decoder.made) > self.timeline.waiting:
            self.decoder.made.pop()
        self.idle_wanted = False
        self.restarts += 1

    # -- its pictures

    @property
    def undecoded(self) -> bool:
        return self._window is not None

    @torch.inference_mode()
    def decode(self) -> None:
        if self._window is None:
            return
        with self.watch("decode"):
            pictures, frames = self.networks.show(self._window[None], self.photo)
            kept = [i for i, latent in enumerate(self.history) if latent.frames is None]
            for i, part, made in zip(kept, frames.split(TEMPORAL, 1), Pictures.of(pictures), strict=False):
                self.history[i] = dataclasses.replace(self.history[i], frames=part.clone())
                self.decoder.made.append(made)
        self._window = None
        self.watch.share(self.chunk, more=True)

    @property
    def lookahead_ms(self) -> float:
        """Only a resampler's: features see nothing behind the chunk."""
        return 1000 * self.timeline.sound.margin / RATE

    # -- as data

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.model.fingerprint,
            "avatar": self.avatar.identity,
            "seed": self.seed,
            "sample_rate": self.timeline.sound.rate,
            "sampling": dataclasses.asdict(self.sampler.sampling),
            "decoder": str(self.model.dtype),
        }

    def snapshot(self, **more: Any) -> SessionState:
        self.decode()
        tensors: dict[str, torch.Tensor] = {}
        for i, latent in enumerate(self.history):
            assert latent.frames is not None, "stream: expected every latent to be decoded"
            tensors[f"history.{i}"] = latent.frames.clone()
        for i, made in enumerate(self.decoder.made):
            tensors[f"made.{i}"] = torch.from_numpy(made.numpy().copy())
        sound = self.timeline.sound
        tensors["sound"] = torch.from_numpy(sound.raw(sound.start, sound.end).copy())
        meta = {
            "identity": self.identity(),
            "idle": [latent.idle for latent in self.history],
            "degraded": [latent.degraded for latent in self.history],
            "_idle_wanted": self.idle_wanted,
        }
        return SessionState(tensors, meta | self.timeline.to_meta() | more)

    def read(self, fields: Fields) -> Content:
        timeline = self.timeline.read(fields)
        idle, degraded = fields.array("idle", bool), fields.array("degraded", bool)
        low = min(timeline.generated, timeline.generated - timeline.floor + self.model.config.stream.motion)
        high = min(timeline.generated, self.history.maxlen or 0)
        fields.require(low <= len(idle) <= high, "idle", f"{low} to {high} of them", len(idle))
        fields.require(len(degraded) == len(idle), "degraded", f"{len(idle)} of them", len(degraded))
        height, width = self.model.config.height, self.model.config.width
        history = []
        for i, flags in enumerate(zip(idle, degraded)):
            frames = fields.tensor(f"history.{i}", (3, TEMPORAL, height, width), self.model.dtype)
            history.append(Spoken(frames.to(self.model.device), *flags))
        shape = (TEMPORAL, height, width, 3)
        waiting = [fields.shaped(f"made.{i}", shape, torch.uint8) for i in range(timeline.waiting)]
        timeline.idle = bool(idle) and idle[-1]
        made = [Pictures(frames.cpu().clone()) for frames in waiting]
        return Content(timeline, fields.flag("_idle_wanted"), history, made)

    def put(self, content: Content) -> None:
        self.timeline, self.idle_wanted, self._window = content.timeline, content.idle_wanted, None
        self.history = deque(content.history, maxlen=self.history.maxlen)
        self.decoder.made = deque(content.made)
        self.restarts += 1
