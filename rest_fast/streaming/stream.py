"""One viewer's stream without a clock, locks or threads: what comes in, the next chunk as a job, pictures out.

Whoever runs it (a session, an engine, an evaluation) calls it from the model's worker, in order:

    stream.push(samples); stream.end_segment()          # what came
    block = stream.make_block(); stream.deliver()       # while stream.shows()
    job = stream.next_chunk()                           # when nothing is left to show, and stream.due()
    stream.accept(job, sampler.run(cache, [job])[0])    # or stream.drop(job)

Frames depend on the order of these calls and on nothing else. A job that was not run leaves no trace. One that was run
has moved the cache on, so it is accepted, or dropped: then the context is rebuilt.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rest_fast import noise
from rest_fast.avatar import Avatar
from rest_fast.config import TEMPORAL, SamplingConfig
from rest_fast.models.rest import REST
from rest_fast.models.speech import speech_window
from rest_fast.streaming.block import Block, Latent
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.decoder import BlockDecoder
from rest_fast.streaming.decoder import Read as DecoderContent
from rest_fast.streaming.metrics import Stopwatch
from rest_fast.streaming.sampler import Branches, ChunkJob, ChunkSampler, ContextChunk
from rest_fast.streaming.snapshot import Fields, SessionState
from rest_fast.streaming.timeline import Timeline
from rest_fast.units import RATE


@dataclass(frozen=True, eq=False)
class Content:
    """A snapshot, read and found to fit; see :meth:`Stream.read`."""

    timeline: Timeline
    stale: bool
    history: list[Latent]
    decoder: DecoderContent
    rows: dict[int, tuple[torch.Tensor, torch.Tensor, int]]


class Stream:
    """Args:
    sampler, cache, rows: what generates its chunks, and the cache rows that are its own.
    rate: of the sound, Hz.
    seed: of the noise.
    decode: how the VAE sees time; see :meth:`rest_fast.models.vae.TemporalVAE.stream`.
    """

    def __init__(
        self,
        model: REST,
        avatar: Avatar,
        sampler: ChunkSampler,
        cache: IDContextCache,
        rows: Branches,
        *,
        rate: int = RATE,
        seed: int = 0,
        decode: str | None = None,
    ):
        config = model.config
        self.model, self.avatar, self.sampler, self.cache, self.rows = model, avatar, sampler, cache, rows
        self.seed, self.chunk = seed, config.stream.chunk
        self.lead = self.chunk  # latents that can be taken back after delivery
        self.context = config.stream.context_chunks * self.chunk
        self.timeline = Timeline(
            rate, chunk=self.chunk, lead=self.lead, back=model.features.back, ahead=model.features.ahead
        )
        self.stale = False  # whether the cache's context is not that of the latest latents
        self._open_rows()
        with torch.inference_mode():
            silent = Latent(avatar.reference.to(model.device), self._codes(-self.chunk, 0)[0, 0])
            self.decoder = BlockDecoder(model, avatar.picture, silent.z, decode, self.lead)
        # the latest latents, generated and kept; before the stream there was the reference, silent
        self.before = max(self.context, 1)  # one for a decoder that begins with it
        kept = self.before + self.lead + self.chunk + self.decoder.ahead
        self.history = deque([silent] * self.before, maxlen=kept)
        self.watch = Stopwatch()

    @classmethod
    def alone(cls, model: REST, avatar: Avatar, sampling: SamplingConfig, **arguments: Any) -> Stream:
        """A stream with a sampler and a cache of its own; see :meth:`generate`."""
        sampler = ChunkSampler.of(model, sampling)
        cache = IDContextCache(model.config, 2, dtype=model.dtype, device=model.device, steps=sampling.steps)
        return cls(model, avatar, sampler, cache, Branches(0, 1 if sampler.guided else None), **arguments)

    # -- what comes in

    def push(self, samples: np.ndarray) -> None:
        """Sound [n] or [n, channels]; all pushes share dtype and channels. It is kept, not copied."""
        self.timeline.sound.append(samples)

    def end_segment(self) -> None:
        self.timeline.end_segment()

    def deliver(self) -> None:
        """The viewer has got the block of :attr:`upcoming`."""
        self.timeline.deliver()

    def back_to(self, shown: int) -> None:
        """Forget latents from ``shown`` on: timeline, queued speech, decoder; the context is rebuilt when needed."""
        taken_back = self.timeline.generated - shown
        self.timeline.back_to(shown)
        for _ in range(taken_back):
            self.history.pop()
        self.decoder.back_to(shown, [latent.z for latent in self.history])
        self.stale = self.stale or taken_back > 0

    # -- one chunk

    def due(self) -> bool:
        """Whether the sound for the next chunk is there."""
        return self.timeline.due()

    @torch.inference_mode()
    def next_chunk(self, idle: bool = False) -> ChunkJob:
        """The next chunk; with ``idle`` one of silence, before what is queued."""
        timeline = self.timeline
        assert timeline.waiting <= self.decoder.ahead, "stream: the latents of the last chunk are to be shown first"
        with self.watch("features"):
            plan = timeline.plan(idle)
            codes = self._codes(plan.first, plan.limit)
            start = torch.cat([self._noise(timeline.drawn + i, noise.LATENT) for i in range(self.chunk)])[None]
            return ChunkJob(self.rows, codes, start, self._context() if self.stale else (), plan)

    def drop(self, job: ChunkJob) -> None:
        """Give up a job that was run, or may have been."""
        self.stale = True

    def accept(self, job: ChunkJob, latents: torch.Tensor) -> None:
        """The latents fp32 [N, C] that the job gave."""
        plan = job.plan
        pairs = zip(latents.unflatten(0, (self.chunk, -1)), job.codes[0], strict=True)
        made = [Latent(z, code, plan.idle) for z, code in pairs][: plan.keep]
        self.timeline.accept(plan)
        self.history.extend(made)
        self.stale = plan.keep < self.chunk
        self.watch.chunk(plan.keep)

    @torch.inference_mode()
    def generate(self, idle: bool = False) -> None:
        """The next chunk by this stream's own sampler."""
        job = self.next_chunk(idle)
        with self.watch("denoise"):
            latents = self.sampler.run(self.cache, [job])[0]
        self.accept(job, latents)

    def _codes(self, first: int, limit: int) -> torch.Tensor:
        """Speech codes [1, chunk, A, Wa] of the chunk from latent ``first`` on, silent from sample ``limit`` on."""
        window = speech_window(self.model.features, TEMPORAL * first, TEMPORAL * self.chunk)
        return self.model.codes(self.timeline.sound.window16(window.start, window.end, limit), window)

    def _noise(self, index: int, purpose: int) -> torch.Tensor:
        tokens, channels = self.model.config.tokens, self.model.config.vae.latent_channels
        return noise.normal(self.seed, index, tokens * channels, purpose).view(tokens, channels)

    def _open_rows(self) -> None:
        self.cache.open(self.rows.cond, self.avatar.sink_k, self.avatar.sink_v)
        if self.rows.uncond is not None:
            self.cache.open(self.rows.uncond, *self.model.null_sink)

    def _context(self) -> tuple[ContextChunk, ...]:
        """Rows as at the start, and the latest latents that are to be their context; positions start anew.

        A stream that is back at its start has none: its first chunk sees the sink and itself, as any first chunk.
        """
        self._open_rows()
        count = min(-(-self.timeline.generated // self.chunk) * self.chunk, self.context)
        latest = list(self.history)[len(self.history) - count :]
        parts = []
        for i in range(0, count, self.chunk):
            part, drawn = latest[i : i + self.chunk], self.timeline.drawn + i
            start = torch.cat([self._noise(drawn + j, noise.CONTEXT) for j in range(self.chunk)])
            z, codes = torch.cat([latent.z for latent in part]), torch.stack([latent.code for latent in part])
            parts.append(ContextChunk(z[None], codes[None], start[None]))
        return tuple(parts)

    # -- one block

    @torch.inference_mode()
    def shows(self) -> bool:
        """Whether a latent that was generated can be shown; a decoder that looks ahead is fed with the latest."""
        while self.timeline.waiting and not self.decoder.has_next():
            known = self.timeline.generated, self.timeline.complete
            if self.decoder.fed == known:
                return False
            with self.watch("decode"):
                self.decoder.feed([latent.z for latent in self.history], *known)
            self.watch.share(self.chunk, more=True)
        return self.timeline.waiting > 0

    @property
    def upcoming(self) -> Latent:
        """The latent that :meth:`make_block` shows."""
        waiting = self.timeline.waiting
        assert 0 < waiting <= len(self.history), "stream: expected a latent that waits to be shown"
        return self.history[-waiting]

    @torch.inference_mode()
    def make_block(self, epoch: int = 0) -> Block:
        """Of the first latent that was not delivered."""
        latent, index, timeline = self.upcoming, self.timeline.delivered, self.timeline
        a, b, true_end = timeline.border(index), timeline.border(index + 1), timeline.true_end(index)
        true = 0 if latent.idle else b - a if true_end is None else max(0, true_end - a)
        audio, pts = timeline.sound.raw(a, b), index * self.model.config.latent_seconds
        with self.watch("decode", counts=not self.decoder.looks_ahead):
            video = self.decoder.take(latent.z, index)  # last: what was decoded is not to be lost
        self.watch.block(self.model.config.latent_seconds)
        return Block(video, audio, pts, epoch, latent.idle, true_end is not None, true)

    def unmake(self, block: Block) -> None:
        """Back to the state before this block was made; it is made again."""
        self.decoder.put_back(block.video)

    def forget(self) -> None:
        """Drop what nothing can ask for again."""
        self.timeline.forget()

    @property
    def lookahead_ms(self) -> float:
        """Sound that must follow a chunk before all of it is shown: features, resampler, latents of the decoder."""
        sound = (self.model.features.ahead + self.timeline.sound.margin) / RATE
        return 1000 * (sound + self.decoder.ahead * self.model.config.latent_seconds)

    # -- as data

    def identity(self) -> dict[str, Any]:
        """What two streams must share for a snapshot of one to fit the other."""
        return {
            "model": self.model.fingerprint,
            "avatar": self.avatar.identity,
            "seed": self.seed,
            "sample_rate": self.timeline.sound.rate,
            "sampling": dataclasses.asdict(self.sampler.sampling),
            "decoder": self.decoder.kind,
        }

    def snapshot(self, **more: Any) -> SessionState:
        """Everything that is this stream's, and ``more`` values beside it."""
        tensors: dict[str, torch.Tensor] = {}
        committed = []
        for i, row in enumerate(self._row_numbers()):
            tensors[f"k.{i}"], tensors[f"v.{i}"], count = self.cache.snapshot(row)
            committed.append(count)
        for i, latent in enumerate(self.history):
            tensors[f"history.{i}.z"], tensors[f"history.{i}.code"] = latent.z.clone(), latent.code.clone()
        tensors |= {f"decoder.{name}": tensor for name, tensor in self.decoder.to_tensors().items()}
        sound = self.timeline.sound
        tensors["sound"] = torch.from_numpy(sound.raw(sound.start, sound.end).copy())
        meta = {
            "identity": self.identity(),
            "committed": committed,
            "idle": [latent.idle for latent in self.history],
            "_stale_context": self.stale,
        }
        return SessionState(tensors, meta | self.timeline.to_meta() | more)

    def read(self, fields: Fields) -> Content:
        """What :meth:`put` takes. Raises: :class:`rest_fast.StateError`; the stream stays as it was."""
        timeline = self.timeline.read(fields)
        stale, history = fields.flag("_stale_context"), self._read_history(fields, timeline)
        timeline.idle = history[-1].idle
        decoder = self.decoder.read(fields, timeline.floor, timeline.delivered, timeline.generated)
        return Content(timeline, stale, history, decoder, self._read_rows(fields, timeline))

    def put(self, content: Content) -> None:
        """Continue from there. Cannot fail."""
        for row, state in content.rows.items():
            self.cache.restore(row, state)
        self.decoder.put(content.decoder)
        self.history = deque(content.history, maxlen=self.history.maxlen)
        self.timeline, self.stale = content.timeline, content.stale

    def _row_numbers(self) -> list[int]:
        return [row for row in (self.rows.cond, self.rows.uncond) if row is not None]

    def _read_history(self, fields: Fields, timeline: Timeline) -> list[Latent]:
        """The latest latents, and before the first the reference as often as a context or the decoder needs it."""
        idle, config, device = fields.array("idle", bool), self.model.config, self.model.device
        z, code = (config.tokens, config.vae.latent_channels), (config.speech.tokens, config.speech.width)
        low = self.before + timeline.generated - timeline.floor
        high = min(self.before + timeline.generated, self.history.maxlen or 0)
        fields.require(low <= len(idle) <= high, "idle", f"{low} to {high} of them", len(idle))
        wide = [torch.float32] + [torch.float64] * (self.model.dtype == torch.float64)
        return [
            Latent(
                fields.tensor(f"history.{i}.z", z, *wide).to(device),
                fields.tensor(f"history.{i}.code", code, self.model.dtype).to(device),
                flag,
            )
            for i, flag in enumerate(idle)
        ]

    def _read_rows(self, fields: Fields, timeline: Timeline) -> dict[int, tuple[torch.Tensor, torch.Tensor, int]]:
        """Contents of the cache rows. What no step reads before it is written may be anything."""
        cache, rows = self.cache, self._row_numbers()
        most = timeline.drawn // self.chunk + self.model.config.stream.context_chunks
        committed = fields.array("committed", int)
        same = len(committed) == len(rows) and len(set(committed)) == 1 and 0 <= committed[0] <= most
        fields.require(same, "committed", f"one number from 0 to {most}, {len(rows)} times", committed)
        held = cache.held(committed[0])
        contents = {}
        for i, row in enumerate(rows):
            pair = []
            for letter, pool in (("k", cache.k), ("v", cache.v)):
                tensor = fields.shaped(f"{letter}.{i}", tuple(pool[:, row].shape), pool.dtype)
                fields.finite(f"{letter}.{i}", tensor[:, :, held])
                pair.append(tensor.to(self.model.device))
            contents[row] = (pair[0], pair[1], committed[0])
        return contents
