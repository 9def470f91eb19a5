"""Writes a prompt's T5 embedding into a checkpoint: the fixed text that the model attends to."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rest_fast.checkpoint import CONFIG, WEIGHTS, CheckpointError, read_config
from rest_fast.convert.source import ConvertError

LIMIT = 128  # tokens, as LTX-Video was trained
NAME = "dit.prompt"
log = logging.getLogger("rest_fast.convert")
INSTALL = "pip install 'rest_fast[convert]'"


def convert_prompt(text: str, folder: str | Path, t5: str | Path) -> int:
    """Put a prompt into a checkpoint, in place; returns its number of tokens, T5's end token among them.

    ``dit.prompt`` becomes the encoder's last hidden states [1, tokens, channels] of the tokens alone, without padding
    (LTX-Video masks padding, so both give the same), in the dtype that it has in the checkpoint; ``dit.text_tokens`` in
    ``config.json`` becomes their number.

    Args:
        text: the prompt, at most 128 tokens.
        folder: a checkpoint whose model has text attention.
        t5: local folder with T5's encoder and tokenizer, or with folders ``text_encoder`` and ``tokenizer``, as
            diffusers keeps them. Nothing is downloaded, and no pickle is read.
    Raises: :class:`ConvertError` or :class:`~rest_fast.checkpoint.CheckpointError`, before anything is written.
    """
    folder = Path(folder)
    config = read_config(folder)
    if not config.dit.text_tokens:
        raise ConvertError(f"{folder}: dit.text_tokens: expected a model with text attention, got 0")
    tokenizer, encoder = _load(Path(t5))
    if encoder.config.d_model != config.dit.text_channels:
        expected = f"{config.dit.text_channels} channels, dit.text_channels of {folder}"
        raise ConvertError(f"{t5}: d_model: expected {expected}, got {encoder.config.d_model}")
    tokens = tokenizer(text, return_tensors="pt", padding=False, truncation=False).input_ids
    if tokens.shape[1] > LIMIT:
        raise ConvertError(f"prompt: expected at most {LIMIT} tokens, got {tokens.shape[1]}")
    unknown = int((tokens == tokenizer.unk_token_id).sum())
    if unknown:
        log.warning("the prompt has %d of %d tokens that T5 does not know", unknown, tokens.shape[1])
    with torch.no_grad():
        prompt = encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
    if not torch.isfinite(prompt).all():
        raise ConvertError(f"{t5}: expected finite embeddings, got others (T5 overflows in float16)")
    dit = dataclasses.replace(config.dit, text_tokens=prompt.shape[1])
    _rewrite(folder, prompt, dataclasses.replace(config, dit=dit).to_json() + "\n")
    return int(prompt.shape[1])


def _load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and encoder of T5 from a local folder."""
    if not folder.is_dir():
        raise ConvertError(f"{folder}: expected a folder with T5's encoder and tokenizer, got no folder")
    if importlib.util.find_spec("transformers") is None:
        raise ConvertError(f"convert prompt: expected transformers ({INSTALL}), got none")
    from transformers import AutoTokenizer, T5EncoderModel
    from transformers.utils import logging as bars

    words, states = (folder / name if (folder / name).is_dir() else folder for name in ("tokenizer", "text_encoder"))
    _check_vocabulary(words)
    try:
        tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True)
    except Exception as e:  # transformers raises many kinds
        raise _unfit(words, "tokenizer", e) from None
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        encoder, info = T5EncoderModel.from_pretrained(
            states, local_files_only=True, use_safetensors=True, torch_dtype="auto", output_loading_info=True
        )
    except Exception as e:
        raise _unfit(states, "encoder in safetensors", e) from None
    finally:
        if shown:
            bars.enable_progress_bar()
    if info["missing_keys"]:  # they would be random
        raise _unfit(states, "encoder", f"missing {sorted(info['missing_keys'])[:3]}")
    if len(tokenizer) > encoder.config.vocab_size:
        raise _unfit(words, "tokenizer", f"{len(tokenizer)} tokens for an encoder of {encoder.config.vocab_size}")
    return tokenizer, encoder.eval()


def _check_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer without a vocabulary, which transformers makes up if the files are missing."""
    if (folder / "tokenizer.json").is_file():
        return
    if not (folder / "spiece.model").is_file():
        raise ConvertError(f"{folder}: expected T5's tokenizer (tokenizer.json or spiece.model), got neither")
    if importlib.util.find_spec("sentencepiece") is None:
        raise ConvertError(f"{folder}: expected sentencepiece to read spiece.model ({INSTALL}), got none")


def _unfit(folder: Path, what: str, reason: object) -> ConvertError:
    return ConvertError(f"{folder}: expected T5's {what}, got none that loads ({' '.join(str(reason).split())[:300]})")


def _rewrite(folder: Path, prompt: torch.Tensor, config: str) -> None:
    """Write both files completely before either of them replaces the old one."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{path}: expected a complete safetensors file, got one that cannot be read ({e})"
        ) from None
    if NAME not in state or state[NAME].shape[-1] != prompt.shape[-1]:
        got = list(state[NAME].shape) if NAME in state else "none"
        raise CheckpointError(f"{path}: {NAME}: expected [1, tokens, {prompt.shape[-1]}], got {got}")
    state[NAME] = prompt.to(state[NAME].dtype).contiguous()
    partial = [folder / f"{name}.partial" for name in (WEIGHTS, CONFIG)]
    try:
        save_file(state, partial[0], metadata)
        partial[1].write_text(config)
        partial[0].replace(path)
        partial[1].replace(folder / CONFIG)
    finally:
        for file_ in partial:
            file_.unlink(missing_ok=True)
