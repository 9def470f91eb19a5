"""A session whose step and decoder are captured, by the stand-in for graphs, shows the frames of one that is not."""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace

import pytest
import torch

from rest_fast.config import preset
from rest_fast.errors import ArgumentError, CaptureError
from rest_fast.ops import use_backend
from rest_fast.streaming import family as family_module
from rest_fast.streaming.graphs import CudaGraphs, graphs_of
from rest_fast.streaming.snapshot import SessionState
from tests.kit.captured import StandIn
from tests.kit.streams import play, same
from tests.kit.toys import basis_model, photo, sound, toy
from tests.ops import calls

CPU = torch.device("cpu")


def toy_of(causal: bool, **changes):
    return toy(vae=preset("toy").replace(vae__causal_decoder=causal).vae, **changes)


AHEAD = {f"look-ahead {n}": (functools.partial(toy_of, False), f"lookahead({n})") for n in (1, 2, 3, 4)}
MODELS = AHEAD | {
    "causal": (functools.partial(toy_of, True), None),
    "without context": (functools.partial(toy_of, True, stream__context_chunks=0), None),
    "look-ahead without context": (functools.partial(toy_of, False, stream__context_chunks=0), "lookahead(2)"),
    "five audio tokens": (functools.partial(toy_of, True, speech__tokens=5), None),
    "clean, unguided": (functools.partial(toy_of, True, stream__context="clean", sampling__guidance=1.0), None),
    "basis": (basis_model, None),
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
        monkeypatch.setattr(family_module, "graphs_of", lambda choice, device: made)
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
    make, decode = MODELS[kind]
    model = make()
    avatar = model.prepare(photo())
    with model.session(avatar, seed=3, decode=decode) as s:
        want = talk(s)
    made = graphs()
    with model.session(avatar, seed=3, decode=decode) as s:
        same(want, talk(s))
        chunks = s.metrics().chunks
    step, decoder = made["denoising step"], made["decoder"]
    # Each chunk is at least two replays: of what is heard, and of its evaluations. A rebuild and a commit that rotates
    # keys add more.
    assert step.replays >= 2 * chunks
    # Pieces of whole chunks behind the first one; not those of a segment's end and of a return into a chunk.
    assert 0 < decoder.replays < chunks


def test_the_same_frames_step_by_step(graphs):
    """Evaluations that are replayed one by one, for whoever is told of each, and a context that was rebuilt."""
    model, seen = toy(), []
    avatar = model.prepare(photo())
    with model.session(avatar, seed=3) as s:
        want = talk(s)
    made = graphs()
    with model.session(avatar, seed=3, on_step=lambda *numbers: seen.append(numbers)) as s:
        same(want, talk(s))
        chunks = s.metrics().chunks
    assert seen == [(chunk, step) for chunk in range(chunks) for step in range(2)]
    assert made["denoising step"].replays >= 3 * chunks  # what is heard, and two evaluations


@pytest.mark.parametrize("kind", MODELS)
def test_a_snapshot_goes_on_in_a_captured_session(kind, graphs):
    make, decode = MODELS[kind]
    model = make()
    avatar = model.prepare(photo())
    samples = sound(16000, 8.0)
    with model.session(avatar, seed=3, decode=decode) as s:
        s.push_audio(samples)
        s.end_segment()
        head, tail = [], []
        for i, block in enumerate(s.blocks()):
            (head if i < 4 else tail).append(block)
            if i == 3:
                state = s.snapshot().to_bytes()
    made = graphs()
    with model.session(avatar, seed=3, decode=decode) as s:
        s.restore(SessionState.from_bytes(state))
        same(tail, list(s.blocks()))
        assert made["decoder"].replays > 0
        again = s.snapshot()
    assert again.meta["identity"] == SessionState.from_bytes(state).meta["identity"]


def test_two_viewers_of_captured_sessions_do_not_share_pictures(graphs):
    """The pictures of a replay are one piece of memory: blocks that were handed out keep theirs."""
    model = toy_of(True)
    avatar = model.prepare(photo())
    graphs()
    with model.session(avatar, seed=3) as s:
        blocks = play(s, sound(16000, 3.0))
        copies = [block.video.copy() for block in blocks]
        play(s, sound(16000, 3.0, seed=2))
    assert all((block.video == copy).all() for block, copy in zip(blocks, copies, strict=True))


@pytest.mark.parametrize(
    "read",
    [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.cpu(), lambda x: x[x > 0],
     lambda x: x.add_(torch.tensor([1.0]))],
    ids=["item", "tolist", "numpy", "cpu", "mask", "new numbers"],
)  # fmt: skip
def test_a_stand_in_refuses_work_that_waits_for_the_host(read):
    with pytest.raises(AssertionError, match="wait for the host"):
        StandIn()(lambda: read(torch.ones(3)))


def test_a_stand_in_repeats_operations_and_no_python():
    """As a graph does: what the host would have changed stays as it was recorded."""
    x, seen = torch.zeros(3), []

    def work():
        seen.append(1)
        x.add_(2 * x + len(seen))

    replay = StandIn()(work)
    x.fill_(1)
    replay(), replay()
    assert len(seen) == 4 and x.tolist() == [25.0] * 3  # 1 -> 1 + 2 + 4 -> 7 + 14 + 4


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


@pytest.fixture
def no_cuda(monkeypatch):
    """As much of ``torch.cuda`` as a capture needs, and a graph that refuses. Gives the streams that were set."""
    stream, streams = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None), []

    @contextlib.contextmanager
    def graph(*_, **__):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    fake = {"Stream": lambda: stream, "current_stream": lambda: stream, "set_stream": streams.append}
    fake |= {"device": contextlib.nullcontext, "stream": contextlib.nullcontext}
    fake |= {"graph_pool_handle": lambda: 0, "CUDAGraph": object, "graph": graph}
    for name, value in fake.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return streams


def test_a_capture_that_fails_says_what_and_why(no_cuda):
    ran, words = [], r"decoder: cannot be captured as a CUDA graph: operation not permitted .*graphs='off'"
    with pytest.raises(CaptureError, match=words):
        CudaGraphs(CPU, "decoder")(lambda: ran.append(1))
    assert len(ran) == 4  # three to warm up, and the recording
    assert len(no_cuda) == 1  # back to the stream before: a capture that failed would leave the thread in its own


def test_an_op_that_cannot_be_captured_is_named(no_cuda):
    """Refused while warming up, by name, with the way around it."""
    call = calls.sink_ring_attention()
    with use_backend("sdpa"), pytest.raises(CaptureError, match=r"step: .*'sdpa' cannot run .*host.*graphs='off'"):
        CudaGraphs(CPU, "step")(lambda: calls.invoke("sink_ring_attention", call))


# -- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", MODELS)
def test_a_session_on_a_gpu_shows_the_same_with_graphs_and_without(kind):
    make, decode = MODELS[kind]
    model = make().to("cuda")
    avatar = model.prepare(photo())
    with model.session(avatar, seed=3, decode=decode, graphs="off") as s:
        want = talk(s)
    with model.session(avatar, seed=3, decode=decode, graphs="on") as s:
        same(want, talk(s))
