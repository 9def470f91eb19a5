"""LTX-Video's VAE: every tensor at its place from both layouts, the same pictures as diffusers, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rest_fast.config import ConvVAEConfig
from rest_fast.convert import ConvertError, convert_ltx_vae
from rest_fast.convert.ltx_vae import plan, read_converted, vae_config
from rest_fast.convert.ltx_vae_config import describe_native
from rest_fast.models.vae import TemporalVAE
from tests.convert.files import (
    DIFFUSERS,
    LATENT,
    ORDER,
    RELEASES,
    diffusers_vae,
    folder,
    metadata,
    native_state,
    single_file,
)

UP = ("all",) * 3
STRIDED = {"encoder_channels": (8, 16, 32, 32), "encoder_layers": (4, 3, 3, 7), "encoder_down": UP}
COMMON = {"latent_channels": LATENT, "decoder_up": UP, "causal_decoder": False}
TOLD = {"timestep_conditioning": True, "decode_timestep": 0.05, "decode_noise_scale": 0.025}
WANTED = {
    "0.9.0": ConvVAEConfig(
        **COMMON,
        **STRIDED,
        encoder_resample="stride",
        decoder_channels=(32, 32, 16, 8),
        decoder_layers=(7, 3, 3, 4),
        decoder_widen=True,
        decoder_residual=False,
    ),
    "0.9.1": ConvVAEConfig(
        **COMMON,
        **STRIDED,
        **TOLD,
        encoder_resample="stride",
        decoder_channels=(64, 32, 16, 8),
        decoder_layers=(8, 7, 6, 5),
        decoder_noise=(False, True, True, True),
    ),
    "0.9.5": ConvVAEConfig(**COMMON, **TOLD, encoder_channels=(8, 16, 32, 64, 128), decoder_channels=(64, 32, 16, 8)),
}


def ours(release: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names from diffusers', by counting: one flat list of blocks, written down anew."""
    found = {"latents_mean": state["latents_mean"], "latents_std": state["latents_std"]}
    for side in ("encoder", "decoder"):
        index = 0
        for end in ("conv_in", "conv_out"):
            for kind in ("weight", "bias"):
                found[f"{side}.{end}.{kind}"] = state[f"{side}.{end}.conv.{kind}"]
        for prefix, count in ORDER[release, side]:
            names = [f"{side}.{prefix}.resnets.{k}." for k in range(count)] or [f"{side}.{prefix}."]
            for name in names:
                for key, tensor in state.items():
                    if key.startswith(name):
                        found[f"{side}.blocks.{index}.{_short(key.removeprefix(name))}"] = tensor
                index += 1
    stages = [p for p, _ in ORDER[release, "decoder"] if "." not in p or p.count(".") == 1]
    for key, tensor in state.items():
        if "time_embedder" in key:
            prefix, _, name = key.removeprefix("decoder.").rpartition("time_embedder.timestep_embedder.linear_")
            place = f"time.{stages.index(prefix[:-1])}" if prefix else "time_out"
            found[f"decoder.{place}.{2 * int(name[0]) - 2}{name[1:]}"] = tensor
    if "decoder.scale_shift_table" in state:
        found["decoder.table"] = state["decoder.scale_shift_table"]
    return found


def _short(name: str) -> str:
    name = (
        name.replace("conv_shortcut.conv.", "shortcut.")
        .replace("norm3.", "norm.")
        .replace("per_channel_scale", "noise")
    )
    name = name.replace("scale_shift_table", "table").replace("conv1.conv.", "conv1.").replace("conv2.conv.", "conv2.")
    return name.replace("conv.conv.", "conv.") if name.startswith("conv.conv.") else name.removeprefix("conv.")


