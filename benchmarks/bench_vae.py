"""Streaming decode of the VAE: a chunk of three latents in the steady state, ours in place and as others do it.

*ours* is ``vae.stream().decode``, *ours, uint8* ``.pictures``; *forward* the functional pass, whose histories are
concatenated. *concatenate* pads and concatenates as Wan's code does. *diffusers* keeps no memory: to give 24 new frames
it decodes a clip of one latent more, and what it has decoded already it decodes again (and without a seam it would need
more). All have the same random weights. On a CPU widths are an eighth or a quarter of the real ones, on a GPU they are
real.

On a CPU ``F.conv3d`` gives a batch of one with few pixels to a plain loop, several times slower than oneDNN. The peers
called *oneDNN* do not fall into it: the same modules, their convolutions by ``torch.mkldnn_convolution``. Nor does a
batch of two, which is a case of its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest
import torch

import rest_fast
from benchmarks import kit, vae_peers, vae_stages
from benchmarks.roofline import Roof, measure
from rest_fast import ops
from rest_fast.models.vae import DecodeStream, TemporalVAE, to_uint8
from rest_fast.models.vae.ltx import ConvDecoder
from rest_fast.models.vae.state import read_mode

Decode = Callable[[torch.Tensor], torch.Tensor]
CHUNK = 3  # latents
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # root mean square over that of the picture, against fp32
ROUNDED = 1e-2  # and what 8 bits add
ON_GPU = torch.cuda.is_available()
ONEDNN = not ON_GPU and torch.backends.mkldnn.is_available()
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
LIBRARY = "library,triton,cpp,reference"  # the convolution by the library, the rest as it may


@dataclass(frozen=True)
class Case:
    release: str
    mode: str
    shrink: int = 1  # widths are divided by it
    side: int = 512
    brief: bool = False  # without the variants that only say more of one that is there
    batch: int = 1  # streams side by side

    def __str__(self) -> str:
        width = "" if self.shrink == 1 else f"width / {self.shrink}, "
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.release}, {self.mode}, {width}{self.side} x {self.side}{batch}"


MODES = ("causal", "lookahead(1)")
RELEASES = ("0.9.5", "0.9.1")
CASES = (
    [Case(release, mode) for release in RELEASES for mode in MODES]
    if ON_GPU
    else [
        *(Case(release, mode, 8, 128) for release in RELEASES for mode in MODES),
        *(Case("0.9.5", "causal", shrink, side, brief=True) for shrink, side in ((8, 256), (4, 128), (4, 256))),
        Case("0.9.5", "causal", 8, 128, batch=2),
    ]
)


class Functional(DecodeStream):
    """A stream through ``decoder.forward``: histories are concatenated, results are new tensors."""

    def _run(self, z: torch.Tensor, counters: list[tuple[int, int]], pictures: bool) -> torch.Tensor:
        if isinstance(self.vae.decoder, ConvDecoder):
            self.state.images = self._images(z, counters)
        video = self.vae.decoder(z, self.state)
        return to_uint8(video) if pictures else video


class Chunk:
    """A decoder with its latents, and everything that can decode them."""

    def __init__(self, case: Case, dtype: torch.dtype = DTYPE):
        self.case, self.dtype, device = case, dtype, kit.device()
        config = vae_peers.config(case.release, causal=case.mode == "causal", shrink=case.shrink)
        self.vae = vae_peers.random_vae(config, device, dtype)
        self.mode = read_mode(case.mode, self.vae.causal)
        side, generator = case.side // config.spatial, torch.Generator(device).manual_seed(1)
        shape = (case.batch, config.latent_channels, CHUNK, side, side)
        self.peers: tuple[torch.nn.Module, ...] = ()
        self.latents = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(kit.LAYERS)]

    def clip(self, i: int) -> torch.Tensor:
        """What a decoder without memory is given for the chunk: the latent before it, and those ahead."""
        count = len(self.latents)
        before, after = self.latents[i - 1][:, :, -1:], self.latents[(i + 1) % count][:, :, : self.mode.ahead]
        return torch.cat([before, self.latents[i % count], after], 2)

    @functools.cached_property
    def inside(self) -> list[torch.Tensor]:
        """The latents as a decoder reads them, for those that begin there."""
        return [self.vae.denormalised(z, CHUNK * i, 0) for i, z in enumerate(self.latents)]

    def streams(self) -> dict[str, Callable[[], Decode]]:
        """Variant -> a new stream, called with three latents at a time."""
        vae, case = self.vae, self.case

        def library() -> Decode:
            stream = vae.stream(mode=case.mode)

            def decode(z: torch.Tensor) -> torch.Tensor:
                with ops.use_backend(LIBRARY):
                    return stream.decode(z)

            return decode

        made: dict[str, Callable[[], Decode]] = {
            "ours": lambda: vae.stream(mode=case.mode).decode,
            "ours, uint8": lambda: vae.stream(mode=case.mode).pictures,
            "forward": lambda: Functional(vae, self.mode).decode,
        }
        return made | ({"ours, library": library} if ON_GPU else {})

    def concatenating(self) -> dict[str, Callable[[], Decode]]:
        """The same with latents as the decoder reads them, for causal decoders."""
        if not self.vae.causal:
            return {}
        images = self.vae.decoder.images(self.latents[0], 0)

        def last() -> Decode:
            return in_last(vae_peers.Concatenating(in_channels_last(self.vae), images))

        made: dict[str, Callable[[], Decode]] = {"concatenate": lambda: vae_peers.Concatenating(self.vae, images)}
        if ONEDNN:
            through = {"convolve": vae_peers.onednn_conv3d}
            made["concatenate, oneDNN"] = lambda: vae_peers.Concatenating(self.vae, images, **through)
        if not self.case.brief:
            made["concatenate, channels-last"] = last
            made["concatenate, one latent a pass"] = lambda: vae_peers.Concatenating(self.vae, images, 1)
        return made

    def clips(self, compile_peers: bool = True) -> tuple[dict[str, Decode], dict[str, str]]:
        """Variants that decode whole clips; and those left out, with the reason."""
        names = ["diffusers", "diffusers, channels-last", "diffusers, compiled"]
        names += ["diffusers, oneDNN", "diffusers, channels-last, oneDNN"] if ONEDNN else []
        left_out, runs = {}, {}
        if not (ON_GPU and compile_peers):
            names.remove("diffusers, compiled")
            left_out["diffusers, compiled"] = "only on a GPU and without hurry: it takes minutes for each case"
        try:
            peers = {name: vae_peers.Diffusers(self.vae) for name in names}
        except (ImportError, RuntimeError) as e:  # the latter: of a version that its libraries refuse
            return {}, left_out | dict.fromkeys(names, f"{type(e).__name__}: {e}")
        if self.case.brief:
            del peers["diffusers"]
        for name, peer in peers.items():
            if name.endswith("oneDNN"):
                peer.through_onednn()
            if name in ("diffusers", "diffusers, oneDNN"):
                runs[name] = peer
            else:
                peer.to(memory_format=torch.channels_last_3d)
                runs[name] = in_last(kit.compiled(peer) if "compiled" in name else peer)
        self.peers = tuple(peers.values())
        left_out |= kit.without_failures(runs, ["diffusers, compiled"], lambda run: run(self.clip(0)))
        return runs, left_out

    def check(self, streams: dict[str, Callable[[], Decode]], clips: dict[str, Decode]) -> dict[str, float]:
        """The gate: error of every variant in its third chunk, or on a clip. Raises AssertionError over the limit."""
        whole = copied(self.vae, torch.float32)
        stream = Functional(whole, self.mode)
        want = [stream.decode(z.to(whole.latents_mean.dtype)) for z in self.latents][2]
        own, errors = self.streams(), {}
        for name, make in streams.items():
            decode = make()
            pieces = self.latents if name in own else self.inside
            errors[name] = error([decode(z) for z in pieces][2], want)
        if clips:
            with vae_peers.without_noise(self.vae, *self.peers):
                whole = copied(self.vae, torch.float32)
                state = Functional(whole, self.mode).state
                state.images = whole.decoder.images(self.clip(0).to(whole.latents_mean.dtype), 0)
                want = whole.decoder(self.clip(0).to(whole.latents_mean.dtype), state)
                errors |= {name: error(decode(self.clip(0)), want) for name, decode in clips.items()}
        for name, off in errors.items():
            limit = LIMITS[self.dtype] + (ROUNDED if "uint8" in name else 0)
            if not off <= limit:
                raise AssertionError(f"{name}: expected an error of at most {limit:.2g}, got {off:.2g}")
        return errors

    def calls(self, streams: dict[str, Callable[[], Decode]], clips: dict[str, Decode]) -> dict[str, kit.Call]:
        """Each variant on chunk i, its window filled."""
        found: dict[str, kit.Call] = {}
        own, cut = self.streams(), [self.clip(i) for i in range(len(self.latents))]
        for name, make in streams.items():
            decode, pieces = make(), self.latents if name in own else self.inside
            for z in pieces[:2]:
                decode(z)
            found[name] = lambda i, decode=decode, pieces=pieces: decode(pieces[i])
        return found | {name: (lambda i, decode=decode: decode(cut[i])) for name, decode in clips.items()}


def copied(vae: TemporalVAE, dtype: torch.dtype) -> TemporalVAE:
    """The same weights."""
    with kit.device():
        copy = TemporalVAE(vae.config).to(dtype)
    copy.load_state_dict(vae.state_dict())
    return copy.eval().requires_grad_(False)


def in_last(model: Decode) -> Decode:
    """Called with latents in channels-last order."""
    return lambda z: model(z.contiguous(memory_format=torch.channels_last_3d))


def in_channels_last(vae: TemporalVAE) -> TemporalVAE:
    copy = copied(vae, vae.latents_mean.dtype)
    copy.decoder.to(memory_format=torch.channels_last_3d)
    return copy


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Root mean square of the difference over that of what is wanted; of pictures in 8 bits, too."""
    if got.dtype == torch.uint8:
        got, want = got.movedim(-1, 1).float() / 127.5 - 1, want.clamp(-1, 1)
    assert got.shape == want.shape, f"expected {list(want.shape)}, got {list(got.shape)}"
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.fixture(autouse=True)
def settings():
    """The library may look for its fastest algorithm, for everyone; fp32 is fp32."""
    flags = {"benchmark": True, "allow_tf32": False}
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=False, **flags):
        yield


