"""The sampler through the cache against whole clips without one, for every choice that the paper leaves open."""

from __future__ import annotations

import itertools

import pytest
import torch

from rest_fast.config import ModelConfig
from rest_fast.models.dit import StreamingDiT
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.schedule import sigmas
from rest_fast.streaming.step import Branches
from tests.kit.models import (
    F64,
    PoolSampler,
    Spy,
    Stream,
    clip,
    open_cache,
    plain_velocity,
    sink,
    toy,
    toy_dit,
    window_view,
)

STEPS = 3
TOKENS = 12  # of a chunk of the toy: 3 latent frames of 4 tokens
POLICIES = ["last_step", "clean", "per_step"]
# cos and sin are float32 tables; where two ways to an angle differ (two turns, or one of twice the angle, or none), an
# entry differs by 6e-8 and a velocity near 1 by a few 1e-7
TABLES = {"rtol": 0, "atol": 5e-6}
EXACT = {"rtol": 0, "atol": 1e-11}  # float64 in another order


def config_of(context: str = "last_step", positions: str = "window", chunks: int = 1, **changes) -> ModelConfig:
    return toy(
        stream__context=context,
        stream__positions=positions,
        stream__context_chunks=chunks,
        sampling__steps=STEPS,
        **changes,
    )


def pool(dit: StreamingDiT, config: ModelConfig, *streams: Stream) -> IDContextCache:
    """Rows 2 s and 2 s + 1 are the branches of stream s; the unconditional reference is the zero latent."""
    references = [r for s in streams for r in (s.reference, torch.zeros_like(s.reference))]
    return open_cache(dit, config, references)


def rows(s: int = 0) -> Branches:
    return Branches(2 * s, 2 * s + 1, s)


def levels(config: ModelConfig) -> list[float]:
    return sigmas(config.sampling.steps, config.sampling.shift_mu).tolist()


def context_step(config: ModelConfig, step: int) -> int:
    """Index of the evaluation whose K/V the next chunk sees at ``step`` (model.md, "ID-Context cache")."""
    return {"last_step": STEPS - 1, "clean": STEPS, "per_step": step}[config.stream.context]


def clip_of(config: ModelConfig, stream: Stream, chunks: list[tuple[torch.Tensor, float]], conditional: bool):
    """z, t, codes of [reference, chunks at their levels], of one branch."""
    reference, codes = stream.reference, stream.codes[: len(chunks)].flatten(0, 2)
    if not conditional:
        reference, codes = torch.zeros_like(reference), torch.zeros_like(codes)
    z = torch.cat([reference, *(z for z, _ in chunks)])[None]
    t = torch.tensor([0.0] + [t for _, t in chunks for _ in range(3)], dtype=F64)[None]
    return z, t, torch.cat([torch.zeros_like(codes[:1]), codes])[None]


@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize("positions", ["window", "absolute"])
@pytest.mark.parametrize("context", POLICIES)
def test_chunks_through_the_cache_equal_the_clip(context, positions, chunks):
    """Every evaluation of both branches of 5 chunks: what the cache gives is the velocity of the whole clip so far,
    earlier chunks standing at the level whose K/V became context. The streaming layout is checked by itself in
    models/test_dit.py; the last evaluation is checked here against loops with an explicit mask."""
    config = config_of(context, positions, chunks)
    dit = toy_dit(config)
    stream, spy = Stream.draw(config, 5, 3), Spy(dit)
    cache, sampler = pool(dit, config, stream), PoolSampler(dit, config.sampling)
    made = [sampler.sample(cache, [rows()], stream.noise[i], stream.codes[i]) for i in range(5)]
    per_chunk = STEPS + (context == "clean")
    assert len(spy.calls) == 5 * per_chunk
    t = levels(config)
    twice_turned = positions == "window" and chunks == 2  # keys of chunk i - 2 turned twice by -3, or once by -6
    for i in range(5):
        for step in range(per_chunk):
            for branch, conditional in enumerate((True, False)):
                z, v = (x[branch] for x in spy.calls[i * per_chunk + step])
                at = context_step(config, step)
                past = []
                for j in range(i):
                    kept = made[j][0] if at == STEPS else spy.calls[j * per_chunk + at][0][branch]
                    past.append((kept, t[at]))
                whole = clip_of(config, stream, [*past, (z, t[step])], conditional)
                want = dit(*whole, "streaming")[0, -TOKENS:]
                torch.testing.assert_close(v, want, **(TABLES if twice_turned else EXACT))
    view = window_view(3, chunks, 16, positions == "absolute")
    torch.testing.assert_close(v, plain_velocity(dit, config, *whole, view)[0, -TOKENS:], **TABLES)
    assert v.abs().mean() > 0.3


