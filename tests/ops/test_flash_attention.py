"""The FlashAttention adapters against fake libraries with the signatures of the real ones, in plain PyTorch.

What the real ones compute needs a GPU; here it is what they are given, what is taken from them, and every refusal.
"""

from __future__ import annotations

import functools
import sys
import types

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import flash_attention
from rest_fast.ops.dispatch import Backend, OpError, Spec
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls

NAME = "sink_ring_attention"
LIBRARIES = {library.backend: library for library in (flash_attention.FLASH_3, flash_attention.FLASH_4)}
EVERY = pytest.mark.parametrize("backend", LIBRARIES)


@pytest.fixture(autouse=True)
def forgotten():
    """Each test has libraries of its own, and a library is looked up once in a process."""
    caches = (flash_attention.looked_up, flash_attention.takes_out)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def attend(q, keys, values, lengths, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """out ``[B, Nq, H, D]`` and lse ``[B, H, Nq]`` of a list of sequences, in float64 inside."""
    outs, sums = [], []
    for lane, n in enumerate(lengths.tolist()):
        k, v = keys[lane][:n].double(), values[lane][:n].double()
        score = torch.einsum("qhd,khd->hqk", q[lane].double(), k) * scale
        sums.append(score.logsumexp(-1).float())
        outs.append(torch.einsum("hqk,khd->qhd", score.softmax(-1), v).to(q.dtype))
    return torch.stack(outs), torch.stack(sums)


def flash_attn_with_kvcache(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    num_splits=0,
    return_softmax_lse=False,
):
    """As FlashAttention 3: a cache of sequences, and which of them each lane reads."""
    assert k is v is qv is page_table is None and causal is False
    assert cache_seqlens.dtype == cache_batch_idx.dtype == torch.int32
    rows = cache_batch_idx.tolist()
    out, lse = attend(q, [k_cache[r] for r in rows], [v_cache[r] for r in rows], cache_seqlens, softmax_scale)
    return (out, lse, None, None) if return_softmax_lse else out


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    seqused_q=None,
    seqused_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    return_lse=False,
):
    """As FlashAttention 4: pages of keys, and the pages of each lane in order."""
    assert cu_seqlens_q is cu_seqlens_k is None and causal is False
    assert seqused_k.dtype == page_table.dtype == torch.int32 and page_table.stride(-1) == 1
    assert page_table.shape[0] == len(q) and max_seqlen_k == page_table.shape[1] * k.shape[1]
    keys, values = ([x[pages].flatten(0, 1) for pages in page_table.tolist()] for x in (k, v))
    out, lse = attend(q, keys, values, seqused_k, softmax_scale)
    return out, lse if return_lse else None


FAKES = {"flash_attn_3": flash_attn_with_kvcache, "flash_attn_4": flash_attn_varlen_func}


def install(monkeypatch, backend: str, function) -> None:
    """Put a library that holds only this function where the backend looks for one; None: an empty library."""
    library = LIBRARIES[backend]
    module = types.ModuleType(library.module)
    if function is not None:
        setattr(module, library.function, function)
    if "." in library.module:
        parent = library.module.rpartition(".")[0]
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, library.module, module)


def entry(backend: str) -> Backend:
    return next(b for b in ops.sink_ring_attention.backends if b.name == backend)


def run(call: calls.Call, backend: str) -> calls.Call:
    """Past the dispatch, which keeps CPU tensors from these backends."""
    copy = call | {n: torch.full_like(call[n], torch.nan) for n in calls.written(NAME) if call.get(n) is not None}
    args, kwargs = calls.split(NAME, copy)
    entry(backend).run(*args, **kwargs)
    return copy


def on_gpu(dtype: torch.dtype = torch.bfloat16, **dims: int) -> Spec:
    return Spec("cuda", dtype, tuple(dims.items()))


