"""Reads the architecture of an LTX-Video VAE checkpoint, as a list of parts in order of execution.

Three descriptions lead to the same list: LTX-Video's own block lists (in a single file's metadata), diffusers'
``config.json``, and, for a file without a configuration, the release that its names reveal. An unknown field is
refused unless it switches something off, since ignoring an option would decode to another picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rest_fast.config.vae import Padding, Resample
from rest_fast.convert.source import ConvertError, Source

AXES: dict[str, Resample] = {"space": "spatial", "time": "temporal", "all": "all"}  # in names of native blocks
_DOWN: dict[str, Resample] = {"spatial": "spatial", "temporal": "temporal", "spatiotemporal": "all"}  # diffusers'


@dataclass(frozen=True)
class Step:
    """A run of residual blocks, a block that changes the width, or a change of resolution."""

    kind: Literal["res", "widen", "resample"]
    name: str  # in the file
    width: int  # channels of its output
    layers: int = 1  # of res
    noise: bool = False  # of res and widen
    axes: Resample = "all"  # of resample
    space_to_depth: bool = True  # of resample in an encoder; else strides
    residual: bool = False  # of an upsampler


@dataclass(frozen=True)
class Description:
    """An architecture and the names of its tensors."""

    diffusers: bool  # whose names
    latent_channels: int
    patch_size: int
    encoder_width: int  # channels of the first stage
    decoder_width: int
    encoder: list[Step]
    decoder: list[Step]
    encoder_padding: Padding
    decoder_padding: Padding
    causal_decoder: bool
    timestep_conditioning: bool


class ConfigFields:
    """The fields of a configuration; those that nobody asks for are refused."""

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where, self.asked = values, where, set[str]()

    def get(self, name: str, kind: type, *default: Any) -> Any:
        """A field of a type; without a default it has to be there."""
        self.asked.add(name)
        value = self.values.get(name, *default)
        if value is None and default:
            value = default[0]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            words = {int: "an integer", bool: "true or false", str: "a string", list: "a list", float: "a number"}
            got = repr(value) if name in self.values else "no such field"
            raise ConvertError(f"{self.where}: {name}: expected {words[kind]}, got {got}")
        return value

    def fixed(self, **expected: Any) -> None:
        """Require these values. A tuple lists the allowed ones, beginning with what an absent field means."""
        for name, choices in expected.items():
            self.asked.add(name)
            choices = choices if isinstance(choices, tuple) else (choices,)
            value = self.values.get(name)
            value = choices[0] if value is None else value
            if isinstance(value, list | dict) or value not in choices:
                wanted = " or ".join(repr(c) for c in choices)
                raise ConvertError(
                    f"{self.where}: {name}: expected {wanted}, which is all that is supported, got {value!r}"
                )

    def finish(self) -> None:
        """Refuse fields that were not asked for, unless they switch something off."""
        for name, value in self.values.items():
            off = value is None or value is False or name.startswith("_")
            if name not in self.asked and not off:
                raise ConvertError(f"{self.where}: expected fields that are known, got {name} = {value!r}")


# -- LTX-Video's own


def describe_native(values: dict[str, Any], where: str) -> Description:
    """From the configuration of ``CausalVideoAutoencoder``. ConvertError for what this package does not have."""
    fields = ConfigFields(values, where)
    fields.fixed(_class_name=("CausalVideoAutoencoder",), dims=3, in_channels=3, out_channels=3)
    fields.fixed(scaling_factor=(1.0,), normalize_latent_channels=False)
    # absent means group_norm, per_channel and true: none of the releases
    fields.fixed(norm_layer=("group_norm", "pixel_norm"), use_quant_conv=(True, False))
    fields.fixed(latent_log_var=("per_channel", "uniform", "constant"), double_z=(True, False))
    for name, wrong in (("norm_layer", "group_norm"), ("use_quant_conv", True), ("latent_log_var", "per_channel")):
        if values.get(name, wrong) == wrong:
            right = {"norm_layer": "pixel_norm", "use_quant_conv": False}.get(name, "uniform or constant")
            raise ConvertError(f"{where}: {name}: expected {right}, got {wrong}{'' if name in values else ' (absent)'}")
    both = fields.get("blocks", list, [])
    encoder = _Walk("encoder.down_blocks", fields.get("encoder_base_channels", int, 128), where)
    decoder = _Walk("decoder.up_blocks", fields.get("decoder_base_channels", int, 128), where)
    down = fields.get("encoder_blocks", list, both)
    up = fields.get("decoder_blocks", list, both)[::-1]  # listed from the picture's side
    for block in up:
        decoder.width *= _divides_width(block, where)
    padding = fields.get("spatial_padding_mode", str, "zeros")
    paddings = [fields.get(f"{side}_spatial_padding_mode", str, padding) for side in ("encoder", "decoder")]
    if not set(paddings) <= {"zeros", "reflect"}:
        raise ConvertError(f"{where}: spatial_padding_mode: expected zeros or reflect, got {paddings}")
    description = Description(
        diffusers=False,
        latent_channels=fields.get("latent_channels", int),
        patch_size=fields.get("patch_size", int, 1),
        encoder_width=encoder.width,
        decoder_width=decoder.width,
        encoder=[encoder.down(i, b) for i, b in enumerate(down)],
        decoder=[decoder.up(i, b) for i, b in enumerate(up)],
        encoder_padding=paddings[0],
        decoder_padding=paddings[1],
        causal_decoder=fields.get("causal_decoder", bool),
        timestep_conditioning=fields.get("timestep_conditioning", bool, False),
    )
    fields.finish()
    return description


class _Walk:
    """Channels along a list of native blocks."""

    def __init__(self, name: str, width: int, where: str):
        self.name, self.width, self.where = name, width, where

    def down(self, i: int, block: Any) -> Step:
        kind, given = _block(block, self.where)
        name = f"{self.name}.{i}"
        if kind == "res_x":
            return self._res(name, given)
        factor = 1 if kind in ("compress_space", "compress_time", "compress_all") else given.get("multiplier", int, 2)
        given.finish()
        self.width *= factor
        if kind == "res_x_y":
            return Step("widen", name, self.width)
        axes = kind.removeprefix("compress_").removesuffix("_res")
        if not kind.startswith("compress_") or axes not in AXES:
            raise ConvertError(f"{self.where}: encoder_blocks[{i}]: expected a known block, got {kind!r}")
        return Step("resample", name, self.width, axes=AXES[axes], space_to_depth=kind.endswith("_res"))

    def up(self, i: int, block: Any) -> Step:
        kind, given = _block(block, self.where)
        name = f"{self.name}.{i}"
        if kind == "res_x":
            return self._res(name, given)
        factor = given.get("multiplier", int, 2 if kind == "res_x_y" else 1)
        if self.width % factor:
            raise ConvertError(f"{self.where}: {kind}: multiplier: expected a divisor of {self.width}, got {factor}")
        self.width //= factor
        if kind == "res_x_y":
            noise = given.get("inject_noise", bool, False)
            given.finish()
            return Step("widen", name, self.width, noise=noise)
        residual = given.get("residual", bool, False)
        given.finish()
        axes = kind.removeprefix("compress_")
        if not kind.startswith("compress_") or axes not in AXES:
            raise ConvertError(f"{self.where}: decoder_blocks: expected a known block, got {kind!r}")
        return Step("resample", name, self.width, axes=AXES[axes], residual=residual)

    def _res(self, name: str, given: ConfigFields) -> Step:
        step = Step("res", name, self.width, given.get("num_layers", int), given.get("inject_noise", bool, False))
        given.finish()
        return step


def _block(block: Any, where: str) -> tuple[str, ConfigFields]:
    """Name and parameters of [name, parameters]; a number alone is the count of layers."""
    if not isinstance(block, list | tuple) or len(block) != 2 or not isinstance(block[0], str):
        raise ConvertError(f"{where}: blocks: expected [name, parameters], got {block!r}")
    name, given = block
    given = {"num_layers": given} if isinstance(given, int) else given
    if not isinstance(given, dict):
        raise ConvertError(f"{where}: {name}: expected parameters, got {given!r}")
    if name != "res_x":
        given = {k: v for k, v in given.items() if k != "num_layers"}  # older lists give every block a number
    return name, ConfigFields(given, f"{where}, block {name}")


def _divides_width(block: Any, where: str) -> int:
    kind, given = _block(block, where)
    if kind == "res_x":
        return 1
    factor: int = given.get("multiplier", int, 2 if kind == "res_x_y" else 1)
    if factor < 1:
        raise ConvertError(f"{where}: {kind}: multiplier: expected at least 1, got {factor}")
    return factor


# -- diffusers


def describe_diffusers(values: dict[str, Any], where: str) -> Description:
    """From the configuration of ``AutoencoderKLLTXVideo``; what older ones lack is as the class has it."""
    fields = ConfigFields(values, where)
    fields.fixed(_class_name=("AutoencoderKLLTXVideo",), in_channels=3, out_channels=3, patch_size_t=1)
    fields.fixed(scaling_factor=(1.0,), encoder_causal=True, resnet_norm_eps=(1e-6,))
    fields.asked |= {"spatial_compression_ratio", "temporal_compression_ratio"}  # follow from the rest
    widths = _per_block(fields, "block_out_channels", 1, (128, 256, 512, 512))
    decoder_widths = _per_block(fields, "decoder_block_out_channels", 1, (128, 256, 512, 512))
    description = Description(
        diffusers=True,
        latent_channels=fields.get("latent_channels", int, 128),
        patch_size=fields.get("patch_size", int, 4),
        encoder_width=widths[0],
        decoder_width=decoder_widths[-1],
        encoder=list(_diffusers_encoder(fields, widths)),
        decoder=list(_diffusers_decoder(fields, decoder_widths[::-1])),
        encoder_padding="zeros",
        decoder_padding="zeros",
        causal_decoder=fields.get("decoder_causal", bool),
        timestep_conditioning=fields.get("timestep_conditioning", bool, False),
    )
    fields.finish()
    return description


def _per_block(fields: ConfigFields, name: str, count: int, default: Sequence[Any]) -> list[Any]:
    """A list with at least one entry per block, of the default's type; numbers are at least 1. Further entries have no
    effect, as in diffusers."""
    values: list[Any] = fields.get(name, list, list(default))
    kind, words = type(default[0]), {int: "integers of at least 1", bool: "true or false", str: "words"}
    right = all(type(value) is kind and (kind is not int or value >= 1) for value in values)
    if len(values) < count or not right:
        raise ConvertError(f"{fields.where}: {name}: expected {count} entries, {words[kind]}, got {values!r}")
    return values


def _diffusers_encoder(fields: ConfigFields, widths: list[int]) -> Iterator[Step]:
    types = _per_block(fields, "down_block_types", 1, ("LTXVideoDownBlock3D",) * 4)
    new = types[-1] == "LTXVideo095DownBlock3D"
    count = len(widths) - new
    if set(types) - {"LTXVideo095DownBlock3D" if new else "LTXVideoDownBlock3D"} or len(types) < count:
        raise ConvertError(f"{fields.where}: down_block_types: expected {count} of one known kind, got {types!r}")
    layers = _per_block(fields, "layers_per_block", count + 1, (4, 3, 3, 3, 4))
    scaling = _per_block(fields, "spatio_temporal_scaling", count, (True, True, True, False))
    kinds = _per_block(fields, "downsample_type", count if new else 0, ("conv",) * 4)
    width = widths[0]
    for i in range(count):
        name = f"encoder.down_blocks.{i}"
        yield Step("res", name, width, layers[i])
        after = widths[i + 1] if i + 1 < len(widths) else width
        if new:
            if not scaling[i] or kinds[i] not in _DOWN:
                raise ConvertError(f"{fields.where}: downsample_type: expected one of {sorted(_DOWN)}, got {kinds!r}")
            width = after
            yield Step("resample", f"{name}.downsamplers.0", width, axes=_DOWN[kinds[i]])
            continue
        if scaling[i]:
            yield Step("resample", f"{name}.downsamplers.0", width, space_to_depth=False)
        if after != width:
            width = after
            yield Step("widen", f"{name}.conv_out", width)
    yield Step("res", "encoder.mid_block", width, layers[-1])


def _diffusers_decoder(fields: ConfigFields, widths: list[int]) -> Iterator[Step]:
    """``widths`` in order of execution; the lists of the configuration are in the reverse one."""
    count = len(widths)
    layers = _per_block(fields, "decoder_layers_per_block", count + 1, (4, 3, 3, 3, 4))[::-1]
    noise = _per_block(fields, "decoder_inject_noise", count + 1, (False,) * 5)[::-1]
    scaling = _per_block(fields, "decoder_spatio_temporal_scaling", count, (True, True, True, False))[::-1]
    residual = _per_block(fields, "upsample_residual", count, (False,) * 4)[::-1]
    factor = _per_block(fields, "upsample_factor", count, (1,) * 4)[::-1]
    width = widths[0]
    yield Step("res", "decoder.mid_block", width, layers[0], bool(noise[0]))
    for i, given in enumerate(widths):
        name, before, after = f"decoder.up_blocks.{i}", width // factor[i], given // factor[i]
        if before != after:
            if factor[i] != 1:
                raise ConvertError(f"{fields.where}: upsample_factor: expected 1 where widths change, got {factor}")
            yield Step("widen", f"{name}.conv_in", after, noise=bool(noise[i + 1]))
        if scaling[i]:
            yield Step("resample", f"{name}.upsamplers.0", after, residual=bool(residual[i]))
        width = after
        yield Step("res", name, width, layers[i + 1], bool(noise[i + 1]))


# -- a file that says nothing


def describe_release(source: Source, release: str | None) -> Description:
    """A release by its number, or else by the names that a file with native names has; widths by the shapes."""
    release = release or _guess(source)
    down, up = RELEASES[release]
    first, last, latent = (
        source.shapes.get(f"{name}.conv.weight", (0, 0))
        for name in ("encoder.conv_in", "decoder.conv_out", "decoder.conv_in")
    )
    if not (first[0] and last[0] and latent[0]):
        raise ConvertError(
            f"{source.path}: expected encoder.conv_in, decoder.conv_in and conv_out, got not all of them"
        )
    values = {
        "_class_name": "CausalVideoAutoencoder",
        "latent_channels": latent[1],
        "patch_size": math.isqrt(first[1] // 3),
        "encoder_base_channels": first[0],
        "decoder_base_channels": last[1],
        "encoder_blocks": down,
        "decoder_blocks": up,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,  # of every release
        "timestep_conditioning": release != "0.9.0",
    }
    return describe_native(values, f"{source.path} as release {release}")


def _guess(source: Source) -> str:
    has = source.shapes.__contains__
    timed, rearranges = has("decoder.last_scale_shift_table"), has("encoder.down_blocks.1.conv.conv.weight")
    strides, widens = has("encoder.down_blocks.1.conv.weight"), has("decoder.up_blocks.4.conv_shortcut.weight")
    if strides and widens and not timed:
        return "0.9.0"
    if strides and timed:
        return "0.9.1"
    if rearranges and timed:
        return "0.9.5"
    raise ConvertError(
        f"{source.path}: expected a configuration in the file's metadata, or names as in one of {sorted(RELEASES)}, "
        "got neither; --release says which it is"
    )


def _res(layers: int, **given: Any) -> list[Any]:
    return ["res_x", {"num_layers": layers, **given}]


_STRIDED = [
    *(_res(4), ["compress_all", {}], ["res_x_y", {}], _res(3), ["compress_all", {}], ["res_x_y", {}]),
    *(_res(3), ["compress_all", {}], _res(3), _res(4)),
]
_UP = ["compress_all", {"residual": True, "multiplier": 2}]
# Encoder blocks, and decoder blocks from the picture's side; 0.9.5 is that of all later ones to 0.9.8.
RELEASES: dict[str, tuple[list[Any], list[Any]]] = {
    "0.9.0": (_STRIDED, _STRIDED),
    "0.9.1": (_STRIDED, [*(b for n in (5, 6, 7) for b in (_res(n, inject_noise=True), _UP)), _res(8)]),
    "0.9.5": (
        [
            *(_res(4), ["compress_space_res", {}], _res(6), ["compress_time_res", {}], _res(6)),
            *(["compress_all_res", {}], _res(2), ["compress_all_res", {}], _res(2)),
        ],
        [_res(5), _UP, _res(5), _UP, _res(5), _UP, _res(5)],
    ),
}
