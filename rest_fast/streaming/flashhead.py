"""A stream of SoulX-FlashHead, its sampler and its evaluations.

A chunk begins with the last 9 frames shown, encoded: nothing else passes from chunk to chunk, so there is no cache and
no decoder's memory. What was shown is kept as it was before it became 8-bit, as far as an interrupt can go back.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rest_fast import noise
from rest_fast.avatar import Avatar
from rest_fast.config import TEMPORAL
from rest_fast.config.flashhead import FlashHeadSamplingConfig
from rest_fast.models.cross_attention import KV
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.flashhead.sampling import Level, levels, overwritten, renoised
from rest_fast.models.vae import to_uint8
from rest_fast.ops.latent_noise import drawn
from rest_fast.ops.transfer import sent
from rest_fast.streaming.block import Pictures
from rest_fast.streaming.snapshot import Fields, SessionState
from rest_fast.streaming.timeline import ChunkPlan, Timeline
from rest_fast.streaming.viewing import Viewing
from rest_fast.units import FRAME, RATE


@dataclass(frozen=True, eq=False)
class Job:
    """All that is needed to generate a stream's next chunk: a window of F latents, N tokens."""

    reference: torch.Tensor  # [1, N, C]
    motion: torch.Tensor  # [1, M, C], the first latents of the window
    audio: list[KV]  # of each block
    noise: tuple[torch.Tensor, ...]  # [1, N, C]: the initial one, and the fresh one behind each step but the last
    plan: ChunkPlan


@dataclass(eq=False)
class Turn:
    """A job's part in an evaluation: its latents z [1, N, C] move on by one step."""

    job: Job
    level: Level
    fresh: torch.Tensor
    z: torch.Tensor

    @property
    def dt(self) -> float:
        return self.level.after - self.level.now


class Evaluations:
    """Computes turns, one after the other: an eager step, of one lane."""

    def __init__(self, model: FlashHead):
        self.model = model

    @torch.no_grad()
    def run(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            job, z = turn.job, overwritten(turn.z, turn.job.motion)
            timestep = torch.tensor(turn.level.timestep, dtype=torch.float64, device=z.device)
            velocity = self.model.velocity(z, job.reference, timestep, job.audio)
            turn.z = renoised(z, velocity, turn.level, turn.fresh)


class FlashHeadSampler:
    """The steps of a chunk; see :mod:`rest_fast.models.flashhead.sampling`."""

    def __init__(self, model: FlashHead, sampling: FlashHeadSamplingConfig):
        self.step, self.sampling, self.levels = Evaluations(model), sampling, levels(sampling)

    def turns(self, job: Job) -> Generator[Turn, None, torch.Tensor]:
        """Each is to be evaluated before the next is asked for. Returns: latents [N, C]."""
        z = job.noise[0]
        for i, level in enumerate(self.levels):
            last = i + 1 == len(self.levels)
            turn = Turn(job, level, torch.zeros_like(z) if last else job.noise[i + 1], z)
            yield turn
            z = turn.z
        return overwritten(z, job.motion)[0]

    def run(self, jobs: Sequence[Job]) -> torch.Tensor:
        """The chunks of S jobs: latents [S, N, C]."""
        found = []
        for job in jobs:
            turns = self.turns(job)
            while True:
                try:
                    self.step.run([next(turns)])
                except StopIteration as end:
                    found.append(end.value)
                    break
        return torch.stack(found)


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


class FlashHeadStream(Viewing):
    """One viewer's stream; arguments as :class:`rest_fast.streaming.stream.Stream` has them."""

    decoder: Finished
    history: deque[Spoken]

    def __init__(self, model: FlashHead, avatar: Avatar, sampler: FlashHeadSampler, *, rate: int = RATE, seed: int = 0):
        config, stream = model.config, model.config.stream
        self.model, self.avatar, self.sampler = model, avatar, sampler
        super().__init__(config, rate, seed, back=model.speech.samples - stream.chunk * TEMPORAL * FRAME, ahead=0)
        self.photo = model.pixels(avatar.picture)
        self.reference = avatar.reference.to(model.device, model.wide)[None]
        self.decoder = Finished()
        self.history = deque(maxlen=self.lead + 2 * self.chunk + stream.motion)
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
            audio = self.model.hear(sent(torch.from_numpy(sound)[None], self.model.device))
        with self.watch("encode"):
            motion = self._motion()
        purposes = [noise.LATENT, *(noise.at_step(noise.RENOISE, i) for i in range(self.sampler.sampling.steps - 1))]
        drawn_ones = tuple(self._noise(purpose, self.model.config.stream.window) for purpose in purposes)
        return Job(self.reference, motion, audio, drawn_ones, plan)

    def _motion(self) -> torch.Tensor:
        """Latents [1, M T, C] of the last frames shown; at the start the first one of the photo."""
        config, stream = self.model.config, self.model.config.stream
        if not self.timeline.generated:
            return self.reference[:, : config.tokens]
        latest = [latent.frames for latent in list(self.history)[-stream.motion :]]
        frames = torch.cat([frames for frames in latest if frames is not None], 1)[None, :, -stream.motion_frames :]
        missing = stream.motion_frames - frames.shape[2]  # behind an interrupt of the first chunk: the photo
        frames = torch.cat([self.photo.expand(-1, -1, missing, -1, -1), frames], 2)
        return self.model.encode(frames, self._noise(noise.POSTERIOR, stream.motion))

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
            video = self.model.frames(self._window[None], self.photo)
            new = video[:, :, self.model.config.stream.motion_frames :]
            kept = [i for i, latent in enumerate(self.history) if latent.frames is None]
            pictures = Pictures.of(to_uint8(new.contiguous())[0])
            for i, part, made in zip(kept, new[0].to(self.model.dtype).split(TEMPORAL, 1), pictures, strict=False):
                self.history[i] = dataclasses.replace(self.history[i], frames=part.contiguous())
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
