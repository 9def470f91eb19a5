"""Configuration: frozen dataclasses, presets, JSON round trip.

Every choice that the paper leaves open is a field here, so that an ablation changes a value and not the code.
Units are in the field comments; the glossary is in ``docs/design.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rest_fast.config.vae import STRIDES as STRIDES
from rest_fast.config.vae import TEMPORAL as TEMPORAL
from rest_fast.config.vae import VAE_KINDS, BasisVAEConfig, ConvVAEConfig, MotionVAEConfig, VAEConfig
from rest_fast.config.validate import ConfigError, build, check_fields, json_object, require
from rest_fast.config.whole import WholeConfig

Context = Literal["last_step", "clean", "per_step"]
Positions = Literal["window", "absolute"]
Layout = Literal["full", "teacher", "streaming"]


@dataclass(frozen=True)
class SpeechConfig:
    """Speech features and SpeechAE (paper section 3.2 and appendix; READ 3.1)."""

    features: Literal["logmel", "whisper"] = "whisper"
    positions: int = 10  # feature positions in the window of one video frame (past and future)
    channels: int = 1920  # channels of one position: mel bands, or Whisper's hidden states concatenated
    position_ms: int = 20  # time step of a position
    history_ms: int = 4000  # sound before a chunk that its features may see (Whisper's window)
    tokens: int = 2  # audio tokens of one latent frame
    width: int = 2048  # width of an audio token

    def __post_init__(self) -> None:
        check_fields(self, "speech", at_least={1: "positions channels position_ms tokens width"})
        require(40 % self.position_ms == 0, "speech.position_ms", "a divisor of 40 ms", self.position_ms)
        spare = self.positions - self.positions_per_frame
        require(spare >= 0 and spare % 2 == 0, "speech.positions", "a frame's own plus an even number", self.positions)
        require(self.positions % self.tokens == 0, "speech.tokens", f"a divisor of {self.positions}", self.tokens)
        require(
            self.history_ms % 40 == 0 and self.history_ms >= 160,
            "speech.history_ms",
            "a multiple of 40, at least 160",
            self.history_ms,
        )
        if self.features == "logmel":
            require(self.position_ms == 10, "speech.position_ms", "10 (log-mel positions)", self.position_ms)
        require(
            self.side_ms <= self.history_ms,
            "speech.positions",
            f"a window of at most {self.history_ms} ms a side",
            self.positions,
        )

    @property
    def positions_per_frame(self) -> int:
        return 40 // self.position_ms

    @property
    def side_ms(self) -> int:
        """Sound on either side of a video frame that its window of positions covers."""
        return (self.positions - self.positions_per_frame) // 2 * self.position_ms


@dataclass(frozen=True)
class DiTConfig:
    """Streaming A2V-DiT (paper section 3.3): LTX-Video 2B's block plus frame-level audio cross-attention."""

    layers: int = 28
    heads: int = 32
    head_dim: int = 64
    mlp_ratio: int = 4
    text_tokens: int = 128  # 0: no text attention
    text_channels: int = 4096
    audio: bool = True  # False: the plain LTX transformer
    layout: Layout = "streaming"
    qk_eps: float = 1e-5
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_max: tuple[float, float, float] = (20.0, 2048.0, 2048.0)  # seconds, pixels, pixels
    positionwise_io: bool = False  # input and output matrices of its own for each spatial position, for basis latents

    def __post_init__(self) -> None:
        check_fields(
            self,
            "dit",
            at_least={1: "layers heads head_dim mlp_ratio", 0: "text_tokens text_channels"},
            positive="qk_eps norm_eps rope_theta rope_max",
        )
        require(self.head_dim % 2 == 0, "dit.head_dim", "an even number", self.head_dim)
        require(self.width >= 6, "dit.heads * head_dim", "at least 6", self.width)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class StreamConfig:
    """ID-Context cache (paper section 3.3): geometry of the window and what the paper leaves open."""

    chunk: int = 3  #: new latent frames of a chunk
    context_chunks: int = 1
    context: Context = "last_step"
    positions: Positions = "window"
    sink: bool = True  #: False (ablation): the reference is context of the first chunk only

    def __post_init__(self) -> None:
        check_fields(self, "stream", at_least={1: "chunk", 0: "context_chunks"})

    @property
    def window(self) -> int:
        """Latent frames of a full window, by position: reference, context, current."""
        return 1 + (self.context_chunks + 1) * self.chunk


