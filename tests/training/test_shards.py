"""The format of prepared clips: what is written is read, and a folder that does not fit its manifest is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rest_fast import preset
from rest_fast.training.shards import MANIFEST, DataError, Manifest, Shards, encoder_fingerprint, write_shard
from tests.kit.toys import basis_model, toy

SPEECH = preset("toy").speech


def tensors(clips: int, first: int) -> dict[str, torch.Tensor]:
    """Small fields of which every value tells its clip."""
    number = torch.arange(first, first + clips)
    return {
        "features": number[:, None, None].expand(clips, 4, 3).half(),
        "video": number[:, None, None, None, None].expand(clips, 5, 2, 3, 3).to(torch.uint8),
        "samples": number[:, None].expand(clips, 7).float(),
    }


@pytest.fixture
def folder(tmp_path):
    """Clips 0 to 5 in three shards, the middle one of the split `validation`."""
    manifest = Manifest(2, 3, json.loads(json.dumps(dataclasses.asdict(SPEECH))), vae="abc")
    for i, (count, first, split) in enumerate(((3, 0, "train"), (1, 3, "validation"), (2, 4, "train"))):
        entry = write_shard(tmp_path, f"clips_{i}.safetensors", tensors(count, first))
        manifest.shards.append(entry | {"split": split, "sources": [f"clip {first + k}" for k in range(count)]})
    manifest.save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("split, clips", [(None, range(6)), ("train", [0, 1, 2, 4, 5]), ("validation", [3])])
def test_clips_come_in_the_manifests_order(folder, split, clips):
    shards = Shards(folder, split)
    assert len(shards) == len(clips) and shards.fields == {"features", "video", "samples"}
    for i, clip in enumerate(clips):
        assert shards.source(i) == f"clip {clip}"
    order = list(reversed(range(len(clips))))  # any order, across shards
    for field, dtype in (("features", torch.float16), ("samples", torch.float32), ("video", torch.uint8)):
        got = shards.read(field, order)
        assert got.dtype == dtype and got.shape[1:] == tensors(1, 0)[field].shape[1:]
        assert got.flatten(1).float().mean(1).tolist() == [float(clips[i]) for i in order]


def test_pixels_are_those_of_the_frames(tmp_path):
    video = torch.randint(256, (2, 6, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    manifest = Manifest(4, 5, {})
    manifest.shards.append(write_shard(tmp_path, "a.safetensors", {"video": video}) | {"split": "train"})
    manifest.save(tmp_path)
    got = Shards(tmp_path).pixels(1, slice(2, 5))
    want = video[1, 2:5].movedim(-1, 0).double() / 255 * 2 - 1
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)
    assert Shards(tmp_path).source(1) is None


def test_a_shard_is_whole_or_not_there(tmp_path, monkeypatch):
    def stop(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(OSError, match="no space"):
        write_shard(tmp_path, "a.safetensors", tensors(1, 0))
    assert not (tmp_path / "a.safetensors").exists()
    for wrong in ({}, {"lips": torch.zeros(1)}, {"video": torch.zeros(2), "samples": torch.zeros(3)}):
        with pytest.raises(AssertionError, match="shard: expected"):
            write_shard(tmp_path, "a.safetensors", wrong)


def edit(**changes):
    def change(folder: Path) -> None:
        path = folder / MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def other_fields(folder: Path) -> None:
    """As many bytes, but a field of another name."""
    path = folder / "clips_1.safetensors"
    data = load_file(path)
    data["labels0"[: len("samples")]] = data.pop("samples")
    save_file(data, path)


BROKEN = [
    (lambda f: (f / MANIFEST).unlink(), r"expected prepared clips with manifest.json \(rest-fast prepare-data\)"),
    (lambda f: (f / MANIFEST).write_text("{"), "manifest.json: expected a manifest of prepared clips"),
    (lambda f: (f / MANIFEST).write_text("[]"), "manifest.json: expected a manifest of prepared clips"),
    (edit(colour=1), "manifest.json: expected a manifest .*colour"),
    (edit(format=2), "expected format 1 and clips of 97 frames, got format 2 and 97 frames"),
    (edit(frames=49), "got format 1 and 49 frames"),
    (edit(shards=[]), r"expected clips of the split None, found those of \[\]"),
    (
        lambda f: (f / "clips_2.safetensors").unlink(),
        "clips_2.safetensors: expected a shard of 2 clips by manifest.json",
    ),
    (lambda f: (f / "clips_0.safetensors").write_bytes(b"torn"), r"clips_0.safetensors: expected \d+ bytes .*, got 4"),
    (
        lambda f: (f / "clips_1.safetensors").write_bytes(b"x" * (f / "clips_1.safetensors").stat().st_size),
        "clips_1.safetensors: expected a complete safetensors file",
    ),
    (other_fields, r"clips_1.safetensors: expected the fields .*samples.* by manifest.json, got .*labels0"),
]


@pytest.mark.parametrize("damage, words", BROKEN)
def test_a_folder_that_does_not_fit_its_manifest(folder, damage, words):
    damage(folder)
    with pytest.raises(DataError, match=words):
        Shards(folder)


def test_what_is_not_there_is_asked_for_in_vain(folder):
    shards = Shards(folder)
    with pytest.raises(DataError, match=r"split test, found those of \['train', 'validation'\]"):
        Shards(folder, "test")
    with pytest.raises(DataError, match=r"expected clips with latents, found \['features', 'samples', 'video'\]"):
        shards.read("latents", [0])
    shards.require_speech(SPEECH)
    with pytest.raises(DataError, match=r"expected speech\.positions 16 \(got 20\)$"):
        shards.require_speech(dataclasses.replace(SPEECH, positions=16))
    with pytest.raises(DataError, match="latents of this model's VAE, got those of another"):
        shards.require_encoder(toy())


def test_a_fingerprint_is_that_of_the_encoder(tmp_path):
    """Not of precision nor of what lies behind the encoder; of every one of its tensors."""
    model = basis_model()
    one = encoder_fingerprint(model.vae)
    halved = basis_model()
    halved.vae.half()
    assert encoder_fingerprint(halved.vae) == one
    torch.nn.init.normal_(halved.vae.decoder.mixer.reach)
    torch.nn.init.normal_(halved.dit.table)
    assert encoder_fingerprint(halved.vae) == one
    for name in model.vae.encoder.state_dict():
        other = basis_model()
        other.vae.encoder.state_dict()[name].flatten()[-1:].add_(1)
        assert encoder_fingerprint(other.vae) != one, name
