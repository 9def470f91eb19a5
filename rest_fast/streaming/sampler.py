"""The loop over the denoising steps of a chunk (paper section 3.4), around the cache and the step of the DiT.

Guidance branches are lanes: lane s is the conditional, lane S + s the unconditional branch of session s, both fed the
same noise. Guidance 1 needs no unconditional branch, and then none is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rest_fast import ops
from rest_fast.config import SamplingConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.cross_attention import KV, Audio
from rest_fast.models.dit import Modulation, StreamingDiT
from rest_fast.models.dit_block import Workspace
from rest_fast.models.rest import REST
from rest_fast.streaming.cache import IDContextCache, vectors
from rest_fast.streaming.schedule import sigmas
from rest_fast.streaming.timeline import ChunkPlan


@dataclass(frozen=True)
class Branches:
    """Cache rows of one session: conditional, and unconditional when there is guidance."""

    cond: int
    uncond: int | None


@dataclass(frozen=True, eq=False)
class ContextChunk:
    """Latents of a chunk that was shown and that is to become context again."""

    latents: torch.Tensor  # fp32 [1, N, C]
    codes: torch.Tensor  # [1, F, A, Wa]
    noise: torch.Tensor  # fp32 [1, N, C]


@dataclass(frozen=True, eq=False)
class ChunkJob:
    """All that is needed to generate a stream's next chunk of F latents, N tokens."""

    rows: Branches
    codes: torch.Tensor  # [1, F, A, Wa]
    noise: torch.Tensor  # fp32 [1, N, C]
    context: tuple[ContextChunk, ...]  # to be rebuilt before, oldest first; usually empty
    plan: ChunkPlan  # which latents these are, and which of them are kept


