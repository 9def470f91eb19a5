"""The step: captured it is what eager calls compute, whoever shares it, in whatever lanes, however chunks mix."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rest_fast.errors import ArgumentError
from rest_fast.streaming import memory
from rest_fast.streaming.sampler import ChunkSampler, noise_levels
from rest_fast.streaming.step import Branches, Step, Turn
from tests.kit.captured import NothingBetween, StandIn
from tests.kit.models import F64, Stream, open_cache, toy, toy_dit

# A sum of hundreds of float64 products in another order, through two blocks and four steps, of numbers below 10.
SAME = {"rtol": 0, "atol": 1e-12}
DITS = {}


def config_of(context="last_step", positions="window", chunks=1, steps=3, guidance=6.0, **changes):
    stream = {"stream__context": context, "stream__positions": positions, "stream__context_chunks": chunks}
    return toy(**stream, sampling__steps=steps, sampling__guidance=guidance, **changes)


def dit_of(config):
    key = repr((config.dit, config.stream, config.speech))
    if key not in DITS:
        DITS[key] = toy_dit(config)
    return DITS[key]


class Pool:
    """Sessions of their own samplings in one step. Session s has the rows 2 s and 2 s + 1, and slot s."""

    def __init__(self, configs, *, lanes=4, hearing=None, capture=None, chunk=0, chunks=3, only=None):
        self.configs, config = configs, configs[0]
        self.streams = [Stream.draw(config, chunks, seed) for seed in range(len(configs))]
        dit = dit_of(config)
        references = [r for s in self.streams for r in (s.reference, torch.zeros_like(s.reference))]
        self.cache = open_cache(dit, config, references)
        levels = [t for c in configs for t in noise_levels(c.sampling)]
        self.step = Step(dit, self.cache, levels, slots=len(configs), lanes=lanes, hearing=hearing)
        if capture is not None:
            self.step.capture(capture, evaluations=chunk)
        self.samplers = [ChunkSampler(self.step, c.sampling) for c in configs]

    def session(self, s):
        return Branches(2 * s, 2 * s + 1 if self.samplers[s].guided else None, s)

    def load(self, s, chunk):
        self.step.load(s, self.streams[s].noise[chunk], self.streams[s].codes[chunk])

    def turns(self, s):
        return [turn for (turn,) in self.samplers[s].evaluations([self.session(s)])]

    def chunk(self, s, chunk):
        """One chunk of one session, by itself."""
        return self.samplers[s].sample([self.session(s)], self.streams[s].noise[chunk], self.streams[s].codes[chunk])


def alone(configs, chunks=3):
    """Latents [sessions][chunks] of eager pools, one for each session."""
    made = []
    for s in range(len(configs)):
        pool = Pool(configs, chunks=chunks)
        made.append([pool.chunk(s, i) for i in range(chunks)])
    return made


def interleaved(pool, draw, chunks=3):
    """The same, as evaluations of all sessions in an order that ``draw(list)`` chooses: any subset that fits."""
    todo = {s: [] for s in range(len(pool.configs))}
    at, made = dict.fromkeys(todo, 0), [[] for _ in todo]
    while True:
        for s, turns in todo.items():
            if not turns and at[s] < chunks:
                pool.load(s, at[s])
                todo[s] = pool.turns(s)
        waiting = [s for s, turns in todo.items() if turns]
        if not waiting:
            return made
        chosen, lanes = [], 0
        for s in draw(waiting):
            size = len(pool.session(s).rows)
            if lanes + size <= pool.step.lanes and len(chosen) < pool.step.hearing:
                chosen, lanes = [*chosen, s], lanes + size
        pool.step.run([todo[s].pop(0) for s in chosen])
        for s in chosen:
            if not todo[s]:
                pool.step.commit(pool.session(s).rows)
                made[s].append(pool.step.latents(s))
                at[s] += 1


MIXED = [config_of(steps=3), config_of(steps=2, guidance=1.0), config_of(steps=4, guidance=2.5)]


# Without shrinking: an example is seconds of computing, and the first one that fails says enough.
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    data=st.data(),
    context=st.sampled_from(["last_step", "clean"]),
    positions=st.sampled_from(["window", "absolute"]),
    captured=st.booleans(),
)
def test_sessions_that_share_a_step(data, context, positions, captured):
    """Sessions of different schedules, with guidance and without, at different steps of different chunks."""
    configs = [config_of(context, positions, steps=c.sampling.steps, guidance=c.sampling.guidance) for c in MIXED]
    pool = Pool(configs, capture=StandIn() if captured else None)
    made = interleaved(pool, lambda waiting: data.draw(st.permutations(waiting)))
    for got, want in zip(made, alone(configs), strict=True):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, **SAME)
            assert (b - b.mean()).abs().max() > 0.5


@pytest.mark.parametrize("chunk", [0, 3], ids=["step by step", "a chunk at once"])
@pytest.mark.parametrize("context", ["last_step", "per_step"])
def test_a_captured_session_is_the_eager_one(context, chunk):
    """First chunk, growing window, steady state: the same graph. Guided lanes only, so half of them hear."""
    configs = [config_of(context, chunks=2)]
    (want,) = alone(configs, chunks=5)
    graph = StandIn()
    pool = Pool(configs, lanes=2, hearing=1, capture=graph, chunk=chunk, chunks=5)
    for i in range(5):
        torch.testing.assert_close(pool.chunk(0, i), want[i], **SAME)
    # What is heard, an evaluation each, or all of them, and the commit, which is always launched.
    assert graph.replays == 5 * (3 if chunk else 5)


def test_clean_and_per_step_in_one_replay():
    configs = [config_of("clean")]
    (want,) = alone(configs)
    graph = StandIn()
    pool = Pool(configs, lanes=2, hearing=1, capture=graph, chunk=4)
    for i in range(3):
        torch.testing.assert_close(pool.chunk(0, i), want[i], **SAME)
    assert graph.replays == 3 * 3


@pytest.mark.parametrize("context", ["last_step", "clean", "per_step"])
def test_a_captured_rebuild_is_the_eager_one(context):
    configs = [config_of(context)]
    results = []
    for graph in (None, StandIn()):
        pool = Pool(configs, capture=graph, chunks=3)
        stream, sampler, session = pool.streams[0], pool.samplers[0], [pool.session(0)]
        sampler.rebuild(session, stream.noise[0], stream.noise[1], stream.codes[0])
        results.append(sampler.sample(session, stream.noise[2], stream.codes[2]))
    torch.testing.assert_close(*results, **SAME)


def test_nothing_between_replays_and_poison_in_every_buffer():
    """Buffers hold nothing from replay to replay but latents, cache and constants; idle lanes reach no other."""
    pool: list[Pool] = []

    def poison():
        for made in pool:
            work = made.step.work
            for buffer in (work.x, work.y, work.q, work.out, made.step.z[-1]):
                buffer.fill_(torch.nan)

    configs = MIXED[:2]
    want = alone(configs)
    graph = StandIn(poison)
    pool.append(Pool(configs, lanes=5, capture=graph))
    (one,) = pool
    for i in range(3):
        for s in range(2):
            one.load(s, i)
            turns = one.turns(s)
            with NothingBetween(graph):
                for turn in turns:
                    one.step.run([turn])
                one.step.commit(one.session(s).rows)
            torch.testing.assert_close(one.step.latents(s), want[s][i], **SAME)


def test_an_idle_replay_changes_nothing():
    """As after a capture: no lane has a row yet."""
    graph = StandIn()
    pool = Pool(MIXED[:1], capture=graph)
    pool.load(0, 0)
    step, cache = pool.step, pool.cache
    before = [t.clone() for t in (cache.k, cache.v, step.z[:-1])]
    for replay in graph.made[:2]:  # of an evaluation, and of a commit
        replay()
    for now, then in zip((cache.k, cache.v, step.z[:-1]), before, strict=True):
        assert torch.equal(now, then)


def test_a_step_that_was_warmed_up_computes_the_same():
    configs = [config_of("clean")]
    (want,) = alone(configs)
    pool = Pool(configs)
    before = pool.cache.k.clone()
    pool.step.warm()
    assert torch.equal(pool.cache.k, before)
    for i in range(3):
        assert torch.equal(pool.chunk(0, i), want[i])


@pytest.mark.parametrize("captured", [False, True])
def test_lanes_in_another_order_give_the_same_bits(captured):
    """On a CPU; a GPU's matrix products are asked by the GPU suite."""
    configs = [config_of(steps=2), config_of(steps=2)]
    results = []
    for order in ([0, 1], [1, 0]):
        pool = Pool(configs, capture=StandIn() if captured else None)
        made = interleaved(pool, lambda waiting, order=order: [s for s in order if s in waiting], chunks=2)
        results.append(made)
    for a, b in zip(itertools.chain(*results[0]), itertools.chain(*results[1]), strict=True):
        assert torch.equal(a, b)