def test_the_policies_differ():
    """Otherwise the comparison above would not tell them apart."""
    results = []
    for context in POLICIES:
        config = config_of(context)
        dit = toy_dit(config)
        stream = Stream.draw(config, 2, 3)
        cache, sampler = pool(dit, config, stream), PoolSampler(dit, config.sampling)
        results.append([sampler.sample(cache, [rows()], stream.noise[i], stream.codes[i]) for i in range(2)])
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert torch.equal(results[a][0], results[b][0])  # the first chunk has no context
        assert (results[a][1] - results[b][1]).abs().max() > 1e-3


def test_training_forward_is_the_first_step():
    """Pure noise at t = 1 behind the reference, as in training: the sampler's first evaluation of chunk 0."""
    config = config_of()
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 4)
    t[:, 1:] = 1
    spy, cache = Spy(dit), open_cache(dit, config, [z[0, :4], torch.zeros(4, 8, dtype=F64)])
    PoolSampler(dit, config.sampling).sample(cache, [rows()], z[:, 4:], codes[:, 1:])
    torch.testing.assert_close(spy.calls[0][1][:1], dit(z, t, codes)[:, 4:], **EXACT)


# -- guidance and Euler


def by_hand(dit, config: ModelConfig, stream: Stream, guidance: float) -> torch.Tensor:
    """Chunk 0 by the formulas, with the loops of tests.kit.models."""
    t, z = levels(config), stream.noise[0, 0]
    for now, then in itertools.pairwise(t):
        v = [
            plain_velocity(dit, config, *clip_of(config, stream, [(z, now)], c), window_view(3, 1, 4))[0, 4:]
            for c in (True, False)
        ]
        z = z + (then - now) * (v[1] + guidance * (v[0] - v[1]))
    return z


@pytest.mark.parametrize("guidance", [0.0, 1.5, 6.0])
def test_guidance_by_hand(guidance):
    config = config_of(sampling__guidance=guidance)
    dit = toy_dit(config)
    stream = Stream.draw(config, 1, 5)
    noise = stream.noise.clone()
    got = PoolSampler(dit, config.sampling).sample(
        pool(dit, config, stream), [rows()], stream.noise[0], stream.codes[0]
    )
    # float32 steps and tables through three evaluations, times 6 for guidance
    torch.testing.assert_close(got[0], by_hand(dit, config, stream, guidance), rtol=0, atol=5e-5)
    assert torch.equal(stream.noise, noise)  # the caller's noise stays as it is


