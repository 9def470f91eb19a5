"""Dispatch: which backend runs, who may choose it, and what is said when it cannot."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import dispatch, native, triton_kernels
from rest_fast.ops.dispatch import Backend, Op, OpError, Spec, capturing, forced_backend, use_backend
from tests.kit.compare import assert_same_bits
from tests.ops import calls

VARIABLE = "REST_FAST_BACKEND"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture(scope="session")
def traced():
    """An op of four backends that note their names: one for CPU, one for fp16, one for nothing, the reference."""
    ran: list[str] = []

    def backend(name, supports):
        return Backend(name, supports, lambda x: ran.append(name))

    op = Op(
        "test_traced(Tensor x)",
        check=lambda x: Spec(x.device.type, x.dtype, (("numel", x.numel()),)),
        reference=lambda x: ran.append("reference"),
        backends=(
            backend("never", lambda spec: (False, "not on this planet")),
            backend("half", lambda spec: (spec.dtype == torch.float16, "float16 only")),
            backend("small", lambda spec: (dict(spec.dims)["numel"] < 10, "too large")),
        ),
    )
    return op, ran


def which(traced, numel: int, dtype: torch.dtype = torch.float32) -> str:
    op, ran = traced
    ran.clear()
    op(torch.zeros(numel, dtype=dtype))
    assert len(ran) == 1
    return ran[0]


def test_the_first_backend_that_supports_the_call_runs(traced):
    assert which(traced, 3) == "small"
    assert which(traced, 30) == "reference"
    assert which(traced, 3, torch.float16) == "half"
    assert which(traced, 30, torch.float16) == "half"


def test_forcing_a_backend(traced):
    with use_backend("reference"):
        assert which(traced, 3) == "reference"
    with use_backend("small"):
        assert which(traced, 3, torch.float16) == "small"
    assert which(traced, 3) == "small", "back to the table"


@pytest.mark.parametrize("name, numel, reason", [("never", 3, "not on this planet"), ("small", 12, "too large")])
def test_a_forced_backend_that_cannot_run_says_why(traced, name, numel, reason):
    with use_backend(name):
        with pytest.raises(
            OpError, match=rf"test_traced: backend: .*'{name}' cannot run cpu float32 \[numel={numel}\]: {reason}"
        ):
            which(traced, numel)
    assert traced[1] == [], "nothing else ran in its place"


def test_unknown_backend_lists_the_known_ones(traced):
    with (
        use_backend("warp"),
        pytest.raises(OpError, match=r"got 'warp': 'warp' is none of \['never', 'half', 'small', 'reference'\]"),
    ):
        which(traced, 3)


@pytest.mark.parametrize("name", calls.VALID)
def test_every_op_refuses_an_unknown_backend(name):
    with use_backend("warp"):
        with pytest.raises(OpError, match=rf"{name}: backend: .*got 'warp': 'warp' is none of \[.*'reference'\]"):
            calls.invoke(name, calls.VALID[name]())


def test_several_backends_are_tried_in_their_order(traced):
    with use_backend("never,reference,small"):
        assert which(traced, 3) == "reference"
    with use_backend("half,small"):
        assert which(traced, 3) == "small"
        with pytest.raises(OpError, match=r"got 'half,small': 'half' cannot run .*float16 only; 'small' cannot run"):
            which(traced, 12)


def test_a_backend_may_leave_some_calls_to_those_behind_it():
    """One that can run a call where another measured faster: chosen by itself elsewhere, and by name everywhere."""
    small = Backend("small", lambda spec: (True, ""), lambda x: None, lambda spec: "slow" if spec.get("n") == 8 else "")
    op = Op(
        "test_reluctant(Tensor x)",
        check=lambda x: Spec(x.device.type, x.dtype, (("n", len(x)),)),
        reference=lambda x: None,
        backends=(small,),
    )
    specs = [Spec("cpu", torch.float32, (("n", n),)) for n in (3, 8)]
    assert [op.choose(spec, None).name for spec in specs] == ["small", "reference"]
    assert [op.choose(spec, "small").name for spec in specs] == ["small"] * 2
    assert op.report(specs[1])[0] == ("small", False, "runs only when it is asked for by name: slow")
    assert op.report(specs[1], "small")[0] == ("small", True, "")


def test_a_backend_that_is_not_automatic_runs_only_by_name():
    ran: list[str] = []
    shy = Backend("shy", lambda spec: (True, ""), lambda x: ran.append("shy"), "shy")
    op = Op(
        "test_shy(Tensor x)",
        check=lambda x: Spec(x.device.type, x.dtype),
        reference=lambda x: ran.append("reference"),
        backends=(shy,),
    )
    op(torch.zeros(1))
    with use_backend("shy"):
        op(torch.zeros(1))
    assert ran == ["reference", "shy"]


def test_nesting(traced):
    assert forced_backend() is None
    with use_backend("reference"):
        with use_backend("small"):
            assert which(traced, 3) == "small"
            with use_backend(None):
                assert which(traced, 3, torch.float16) == "half", "None: free choice again"
            assert forced_backend() == "small"
        assert which(traced, 3) == "reference"
    assert forced_backend() is None


def test_an_exception_restores_the_choice():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert forced_backend() is None


def test_the_variable(traced, monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    assert which(traced, 3) == "reference", "read at the call, also after an earlier choice for the same shape"
    with use_backend("small"):
        assert which(traced, 3) == "small", "code goes before the environment"
    monkeypatch.setenv(VARIABLE, "never")
    with pytest.raises(OpError, match="not on this planet"):
        which(traced, 3)
    monkeypatch.setenv(VARIABLE, "")
    assert which(traced, 3) == "small"


def test_a_choice_holds_for_its_own_thread():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(forced_backend()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_the_choice_is_made_once_per_shape():
    checked: list[int] = []

    def check(x, *, n):
        checked.append(n)
        return Spec(x.device.type, x.dtype)

    op = Op("test_counted(Tensor x, *, int n)", check=check, reference=lambda x, n: None)
    for _ in range(3):
        op(torch.zeros(7), n=1)
    assert checked == [1]
    op(torch.zeros(7), n=2)
    op(torch.zeros(7, dtype=torch.float64), n=2)
    op(torch.zeros(7, 2)[:, 0], n=2)
    op(torch.zeros(8), n=2)
    assert checked == [1, 2, 2, 2, 2], "value, dtype, stride and size each count"
    op.forget()
    op(torch.zeros(7), n=1)
    assert checked == [1, 2, 2, 2, 2, 1]


def test_decisions_are_bounded(monkeypatch):
    monkeypatch.setattr(dispatch, "MOST_DECISIONS", 5)
    op = Op("test_bounded(Tensor x)", check=lambda x: Spec("cpu", x.dtype), reference=lambda x: None)
    for n in range(12):
        op(torch.zeros(n))
    assert len(op.decided) <= 5


def test_report_gives_every_backend_and_reason(traced):
    op, _ = traced
    assert op.report(Spec("cpu", torch.float32, (("numel", 50),))) == [
        ("never", False, "not on this planet"),
        ("half", False, "float16 only"),
        ("small", False, "too large"),
        ("reference", True, ""),
    ]


def spec_of(name: str, **changes) -> Spec:
    spec = Spec("cpu", torch.float32, (("lanes", 1),))
    return Spec(**{"device": spec.device, "dtype": spec.dtype, "dims": spec.dims} | changes)


@pytest.mark.parametrize("op", ops.ALL, ids=lambda op: op.name)
def test_the_reference_is_last_and_supports_everything(op):
    for spec in (
        spec_of(op.name),
        spec_of(op.name, device="cuda", dtype=torch.float64),
        spec_of(op.name, device="mps"),
    ):
        assert op.report(spec)[-1] == ("reference", True, "")
        assert op.choose(spec, None).name in [b.name for b in op.backends]


def test_reasons_of_the_real_backends(monkeypatch):
    def reasons(op: Op, spec: Spec) -> dict[str, tuple[bool, str]]:
        return {name: (ok, reason) for name, ok, reason in op.report(spec)}

    attention = reasons(ops.sink_ring_attention, spec_of("", device="cuda"))
    assert not attention["sdpa"][0] and "accelerator" in attention["sdpa"][1]

    monkeypatch.setattr(native, "module", lambda *name: (object(), ""))
    assert reasons(ops.qk_norm_rope_cache, spec_of(""))["cpp"] == (True, "")
    cuda = reasons(ops.qk_norm_rope_cache, spec_of("", device="cuda"))["cpp"]
    assert cuda == (False, "CPU tensors only, got cuda")
    double = reasons(ops.qk_norm_rope_cache, spec_of("", dtype=torch.float64))["cpp"]
    assert double == (False, "dtype torch.float64 is not compiled in")

    monkeypatch.setattr(native, "module", lambda *name: (None, "rest_fast._cpu is not available: gone"))
    missing = reasons(ops.qk_norm_rope_cache, spec_of(""))["cpp"]
    assert missing == (False, "rest_fast._cpu is not available: gone")


def test_without_the_compiled_module_the_reference_runs(monkeypatch):
    """As in the pure-Python wheel; the choices made here are forgotten afterwards."""
    op, call = ops.qk_norm_rope_cache, calls.qk_norm_rope_cache()
    monkeypatch.setattr(native, "module", lambda *name: (None, "rest_fast._cpu is not available: gone"))
    op.forget()
    try:
        calls.invoke(op.name, call)
        assert not call["q_out"].isnan().any()
        with use_backend("cpp"), pytest.raises(OpError, match=r"'cpp' cannot run.*lanes=2.*not available: gone"):
            calls.invoke(op.name, call)
    finally:
        op.forget()


def test_a_spec_reads_well():
    spec = Spec("cuda", torch.bfloat16, (("lanes", 2), ("width", 192)))
    assert str(spec) == "cuda bfloat16 [lanes=2, width=192]"


def test_ranges_are_not_read_on_an_accelerator():
    """Meta tensors stand for one: the values cannot be read, and nothing tries to."""
    read, ran = [], []
    op = Op(
        "test_ranged(Tensor index)",
        check=lambda index: Spec(index.device.type, index.dtype),
        ranges=lambda index: read.append(dispatch.expect_range("test_ranged", "index", index, 0, 3)),
        reference=lambda index: ran.append(index.device.type),
    )
    op(torch.zeros(2, dtype=torch.int32, device="meta"))
    assert (read, ran) == ([], ["meta"])
    op(torch.zeros(2, dtype=torch.int32))
    assert (len(read), ran) == (1, ["meta", "cpu"])
    with pytest.raises(OpError, match=r"test_ranged: argument index: expected entries in 0..3, got 0..4"):
        op(torch.tensor([0, 4], dtype=torch.int32))
    assert ran == ["meta", "cpu"]


def test_a_triton_that_cannot_be_imported_is_a_reason(monkeypatch):
    def broken(op):
        raise ImportError("libtriton.so: undefined symbol")

    monkeypatch.setattr(triton_kernels, "kernel", broken)
    monkeypatch.setattr(triton_kernels, "unfit", lambda spec: "")
    for op in ops.ALL:
        entries = {name: (ok, reason) for name, ok, reason in op.report(spec_of(op.name))}
        if "triton" in entries:
            assert entries["triton"] == (False, "its kernel cannot be imported: libtriton.so: undefined symbol")


def test_varying_arguments_make_no_new_decision():
    checked, seen = [], []
    op = Op(
        "test_varying(Tensor x, *, int[] lengths)",
        check=lambda x, *, lengths: checked.append(1) or Spec(x.device.type, x.dtype),
        reference=lambda x, *, lengths: None,
        host=lambda x, *, lengths: seen.append(lengths),
        varying=("lengths",),
    )
    for n in range(3):
        op(torch.zeros(2), lengths=[n])
    assert (len(checked), seen) == (1, [[0], [1], [2]])


# -- what a graph may hold


def test_backends_that_read_the_host_are_refused_while_a_graph_is_captured():
    """By name, with the reason, before anything runs."""
    held = {op.name: {b.name for b in op.backends if b.uncaptured} for op in ops.ALL}
    assert {name: names for name, names in held.items() if names} == {
        "sink_ring_attention": {"sdpa", "sdpa_gathered", "cudnn"},
        "qk_norm_rope_cache": {"reference"},
        "rotate_context": {"reference"},
    }
    for op in ops.ALL:
        for backend in held[op.name]:
            call = getattr(calls, op.name)()
            before = {name: call[name].clone() for name in calls.written(op.name) if call[name] is not None}
            with capturing(), use_backend(backend), pytest.raises(OpError, match=f"{backend}.*cannot be captured: "):
                calls.invoke(op.name, call)
            for name, old in before.items():
                assert_same_bits(call[name], old, name)
            if backend != "cudnn":  # which takes a GPU
                with use_backend(backend):
                    calls.invoke(op.name, call)  # and otherwise it runs


def test_what_a_capture_takes_is_another_backend():
    call = calls.sink_ring_attention()
    with capturing(), use_backend("sdpa,reference"):
        calls.invoke("sink_ring_attention", call)
    want = calls.sink_ring_attention()
    with use_backend("reference"):
        calls.invoke("sink_ring_attention", want)
    assert_same_bits(call["out"], want["out"], "out")


# -- what the order of a table rests on

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


@pytest.mark.parametrize("op", ops.ALL, ids=lambda op: op.name)
def test_an_order_is_measured_or_called_an_estimate(op):
    """Every file that is cited holds this op by this backend, and shows it ahead of what stands behind it."""
    names = [b.name for b in op.backends]
    assert list(op.evidence()) == names[:-1]
    for name, file in op.evidence().items():
        if file == "estimate":
            continue
        stored = [b["extra_info"] for b in json.loads((RESULTS / file).read_text())["benchmarks"]]
        rows = [info["variants"] for info in stored if info["op"] == op.name and info.get("backend", name) == name]
        behind = {n for row in rows for n in row} & set(names[names.index(name) + 1 :])
        assert rows and behind, f"{file} compares {name} with none of the backends behind it"
        for row in rows:
            slower = [row[n]["median_us"] > row["op"]["median_us"] for n in behind & row.keys()]
            assert all(slower), f"{file}: {row}"
