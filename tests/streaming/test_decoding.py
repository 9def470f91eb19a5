"""Streams that share one decoding show, bit for bit, what each shows in a decoding of its own."""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from unittest import mock

import numpy as np
import pytest
import torch

from rest_fast.config import MotionVAEConfig, preset
from rest_fast.streaming.decoder import BlockDecoder
from rest_fast.streaming.decoding import Decoding
from rest_fast.streaming.sampler import ChunkSampler
from rest_fast.streaming.snapshot import Fields
from rest_fast.streaming.stream import Stream
from tests.kit.captured import StandIn
from tests.kit.streams import same
from tests.kit.toys import basis_model, photo, sound, toy

CHUNK, STEPS = 3, 24
MOTION = MotionVAEConfig(
    latent_channels=16,
    patch_size=32,
    encoder_channels=(4, 6, 8, 8),
    photo_channels=(6, 8, 8, 8),
    flow_channels=(6, 8, 8, 8),
    code_width=12,
)


def conv(causal: bool):
    return toy(vae=preset("toy").replace(vae__causal_decoder=causal).vae)


MODELS = {  # model, how it sees time, whether its convolutions may have a dtype of their own
    "causal": (functools.partial(conv, True), None, False),
    "look-ahead 1": (functools.partial(conv, False), "lookahead(1)", False),
    "look-ahead 4": (functools.partial(conv, False), "lookahead(4)", False),
    "basis": (basis_model, None, True),
    "motion": (lambda: toy(vae=MOTION, height=128, width=128), None, True),
}


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    make, mode, mixed = MODELS[request.param]
    return make(), mode, mixed


class Viewer:
    """A stream of random latents, told step by step what happens to it, as a :class:`Stream` tells its decoder."""

    STEPS = (*["generate"] * 4, *["show"] * 4, "fail", "fail", "interrupt", "move")

    def __init__(self, decoding: Decoding, seed: int, steps: int = 0, low: Decoding | None = None):
        config = decoding.model.config
        self.rng, self.decoding = np.random.default_rng(seed), decoding
        self.script = [("show", 0.0)] + [(str(self.rng.choice(self.STEPS)), self.rng.random()) for _ in range(steps)]
        self.picture = self.rng.integers(0, 256, (config.height, config.width, 3), dtype=np.uint8)
        self.size = config.tokens, config.vae.latent_channels
        self.history = [self.latent()]  # all latents, behind the reference
        self.delivered = self.floor = 0
        self.at_end, self.shown = True, []
        # One that comes from where convolutions have another dtype brings it along with its first chunk.
        self.decoder = BlockDecoder(low or decoding, self.picture, self.history[0])
        if low is not None:
            self.generate(0.0)
            self.prepare()
            self.move(0.0)

    @property
    def generated(self) -> int:
        return len(self.history) - 1

    def latent(self) -> torch.Tensor:
        return torch.from_numpy(self.rng.standard_normal(self.size, dtype=np.float32))

    def step(self, fails: bool) -> bool:
        """The next step of the script; False at its end."""
        if not self.script:
            return False
        name, value = self.script.pop(0)
        if name == "fail":
            self.fail(value) if fails else self.prepare()
        else:
            getattr(self, name)(value)
        return bool(self.script)

    def generate(self, value: float) -> None:
        """A chunk, or with the end of a segment a part of it."""
        if not self.prepare():
            keep = 1 + int(6 * value) if value < 0.5 else CHUNK
            self.history += [self.latent() for _ in range(keep)]
            self.at_end = value < 0.5

    def prepare(self) -> bool:
        known = self.generated, self.at_end
        if self.generated > self.delivered and not self.decoder.made and self.decoder.fed != known:
            self.decoder.feed(self.history, *known)
        return bool(self.decoder.made)

    def show(self, value: float) -> None:
        for _ in range(1 + int(4 * value)):
            if self.prepare():
                self.shown.append(self.decoder.take().numpy())
                self.delivered += 1
                self.floor = max(self.floor, self.delivered - CHUNK)
                self.decoder.forget(self.floor)

    def interrupt(self, value: float) -> None:
        self.delivered -= int(value * (self.delivered - self.floor + 1))
        self.history, self.at_end = self.history[: self.delivered + 1], True
        self.decoder.back_to(self.delivered, self.history)

    def move(self, value: float) -> None:
        """On in another decoder, as data."""
        self.decoder.forget(self.floor)
        tensors = {f"decoder.{name}": tensor for name, tensor in self.decoder.to_tensors().items()}
        self.decoder = BlockDecoder(self.decoding, self.picture, self.history[0])
        self.decoder.put(self.decoder.read(Fields({}, tensors), self.floor, self.delivered, self.generated))

    def fail(self, value: float) -> None:
        """Where a piece is decoded, it fails: behind the return to a state, behind its decoding, or behind a state."""
        name = ("restore", "piece", "snapshot")[int(3 * value)]
        done = getattr(self.decoding.stream, name)

        def failing(*args, **options):
            done(*args, **options)
            raise MemoryError

        with mock.patch.object(self.decoding.stream, name, failing), contextlib.suppress(MemoryError):
            self.prepare()


def low_decoding(model, mode) -> Decoding:
    """One whose convolutions are in bfloat16."""
    model.vae.convolve_in(torch.bfloat16)
    try:
        return Decoding(model, mode)
    finally:
        model.vae.convolve_in(None)