@pytest.mark.parametrize("release", RELEASES)
def test_every_tensor_of_a_diffusers_folder_lands_at_its_place(tmp_path, release):
    model = diffusers_vae(release)
    config = convert_ltx_vae(folder(tmp_path / "in", model), tmp_path / "out")
    assert config == WANTED[release] == read_converted(tmp_path / "out")[0]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["kind"] == "conv"
    state = model.state_dict()
    want, got = ours(release, state), load_file(tmp_path / "out" / "model.safetensors")
    assert set(got) == set(want)
    assert len(got) == len(state) - (release != "0.9.0")  # all but the multiplier of timesteps
    for name, tensor in want.items():
        assert torch.equal(got[name].flatten(), tensor.flatten()), name
    assert got["latents_std"].shape == (LATENT, 1, 1, 1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("release", RELEASES)
def test_shows_what_diffusers_shows(tmp_path, release, monkeypatch):
    """Encoded and decoded at full depth in fp32: some sixty convolutions, whose sums run in another order."""
    model = diffusers_vae(release)
    convert_ltx_vae(single_file(tmp_path / "a.safetensors", release, model), tmp_path / "out")
    vae = TemporalVAE.from_pretrained(tmp_path / "out")
    video = torch.rand(2, 3, 17, 64, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    column = (1, LATENT, 1, 1, 1)
    mean, std = model.latents_mean.view(column), model.latents_std.view(column)
    want = (model.encode(video).latent_dist.mode() - mean) / std
    got = vae.encode(video)
    assert want.shape == (2, LATENT, 3, 2, 3)
    torch.testing.assert_close(got, want, rtol=0, atol=3e-5 * want.std().item())
    latents = torch.randn(1, LATENT, 3, 2, 3, generator=torch.Generator().manual_seed(3))
    images = iter(vae.decoder.images(latents, 5).values())  # in the order of the convolutions that they follow
    monkeypatch.setattr(torch, "randn", lambda shape, **_: next(images)[0].view(shape))
    told = torch.tensor([0.05]) if release != "0.9.0" else None
    want = model.decode(vae.denormalised(latents, 0, 5), told, return_dict=False)[0]
    monkeypatch.undo()
    assert next(images, None) is None  # all of them, and no more
    got = vae.decode(latents, mode="exact", seed=5)
    assert want.shape == (1, 3, 17, 64, 96)
    torch.testing.assert_close(got, want, rtol=0, atol=3e-5 * want.std().item())


@pytest.mark.parametrize("prefix", ["vae.", ""])
@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("release", RELEASES)
def test_a_single_file_gives_what_the_folder_gives(tmp_path, release, says, prefix):
    """With its configuration, and without one: by the names and shapes alone."""
    model = diffusers_vae(release)
    want = convert_ltx_vae(folder(tmp_path / "in", model), tmp_path / "want")
    changes = {} if says else {"config": None}
    file = single_file(tmp_path / "ltx.safetensors", release, model, prefix=prefix, **changes)
    assert convert_ltx_vae(file, tmp_path / "got") == want
    same(tmp_path / "want", tmp_path / "got")


def same(a, b) -> None:
    left, right = (load_file(p / "model.safetensors") for p in (a, b))
    assert set(left) == set(right) and all(torch.equal(left[k], right[k]) for k in left)


def test_shards_a_pipeline_and_the_file_itself(tmp_path):
    model = diffusers_vae("0.9.1")
    convert_ltx_vae(folder(tmp_path / "whole", model), tmp_path / "want")
    folder(tmp_path / "shards", model, max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shutil.copytree(tmp_path / "whole", tmp_path / "pipeline" / "vae")
    sources = "shards", "pipeline", "whole/diffusion_pytorch_model.safetensors"
    for i, source in enumerate(sources):
        convert_ltx_vae(tmp_path / source, tmp_path / f"out{i}")
        same(tmp_path / "want", tmp_path / f"out{i}")


def test_a_file_with_a_transformer_and_a_configuration_of_the_vae_alone(tmp_path):
    model = diffusers_vae("0.9.5")
    file = single_file(tmp_path / "a.safetensors", "0.9.5", model)
    state = load_file(file) | {"model.diffusion_model.proj_out.weight": torch.zeros(2, 2)}
    save_file(state, file, {"config": json.dumps(metadata("0.9.5"))})
    assert convert_ltx_vae(file, tmp_path / "out") == WANTED["0.9.5"]


@pytest.mark.parametrize("asked", [None, "float16"])
def test_dtype(tmp_path, asked):
    model = copy.deepcopy(diffusers_vae("0.9.0")).bfloat16()
    convert_ltx_vae(folder(tmp_path / "in", model), tmp_path / "out", dtype=asked)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in got.values()} == {torch.float16 if asked else torch.bfloat16}
    want = model.state_dict()["encoder.conv_in.conv.weight"]
    assert torch.equal(got["encoder.conv_in.weight"], want.to(got["encoder.conv_in.weight"].dtype))


def test_causal_and_padding_as_the_file_says(tmp_path):
    model = diffusers_vae("0.9.5")
    changes = {"causal_decoder": True, "decoder_spatial_padding_mode": "reflect"}
    config = convert_ltx_vae(single_file(tmp_path / "a.safetensors", "0.9.5", model, **changes), tmp_path / "out")
    assert config.causal_decoder and (config.encoder_padding, config.decoder_padding) == ("zeros", "reflect")
    config = convert_ltx_vae(folder(tmp_path / "in", diffusers_vae("0.9.0", causal=True)), tmp_path / "out2")
    assert config.causal_decoder


def test_release_by_word(tmp_path):
    """A file whose names do not tell: a tensor that all tell by is missing, and then it is what is listed."""
    file = single_file(tmp_path / "a.safetensors", "0.9.1", diffusers_vae("0.9.1"), config=None)
    state = load_file(file)
    del state["vae.decoder.last_scale_shift_table"]
    save_file(state, file)
    refuses(file, tmp_path, "--release", "0.9.5")
    refuses(file, tmp_path, "1 missing ['decoder.last_scale_shift_table']", release="0.9.1")
    refuses(file, tmp_path, "one of ['0.9.0', '0.9.1', '0.9.5']", release="0.9.6")


def refuses(file, tmp_path, *words: str, **arguments) -> None:
    """One line that says all the words; and nothing is written."""
    with pytest.raises(ConvertError) as caught:
        convert_ltx_vae(file, tmp_path / "refused", **arguments)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "got" in message, message
    assert all(word in message for word in words), message
    assert not (tmp_path / "refused").exists()


@pytest.fixture
def model():
    return diffusers_vae("0.9.5")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm_layer": "group_norm"}, ("norm_layer", "pixel_norm")),
        ({"latent_log_var": "per_channel"}, ("latent_log_var", "uniform")),
        ({"use_quant_conv": True}, ("use_quant_conv",)),
        ({"dims": 2}, ("dims", "3")),
        ({"scaling_factor": 0.5}, ("scaling_factor", "1.0")),
        ({"_class_name": "CausalDiffusionVAE"}, ("_class_name", "CausalVideoAutoencoder")),
        ({"spatial_padding_mode": "circular"}, ("spatial_padding_mode", "circular")),
        ({"causal_decoder": None}, ("causal_decoder", "true or false")),
        ({"latent_channels": "many"}, ("latent_channels", "integer")),
        ({"sharpen": 2}, ("sharpen", "known")),
        ({"patch_size": 2}, ("encoder.conv_in.conv.weight", "[8, 12, 3, 3, 3]")),
        ({"encoder_blocks": [["res_x", {"num_layers": 4}], ["squeeze", {}]]}, ("encoder_blocks[1]", "squeeze")),
        ({"encoder_blocks": [["res_x", {"num_layers": 4}], ["compress_all_x_y", {}]]}, ("compress_all_x_y",)),
        ({"decoder_blocks": [["attn_res_x", {"num_layers": 1}]]}, ("attn_res_x",)),
        ({"decoder_blocks": [["res_x", {"num_layers": 1, "attention": True}]]}, ("attention", "known")),
        ({"decoder_blocks": ["res_x"]}, ("[name, parameters]",)),
        ({"decoder_blocks": [["res_x", {"num_layers": 5}]]}, ("temporal halvings",)),
    ],
)
def test_what_the_metadata_may_not_say(tmp_path, model, change, words):
    refuses(single_file(tmp_path / "a.safetensors", "0.9.5", model, **change), tmp_path, *words)