@dataclass(frozen=True)
class SamplingConfig:
    """Euler steps of the rectified flow, joint classifier-free guidance, noise of training (CANS)."""

    steps: int = 8
    guidance: float = 6.0
    shift_mu: float = 2.05  #: sigma schedule: uniform steps shifted by exp(shift_mu); 0 is uniform
    train_mu: float = 2.05  #: training noise: logit-normal
    train_sigma: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "sampling", at_least={1: "steps"}, positive="train_sigma")
        require(self.steps <= 1000, "sampling.steps", "at most 1000", self.steps)
        require(abs(self.guidance) <= 100, "sampling.guidance", "a number in -100..100", self.guidance)


@dataclass(frozen=True)
class ModelConfig(WholeConfig):
    """Everything that a checkpoint's ``config.json`` says."""

    name: str
    height: int
    width: int
    vae: VAEConfig
    speech: SpeechConfig
    dit: DiTConfig
    stream: StreamConfig = field(default_factory=StreamConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    fps: int = 25

    def __post_init__(self) -> None:
        check_fields(self, "")
        self.check_picture()

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read and check a ``config.json``. Raises: :class:`rest_fast.ConfigError` with the name of the field."""
        raw = json_object(text)
        vae = raw.get("vae")
        kind = vae.get("kind") if isinstance(vae, dict) else None
        known = isinstance(kind, str) and kind in VAE_KINDS
        require(known, "vae.kind", " or ".join(VAE_KINDS), kind)
        parts = {
            "vae": VAE_KINDS[str(kind)],
            "speech": SpeechConfig,
            "dit": DiTConfig,
            "stream": StreamConfig,
            "sampling": SamplingConfig,
        }
        values = {k: build(parts[k], v, k) if k in parts else v for k, v in raw.items()}
        return build(cls, values, "config")


def _rest_512() -> ModelConfig:
    """The paper's model: 512x512, 28 blocks of width 2048, 8 steps, guidance 6."""
    return ModelConfig("rest-512", 512, 512, ConvVAEConfig(), SpeechConfig(), DiTConfig())


def _demo() -> ModelConfig:
    """The small model shipped with the package: 256x256, latents of motion that move a photo, log-mel features."""
    return ModelConfig(
        "demo",
        256,
        256,
        MotionVAEConfig(pose_alpha=0.4),
        SpeechConfig("logmel", positions=20, channels=80, position_ms=10, history_ms=160, tokens=4, width=192),
        DiTConfig(
            layers=6,
            heads=3,
            text_tokens=0,
            text_channels=0,
            rope_theta=100.0,
            rope_max=(4.0, 256.0, 256.0),
            positionwise_io=True,
        ),
        sampling=SamplingConfig(steps=4, guidance=2.0, shift_mu=0.0, train_mu=0.0, train_sigma=1.2),
    )


def _drawn() -> ModelConfig:
    """The transformer of ``demo`` on drawn faces of 128x128, around a linear-basis VAE."""
    return _demo().replace(name="drawn", height=128, width=128, vae=BasisVAEConfig())


def _toy() -> ModelConfig:
    """For tests: 64x64, two narrow blocks with every part that rest-512 has."""
    vae = ConvVAEConfig(
        latent_channels=8,
        encoder_channels=(8, 16, 32, 32, 32),
        encoder_layers=(1,) * 5,
        decoder_channels=(32, 16, 8, 8),
        decoder_layers=(1,) * 4,
    )
    return ModelConfig(
        "toy",
        64,
        64,
        vae,
        SpeechConfig("logmel", positions=20, channels=80, position_ms=10, history_ms=160, tokens=2, width=32),
        DiTConfig(layers=2, heads=2, head_dim=16, text_tokens=5, text_channels=24),
        sampling=SamplingConfig(steps=2, guidance=2.0),
    )


PRESETS = {"demo": _demo, "drawn": _drawn, "rest-512": _rest_512, "toy": _toy}


def preset(name: str) -> ModelConfig:
    """The configuration of a preset: ``demo``, ``drawn``, ``rest-512`` or ``toy``."""
    if name not in PRESETS:
        raise ConfigError(f"preset: expected one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]()