@EVERY
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"rows": (2, 2), "banks": (1, 0), "n_valid": (3, 6)},
        {"rows": (1, 0), "banks": (0, 0), "n_valid": (7, 2), "cache": (2, 1, 7)},
        {"rows": (2, 0, 2, 1), "banks": (2, 1, 2, 0), "n_valid": (9, 1, 4, 5), "cache": (3, 3, 9), "lse": False},
    ],
    ids=["mixed", "two_banks_of_one_row", "one_ring", "three_rings_without_lse"],
)
def test_lanes_read_their_place_of_the_cache(shape, backend, monkeypatch):
    """All slots that a lane may not read hold NaN."""
    install(monkeypatch, backend, FAKES[backend])
    call = calls.sink_ring_attention(**shape)
    got = run(call, backend)
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_close(got["out"], call["out"], atol=5e-6, reason="the reference in fp32, scores below 8")
    if "lse" in call:
        assert_close(got["lse"], call["lse"], atol=2e-6, reason="the reference in fp32, scores below 8")


@EVERY
def test_the_cache_is_not_copied(backend, monkeypatch):
    seen = []

    @functools.wraps(FAKES[backend])
    def watch(q, k, v, **kwargs):
        seen.append((q.data_ptr(), k.data_ptr(), v.data_ptr(), k.shape, v.shape))
        return FAKES[backend](q, k, v, **kwargs)

    install(monkeypatch, backend, watch)
    call = calls.sink_ring_attention()
    before = {name: call[name].clone() for name in ("q", "k_cache", "v_cache", "row_index", "bank_index", "n_valid")}
    run(call, backend)
    flat = (8, 7, 3, 6)  # [rows x banks, slots, H, D]
    assert seen == [(*(call[name].data_ptr() for name in ("q", "k_cache", "v_cache")), flat, flat)]
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


@EVERY
@pytest.mark.parametrize("returns_it", [True, False])
def test_a_library_that_takes_out_writes_there(backend, returns_it, monkeypatch):
    """Nothing is copied if it returns what it was given; if it returns another tensor, that is what counts."""
    seen = []

    def function(q, k, v, *, out=None, **kwargs):
        seen.append(out.data_ptr())
        made = FAKES[backend](q, k, v, **kwargs)
        result = made if isinstance(made, tuple) else (made,)
        if returns_it:
            out.copy_(result[0])
        return out if returns_it else result[0], *result[1:]

    install(monkeypatch, backend, function)
    call, before = calls.sink_ring_attention(), flash_attention.copies[backend]
    got = run(call, backend)
    assert seen == [got["out"].data_ptr()]
    assert flash_attention.copies[backend] == before + (0 if returns_it else 1)
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_close(got["out"], call["out"], atol=5e-6, reason="the reference in fp32, scores below 8")


@EVERY
def test_never_chosen_unasked(backend, monkeypatch):
    install(monkeypatch, backend, FAKES[backend])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # so that any GPU would do
    op, spec = ops.sink_ring_attention, on_gpu(head_dim=64)
    assert op.choose(spec, backend).name == backend
    assert op.choose(spec, None).name not in LIBRARIES
    assert entry(backend).by_name


@EVERY
def test_what_does_not_fit_is_a_reason(backend, monkeypatch):
    install(monkeypatch, backend, FAKES[backend])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    most = LIBRARIES[backend].largest_head
    supports = entry(backend).supports
    assert supports(on_gpu()) == supports(on_gpu(torch.float16, head_dim=most)) == (True, "")
    assert supports(Spec("cpu", torch.bfloat16)) == (False, "CUDA tensors only, got cpu")
    assert supports(on_gpu(torch.float32)) == (False, "bfloat16 and float16 only, got torch.float32")
    for dim in (20, most + 8):
        reason = f"head_dim: expected a multiple of 8 up to {most}, got {dim}"
        assert supports(on_gpu(head_dim=dim)) == (False, reason)


