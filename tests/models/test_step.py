"""The in-place step on its ops: nothing allocated inside them, compiled = eager, and training beside it."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rest_fast import ops
from rest_fast.config import ModelConfig
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.dit_block import Workspace
from rest_fast.ops import native
from rest_fast.ops.dispatch import use_backend
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.step import Branches
from tests.kit.chunked import dense_and_chunked, dit_of
from tests.kit.compare import assert_close, twice_eager
from tests.kit.models import PoolSampler, toy

compiled_module = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")
SESSION = [Branches(0, 1)]
RETURN_THEIR_ARGUMENT = (torch.ops.aten.resolve_conj.default, torch.ops.aten.resolve_neg.default)  # inside tolist
OPS = {op.name: op for op in ops.ALL}


class Stream:
    """One session with guidance on a toy model: chunks of noise through the cache."""

    def __init__(self, dit: StreamingDiT, config: ModelConfig, dtype: torch.dtype = torch.float32):
        self.config, self.generator = config, torch.Generator().manual_seed(0)
        self.cache = IDContextCache(config, 2, dtype=dtype)
        speech = config.speech
        null = torch.zeros(1, 1, speech.tokens, speech.width, dtype=dtype)
        for row in (0, 1):
            reference = self.normal(1, config.tokens, config.vae.latent_channels).to(dtype)
            k, v = dit.sink(reference, null)
            self.cache.open(row, k[:, 0], v[:, 0])
        self.sampler = PoolSampler(dit, config.sampling)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def chunk(self) -> torch.Tensor:
        frames, speech = self.config.stream.chunk, self.config.speech
        noise = self.normal(1, frames * self.config.tokens, self.config.vae.latent_channels)
        return self.sampler.sample(self.cache, SESSION, noise, self.normal(1, frames, speech.tokens, speech.width))


class Made(TorchDispatchMode):
    """Counts tensor operations: all of them, and those that run while an op of ours runs."""

    def __init__(self) -> None:
        super().__init__()
        self.everything: Counter[str] = Counter()
        self.inside: Counter[tuple[str, str]] = Counter()
        self.op = ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.everything[str(function)] += 1
        if self.op and function not in RETURN_THEIR_ARGUMENT:
            self.inside[self.op, str(function)] += 1
        if function.namespace != "rest_fast":
            return function(*args, **(kwargs or {}))
        self.op = str(function)
        try:
            with self:  # a mode is off while it handles a call
                return OPS[self.op.split(".")[1]].run(*args, **(kwargs or {}))
        finally:
            self.op = ""


@compiled_module
def test_ops_of_a_step_make_no_tensor():
    """No tensor operation runs inside an op in C++: so nothing is allocated, and nothing waits for a value."""
    config = toy()
    stream = Stream(dit_of(config), config)
    for _ in range(3):  # first chunk, filling, steady state: all with rotated context in the end
        stream.chunk()
    with Made() as made:
        stream.chunk()
    assert any("addmm" in name or "linear" in name for name in made.everything), "the counter sees what runs"
    with Made() as seen, use_backend("reference"):
        stream.chunk()
    ours = {name for name in made.everything if name.startswith("rest_fast")}
    others = ours - {"rest_fast.linear.default"}  # which some processors leave to oneDNN
    assert len(others) == 7 and {name for name, _ in seen.inside} == ours, "and what runs inside the ops"
    assert not made.inside


def test_every_chunk_makes_the_same_tensors():
    """Memory cannot creep: chunk after chunk the same operations run, once the window is full."""
    config = toy()
    stream, counts = Stream(dit_of(config), config), []
    for _ in range(6):
        with Made() as made:
            stream.chunk()
        counts.append(made.everything)
    assert counts[2] == counts[3] == counts[4] == counts[5]


def block_call(dit: StreamingDiT, stream: Stream):
    """(function of the residual stream that runs block 0 in place, the cache that it writes)."""
    config, cache = dit.config, stream.cache
    work = Workspace(2, cache.chunk, config, dit.table)
    lanes, step = cache.lanes([0, 1]), stream.sampler.on(cache).step
    codes = stream.normal(2, 3, stream.config.speech.tokens, stream.config.speech.width).to(dit.table)
    text, audio, mod = step.text[0], dit.hear(codes)[0], step.modulations.at(lanes.turn).block(0, 2)
    attend = functools.partial(dit.attend_cache, 0, lanes=lanes, work=work)
    pending = stream.normal(2, cache.chunk, config.width).to(dit.table), None

    def run(x: torch.Tensor) -> torch.Tensor:
        work.x.copy_(x)
        branch, gate = dit.blocks[0].step(work, mod, attend, text, audio, lanes.hears, pending)
        ops.gate_norm_modulate(work.x, branch, gate, None, None, None, eps=config.norm_eps)
        return work.x.clone()

    return run, cache


@torch.no_grad()
def test_a_compiled_block_is_the_eager_block():
    """No break in the graph, and the same numbers: matrix products and our ops are the same calls."""
    config = toy()
    dit = dit_of(config)
    stream = Stream(dit, config)
    stream.chunk()
    run, cache = block_call(dit, stream)
    x = stream.normal(2, cache.chunk, config.dit.width)
    want = run(x), cache.k.clone(), cache.v.clone()
    cache.k[:, :, :, cache.write_slot(0) :] = torch.nan
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(x), cache.k, cache.v
    first = cache.write_slot(0)
    for mine, theirs, what in zip(got, want, ("residual stream", "keys", "values")):
        mine, theirs = (
            (mine, theirs)
            if what == "residual stream"
            else (t[0, ..., first : first + 12, :, :] for t in (mine, theirs))
        )
        assert_close(mine, theirs, atol=1e-6 * float(theirs.abs().max()), reason=f"{what}: the same calls in fp32")


@compiled_module
def test_training_beside_fast_inference():
    """One step of training while C++ serves a stream of the same weights: gradients are the reference's to the bit."""
    config = toy()
    dit = dit_of(config).requires_grad_(True)
    stream = Stream(dit, config)
    frames = 1 + 2 * config.stream.chunk
    z = stream.normal(1, frames * config.tokens, config.vae.latent_channels)
    codes = stream.normal(1, frames, config.speech.tokens, config.speech.width)
    t = torch.full((1, frames), 0.5)
    gradients = []
    for backend in ("reference", "cpp,sdpa,reference"):
        dit.zero_grad(set_to_none=True)
        with use_backend(backend):
            before = stream.chunk()
            dit(z, t, codes, "streaming").square().mean().backward()
        assert not before.requires_grad
        gradients.append({name: p.grad.clone() for name, p in dit.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 30
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    weights = {name: p.detach().clone() for name, p in dit.named_parameters()}
    torch.optim.AdamW(dit.parameters(), lr=1e-3).step()
    changed = [name for name, p in dit.named_parameters() if not torch.equal(p, weights[name])]
    assert len(changed) > 30
    stream.sampler = PoolSampler(dit, config.sampling)  # constants of the model are made anew
    assert stream.chunk().isfinite().all()


@pytest.mark.parametrize("sink", [True, False], ids=["sink", "no_sink"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_fast_chunks_are_one_dense_computation(dtype, sink):
    """The backends that run by default, through the slots, against one dense pass in float64."""
    mine, eager, truth = dense_and_chunked(toy(stream__sink=sink), dtype)
    twice_eager(mine, eager, truth, tiny=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("audio", [1, 4, 5])
def test_fast_chunks_are_one_dense_computation_for_any_audio(audio, dtype):
    """Four tokens make an update of small rank, as two do; a single one, and five, are attended to."""
    config = toy(speech__tokens=audio)
    mine, eager, truth = dense_and_chunked(config, dtype)
    twice_eager(mine, eager, truth, tiny=1e-6)


@pytest.mark.parametrize("audio", [2, 4, 5])
def test_a_step_is_exact_in_float64(audio):
    """The algebra of few audio tokens and of the lane that hears nothing loses nothing."""
    mine, _, truth = dense_and_chunked(toy(speech__tokens=audio), torch.float64)
    # The tables of angles are fp32 in both, and equal.
    atol = 1e-11 * float(truth.abs().max())
    assert_close(mine, truth, atol=atol, reason="float64 through two blocks of sums of hundreds")


@torch.no_grad()
def test_only_few_audio_tokens_are_an_update():
    """Two to four; the rank grows with more of them, and one token has none."""
    kinds = {}
    for audio in (1, 2, 4, 5):
        config = toy(speech__tokens=audio)
        codes = torch.zeros(1, config.stream.chunk, audio, config.speech.width)
        kinds[audio] = {type(heard).__name__ for heard in dit_of(config).hear(codes)}
    assert kinds == {1: {"AudioKeys"}, 2: {"AudioUpdate"}, 4: {"AudioUpdate"}, 5: {"AudioKeys"}}


def test_fast_chunks_are_one_dense_computation_without_context():
    mine, eager, truth = dense_and_chunked(toy(stream__context_chunks=0), torch.float32)
    twice_eager(mine, eager, truth, tiny=1e-6)


def test_an_hour_of_absolute_positions():
    """Attention knows distances alone: an hour later, with the context's keys moved along, a chunk is the same."""
    config = toy(stream__positions="absolute", stream__sink=False)
    dit, later = dit_of(config), 2 * 1875  # chunks of 0.96 s; an even number, so that the slots are the same
    streams = [Stream(dit, config) for _ in range(2)]
    for stream in streams:
        stream.chunk(), stream.chunk()
    moved = streams[1].cache
    moved.k.copy_(ops.functional.shift_keys(moved.k, dit.positions.shift(later * config.stream.chunk)))
    moved.committed = [n + later for n in moved.committed]
    for _ in range(3):
        now, then = (stream.chunk() for stream in streams)
        # Angles of 2e5 turns rounded in float64, tables in fp32: 6e-8 an entry, as at the start.
        assert_close(then, now, atol=2e-4 * float(now.abs().max()), reason="fp32 tables of other angles, two steps")
