"""LTX-Video's VAE (0.9.0 to 0.9.8) into a folder that ``TemporalVAE.from_pretrained`` takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rest_fast.checkpoint import CONFIG, WEIGHTS, write
from rest_fast.config import STRIDES, ConvVAEConfig
from rest_fast.config.validate import ConfigError
from rest_fast.convert.ltx_vae_config import (
    RELEASES,
    Description,
    Step,
    describe_diffusers,
    describe_native,
    describe_release,
)
from rest_fast.convert.source import ConvertError, Source, cast, new_folder, open_source, parse_dtype

DECODE_NOISE = 0.025  # share of noise that LTX-Video mixes in if the decoder is told a noise level
SCALE = "decoder.timestep_scale_multiplier"  # what a timestep is multiplied with before its sinusoid
TIME = 256  # channels of that sinusoid

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One tensor: its name in the file, its name and shape here; ``reshape`` if the file's shape differs."""

    theirs: str
    ours: str
    shape: Shape
    reshape: bool = False


def convert_ltx_vae(
    file: str | Path, out: str | Path, *, release: str | None = None, dtype: str | None = None
) -> ConvVAEConfig:
    """Write ``config.json`` (a :class:`~rest_fast.config.ConvVAEConfig`) and ``model.safetensors`` into a new folder.

    Args:
        file: single-file checkpoint of LTX-Video (of the VAE alone, or of all), or a folder of diffusers.
        out: folder to write to, new or empty.
        release: ``0.9.0``, ``0.9.1`` or ``0.9.5``, for a file that has no configuration and names that do not tell.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps that of each tensor.
    Raises: :class:`ConvertError`, before anything is written.
    """
    wanted = parse_dtype(dtype)
    out = new_folder(out)
    config, tensors = read_ltx_vae(open_source(file, "vae"), release)
    write(cast(tensors, wanted, file), config, out)
    return config


