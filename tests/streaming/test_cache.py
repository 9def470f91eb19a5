"""The cache as slots: what lies where, what moves at a commit, and what a row forgets."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast.streaming.cache import IDContextCache, vectors
from rest_fast.streaming.step import Branches
from tests.kit.models import F64, PoolSampler, open_cache, sink, toy, toy_dit

SINK = 4  # tokens of a latent frame of the toy
CHUNK = 3 * SINK


def setup(rows: int = 2, **changes):
    """(config, dit, cache with all rows opened on different references)."""
    config = toy(**changes)
    dit = toy_dit(config)
    references = torch.randn(rows, SINK, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    return config, dit, open_cache(dit, config, list(references))


# -- slots


@pytest.mark.parametrize("context", [0, 1, 2, 4])
@pytest.mark.parametrize("chunk", [3, 2])
def test_visible_slots_hold_the_window(context, chunk):
    """Mark each chunk's values with its number: the dense range is the sink, the last chunks and the current one."""
    _, _, cache = setup(stream__context_chunks=context, stream__chunk=chunk)
    tokens = chunk * SINK
    assert cache.slots == SINK + (context + 1) * tokens
    cache.v[:, :, :, SINK:] = math.nan
    cache.v[:, 0, :, :SINK] = -1
    for i in range(3 * (context + 1) + 1):
        lanes = cache.lanes([0])
        start, end = int(lanes.write_slot), int(lanes.n_valid)
        assert lanes.host_n_valid == [end] and end <= cache.slots
        cache.v[:, 0, :, start : start + tokens] = i
        seen = cache.v[0, 0, 0, :end, 0, 0]
        expected = [-1] * SINK + [j for j in range(max(0, i - context), i + 1) for _ in range(tokens)]
        assert sorted(seen.tolist()) == expected
        cache.commit([0])
    assert (cache.v[:, 1, :, SINK:]).isnan().all()  # nothing of it in the other row


@pytest.mark.parametrize("context", [0, 1, 2, 4])
@pytest.mark.parametrize("chunk", [3, 2, 1])
def test_without_a_sink_the_reference_leaves(context, chunk):
    """The same marks: the first chunk sees the reference, the others the chunks of their context alone."""
    _, _, cache = setup(stream__context_chunks=context, stream__chunk=chunk, stream__sink=False)
    tokens = chunk * SINK
    kept = cache.snapshot(0)[0][:, :, tokens : tokens + SINK].clone()  # behind the first chunk
    assert kept.any()
    cache.v[:, 0] = math.nan
    cache.v[:, 0, :, tokens : tokens + SINK] = -1
    for i in range(3 * (context + 1) + 1):
        lanes = cache.lanes([0])
        start, end = int(lanes.write_slot), int(lanes.n_valid)
        assert lanes.host_n_valid == [end] and end <= cache.slots
        cache.v[:, 0, :, start : start + tokens] = i
        expected = [j for j in range(max(0, i - context), i + 1) for _ in range(tokens)]
        assert sorted(cache.v[0, 0, 0, :end, 0, 0].tolist()) == ([-1] * SINK if i == 0 else []) + expected
        cache.commit([0])
    assert cache.slots == max((context + 1) * tokens, tokens + SINK)
    again = cache.k[:, 1, :, tokens : tokens + SINK].clone()
    cache.open(0, again[:, 0] * 0 + 3, again[:, 0] * 0 + 4)  # a row that was used
    assert cache.n_valid(0) == tokens + SINK and cache.write_slot(0) == 0
    assert (cache.k[:, 0, :, tokens : tokens + SINK] == 3).all() and (
        cache.v[:, 0, :, tokens : tokens + SINK] == 4
    ).all()
    assert torch.equal(cache.k[:, 1, :, tokens : tokens + SINK], again)


def test_without_a_sink_a_commit_turns_everything():
    """The window is full after the second chunk: all slots but those that are free turn back by a chunk."""
    _, dit, cache = setup(1, stream__sink=False)
    cache.k.normal_(generator=torch.Generator().manual_seed(1))
    before = cache.k.clone()
    cache.commit([0])
    assert torch.equal(cache.k, before)
    cache.commit([0])
    free = slice(cache.write_slot(0), cache.write_slot(0) + CHUNK)
    assert (free.start, free.stop) == (0, CHUNK) and cache.slots == 2 * CHUNK
    want = turned(before[..., CHUNK:, :, :], dit, -3)
    torch.testing.assert_close(cache.k[..., CHUNK:, :, :], want, rtol=0, atol=1e-6)  # a float32 table


