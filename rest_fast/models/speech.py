"""Speech: streaming features and SpeechAE (paper section 3.2; READ section 3.1).

A video frame of 40 ms sees a window of feature positions, some past and some future, so the look-ahead is constant.
The features of a run of frames depend only on a fixed window of 16 kHz samples around them. So it does not matter how
the caller cut the sound, and training data is made by the same call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.config import TEMPORAL, SpeechConfig
from rest_fast.errors import ArgumentError
from rest_fast.units import FRAME, RATE

HOP, WINDOW, FFT = 160, 400, 1024  # of a log-mel position: 10 ms step, 25 ms Hann window, padded transform
MEL_FLOOR = 1e-4  # power at which a band counts as silent: about -75 dBFS of white noise


class SpeechFeatures(Protocol):
    """Features of ``n`` video frames from the samples ``[back | n frames | ahead]``."""

    back: int  # samples needed before the first frame
    ahead: int  # samples needed after the last frame

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """fp32 [B, back + 640 n + ahead] -> [B, n, positions, channels]."""
        ...


@dataclass(frozen=True)
class SpeechWindow:
    """The sound that the codes of a run of latents depend on."""

    start: int  # in samples at 16 kHz from frame 0 on; negative before the stream
    end: int
    missing: int  # video frames before the stream, whose features are zero


def speech_window(features: SpeechFeatures, first: int, frames: int) -> SpeechWindow:
    """The window of ``frames`` video frames from ``first`` on; sessions, evaluation and training data all use it.

    It covers these frames, those of the latent before, which the encoder sees as its past, and the samples that the
    features need on both sides.
    """
    past = first - TEMPORAL
    missing = max(0, min(TEMPORAL + frames, -past))
    return SpeechWindow(past * FRAME - features.back, (first + frames) * FRAME + features.ahead, missing)


def speech_features(config: SpeechConfig, whisper: Any = None) -> SpeechFeatures:
    """The feature extractor of a configuration; ``whisper`` is a loaded ``transformers.WhisperModel``."""
    if config.features == "logmel":
        return LogMel(config)
    return WhisperFeatures(config, whisper)


def mel_filters(bands: int) -> torch.Tensor:
    """fp32 [bands, FFT / 2 + 1]: triangles of equal width on the HTK mel scale, 0 to 8 kHz, peak 1."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    mel = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    low, centre, high = (edges[i : i + bands, None] for i in range(3))
    rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return torch.minimum(rise, fall).clamp(min=0).float()


