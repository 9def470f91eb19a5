"""LTX-Video's transformer: from both layouts a model that computes what diffusers' does, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rest_fast
from rest_fast.config import ModelConfig, preset
from rest_fast.convert import ConvertError, convert_ltx_transformer, convert_ltx_vae
from tests.convert.files import LATENT, diffusers_vae, metadata, native_state
from tests.kit.models import clip, randomise, toy

CONFIG = {  # of the file's metadata, narrow
    "_class_name": "Transformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 16,
    "caption_channels": 24,
    "cross_attention_dim": 32,
    "in_channels": LATENT,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "num_attention_heads": 2,
    "num_layers": 3,
    "out_channels": LATENT,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "positional_embedding_theta": 10000.0,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "timestep_scale_multiplier": 1000,
}


def model_config() -> ModelConfig:
    """The toy with three blocks and rows that are not columns."""
    return toy(dit__layers=3, height=64, width=96)


@pytest.fixture(scope="module")
def theirs():
    ltx = pytest.importorskip("diffusers.models.transformers.transformer_ltx")
    model = ltx.LTXVideoTransformer3DModel(
        in_channels=LATENT,
        out_channels=LATENT,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=24,
    )
    randomise(model, 4)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """A converted VAE."""
    path = tmp_path_factory.mktemp("vae")
    diffusers_vae("0.9.0").save_pretrained(path / "in")
    convert_ltx_vae(path / "in", path / "out")
    return path / "out"


def native(model: Any) -> dict[str, torch.Tensor]:
    """LTX-Video's own names."""
    pairs = (
        ("proj_in.", "patchify_proj."),
        ("time_embed.", "adaln_single."),
        ("norm_q", "q_norm"),
        ("norm_k", "k_norm"),
    )
    state = {}
    for name, tensor in model.state_dict().items():
        for diffusers, own in pairs:
            name = name.replace(diffusers, own)
        state[f"model.diffusion_model.{name}"] = tensor.clone()
    return state


def write(path: Path, model: Any, extra: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    """A single file of transformer and, in ``extra``, more."""
    config = {"transformer": {**CONFIG, **changes}, "vae": metadata("0.9.1")}
    save_file({**native(model), **(extra or {})}, path, {"config": json.dumps(config)})
    return path


def velocity(model: Any, z: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return model(
        hidden_states=z,
        encoder_hidden_states=prompt.expand(len(z), -1, -1),
        timestep=1000 * t.repeat_interleave(6, 1),  # per token
        encoder_attention_mask=torch.ones(len(z), prompt.shape[1]),
        num_frames=t.shape[1],
        height=2,
        width=3,
        rope_interpolation_scale=(8 / 25, 32, 32),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("layout", ["single file", "file without words", "folder"])
def test_computes_what_diffusers_computes(tmp_path, theirs, vae, layout):
    """With and without sound, for the output of the attention to it is zero."""
    if layout == "folder":
        theirs.save_pretrained(tmp_path / "in" / "transformer")
        file = tmp_path / "in"
    else:
        file = write(tmp_path / "a.safetensors", theirs)
        if layout == "file without words":
            save_file(load_file(file), file)
    made = convert_ltx_transformer(file, tmp_path / "out", vae=vae, config=model_config())
    model = rest_fast.load(tmp_path / "out", device="cpu")
    assert model.config == made and made.dit == model_config().dit and not made.vae.causal_decoder
    assert model.dit.prompt.eq(0).all()
    g = torch.Generator().manual_seed(0)
    model.dit.prompt.copy_(torch.randn(1, 5, 24, generator=g))
    z, t, codes = (x.float() for x in clip(model.dit, made, 4, 2))
    want = velocity(theirs, z, t, model.dit.prompt)
    assert want.std() > 0.3
    for sound in (None, codes):
        got = model.dit(z, t, sound, layout="full")
        # diffusers' angles are float32 of up to 1.6e4: see tests/models/test_dit.py
        torch.testing.assert_close(got, want, rtol=0, atol=5e-3)
        assert (got - want).square().mean().sqrt() < 1e-3 * want.std()


def test_every_tensor_lands_at_its_place(tmp_path, theirs, vae):
    """All that theirs has is in ours once, and the rest is the audio's, the prompt and the VAE."""
    file = write(tmp_path / "a.safetensors", theirs)
    convert_ltx_transformer(file, tmp_path / "out", vae=vae, config=model_config())
    got, state = load_file(tmp_path / "out" / "model.safetensors"), theirs.state_dict()
    ours = {k: v for k, v in got.items() if k.startswith("dit.") and ".audio." not in k and k != "dit.prompt"}
    assert sum(v.numel() for v in ours.values()) == sum(v.numel() for v in state.values())
    block = "transformer_blocks.2."
    parts = [state[f"{block}attn1.to_{x}.weight"] for x in "qkv"]
    assert torch.equal(ours["dit.blocks.2.attn.qkv.weight"], torch.cat(parts))
    assert torch.equal(ours["dit.blocks.2.text.kv.bias"][32:], state[f"{block}attn2.to_v.bias"])
    assert torch.equal(ours["dit.blocks.2.text.k_norm"], state[f"{block}attn2.norm_k.weight"])
    assert torch.equal(ours["dit.blocks.0.mlp.0.weight"], state["transformer_blocks.0.ff.net.0.proj.weight"])
    assert torch.equal(ours["dit.time.six.bias"], state["time_embed.linear.bias"])
    for name, tensor in load_file(vae / "model.safetensors").items():
        assert torch.equal(got[f"vae.{name}"], tensor), name
    for kind in ("weight", "bias"):
        assert got[f"dit.blocks.1.audio.out.{kind}"].eq(0).all()
    for name in ("dit.blocks.1.audio.kv.weight", "dit.blocks.0.audio.q.weight", "speech.down.1.weight"):
        assert got[name].std() > 0.01, name
    assert not torch.equal(got["dit.blocks.0.audio.q.weight"], got["dit.blocks.1.audio.q.weight"])


def test_the_vae_of_the_same_file(tmp_path, theirs):
    model = diffusers_vae("0.9.1")
    parts = {f"vae.{k}": v for k, v in native_state("0.9.1", model.state_dict()).items()}
    file = write(tmp_path / "a.safetensors", theirs, parts)
    made = convert_ltx_transformer(file, tmp_path / "out", config=model_config())
    assert made.vae == convert_ltx_vae(file, tmp_path / "vae") and made.vae.timestep_conditioning
    loaded = rest_fast.load(tmp_path / "out", device="cpu")
    assert torch.equal(loaded.vae.latents_std.flatten(), model.latents_std)
    pipeline = tmp_path / "pipeline"
    theirs.save_pretrained(pipeline / "transformer")
    model.save_pretrained(pipeline / "vae")
    assert convert_ltx_transformer(pipeline, tmp_path / "out2", config=model_config()) == made
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "out2"))
    assert all(torch.equal(first[k], second[k]) for k in first)  # what is random, too: the same seed


def test_dtype_and_seed(tmp_path, theirs, vae):
    file = write(tmp_path / "a.safetensors", theirs)
    save_file(
        {k: v.bfloat16() for k, v in load_file(file).items()}, file, {"config": json.dumps({"transformer": CONFIG})}
    )
    for name, arguments, dtype in (
        ("own", {}, torch.bfloat16),
        ("asked", {"dtype": "float32"}, torch.float32),
        ("other", {"seed": 1}, torch.bfloat16),
    ):
        convert_ltx_transformer(file, tmp_path / name, vae=vae, config=model_config(), **arguments)
        assert {t.dtype for t in load_file(tmp_path / name / "model.safetensors").values()} == {dtype}
    own, other = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "other"))
    differ = {k for k in own if not torch.equal(own[k], other[k])}
    assert differ and all(k.startswith("speech.") or ".audio." in k for k in differ)


