"""Checkpoints: what is saved loads, and everything else is one CheckpointError that names the file."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from rest_fast.checkpoint import CONFIG, WEIGHTS, CheckpointError, fingerprint, read_config, read_weights, save, write
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.speech import SpeechEncoder
from tests.kit.models import randomise, toy


def dit(seed: int = 0, **changes) -> StreamingDiT:
    module = StreamingDiT(toy(**changes))
    randomise(module, seed)
    return module


@pytest.fixture
def folder(tmp_path):
    """A good checkpoint."""
    save(dit(), toy(), tmp_path / "good")
    return tmp_path / "good"


@contextlib.contextmanager
def refuses(path, *words: str):
    """One CheckpointError of one line that names the file or folder and says each of ``words``."""
    with pytest.raises(CheckpointError) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message, message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_round_trip(tmp_path, dtype):
    config, original = toy(), dit(1)
    save(original, config, tmp_path / "new" / "folder", dtype)
    assert read_config(tmp_path / "new" / "folder") == config
    loaded = dit(2)
    read_weights(loaded, tmp_path / "new" / "folder")
    for (name, a), (_, b) in zip(original.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a.to(dtype).to(a.dtype), b), name
        assert a.dtype == b.dtype  # the module's own
    stored = load_file(tmp_path / "new" / "folder" / WEIGHTS)
    assert set(stored) == set(original.state_dict()) and all(t.dtype == dtype for t in stored.values())


def test_nothing_else_is_left_in_the_folder(folder):
    assert sorted(p.name for p in folder.iterdir()) == sorted([CONFIG, WEIGHTS])


def test_another_user_may_read_what_is_written_as_any_file(tmp_path):
    (tmp_path / "any").write_text("")
    save(dit(), toy(), tmp_path / "new")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "new" / name).stat().st_mode == (tmp_path / "any").stat().st_mode


def test_saving_again_replaces(folder):
    save(dit(5), toy(), folder, torch.float32)
    loaded = dit(0)
    read_weights(loaded, folder)
    assert torch.equal(loaded.table, dit(5).table)


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, there):
    """The system's own limit of a file's size stands for it."""
    resource = pytest.importorskip("resource")
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    if there:
        out.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with refuses(out, "room for 2 MB", "File too large"):
            write({"weights": torch.zeros(500_000)}, toy(), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*tmp_path.rglob("*")] == [out] * there


def test_a_place_where_no_folder_can_be(folder):
    with refuses(folder / WEIGHTS / "out", "expected a folder to write to"):
        save(dit(), toy(), folder / WEIGHTS / "out")


def test_weights_load_into_another_dtype(folder):
    module = dit(3).double()
    read_weights(module, folder)
    assert module.table.dtype == torch.float64 and torch.equal(module.table, dit().table.half().double())


def test_only_one_part(tmp_path):
    config = toy()
    whole = torch.nn.ModuleDict({"dit": dit(1), "speech": randomise(SpeechEncoder(config.speech), 2)})
    save(whole, config, tmp_path, torch.float32)
    part = SpeechEncoder(config.speech)
    read_weights(part, tmp_path, "speech.")
    assert torch.equal(part.project.weight, whole["speech"].project.weight)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated(folder, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    with refuses(folder / WEIGHTS, "complete safetensors file"):
        read_weights(dit(), folder)


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, struct.pack("<Q", 8) + b"not json" * 4, pickle.dumps({"a": 1}), b"PK\x03\x04" + b"\0" * 60],
    ids=["noise", "bad header", "pickle", "zip"],
)
def test_not_safetensors_inside(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    with refuses(folder / WEIGHTS, "safetensors"):
        read_weights(dit(), folder)


def test_foreign_tensors(folder):
    save_file({"transformer.weight": torch.zeros(3)}, folder / WEIGHTS)
    with refuses(folder / WEIGHTS, "missing", "unexpected", "transformer.weight"):
        read_weights(dit(), folder)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_one_tensor_too_few_or_too_many(folder, change):
    state = load_file(folder / WEIGHTS)
    if change == "missing":
        del state["proj_out.bias"]
    else:
        state["proj_out.extra"] = torch.zeros(2)
    save_file(state, folder / WEIGHTS)
    with refuses(folder / WEIGHTS, "1 " + {"missing": "missing", "extra": "unexpected"}[change], "proj_out."):
        read_weights(dit(), folder)


def test_names_that_are_nearly_right(folder):
    """Up to ten are listed, each with the nearest of the other side."""
    state = load_file(folder / WEIGHTS)
    state["blocks.0.attn.qvk.weight"] = state.pop("blocks.0.attn.qkv.weight")
    save_file(state, folder / WEIGHTS)
    with refuses(
        folder / WEIGHTS,
        "1 missing ['blocks.0.attn.qkv.weight' (nearest: 'blocks.0.attn.qvk.weight')]",
        "1 unexpected ['blocks.0.attn.qvk.weight' (nearest: 'blocks.0.attn.qkv.weight')]",
    ):
        read_weights(dit(), folder)
    blocks = [k for k in state if k.startswith("blocks.1.")]
    save_file({k: v for k, v in state.items() if not k.startswith("blocks.")}, folder / WEIGHTS)
    with refuses(
        folder / WEIGHTS, f"{2 * len(blocks)} missing", f"and {2 * len(blocks) - 10} more]", "0 unexpected []"
    ):
        read_weights(dit(), folder)


def test_weights_of_another_configuration(folder):
    wider = dit(dit__head_dim=24)
    with refuses(folder / WEIGHTS, "expected shape", CONFIG, "got"):
        read_weights(wider, folder)
    deeper = dit(dit__layers=3)
    with refuses(folder / WEIGHTS, "missing", "blocks.2."):
        read_weights(deeper, folder)


def test_a_broadcastable_shape_is_not_taken(folder):
    state = load_file(folder / WEIGHTS)
    state["table"] = state["table"][:1].clone()
    save_file(state, folder / WEIGHTS)
    with refuses(folder / WEIGHTS, "table", "[2, 32]", "[1, 32]"):
        read_weights(dit(), folder)


def test_no_config(folder):
    (folder / CONFIG).unlink()
    with refuses(folder, CONFIG):
        read_config(folder)


def test_no_folder(tmp_path):
    with refuses(tmp_path / "none", CONFIG):
        read_config(tmp_path / "none")


def test_no_folder_for_weights(tmp_path):
    with refuses(tmp_path / "none", WEIGHTS):
        read_weights(dit(), tmp_path / "none")


def test_no_weights(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with refuses(folder, WEIGHTS, "pytorch_model.bin"):
        read_weights(dit(), folder)


class Bomb:
    """A pickle that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"])
