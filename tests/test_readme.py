"""The examples of the README and the tutorial, and the toy chain of docs/training.md, run as they stand."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import rest_fast
from rest_fast import cli, media
from rest_fast.cli.arguments import build_parser
from rest_fast.model import ASSETS

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
GUIDE, TRAINING, TUTORIAL = DOCS / "guide.md", DOCS / "training.md", DOCS / "tutorial.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where examples run: it has a face and speech."""
    shutil.copy(ASSETS / "demo" / "portrait.png", tmp_path / "face.png")
    shutil.copy(ASSETS / "demo" / "speech.wav", tmp_path / "speech.wav")
    monkeypatch.chdir(tmp_path)


def run(page):
    """The examples of a page, one after the other."""
    names = {"__name__": page.name}
    with warnings.catch_warnings():
        warnings.simplefilter("error", rest_fast.RestFastWarning)  # the shipped portrait is nothing to be warned of
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            exec(compile(code, str(page), "exec"), names)


def test_the_example_of_the_readme(folder, capsys):
    run(README)
    assert "frames" in capsys.readouterr().out


def test_the_tutorial(folder, capsys):
    """It prints what it says, and its video has a frame for every 40 ms of sound."""
    run(TUTORIAL)
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", TUTORIAL.read_text(), re.S))
    assert len(media.read_video("talking.mp4")[0]) == -(-len(media.load_audio("speech.wav").samples) * 25 // 16000)


def test_train_your_own(tmp_path, monkeypatch):
    """The toy chain of docs/training.md as it stands: from nothing to a checkpoint that renders."""
    pytest.importorskip("skia")
    pytest.importorskip("espeakng_loader")
    (block,) = re.findall(r"```\n(pip install[^\n]*\[synth,train\].*?)```", TRAINING.read_text(), re.S)
    commands = [line.split() for line in block.splitlines() if line.startswith("rest-fast ")]
    assert [words[1] for words in commands] == ["synth", "prepare-data", "train", "render"]
    monkeypatch.chdir(tmp_path)
    for words in commands:
        here = [str(README.parent / word) if word.startswith("rest_fast/") else word for word in words[1:]]
        assert cli.main([*here, "--quiet"]) == 0
    frames, _ = media.read_video("toy.mp4")
    assert frames.shape[1:] == (64, 64, 3) and len(frames) > 200


def test_every_command_can_be_parsed(tmp_path, monkeypatch):
    """So that no option in the README is one of yesterday."""
    for name in ("face.png", "me.jpg", "speech.wav", "woman.wav", "man.wav"):
        (tmp_path / name).write_text("something")
    for name in ("data", "videos", "portraits"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    text = README.read_text() + GUIDE.read_text() + TUTORIAL.read_text()
    lines = re.findall(r"^(?:.*\| )?(rest-fast [a-z][^#|\n]*?)(?: {2,}#.*)?$", text, re.M)
    assert len(lines) >= 6
    for line in lines:
        assert build_parser().parse_args(line.split()[1:]).command == line.split()[1]  # else it exits and says why


def test_when_the_first_frames_come():
    """Sound of a chunk, and what must follow it, at the rate of the shipped speech."""
    model = rest_fast.load("demo", device="cpu")
    with model.session(model.prepare(ASSETS / "demo" / "portrait.png")) as session:
        chunk = model.config.stream.chunk * model.config.latent_seconds
        needed = chunk + session.lookahead_ms / 1000
        session.push_audio(np.zeros(round(needed * 16000) - 1, np.int16))
        assert not list(session.blocks())
        session.push_audio(np.zeros(1, np.int16))
        assert len(list(session.blocks())) == 3
    says = (
        f"The first frames need {needed:.2f} s of audio; later ones come three blocks at a time, every {chunk:.2f} s."
    )
    assert says in GUIDE.read_text()
    assert f"| sound that is needed before the first frame | {needed:.2f} s |" in README.read_text()


def test_links_and_pictures():
    """Relative ones exist. When the project has an address, pictures need it, too: an index page has no files."""
    text, project = README.read_text(), (ROOT / "pyproject.toml").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    assert not [link for link in links if not (ROOT / link).exists()]
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text)
    assert len(pictures) == 3 and all(len(words.split()) > 5 for words, _ in pictures)  # what a page without them shows
    if "[project.urls]" in project:
        assert all(link.startswith("https://") for _, link in pictures)


def test_citation():
    yaml = pytest.importorskip("yaml")
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cite)
    assert "version" not in cite  # it stands in rest_fast/__init__.py alone
    assert cite["license"] == "Apache-2.0" and cite["references"][0]["identifiers"][0]["value"] == "arXiv:2512.11229"