def test_a_mix_of_stages(tmp_path, model):
    def blocks(*changes):
        made = metadata("0.9.5")["decoder_blocks"]
        for index, value in changes:
            made[index] = value
        return {"decoder_blocks": made}

    file = tmp_path / "a.safetensors"
    for changed, words in (
        (blocks((1, ["compress_all", {"multiplier": 2}])), ("one kind",)),
        (blocks((0, ["res_x_y", {}])), ("decoder.up_blocks.6", "nor timestep")),
        ({"decoder_blocks": [["res_x", 1], *blocks()["decoder_blocks"]]}, ("one run of blocks a stage",)),
        (
            {"encoder_blocks": [["compress_all", {}], *metadata("0.9.5")["encoder_blocks"]]},
            ("space to depth and strides",),
        ),
    ):
        refuses(single_file(file, "0.9.5", model, **changed), tmp_path, *words)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"_class_name": "AutoencoderKLLTX2Video"}, ("_class_name", "AutoencoderKLLTXVideo")),
        ({"encoder_causal": False}, ("encoder_causal",)),
        ({"decoder_causal": None}, ("decoder_causal", "true or false")),
        ({"downsample_type": ["conv"] * 4}, ("downsample_type",)),
        ({"down_block_types": ["DownBlock"] * 4}, ("down_block_types",)),
        ({"upsample_factor": [2, 2]}, ("upsample_factor", "3 entries")),
        ({"upsample_factor": [2, 2, 0]}, ("upsample_factor", "integers of at least 1")),
        ({"layers_per_block": ["4"] * 5}, ("layers_per_block", "integers of at least 1")),
        ({"block_out_channels": []}, ("block_out_channels", "1 entries")),
        ({"down_block_types": []}, ("down_block_types", "1 entries")),
        ({"upsample_residual": ["false"] * 3}, ("upsample_residual", "true or false")),
        ({"attention": 1}, ("attention", "known")),
    ],
)
def test_what_a_config_of_diffusers_may_not_say(tmp_path, model, values, words):
    path = folder(tmp_path / "in", model) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    refuses(path.parent, tmp_path, *words)


