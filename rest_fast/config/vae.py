"""Configurations of the temporal VAE. Import them from :mod:`rest_fast.config`, which they are a part of."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

from rest_fast.config.validate import build, check_fields, require

Resample = Literal["spatial", "temporal", "all"]
Padding = Literal["zeros", "reflect"]  # at the borders of rows and columns

TEMPORAL = 8  # video frames of one latent frame; the paper's VAE and both of ours
STRIDES: dict[str, tuple[int, int, int]] = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "all": (2, 2, 2)}


@dataclass(frozen=True)
class ConvVAEConfig:
    """Convolutional VAE of the LTX-Video family; the defaults are 0.9.5's layout with a causal decoder of our own.

    Released decoders are not causal: whatever reads a checkpoint goes by ``causal_decoder``, never by a default.
    """

    framing: ClassVar[float] = 2.5  # sides of a face detector's square that a photograph's frame takes
    mixed: ClassVar[bool] = False  # whether the decoder's convolutions may have another dtype than the rest

    kind: Literal["conv"] = "conv"
    latent_channels: int = 128
    patch_size: int = 4
    encoder_channels: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    encoder_layers: tuple[int, ...] = (4, 6, 6, 2, 2)
    encoder_down: tuple[Resample, ...] = ("spatial", "temporal", "all", "all")
    encoder_resample: Literal["fold", "stride"] = "fold"  # space to depth with its mean, or (0.9.0, 0.9.1) strides
    encoder_padding: Padding = "zeros"
    decoder_channels: tuple[int, ...] = (1024, 512, 256, 128)  # in order of execution
    decoder_layers: tuple[int, ...] = (5, 5, 5, 5)
    decoder_up: tuple[Resample, ...] = ("all", "all", "all")
    decoder_widen: bool = False  # 0.9.0: a separate block before the upsampler changes the width
    decoder_residual: bool = True  # upsamplers add their own input, rearranged likewise
    decoder_noise: tuple[bool, ...] = (False, False, False, False)  # per stage: noise added after convolutions
    decoder_padding: Padding = "zeros"
    causal_decoder: bool = True
    timestep_conditioning: bool = False
    decode_timestep: float = 0.05  # noise level of its latents that the decoder is told
    decode_noise_scale: float = 0.0  # share of noise mixed into normalised latents before decoding

    def __post_init__(self) -> None:
        sizes = "latent_channels patch_size encoder_channels encoder_layers decoder_channels decoder_layers"
        check_fields(self, "vae", at_least={1: sizes, 0: "decode_timestep decode_noise_scale"})
        enc, dec = len(self.encoder_channels), len(self.decoder_channels)
        require(len(self.encoder_layers) == enc, "vae.encoder_layers", f"{enc} entries", self.encoder_layers)
        require(len(self.encoder_down) == enc - 1, "vae.encoder_down", f"{enc - 1} entries", self.encoder_down)
        require(len(self.decoder_layers) == dec, "vae.decoder_layers", f"{dec} entries", self.decoder_layers)
        require(len(self.decoder_up) == dec - 1, "vae.decoder_up", f"{dec - 1} entries", self.decoder_up)
        require(len(self.decoder_noise) == dec, "vae.decoder_noise", f"{dec} entries", self.decoder_noise)
        for name, kinds in (("encoder_down", self.encoder_down), ("decoder_up", self.decoder_up)):
            halvings = sum(k != "spatial" for k in kinds)
            require(halvings == 3, f"vae.{name}", "three temporal halvings (8 frames a latent)", kinds)
        down = self.patch_size * 2 ** sum(k != "temporal" for k in self.encoder_down)
        up = self.patch_size * 2 ** sum(k != "temporal" for k in self.decoder_up)
        require(down == up, "vae.decoder_up", f"the encoder's spatial factor {down}", up)
        for name in ("decode_timestep", "decode_noise_scale"):
            require(getattr(self, name) <= 1, f"vae.{name}", "at most 1", getattr(self, name))
        self._check_channels()

    def _check_channels(self) -> None:
        """The samplers rearrange cells into channels and average or tile the rest, so widths must divide."""
        for i, kind in enumerate(self.encoder_down if self.encoder_resample == "fold" else ()):
            (a, b), cell = self.encoder_channels[i : i + 2], prod(STRIDES[kind])
            ok = b % cell == 0 and a * cell % b == 0
            require(ok, "vae.encoder_channels", f"a multiple of {cell} that divides {a * cell} after {a}", b)
        for i, kind in enumerate(self.decoder_up if self.decoder_residual else ()):
            (a, b), cell = self.decoder_channels[i : i + 2], prod(STRIDES[kind])
            a = b if self.decoder_widen else a
            ok = a % cell == 0 and b % (a // cell) == 0
            require(
                ok, "vae.decoder_channels", f"a multiple of {max(a // cell, 1)} after {a} (itself one of {cell})", b
            )

    @property
    def spatial(self) -> int:
        """Pixels of one latent cell along one side."""
        return self.patch_size * 2 ** sum(k != "temporal" for k in self.encoder_down)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ConvVAEConfig:
        """The configuration of a VAE without a model."""
        config: ConvVAEConfig = build(cls, json.loads(text), "vae")
        return config


@dataclass(frozen=True)
class BasisVAEConfig:
    """A linear space-time basis per latent position; in its decoder, also a transformer over blocks and a post-net."""

    framing: ClassVar[float] = 2.5
    mixed: ClassVar[bool] = True

    kind: Literal["basis"] = "basis"
    latent_channels: int = 128
    patch_size: int = 32  # side of the block that one latent position covers
    spatial_rank: int = 80  # components of one frame of one block
    motion_weight: float = 1.5  # weight of a block's deviations from its mean over 8 frames
    mixer_layers: int = 4
    mixer_heads: int = 3
    mixer_width: int = 192
    post_channels: int = 64
    post_blocks: int = 2
    post_patch: tuple[int, int, int] = (2, 4, 4)  # frames, rows, columns that become channels
    post_norm_eps: float = 1e-4  # features of the post-net are small: 1e-8 would amplify flat areas

    def __post_init__(self) -> None:
        sizes = "latent_channels patch_size spatial_rank mixer_heads mixer_width post_channels post_patch"
        check_fields(
            self, "vae", at_least={1: sizes, 0: "mixer_layers post_blocks"}, positive="motion_weight post_norm_eps"
        )
        divides = self.mixer_width % self.mixer_heads == 0
        require(divides, "vae.mixer_width", f"a multiple of mixer_heads {self.mixer_heads}", self.mixer_width)
        t, h, w = self.post_patch
        pixels = 3 * self.patch_size**2
        require(
            self.spatial_rank <= pixels,
            "vae.spatial_rank",
            f"at most the {pixels} values of a block",
            self.spatial_rank,
        )
        require(TEMPORAL % t == 0, "vae.post_patch[0]", f"a divisor of {TEMPORAL}", t)
        require(h == w and self.patch_size % h == 0, "vae.post_patch", f"equal divisors of {self.patch_size}", (h, w))
        limit = self.spatial_rank * TEMPORAL
        require(self.latent_channels <= limit, "vae.latent_channels", f"1..{limit}", self.latent_channels)

    @property
    def spatial(self) -> int:
        """Pixels of one latent cell along one side."""
        return self.patch_size


@dataclass(frozen=True)
class MotionVAEConfig:
    """Latents that carry motion alone, and a decoder that moves the photo by them.

    The picture is cut in 4 x 4 cells whatever its size: ``patch_size`` is 64 at 256 px and 128 at 512 px. The networks
    work at 128 px and below; only the photo itself is as large as the picture. Lengths below are of the 64 x 64 map.
    """

    framing: ClassVar[float] = 2.0  # the middle of the training's framings
    mixed: ClassVar[bool] = True

    kind: Literal["motion"] = "motion"
    latent_channels: int = 64  # 8 frames of 8 channels
    patch_size: int = 64  # pixels of one of the 4 x 4 cells along one side
    encoder_channels: tuple[int, ...] = (32, 48, 80, 112)  # at 32, 16, 8 and 4 cells a side
    photo_channels: tuple[int, ...] = (32, 48, 64, 96)  # of the photo branch at 64, 32, 16 and 8 cells a side
    flow_channels: tuple[int, ...] = (32, 40, 64, 96)  # of the flow branch, the first of them in the window alone
    code_width: int = 192  # of what the layers are told of the motion
    window: tuple[int, int, int, int] = (16, 12, 40, 40)  # top, left, rows, columns of eyes and mouth
    pose_alpha: float = 1.0  # of the exponential smoothing of the head's pose; 1: none

    def __post_init__(self) -> None:
        check_fields(
            self,
            "vae",
            at_least={1: "latent_channels patch_size encoder_channels photo_channels flow_channels code_width window"},
        )
        whole = self.latent_channels % TEMPORAL == 0
        require(whole, "vae.latent_channels", f"a multiple of {TEMPORAL}", self.latent_channels)
        for name in ("encoder_channels", "photo_channels", "flow_channels"):
            require(len(getattr(self, name)) == 4, f"vae.{name}", "4 entries", getattr(self, name))
        top, left, rows, columns = self.window
        inside = top + rows <= 64 and left + columns <= 64 and not any(n % 2 for n in self.window)
        require(inside, "vae.window", "even numbers, inside of 64 x 64", self.window)
        require(self.patch_size % 32 == 0, "vae.patch_size", "a multiple of 32", self.patch_size)
        require(0 < self.pose_alpha <= 1, "vae.pose_alpha", "above 0, at most 1", self.pose_alpha)

    @property
    def spatial(self) -> int:
        """Pixels of one latent cell along one side."""
        return self.patch_size


VAEConfig = ConvVAEConfig | BasisVAEConfig | MotionVAEConfig
VAE_KINDS: dict[str, Any] = {"conv": ConvVAEConfig, "basis": BasisVAEConfig, "motion": MotionVAEConfig}
