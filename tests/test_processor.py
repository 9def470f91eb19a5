"""What is chosen by the processor, how it is set instead, and that threads and processors do not change a stream."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

import rest_fast
from rest_fast import checkpoint, diagnostics, preset, processor
from rest_fast.model import ASSETS, Model
from rest_fast.ops import library_convolution
from rest_fast.streaming.sampler import ChunkSampler
from tests.kit.streams import same
from tests.kit.toys import basis_model, sound

PORTRAIT = ASSETS / "demo" / "portrait.png"
EPYC = {"amd", "avx512_bf16"}  # where bfloat16 was measured faster
XEON = {"intel", "avx512_bf16"}  # and slower
AMX = XEON | {"amx_bf16"}  # and faster again

BF16 = pytest.mark.skipif(
    torch.bfloat16 not in library_convolution.DTYPES["cpu"], reason="a plain loop convolves bfloat16 here: minutes"
)


@pytest.mark.parametrize(
    ("here", "dtype"),
    [(EPYC, torch.bfloat16), (XEON, None), (AMX, torch.bfloat16), ({"intel"}, None), ({"amd"}, None), (set(), None)],
)
def test_the_table_follows_what_was_measured(here, dtype, monkeypatch):
    monkeypatch.setattr(processor, "features", lambda: frozenset(here))
    monkeypatch.setitem(library_convolution.DTYPES, "cpu", (torch.float32, torch.bfloat16))
    assert processor.decoder_dtype() == dtype
    assert rest_fast.load("demo", device="cpu").vae.decoder.dtype == dtype
    report = diagnostics.describe()
    assert f"demo's decoder in {'bfloat16' if dtype else 'float32'}" in " ".join(report.split())


def test_a_library_that_is_held_back_counts(monkeypatch):
    """ONEDNN_MAX_CPU_ISA=AVX2 on a processor with AMX: bfloat16 would be convolved by a plain loop."""
    monkeypatch.setattr(processor, "features", lambda: frozenset(AMX))
    monkeypatch.setitem(library_convolution.DTYPES, "cpu", (torch.float32,))
    assert processor.decoder_dtype() is None


def test_every_entry_cites_a_stored_measurement():
    root = Path(processor.__file__).parents[1]
    if not (root / "benchmarks").is_dir():
        pytest.skip("an installed package has no benchmarks")
    assert all((root / cited).is_file() for _, dtype, cited in processor.DECODER_DTYPES if dtype is not None)


@pytest.mark.parametrize(
    ("vendor", "amx", "bf16", "found"),
    [
        ("AuthenticAMD", False, True, EPYC),
        ("GenuineIntel", False, True, XEON),
        ("GenuineIntel", True, True, AMX),
        ("HygonGenuine", False, False, set()),
    ],
)
def test_features_of_a_processor(vendor, amx, bf16, found, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: intel or amd in a name is no vendor\n")
    monkeypatch.setattr(processor, "CPUINFO", info)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    processor.features.cache_clear()
    try:
        assert processor.features() == found
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")  # another system
        monkeypatch.setattr(platform, "processor", lambda: "")
        processor.features.cache_clear()
        assert processor.features() == found - {"amd", "intel"}
    finally:
        processor.features.cache_clear()


def test_a_dtype_that_is_given_counts(monkeypatch):
    monkeypatch.setattr(processor, "features", lambda: frozenset(EPYC))
    exact = rest_fast.load("demo", device="cpu", dtype=torch.float32)  # of everything
    assert exact.vae.decoder.dtype is None
    monkeypatch.setattr(processor, "features", lambda: frozenset())
    mixed = rest_fast.load("demo", device="cpu", decoder_dtype=torch.bfloat16)
    assert (mixed.dtype, mixed.vae.decoder.dtype) == (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match=r"load: decoder_dtype: expected .*, got torch\.int8"):
        rest_fast.load("demo", decoder_dtype=torch.int8)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2", 2**31])
def test_a_number_of_threads_that_is_none(threads):
    with pytest.raises(ValueError, match=r"load: threads: expected an integer in 1\.\.1024 or None, got"):
        rest_fast.load("demo", threads=threads)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A checkpoint of the preset ``drawn``, whose frames do not depend on the number of threads."""
    with checkpoint.Unfilled():
        model = Model(preset("drawn"))
    g = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.copy_(0.05 * torch.randn(tensor.shape, generator=g))
    model.vae.latents_std.fill_(1)
    folder = tmp_path_factory.mktemp("drawn")
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def models(drawn):
    """(threads, dtype of the decoder's convolutions) -> model."""
    pairs = [(1, torch.float32), (2, torch.float32), (1, torch.bfloat16), (2, torch.bfloat16)]
    return {(n, d): rest_fast.load(drawn, device="cpu", decoder_dtype=d, threads=n) for n, d in pairs}


