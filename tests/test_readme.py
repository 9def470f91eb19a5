"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from rest_fast import media
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


def test_links_and_names_exist():
    text = README.read_text()
    missing = [p for p in re.findall(r"\]\((docs/[^)]+)\)", text) if not (README.parent / p).exists()]
    assert not missing
    assert len(EXAMPLES) == 2