def test_guidance_one_is_one_lane():
    config = config_of(sampling__guidance=1.0)
    dit = toy_dit(config)
    stream, spy = Stream.draw(config, 2, 5), Spy(dit)
    cache = open_cache(dit, config, [stream.reference])
    sampler = PoolSampler(dit, config.sampling)
    got = [sampler.sample(cache, [Branches(0, None)], stream.noise[i], stream.codes[i]) for i in range(2)]
    assert [z.shape[0] for z, _ in spy.calls] == [1] * 2 * STEPS
    torch.testing.assert_close(got[0][0], by_hand(dit, config, stream, 1.0), rtol=0, atol=2e-5)
    # and it is the limit of the two-lane formula: v_u + g (v_c - v_u) with g next to 1
    close = config_of(sampling__guidance=1 + 1e-6)
    other, pair = PoolSampler(dit, close.sampling), pool(dit, config, stream)
    for i in range(2):
        want = other.sample(pair, [rows()], stream.noise[i], stream.codes[i])
        torch.testing.assert_close(got[i], want, rtol=0, atol=1e-4)


def test_float32_follows_float64():
    """The whole loop in the precision of a CPU session, with whatever backends this machine has."""
    config = config_of(positions="window", chunks=1)
    wide, narrow = toy_dit(config), toy_dit(config).float()
    stream = Stream.draw(config, 4, 6)
    caches = pool(wide, config, stream), IDContextCache(config, 2)
    for row, reference in enumerate((stream.reference, torch.zeros_like(stream.reference))):
        caches[1].open(row, *sink(wide, config, reference))
    samplers = [PoolSampler(d, config.sampling) for d in (wide, narrow)]
    for i in range(4):
        a, b = (s.sample(c, [rows()], stream.noise[i], stream.codes[i]) for s, c in zip(samplers, caches))
        assert (a.dtype, b.dtype) == (F64, torch.float32)
        # 1e-6 an evaluation, times 2 for guidance, carried through 12 evaluations
        torch.testing.assert_close(b.double(), a, rtol=0, atol=2e-3)
        assert (b - a).square().mean().sqrt() < 1e-4 * a.std()


# -- neighbours


@pytest.mark.parametrize("context", POLICIES)
def test_two_sessions_in_one_batch(context):
    """Also at different ages: session 1 is two chunks behind. Other shapes of matrix products: float64 roundings."""
    config = config_of(context)
    dit = toy_dit(config)
    streams = [Stream.draw(config, 5, s) for s in (7, 8)]
    sampler = PoolSampler(dit, config.sampling)
    alone = []
    for s in streams:
        cache = pool(dit, config, s)
        alone.append([sampler.sample(cache, [rows()], s.noise[i], s.codes[i]) for i in range(5)])
    cache = pool(dit, config, *streams)
    for i in range(2):
        sampler.sample(cache, [rows(0)], streams[0].noise[i], streams[0].codes[i])
    for i in range(3):
        pick = [(streams[0], i + 2), (streams[1], i)]
        noise, codes = (torch.cat([getattr(s, name)[j] for s, j in pick]) for name in ("noise", "codes"))
        both = sampler.sample(cache, [rows(0), rows(1)], noise, codes)
        torch.testing.assert_close(both[:1], alone[0][i + 2], **EXACT)
        torch.testing.assert_close(both[1:], alone[1][i], **EXACT)


@pytest.mark.parametrize("context", POLICIES)
def test_interleaved_calls_are_separate_streams(context):
    """One pool, two viewers in turns, rows in any order: bit for bit what each gets in a pool of its own."""
    config = config_of(context, chunks=2)
    dit = toy_dit(config)
    streams = [Stream.draw(config, 4, s) for s in (7, 8)]
    sampler = PoolSampler(dit, config.sampling)
    shared, own = pool(dit, config, *streams), [pool(dit, config, s) for s in streams]
    for s, i in [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]:
        noise, codes = streams[s].noise[i], streams[s].codes[i]
        got = sampler.sample(shared, [rows(s)], noise, codes)
        assert torch.equal(got, sampler.sample(own[s], [rows()], noise, codes))


