"""``rotate_context``: keys move in time and in nothing else, and only where they should."""

from __future__ import annotations

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional, native, rope
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.rotate_context import CASES

CPP = pytest.param(
    "cpp", marks=pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "it is there")
)


def pair_rotations(shift: torch.Tensor, pairs: int) -> list[complex]:
    """What each channel pair is multiplied by: 1 for the still pairs, then t, y, x, t, ... of which only t moves."""
    still = pairs - 3 * shift.shape[0]
    factors = [1 + 0j] * pairs
    for m, (c, s) in enumerate(shift.double().tolist()):
        factors[still + 3 * m] = complex(c, s)
    return factors


def closed_form(k: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """float64 [..., H, D], one key and one pair at a time."""
    pairs = k.shape[-1] * k.shape[-2] // 2
    factors, rows = pair_rotations(shift, pairs), []
    for key in k.double().reshape(-1, 2 * pairs).tolist():
        turned = [complex(key[2 * j], key[2 * j + 1]) * factors[j] for j in range(pairs)]
        rows.append([x for z in turned for x in (z.real, z.imag)])
    return torch.tensor(rows, dtype=torch.float64).view(k.shape)


@pytest.mark.parametrize("heads, dim", [(1, 6), (2, 10), (1, 16), (3, 4)])
def test_functional_is_the_formula(heads, dim):
    k = torch.randn(2, 3, heads, dim, dtype=torch.float64)
    shift = torch.randn(heads * dim // 6, 2, dtype=torch.float64)
    assert_close(functional.shift_keys(k, shift), closed_form(k, shift), atol=1e-14, reason="three float64 roundings")
    assert functional.shift_keys(k.half(), shift.float()).dtype == torch.float16


def table(positions: list[int], freqs: torch.Tensor) -> torch.Tensor:
    """float64 [P, n, 2]: as ``rope.axis_table`` for 0.32 s frames in 20 s, without its rounding to fp32."""
    angle = (2 * torch.tensor(positions).double() * 0.32 / 20 - 1)[:, None] * freqs
    return torch.stack([angle.cos(), angle.sin()], -1)


@pytest.mark.parametrize("frames", [-3, 1, 40])
def test_moved_by_s_equals_rotated_at_p_plus_s(frames):
    width, positions = 20, [3, 4, 57]
    freqs = rope.frequencies(width, 100.0)
    k, y, x = torch.randn(3, width, dtype=torch.float64), *(torch.randn(1, 3, 2, dtype=torch.float64) for _ in "yx")
    here = rope.rotate(k, rope.token_table(table(positions, freqs), y, x, width))
    there = rope.rotate(k, rope.token_table(table([p + frames for p in positions], freqs), y, x, width))
    angle = 2 * frames * 0.32 / 20 * freqs
    moved = functional.shift_keys(here.view(3, 2, 10), torch.stack([angle.cos(), angle.sin()], -1))
    # Angles reach 157 * 2.1 = 330 and are off by 1e-16 of that, twice; keys and tables are below 4.
    assert_close(moved.flatten(1), there, atol=1e-12, reason="float64 angles of 330 radians")
    stored = rope.shift_table(frames, 0.32, 20.0, freqs)
    assert_close(stored, torch.stack([angle.cos(), angle.sin()], -1), atol=2.0**-24, reason="one rounding to fp32")


def test_ten_thousand_moves_do_not_drift():
    # Multiples of 2^-20: ten thousand times the angle is exact, so the truth needs no care.
    angle = torch.tensor([0.75, 2.5 + 2.0**-20, -1.25], dtype=torch.float64)
    shift = torch.stack([angle.cos(), angle.sin()], -1)
    first = torch.randn(1, 2, 10, dtype=torch.float64)
    k = first
    for _ in range(10_000):
        k = functional.shift_keys(k, shift)
    want = closed_form(first, torch.stack([(10_000 * angle).cos(), (10_000 * angle).sin()], -1))
    # Each move adds at most four roundings of 1.1e-16 (two products, a sum, the table) of |k| < 4.
    assert_close(k, want, atol=10_000 * 4 * 1.2e-16 * 4, reason="four roundings a move")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_place_moves_exactly_the_context(case, dtype):
    call = calls.rotate_context(**case, dtype=dtype)
    before = call["k_cache"].clone()
    with ops.use_backend("reference"):
        calls.invoke("rotate_context", call)
    turned = functional.shift_keys(before, call["shift"])
    want, sink, chunk = before.clone(), call["sink"], call["chunk"]
    for row, skip, enabled in zip(*(call[n].tolist() for n in ("row_index", "skip_slot", "enabled"))):
        for slot in range(sink, before.shape[3]):
            if enabled and not skip <= slot < skip + chunk:
                want[:, row, :, slot] = turned[:, row, :, slot]
    assert_same_bits(call["k_cache"], want, "k_cache")


def test_only_time_pairs_of_context_slots_change():
    """Independent of the functional reference: which channels of which slots differ from before."""
    call = calls.rotate_context(rows=(1,), skip=(2,), enabled=(1,))
    before = call["k_cache"].clone()
    calls.invoke("rotate_context", call)
    changed = (
        (call["k_cache"] != before).flatten(4).unflatten(4, (-1, 2)).any(-1)
    )  # [layers, rows, banks, slots, pairs]
    want = torch.zeros_like(changed)
    want[:, 1, :, 5:, [1, 4, 7]] = True  # one still pair, then t, y, x, t, y, x, t, y, x; slots 0-1 sink, 2-4 skipped
    assert torch.equal(changed, want)


@pytest.mark.parametrize("backend", ["reference", CPP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, -0.0])
def test_what_is_not_finite_touches_its_pair_alone(bad, dtype, backend):
    """In every channel in turn, one key each. A time pair is turned by the formula; any other keeps its bits."""
    call = calls.rotate_context(rows=(1,), skip=(0,), enabled=(1,), sink=0, chunk=1, cache=(1, 2, 1, 21), dtype=dtype)
    for channel in range(20):
        call["k_cache"][0, 1, 0, 1 + channel].view(-1)[channel] = bad
    before = call["k_cache"].clone()
    with ops.use_backend(backend):
        calls.invoke("rotate_context", call)
    got, old = (x[0, 1, 0, 1:].flatten(1).unflatten(1, (-1, 2)) for x in (call["k_cache"], before))  # [key, pair, 2]
    time = torch.tensor([factor != 1 for factor in pair_rotations(call["shift"], 10)])
    assert time.tolist() == [False, True, False, False, True, False, False, True, False, False]
    assert_same_bits(got[:, ~time], old[:, ~time], "pairs of y and x, and those that have no axis")
    (c, s), (a, b) = call["shift"].unbind(-1), old[:, time].float().unbind(-1)
    want = torch.stack([a * c - b * s, a * s + b * c], -1)
    assert torch.equal(got[:, time].isnan(), want.isnan())
    number = ~want.isnan()
    step = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]  # of products below 8
    torch.testing.assert_close(got[:, time][number].float(), want[number], rtol=step, atol=4 * step)


def test_nan_in_skipped_slots_stays_there():
    call = calls.rotate_context()
    places = list(zip(call["row_index"].tolist(), call["skip_slot"].tolist()))
    for row, skip in places:
        call["k_cache"][:, row, :, skip : skip + call["chunk"]] = torch.nan
    nan = call["k_cache"].isnan()
    calls.invoke("rotate_context", call)
    assert torch.equal(call["k_cache"].isnan(), nan)


def test_disabled_lanes_may_share_a_scratch_row():
    call = calls.rotate_context(rows=(4, 4, 1), skip=(2, 2, 8), enabled=(0, 0, 1))
    before = call["k_cache"].clone()
    with ops.use_backend("reference"):
        calls.invoke("rotate_context", call)
    assert_same_bits(call["k_cache"][:, 4], before[:, 4], "the scratch row")
    assert (call["k_cache"][:, 1] != before[:, 1]).any()