@functools.cache
def roof(dtype: torch.dtype) -> Roof:
    return measure(kit.device(), dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunk(benchmark, case):
    chunk = Chunk(case)
    clips, left_out = chunk.clips()
    streams = chunk.streams() | chunk.concatenating()
    errors = chunk.check(streams, clips)
    calls = chunk.calls(streams, clips)
    times = kit.interleaved(calls, budget=4 if ON_GPU else 6, least=20 if ON_GPU else 7)
    made = 8 * (CHUNK + chunk.mode.ahead)
    frames = {name: made + (name in clips) for name in calls}
    about = {**asdict(case), "dtype": kit.NAMES[chunk.dtype], "frames_decoded": frames, "frames_new": 8 * CHUNK}
    about |= {"errors": {name: float(f"{off:.2g}") for name, off in errors.items()}, "left_out": left_out}
    kit.store(benchmark, times, "ours", calls["ours"], **about)


@pytest.mark.parametrize("release", RELEASES)
def test_stages(benchmark, release):
    case = Case(release, "causal") if ON_GPU else Case(release, "causal", 8, 256)
    chunk, dtype = Chunk(case), DTYPE
    decoder = chunk.vae.decoder
    assert isinstance(decoder, ConvDecoder)
    stream, parts = chunk.vae.stream(mode=case.mode), {"ours": vae_stages.our_parts(decoder)}
    runs: dict[str, Callable[[int], Any]] = {"ours": lambda i: stream.decode(chunk.latents[i])}
    with contextlib.suppress(ImportError, RuntimeError):
        peer, cut = vae_peers.Diffusers(chunk.vae), [chunk.clip(i) for i in range(kit.LAYERS)]
        peer.to(memory_format=torch.channels_last_3d)
        name = "diffusers, channels-last"
        if ONEDNN:
            peer.through_onednn()
            name += ", oneDNN"
        run = in_last(peer)
        runs[name], parts[name] = lambda i: run(cut[i]), vae_stages.their_parts(peer.decoder)
    stream.decode(chunk.latents[0])
    clocks, splits = {n: vae_stages.Clock(p) for n, p in parts.items()}, {n: [] for n in runs}
    calls = {n: (lambda i, n=n: splits[n].append(clocks[n].split(lambda: runs[n](i)))) for n in runs}
    times = kit.interleaved(calls, budget=2)
    rounds = len(times["ours"])
    medians = {
        n: {k: float(np.median([s[k] for s in found[-rounds:]])) for k in found[0]} for n, found in splits.items()
    }
    side = case.side // chunk.vae.config.spatial
    found = vae_stages.stages(chunk.vae.config, CHUNK, side, side, torch.finfo(dtype).bits // 8)
    rows = vae_stages.stage_rows(found, roof(dtype), medians, "ours")
    about = {**asdict(case), "dtype": kit.NAMES[dtype], "stages": rows, "roof": roof(dtype).about()}
    kit.store(benchmark, times, "ours", calls["ours"], **about)


# -- the demo


def test_demo(benchmark):
    """The demo's own decoder as it is loaded, and in fp32: the pass in place against the one that concatenates."""
    vae, plain = rest_fast.load("demo").vae, rest_fast.load("demo", dtype=torch.float32).vae
    device, (rows, columns) = plain.latents_mean.device, plain.size
    generator = torch.Generator(device).manual_seed(0)
    still = torch.rand(1, 3, 1, rows, columns, generator=generator, device=device) * 2 - 1
    cells = plain.config.latent_channels, CHUNK, rows // plain.config.spatial, columns // plain.config.spatial
    latents = [torch.randn(1, *cells, generator=generator, device=device) for _ in range(kit.LAYERS)]

    def loaded(pictures: bool) -> Decode:
        like, stream = vae.latents_mean, vae.stream(reference=still.to(vae.latents_mean))
        return lambda z: (stream.pictures if pictures else stream.decode)(z.to(like))

    makers = {
        "ours": lambda: loaded(False),
        "ours, uint8": lambda: loaded(True),
        "ours, fp32": lambda: plain.stream(reference=still).decode,
        "forward, fp32": lambda: Functional(plain, read_mode(None, True), still).decode,
    }
    made = {name: [decode(z) for z in latents][2] for name, decode in ((n, m()) for n, m in makers.items())}
    errors = {name: error(video, made["forward, fp32"]) for name, video in made.items()}
    assert errors["ours, fp32"] <= LIMITS[torch.float32] and max(errors.values()) <= LIMITS[torch.bfloat16], errors
    calls: dict[str, kit.Call] = {}
    for name, make in makers.items():
        decode = make()
        for z in latents:
            decode(z)
        calls[name] = lambda i, decode=decode: decode(latents[i])
    kit.store(benchmark, kit.interleaved(calls, budget=3), "ours", calls["ours"], errors=errors)
