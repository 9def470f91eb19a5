"""The VAE decoder as others run it, with our weights: diffusers' own module, and causal caching as Wan's code does it.

Sources, read and put in own words: ``AutoencoderKLLTXVideo`` of diffusers, which decodes a clip and keeps nothing for
the next one; Wan 2.1 (``wan/modules/vae.py``), whose causal convolutions keep their last two input frames in a list by
the order of calls: clone the tail of the input, concatenate cache and input, pad all of it, convolve.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.config import ConvVAEConfig
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.layers import ResBlock
from rest_fast.models.vae.ltx import ConvDecoder, Upsampler

WIDTHS = (1024, 512, 256, 128)  # of the decoder's stages, in order of execution
LAYERS = {"0.9.1": (8, 7, 6, 5), "0.9.5": (5, 5, 5, 5)}
NOISE = {"0.9.1": (False, True, True, True), "0.9.5": (False,) * 4}


def config(release: str, *, causal: bool, shrink: int = 1) -> ConvVAEConfig:
    """The decoder of a release, channels divided by ``shrink``, latents too; the encoder is as small as it can be."""
    return ConvVAEConfig(
        latent_channels=128 // shrink,
        encoder_channels=(4,) * 4,
        encoder_layers=(1,) * 4,
        encoder_down=("all",) * 3,
        encoder_resample="stride",
        decoder_channels=tuple(width // shrink for width in WIDTHS),
        decoder_layers=LAYERS[release],
        decoder_noise=NOISE[release],
        causal_decoder=causal,
        timestep_conditioning=True,
        decode_noise_scale=0.025,
    )


def random_vae(config: ConvVAEConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> TemporalVAE:
    """Weights that keep activations near 1 and pictures near -1..1; noise and timesteps do something."""
    with torch.device(device):
        vae = TemporalVAE(config)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, tensor in vae.decoder.named_parameters():
            tensor.normal_(generator=generator)
            if tensor.ndim >= 2 and not name.endswith("table"):
                tensor /= tensor[0].numel() ** 0.5
            else:
                tensor *= 0.1
        vae.decoder.conv_out.weight *= 0.5
    return vae.to(dtype).eval().requires_grad_(False)


# -- diffusers


class Diffusers(nn.Module):
    """``LTXVideoDecoder3d`` with the weights of ours: latents as the decoder reads them -> video, a clip a call."""

    def __init__(self, vae: TemporalVAE):
        """Raises: ImportError without diffusers; RuntimeError where its libraries do not fit it."""
        from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoDecoder3d

        super().__init__()
        ours, config = vae.decoder, vae.config
        assert isinstance(ours, ConvDecoder) and isinstance(config, ConvVAEConfig)
        assert config.decoder_up == ("all",) * 3 and config.decoder_residual != config.decoder_widen
        like, factor = ours.conv_in.weight, 2 if config.decoder_residual else 1
        with torch.device(like.device):
            self.decoder = LTXVideoDecoder3d(
                in_channels=config.latent_channels,
                block_out_channels=tuple(factor * c for c in reversed(config.decoder_channels[1:])),
                spatio_temporal_scaling=(True,) * 3,
                layers_per_block=tuple(reversed(config.decoder_layers)),
                patch_size=config.patch_size,
                is_causal=config.causal_decoder,
                inject_noise=tuple(reversed(config.decoder_noise)),
                timestep_conditioning=config.timestep_conditioning,
                upsample_residual=(config.decoder_residual,) * 3,
                upsample_factor=(factor,) * 3,
            )
        self.decoder.to(like.dtype).eval().requires_grad_(False)
        names = diffusers_names(config)
        state = {names(name): tensor for name, tensor in ours.state_dict().items()}
        target = self.decoder.state_dict()
        state = {name: tensor.view(target[name].shape) for name, tensor in state.items()}
        if config.timestep_conditioning:
            state["timestep_scale_multiplier"] = like.new_tensor(1000.0)
        self.decoder.load_state_dict(state)
        self.time = like.new_tensor([config.decode_timestep]) if config.timestep_conditioning else None

    def through_onednn(self) -> None:
        """Every convolution from now on by :func:`onednn_conv3d`."""
        for conv in self.modules():
            if isinstance(conv, nn.Conv3d):
                conv.forward = functools.partial(_forward, conv)  # type: ignore[method-assign]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z, None if self.time is None else self.time.expand(len(z)))


def onednn_conv3d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any) -> torch.Tensor:
    """``F.conv3d`` by oneDNN whatever the size: by itself it gives small pieces of a batch of one to a plain loop."""
    ones = {"padding": (0, 0, 0), "stride": (1, 1, 1), "dilation": (1, 1, 1), "groups": 1}
    return torch.mkldnn_convolution(x, weight, bias, **(ones | options))


def _forward(conv: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    assert conv.padding_mode == "zeros"
    options = {name: getattr(conv, name) for name in ("padding", "stride", "dilation", "groups")}
    return onednn_conv3d(x, conv.weight, conv.bias, **options)


def diffusers_names(config: ConvVAEConfig):
    """A function from our name of a decoder's parameter to diffusers', where blocks are grouped by stage."""
    places = [f"mid_block.resnets.{k}" for k in range(config.decoder_layers[0])]
    stages, widths = ["mid_block"], config.decoder_channels
    for i, layers in enumerate(config.decoder_layers[1:]):
        stages.append(f"up_blocks.{i}")
        if config.decoder_widen and widths[i] != widths[i + 1]:
            places.append(f"up_blocks.{i}.conv_in")
        places += [f"up_blocks.{i}.upsamplers.0", *(f"up_blocks.{i}.resnets.{k}" for k in range(layers))]

    def linear(layer: str, rest: str) -> str:
        return f"time_embedder.timestep_embedder.linear_{1 + int(layer) // 2}.{rest}"

    def name(ours: str) -> str:
        part, _, rest = ours.partition(".")
        if part == "table":
            return "scale_shift_table"
        if part == "time_out":
            return linear(*rest.split("."))
        if part == "time":
            stage, layer, rest = rest.split(".")
            return f"{stages[int(stage)]}.{linear(layer, rest)}"
        if part == "blocks":
            index, _, rest = rest.partition(".")
            rest = rest.replace("shortcut.", "conv_shortcut.").replace("norm.", "norm3.")
            rest = re.sub(r"^(conv\d?|conv_shortcut)\.", r"\1.conv.", rest)
            rest = re.sub(r"^noise(\d)$", r"per_channel_scale\1", rest).replace("table", "scale_shift_table")
            return f"{places[int(index)]}.{rest}"
        return f"{part}.conv.{rest}"  # conv_in, conv_out

    return name


@contextlib.contextmanager
def without_noise(*modules: nn.Module) -> Iterator[None]:
    """Scales of injected noise at zero: diffusers draws its images anew at every call, ours belong to the stream."""
    ends = (".noise1", ".noise2", ".per_channel_scale1", ".per_channel_scale2")
    scales = [p for m in modules for name, p in m.named_parameters() if name.endswith(ends)]
    kept = [p.clone() for p in scales]
    for p in scales:
        p.zero_()
    try:
        yield
    finally:
        for p, before in zip(scales, kept, strict=True):
            p.copy_(before)


# -- pad and concatenate


class Concatenating:
    """A causal stream of our decoder as Wan's code would run it; ``latents``: so many in a pass, Wan takes one.

    Every convolution clones, concatenates and pads; norm, modulation, SiLU, noise and residual are passes of their own.
    In its favour: modulation is constant here, too, and the noise images are drawn once.
    """

    def __init__(
        self,
        vae: TemporalVAE,
        images: dict[str, torch.Tensor],
        latents: int | None = None,
        convolve: Callable[..., torch.Tensor] = F.conv3d,
    ):
        assert isinstance(vae.decoder, ConvDecoder) and vae.causal
        self.decoder, self.images, self.latents, self.convolve = vae.decoder, images, latents, convolve
        self.embedded, self.last = self.decoder.embedded()
        self.caches: list[torch.Tensor | None] = []
        self.at = 0

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """The next latents [B, C, n, h, w], as the decoder reads them -> video [B, 3, frames, H, W]."""
        video = None
        for piece in z.split(self.latents or z.shape[2], 2):
            made = self._decode(piece)
            video = made if video is None else torch.cat([video, made], 2)
        assert video is not None
        return video

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        decoder, first, self.at = self.decoder, not self.caches, 0
        x = self._convolve(z, decoder.conv_in)
        for block, stage in zip(decoder.blocks, decoder.stages, strict=True):
            if isinstance(block, Upsampler):
                x = self._upsample(x, block, first)
            else:
                x = self._res_block(x, block, self.embedded[stage])
        x = self._convolve(F.silu(_modulated(_normed(x), self.last)), decoder.conv_out)
        return _depth_to_space(x.transpose(3, 4), (1, decoder.patch, decoder.patch)).transpose(3, 4)

    def _convolve(self, x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
        if self.at == len(self.caches):
            self.caches.append(None)
        cache, tail = self.caches[self.at], x[:, :, -2:].clone()
        before = x[:, :, :1].repeat(1, 1, 2, 1, 1) if cache is None else cache
        if tail.shape[2] < 2:
            tail = torch.cat([before[:, :, -1:], tail], 2)
        x = F.pad(torch.cat([before, x], 2), (1, 1, 1, 1, 0, 0))
        self.caches[self.at] = tail
        self.at += 1
        return self.convolve(x, conv.weight, conv.bias)

    def _res_block(self, x: torch.Tensor, block: ResBlock, embedded: torch.Tensor | None) -> torch.Tensor:
        y = x
        pairs = zip(block.modulation(embedded), (block.conv1, block.conv2), (block.noise1, block.noise2), strict=True)
        for modulation, conv, scale in pairs:
            y = self._convolve(F.silu(_modulated(_normed(y), modulation)), conv)
            if scale is not None:
                y = y + scale.view(-1, 1, 1, 1) * self.images[conv.path][:, None, None]
        return y + x

    def _upsample(self, x: torch.Tensor, block: Upsampler, first: bool) -> torch.Tensor:
        residual = _depth_to_space(x, block.stride).repeat(1, block.tiles, 1, 1, 1)
        x = _depth_to_space(self._convolve(x, block.conv), block.stride) + residual
        return x[:, :, block.stride[0] - 1 :] if first else x


def _normed(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=1) * x.shape[1] ** 0.5


def _modulated(x: torch.Tensor, modulation: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    if modulation is None:
        return x
    scale, shift = (v.view(-1, 1, 1, 1) for v in modulation)
    return x * (1 + scale) + shift


def _depth_to_space(x: torch.Tensor, factors: tuple[int, int, int]) -> torch.Tensor:
    """[B, C p1 p2 p3, T, H, W] -> [B, C, T p1, H p2, W p3]."""
    x = x.unflatten(1, (-1, *factors)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