@pytest.mark.parametrize("context", [0, 1, 2])
@pytest.mark.parametrize("positions", ["window", "absolute"])
def test_base_of_each_chunk(context, positions):
    """model.md: chunk i starts at 1 + 3 min(i, context_chunks); absolutely, at 1 + 3 i."""
    _, dit, cache = setup(stream__context_chunks=context, stream__positions=positions)
    for i in range(6):
        lanes = cache.lanes([0, 1])  # row 1 stays where it began
        want = 1 + 3 * (min(i, context) if positions == "window" else i)
        for lane, base in enumerate((want, 1)):
            got = lanes.rope_t[int(lanes.base[lane]) :][:3]
            torch.testing.assert_close(got, dit.positions.time(base + torch.arange(3)), rtol=0, atol=0)
        if positions == "window":
            assert int(lanes.base[0]) == want and lanes.rope_t.shape[0] == 1 + 3 * (context + 1)
        cache.commit([0])


def test_lanes_are_device_integers():
    _, _, cache = setup()
    cache.commit([1])
    lanes = cache.lanes([1, 0])
    for name in ("row_index", "bank_index", "write_slot", "base", "n_valid"):
        assert getattr(lanes, name).dtype == torch.int32 and getattr(lanes, name).shape == (2,)
    assert lanes.row_index.tolist() == [1, 0]
    assert lanes.write_slot.tolist() == [SINK + CHUNK, SINK]
    assert lanes.n_valid.tolist() == lanes.host_n_valid == [SINK + 2 * CHUNK, SINK + CHUNK]
    assert lanes.k is cache.k and lanes.v is cache.v  # in place


# -- what a commit moves


def turned(k: torch.Tensor, dit, frames: int) -> torch.Tensor:
    """k [..., H, D] with its time pairs turned by this many latent frames, as complex numbers in float64."""
    width = k.shape[-2] * k.shape[-1]
    z = torch.view_as_complex(k.flatten(-2).unflatten(-1, (-1, 2)).contiguous())
    n = width // 6
    still = width // 2 - 3 * n
    for j in range(n):
        angle = 2 * frames * (8 / 25) / 20 * (10000 ** (j / (n - 1)) * math.pi / 2)
        z[..., still + 3 * j] *= complex(math.cos(angle), math.sin(angle))
    return torch.view_as_real(z).flatten(-2).unflatten(-1, k.shape[-2:])


@pytest.mark.parametrize("context", [1, 2, 3])
def test_commit_turns_the_context_once_the_window_is_full(context):
    _, dit, cache = setup(3, stream__context_chunks=context, stream__context="per_step", sampling__steps=2)
    cache.k.copy_(torch.randn(cache.k.shape, generator=torch.Generator().manual_seed(1), dtype=F64))
    for i in range(2 * context + 3):
        before, values = cache.k.clone(), cache.v.clone()
        cache.commit([1])
        free = slice(cache.write_slot(1), cache.write_slot(1) + CHUNK)  # to be written next: holds nothing
        expected = before.clone()
        if i >= context:  # full: everything but the sink stands one chunk earlier
            expected[:, 1, :, SINK:] = turned(before[:, 1, :, SINK:], dit, -3)
        expected[:, 1, :, free] = cache.k[:, 1, :, free]
        # the shift's table is float32: 6e-8 of numbers up to 4
        torch.testing.assert_close(cache.k, expected, rtol=0, atol=1e-6)
        assert torch.equal(cache.k[:, [0, 2]], before[:, [0, 2]])
        assert torch.equal(cache.k[:, 1, :, :SINK], before[:, 1, :, :SINK])
        assert torch.equal(cache.v, values)


@pytest.mark.parametrize("changes", [{"stream__positions": "absolute"}, {"stream__context_chunks": 0}])
def test_nothing_turns_without_window_or_context(changes):
    _, _, cache = setup(**changes)
    cache.k.normal_()
    before = cache.k.clone()
    for _ in range(5):
        cache.commit([0, 1])
    assert torch.equal(cache.k, before) and cache.committed == [5, 5]


def test_rows_commit_at_their_own_pace():
    """One call for a full and for a filling window: only the full one turns."""
    _, _, cache = setup(2)
    cache.k.normal_()
    cache.commit([0])
    before = cache.k.clone()
    cache.commit([1, 0])
    assert cache.committed == [2, 1]
    assert torch.equal(cache.k[:, 1], before[:, 1]) and not torch.equal(cache.k[:, 0], before[:, 0])


