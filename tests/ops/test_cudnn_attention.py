"""The cuDNN adapter with a stand-in for cuDNN: what it is given, and what is refused before it is called."""

from __future__ import annotations

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import cudnn_attention
from rest_fast.ops.dispatch import OpError, Spec, capturing
from rest_fast.ops.flash_attention import copies
from tests.kit.compare import assert_close
from tests.ops import calls

NAME = "sink_ring_attention"
BACKEND = next(b for b in ops.sink_ring_attention.backends if b.name == "cudnn")
EVEN = {"rows": (1, 2, 3), "banks": (0, 0, 0), "n_valid": (6, 6, 6)}


def on_gpu(dtype: torch.dtype = torch.bfloat16, **dims: int | str) -> Spec:
    return Spec("cuda", dtype, tuple(dims.items()))


def placed(call: calls.Call) -> calls.Call:
    banks = call["k_cache"].shape[1]
    return call | {"host_place": (call["row_index"] * banks + call["bank_index"]).tolist()}


def run(call: calls.Call) -> calls.Call:
    """Past the dispatch, which keeps CPU tensors from this backend."""
    args, kwargs = calls.split(NAME, call)
    BACKEND.run(*args, **kwargs)
    return call


@pytest.fixture
def seen(monkeypatch):
    """What the stand-in was given: by lane, the address of its keys and their number."""
    given: list[list[tuple[int, int]]] = []

    def attend(q, k, v, scale):
        given.append([(lane.data_ptr(), lane.shape[1]) for lane in k])
        score = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) * scale
        return torch.einsum("bhqk,bhkd->bhqd", score.softmax(-1), v.double()).to(q.dtype)

    monkeypatch.setattr(cudnn_attention, "attend", attend)
    return given


@pytest.mark.parametrize("shape", [
    EVEN,
    EVEN | {"rows": (0, 2), "banks": (1, 1), "n_valid": (7, 7), "lse": False},
    {"rows": (3,), "banks": (1,), "n_valid": (1,)},
], ids=["consecutive", "every_second_row", "one_lane"])  # fmt: skip
def test_lanes_read_their_slots_in_place(shape, seen):
    """All other slots hold NaN; nothing of the cache is copied."""
    call = placed(calls.sink_ring_attention(**shape))
    before = copies["cudnn"]
    want = call | {n: call[n].clone() for n in ("out", "lse") if n in call}
    with ops.use_backend("reference"):
        calls.invoke(NAME, want)
    run(call)
    assert_close(call["out"], want["out"], atol=5e-6, reason="the reference in fp32, scores below 8")
    if "lse" in call:
        assert_close(call["lse"], want["lse"], atol=2e-6, reason="the reference in fp32, scores below 8")
    flat = call["k_cache"].flatten(0, 1)
    assert seen == [[(flat[p].data_ptr(), n) for p, n in zip(call["host_place"], call["host_n_valid"])]]
    assert copies["cudnn"] == before + 1


@pytest.mark.parametrize("change, text", [
    ({"n_valid": (6, 5, 6)}, r"host_n_valid: expected one length for all lanes, got \[6, 5, 6\]"),
    ({"rows": (1, 3, 2)}, r"host_place: expected places that follow one another at one distance, got \[2, 6, 4\]"),
    ({"rows": (1, 2, 2)}, r"host_place: expected places .*got \[2, 4, 4\]"),
    ({"rows": (3, 2, 1)}, r"host_place: expected places .*got \[6, 4, 2\]"),
])  # fmt: skip
def test_what_one_view_does_not_show(change, text, seen):
    call = placed(calls.sink_ring_attention(**EVEN | change))
    with pytest.raises(OpError, match=f"^{NAME}: backend cudnn: {text}"):
        run(call)
    assert seen == [] and call["out"].isnan().all()


def test_what_does_not_fit_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    known = {"lengths": "on the host", "places": "on the host"}
    assert BACKEND.supports(on_gpu(head_dim=64, **known)) == (True, "")
    for spec, reason in (
        (Spec("cpu", torch.bfloat16), "CUDA tensors only, got cpu"),
        (on_gpu(torch.float32), "bfloat16 and float16 only, got torch.float32"),
        (on_gpu(head_dim=136), "head_dim: expected a multiple of 8 up to 128, got 136"),
        (on_gpu(lengths="on the device"), "reads lengths on the host, and host_n_valid is None"),
        (on_gpu(places="on the device"), "reads places on the host, and host_place is None"),
    ):
        assert BACKEND.supports(spec) == (False, reason)
    op, spec = ops.sink_ring_attention, on_gpu(head_dim=64, **known)
    assert op.choose(spec, "cudnn").name == "cudnn" and op.choose(spec, None).name != "cudnn"
    with capturing(), pytest.raises(OpError, match=r"'cudnn' cannot run .*cannot be captured: .*host_place"):
        op.choose(spec, "cudnn")


def test_a_refusal_of_the_library():
    """On a CPU PyTorch has no such kernel, and says so."""
    call = placed(calls.sink_ring_attention(**EVEN))
    with pytest.raises(OpError, match=f"^{NAME}: backend cudnn: refuses this call: "):
        run(call)
    assert call["out"].isnan().all()


@pytest.mark.parametrize("places, text", [
    ([2, 4], r"expected 3 in 0..7, got \[2, 4\]"),
    ([2, 4, 8], r"expected 3 in 0..7, got \[2, 4, 8\]"),
    ([2, 4, -1], r"expected 3 in 0..7, got \[2, 4, -1\]"),
    ([2, 4, 5], r"expected \[2, 4, 6\], row \* banks \+ bank, got \[2, 4, 5\]"),
])  # fmt: skip
def test_places_that_are_not_those_of_the_lanes(places, text):
    call = calls.sink_ring_attention(**EVEN) | {"host_place": places}
    with pytest.raises(OpError, match=f"argument host_place: {text}"):
        calls.invoke(NAME, call)
    assert call["out"].isnan().all()
