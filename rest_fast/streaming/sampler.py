"""The denoising steps of a chunk (paper section 3.4), as turns of a :class:`rest_fast.streaming.step.Step`.

Guidance 1 needs no branch without a condition, and then none is computed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from rest_fast.config import SamplingConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.rest import REST
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.graphs import Graphs
from rest_fast.streaming.schedule import sigmas
from rest_fast.streaming.step import Branches, Step, Turn
from rest_fast.streaming.timeline import ChunkPlan


@dataclass(frozen=True, eq=False)
class ContextChunk:
    """Latents of a chunk that was shown and that is to become context again."""

    latents: torch.Tensor  # fp32 [1, N, C]
    codes: torch.Tensor  # [1, F, A, Wa]
    noise: torch.Tensor  # fp32 [1, N, C]


@dataclass(frozen=True, eq=False)
class ChunkJob:
    """All that is needed to generate a stream's next chunk of F latents, N tokens."""

    session: Branches
    codes: torch.Tensor  # [1, F, A, Wa]
    noise: torch.Tensor  # fp32 [1, N, C]
    context: tuple[ContextChunk, ...]  # to be rebuilt before, oldest first; usually empty
    plan: ChunkPlan  # which latents these are, and which of them are kept


class ChunkSampler:
    """The schedule of a sampling, and the chunk loop. What belongs to a stream lies in the step and its cache."""

    def __init__(self, step: Step, sampling: SamplingConfig):
        self.step, self.sampling, self.cache = step, sampling, step.cache
        self.guided = sampling.guidance != 1
        self.sigmas = noise_levels(sampling)
        self.levels = [step.level(t) for t in self.sigmas]
        if self.cache.stream.context == "per_step" and self.cache.banks != sampling.steps:
            raise ArgumentError(
                f"sampler: cache: expected one bank per step ({sampling.steps}), got {self.cache.banks}"
            )

    @classmethod
    def of(
        cls,
        model: REST,
        sampling: SamplingConfig,
        sessions: int = 1,
        graphs: Graphs | None = None,
        *,
        lanes: int | None = None,
        levels: Sequence[float] = (),
    ) -> ChunkSampler:
        """A sampler with a step and a cache for so many sessions of a model.

        Its constants are computed so that their last bits do not depend on the number of threads.

        Args:
            graphs: the step is captured; for a single session with all evaluations of a chunk as one graph.
            lanes: of the step; as many as the sessions have together by default.
            levels: noise levels for further samplers of the same step.
        """
        lanes = sessions * branches(sampling) if lanes is None else lanes
        sampler = model.compute_once(cls._of, model, sampling, sessions, lanes, levels)
        if graphs is not None:
            chunk = len(sampler.evaluations([sampler.session(0)])) if sessions == 1 else 0
            model.compute(sampler.step.capture, graphs("denoising step"), evaluations=chunk)
        elif model.device.type == "cuda":
            model.compute(sampler.step.warm)
        return sampler

    @classmethod
    def _of(
        cls, model: REST, sampling: SamplingConfig, sessions: int, lanes: int, levels: Sequence[float]
    ) -> ChunkSampler:
        each = branches(sampling)
        cache = IDContextCache(
            model.config, sessions * each, dtype=model.dtype, device=model.device, steps=sampling.steps
        )
        every = (*noise_levels(sampling), *levels)
        step = Step(
            model.dit, cache, every, text=model.text, slots=sessions, lanes=lanes, hearing=max(1, lanes // each)
        )
        return cls(step, sampling)

    def session(self, number: int) -> Branches:
        """The places of session ``number`` in a sampler that was made by :meth:`of`."""
        return Branches(number, self.step.slots + number if self.guided else None, number)

    def run(self, jobs: Sequence[ChunkJob]) -> torch.Tensor:
        """The chunks of S jobs, of as many streams: latents fp32 [S, N, C]."""
        for job in jobs:
            for part in job.context:
                self.rebuild([job.session], part.latents, part.noise, part.codes)
        return self._denoise([job.session for job in jobs], [job.noise for job in jobs], [job.codes for job in jobs])

    @torch.no_grad()
    def turns(self, job: ChunkJob) -> Generator[Turn, None, torch.Tensor]:
        """What :meth:`run` does for one job, for callers that put other sessions' evaluations between: each turn is to
        be evaluated before the next is asked for. Returns: latents fp32 [N, C]."""
        session = [job.session]
        for part in job.context:
            self._load(session, "latents", [part.latents], [part.codes])
            for turn, z in self._rebuilding(job.session, part.latents, part.noise):
                self.step.fill(job.session.slot, z)
                yield turn
            self._commit(session)
        self._load(session, "noise", [job.noise], [job.codes])
        for (turn,) in self.evaluations(session):
            yield turn
        self._commit(session)
        return self.step.latents(job.session.slot)[0]

    def sample(self, sessions: list[Branches], noise: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The next chunk of S sessions: noise fp32 [S, N, C], codes [S, F, A, Wa] -> latents fp32 [S, N, C]."""
        return self._denoise(sessions, noise.split(1), codes.split(1))

    @torch.no_grad()
    def rebuild(
        self, sessions: list[Branches], latents: torch.Tensor, noise: torch.Tensor, codes: torch.Tensor
    ) -> None:
        """Make given latents [S, N, C] the next context chunk, evaluated at the noise level that sampling would use."""
        if noise.shape != latents.shape:
            raise ArgumentError(
                f"sampler: noise: expected the latents' shape {list(latents.shape)}, got {list(noise.shape)}"
            )
        self._load(sessions, "latents", latents.split(1), codes.split(1))
        each = [self._rebuilding(*one) for one in zip(sessions, latents.split(1), noise.split(1))]
        for together in zip(*each):
            for turn, z in together:
                self.step.fill(turn.session.slot, z)
            self.step.run([turn for turn, _ in together])
        self._commit(sessions)

    def _rebuilding(
        self, session: Branches, latents: torch.Tensor, noise: torch.Tensor
    ) -> list[tuple[Turn, torch.Tensor]]:
        """The turns that make given latents [1, N, C] context, and the latents with the noise of each."""
        context, steps = self.cache.stream.context, self.sampling.steps
        at = {"clean": [steps], "last_step": [steps - 1], "per_step": [*range(steps)]}[context]
        latents, noise = (x.to(self.step.z) for x in (latents, noise))
        noised = [(1 - self.sigmas[step]) * latents + self.sigmas[step] * noise for step in at]
        banks = at if context == "per_step" else [0]
        return [(Turn(session, self.levels[step], bank), z) for step, bank, z in zip(at, banks, noised)]

    def evaluations(self, sessions: Sequence[Branches]) -> list[list[Turn]]:
        """Those of a chunk, in order: the sampling steps, and under ``clean`` one more that only writes context."""
        guidance, banks = self.sampling.guidance, self.cache.banks
        turns = [
            [Turn(session, level, step % banks, after - now, guidance) for session in sessions]
            for step, (level, (now, after)) in enumerate(zip(self.levels, pairwise(self.sigmas)))
        ]
        if self.cache.stream.context == "clean":
            turns.append([Turn(session, self.levels[-1]) for session in sessions])
        return turns

    @torch.no_grad()
    def _denoise(
        self, sessions: list[Branches], noise: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        self._load(sessions, "noise", noise, codes)
        self.step.run(*self.evaluations(sessions))
        self._commit(sessions)
        return torch.cat([self.step.latents(session.slot) for session in sessions])

    def _commit(self, sessions: list[Branches]) -> None:
        self.step.commit([row for session in sessions for row in session.rows])

    def _load(
        self, sessions: list[Branches], name: str, z: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]
    ) -> None:
        """Put z and codes, one of each for every session, into their slots; refuses all of them if one does not fit."""
        if not sessions or any((s.uncond is None) is self.guided for s in sessions):
            raise ArgumentError(
                f"sampler: sessions: expected {'two rows' if self.guided else 'one row'} per session at "
                f"guidance {self.sampling.guidance}, got {sessions}"
            )
        self.cache.require_open([row for session in sessions for row in session.rows])
        want, frames = tuple(self.step.z.shape[1:]), self.cache.stream.chunk
        if len(z) != len(sessions) or any(tuple(x.shape) != (1, *want) for x in z):
            shapes = [list(x.shape) for x in z]
            raise ArgumentError(
                f"sampler: {name}: expected [1, *{list(want)}] for each of {len(sessions)}, got {shapes}"
            )
        if len(codes) != len(sessions) or any(tuple(x.shape[:2]) != (1, frames) for x in codes):
            shapes = [list(x.shape) for x in codes]
            raise ArgumentError(
                f"sampler: codes: expected [1, {frames}, A, W] for each of {len(sessions)}, got {shapes}"
            )
        for session, latents, heard in zip(sessions, z, codes):
            self.step.load(session.slot, latents, heard)


def branches(sampling: SamplingConfig) -> int:
    """Lanes and cache rows that a session takes."""
    return 1 if sampling.guidance == 1 else 2


def noise_levels(sampling: SamplingConfig) -> list[float]:
    """Sigmas of a schedule, from 1 to 0; the last one is the level of clean latents."""
    levels: list[float] = sigmas(sampling.steps, sampling.shift_mu).tolist()
    return levels