def read_ltx_vae(source: Source, release: str | None = None) -> tuple[ConvVAEConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors under the names of ``TemporalVAE``, in the file's dtypes. ConvertError."""
    if release is not None and release not in RELEASES:
        raise ConvertError(f"release: expected one of {sorted(RELEASES)}, got {release!r}")
    where = f"{source.path}, configuration of the VAE"
    if source.config is not None:
        if release is not None:
            raise ConvertError(f"release: expected none, for {source.path} has a configuration, got {release!r}")
        describe = describe_diffusers if source.diffusers else describe_native
        description = describe(source.config, where)
    else:
        description = describe_release(source, release)
    config = vae_config(description, where)
    entries = list(plan(description, config))
    names = _statistics(source)
    column = (config.latent_channels, 1, 1, 1)
    ours = {"latents_mean": names[0], "latents_std": names[1]}
    entries += [Entry(theirs, name, column, True) for name, theirs in ours.items() if theirs]
    expected = {e.theirs: (e.shape[0],) if e.theirs in names else _their_shape(e) for e in entries}
    if config.timestep_conditioning:
        expected[SCALE] = ()
    spare = {n for n in source.shapes if n.startswith("per_channel_statistics.")}  # statistics that are not needed
    source.check(expected, spare | {SCALE})
    if config.timestep_conditioning and source.tensor(SCALE).item() != 1000:
        raise ConvertError(f"{source.path}: {SCALE}: expected 1000, got {source.tensor(SCALE).item()}")
    tensors = {e.ours: source.tensor(e.theirs).reshape(e.shape) for e in entries}
    if "latents_mean" not in tensors:  # LTX-Video takes zeros then, too
        tensors["latents_mean"] = torch.zeros_like(tensors["latents_std"])
    std = tensors["latents_std"].float()
    if not (torch.isfinite(std).all() and (std > 0).all()):
        raise ConvertError(
            f"{source.path}: {names[1]}: expected positive numbers, got {std.min().item():g} as smallest"
        )
    return config, tensors


def read_converted(folder: str | Path) -> tuple[ConvVAEConfig, dict[str, torch.Tensor]]:
    """What :func:`convert_ltx_vae` wrote. ConvertError."""
    path = Path(folder) / CONFIG
    if not path.is_file() or not (Path(folder) / WEIGHTS).is_file():
        raise ConvertError(f"{folder}: expected a folder of rest-fast convert ltx-vae ({CONFIG}, {WEIGHTS}), got none")
    try:
        return ConvVAEConfig.from_json(path.read_text()), load_file(Path(folder) / WEIGHTS)
    except (ValueError, SafetensorError) as e:
        raise ConvertError(f"{folder}: expected a folder of rest-fast convert ltx-vae, got another ({e})") from None


# -- configuration


def vae_config(description: Description, where: str) -> ConvVAEConfig:
    """The steps as stages. ConvertError for an order of steps, or widths, that our modules do not have."""
    try:
        encoder, decoder = _encoder_fields(description, where), _decoder_fields(description, where)
        return ConvVAEConfig(
            latent_channels=description.latent_channels,
            patch_size=description.patch_size,
            encoder_padding=description.encoder_padding,
            decoder_padding=description.decoder_padding,
            causal_decoder=description.causal_decoder,
            timestep_conditioning=description.timestep_conditioning,
            decode_timestep=0.05,
            decode_noise_scale=DECODE_NOISE if description.timestep_conditioning else 0.0,
            **encoder,
            **decoder,
        )
    except ConfigError as e:
        raise ConvertError(f"{where}: {e}") from None


def _encoder_fields(description: Description, where: str) -> dict[str, Any]:
    widths, layers, down, kinds = [description.encoder_width], [0], [], set()
    for step in description.encoder:
        if step.kind == "res":
            layers[-1] += step.layers
        elif step.kind == "resample":
            down.append(step.axes)
            kinds.add(step.space_to_depth)
            widths.append(step.width)
            layers.append(0)
        elif layers[-1] or not down or True in kinds or widths[-1] != widths[-2] or step.width == widths[-1]:
            raise ConvertError(
                f"{where}: {step.name}: expected a change of width only right behind strides, got another"
            )
        else:
            widths[-1] = step.width
    if len(kinds) > 1:
        raise ConvertError(f"{where}: encoder: expected one way of downsampling, got both space to depth and strides")
    return {
        "encoder_channels": tuple(widths),
        "encoder_layers": tuple(layers),
        "encoder_down": tuple(down),
        "encoder_resample": "fold" if kinds != {False} else "stride",
    }


def _decoder_fields(description: Description, where: str) -> dict[str, Any]:
    widths, layers, up = [description.decoder_width], [0], []
    noise: list[set[bool]] = [set()]
    residuals, widened = set(), None
    ways = set[str]()  # how widths change
    for step in description.decoder:
        if widened is not None and step.kind != "resample":
            raise ConvertError(
                f"{where}: {step.name}: expected an upsampler behind the change of width, got {step.kind}"
            )
        if step.kind == "res":
            if layers[-1] and description.timestep_conditioning:
                raise ConvertError(
                    f"{where}: {step.name}: expected one run of blocks a stage with timestep conditioning, got two"
                )
            layers[-1] += step.layers
            noise[-1].add(step.noise)
        elif step.kind == "widen":
            if step.noise or description.timestep_conditioning:
                raise ConvertError(
                    f"{where}: {step.name}: expected neither noise nor timestep where the width changes, got some"
                )
            if step.width == widths[-1]:
                raise ConvertError(f"{where}: {step.name}: expected another width than before, got {step.width} again")
            ways.add("block")
            widened = step.width
        else:
            if step.width != (widened or widths[-1]):
                ways.add("upsampler")
            residuals.add(step.residual)
            up.append(step.axes)
            widths.append(step.width)
            layers.append(0)
            noise.append(set())
            widened = None
    if len(residuals) > 1 or len(ways) > 1 or any(len(n) > 1 for n in noise):
        raise ConvertError(
            f"{where}: decoder: expected all upsamplers of one kind, and noise in whole stages, got a mix"
        )
    return {
        "decoder_channels": tuple(widths),
        "decoder_layers": tuple(layers),
        "decoder_up": tuple(up),
        "decoder_widen": ways == {"block"},
        "decoder_residual": residuals == {True},
        "decoder_noise": tuple(n == {True} for n in noise),
    }


# -- names and shapes


def plan(description: Description, config: ConvVAEConfig) -> Iterator[Entry]:
    """Every tensor of encoder and decoder."""
    names, pixels = _Names(description), 3 * config.patch_size**2
    first, last = config.encoder_channels[0], config.encoder_channels[-1]
    yield from names.conv("encoder.conv_in.conv", "encoder.conv_in", pixels, first)
    yield from names.steps("encoder", description.encoder, first)
    yield from names.conv("encoder.conv_out.conv", "encoder.conv_out", last, config.latent_channels + 1)
    first, last = config.decoder_channels[0], config.decoder_channels[-1]
    yield from names.conv("decoder.conv_in.conv", "decoder.conv_in", config.latent_channels, first)
    yield from names.steps("decoder", description.decoder, first)
    yield from names.conv("decoder.conv_out.conv", "decoder.conv_out", last, pixels)
    if config.timestep_conditioning:
        mark = "" if description.diffusers else "last_"
        yield from names.embedder(f"decoder.{mark}time_embedder", "decoder.time_out", 2 * last)
        yield Entry(f"decoder.{mark}scale_shift_table", "decoder.table", (2, last))


class _Names:
    """Entries of a step's tensors."""

    def __init__(self, description: Description):
        self.diffusers, self.timed = description.diffusers, description.timestep_conditioning

    def steps(self, side: str, steps: list[Step], width: int) -> Iterator[Entry]:
        block, stage = 0, 0
        for step in steps:
            ours = f"{side}.blocks.{block}"
            if step.kind == "res":
                timed = self.timed and side == "decoder"
                if timed:
                    yield from self.embedder(f"{step.name}.time_embedder", f"decoder.time.{stage}", 4 * width)
                for k in range(step.layers):
                    theirs = f"{step.name}.{'resnets' if self.diffusers else 'res_blocks'}.{k}"
                    yield from self.res_block(theirs, f"{side}.blocks.{block + k}", width, step.noise, timed)
                block += step.layers
                continue
            if step.kind == "widen":
                yield from self.widening(step.name, ours, width, step.width)
            else:
                yield from self.resampler(side, step, ours, width)
                stage += 1
            block, width = block + 1, step.width

    def conv(self, theirs: str, ours: str, inputs: int, outputs: int, kernel: int = 3) -> Iterator[Entry]:
        yield Entry(f"{theirs}.weight", f"{ours}.weight", (outputs, inputs, kernel, kernel, kernel))
        yield Entry(f"{theirs}.bias", f"{ours}.bias", (outputs,))

    def embedder(self, theirs: str, ours: str, width: int) -> Iterator[Entry]:
        for k, inputs in ((1, TIME), (2, width)):
            name = f"{theirs}.timestep_embedder.linear_{k}"
            yield Entry(f"{name}.weight", f"{ours}.{2 * k - 2}.weight", (width, inputs))
            yield Entry(f"{name}.bias", f"{ours}.{2 * k - 2}.bias", (width,))

    def res_block(self, theirs: str, ours: str, width: int, noise: bool, timed: bool) -> Iterator[Entry]:
        for k in (1, 2):
            yield from self.conv(f"{theirs}.conv{k}.conv", f"{ours}.conv{k}", width, width)
            if noise:
                yield Entry(f"{theirs}.per_channel_scale{k}", f"{ours}.noise{k}", (width,), True)
        if timed:
            yield Entry(f"{theirs}.scale_shift_table", f"{ours}.table", (4, width))

    def widening(self, theirs: str, ours: str, width: int, after: int) -> Iterator[Entry]:
        yield from self.conv(f"{theirs}.conv1.conv", f"{ours}.conv1", width, after)
        yield from self.conv(f"{theirs}.conv2.conv", f"{ours}.conv2", after, after)
        norm, shortcut = ("norm3", "conv_shortcut.conv") if self.diffusers else ("norm3.norm", "conv_shortcut")
        for name in ("weight", "bias"):
            yield Entry(f"{theirs}.{norm}.{name}", f"{ours}.norm.{name}", (width,))
        yield from self.conv(f"{theirs}.{shortcut}", f"{ours}.shortcut", width, after, 1)

    def resampler(self, side: str, step: Step, ours: str, width: int) -> Iterator[Entry]:
        cell = prod(STRIDES[step.axes])
        if side == "decoder":
            yield from self.conv(f"{step.name}.conv.conv", f"{ours}.conv", width, step.width * cell)
        elif step.space_to_depth:
            yield from self.conv(f"{step.name}.conv.conv", f"{ours}.conv", width, step.width // cell)
        else:
            yield from self.conv(f"{step.name}.conv", ours, width, width)


def _their_shape(entry: Entry) -> Shape:
    return (*entry.shape, 1, 1) if entry.reshape else entry.shape


def _statistics(source: Source) -> tuple[str, str]:
    """Names of the latents' mean and standard deviation; an empty name if there is no mean."""
    if source.diffusers:
        return "latents_mean", "latents_std"
    mean, std = (f"per_channel_statistics.{name}-of-means" for name in ("mean", "std"))
    return mean if mean in source.shapes else "", std
