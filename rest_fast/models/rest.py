"""The three networks of a checkpoint, and where they compute."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from rest_fast import checkpoint, cores
from rest_fast.config import ModelConfig, preset
from rest_fast.models.cross_attention import KV
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.speech import SpeechEncoder, SpeechFeatures, SpeechWindow, speech_features
from rest_fast.models.vae import TemporalVAE
from rest_fast.ops.derived import derived, forget
from rest_fast.ops.transfer import sent
from rest_fast.units import from_levels
from rest_fast.worker import Worker, worker

T = TypeVar("T")


class REST(nn.Module):
    """VAE, SpeechAE encoder and DiT of one configuration. It holds nothing of a stream, so streams share it.

    ``threads``: CPU threads for what it computes; see :func:`rest_fast.load`.
    """

    def __init__(self, config: ModelConfig, *, whisper: Any = None, threads: int | None = None):
        super().__init__()
        self.config, self.threads = config, threads
        self._cores = cores.allowed()  # asked once: it reads a dozen files
        self._any_threads = _sizes(config) == _sizes(preset("drawn"))
        self.vae = TemporalVAE(config)
        self.speech = SpeechEncoder(config.speech)
        self.dit = StreamingDiT(config)
        self._whisper = (whisper,)  # in a tuple: its weights are the user's, not of this checkpoint

    @property
    def device(self) -> torch.device:
        return self.dit.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.table.dtype

    # -- where it computes

    @property
    def worker(self) -> Worker:
        """The thread in which this model computes."""
        return worker(self.device)

    def team(self) -> tuple[int, bool]:
        """The largest number of OpenMP threads for a job of this model, and whether fewer are allowed.

        The frames of a model of the preset ``drawn`` do not depend on the number, which is tested. At other sizes MKL
        and oneDNN may divide one sum between threads (with AVX2 oneDNN does so in the demo's decoder), and in bfloat16
        the last bits of products depend on the number at any size.
        """
        if self.threads is not None:
            return self.threads, False
        one = self.worker
        asked_by_a_job = one.thread == threading.get_ident()  # it may have been given fewer than it may have
        most = one.limit if asked_by_a_job else torch.get_num_threads()
        return min(most, self._cores), self._any_threads and self.dtype == torch.float32

    def compute(self, job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """``job(*args, **kwargs)`` in the model's worker; waits for the result."""
        return self.worker.run(*self.team(), job, *args, **kwargs)

    def submit(self, job: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """The same without waiting."""
        return self.worker.submit(*self.team(), job, *args, **kwargs)

    def compute_once(self, job: Callable[..., T], *args: Any) -> T:
        """Compute what streams start from in one thread, so that its last bits do not depend on the number of cores.

        MKL computes it and may divide its longest sums between threads: with AVX2 those of 768 inputs and 16 tokens.
        """
        return self.worker.run(1, False, job, *args)

    # -- what it computes

    @functools.cached_property
    def features(self) -> SpeechFeatures:
        return speech_features(self.config.speech, self._whisper[0])

    def pixels(self, picture: np.ndarray) -> torch.Tensor:
        """A picture uint8 [H, W, 3] as the VAE takes it: [1, 3, 1, H, W] in -1..1."""
        pixels = from_levels(torch.from_numpy(picture.copy()).to(self.device).float())  # bf16 has 8 bits
        return pixels.permute(2, 0, 1)[None, :, None].to(self.dtype)

    def codes(self, samples: np.ndarray, window: SpeechWindow) -> torch.Tensor:
        """Speech codes [1, F, A, Wa] of a run of latents; samples fp32 [end - start] are the sound of its window."""
        heard = sent(torch.from_numpy(samples)[None], self.device)
        seen = self.features(heard).to(self.device, self.dtype)
        seen = torch.cat([torch.zeros_like(seen[:, : window.missing]), seen[:, window.missing :]], 1)
        codes: torch.Tensor = self.speech(seen)
        return codes

    def sink(self, reference: torch.Tensor) -> KV:
        """Keys and values [L, T, H, D] of a reference [1, T, C]."""
        speech = self.config.speech
        codes = torch.zeros(1, 1, speech.tokens, speech.width, device=self.device, dtype=self.dtype)
        k, v = self.compute_once(self.dit.sink, reference.to(self.device, self.dtype), codes)
        return k[:, 0], v[:, 0]

    # -- derived from the weights, once

    @property
    def fingerprint(self) -> str:
        """Identity of the weights as loaded; an avatar belongs to one."""
        return derived(self, "_fingerprint", self._weights(), lambda: self.compute(self._hashed))

    def _hashed(self) -> str:
        return checkpoint.fingerprint(self, self.config)

    @property
    def null_sink(self) -> KV:
        """Sink of the unconditional branch: the zero latent."""

        def make() -> KV:
            shape = (1, self.config.tokens, self.config.vae.latent_channels)
            return self.sink(torch.zeros(shape, device=self.device, dtype=self.dtype))

        return derived(self, "_null_sink", self._weights(), make)

    @property
    def text(self) -> list[KV | None]:
        """Keys and values of the fixed prompt, per block."""
        compute = torch.no_grad()(self.dit.text_kv)
        return derived(self, "_text", self._weights(), lambda: self.compute_once(compute))

    def _weights(self) -> tuple[torch.Tensor, ...]:
        return (*self.parameters(), *self.buffers())

    def _apply(self, function, recurse=True):
        """On a change of device or dtype, drop what was derived from the weights, and free its memory."""
        forget(self)
        return super()._apply(function, recurse)


def _sizes(config: ModelConfig) -> tuple[Any, ...]:
    """All that the shape of any product depends on."""
    return config.height, config.width, config.vae, config.speech, config.dit, config.stream