@pytest.mark.parametrize("context", POLICIES)
@pytest.mark.parametrize("used", [1, 2, 5])
def test_a_used_row_forgets(context, used):
    """Opened again after ``used`` chunks, with NaN in every slot: bit for bit a fresh row."""
    config = config_of(context)
    dit = toy_dit(config)
    old, new = Stream.draw(config, 5, 9), Stream.draw(config, 3, 10)
    sampler = PoolSampler(dit, config.sampling)
    cache = pool(dit, config, old)
    for i in range(used):
        sampler.sample(cache, [rows()], old.noise[i], old.codes[i])
    cache.k.fill_(torch.nan)
    cache.v.fill_(torch.nan)
    for row, reference in enumerate((new.reference, torch.zeros_like(new.reference))):
        cache.open(row, *sink(dit, config, reference))
    fresh = pool(dit, config, new)
    for i in range(3):
        a, b = (sampler.sample(c, [rows()], new.noise[i], new.codes[i]) for c in (cache, fresh))
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("context", POLICIES)
@pytest.mark.parametrize("after", [1, 3])
def test_snapshots_continue_bit_equal(context, after):
    """In the same row, and in other rows of another pool."""
    config = config_of(context, chunks=2)
    dit = toy_dit(config)
    stream = Stream.draw(config, after + 2, 11)
    sampler, cache = PoolSampler(dit, config.sampling), pool(dit, config, stream)
    for i in range(after):
        sampler.sample(cache, [rows()], stream.noise[i], stream.codes[i])
    states = [cache.snapshot(row) for row in (0, 1)]
    rest = range(after, after + 2)
    want = [sampler.sample(cache, [rows()], stream.noise[i], stream.codes[i]) for i in rest]
    other = IDContextCache(config, 5, dtype=F64)
    for target, branches in ((cache, Branches(0, 1)), (other, Branches(4, 2))):
        for row, state in zip((branches.cond, branches.uncond), states):
            target.restore(row, state)
        got = [sampler.sample(target, [branches], stream.noise[i], stream.codes[i]) for i in rest]
        assert all(map(torch.equal, got, want))


# -- rebuilding a context


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("context", POLICIES)
def test_rebuild(context, chunks):
    """Given latents become context as if they had been sampled: at the level of the policy, with the noise given."""
    config = config_of(context, chunks=chunks)
    dit = toy_dit(config)
    stream = Stream.draw(config, chunks + 1, 12)
    given = Stream.draw(config, chunks, 13).noise
    cache, sampler, t = pool(dit, config, stream), PoolSampler(dit, config.sampling), levels(config)
    for i in range(chunks):
        sampler.rebuild(cache, [rows()], given[i], stream.noise[i], stream.codes[i])
    assert cache.committed == [chunks, chunks]
    spy = Spy(dit)
    sampler.sample(cache, [rows()], stream.noise[chunks], stream.codes[chunks])
    for step in range(STEPS):
        level = t[context_step(config, step)]
        past = [((1 - level) * given[i, 0] + level * stream.noise[i, 0], level) for i in range(chunks)]
        for branch, conditional in enumerate((True, False)):
            z, v = (x[branch] for x in spy.calls[step])
            whole = clip_of(config, stream, [*past, (z, t[step])], conditional)
            torch.testing.assert_close(v, dit(*whole, "streaming")[0, -TOKENS:], **EXACT)


def test_rebuild_of_what_was_sampled_changes_nothing():
    """Policy ``clean``: the context of a sampled chunk is the chunk itself, so rebuilding it gives the same bits."""
    config = config_of("clean")
    dit = toy_dit(config)
    stream = Stream.draw(config, 2, 14)
    sampler = PoolSampler(dit, config.sampling)
    sampled, rebuilt = pool(dit, config, stream), pool(dit, config, stream)
    z = sampler.sample(sampled, [rows()], stream.noise[0], stream.codes[0])
    sampler.rebuild(rebuilt, [rows()], z, stream.noise[1], stream.codes[0])
    a, b = (sampler.sample(c, [rows()], stream.noise[1], stream.codes[1]) for c in (sampled, rebuilt))
    assert torch.equal(a, b)


# -- refusals