@functools.cache
@torch.inference_mode()
def alone(model, mode, seed, low) -> list[np.ndarray]:
    viewer = Viewer(Decoding(model, mode), seed, STEPS, low_decoding(model, mode) if low else None)
    while viewer.step(fails=False):
        pass
    return viewer.shown


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_any_order_shows_what_each_shows_alone(kind, captured):
    """Photos, segment ends, interrupts, snapshots, failures and dtypes of three viewers, in turns of any length."""
    model, mode, mixed = kind
    rng, stand_in = np.random.default_rng(int(captured)), StandIn()
    wanted = [alone(model, mode, i, mixed and i == 2) for i in range(3)]
    low = low_decoding(model, mode) if mixed else None
    # Whoever runs an engine may open its memory in another mode of autograd than its streams.
    decoding = Decoding(model, mode, stand_in if captured else None)
    with torch.inference_mode():
        viewers: dict[int, Viewer] = {}
        going = [0, 1, 2]
        while going:
            i = int(rng.choice(going))
            if i not in viewers:  # opened while others are in the middle
                viewers[i] = Viewer(decoding, i, STEPS, low if i == 2 else None)
            for _ in range(int(rng.integers(1, 4))):
                if i in going and not viewers[i].step(fails=True):
                    going.remove(i)
    assert min(map(len, wanted)) > 2 and sum(map(len, wanted)) >= 20
    for i, want in enumerate(wanted):
        assert len(viewers[i].shown) == len(want)
        assert all(np.array_equal(a, b) for a, b in zip(viewers[i].shown, want, strict=True))
    assert not np.array_equal(wanted[0][0], wanted[1][0])
    assert len(stand_in.made) == int(captured) and (stand_in.replays > 0) == captured


@pytest.mark.parametrize("name", ["causal", "look-ahead 4"])
def test_another_stream_opens_without_a_trial_or_a_capture(name):
    """A causal decoder reads the reference's one latent, and nothing else is decoded."""
    make, mode, _ = MODELS[name]
    model, stand_in = make(), StandIn()
    decoding = Decoding(model, mode, stand_in)
    Viewer(decoding, 0)
    with mock.patch.object(decoding.stream, "piece", wraps=decoding.stream.piece) as piece:
        Viewer(decoding, 1)
    assert [call.args[0].shape[2] for call in piece.call_args_list] == [1] * decoding.primed
    assert len(stand_in.made) == 1 and stand_in.replays == 0


def test_one_stream_goes_on_without_copying_its_state(kind):
    model, mode, _ = kind
    decoding = Decoding(model, mode)
    one, other = (Viewer(decoding, seed) for seed in range(2))
    counts, restore = [], decoding.stream.restore

    def counted(state):
        counts[-1] += 1
        restore(state)

    with mock.patch.object(decoding.stream, "restore", counted):
        for viewer in (one, one, other, other, one):
            counts.append(0)
            for _ in range(2):
                viewer.generate(0.9)
                viewer.show(0.9)
    assert counts == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("name", ["look-ahead 1", "basis"])
def test_a_closed_stream_leaves_nothing(name):
    make, mode, _ = MODELS[name]
    decoding = Decoding(make(), mode, StandIn())
    other, viewer = Viewer(decoding, 1), Viewer(decoding, 0)
    viewer.generate(0.9)
    viewer.show(0.9)
    gone = [weakref.ref(viewer.decoder), *map(weakref.ref, viewer.decoder.states())]
    del viewer
    gc.collect()
    assert len(gone) > 1 and not any(one() for one in gone)
    other.generate(0.2)
    other.show(0.9)
    assert len(other.shown) > 0


def test_streams_of_one_decoding(model):
    """Two viewers' chunks in turn, one of them interrupted; the decoding is refused with what is another's."""
    avatars = [model.prepare(photo(seed=seed)) for seed in (0, 1)]

    def play(streams):
        shown = [[] for _ in streams]
        for part in range(2):
            for seed, stream in streams.items():
                stream.push(sound(16000, 1.7 + seed, seed=part))
                stream.end_segment()
            while any(stream.due() for stream in streams.values()):
                for stream, blocks in zip(streams.values(), shown):
                    if stream.due():
                        stream.generate()
                    while stream.has_block():
                        blocks.append(stream.make_block())
                        stream.deliver()
                        stream.forget()
            for seed, stream in streams.items():
                stream.back_to(stream.timeline.delivered - 1 - seed)
        return shown

    def run():
        sampling = model.config.sampling
        wanted = [play({i: Stream.alone(model, avatars[i], sampling, seed=i)})[0] for i in (0, 1)]
        stand_in = StandIn()
        decoding = Decoding(model, capture=stand_in)
        samplers = [ChunkSampler.of(model, sampling) for _ in avatars]
        streams = {
            i: Stream(model, avatars[i], samplers[i], samplers[i].session(0), seed=i, decoding=decoding) for i in (0, 1)
        }
        for want, got in zip(wanted, play(streams), strict=True):
            same(want, got)
        assert len(stand_in.made) == 1 and stand_in.replays > 0
        for options in ({"decode": "causal"}, {"graphs": lambda name: stand_in}):
            with pytest.raises(AssertionError, match="a decoding of this model, which has a mode and graphs of its"):
                Stream(model, avatars[0], samplers[0], samplers[0].session(0), decoding=decoding, **options)

    model.compute(run)


def test_a_photo_of_another_size_is_refused(model):
    with pytest.raises(AssertionError, match=r"decoding: expected a photo of \(64, 64, 3\), got \(32, 64, 3\)"):
        Decoding(model).begin(np.zeros((32, 64, 3), np.uint8))
