"""The folder that is shipped: a checkpoint that loads, two portraits, a sentence and a card."""

from __future__ import annotations

import sys
import wave

import numpy as np
import pytest
import torch
from PIL import Image

import rest_fast
from tests.kit import toys


def test_the_shipped_folder_is_written(tmp_path, monkeypatch):
    pytest.importorskip("skia")
    pytest.importorskip("espeakng_loader")
    from rest_fast.training import demo_assets

    model, out = toys.toy(), tmp_path / "out"
    model.save(tmp_path / "asd", torch.float32)
    argv = ["demo_assets", "--model", str(tmp_path / "asd"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    demo_assets.main()
    names = {"config.json", "model.safetensors", "portrait.png", "portrait_2.png", "speech.wav", "README.md"}
    assert {p.name for p in out.iterdir()} == names
    loaded = rest_fast.load(out, device="cpu")
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().to(tensor.dtype)), name  # shipped as fp16
    pictures = [np.asarray(Image.open(out / name)) for name in ("portrait.png", "portrait_2.png")]
    assert all(p.shape == (512, 512, 3) and p.std() > 20 for p in pictures)
    assert (pictures[0] != pictures[1]).mean() > 0.5  # two people
    with wave.open(str(out / "speech.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        speech = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    assert 3 < len(speech) / 16_000 < 15 and 16_000 < np.abs(speech.astype(int)).max() <= 32_767
    avatar = loaded.prepare(out / "portrait.png", crop="center")
    with loaded.session(avatar) as session:
        session.push_audio(speech[:24_000])
        assert sum(len(block.video) for block in session.blocks()) >= 24
    card = (out / "README.md").read_text()
    assert "Apache-2.0" in card and "espeak-ng" in card