def test_pickles_are_never_opened(tmp_path, suffix):
    file, trace = tmp_path / f"model{suffix}", tmp_path / "opened"
    file.write_bytes(pickle.dumps(Bomb(trace)))
    with refuses(file, "pickle", "never loaded", WEIGHTS):
        read_config(file)
    assert not trace.exists()


def test_a_folder_that_holds_a_pickle_only(tmp_path):
    trace = tmp_path / "opened"
    for folder in (tmp_path / "run", tmp_path / "run.pt"):
        folder.mkdir()
        (folder / "model.pt").write_bytes(pickle.dumps(Bomb(trace)))
        with refuses(folder, CONFIG, WEIGHTS):
            read_config(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    "text, word", [("{", "JSON"), ("", "JSON"), ("[]", "object"), ("{}", "vae.kind"), ("\x00\x01", "JSON")]
)
def test_bad_config(folder, text, word):
    (folder / CONFIG).write_text(text)
    with refuses(folder / CONFIG, word):
        read_config(folder)


def test_config_that_is_not_text(folder):
    (folder / CONFIG).write_bytes(b"\xff\xfe\xfa")
    with refuses(folder / CONFIG):
        read_config(folder)


@pytest.mark.parametrize(
    "part, field, value",
    [
        ("stream", "colour", 3),
        ("stream", "context_chunks", -1),
        pytest.param("dit", "layers", "two"),
        pytest.param("speech", "tokens", 0),
        pytest.param("vae", "kind", ["conv"]),
    ],
)
def test_config_with_a_bad_field(folder, part, field, value):
    raw = json.loads((folder / CONFIG).read_text())
    raw[part][field] = value
    (folder / CONFIG).write_text(json.dumps(raw))
    with refuses(folder / CONFIG, part, field):
        read_config(folder)


def test_fingerprint_tells_weights_and_configurations_apart():
    config, module = toy(), dit()
    first = fingerprint(module, config)
    assert fingerprint(dit(), toy()) == first and len(first) == 64
    with torch.no_grad():
        module.blocks[1].attn.k_norm[3] += 1e-3
    assert fingerprint(module, config) != first
    assert fingerprint(dit(), toy(sampling__steps=9)) != first
    assert fingerprint(dit().double(), config) != first