def test_a_chunk_that_was_put_aside_goes_on_in_other_lanes():
    configs = [config_of(steps=3), config_of(steps=3), config_of(steps=3)]
    want = alone(configs, chunks=1)
    pool = Pool(configs, lanes=4, capture=StandIn(), chunks=1)
    for s in range(3):
        pool.load(s, 0)
    a, b, c = (pool.turns(s) for s in range(3))
    pool.step.run([a[0], b[0]])  # a in the first lane
    pool.step.run([c[0], a[1]])  # in the second
    pool.step.run([b[1], c[1]])
    pool.step.run([b[2], a[2]])
    pool.step.run([c[2]])
    for s in range(3):
        torch.testing.assert_close(pool.step.latents(s), want[s][0], **SAME)


# -- refusals


def cases():
    two, one = Branches(0, 1, 0), Branches(2, None, 1)
    yield "no turn", [], "turns: expected 1..2 with 4 lanes in all"
    yield "too many turns", [Turn(two, 0), Turn(one, 0), Turn(Branches(3, None, 2), 0)], "got 3 with 4"
    yield "a row twice", [Turn(two, 0), Turn(Branches(1, None, 1), 0)], r"distinct rows, got \[0, 1, 1\]"
    yield "a slot twice", [Turn(two, 0), Turn(Branches(2, None, 0), 0)], r"slots: expected different ones .* \[0, 0\]"
    yield "no such slot", [Turn(Branches(0, 1, 3), 0)], r"slots: expected different ones in 0\.\.2, got \[3\]"
    yield "no such level", [Turn(two, 4)], r"a level in 0\.\.3 .* got 4"
    yield "no such bank", [Turn(two, 0, 1)], r"a bank in 0\.\.0, got 0 and 1"
    yield "guidance without a second lane", [Turn(one, 0, guidance=6.0)], "a second cache row for guidance 6.0"


