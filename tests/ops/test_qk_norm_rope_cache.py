"""``qk_norm_rope_cache``: functional and in-place reference against loops over complex numbers in float64."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional, rope
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.qk_norm_rope_cache import SHAPES, written_slots


def closed_form(call: calls.Call) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k, float64 [B, N, W], from the formula: one token, one channel pair at a time."""
    lanes, tokens, width = call["qkv"].shape[0], call["qkv"].shape[1], call["q_weight"].shape[0]
    h, w, still = call["rope_y"].shape[0], call["rope_x"].shape[0], width // 2 - 3 * (width // 6)
    axes = [call[name].double().numpy() for name in ("rope_t", "rope_y", "rope_x")]
    ends = [(axis, m) for axis, table in enumerate(axes) for m in range(table.shape[1])]  # of the pairs of a head
    results = []
    for first, name in ((0, "q_weight"), (width, "k_weight")):
        weight, out = call[name].double().tolist(), torch.zeros(lanes, tokens, width, dtype=torch.float64)
        for lane in range(lanes):
            for token in range(tokens):
                x = call["qkv"][lane, token, first : first + width].double().tolist()
                root = math.sqrt(math.fsum(v * v for v in x) / width + call["eps"])
                place = (int(call["base"][lane]) + token // (h * w), token // w % h, token % w)
                row = []
                for pair in range(width // 2):
                    z = complex(*(x[i] / root * weight[i] for i in (2 * pair, 2 * pair + 1)))
                    if call["rope"] == "by_head":
                        axis, frequency = ends[pair % len(ends)]
                        z *= complex(*axes[axis][place[axis], frequency])
                    elif pair >= still:
                        axis, frequency = (pair - still) % 3, (pair - still) // 3
                        z *= complex(*axes[axis][place[axis], frequency])
                    row += [z.real, z.imag]
                out[lane, token] = torch.tensor(row, dtype=torch.float64)
        results.append(out)
    return results[0], results[1]


def functional_result(call: calls.Call) -> tuple[torch.Tensor, ...]:
    heads, dim = call["k_cache"].shape[-2:]
    frames = call["qkv"].shape[1] // (call["rope_y"].shape[0] * call["rope_x"].shape[0])
    tables = []
    for b in call["base"].tolist():
        axes = call["rope_t"][b : b + frames], call["rope_y"], call["rope_x"]
        by_head = call["rope"] == "by_head"
        tables.append(rope.head_table(*axes).repeat(1, heads, 1) if by_head else rope.token_table(*axes, heads * dim))
    return functional.qk_norm_rope(
        call["qkv"], call["q_weight"], call["k_weight"], torch.stack(tables), heads=heads, eps=call["eps"]
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_functional_is_the_formula(shape):
    call = calls.qk_norm_rope_cache(**shape, dtype=torch.float64)
    q, k, v = functional_result(call)
    want_q, want_k = closed_form(call)
    # Values below 20; a dozen float64 roundings of 1e-16 each.
    assert_close(q.flatten(2), want_q, atol=1e-13, reason="a dozen float64 roundings")
    assert_close(k.flatten(2), want_k, atol=1e-13, reason="a dozen float64 roundings")
    assert torch.equal(v.flatten(2), call["qkv"][..., -want_q.shape[-1] :])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_place_is_functional_and_writes_nothing_else(shape, dtype):
    call = calls.qk_norm_rope_cache(**shape, dtype=dtype)
    before = {name: call[name].clone() for name in ("k_cache", "v_cache")}
    mask = written_slots(call)
    call["k_cache"][mask], call["v_cache"][mask] = torch.nan, torch.nan  # every one of them must be overwritten
    with ops.use_backend("reference"):
        calls.invoke("qk_norm_rope_cache", call)
    q, k, v = functional_result(call)
    assert_same_bits(call["q_out"], q, "q_out")
    places = zip(*(call[name].tolist() for name in ("row_index", "bank_index", "write_slot")))
    for lane, (row, bank, slot) in enumerate(places):
        here = slice(slot, slot + q.shape[1])
        assert_same_bits(call["k_cache"][row, bank, here], k[lane], f"keys of lane {lane}")
        assert_same_bits(call["v_cache"][row, bank, here], v[lane], f"values of lane {lane}")
    for name, old in before.items():
        assert_same_bits(call[name][~mask], old[~mask], f"{name} outside the written slots")


def test_lanes_do_not_depend_on_their_order_or_neighbours():
    call = calls.qk_norm_rope_cache(rows=(3, 0, 2), banks=(0, 1, 1), slots=(8, 0, 3), base=(0, 4, 2))
    calls.invoke("qk_norm_rope_cache", call)
    for order in ([2, 0, 1], [1]):
        again = calls.qk_norm_rope_cache(rows=(3, 0, 2), banks=(0, 1, 1), slots=(8, 0, 3), base=(0, 4, 2))
        for name in ("qkv", "q_out", "row_index", "bank_index", "write_slot", "base"):
            again[name] = again[name][order].contiguous()
        calls.invoke("qk_norm_rope_cache", again)
        assert_same_bits(again["q_out"], call["q_out"][order], f"queries of lanes {order}")
        mask = written_slots(again)
        assert_same_bits(again["k_cache"][mask], call["k_cache"][mask], f"keys of lanes {order}")


def test_base_moves_only_the_time_pairs():
    """One frame at base 3 equals the frame after it at base 2, if they hold the same numbers."""
    call = calls.qk_norm_rope_cache(rows=(0,), banks=(0,), slots=(0,), base=(2,), dtype=torch.float64)
    call["qkv"][:, 6:] = call["qkv"][:, :6]
    q2, _, _ = functional_result(call)
    call["base"] += 1
    call["rope_t"] = torch.cat([call["rope_t"], call["rope_t"][:1]])
    q3, _, _ = functional_result(call)
    assert torch.equal(q2[:, 6:], q3[:, :6])
    changed = (q2[:, :6] != q3[:, :6]).flatten(2).flatten(0, 1).any(0).unflatten(0, (-1, 2)).any(-1)
    assert changed.tolist() == [False] + [True, False, False] * 3  # one still pair, then t, y, x, ...


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)], ids=str)
def test_rms_norm_is_the_formula(shape):
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape[-1], dtype=torch.float64)
    roots = [math.sqrt(math.fsum(v * v for v in row) / shape[-1] + 1e-6) for row in x.view(-1, shape[-1]).tolist()]
    want = x / torch.tensor(roots, dtype=torch.float64).view(*shape[:-1], 1)
    assert_close(functional.rms_norm(x, None, 1e-6), want, rtol=1e-14, reason="five float64 roundings")
    assert_close(functional.rms_norm(x, weight, 1e-6), want * weight, rtol=1e-14, reason="six float64 roundings")
    assert functional.rms_norm(x.half(), weight.half(), 1e-6).dtype == torch.float32
