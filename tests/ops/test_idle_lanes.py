"""A lane whose cache row is -1 has nothing to do: the others compute the same bits, and nothing of it is written."""

from __future__ import annotations

import pytest
import torch

from rest_fast import ops
from rest_fast.ops.dispatch import IDLE
from tests.kit.compare import assert_same_bits
from tests.ops import calls, cpp

BACKENDS = {
    "qk_norm_rope_cache": ("reference", "cpp"),
    "sink_ring_attention": ("reference", "cpp", "sdpa", "sdpa_gathered"),
    "rotate_context": ("reference", "cpp"),
}
CASES = [
    pytest.param(name, backend, marks=cpp.MISSING if backend == "cpp" else ())
    for name, backends in BACKENDS.items()
    for backend in backends
]
CACHES = ("k_cache", "v_cache")


def made(name: str) -> calls.Call:
    call = getattr(calls, name)()
    if name == "rotate_context":
        call["enabled"].fill_(1)
        call["row_index"] = torch.arange(len(call["enabled"]), dtype=torch.int32)
    return call


@pytest.mark.parametrize("name, backend", CASES)
@pytest.mark.parametrize("idle", [0, 1])
def test_the_other_lanes_do_not_notice(name, backend, idle):
    busy, with_idle = made(name), made(name)
    lanes = [lane for lane in range(len(busy["row_index"])) if lane != idle]
    row = int(busy["row_index"][idle])
    with_idle["row_index"][idle] = IDLE
    before = {cache: with_idle[cache].clone() for cache in CACHES if cache in with_idle}
    busy, with_idle = cpp.run(name, busy, backend), cpp.run(name, with_idle, backend)
    for cache, old in before.items():
        axis = 1 if name == "rotate_context" else 0
        others = [r for r in range(old.shape[axis]) if r != row]
        index = torch.tensor(others)
        assert_same_bits(with_idle[cache].index_select(axis, index), busy[cache].index_select(axis, index), cache)
        assert_same_bits(with_idle[cache].select(axis, row), old.select(axis, row), f"{cache}, the row it had")
    for output in ("q_out", "out", "lse"):
        if busy.get(output) is not None:
            assert_same_bits(with_idle[output][lanes], busy[output][lanes], output)


@pytest.mark.parametrize("name, backend", CASES)
def test_all_lanes_idle(name, backend):
    call = made(name)
    call["row_index"].fill_(IDLE)
    before = {cache: call[cache].clone() for cache in CACHES if cache in call}
    after = cpp.run(name, call, backend)
    for cache, old in before.items():
        assert_same_bits(after[cache], old, cache)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=cpp.MISSING)])
def test_attention_that_only_the_device_knows_the_length_of(backend):
    known, unknown = made("sink_ring_attention"), made("sink_ring_attention")
    unknown["host_n_valid"] = None
    known, unknown = (cpp.run("sink_ring_attention", call, backend) for call in (known, unknown))
    assert_same_bits(unknown["out"], known["out"], "out")


def test_a_backend_that_asks_the_host_refuses_it():
    call = made("sink_ring_attention") | {"host_n_valid": None}
    with (
        ops.use_backend("sdpa"),
        pytest.raises(ops.OpError, match="reads lengths on the host, and host_n_valid is None"),
    ):
        calls.invoke("sink_ring_attention", call)
