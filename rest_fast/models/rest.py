"""The three networks of a checkpoint, and where they compute."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from rest_fast.config import ModelConfig, preset
from rest_fast.models.cross_attention import KV
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.network import Network
from rest_fast.models.speech import SpeechEncoder, SpeechFeatures, SpeechWindow, speech_features
from rest_fast.models.vae import TemporalVAE
from rest_fast.ops.derived import derived
from rest_fast.ops.transfer import sent


class REST(Network):
    """VAE, SpeechAE encoder and DiT of one configuration. It holds nothing of a stream, so streams share it.

    ``threads``: CPU threads for what it computes; see :func:`rest_fast.load`.
    """

    def __init__(self, config: ModelConfig, *, whisper: Any = None, threads: int | None = None):
        super().__init__(threads, any_threads=_sizes(config) == _sizes(preset("drawn")))
        self.config = config
        self.vae = TemporalVAE(config)
        self.speech = SpeechEncoder(config.speech)
        self.dit = StreamingDiT(config)
        self._whisper = (whisper,)  # in a tuple: its weights are the user's, not of this checkpoint

    # -- what it computes

    @functools.cached_property
    def features(self) -> SpeechFeatures:
        return speech_features(self.config.speech, self._whisper[0])

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


def _sizes(config: ModelConfig) -> tuple[Any, ...]:
    """All that the shape of any product depends on."""
    return config.height, config.width, config.vae, config.speech, config.dit, config.stream