@pytest.fixture(scope="module")
def avatars(models):
    return {key: model.prepare(PORTRAIT, crop="center") for key, model in models.items()}


def test_fewer_threads_may_do_where_that_changes_nothing(model, drawn):
    """Neither with a number that was given, nor in bfloat16, nor at other sizes than the preset's."""
    most = torch.get_num_threads()
    assert rest_fast.load(drawn, device="cpu").team() == (most, True)
    assert rest_fast.load(drawn, device="cpu", dtype=torch.bfloat16).team() == (most, False)
    assert rest_fast.load(drawn, device="cpu", threads=7).team() == (7, False)
    assert rest_fast.load("demo", device="cpu").team() == (most, False)
    assert model.team() == (most, False)
    assert basis_model().team() == (most, False)  # a sum of 800 in its SpeechAE is shared by two threads


def constants(model, threads):
    """What every stream of a model starts from, beside its avatar."""
    model.threads = threads

    def job():
        text = [t for kv in model.text if kv is not None for t in kv]
        return [*model.null_sink, *text, ChunkSampler.of(model, model.config.sampling).step.modulations.vectors]

    return model.compute(job)


@pytest.mark.parametrize("make", [basis_model, functools.partial(rest_fast.load, "demo", device="cpu")])
def test_what_a_stream_starts_from_does_not_depend_on_threads(make):
    """Also at sizes whose frames do: MKL shares a long sum among threads, with AVX2 from 768 inputs on."""
    pairs = zip(constants(make(), 1), constants(make(), 2), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_avatar_does_not_depend_on_threads(avatars):
    first, *others = avatars.values()
    for other in others:
        assert other.identity == first.identity
        for name in ("reference", "sink_k", "sink_v"):
            assert torch.equal(getattr(other, name), getattr(first, name))


def test_features_of_a_photo_do_not_depend_on_threads():
    """oneDNN may divide the sums of a single picture's convolutions."""
    one, two = (
        rest_fast.load("demo", device="cpu", decoder_dtype=torch.float32, threads=n).prepare(PORTRAIT, crop="center")
        for n in (1, 2)
    )
    assert one.features.keys() == two.features.keys() and len(one.features) == 5
    assert all(torch.equal(one.features[name], two.features[name]) for name in one.features)


def test_another_crop_or_model_is_another_avatar(models, avatars):
    model, first = models[1, torch.float32], avatars[1, torch.float32]
    other = model.prepare(PORTRAIT, crop=(4, 4, 124, 124))
    assert other.identity != first.identity
    loaded = rest_fast.Avatar(*[getattr(first, f) for f in first.__dataclass_fields__])
    assert loaded.identity == first.identity


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=BF16)])
def test_frames_do_not_depend_on_threads(models, avatars, dtype):
    def stream(threads):
        with models[threads, dtype].session(avatars[threads, dtype], sample_rate=24000, seed=3) as session:
            session.push_audio(sound(24000, 1.1))
            session.end_segment()
            return list(session.blocks())

    same(stream(1), stream(2))


@BF16
def test_a_live_stream_moves_to_a_machine_with_other_cores_and_another_choice(models, avatars):
    """From two threads and bfloat16 to one thread and a model that convolves in float32: the frames stay the same."""
    here, there = (2, torch.bfloat16), (1, torch.float32)
    samples = sound(16000, 2.2)

    def session(key):
        return models[key].session(avatars[key], seed=5)

    with session(here) as stayed, session(there) as moved, session(there) as fresh:
        stayed.push_audio(samples)
        first = list(stayed.blocks())
        state = rest_fast.SessionState.from_bytes(stayed.snapshot().to_bytes())
        moved.restore(state)
        for one in (stayed, moved):
            one.end_segment()
        rest = list(stayed.blocks())
        same(rest, list(moved.blocks()))
        assert first
        assert rest
        fresh.push_audio(samples)  # and its own choice is the model's, as before
        fresh.end_segment()
        own = list(fresh.blocks())
        assert not all(np.array_equal(a.video, b.video) for a, b in zip(own, first + rest, strict=True))
