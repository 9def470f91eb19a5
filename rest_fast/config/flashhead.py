"""Configuration of SoulX-FlashHead Lite, the second family of talking heads; the defaults are the published model's.

Sources: ``flash_head_model.py``, ``flash_head_pipeline.py`` and ``infer_params.yaml`` of the project's repository.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from rest_fast.config.vae import TEMPORAL, ConvVAEConfig
from rest_fast.config.validate import build, check_fields, json_object, require
from rest_fast.config.whole import WholeConfig
from rest_fast.units import FPS, RATE

FAMILY = "flashhead"
PUBLISHED_FOLDER, PUBLISHED_FIELD = "Model_Lite", "vae_stride"  # what tells the authors' checkpoint by


@dataclass(frozen=True)
class Wav2VecConfig:
    """wav2vec 2.0 base: features of sound, 12 hidden states of 768 channels for each video frame."""

    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    layers: int = 12
    heads: int = 12
    width: int = 768
    mlp_width: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    norm_eps: float = 1e-5
    seconds: int = 8  # of sound that features of a chunk see; it ends with the chunk

    def __post_init__(self) -> None:
        sizes = "conv_channels conv_kernels conv_strides layers heads width mlp_width position_kernel position_groups"
        check_fields(self, "speech", at_least={1: sizes, 2: "seconds"}, positive="norm_eps")
        for name in ("conv_kernels", "conv_strides"):
            count = len(self.conv_channels)
            require(len(getattr(self, name)) == count, f"speech.{name}", f"{count} entries", getattr(self, name))
        for name in ("heads", "position_groups"):
            value = getattr(self, name)
            require(self.width % value == 0, f"speech.{name}", f"a divisor of {self.width}", value)
        least = f"strides that, with the kernels, leave something of {self.seconds} s of sound"
        require(self._positions() > 0, "speech.conv_strides", least, self.conv_strides)

    def _positions(self) -> int:
        """How many features the convolutions make of a window; none where a kernel is longer than what it gets."""
        count = self.seconds * RATE
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            count = max(0, (count - kernel) // stride + 1)
        return count


@dataclass(frozen=True)
class FlashHeadDiTConfig:
    """The transformer: Wan 2.1's blocks of 1.3 B parameters, with attention to audio in the place of text."""

    layers: int = 30
    heads: int = 12
    head_dim: int = 128
    mlp_width: int = 8960
    time_channels: int = 256  # of the timestep's sinusoid
    norm_eps: float = 1e-6
    qk_eps: float = 1e-6
    rope_theta: float = 10000.0
    audio_window: int = 5  # video frames whose features a frame hears, itself in the middle
    audio_hidden: int = 512
    audio_tokens: int = 32  # of one latent frame
    audio_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(
            self,
            "dit",
            at_least={1: "layers heads mlp_width time_channels audio_window audio_hidden audio_tokens", 6: "head_dim"},
            positive="norm_eps qk_eps rope_theta audio_eps",
        )
        for name in ("head_dim", "time_channels"):
            require(getattr(self, name) % 2 == 0, f"dit.{name}", "an even number", getattr(self, name))
        thirds = self.head_dim // 3 % 2 == 0
        require(thirds, "dit.head_dim", "one whose third, rounded down, is even", self.head_dim)
        require(self.audio_window % 2 == 1, "dit.audio_window", "an odd number", self.audio_window)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class FlashHeadStreamConfig:
    """The window of a chunk: motion latents, which repeat what was shown, and new ones."""

    chunk: int = 3  # new latent frames
    motion: int = 2  # latent frames that are encoded from the last 9 frames shown; one, the photo's, at the start
    colour: float = 1.0  # share of the match to the photo's colours
    posterior: Literal["sample", "mean"] = "sample"  # what encoding takes of the VAE's posterior

    def __post_init__(self) -> None:
        check_fields(self, "stream", at_least={1: "chunk", 2: "motion", 0: "colour"})
        require(self.colour <= 1, "stream.colour", "a share in 0..1", self.colour)

    @property
    def window(self) -> int:
        """Latent frames of an evaluation."""
        return self.motion + self.chunk

    @property
    def frames(self) -> int:
        """Video frames of the window."""
        return 1 + TEMPORAL * (self.window - 1)

    @property
    def motion_frames(self) -> int:
        """Video frames that the motion latents encode."""
        return 1 + TEMPORAL * (self.motion - 1)


DISTILLED_STEPS = (2, 4)


@dataclass(frozen=True)
class FlashHeadSamplingConfig:
    """Few steps of a distilled flow: each predicts the clean latents and adds fresh noise again; no guidance."""

    steps: int = 4
    shift: float = 5.0  # t -> shift t / (1 + (shift - 1) t)
    rounding: Literal["bfloat16", "none"] = "bfloat16"  # of timesteps and noise levels, as the published code has it
    guidance: float = 1.0  # none: the model was distilled with it

    def __post_init__(self) -> None:
        check_fields(self, "sampling", at_least={1: "steps"}, positive="shift")
        require(self.steps in DISTILLED_STEPS, "sampling.steps", "2 or 4, for which it was distilled", self.steps)
        require(self.guidance == 1, "sampling.guidance", "1, since the model was distilled", self.guidance)


@dataclass(frozen=True)
class FlashHeadConfig(WholeConfig):
    """Everything that the ``config.json`` of such a checkpoint says."""

    name: str
    height: int
    width: int
    vae: ConvVAEConfig
    speech: Wav2VecConfig = field(default_factory=Wav2VecConfig)
    dit: FlashHeadDiTConfig = field(default_factory=FlashHeadDiTConfig)
    stream: FlashHeadStreamConfig = field(default_factory=FlashHeadStreamConfig)
    sampling: FlashHeadSamplingConfig = field(default_factory=FlashHeadSamplingConfig)
    fps: int = 25
    family: Literal["flashhead"] = "flashhead"

    def __post_init__(self) -> None:
        check_fields(self, "")
        self.check_picture()
        heard = self.stream.frames + self.dit.audio_window // 2
        least = f"at least {math.ceil(heard / FPS)}, for {heard} frames"
        require(self.speech.seconds * FPS >= heard, "speech.seconds", least, self.speech.seconds)

    @classmethod
    def from_json(cls, text: str) -> FlashHeadConfig:
        """Read and check a JSON object. Raises: :class:`rest_fast.ConfigError` with the name of the field."""
        raw = json_object(text)
        parts: dict[str, Any] = {
            "vae": ConvVAEConfig,
            "speech": Wav2VecConfig,
            "dit": FlashHeadDiTConfig,
            "stream": FlashHeadStreamConfig,
            "sampling": FlashHeadSamplingConfig,
        }
        found: FlashHeadConfig = build(
            cls, {k: build(parts[k], v, k) if k in parts else v for k, v in raw.items()}, "config"
        )
        return found