def refuses(file: Path, tmp_path: Path, *words: str, **arguments: Any) -> None:
    with pytest.raises(ConvertError) as caught:
        convert_ltx_transformer(file, tmp_path / "refused", **arguments)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "got" in message, message
    assert all(word in message for word in words), message
    assert not (tmp_path / "refused").exists()


def test_another_transformer_is_refused_by_what_differs(tmp_path, theirs, vae):
    given = {"vae": vae, "config": model_config()}
    file = tmp_path / "a.safetensors"
    for changes, words in (
        ({"num_layers": 48, "attention_head_dim": 128}, ("num_layers 48", "attention_head_dim 128", "num_layers 3")),
        ({"qk_norm": "layer_norm"}, ("qk_norm layer_norm",)),
        ({"positional_embedding_theta": 100.0}, ("positional_embedding_theta 100.0",)),
        ({"_class_name": "AVTransformer3DModel"}, ("_class_name AVTransformer3DModel",)),
        ({"timestep_scale_multiplier": 1}, ("timestep_scale_multiplier 1000", "timestep_scale_multiplier 1")),
    ):
        refuses(write(file, theirs, **changes), tmp_path, *words, **given)
    write(file, theirs)
    refuses(file, tmp_path, "rest-512", "num_layers 28", "num_layers 3", "width 2048", "width 32", vae=vae)
    refuses(file, tmp_path, "text attention", "got drawn", vae=vae, config=preset("drawn"))
    save_file(load_file(file), file)  # by shapes alone
    refuses(file, tmp_path, "num_layers 28", "caption_channels 24", vae=vae)


def test_missing_tensors_and_vaes_that_do_not_fit(tmp_path, theirs, vae):
    file = write(tmp_path / "a.safetensors", theirs)
    state, config = load_file(file), model_config()
    name = "model.diffusion_model.transformer_blocks.1.attn2.to_k.bias"
    save_file({k: v for k, v in state.items() if k != name}, file)
    refuses(file, tmp_path, "1 missing ['transformer_blocks.1.attn2.to_k.bias']", vae=vae, config=config)
    save_file({**state, "model.diffusion_model.audio_proj.weight": torch.zeros(2)}, file)
    refuses(file, tmp_path, "1 unexpected ['audio_proj.weight'", vae=vae, config=config)
    save_file(state, file)
    refuses(file, tmp_path, "encoder.conv_in", "--vae", config=config)
    refuses(file, tmp_path, "convert ltx-vae", vae=tmp_path, config=config)
    other = tmp_path / "other"
    shutil.copytree(vae, other)
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**values, "latent_channels": 9}))
    refuses(file, tmp_path, "8 latent channels", "got 9", vae=other, config=config)


def test_positions_of_later_releases_are_told(tmp_path, theirs, vae, caplog):
    file = write(tmp_path / "a.safetensors", theirs, causal_temporal_positioning=True)
    with caplog.at_level("INFO", "rest_fast"):
        convert_ltx_transformer(file, tmp_path / "out", vae=vae, config=model_config())
    assert "8i - 7" in caplog.text and "prompt" in caplog.text