# -- opening


def test_sinks_reach_every_bank_and_no_other_row():
    config = toy(stream__context="per_step", sampling__steps=3)
    dit = toy_dit(config)
    cache = IDContextCache(config, 3, dtype=F64)
    assert cache.banks == 3 and IDContextCache(config, 1, steps=5).banks == 5
    assert IDContextCache(toy(sampling__steps=3), 1, steps=5).banks == 1
    k, v = sink(dit, config, torch.randn(SINK, 8, dtype=F64))
    cache.open(1, k, v)
    for bank in range(3):
        assert torch.equal(cache.k[:, 1, bank, :SINK], k) and torch.equal(cache.v[:, 1, bank, :SINK], v)
    assert (cache.k[:, [0, 2]] == 0).all() and (cache.k[:, 1, :, SINK:] == 0).all()


def test_open_casts():
    config = toy()
    dit = toy_dit(config)
    cache = IDContextCache(config, 1, dtype=torch.bfloat16)
    k, v = sink(dit, config, torch.randn(SINK, 8, dtype=F64))
    cache.open(0, k, v)
    assert torch.equal(cache.k[:, 0, 0, :SINK], k.bfloat16())


@pytest.mark.parametrize("which", ["sink_k", "sink_v"])
@pytest.mark.parametrize("shape", [(2, 5, 2, 16), (1, 4, 2, 16), (2, 4, 2, 8), (2, 1, 4, 2, 16), (2, 1, 2, 16)])
def test_open_refuses_other_shapes(which, shape):
    cache = IDContextCache(toy(), 1)
    good, bad = torch.zeros(2, SINK, 2, 16), torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"{which}: expected shape \[2, 4, 2, 16\]"):
        cache.open(0, *((bad, good) if which == "sink_k" else (good, bad)))
    with pytest.raises(ValueError, match="opened row"):  # and the row was not opened half
        cache.lanes([0])


# -- refusals


@pytest.mark.parametrize("rows", [0, -1])
def test_a_pool_has_rows(rows):
    with pytest.raises(ValueError, match=f"rows: expected at least 1, got {rows}"):
        IDContextCache(toy(), rows)


def calls(cache):
    return [lambda row: cache.lanes([row]), lambda row: cache.commit([row]), lambda row: cache.snapshot(row)]


@pytest.mark.parametrize("row", [-1, 2, 100])
def test_rows_out_of_range(row):
    _, _, cache = setup(2)
    state = cache.snapshot(0)
    k, v = cache.k[:, 0, 0, :SINK], cache.v[:, 0, 0, :SINK]
    everything = [*calls(cache), lambda r: cache.open(r, k, v), lambda r: cache.restore(r, state)]
    for call in everything:
        with pytest.raises(ValueError, match=rf"row: expected 0\.\.1, got {row}"):
            call(row)
    assert cache.committed == [0, 0]


def test_rows_not_opened():
    config = toy()
    cache = IDContextCache(config, 2)
    for call in calls(cache):
        with pytest.raises(ValueError, match=r"row 1: expected an opened row"):
            call(1)


def test_rows_twice():
    _, _, cache = setup(2)
    for call in (cache.lanes, cache.commit):
        with pytest.raises(ValueError, match=r"distinct rows, got \[1, 0, 1\]"):
            call([1, 0, 1])
    assert cache.committed == [0, 0]


@pytest.mark.parametrize("bank", [-1, 2])
def test_banks_out_of_range(bank):
    _, _, cache = setup(stream__context="per_step", sampling__steps=2)
    with pytest.raises(ValueError, match=rf"bank: expected 0\.\.1, got {bank}"):
        cache.lanes([0], bank)


# -- long streams