def test_missing_and_unexpected_tensors_are_listed_with_near_names(tmp_path, model):
    file = single_file(tmp_path / "a.safetensors", "0.9.5", model)
    state, meta = load_file(file), {"config": json.dumps({"vae": metadata("0.9.5")})}
    name = "vae.decoder.up_blocks.0.res_blocks.3.conv1.conv.weight"
    save_file(
        {**{k: v for k, v in state.items() if k != name}, name.replace("conv1", "convl"): state[name]}, file, meta
    )
    short = name.removeprefix("vae.")
    near = f"1 missing ['{short}' (nearest: '{short.replace('conv1', 'convl')}')] and 1 unexpected"
    refuses(file, tmp_path, near)
    save_file({k: v for k, v in state.items() if "up_blocks.6.res_blocks" not in k}, file, meta)
    refuses(file, tmp_path, "25 missing", "and 15 more", "0 unexpected []")


def test_shapes_numbers_and_types(tmp_path, model):
    file = single_file(tmp_path / "a.safetensors", "0.9.5", model)
    state, meta = load_file(file), {"config": json.dumps({"vae": metadata("0.9.5")})}
    name = "decoder.conv_in.conv.weight"
    for key, value, words in (
        (name, torch.zeros(64, LATENT, 3, 3, 1), (name, "[64, 8, 3, 3, 3]", "[64, 8, 3, 3, 1]")),
        (name, torch.zeros(64, LATENT, 3, 3, 3, dtype=torch.int8), (name, "bfloat16", "I8")),
        ("per_channel_statistics.std-of-means", torch.zeros(LATENT), ("std-of-means", "positive")),
        ("decoder.timestep_scale_multiplier", torch.tensor(1.0), ("timestep_scale_multiplier", "1000")),
    ):
        save_file({**state, f"vae.{key}": value}, file, meta)
        refuses(file, tmp_path, *words)


