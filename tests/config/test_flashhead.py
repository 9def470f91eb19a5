"""FlashHead's configuration: what is written is read back, and what cannot be is refused with its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rest_fast.checkpoint import CheckpointError, read_any_config
from rest_fast.config import ConfigError, ConvVAEConfig
from rest_fast.config.flashhead import FlashHeadConfig, Wav2VecConfig

LITE = FlashHeadConfig("lite", 512, 512, ConvVAEConfig())


def test_what_is_written_is_read_back():
    changed = LITE.replace(sampling__rounding="none", sampling__steps=2, stream__posterior="mean", height=64)
    assert FlashHeadConfig.from_json(changed.to_json()) == changed != LITE


def test_the_published_window():
    assert (LITE.stream.window, LITE.stream.frames, LITE.stream.motion_frames) == (5, 33, 9)
    assert (LITE.tokens * LITE.stream.window, LITE.dit.width) == (1280, 1536)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("height", 100, "height: expected a positive multiple of 32, got 100"),
        ("fps", 30, "fps: expected 25"),
        ("dit.head_dim", 10, "dit.head_dim: expected one whose third"),
        ("dit.audio_window", 4, "dit.audio_window: expected an odd number, got 4"),
        ("stream.motion", 1, "stream.motion: expected at least 2, got 1"),
        ("stream.colour", 1.5, "stream.colour: expected a share"),
        ("stream.posterior", "mode", "stream.posterior: expected sample/mean, got 'mode'"),
        ("stream.chunk", 26, "speech.seconds: expected at least 9, for 219 frames, got 8"),
        ("sampling.rounding", "float16", "sampling.rounding: expected bfloat16/none"),
        ("speech.conv_strides", [1000] * 7, "speech.conv_strides: expected strides that, with the kernels,"),
        ("speech.conv_kernels", [3, 3], "speech.conv_kernels: expected 7 entries, got (3, 3)"),
        ("dit.layer", 3, "dit: expected fields"),
        ("vae.kind", "basis", "vae.kind"),
    ],
)
def test_fields_that_are_refused(path: str, value: Any, words: str):
    tree = json.loads(LITE.to_json())
    *parts, last = path.split(".")
    where = tree
    for part in parts:
        where = where[part]
    where[last] = value
    with pytest.raises(ConfigError) as found:
        FlashHeadConfig.from_json(json.dumps(tree))
    assert words in str(found.value)


def test_positions_of_the_published_convolutions():
    """Of 8 s the last one gets 799, as one sees by hand: of 128,000, 25,599, 12,799, 6,399, 3,199 and 1,599."""
    Wav2VecConfig(conv_kernels=(10, 3, 3, 3, 3, 2, 799))
    with pytest.raises(ConfigError, match="leave something of 8 s of sound"):
        Wav2VecConfig(conv_kernels=(10, 3, 3, 3, 3, 2, 800))


@pytest.mark.parametrize(("text", "words"), [("{", "not JSON"), ("[]", "expected a JSON object, got list")])
def test_text_that_is_no_object(text, words):
    with pytest.raises(ConfigError, match=words):
        FlashHeadConfig.from_json(text)


def test_a_family_that_is_not_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(json.loads(LITE.to_json()) | {"family": "flashtalk"}))
    with pytest.raises(CheckpointError, match="family: expected flashhead, or none for REST, got 'flashtalk'"):
        read_any_config(tmp_path)