@pytest.mark.parametrize("sampled", [2500, pytest.param(1, marks=pytest.mark.slow)])
def test_ten_thousand_chunks(sampled):
    """Bounded integers, the same memory, and a window that still computes what a young one computes.

    Every ``sampled``-th chunk is sampled, the others are committed as they lie.
    """
    changes = {"dit__layers": 1, "sampling__guidance": 1.0, "sampling__steps": 1}
    config, dit, old = setup(1, **changes)
    _, _, young = setup(1, **changes)
    sampler = PoolSampler(dit, config.sampling)
    places = old.k.data_ptr(), old.v.data_ptr(), old.k.shape
    g = torch.Generator().manual_seed(2)
    latents, noise = torch.randn(2, 4, 1, CHUNK, 8, generator=g, dtype=F64)
    codes = torch.randn(4, 1, 3, 2, 32, generator=g, dtype=F64)
    bases, slots, valid = set(), set(), set()
    for i in range(10_000):
        lanes = old.lanes([0])
        bases.add(int(lanes.base))
        slots.add(int(lanes.write_slot))
        valid.add(lanes.host_n_valid[0])
        assert lanes.rope_t.shape[0] == config.stream.window
        if i % sampled == 0:
            sampler.sample(old, [Branches(0, None)], noise[0], codes[0])
        else:
            old.commit([0])
    assert (bases, slots) == ({1, 4}, {SINK, SINK + CHUNK})
    assert valid == {SINK + CHUNK, SINK + 2 * CHUNK}
    assert old.committed == [10_000]
    assert places == (old.k.data_ptr(), old.v.data_ptr(), old.k.shape)
    # One block: the keys of a rebuilt chunk depend on its latents alone, so both windows now hold the same
    for cache in (old, young):
        sampler.rebuild(cache, [Branches(0, None)], latents[0], noise[1], codes[1])
    for i in range(2, 4):
        a, b = (sampler.sample(c, [Branches(0, None)], noise[i], codes[i]) for c in (old, young))
        # the same keys, at other slots and once more turned at most: float32 tables, 6e-8 an entry
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        assert (a - noise[i]).abs().max() > 0.1


def test_absolute_positions_far_out():
    """Ten thousand chunks in, a table row is still the float64 angle, rounded once."""
    _, _, cache = setup(1, stream__positions="absolute")
    cache.committed[0] = 10_000
    table = cache.lanes([0]).rope_t.double()
    n = 32 // 6
    for frame in range(3):
        for j in range(n):
            angle = (2 * (30_001 + frame) * 0.32 / 20 - 1) * (10000 ** (j / (n - 1)) * math.pi / 2)
            # angles up to 1.5e7 in float64: 3e-9; the table's float32: 6e-8
            assert table[frame, j, 0].item() == pytest.approx(math.cos(angle), abs=1e-7)
            assert table[frame, j, 1].item() == pytest.approx(math.sin(angle), abs=1e-7)


# -- snapshots


def test_snapshot_is_a_copy():
    _, _, cache = setup(2)
    cache.k.normal_()
    cache.commit([0])
    k, v, committed = cache.snapshot(0)
    kept = k.clone(), v.clone()
    cache.commit([0])
    cache.k.normal_()
    cache.v.normal_()
    assert torch.equal(k, kept[0]) and torch.equal(v, kept[1]) and committed == 1


def test_restore_opens_a_row_of_another_pool():
    config, _, cache = setup(2)
    cache.k.normal_()
    for _ in range(3):
        cache.commit([1])
    other = IDContextCache(config, 4, dtype=F64)
    other.restore(3, cache.snapshot(1))
    assert torch.equal(other.k[:, 3], cache.k[:, 1]) and other.committed == [0, 0, 0, 3]
    assert (other.write_slot(3), other.n_valid(3)) == (cache.write_slot(1), cache.n_valid(1))
    with pytest.raises(ValueError, match="opened row"):
        other.lanes([0])
    assert (other.k[:, :3] == 0).all()


@pytest.mark.parametrize("positions", ["window", "absolute"])
def test_times_stay_where_they_are(positions):
    """A captured step reads them at one place: nothing is allocated for a chunk, and every row has its own."""
    _, dit, cache = setup(3, stream__positions=positions)
    place = cache.lanes([0, 2]).rope_t.data_ptr()
    for rows in ([0], [0, 2], [2, 0]):
        cache.commit(rows)
        lanes = cache.lanes([2, 1, 0])
        assert lanes.rope_t.data_ptr() == place
        for row, base in zip([2, 1, 0], lanes.base.tolist(), strict=True):
            want = dit.positions.time(dit.positions.base(cache.committed[row]) + torch.arange(3))
            torch.testing.assert_close(lanes.rope_t[base : base + 3], want, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_vectors_begin_at_multiples_of_16_bytes(count):
    """Kernels are compiled for such a start, and once more for any other."""
    for dtype in (torch.int32, torch.float32):
        rows = [[10 * row + i for i in range(count)] for row in range(3)]
        made = vectors(rows, dtype, torch.device("cpu"))
        assert [one.tolist() for one in made] == rows
        assert all(one.storage_offset() * one.element_size() % 16 == 0 and one.is_contiguous() for one in made)