@pytest.mark.parametrize("turns, words", [pytest.param(t, w, id=n) for n, t, w in cases()])
def test_turns_refused(turns, words):
    pool = Pool([config_of(), config_of(), config_of()], hearing=2, capture=StandIn())
    before = pool.cache.k.clone(), pool.step.z.clone()
    with pytest.raises(ArgumentError, match=words):
        pool.step.run(turns)
    with pytest.raises(ArgumentError, match=words):  # also behind one that would do
        pool.step.run([Turn(Branches(0, 1, 0), 0)], turns)
    assert torch.equal(pool.cache.k, before[0]) and torch.equal(pool.step.z, before[1])


def test_more_guided_sessions_than_lanes_without_a_condition():
    pool = Pool([config_of(), config_of()], lanes=3, hearing=2, capture=StandIn())
    with pytest.raises(ArgumentError, match="a guided session takes two"):
        pool.step.run([Turn(pool.session(s), 0) for s in range(2)])


def test_a_schedule_that_is_not_in_the_tables():
    pool = Pool([config_of(steps=3)])
    with pytest.raises(ArgumentError, match=r"noise level: expected one of \[1\.0, .*\], got 0\."):
        ChunkSampler(pool.step, config_of(steps=5).sampling)


@pytest.mark.parametrize("audio", [1, 3])
def test_codes_of_another_shape(audio):
    """One token would be taken for all of them, without a word."""
    pool = Pool([config_of()])
    before = pool.step.z.clone()
    with pytest.raises(ArgumentError, match=rf"codes: expected \[1, 3, 2, 32\], got \[1, 3, {audio}, 32\]"):
        pool.step.load(0, pool.streams[0].noise[0], torch.zeros(1, 3, audio, 32, dtype=F64))
    with pytest.raises(ArgumentError, match=r"latents: expected \[1, 12, 8\], got \[1, 1, 8\]"):
        pool.step.load(0, torch.zeros(1, 1, 8), pool.streams[0].codes[0])
    assert torch.equal(pool.step.z, before)


