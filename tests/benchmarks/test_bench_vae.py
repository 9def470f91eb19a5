"""The benchmarks of the VAE: whatever is timed decodes the same, and what is reported is arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.kit.bench import module, script

kit, roofline = module("kit"), module("roofline")
bench_vae, bench_vae_layers = module("bench_vae"), module("bench_vae_layers")
vae_peers, vae_stages, vae_tables = module("vae_peers"), module("vae_stages"), script("vae_tables")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def chunk():
    """0.9.1 knows noise and timesteps."""
    with torch.no_grad():
        return bench_vae.Chunk(bench_vae.Case("0.9.1", "causal", 16, 32), torch.float32)


@pytest.mark.parametrize("release, mode", [("0.9.5", "lookahead(1)"), ("0.9.5", "causal"), ("0.9.1", "causal")])
def test_variants_of_a_decode(release, mode):
    chunk = bench_vae.Chunk(bench_vae.Case(release, mode, 16, 32), torch.float32)
    clips, left_out = chunk.clips()
    streams = chunk.streams() | chunk.concatenating()
    assert {"ours", "ours, uint8", "forward"} <= set(streams) and ("concatenate" in streams) == (mode == "causal")
    assert not {"diffusers", "diffusers, compiled"} - set(clips) - set(left_out)
    errors = chunk.check(streams, clips)
    assert set(errors) == {*streams, *clips}
    shapes = {call(0).shape for name, call in chunk.calls(streams, {}).items() if "uint8" not in name}
    assert shapes == {(1, 3, 24, 32, 32)}, "a steady state: 24 frames for each three latents"


def test_a_wrong_decode_is_no_result(chunk):
    def forgetful():
        return lambda z: chunk.vae.stream().decode(z)[:, :, -24:]

    with pytest.raises(AssertionError, match="expected "):
        chunk.check({"forgetful": forgetful}, {})
    last = chunk.vae.decoder.conv_out.bias
    kept = last.clone()
    streams = {"ours": lambda: (last.add_(0.01), chunk.vae.stream().decode)[1]}
    with pytest.raises(AssertionError, match="ours: expected an error of at most"):
        chunk.check(streams, {})
    last.copy_(kept)


def test_peers_of_the_decode_inject_our_noise(chunk, monkeypatch):
    """diffusers draws an image at each convolution: given ours in turn, the same picture. So with the other peer."""
    pytest.importorskip("diffusers")
    z, peer = chunk.clip(0), vae_peers.Diffusers(chunk.vae)
    images = chunk.vae.decoder.images(z, 0)
    state = bench_vae.Functional(chunk.vae, chunk.mode).state
    state.images = images
    want = chunk.vae.decoder(z, state)
    with vae_peers.without_noise(chunk.vae, peer):
        still = peer(z)
    drawn = iter(images.values())
    monkeypatch.setattr(torch, "randn", lambda *args, **kwargs: next(drawn)[0])
    assert bench_vae.error(peer(z), want) < 1e-5 and next(drawn, None) is None
    assert bench_vae.error(still, want) > 1e-3, "noise does something"
    stream = vae_peers.Concatenating(chunk.vae, images)
    pieces = [stream(piece) for piece in z.split([1, 2, 1], 2)]
    assert bench_vae.error(torch.cat(pieces, 2), want) < 1e-5, "from the start on, in any pieces"


# Research notes, 1.4: GFLOP of a latent at 512 x 512, and convolutions
GFLOP = {
    "0.9.5": ("conv_in 1.8 S0 145.0 up0 58.0 S1 289.9 up1 116.0 S2 579.8 up2 231.9 S3 1159.6 conv_out 43.5", 2626, 45),
    "0.9.1": ("conv_in 1.8 S0 231.9 up0 58.0 S1 405.9 up1 116.0 S2 695.8 up2 231.9 S3 1159.6 conv_out 43.5", 2944, 57),
}


@pytest.mark.parametrize("release", GFLOP)
def test_flop_of_the_stages(release):
    words, whole, count = GFLOP[release]
    found = vae_stages.stages(vae_peers.config(release, causal=True), 1, 16, 16, 2)
    wanted = dict(zip(words.split()[::2], map(float, words.split()[1::2]), strict=True))
    assert {s.name: round(s.work.flop / 1e9, 1) for s in found} == wanted
    assert sum(s.work.flop for s in found) / 1e9 == pytest.approx(whole, abs=0.5)
    assert sum(s.convolutions for s in found) == count
    assert found[-2].shape == (128, 128, 8)


def test_layers_are_those_of_the_decoder(chunk):
    """Their FLOP are what PyTorch counts in a chunk of the steady state."""
    config = chunk.vae.config
    found = vae_stages.layers(config, 1, 1)
    weights = [p for name, p in chunk.vae.decoder.named_parameters() if p.ndim == 5]
    assert sorted((x.outputs, x.channels) for x in found) == sorted(tuple(p.shape[:2]) for p in weights)
    state = bench_vae.Functional(chunk.vae, chunk.mode).state
    state.images, state.started = chunk.vae.decoder.images(chunk.clip(0), 0), True
    with FlopCounterMode(display=False) as counter:
        chunk.vae.decoder(chunk.inside[0], state)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert counted == sum(layer.flop(3) for layer in found)
    last = found[-1]
    assert last.numbers(1) == 27 * 8 * 48 + 8 * 8 * 8 * (8 + 48)


def test_a_decode_is_split_into_its_stages(chunk):
    stream, decoder = chunk.vae.stream(), chunk.vae.decoder
    stream.decode(chunk.latents[0])
    clock = vae_stages.Clock(vae_stages.our_parts(decoder))
    split = clock.split(lambda: stream.decode(chunk.latents[1]))
    assert len(clock.spans) == 2 + len(decoder.blocks) and "step" not in vars(decoder.blocks[0])
    names = [s.name for s in vae_stages.stages(chunk.vae.config, 3, 1, 1, 4)]
    assert list(dict.fromkeys(stage for stage, *_ in clock.spans)) == names
    assert split["whole"] == pytest.approx(sum(split[n] for n in names) + split["rest"]) and split["rest"] > 0
    pytest.importorskip("diffusers")
    peer = vae_peers.Diffusers(chunk.vae)
    clock = vae_stages.Clock(vae_stages.their_parts(peer.decoder))
    assert set(names) < set(clock.split(lambda: peer(chunk.clip(0))))


def test_the_table_of_stages_is_arithmetic():
    roof = roofline.Roof(copy=1e9, gemm=1e12)
    found = [vae_stages.Stage("S0", 2, (4, 4, 3), roofline.Work(1000, 4_000_000))]
    medians = {"ours": {"S0": 8.0, "rest": 2.0, "whole": 10.0}, "peer": {"S0": 16.0, "rest": 4.0, "whole": 20.0}}
    info = {"base": "ours", "device": "cuda", "stages": vae_stages.stage_rows(found, roof, medians, "ours")}
    assert vae_tables.stage_table(info).splitlines() == [
        "| stage | convolutions | H x W x T | GFLOP | ideal ms | ours, ms | of the roofline | peer / ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| S0 | 2 | 4 x 4 x 3 | 0.004 | 0.004 | 0.008 | 50% | 2.00 |",
        "| all | 2 |  | 0.004 | 0.004 | 0.010 | 40% | 2.00 |",
    ]
    lines = vae_tables.stage_table(info | {"device": "cpu"}).splitlines()
    assert "ms" not in lines[0] and lines[2] == "| S0 | 2 | 4 x 4 x 3 | 0.004 | 80% | 50% | 2.00 |"


def test_variants_of_a_layer():
    for layer in bench_vae_layers.distinct(16, 64):
        case = bench_vae_layers.Convolution(layer, 2, torch.float32)
        results = {name: case.results(name) for name in {*case.backends(), "reference"}}
        kit.gate(results, case.exact(), "reference")
        with pytest.raises(AssertionError, match="idle: result 0"):
            kit.gate(results | {"idle": [torch.zeros_like(x) for x in case.exact()]}, case.exact(), "reference")


def test_tables_of_chunks_and_memory():
    def result(name, **more):
        variants = {"ours": {"median_us": 2000.0}, "peer": {"median_us": 5000.0}}
        about = {"release": "0.9.5", "mode": "causal", "side": 512, "dtype": "bf16", "device": "cuda", "base": "ours"}
        return {"name": name, "variants": variants, "shrink": 1, "rounds": 9, **about, **more}

    only_ours = {"variants": {"ours": {"median_us": 10.0}}, "shrink": 8}
    memory = {"name": "memory", "peak_mb": {"ours": 10.4, "peer": 99.6}, "ours_mb": {"state": 1.2}}
    text = vae_tables.markdown([result("chunk[a]"), result("chunk[b]", **only_ours), memory])
    assert text.splitlines()[2:] == [
        "| case | dtype | rounds | ours, ms | the fastest peer / ours | peer / ours |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 0.9.5 causal, 512 | bf16 | 9 | 2 | 2.50: peer | 2.50 |",
        "| 0.9.5 causal, width / 8, 512 | bf16 | 9 | 0.01 |  |  |",
        "",
        "memory",
        "",
        "|  | MB |",
        "| --- | --- |",
        "| ours, peak beyond the weights | 10 |",
        "| peer, peak beyond the weights | 100 |",
        "| of ours: state | 1 |",
    ]
    on_cpu = vae_tables.chunk_table([result("chunk[a]", device="cpu")])
    assert on_cpu.splitlines()[2] == "| 0.9.5 causal, 512 | bf16 | 9 | 2.50: peer | 2.50 |", "no times from a CPU"


def test_the_fastest_peer_leads():
    """Neither of ours is a peer, and the range is that of the fastest peers alone."""

    def result(**us):
        variants = {"ours": 100.0, "ours, uint8": 50.0, "forward": 60.0} | us
        return {"base": "ours", "variants": {name: {"median_us": t} for name, t in variants.items()}}

    results = [result(diffusers=900.0, concatenate=140.0), result(diffusers=220.0, concatenate=300.0)]
    assert [vae_tables.fastest_peer(info) for info in results] == ["concatenate", "diffusers"]
    assert vae_tables.fairest(results) == "1.4 to 2.2"


class Convolutions(TorchDispatchMode):
    """Names of all that are called."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names += [name] if "convolution" in name else []
        return function(*args, **(kwargs or {}))