class ChunkSampler:
    """Constants of a model and a schedule, and the chunk loop. Holds nothing of a stream."""

    def __init__(self, dit: StreamingDiT, sampling: SamplingConfig, text: list[KV | None] | None = None):
        self.dit, self.sampling = dit, sampling
        self.guided = sampling.guidance != 1
        self.sigmas = sigmas(sampling.steps, sampling.shift_mu).tolist()
        self.device, self.dtype = dit.table.device, dit.table.dtype
        with torch.no_grad():
            self.text = dit.text_kv() if text is None else text
            self.modulations = [self._modulation(t) for t in self.sigmas]  # the last one is t = 0

    @classmethod
    def of(cls, model: REST, sampling: SamplingConfig) -> ChunkSampler:
        """The sampler of a model, computed so that its last bits do not depend on the number of threads."""
        return model.compute_once(cls, model.dit, sampling, model.text)

    def run(self, cache: IDContextCache, jobs: Sequence[ChunkJob]) -> torch.Tensor:
        """The chunks of S jobs, of as many streams: latents fp32 [S, N, C]."""
        for job in jobs:
            for part in job.context:
                self.rebuild(cache, [job.rows], part.latents, part.noise, part.codes)
        if len(jobs) == 1:  # not copied: with another order in memory a matrix product may round differently
            noise, codes = jobs[0].noise, jobs[0].codes
        else:
            noise, codes = torch.cat([job.noise for job in jobs]), torch.cat([job.codes for job in jobs])
        return self.sample(cache, [job.rows for job in jobs], noise, codes)

    @torch.no_grad()
    def sample(
        self, cache: IDContextCache, sessions: list[Branches], noise: torch.Tensor, codes: torch.Tensor
    ) -> torch.Tensor:
        """The next chunk of S sessions: noise fp32 [S, N, C], codes [S, F, A, Wa] -> latents fp32 [S, N, C]."""
        self._check(cache, sessions, noise, codes)
        rows, z, work, audio = self._prepare(sessions, noise, codes)
        count = len(sessions)
        changes = [after - now for now, after in itertools.pairwise(self.sigmas)]
        guidance, *dt = self._per_session([self.sampling.guidance, *changes], count)
        lanes = [cache.lanes(rows, bank) for bank in range(cache.banks)]
        for step in range(self.sampling.steps):
            v = self.dit.step(
                z.to(self.dtype), self.modulations[step], lanes[step % cache.banks], work, self.text, audio
            )
            ops.cfg_euler_step(z, v[:count], v[-count:], guidance, dt[step])
        if cache.stream.context == "clean":
            self._write(cache, rows, z, -1, 0, work, audio)
        cache.commit(rows)
        return z

    @torch.no_grad()
    def rebuild(
        self,
        cache: IDContextCache,
        sessions: list[Branches],
        latents: torch.Tensor,
        noise: torch.Tensor,
        codes: torch.Tensor,
    ) -> None:
        """Make given latents [S, N, C] the next context chunk, evaluated at the noise level that sampling would use."""
        self._check(cache, sessions, latents, codes)
        if noise.shape != latents.shape:
            raise ArgumentError(
                f"sampler: noise: expected the latents' shape {list(latents.shape)}, got {list(noise.shape)}"
            )
        rows, z, work, audio = self._prepare(sessions, latents, codes)
        context, noise = cache.stream.context, noise.to(z)
        for step in range(self.sampling.steps) if context == "per_step" else [-1]:
            index = {"clean": -1, "last_step": self.sampling.steps - 1}.get(context, step)
            t = self.sigmas[index]
            self._write(cache, rows, (1 - t) * z + t * noise, index, max(step, 0), work, audio)
        cache.commit(rows)

    def _write(
        self,
        cache: IDContextCache,
        rows: list[int],
        z: torch.Tensor,
        index: int,
        bank: int,
        work: Workspace,
        audio: list[Audio | None],
    ) -> None:
        """One evaluation, of which only the slots that it writes are of use."""
        lanes = cache.lanes(rows, bank)
        self.dit.step(z.to(self.dtype), self.modulations[index], lanes, work, self.text, audio)

    def _prepare(
        self, sessions: list[Branches], z: torch.Tensor, codes: torch.Tensor
    ) -> tuple[list[int], torch.Tensor, Workspace, list[Audio | None]]:
        rows = [s.cond for s in sessions]
        if self.guided:  # the lanes behind those of the sessions, which hear nothing
            rows += [s.uncond for s in sessions if s.uncond is not None]
        work = Workspace(len(rows), z.shape[1], self.dit.config, self.dit.table)
        z = z.to(self.device, torch.float64 if self.dtype == torch.float64 else torch.float32, copy=True)
        return rows, z, work, self.dit.hear(codes.to(self.device, self.dtype))

    def _per_session(self, values: list[float], count: int) -> list[torch.Tensor]:
        """fp32 [count] of each value: the same for every session."""
        return vectors([[value] * count for value in values], torch.float32, self.device)

    def _modulation(self, t: float) -> Modulation:
        """AdaLN vectors of one sigma, shared by all lanes: [6, 1, 1, W] per block."""
        return self.dit.modulation(torch.full((1, 1), t, dtype=torch.float32, device=self.device))

    def _check(self, cache: IDContextCache, sessions: list[Branches], z: torch.Tensor, codes: torch.Tensor) -> None:
        frames = self.dit.stream.chunk
        if cache.stream.context == "per_step" and cache.banks != self.sampling.steps:
            raise ArgumentError(
                f"sampler: cache: expected one bank per step ({self.sampling.steps}), got {cache.banks}"
            )
        if not sessions or any((s.uncond is None) is self.guided for s in sessions):
            raise ArgumentError(
                f"sampler: sessions: expected {'two rows' if self.guided else 'one row'} per session at "
                f"guidance {self.sampling.guidance}, got {sessions}"
            )
        if z.ndim != 3 or tuple(z.shape[:2]) != (len(sessions), frames * self.dit.tokens):
            raise ArgumentError(
                f"sampler: noise: expected [{len(sessions)}, {frames * self.dit.tokens}, C], got {list(z.shape)}"
            )
        if tuple(codes.shape[:2]) != (len(sessions), frames):
            raise ArgumentError(f"sampler: codes: expected [{len(sessions)}, {frames}, A, W], got {list(codes.shape)}")
