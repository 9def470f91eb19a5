"""SoulX-FlashHead Lite from the published layout: every tensor at its place, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rest_fast
from rest_fast import checkpoint, cli
from rest_fast.config.flashhead import FlashHeadConfig
from rest_fast.convert import ConvertError, convert_flashhead
from rest_fast.models.flashhead import FlashHead
from tests.kit.flashhead_folder import FULL, Sizes, model_shapes, speech_shapes, vae_shapes, write

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("published"))


@pytest.fixture
def own(given, tmp_path) -> tuple[Path, Path]:
    """A copy to spoil."""
    return tuple(Path(shutil.copytree(path, tmp_path / path.name)) for path in given)


def refuses(folder: Path, out: Path, *words: str, wav2vec: Path, **options) -> None:
    """One line that says all these words, and nothing written."""
    with pytest.raises(ConvertError) as found:
        convert_flashhead(folder, out / "out", wav2vec=wav2vec, **options)
    text = str(found.value)
    assert all(word in text for word in words) and "\n" not in text, text
    assert not (out / "out").exists()


def change(path: Path, **values) -> None:
    said = json.loads((path / "config.json").read_text()) | values
    (path / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


def test_every_tensor_is_at_its_place(given, tmp_path):
    published, wav2vec = given
    config = convert_flashhead(published, tmp_path / "out", wav2vec=wav2vec, size=64)
    assert checkpoint.read_any_config(tmp_path / "out") == config
    assert (config.height, config.dit.layers, config.dit.audio_tokens, config.dit.audio_hidden) == (64, 2, 3, 10)
    assert config.vae.encoder_resample == "stride" and not config.vae.causal_decoder and config.vae.decoder_widen
    model = FlashHead(config)
    checkpoint.read_weights(model, tmp_path / "out")
    ours, theirs = model.dit.state_dict(), load_file(published / "Model_Lite" / WEIGHTS)
    used = set()

    def same(name: str, *parts: str) -> None:
        used.update(parts)
        want = torch.cat([theirs[part] for part in parts])
        assert torch.equal(ours.pop(name), want.reshape(model.dit.state_dict()[name].shape)), name

    for name, part in (("table", "head.modulation"), ("blocks.0.table", "blocks.0.modulation")):
        same(name, part)
    same("blocks.1.table", "blocks.1.modulation")
    for kind in ("weight", "bias"):
        same(f"proj_in.{kind}", f"patch_embedding.{kind}")
        same(f"proj_out.{kind}", f"head.head.{kind}")
        same(f"time.six.{kind}", f"time_projection.1.{kind}")
        for i in (0, 2):
            same(f"time.embed.{i}.{kind}", f"time_embedding.{i}.{kind}")
        for mine, name in (("first", "proj1"), ("later", "proj1_vf"), ("mix", "proj2"), ("out", "proj3")):
            same(f"audio.{mine}.{kind}", f"audio_proj.{name}.{kind}")
        same(f"audio.norm.{kind}", f"audio_proj.norm.{kind}")
        for i in range(2):
            b = f"blocks.{i}"
            same(f"{b}.attn.qkv.{kind}", *(f"{b}.self_attn.{letter}.{kind}" for letter in "qkv"))
            same(f"{b}.attn.out.{kind}", f"{b}.self_attn.o.{kind}")
            same(f"{b}.audio.q.{kind}", f"{b}.cross_attn.q.{kind}")
            same(f"{b}.audio.kv.{kind}", f"{b}.cross_attn.k.{kind}", f"{b}.cross_attn.v.{kind}")
            same(f"{b}.audio.out.{kind}", f"{b}.cross_attn.o.{kind}")
            same(f"{b}.norm.{kind}", f"{b}.norm3.{kind}")
            same(f"{b}.mlp.0.{kind}", f"{b}.ffn.0.{kind}")
            same(f"{b}.mlp.2.{kind}", f"{b}.ffn.2.{kind}")
    for i in range(2):
        for letter in "qk":
            same(f"blocks.{i}.attn.{letter}_norm", f"blocks.{i}.self_attn.norm_{letter}.weight")
            same(f"blocks.{i}.audio.{letter}_norm", f"blocks.{i}.cross_attn.norm_{letter}.weight")
    assert not ours
    left = {name for name in theirs if name not in used}
    assert left and all(name.startswith(("text_embedding.", "audio_emb.")) for name in left)


def test_both_spellings_of_weight_norm_give_the_same(given, tmp_path):
    published, wav2vec = given
    other = tmp_path / "other"
    shutil.copytree(wav2vec, other)
    state = load_file(other / "model.safetensors")
    prefix = "wav2vec2.encoder.pos_conv_embed.conv."
    for i, old in enumerate(("weight_g", "weight_v")):
        state[f"{prefix}parametrizations.weight.original{i}"] = state.pop(f"{prefix}{old}")
    save_file(state, other / "model.safetensors")
    for name, folder in (("a", wav2vec), ("b", other)):
        convert_flashhead(published, tmp_path / name, wav2vec=folder, size=64)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    conv = torch.nn.Conv1d(12, 12, 4, groups=2)
    conv = torch.nn.utils.parametrizations.weight_norm(conv, dim=2)
    for i in (0, 1):
        name = f"parametrizations.weight.original{i}"
        conv.get_parameter(name).data = state[f"{prefix}{name}"]
    assert torch.allclose(a["speech.position.weight"], conv.weight, atol=1e-6)


def test_dtype_is_of_all_but_wav2vec(given, tmp_path):
    convert_flashhead(given[0], tmp_path / "out", wav2vec=given[1], size=64, dtype="bfloat16")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for name, t in state.items() if name.startswith("speech.")} == {torch.float32}
    assert {t.dtype for name, t in state.items() if not name.startswith("speech.")} == {torch.bfloat16}


def test_names_and_shapes_at_the_published_size():
    """1.39 B parameters in 30 blocks, counted from the table of names; 94 M of wav2vec, as transformers counts."""
    full = Sizes(**{**FULL.__dict__, "layers": 30, "ffn": 8960})

    def count(shapes) -> int:
        return sum(torch.Size(shape).numel() for _, shape in shapes)

    blocks = count(shape for shape in model_shapes(full) if shape[0].startswith("blocks."))
    assert round(blocks / 1e9, 2) == 1.39
    assert count(speech_shapes(full)) == 94_371_712
    encoder = count(shape for shape in vae_shapes(full) if shape[0].startswith("encoder."))
    decoder = count(shape for shape in vae_shapes(full) if shape[0].startswith("decoder."))
    assert (round(encoder / 1e6, 2), round(decoder / 1e6, 2)) == (180.40, 238.79)  # million, LTX-Video 0.9.0's


def test_names_of_the_vae_are_those_of_diffusers(given):
    ltx = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_ltx")
    said = json.loads((given[0] / "VAE_LTX" / "config.json").read_text())
    model = ltx.AutoencoderKLLTXVideo(**{k: v for k, v in said.items() if k[0] != "_" and not k.endswith("er_causal")})
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == dict(vae_shapes(Sizes()))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"has_image_input": True}, ("has_image_input False", "has_image_input True")),
        ({"patch_size": [1, 2, 2], "vae_stride": [4, 8, 8]}, ("Lite", "patch_size [1, 1, 1]", "[4, 8, 8]")),  # Pro
        ({"patch_size": None, "vae_stride": None}, ("Lite", "vae_stride [8, 32, 32]", "vae_stride None")),
        ({"in_dim": 8}, ("in_dim 16", "in_dim 8")),
        ({"num_layers": "2"}, ("num_layers", "integer", "'2'")),
        ({"ffn_dim": None}, ("ffn_dim", "None")),
        ({"num_heads": 5}, ("multiple of num_heads", "num_heads 5")),
        ({"num_heads": 12}, ("dit.head_dim", "got 2")),
        ({"num_layers": 3}, ("expected", "missing", "blocks.2.")),
    ],
)
def test_what_its_configuration_may_not_say(own, tmp_path, values, words):
    change(own[0] / "Model_Lite", **values)
    refuses(own[0], tmp_path, *words, wav2vec=own[1], size=64)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"do_stable_layer_norm": True, "feat_extract_norm": "layer"}, ("wav2vec 2.0 base", "feat_extract_norm group")),
        ({"model_type": "hubert"}, ("model_type wav2vec2", "hubert")),
        ({"hidden_size": 13}, ("speech.heads", "divisor of 13")),
    ],
)
def test_what_that_of_wav2vec_may_not_say(own, tmp_path, values, words):
    change(own[1], **values)
    refuses(own[0], tmp_path, *words, wav2vec=own[1], size=64)


@pytest.mark.parametrize("name", ["WanModel", None])
def test_the_name_of_the_class_does_not_matter(own, tmp_path, name):
    """The published code does not look at it."""
    change(own[0] / "Model_Lite", _class_name=name)
    convert_flashhead(own[0], tmp_path / "out", wav2vec=own[1], size=64)
    with pytest.raises(checkpoint.CheckpointError, match="first rest-fast convert flashhead"):
        checkpoint.read_any_config(own[0] / "Model_Lite")


def test_another_treatment_of_sound_is_refused(own, tmp_path):
    settings = own[1] / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_normalize": False}))
    refuses(own[0], tmp_path, str(settings), "do_normalize True", "do_normalize False", wav2vec=own[1], size=64)
    settings.write_text("{")
    refuses(own[0], tmp_path, str(settings), "expected JSON", wav2vec=own[1], size=64)
    settings.unlink()
    convert_flashhead(own[0], tmp_path / "out", wav2vec=own[1], size=64)


def test_names_are_listed_with_near_ones(own, tmp_path):
    file = own[0] / "Model_Lite" / WEIGHTS
    state = load_file(file)
    state["blocks.1.cross_attn.k_img.weight"] = state.pop("blocks.1.cross_attn.k.weight")
    save_file(state, file)
    near = "'blocks.1.cross_attn.k.weight' (nearest: 'blocks.1.cross_attn.k_img.weight')"
    refuses(own[0], tmp_path, "1 missing", near, "1 unexpected", wav2vec=own[1], size=64)


def test_shapes_are_checked(own, tmp_path):
    file = own[0] / "Model_Lite" / WEIGHTS
    save_file(load_file(file) | {"head.modulation": torch.zeros(2, 24)}, file)
    refuses(own[0], tmp_path, "head.modulation", "[1, 2, 24]", "[2, 24]", wav2vec=own[1], size=64)


@pytest.mark.parametrize("part", ["Model_Lite", "VAE_LTX", "wav2vec"])
def test_truncated_files_and_pickles(own, tmp_path, part):
    path = own[1] if part == "wav2vec" else own[0] / part
    file = path / ("model.safetensors" if part == "wav2vec" else WEIGHTS)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refuses(own[0], tmp_path, str(file), "complete safetensors file", wav2vec=own[1], size=64)
    file.rename(path / "pytorch_model.bin")
    refuses(own[0], tmp_path, "pytorch_model.bin", "never loaded", wav2vec=own[1], size=64)


def test_folders_of_others(own, tmp_path):
    published, wav2vec = own
    refuses(tmp_path / "none", tmp_path, "Model_Lite", "nothing there", wav2vec=wav2vec)
    refuses(published / "Model_Lite", tmp_path, "no Model_Lite and no VAE_LTX", WEIGHTS, wav2vec=wav2vec)
    refuses(published, tmp_path, "wav2vec 2.0", "no folder", wav2vec=tmp_path / "none")
    refuses(published, tmp_path, "feature_extractor", wav2vec=published / "Model_Lite", size=64)
    lora = {"blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 24)}
    save_file(lora, published / "Model_Lite" / WEIGHTS)
    refuses(published, tmp_path, "SoulX-FlashHead's transformer", "lora_A", wav2vec=wav2vec, size=64)
    (published / "Model_Lite").rename(published / "Model_Pro")  # a folder of Pro alone
    refuses(published, tmp_path, "no Model_Lite", "Model_Pro", wav2vec=wav2vec)


@pytest.mark.parametrize("size", [100, 0, -64, 64.0, True])
def test_sizes(given, tmp_path, size):
    refuses(given[0], tmp_path, "size: expected a positive multiple of 32, got", wav2vec=given[1], size=size)


@pytest.mark.parametrize("part", ["Model_Lite", "VAE_LTX", "wav2vec"])
def test_what_is_no_number(own, tmp_path, part):
    """It would show black pictures, without a word."""
    path = own[1] if part == "wav2vec" else own[0] / part
    file = path / ("model.safetensors" if part == "wav2vec" else WEIGHTS)
    state = load_file(file)
    name = next(name for name in state if "attn" in name or "attention" in name or "resnets" in name)
    state[name].view(-1)[3] = torch.nan
    save_file(state, file)
    refuses(own[0], tmp_path, str(path if part == "wav2vec" else own[0]), "got 1 that are not", wav2vec=own[1])


def test_what_is_too_large_for_a_dtype(own, tmp_path):
    file = own[0] / "Model_Lite" / WEIGHTS
    save_file(load_file(file) | {"head.modulation": torch.full((1, 2, 24), 1e5)}, file)
    refuses(own[0], tmp_path, "dit.table: expected finite", "48", "float16", wav2vec=own[1], dtype="float16")
    convert_flashhead(own[0], tmp_path / "out", wav2vec=own[1], dtype="bfloat16")


def test_a_folder_that_was_not_converted_says_how(given):
    for folder in (given[0], given[0] / "Model_Lite"):
        with pytest.raises(checkpoint.CheckpointError, match="first rest-fast convert flashhead"):
            checkpoint.read_any_config(folder)
    with pytest.raises(checkpoint.CheckpointError, match="first rest-fast convert ltx-vae"):
        checkpoint.read_any_config(given[0] / "VAE_LTX")


def test_saved_again_wav2vec_stays_as_it_is(given, tmp_path):
    convert_flashhead(given[0], tmp_path / "out", wav2vec=given[1], size=64)
    rest_fast.load(tmp_path / "out", device="cpu").save(tmp_path / "again")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor if name.startswith("speech.") else tensor.half()), name


def test_the_vae_of_another_release(own, tmp_path):
    change(own[0] / "VAE_LTX", decoder_causal=True)
    refuses(own[0], tmp_path, "VAE 0.9.0", wav2vec=own[1], size=64)


def test_out_is_never_written_over(own):
    with pytest.raises(ConvertError, match="not empty"):
        convert_flashhead(own[0], own[0], wav2vec=own[1])


def test_the_command(given, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["convert", "flashhead", str(given[0]), str(out), "--wav2vec", str(given[1])]
    assert cli.main([*words, "--size", "64"]) == 0
    assert "flashhead-lite, 2 blocks of width 24 at 64 x 64" in capsys.readouterr().out
    assert cli.main([*words, "--size", "64"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_what_is_made_for_rest_refuses_it(given, tmp_path):
    convert_flashhead(given[0], tmp_path / "out", wav2vec=given[1], size=64)
    assert isinstance(checkpoint.read_any_config(tmp_path / "out"), FlashHeadConfig)
    with pytest.raises(checkpoint.CheckpointError, match="expected a model of REST, got one of flashhead"):
        checkpoint.read_config(tmp_path / "out")
