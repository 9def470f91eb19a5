"""A session whose step and decoder are captured, by the stand-in for graphs, shows the frames of one that is not."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from rest_fast.config import preset
from rest_fast.errors import ArgumentError, CaptureError
from rest_fast.streaming import session as session_module
from rest_fast.streaming.graphs import CudaGraphs, graphs_of
from rest_fast.streaming.snapshot import SessionState
from tests.kit.captured import StandIn
from tests.kit.streams import play, same
from tests.kit.toys import basis_model, photo, sound, toy

CPU = torch.device("cpu")
MODELS = {
    "causal": lambda: toy(vae=preset("toy").replace(vae__causal_decoder=True).vae),
    "look-ahead": lambda: toy(vae=preset("toy").replace(vae__causal_decoder=False).vae),
    "basis": basis_model,
}


class Graphs:
    """Stand-ins by name."""

    def __init__(self):
        self.made = {}

    def __call__(self, name):
        self.made[name] = StandIn()
        return self.made[name]


@pytest.fixture
def graphs(monkeypatch):
    """From when it is called, sessions are captured."""
    made = Graphs()

    def on():
        monkeypatch.setattr(session_module, "graphs_of", lambda choice, device: made)
        return made.made

    return on


def talk(session):
    """Whole chunks, a segment cut inside one, an interrupt inside one, and idle."""
    blocks = play(session, sound(16000, 3.5))
    session.interrupt(shown_pts=blocks[-1].pts)
    blocks += play(session, sound(16000, 2.5, seed=1))
    return blocks + list(session.blocks(idle=True))


@pytest.mark.parametrize("kind", MODELS)
def test_the_same_frames(kind, graphs):
    model = MODELS[kind]()
    avatar = model.prepare(photo())
    with model.session(avatar, seed=3) as s:
        want = talk(s)
    made = graphs()
    with model.session(avatar, seed=3) as s:
        same(want, talk(s))
        chunks = s.metrics()["chunks"]
    step, decoder = made["denoising step"], made["decoder"]
    # A chunk is one replay, a context that is rebuilt one more, each with its commit.
    assert step.replays >= 2 * chunks
    # Pieces of whole chunks behind the first one; not those of a segment's end and of a return into a chunk.
    assert 0 < decoder.replays < chunks


@pytest.mark.parametrize("kind", MODELS)
def test_a_snapshot_goes_on_in_a_captured_session(kind, graphs):
    model = MODELS[kind]()
    avatar = model.prepare(photo())
    samples = sound(16000, 5.0)
    with model.session(avatar, seed=3) as s:
        s.push_audio(samples)
        s.end_segment()
        head, tail = [], []
        for i, block in enumerate(s.blocks()):
            (head if i < 4 else tail).append(block)
            if i == 3:
                state = s.snapshot().to_bytes()
    made = graphs()
    with model.session(avatar, seed=3) as s:
        s.restore(SessionState.from_bytes(state))
        same(tail, list(s.blocks()))
        assert made["decoder"].replays > 0
        again = s.snapshot()
    assert again.meta["identity"] == SessionState.from_bytes(state).meta["identity"]


def test_two_viewers_of_captured_sessions_do_not_share_pictures(graphs):
    """The pictures of a replay are one piece of memory: blocks that were handed out keep theirs."""
    model = MODELS["causal"]()
    avatar = model.prepare(photo())
    graphs()
    with model.session(avatar, seed=3) as s:
        blocks = play(s, sound(16000, 3.0))
        copies = [block.video.copy() for block in blocks]
        play(s, sound(16000, 3.0, seed=2))
    assert all((block.video == copy).all() for block, copy in zip(blocks, copies, strict=True))


def test_a_stand_in_finds_work_that_depends_on_the_host():
    x, state = torch.zeros(3), {"n": 0}

    def counts():
        state["n"] += 1
        x.add_(state["n"])

    with pytest.raises(AssertionError, match="recorded"):
        StandIn()(counts)()
    with pytest.raises(AssertionError, match="wait for the host"):
        StandIn()(lambda: x.sum().item())
    StandIn()(lambda: x.add_(1))()


def test_words(monkeypatch):
    assert graphs_of("auto", CPU) is None and graphs_of("off", CPU) is None
    assert graphs_of("off", torch.device("cuda")) is None
    assert graphs_of("auto", torch.device("cuda")).func is CudaGraphs
    with pytest.raises(
        ArgumentError, match="graphs: expected auto or off, since CUDA graphs need a CUDA device, got 'on'"
    ):
        graphs_of("on", CPU)
    with pytest.raises(ArgumentError, match="graphs: expected auto, on or off, got True"):
        graphs_of(True, CPU)
    model = toy()
    with pytest.raises(ArgumentError, match="graphs: expected auto, on or off, got 'yes'"):
        model.session(model.prepare(photo()), graphs="yes")


def test_a_capture_that_fails_says_what_and_why(monkeypatch):
    """With as much of ``torch.cuda`` as a capture needs, and a graph that refuses."""
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)

    @contextlib.contextmanager
    def graph(*_, **__):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    fake = {"Stream": lambda: stream, "graph_pool_handle": lambda: 0, "CUDAGraph": object, "graph": graph}
    fake |= {"current_stream": lambda: stream, "device": contextlib.nullcontext, "stream": contextlib.nullcontext}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    calls = []
    with pytest.raises(
        CaptureError, match=r"decoder: cannot be captured as a CUDA graph: operation not permitted .*off"
    ):
        CudaGraphs(CPU, "decoder")(lambda: calls.append(1))
    assert len(calls) == 4  # three to warm up, and the recording