def test_peers_through_onednn_avoid_the_plain_loop(chunk):
    """PyTorch chooses the algorithm of none of their convolutions. That they decode the same: the variants above."""
    pytest.importorskip("diffusers")
    if not bench_vae.ONEDNN:
        pytest.skip("no oneDNN, or a GPU")
    clips, _ = chunk.clips()
    streams = chunk.concatenating()
    decode = streams["concatenate, oneDNN"]()
    with Convolutions() as seen:
        clips["diffusers, oneDNN"](chunk.clip(0))
        clips["diffusers, channels-last, oneDNN"](chunk.clip(0))
        decode(chunk.inside[0])
    count = len(vae_stages.layers(chunk.vae.config, 1, 1))
    assert seen.names == ["mkldnn_convolution"] * 3 * count
    with Convolutions() as seen:
        clips["diffusers"](chunk.clip(0))
    assert seen.names == ["convolution"] * count, "whose algorithm PyTorch chooses"


def test_streams_side_by_side():
    case = bench_vae.Case("0.9.5", "causal", 16, 32, brief=True, batch=2)
    chunk = bench_vae.Chunk(case, torch.float32)
    clips, _ = chunk.clips()
    streams = chunk.streams() | chunk.concatenating()
    assert set(chunk.check(streams, clips)) == {*streams, *clips}
    assert str(case).endswith("batch 2") and chunk.calls(streams, {})["ours"](0).shape == (2, 3, 24, 32, 32)
