"""A prompt's embedding: T5's own states of the tokens alone, put into a checkpoint that loads as before."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rest_fast
from rest_fast.checkpoint import read_config
from rest_fast.convert import convert_prompt
from rest_fast.model import Model
from tests.kit.models import randomise, toy

WORDS = ["a", "person", "is", "talking", "to", "the", "camera"]
TEXT = "a person is talking to the camera"


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A folder with a small random T5 of the toy's 24 text channels, and a tokenizer of words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("t5")
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    config = transformers.T5Config(vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with text attention."""
    config = toy()
    model = Model(config)
    randomise(model, 0)
    model.save(tmp_path / "model", torch.float32)
    return tmp_path / "model"


def encode(t5, length: int | None = None) -> torch.Tensor:
    """T5's states [1, tokens, 24], padded to a length and masked as LTX-Video does it."""
    from transformers import T5EncoderModel

    ids = [3 + i for i in range(len(WORDS))] + [1]
    pad = (length or len(ids)) - len(ids)
    mask = torch.tensor([[1] * len(ids) + [0] * pad])
    model = T5EncoderModel.from_pretrained(t5, local_files_only=True)
    with torch.no_grad():
        return model(torch.tensor([ids + [0] * pad]), attention_mask=mask).last_hidden_state[:, : len(ids)]


def test_the_embedding_is_t5s_without_padding(t5, folder):
    before = load_file(folder / "model.safetensors")
    assert convert_prompt(TEXT, folder, t5) == 8  # seven words and the end
    after = load_file(folder / "model.safetensors")
    want = encode(t5)
    assert want.shape == (1, 8, 24) and want.std() > 0.1
    torch.testing.assert_close(after["dit.prompt"], want, rtol=0, atol=1e-6)
    # LTX-Video pads to 128 and masks: the same states
    torch.testing.assert_close(after["dit.prompt"], encode(t5, 128), rtol=0, atol=1e-5)
    assert all(torch.equal(after[k], before[k]) for k in before if k != "dit.prompt") and set(after) == set(before)
    assert read_config(folder) == toy(dit__text_tokens=8)
    loaded = rest_fast.load(folder, device="cpu")
    torch.testing.assert_close(loaded.dit.prompt, want, rtol=0, atol=1e-6)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_again_with_another_prompt_and_in_the_checkpoints_dtype(t5, folder):
    weights = folder / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(weights).items()}, weights, {"made": "here"})
    convert_prompt(TEXT, folder, t5)
    assert convert_prompt("talking", folder, t5) == 2
    state = load_file(weights)
    assert state["dit.prompt"].shape == (1, 2, 24) and {t.dtype for t in state.values()} == {torch.bfloat16}
    with safe_open(weights, "pt") as file:
        assert file.metadata() == {"made": "here"}


def test_folders_of_a_pipeline(t5, folder, tmp_path):
    for name, files in (("tokenizer", "tok*"), ("text_encoder", "[!t]*")):
        (tmp_path / "ltx" / name).mkdir(parents=True)
        for file in t5.glob(files):
            (tmp_path / "ltx" / name / file.name).write_bytes(file.read_bytes())
    assert convert_prompt(TEXT, folder, tmp_path / "ltx") == 8


def refuses(folder, t5, *words: str, text: str = TEXT) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError) as caught:
        convert_prompt(text, folder, t5)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in ("expected", *words)), message
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_what_does_not_fit_changes_nothing(t5, folder, tmp_path):
    refuses(folder, t5, "at most 128 tokens", "got 129", text="a " * 128)
    refuses(folder, tmp_path / "none", "no folder")
    refuses(folder, folder, "tokenizer")
    config = json.loads((folder / "config.json").read_text())
    config["dit"]["text_channels"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    refuses(folder, t5, "d_model", "32 channels", "got 24")
    config["dit"] |= {"text_tokens": 0, "text_channels": 0}
    (folder / "config.json").write_text(json.dumps(config))
    refuses(folder, t5, "dit.text_tokens", "got 0")


def test_a_tokenizer_without_words(t5, folder, tmp_path, monkeypatch):
    """transformers would make up one for which every word is unknown."""
    copied = tmp_path / "t5"
    copied.mkdir()
    for file in t5.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    (copied / "tokenizer.json").unlink()
    refuses(folder, copied, "tokenizer.json or spiece.model", "neither")
    (copied / "spiece.model").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sentencepiece" else name)
    refuses(folder, copied, "sentencepiece", "rest_fast[convert]")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuses(folder, copied, "transformers", "rest_fast[convert]")


def test_words_that_t5_does_not_know_are_told(t5, folder, caplog):
    assert convert_prompt("a person is singing", folder, t5) == 5
    assert "1 of 5 tokens" in caplog.text


def test_an_encoder_that_is_not_whole(t5, folder, tmp_path):
    """transformers would take random numbers for what is missing."""
    for file in t5.iterdir():
        (tmp_path / "t5").mkdir(exist_ok=True)
        (tmp_path / "t5" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "t5" / "model.safetensors"
    state = load_file(t5 / "model.safetensors")  # not the file that is written next: its tensors are mapped
    save_file({k: v for k, v in state.items() if "block.1" not in k}, weights, {"format": "pt"})
    refuses(folder, tmp_path / "t5", "missing", "block.1")
    torch.save(state, tmp_path / "t5" / "pytorch_model.bin")
    weights.unlink()
    refuses(folder, tmp_path / "t5", "encoder in safetensors")


def test_a_checkpoint_that_is_not_whole(t5, folder):
    weights = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if k != "dit.prompt"}, weights)
    refuses(folder, t5, "dit.prompt", "none")
    weights.write_bytes(weights.read_bytes()[:50])
    refuses(folder, t5, "complete safetensors file")
