"""Configurations: what is written is read back, and what cannot be built is refused with its name."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from typing import Any

import pytest

from rest_fast.config import (
    PRESETS,
    BasisVAEConfig,
    ConfigError,
    ConvVAEConfig,
    ModelConfig,
    SamplingConfig,
    StreamConfig,
    preset,
)


def raw(name: str, path: str, value: Any) -> str:
    """JSON of a preset with one field changed; ``path`` as in "dit.layers"."""
    tree = json.loads(preset(name).to_json())
    *parts, last = path.split(".")
    where = tree
    for part in parts:
        where = where[part]
    where[last] = value
    return json.dumps(tree)


def says(*words: object):
    """One ConfigError of one line that says each of ``words``."""
    pattern = "^" + "".join(f"(?=.*{re.escape(str(word))})" for word in words) + "[^\n]+$"
    return pytest.raises(ConfigError, match=pattern)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_json(name):
    config = preset(name)
    again = ModelConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config)
    assert type(again.vae) is type(config.vae)
    assert again.name == name
    assert json.loads(again.to_json()) == json.loads(config.to_json())


def test_no_field_is_lost_in_json():
    """Every number of the tree changed, one at a time, comes back changed."""
    tree = json.loads(preset("demo").to_json())
    seen = 0
    for part in ("vae", "speech", "dit", "stream", "sampling"):
        for key, value in tree[part].items():
            if isinstance(value, bool):
                changed = not value
            elif isinstance(value, float):
                changed = value * 1.5 + 0.25
            else:
                continue
            other = copy.deepcopy(tree)
            other[part][key] = changed
            assert getattr(getattr(ModelConfig.from_json(json.dumps(other)), part), key) == changed
            seen += 1
    assert seen >= 9


def test_optional_parts_have_defaults():
    tree = json.loads(preset("toy").to_json())
    for part in ("stream", "sampling", "fps"):
        del tree[part]
    config = ModelConfig.from_json(json.dumps(tree))
    assert (config.stream, config.sampling, config.fps) == (StreamConfig(), SamplingConfig(), 25)


def test_the_paper_s_geometry():
    """model.md, "Geometry" and "Parts"."""
    config = preset("rest-512")
    assert (config.grid, config.tokens, config.latent_seconds) == ((16, 16), 256, 0.32)
    assert (config.stream.window, config.stream.chunk * config.tokens) == (7, 768)
    assert config.stream.window * config.tokens == 1792
    assert (config.dit.width, config.dit.layers, config.vae.spatial) == (2048, 28, 32)
    assert (config.sampling.steps, config.sampling.guidance, config.sampling.shift_mu) == (8, 6.0, 2.05)
    assert (config.speech.positions_per_frame, config.speech.side_ms, config.speech.channels) == (2, 80, 5 * 384)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"name": }'])
def test_not_json(text):
    with says("not JSON"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize("text, kind", [("[]", "list"), ("3", "int"), ("null", "NoneType"), ('"demo"', "str")])
def test_not_an_object(text, kind):
    with says("object", kind):
        ModelConfig.from_json(text)


@pytest.mark.parametrize("part", ["config", "vae", "speech", "dit", "stream", "sampling"])
def test_unknown_field(part):
    tree = json.loads(preset("toy").to_json())
    (tree if part == "config" else tree[part])["colour"] = 3
    with says(part, "fields", "colour"):
        ModelConfig.from_json(json.dumps(tree))


@pytest.mark.parametrize("field", ["name", "height", "width", "speech", "dit"])
def test_missing_field(field):
    tree = json.loads(preset("toy").to_json())
    del tree[field]
    with says("config", "required", "missing", field):
        ModelConfig.from_json(json.dumps(tree))


def test_missing_vae():
    tree = json.loads(preset("toy").to_json())
    del tree["vae"]
    with says("vae.kind", "conv or basis", None):
        ModelConfig.from_json(json.dumps(tree))


REFUSED = [  # preset, field, value, what the message says beside field and value
    ("toy", "height", 65, "multiple of 32"),
    ("toy", "height", 0, "multiple of 32"),
    ("toy", "width", -64, "multiple of 32"),
    ("drawn", "width", 100, "multiple of 32"),
    ("toy", "fps", 30, "25"),
    ("toy", "fps", "25", "an integer"),
    ("toy", "vae.kind", "vq", "conv or basis"),
    ("toy", "vae.encoder_down", ["spatial", "temporal", "all"], "4 entries"),
    ("toy", "vae.encoder_down", ["spatial", "temporal", "all", "both"], "spatial/temporal/all"),
    ("toy", "vae.encoder_down", ["spatial", "spatial", "all", "all"], "three temporal"),
    ("toy", "vae.encoder_layers", [1, 1], "5 entries"),
    ("toy", "vae.decoder_layers", [1, 1], "4 entries"),
    ("toy", "vae.decoder_up", ["all", "all"], "3 entries"),
    ("toy", "vae.decoder_up", ["all", "all", "spatial"], "three temporal"),
    ("toy", "vae.decoder_up", ["all", "all", "temporal"], "spatial factor 32"),
    ("toy", "vae.decoder_noise", [True], "4 entries"),
    ("toy", "vae.decode_timestep", 1.5, "at most 1"),
    ("toy", "vae.decoder_padding", "circular", "zeros/reflect"),
    ("drawn", "vae.latent_channels", 0, "at least 1"),
    ("drawn", "vae.latent_channels", 641, "1..640"),
    ("drawn", "vae.motion_weight", 0, "positive"),
    ("drawn", "vae.motion_weight", -1.5, "positive"),
    ("drawn", "vae.motion_weight", float("nan"), "finite number"),
    ("demo", "vae.pose_alpha", 0, "above 0, at most 1"),
    ("demo", "vae.pose_alpha", 1.5, "above 0, at most 1"),
    ("drawn", "vae.mixer_layers", -1, "at least 0"),
    ("drawn", "vae.mixer_heads", 0, "at least 1"),
    ("drawn", "vae.mixer_width", 200, "multiple of mixer_heads 3"),
    ("drawn", "vae.post_patch", [3, 4, 4], "divisor of 8"),
    ("drawn", "vae.post_patch", [2, 4, 8], "divisors of 32"),
    ("drawn", "vae.post_patch", [2, 5, 5], "divisors of 32"),
    ("toy", "speech.features", "mfcc", "logmel/whisper"),
    ("toy", "speech.position_ms", 30, "divisor of 40"),
    ("toy", "speech.positions", 3, "even number"),
    ("toy", "speech.positions", 21, "even number"),
    ("toy", "speech.tokens", 3, "divisor of 20"),
    ("toy", "speech.history_ms", 150, "multiple of 40"),
    ("toy", "speech.history_ms", 120, "at least 160"),
    ("toy", "dit.layers", 0, "at least 1"),
    ("toy", "dit.heads", 0, "at least 1"),
    ("toy", "dit.head_dim", -2, "at least 1"),
    ("toy", "dit.head_dim", 15, "even"),
    ("toy", "dit.mlp_ratio", 0, "at least 1"),
    ("toy", "dit.layout", "causal", "full/teacher/streaming"),
    ("toy", "stream.chunk", 0, "at least 1"),
    ("toy", "stream.context_chunks", -1, "at least 0"),
    ("toy", "stream.context", "first_step", "last_step/clean/per_step"),
    ("toy", "stream.positions", "relative", "window/absolute"),
    ("toy", "sampling.steps", 0, "at least 1"),
    ("toy", "sampling.steps", 2.0, "an integer"),
    ("toy", "sampling.steps", "8", "an integer"),
    ("toy", "sampling.guidance", "6", "finite number"),
    ("toy", "sampling.guidance", float("nan"), "finite number"),
    ("toy", "sampling.guidance", float("inf"), "finite number"),
    ("toy", "sampling.steps", 1001, "at most 1000"),
    ("toy", "sampling.steps", 99999999999, "at most 1000"),
    ("toy", "sampling.guidance", 100.5, "-100..100"),
    ("toy", "sampling.guidance", -1e39, "-100..100"),
    ("toy", "sampling.train_sigma", 0, "positive"),
    ("toy", "sampling.train_sigma", -1.0, "positive"),
    ("toy", "dit", None, "object"),
    ("toy", "speech", [1, 2], "object"),
]


def shown(value: Any) -> list[str]:
    """The value as a message shows it: lists become tuples, of which an entry may be shown alone."""
    return [str(value[-1])] if isinstance(value, list) else [repr(value)]


@pytest.mark.parametrize("name, field, value, expected", REFUSED)
def test_refused(name, field, value, expected):
    """Field, expectation and value in one message."""
    wrong = ["3"] if value == [3, 4, 4] else ["5"] if field == "vae.decoder_up" and expected[0] == "5" else shown(value)
    wrong = ["16"] if expected == "spatial factor 32" else wrong
    with says(field, expected, *wrong):
        ModelConfig.from_json(raw(name, field, value))


def test_heads_times_head_dim():
    tree = json.loads(preset("toy").to_json())
    tree["dit"].update(heads=1, head_dim=4)
    with says("dit.heads * head_dim", "at least 6", 4):
        ModelConfig.from_json(json.dumps(tree))


MISTYPED = [  # of the wrong type: refused by name, like everything else
    ("toy", "name", 5),
    ("toy", "height", "64"),
    ("toy", "height", 64.0),
    ("toy", "dit.layers", "28"),
    ("toy", "dit.layers", None),
    ("toy", "dit.layers", 2.5),
    ("toy", "dit.layers", True),
    ("toy", "dit.audio", "no"),
    ("toy", "dit.text_tokens", "5"),
    ("toy", "dit.rope_theta", "10000"),
    ("toy", "dit.rope_max", 20.0),
    ("toy", "stream.chunk", 1.5),
    ("toy", "sampling.steps", True),
    ("toy", "sampling.shift_mu", "x"),
    ("toy", "sampling.train_mu", [1]),
    ("toy", "speech.history_ms", "160"),
    ("toy", "vae.kind", ["conv"]),
    ("toy", "vae.encoder_channels", 5),
    ("toy", "vae.encoder_layers", [1, 1, 1, 1, "1"]),
    ("drawn", "vae.post_patch", 4),
]

IMPOSSIBLE = [  # of the right type, and yet nothing that can be built
    ("toy", "vae.patch_size", 0),
    ("toy", "vae.latent_channels", 0),
    ("toy", "vae.encoder_channels", [8, 16, 32, 32, 31]),
    ("toy", "vae.decoder_channels", [32, 16, 12, 8]),
    ("drawn", "vae.patch_size", 0),
    ("drawn", "vae.post_channels", 0),
    ("drawn", "vae.spatial_rank", 5000),  # more than the pixels of a block
    ("drawn", "vae.post_patch", [2, 4]),
    ("drawn", "vae.post_patch", [0, 4, 4]),
    ("drawn", "vae.post_patch", [2, 0, 0]),
    ("toy", "speech.tokens", 0),
    ("toy", "speech.tokens", -2),
    ("toy", "speech.position_ms", 0),
    ("toy", "speech.position_ms", -10),
    ("toy", "speech.position_ms", 20),  # log-mel positions are 10 ms apart
    ("toy", "speech.channels", 0),
    ("toy", "speech.width", 0),
    ("toy", "dit.text_tokens", -1),
    ("toy", "dit.rope_theta", -1.0),
    ("toy", "dit.rope_max", [20.0, 2048.0]),
    ("toy", "dit.qk_eps", -1.0),
    ("toy", "sampling.shift_mu", float("nan")),
    ("toy", "sampling.shift_mu", float("inf")),
    ("toy", "sampling.train_sigma", float("inf")),
    ("rest-512", "speech.positions", 420),  # a look-ahead longer than the history
]


@pytest.mark.parametrize("name, field, value", MISTYPED + IMPOSSIBLE)
def test_refused_by_field(name, field, value):
    with says(field):
        ModelConfig.from_json(raw(name, field, value))


def test_replace_reaches_into_parts():
    config = preset("toy").replace(stream__context="clean", stream__context_chunks=2, name="other", sampling__steps=5)
    assert (config.stream.context, config.stream.context_chunks, config.sampling.steps) == ("clean", 2, 5)
    assert config.stream.positions == preset("toy").stream.positions
    assert config.name == "other"
    untouched = {"vae", "speech", "dit", "height", "width", "fps"}
    assert all(getattr(config, f) == getattr(preset("toy"), f) for f in untouched)
    assert preset("toy").stream.context == "last_step"  # a copy


def test_replace_takes_a_part_and_its_fields_together():
    config = preset("toy").replace(stream=StreamConfig(chunk=2), stream__context_chunks=4)
    assert (config.stream.chunk, config.stream.context_chunks) == (2, 4)


def test_replace_checks_the_whole():
    with says("height", "multiple of 32", 80):
        preset("toy").replace(height=80)
    with says("height", "multiple of 48"):
        preset("toy").replace(vae=BasisVAEConfig(patch_size=48))
    with says("stream.chunk", "at least 1", 0):
        preset("toy").replace(stream__chunk=0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"nope": 1}, ("config.nope", "one of", "'nope'")),
        ({"stream__nope": 1}, ("stream.nope", "one of", "'nope'")),
        ({"nope__x": 1}, ("nope__x", "part", "'nope'")),
        ({"name__x": 1}, ("name__x", "part")),
        ({"grid__x": 1}, ("grid__x", "part")),
        ({"dit__layers": "28"}, ("dit.layers", "'28'")),
        ({"stream": 5}, ("stream", "5")),
    ],
)
def test_replace_refuses(changes, words):
    with says(*words):
        preset("toy").replace(**changes)


def test_unknown_preset():
    with says("preset", *PRESETS, "'rest-1024'"):
        preset("rest-1024")


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("toy").stream.chunk = 4
    assert isinstance(preset("toy").vae, ConvVAEConfig)
