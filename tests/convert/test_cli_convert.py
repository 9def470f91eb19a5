"""``rest-fast convert``: what it says, its exit codes, and that every refusal is one line."""

from __future__ import annotations

import json

import pytest
import torch

from rest_fast import cli
from rest_fast.cli.arguments_convert import DTYPES as OFFERED
from rest_fast.cli.arguments_convert import RELEASES as NAMED
from rest_fast.convert.ltx_vae_config import RELEASES
from rest_fast.convert.source import DTYPES
from rest_fast.model import Model
from tests.convert.files import LATENT, diffusers_vae
from tests.kit.models import toy


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = cli.main(["convert", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_vae_and_a_model_of_it(tmp_path, capsys):
    diffusers_vae("0.9.1").save_pretrained(tmp_path / "ltx" / "vae")
    code, out, err = run(capsys, "ltx-vae", tmp_path / "ltx", tmp_path / "vae", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert "a decoder that is not causal, told of noise" in out and f"{LATENT} latent channels" in out
    ltx = pytest.importorskip("diffusers.models.transformers.transformer_ltx")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24}
    torch.manual_seed(0)
    model = ltx.LTXVideoTransformer3DModel(in_channels=LATENT, out_channels=LATENT, num_layers=2, **sizes)
    model.save_pretrained(tmp_path / "ltx" / "transformer")
    (tmp_path / "config.json").write_text(toy().to_json())
    words = ["ltx-transformer", tmp_path / "ltx", tmp_path / "model", "--vae", tmp_path / "vae"]
    code, out, err = run(capsys, *words, "--config", tmp_path / "config.json")
    assert code == 0 and "toy, 2 blocks of width 32" in out and "rest-fast convert prompt" in err
    made = json.loads((tmp_path / "model" / "config.json").read_text())
    assert made["vae"] == json.loads((tmp_path / "vae" / "config.json").read_text())


@pytest.mark.parametrize(
    "words, expected",
    [
        (["ltx-vae", "nothing", "out"], "nothing: expected a safetensors file or a folder"),
        (["ltx-vae", "ltx.ckpt", "out"], "pickle-type file, which is never loaded"),
        (["ltx-vae", ".", "out"], "expected config.json, or a folder vae with one"),
        (["ltx-transformer", ".", "out"], "expected config.json, or a folder transformer with one"),
        (["ltx-transformer", "ltx.ckpt", "out"], "pickle-type file, which is never loaded"),
        (["ltx-transformer", "nothing", "out", "--config", "none.json"], "--config none.json: expected a preset"),
        (["ltx-transformer", "nothing", "out", "--config", "bad.json"], "config is not JSON"),
        (["prompt", "text", "nothing", "--t5", "."], "nothing: expected a folder with config.json"),
        (["prompt", "text", "model", "--t5", "nothing"], "nothing: expected a folder with T5's encoder"),
        (["prompt", "text", "model", "--t5", "model"], "expected T5's tokenizer"),
    ],
)
def test_refusals_are_one_line(tmp_path, capsys, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ltx.ckpt").write_bytes(b"x")
    (tmp_path / "bad.json").write_text("{")
    Model(toy()).save(tmp_path / "model")
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and err.startswith("rest-fast: error: ") and err.count("\n") == 1, err
    assert expected in err and not (tmp_path / "out").exists(), err


@pytest.mark.parametrize(
    "words, expected",
    [
        (["ltx-vae"], "rest-fast convert ltx-vae: error: the following arguments are required: FILE, OUT"),
        (["ltx-vae", "a", "b", "--release", "1.0"], "expected one of 0.9.0, 0.9.1, 0.9.5, got '1.0'"),
        (["ltx-vae", "a", "b", "--dtype", "int8"], "expected one of float32, bfloat16, float16, got 'int8'"),
        (["ltx-transformer", "a", "b", "--seed", "-1"], "expected a whole number"),
        (["prompt", "text", "model"], "required: --t5"),
        ([], "rest-fast convert: error: the following arguments are required: WHAT"),
        (["ltxvae"], "; did you mean ltx-vae?"),
        (["gguf"], "expected one of ltx-vae, ltx-transformer, prompt, swap-vae, flashhead, got 'gguf'"),
    ],
)
def test_usage(capsys, words, expected):
    code, _, err = run(capsys, *words)
    assert code == 2 and expected in err and err.count("\n") == 1, err


def test_help(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(word in out for word in ("ltx-vae", "ltx-transformer", "prompt"))


def test_words_are_those_of_the_code():
    """The parser knows them without importing what is heavy."""
    assert set(NAMED) == set(RELEASES) and set(OFFERED) == set(DTYPES)
