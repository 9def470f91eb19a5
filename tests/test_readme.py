"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from rest_fast import cli, media
from rest_fast.model import ASSETS

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example(index, tmp_path, monkeypatch, capsys):
    shutil.copy(ASSETS / "demo" / "portrait.png", tmp_path / "face.png")
    shutil.copy(ASSETS / "demo" / "speech.wav", tmp_path / "speech.wav")
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[index], f"README example {index}", "exec"), {})
    if "render(" in EXAMPLES[index]:
        assert len(media.read_video("talking.mp4")[0]) == -(-len(media.load_audio("speech.wav").samples) * 25 // 16000)
    else:
        assert "frames" in capsys.readouterr().out


def test_train_your_own(tmp_path, monkeypatch):
    """The README's toy chain as it stands: from nothing to a checkpoint that renders."""
    pytest.importorskip("skia")
    pytest.importorskip("espeakng_loader")
    (block,) = re.findall(r"```\n(pip install[^\n]*\[synth,train\].*?)```", README.read_text(), re.S)
    commands = [line.split() for line in block.splitlines() if line.startswith("rest-fast ")]
    assert [words[1] for words in commands] == ["synth", "prepare-data", "train", "render"]
    monkeypatch.chdir(tmp_path)
    for words in commands:
        here = [str(README.parent / word) if word.startswith("rest_fast/") else word for word in words[1:]]
        assert cli.main([*here, "--quiet"]) == 0
    frames, _ = media.read_video("toy.mp4")
    assert frames.shape[1:] == (64, 64, 3) and len(frames) > 200


def test_links_and_names_exist():
    text = README.read_text()
    missing = [p for p in re.findall(r"\]\((docs/[^)]+)\)", text) if not (README.parent / p).exists()]
    assert not missing
    assert len(EXAMPLES) == 2