@pytest.fixture
def ready():
    config = config_of()
    dit = toy_dit(config)
    streams = [Stream.draw(config, 1, s) for s in (15, 16)]
    cache = open_cache(dit, config, [s.reference for s in (*streams, *streams)], rows=6)  # 4 and 5 not opened
    return PoolSampler(dit, config.sampling), cache, streams[0].noise[0], streams[0].codes[0]


@pytest.mark.parametrize("call", ["sample", "rebuild"])
@pytest.mark.parametrize(
    "sessions, error, words",
    [
        ([], ValueError, "sessions: expected two rows"),
        ([Branches(0, None)], ValueError, "sessions: expected two rows"),
        ([Branches(0, 0)], ValueError, "distinct rows"),
        ([Branches(0, 6)], ValueError, r"row: expected 0\.\.5, got 6"),
        ([Branches(-1, 0)], ValueError, r"row: expected 0\.\.5, got -1"),
        ([Branches(0, 5)], ValueError, "row 5: expected an opened row"),
        ([Branches(0, 1), Branches(2, 1)], ValueError, "distinct rows"),
        ([Branches(0, 1), Branches(2, None)], ValueError, "sessions: expected two rows"),
    ],
)
def test_sessions_refused(ready, call, sessions, error, words):
    sampler, cache, noise, codes = ready
    count = max(1, len(sessions))
    noise, codes = noise.repeat(count, 1, 1), codes.repeat(count, 1, 1, 1)
    before = cache.k.clone()
    inputs = (noise, codes) if call == "sample" else (noise, noise, codes)
    with pytest.raises(error, match=words):
        getattr(sampler, call)(cache, sessions, *inputs)
    assert torch.equal(cache.k, before) and cache.committed == [0] * 6


def test_guidance_one_takes_one_row(ready):
    _, cache, noise, codes = ready
    config = config_of(sampling__guidance=1.0)
    with pytest.raises(ValueError, match=r"sessions: expected one row per session at guidance 1\.0"):
        PoolSampler(toy_dit(config), config.sampling).sample(cache, [rows()], noise, codes)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda n, c: (n[:, :-1], c), "noise"),
        (lambda n, c: (n[0], c), "noise"),
        (lambda n, c: (n.repeat(2, 1, 1), c), "noise"),
        (lambda n, c: (n, c[:, :2]), "codes"),
        (lambda n, c: (n, c.repeat(2, 1, 1, 1)), "codes"),
    ],
)
def test_shapes_refused(ready, change, word):
    sampler, cache, *inputs = ready
    with pytest.raises(ValueError, match=f"{word}: expected"):
        sampler.sample(cache, [rows()], *change(*inputs))
    assert cache.committed == [0] * 6


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_a_pool_made_for_other_steps(steps):
    """``per_step`` keeps one bank per step, the same number in every chunk: refused before any slot is written."""
    config = config_of("per_step")
    dit = toy_dit(config)
    stream = Stream.draw(config, 1, 17)
    cache = pool(dit, config, stream)
    other = config_of("per_step").replace(sampling__steps=steps)
    with pytest.raises(ValueError, match=rf"cache: expected one bank per step \({steps}\), got {STEPS}"):
        PoolSampler(dit, other.sampling).sample(cache, [rows()], stream.noise[0], stream.codes[0])
    assert cache.committed == [0, 0]


def test_rebuild_refuses_noise_of_another_shape(ready):
    """It would broadcast in silence."""
    sampler, cache, latents, codes = ready
    with pytest.raises(ValueError, match="noise: expected the latents' shape"):
        sampler.rebuild(cache, [rows()], latents, latents[:, :1], codes)
    assert cache.committed == [0] * 6


def test_no_gradients(ready):
    sampler, cache, noise, codes = ready
    sampler.dit.requires_grad_(True)
    assert not sampler.sample(cache, [rows()], noise, codes).requires_grad