@EVERY
def test_a_gpu_that_it_is_not_made_for(backend, monkeypatch):
    install(monkeypatch, backend, FAKES[backend])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fits = {}
    for capability in ((7, 5), (8, 0), (9, 0), (10, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, c=capability: c)
        fits[capability], reason = entry(backend).supports(on_gpu(head_dim=64))
        assert fits[capability] or reason.endswith(f"got {capability}")
    want = {"flash_attn_3": [(8, 0), (9, 0)], "flash_attn_4": [(9, 0), (10, 0)]}
    assert [c for c, ok in fits.items() if ok] == want[backend]


@EVERY
def test_a_missing_library_is_an_error_with_its_cure(backend, monkeypatch):
    library = LIBRARIES[backend]
    monkeypatch.setitem(sys.modules, library.module, None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, library.module.partition(".")[0], None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ok, reason = entry(backend).supports(on_gpu(head_dim=64))
    assert not ok and reason.startswith(f"{library.module} is not available: ") and library.install in reason
    with pytest.raises(
        OpError, match=f"^{NAME}: backend: expected one that runs this call, got '{backend}'.*not avail"
    ):
        ops.sink_ring_attention.choose(on_gpu(head_dim=64), backend)
    with pytest.raises(OpError, match=f"^{NAME}: backend {backend}: {library.module} is not available"):
        run(calls.sink_ring_attention(), backend)


def renamed(q, k, v, *, cache_lengths, cache_rows, softmax_scale):
    raise AssertionError("a library with other arguments is not called")


@EVERY
def test_a_library_with_another_signature(backend, monkeypatch):
    library = LIBRARIES[backend]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for function, text in ((renamed, "expected arguments .* got none named .*"), (None, "is not there")):
        install(monkeypatch, backend, function)
        with pytest.raises(OpError, match=f"{library.module}.{library.function}:? {text}"):
            ops.sink_ring_attention.choose(on_gpu(head_dim=64), backend)
    install(monkeypatch, backend, lambda *args, **kwargs: FAKES[backend](*args, **kwargs))
    assert entry(backend).supports(on_gpu(head_dim=64)) == (True, ""), "keywords of any name are taken"


def short(q, k, v, **kwargs):
    """Gives one query too few."""
    return q[:, 1:], torch.zeros(3, 3, 5)


def alone(q, k, v, **kwargs):
    """Gives no log-sum-exp."""
    return torch.empty_like(q)


def lse_last(q, k, v, **kwargs):
    """Gives the log-sum-exp as [B, Nq, H]."""
    return torch.empty_like(q), torch.zeros(3, 5, 3)


@EVERY
@pytest.mark.parametrize(
    "function, text",
    [
        (short, r"expected out of shape \[3, 5, 3, 6\], got \[3, 4, 3, 6\]"),
        (alone, r"expected lse of shape \[3, 3, 5\], got None"),
        (lse_last, r"expected lse of shape \[3, 3, 5\], got \[3, 5, 3\]"),
    ],
)
def test_another_result_than_agreed(function, text, backend, monkeypatch):
    install(monkeypatch, backend, function)
    call = calls.sink_ring_attention()
    args, kwargs = calls.split(NAME, call)
    with pytest.raises(OpError, match=f"^{NAME}: backend {backend}: {LIBRARIES[backend].function}: {text}"):
        entry(backend).run(*args, **kwargs)
    assert call["out"].isnan().all() and call["lse"].isnan().all(), "and nothing was written"


@EVERY
@pytest.mark.parametrize(
    "error", [AssertionError, RuntimeError, NotImplementedError, TypeError], ids=lambda e: e.__name__
)
def test_what_the_library_refuses(error, backend, monkeypatch):
    def refuse(*args, **kwargs):
        raise error("paged KV not supported on SM 9.0")

    install(monkeypatch, backend, refuse)
    with pytest.raises(OpError, match=f"^{NAME}: backend {backend}: .* refuses this call: paged KV not supported"):
        run(calls.sink_ring_attention(), backend)