class Constants:
    """Tensors that features are computed with, on each device where they have been asked for."""

    def __init__(self, *tensors: torch.Tensor):
        self._on = {tensors[0].device: tensors}

    def on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Copied once; a copy from pageable memory would wait for an accelerator at every chunk."""
        if device not in self._on:
            with torch.inference_mode(False):
                self._on[device] = tuple(tensor.to(device) for tensor in next(iter(self._on.values())))
        return self._on[device]


class LogMel:
    """Log-mel positions every 10 ms; digital silence is the zero vector."""

    def __init__(self, config: SpeechConfig):
        assert config.position_ms == 10, f"logmel: expected position_ms 10, got {config.position_ms}"
        self.config = config
        side = config.side_ms * RATE // 1000
        edge = (WINDOW - HOP) // 2  # the analysis window is centred on its hop
        self.back = self.ahead = side + edge
        self.constants = Constants(mel_filters(config.channels), torch.hann_window(WINDOW, dtype=torch.float32))

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        frames = _frames(samples, self.back, self.ahead)
        filters, window = self.constants.on(samples.device)
        pieces = samples.unfold(-1, WINDOW, HOP) * window
        power = torch.fft.rfft(pieces, FFT).abs().square()
        mel = power @ filters.T
        mel = (mel + MEL_FLOOR).log10().sub(math.log10(MEL_FLOOR)) / 3
        windows = mel.unfold(1, self.config.positions, self.config.positions_per_frame)
        return windows[:, :frames].transpose(2, 3).contiguous()  # [B, n, positions, bands]; the view overlaps


def slaney_filters(bands: int) -> torch.Tensor:
    """fp32 [bands, WINDOW / 2 + 1]: triangles of equal area on Slaney's mel scale, 0 to 8 kHz, as Whisper was trained.

    The scale is linear up to 1 kHz (15 mel) and logarithmic above (27 mel for a factor of 6.4).
    """
    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    mel = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 1000 / 15, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, centre, high = (edges[i : i + bands, None] for i in range(3))
    rise, fall = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return (torch.minimum(rise, fall).clamp(min=0) * 2 / (high - low)).float()


class WhisperMel:
    """Whisper's log-mel spectrogram of sound padded to 30 s, on the device of the sound.

    What transformers' ``WhisperFeatureExtractor`` gives, but for roundings: of the largest band's power 2^-24 or so,
    which shows as up to 3e-4 in a band eight decades below it and as 1e-6 elsewhere. Only positions that see a sample
    are transformed; a silent one is the floor.
    """

    limit = 30 * RATE  # samples

    def __init__(self, bands: int):
        self.constants = Constants(slaney_filters(bands), torch.hann_window(WINDOW, dtype=torch.float32))

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """fp32 [B, n], n at most 30 s -> fp32 [B, bands, 3000]."""
        count = samples.shape[1]
        assert count <= self.limit, f"whisper: expected at most {self.limit} samples, got {count}"
        filters, window = self.constants.on(samples.device)
        # A position is centred on its multiple of HOP. Behind the sound stands a window of silence, which the mirror
        # at the end of the transform shows again; the last position of a transform is left out, as Whisper has it.
        heard = min(-(-(count + WINDOW) // HOP) * HOP, self.limit)
        padded = F.pad(samples, (0, heard - count))
        spectrum = torch.stft(padded, WINDOW, HOP, window=window, return_complex=True)[..., :-1]
        power = (filters @ spectrum.abs().square()).clamp(min=1e-10).log10()
        mel = F.pad(power, (0, (self.limit - heard) // HOP), value=-10.0)  # of silence
        return (torch.maximum(mel, power.amax((1, 2), keepdim=True) - 8) + 4) / 4


class WhisperFeatures:
    """Hidden states of Whisper's encoder, all layers concatenated, on a fixed window of sound padded to 30 s.

    Whisper attends over its whole input, so the window (``history_ms`` before the frames, the look-ahead after) is part
    of the definition. The encoder is transformers', and all is computed on its device.
    """

    def __init__(self, config: SpeechConfig, whisper: Any):
        if whisper is None:
            raise ArgumentError(
                "speech.features is 'whisper': expected a loaded transformers.WhisperModel (pip install "
                "'rest_fast[whisper]'), got None"
            )
        channels = (whisper.config.encoder_layers + 1) * whisper.config.d_model
        assert channels == config.channels, f"whisper: expected {config.channels} channels, the model has {channels}"
        self.config, self.encoder = config, whisper.get_encoder().eval()
        self.mel = WhisperMel(whisper.config.num_mel_bins)
        self.back = config.history_ms * RATE // 1000
        self.ahead = config.side_ms * RATE // 1000

    @torch.no_grad()
    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        frames = _frames(samples, self.back, self.ahead)
        weight = next(self.encoder.parameters())
        mel = self.mel(samples.to(weight.device, torch.float32))
        out = self.encoder(mel.to(weight.dtype), output_hidden_states=True)
        states = torch.cat(out.hidden_states, -1)  # [B, 1500, layers x 384]
        step, per_frame = self.config.position_ms * RATE // 1000, self.config.positions_per_frame
        first = (self.back - self.ahead) // step  # position where the first frame's window begins
        windows = states[:, first:].unfold(1, self.config.positions, per_frame)
        return windows[:, :frames].transpose(2, 3).float().contiguous()


def _frames(samples: torch.Tensor, back: int, ahead: int) -> int:
    body = samples.shape[-1] - back - ahead
    if samples.ndim != 2 or body < FRAME or body % FRAME:
        raise ArgumentError(
            f"speech features: samples: expected [B, {back} + {FRAME} n + {ahead}], got {list(samples.shape)}"
        )
    return body // FRAME


class SpeechEncoder(nn.Module):
    """Features of 8 (k + 1) frames -> codes of the last k latent frames.

    Each of three stride-2 convolutions looks one step back, so a code sees its own 8 frames and 7 before them. That is
    why the input begins 8 frames early; at the start of a stream, where the reference stands alone, these are zeros.
    """

    def __init__(self, config: SpeechConfig):
        super().__init__()
        self.tokens = config.tokens
        self.project = nn.Linear(config.positions // config.tokens * config.channels, config.width)
        self.down = nn.ModuleList(nn.Conv1d(config.width, config.width, 3, stride=2) for _ in range(3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, 8 (k + 1), positions, channels] -> codes [B, k, tokens, width]."""
        batch, frames = features.shape[:2]
        if frames % TEMPORAL or frames < 2 * TEMPORAL:
            raise ArgumentError(f"speech encoder: features: expected 8 (k + 1) frames with k >= 1, got {frames}")
        x = features.unflatten(2, (self.tokens, -1)).flatten(3)  # [B, frames, tokens, window part]
        x = self.project(x).permute(0, 2, 3, 1).flatten(0, 1)  # [B tokens, width, frames]
        for conv in self.down:
            x = conv(F.pad(F.silu(x), (1, 0)))
        return x.unflatten(0, (batch, self.tokens)).permute(0, 3, 1, 2)[:, 1:]


class SpeechDecoder(nn.Module):
    """Codes back to features, causal; used by pre-training only (READ section 3.1)."""

    def __init__(self, config: SpeechConfig):
        super().__init__()
        self.positions = config.positions
        self.up = nn.ModuleList(nn.Conv1d(config.width, config.width, 3) for _ in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(config.width, config.width, 3) for _ in range(3))
        self.project = nn.Linear(config.width, config.positions // config.tokens * config.channels)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """[B, k, tokens, width] -> features [B, 8 k, positions, channels]."""
        batch, _, tokens, _ = codes.shape
        x = codes.permute(0, 2, 3, 1).flatten(0, 1)
        for up, residual in zip(self.up, self.residual, strict=True):
            x = up(F.pad(x.repeat_interleave(2, -1), (2, 0)))
            x = x + residual(F.pad(F.silu(x), (2, 0)))
        x = self.project(F.silu(x).transpose(1, 2)).unflatten(0, (batch, tokens))  # [B, tokens, 8k, part]
        return x.transpose(1, 2).reshape(batch, x.shape[2], self.positions, -1)


class SpeechAE(nn.Module):
    """Encoder and pre-training decoder."""

    def __init__(self, config: SpeechConfig):
        super().__init__()
        self.encoder = SpeechEncoder(config)
        self.decoder = SpeechDecoder(config)