def test_a_commit_of_more_rows_than_lanes():
    pool = Pool([config_of(), config_of()], lanes=2)
    with pytest.raises(ArgumentError, match="commit: expected at most 2 rows, got 4"):
        pool.step.commit([0, 1, 2, 3])
    assert pool.cache.committed == [0, 0, 0, 0]


@pytest.mark.parametrize("captured", [False, True])
def test_weights_that_changed_since_the_step_was_made(captured, monkeypatch):
    config = config_of()
    dit = toy_dit(config)
    monkeypatch.setitem(DITS, repr((config.dit, config.stream, config.speech)), dit)
    pool = Pool([config], capture=StandIn() if captured else None)
    pool.chunk(0, 0)
    dit.proj_in.weight.mul_(2)
    with pytest.raises(ArgumentError, match="weights: expected those that it was made with"):
        pool.chunk(0, 1)


def test_audio_keys_and_idle_lanes():
    """One audio token, and five: attended to in each step."""
    for audio in (1, 5):
        configs = [config_of(speech__tokens=audio), config_of(guidance=1.0, speech__tokens=audio)]
        want = alone(configs, chunks=2)
        pool = Pool(configs, lanes=5, capture=StandIn(), chunks=2)
        for s in range(2):
            for i in range(2):
                torch.testing.assert_close(pool.chunk(s, i), want[s][i], **SAME)


@pytest.mark.parametrize("numbers", [{"lanes": 0}, {"slots": 0}, {"lanes": 2, "hearing": 3}, {"hearing": 0}])
def test_numbers_refused(numbers):
    config = config_of()
    cache = open_cache(dit_of(config), config, [Stream.draw(config, 1, 0).reference])
    with pytest.raises(ArgumentError, match=r"expected lanes and slots of at least 1, and hearing in 1\.\.lanes"):
        Step(dit_of(config), cache, [1.0, 0.0], **numbers)


def test_more_lanes_than_fit_into_memory(monkeypatch):
    config = config_of()
    cache = open_cache(dit_of(config), config, [Stream.draw(config, 1, 0).reference])
    needed = memory.step_bytes(dit_of(config), 1, 64)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ArgumentError, match=r"step: 64 lanes and 1 slots: expected at most what fits into the .* GiB"):
        Step(dit_of(config), cache, [1.0, 0.0], lanes=64)
    assert Step(dit_of(config), cache, [1.0, 0.0], lanes=63).z.dtype == F64


def test_the_memory_estimate_counts_what_is_allocated():
    """Not less than the static buffers, which are counted here one by one, and not three times as much."""
    config = config_of()
    dit = dit_of(config)
    cache = open_cache(dit, config, [Stream.draw(config, 1, 0).reference])
    step = Step(dit, cache, [1.0, 0.0], slots=5, lanes=4)
    work = step.work
    buffers = [work.x, work.y, work.q, work.out, step.z, *(t for block in step.audio for t in block.slots)]
    held = sum(buffer.nbytes for buffer in buffers)
    assert held <= memory.step_bytes(dit, 5, 4) <= 3 * held


# -- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_graph_is_eager_bit_for_bit():
    """Twice, with poisoned buffers, beside a neighbour and alone, and in other lanes."""
    from benchmarks.device import captured

    with torch.no_grad():
        assert captured.bits(tiny=True)["chunks"] == 3