def test_without_means_they_are_zero(tmp_path, model):
    file = single_file(tmp_path / "a.safetensors", "0.9.5", model)
    state = {k: v for k, v in load_file(file).items() if not k.endswith(".mean-of-means")}
    save_file(state, file, {"config": json.dumps({"vae": metadata("0.9.5")})})
    convert_ltx_vae(file, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert got["latents_mean"].eq(0).all() and torch.equal(got["latents_std"].flatten(), model.latents_std)


def test_files_that_are_none(tmp_path, model):
    made = folder(tmp_path / "in", model)
    weights = made / "diffusion_pytorch_model.safetensors"
    refuses(tmp_path / "nothing.safetensors", tmp_path, "nothing there")
    (tmp_path / "ltx.ckpt").write_bytes(b"x")
    refuses(tmp_path / "ltx.ckpt", tmp_path, "pickle", "never loaded")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", tmp_path, "config.json")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:100])
    refuses(cut, tmp_path, "complete safetensors file")
    save_file({"a": torch.zeros(1)}, cut)
    refuses(cut, tmp_path, "encoder.conv_in.conv.weight")
    shutil.copy(weights, cut)
    refuses(cut, tmp_path, "config.json beside")
    single = single_file(tmp_path / "s.safetensors", "0.9.5", model)
    refuses(single, tmp_path, "expected none", release="0.9.5")
    save_file(load_file(single), single, {"config": "{"})
    refuses(single, tmp_path, "metadata config", "JSON")
    weights.rename(made / "diffusion_pytorch_model.bin")
    refuses(made, tmp_path, "pickle", "never loaded")


def test_out_is_never_written_over(tmp_path, model):
    made = folder(tmp_path / "in", model)
    with pytest.raises(ConvertError, match="not empty"):
        convert_ltx_vae(made, made)
    with pytest.raises(ConvertError, match="got a file"):
        convert_ltx_vae(made, made / "config.json")


REAL = {
    "0.9.0": {"block_out_channels": (128, 256, 512, 512), "decoder_block_out_channels": (128, 256, 512, 512)},
    "0.9.1": {"block_out_channels": (128, 256, 512, 512), "decoder_block_out_channels": (256, 512, 1024)},
    "0.9.5": {"block_out_channels": (128, 256, 512, 1024, 2048), "decoder_block_out_channels": (256, 512, 1024)},
}
PARAMETERS = {"0.9.0": (180.40, 238.79), "0.9.1": (180.40, 754.57), "0.9.5": (694.10, 552.81)}  # million, as published


@pytest.mark.parametrize("release", RELEASES)
def test_real_widths(release):
    """Names and shapes at the widths of the releases, without a tensor: the table of names fits diffusers' model."""
    ltx = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_ltx")
    with torch.device("meta"):
        model = ltx.AutoencoderKLLTXVideo(**{**DIFFUSERS[release], **REAL[release]})
    said = {k: v for k, v in metadata(release).items() if not k.endswith("base_channels")} | {"latent_channels": 128}
    description = describe_native(said, "test")
    state = {k: torch.empty(v.shape, device="meta") for k, v in model.state_dict().items()}
    state = {k: tuple(v.shape) for k, v in native_state(release, state).items()}
    config = vae_config(description, "test")
    want = {k: v for k, v in state.items() if "statistics" not in k and k != "decoder.timestep_scale_multiplier"}
    entries = list(plan(description, config))
    assert {e.theirs: (*e.shape, 1, 1) if e.reshape else e.shape for e in entries} == want
    for side, million in zip(("encoder.", "decoder."), PARAMETERS[release], strict=True):
        count = sum(math.prod(e.shape) for e in entries if e.ours.startswith(side))
        assert round(count / 1e6, 2) == million
