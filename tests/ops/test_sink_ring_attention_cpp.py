"""``sink_ring_attention`` in C++ against float64 and stock attention: odd sizes, large scores, error codes."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops import native
from rest_fast.ops.dispatch import OpError, Spec
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.sink_ring_attention import BROKEN, assert_same_kind, spoilt

NAME = "sink_ring_attention"
pytestmark = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")

U = 2.0**-24
# Half a unit in the last place, relative to the smallest number with that exponent: 8 and 11 significant bits.
LOW = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
BY_LANE = ("q", "out", "lse", "row_index", "bank_index", "n_valid")
# Around the blocks of 96 queries and 64 keys, and the vectors of 4, 8 and 16 channels.
SIZES = {
    "demo": {"rows": (0, 1), "banks": (0, 0), "n_valid": (112, 112), "tokens": 48, "dim": 64, "cache": (2, 1, 112)},
    "first_chunk": {
        "rows": (1, 0),
        "banks": (1, 0),
        "n_valid": (64, 64),
        "tokens": 48,
        "dim": 64,
        "cache": (2, 2, 112),
    },
    "63_queries": {"n_valid": (65, 130, 1), "tokens": 63, "dim": 64, "cache": (4, 2, 131)},
    "257_queries": {"rows": (3,), "banks": (1,), "n_valid": (191,), "tokens": 257, "dim": 64, "cache": (4, 2, 200)},
    "one_query": {"n_valid": (63, 64, 129), "tokens": 1, "dim": 64, "cache": (4, 2, 130)},
    "one_key": {"n_valid": (1, 1, 1), "tokens": 97, "dim": 32, "cache": (4, 2, 1)},
    "row_twice": {"rows": (2, 2), "banks": (1, 1), "n_valid": (70, 33), "tokens": 96, "dim": 40, "cache": (3, 2, 70)},
    "narrow": {"n_valid": (66, 5, 3), "tokens": 17, "heads": 5, "dim": 2, "cache": (4, 2, 67)},
    "odd_head": {"n_valid": (4, 7, 1), "tokens": 7, "heads": 1, "dim": 13},
    "widest_head": {
        "rows": (1,),
        "banks": (0,),
        "n_valid": (77,),
        "tokens": 50,
        "heads": 2,
        "dim": 256,
        "cache": (2, 1, 80),
    },
}


def run(call: calls.Call, backend: str = "cpp") -> calls.Call:
    copy = call | {n: torch.full_like(call[n], torch.nan) for n in calls.written(NAME) if call.get(n) is not None}
    with ops.use_backend(backend):
        calls.invoke(NAME, copy)
    return copy


def exact(call: calls.Call) -> calls.Call:
    """The reference on the same numbers in float64."""
    return run(call | {name: call[name].double() for name in ("q", "k_cache", "v_cache", "out")}, "reference")


def stock(call: calls.Call) -> torch.Tensor:
    """PyTorch's attention at the precision of the call, lane by lane."""
    lanes = []
    for lane, n in enumerate(call["host_n_valid"]):
        where = int(call["row_index"][lane]), int(call["bank_index"][lane])
        k, v = (call[name][where][:n].transpose(0, 1) for name in ("k_cache", "v_cache"))
        lanes.append(F.scaled_dot_product_attention(call["q"][lane].transpose(0, 1), k, v, scale=call["scale"]))
    return torch.stack(lanes).transpose(1, 2)


def bound(call: calls.Call) -> tuple[float, float]:
    """(out, lse): the most that fp32 can lose, every rounding at its worst and in the same direction.

    A score is a sum of D products below A in all: D U A. The exponent takes three more roundings of at most 2 A, a
    weight two units, a sum n; each block of 64 keys rescales the sums by one more weight. The result is a quotient
    of two such sums, times the largest value.
    """
    dim, n = call["q"].shape[-1], max(call["host_n_valid"])
    size = call["q"].double().abs().amax((1, 2)) @ torch.ones(dim, dtype=torch.float64)
    keys = call["k_cache"].double().nan_to_num(0).abs().max()
    score = float(abs(call["scale"]) * size.max() * keys)
    weight = (dim + 8) * score * U + 2 * U
    blocks = -(-n // 64)
    total = weight + n * U + blocks * (6 * score + 3) * U
    values = float(call["v_cache"].double().nan_to_num(0).abs().max())
    return values * (2 * total + 3 * U), total + (dim + 2) * score * U + 12 * U


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_fp32(shape):
    call = calls.sink_ring_attention(**shape)
    got, want, (out, lse) = run(call), exact(call), bound(call)
    assert_close(got["out"], want["out"], atol=out, reason="all roundings at their worst")
    assert_close(got["lse"], want["lse"], atol=lse, reason="all roundings at their worst")
    twice_eager(got["out"], stock(call), want["out"], tiny=4 * U)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_low_precision_is_at_most_twice_eager(shape, dtype):
    call = calls.sink_ring_attention(**shape, dtype=dtype)
    got, want, (out, lse) = run(call), exact(call), bound(call)
    twice_eager(got["out"], stock(call), want["out"], tiny=1e-6)
    # It rounds once: nothing is off by more than half a unit and what fp32 lost before it.
    assert_close(got["out"], want["out"], rtol=LOW[dtype], atol=out + 2.0**-25, reason="fp32 inside, one rounding")
    assert_close(got["lse"], want["lse"], atol=lse, reason="fp32 inside, fp32 out")


def direct(call: calls.Call, **changes: int) -> int:
    """The compiled function past all Python checks; an error code."""
    rows, banks, slots, heads, dim = call["k_cache"].shape
    arguments = {name: call[name].data_ptr() for name in ("q", "k_cache", "v_cache", "out", "lse")}
    arguments |= {name: call[name].data_ptr() for name in ("row_index", "bank_index", "n_valid")}
    arguments |= {"batch": len(call["q"]), "tokens": call["q"].shape[1], "heads": heads, "head_dim": dim}
    arguments |= {"rows": rows, "banks": banks, "slots": slots}
    arguments |= {"row_stride": call["k_cache"].stride(0), "bank_stride": call["k_cache"].stride(1)}
    arguments |= {"vector_width": 0, "scale": call["scale"], "dtype": native.DTYPES[call["q"].dtype]}
    assert changes.keys() <= arguments.keys()
    return native.module()[0].sink_ring_attention(*(arguments | changes).values())


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("shape", ["63_queries", "odd_head", "row_twice"])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_every_vector_width(width, shape, dtype):
    """The versions for a plain CPU, AVX2 and AVX-512, each with its own register tile."""
    call = calls.sink_ring_attention(**SIZES[shape], dtype=dtype)
    want, (out, lse) = exact(call), bound(call)
    code = direct(call, vector_width=width)
    if code and width > 4:
        pytest.skip(native.module()[0].error_string(code))
    assert code == 0
    assert_close(call["out"], want["out"], rtol=LOW.get(dtype, 0), atol=out + 2.0**-25, reason="as above")
    assert_close(call["lse"], want["lse"], atol=lse, reason="as above")


@st.composite
def problems(draw):
    lanes, slots = draw(st.integers(1, 3)), draw(st.integers(1, 140))
    rows, banks = draw(st.integers(1, 3)), draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=lanes, max_size=lanes)))

    return calls.sink_ring_attention(
        each(0, rows - 1),
        each(0, banks - 1),
        each(1, slots),
        tokens=draw(st.integers(1, 110)),
        heads=draw(st.integers(1, 3)),
        dim=draw(st.integers(1, 40)),
        cache=(rows, banks, slots),
        lse=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_any_shape(call):
    """Slots that no lane may read hold NaN, whatever the lengths."""
    got, want, (out, lse) = run(call), exact(call), bound(call)
    assert_close(got["out"], want["out"], atol=out, reason="all roundings at their worst")
    if "lse" in call:
        assert_close(got["lse"], want["lse"], atol=lse, reason="all roundings at their worst")


def test_large_scores():
    """Products of small integers are exact up to 2^24, so scores of +-10^4 cost no more than scores of 10."""
    call = calls.sink_ring_attention(**SIZES["63_queries"])
    g = torch.Generator().manual_seed(1)
    for name in ("q", "k_cache"):
        call[name] = torch.randint(-12, 13, call[name].shape, generator=g).float()
    call["k_cache"][0, 0, 3] = 12 * call["q"][1, 0].sign()  # the row of lane 1: one score near 5000
    call |= {"k_cache": call["k_cache"], "scale": 2.0, "v_cache": call["v_cache"].nan_to_num(7)}
    got, want = run(call), exact(call)
    assert float(want["lse"].max()) > 1e4
    # A weight that counts has an exponent of at most 90 after two roundings: 180 units, in a sum of 130.
    values = float(call["v_cache"].abs().max())
    assert_close(got["out"], want["out"], atol=2 * (180 + 130 + 5) * U * values, reason="exact scores")
    assert_close(got["lse"], want["lse"], rtol=2 * U, atol=(180 + 130 + 5) * U, reason="exact scores")


def exponentials(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """e^-x / (1 + e^-x) of each x in [Nq], as the second of two weights."""
    call = calls.sink_ring_attention((0,), (0,), (2,), tokens=len(x), heads=1, dim=1, cache=(1, 1, 2), dtype=dtype)
    call["q"][0, :, 0, 0], call["scale"] = x, 1.0
    call["k_cache"].flatten()[:], call["v_cache"].flatten()[:] = torch.tensor([0.0, -1.0]), torch.tensor([0.0, 1.0])
    return (run(call) if dtype == torch.float32 else exact(call))["out"].flatten()


def test_every_exponential():
    """Relative, over all weights that fp32 can tell from 0; smaller ones are 0."""
    x = torch.linspace(0, 87, 5000)
    got, want = exponentials(x).double(), torch.special.expit(-x.double())
    # Two roundings of the exponent, 1.4 units of the power, and three in the sum, its reciprocal and the product.
    error = ((got - want).abs() / want) / U
    excess = error - (2 * x.double() + 5)
    assert float(excess.max()) <= 0, f"{float(error[excess.argmax()]):.1f} units at {float(x[excess.argmax()]):.3f}"
    vanishing = exponentials(torch.linspace(87, 89, 100))
    assert vanishing.isfinite().all() and float(vanishing.max()) < 2.0**-124
    assert exponentials(torch.tensor([88.0, 1e3, 1e10, 3e38])).tolist() == [0.0] * 4


@pytest.mark.parametrize("scale", [-0.7, 0.0, 1e-30])
def test_any_scale(scale):
    call = calls.sink_ring_attention(**SIZES["63_queries"]) | {"scale": scale}
    got, want, (out, lse) = run(call), exact(call), bound(call)
    assert_close(got["out"], want["out"], atol=out, reason="all roundings at their worst")
    assert_close(got["lse"], want["lse"], atol=lse, reason="all roundings at their worst")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["q", "k_cache", "v_cache"])
def test_what_is_not_finite_shows_where_it_does_in_the_reference(name, bad):
    call = calls.sink_ring_attention(tokens=20, n_valid=(4, 7, 1), dim=8)
    call[name][(1, 3) if name == "q" else (0, 0, 5)] = bad  # one query of lane 1, one slot of the row of lane 1
    got, want = run(call), run(call, "reference")
    for output in ("out", "lse"):
        finite = want[output].isfinite()
        assert torch.equal(got[output].isfinite(), finite)
        assert_close(got[output][finite], want[output][finite], atol=5e-6, reason="few fp32 roundings")
    assert want["out"].isfinite().any(), "other queries or lanes are untouched"


@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_finite_at_every_vector_width(name, width):
    call = spoilt(name)
    want = run(call, "reference")
    code = direct(call, vector_width=width)
    if code and width > 4:
        pytest.skip(native.module()[0].error_string(code))
    for output in ("out", "lse"):
        assert_same_kind(call[output], want[output], output)


def test_results_do_not_depend_on_the_number_of_threads():
    call = calls.sink_ring_attention((0, 1, 0), (0,) * 3, (130, 7, 64), tokens=300, dim=64, cache=(2, 1, 130))
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run(call))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name in ("out", "lse"):
            assert_same_bits(other[name], results[0][name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_query_does_not_depend_on_its_neighbours(dtype):
    """Nor on its lane, its place in a block of queries, or the length of the other lanes."""
    call = calls.sink_ring_attention(
        (2, 0, 3), (1, 0, 1), (70, 131, 2), tokens=150, dim=24, cache=(4, 2, 131), dtype=dtype
    )
    together = run(call)
    for lane, n in enumerate(call["host_n_valid"]):
        for first, last in ((0, 150), (0, 5), (77, 140)):
            alone = {name: call[name][lane : lane + 1] for name in BY_LANE} | {"host_n_valid": [n]}
            alone |= {name: alone[name][:, first:last].contiguous() for name in ("q", "out")}
            alone |= {"lse": alone["lse"][:, :, first:last].contiguous()}
            got = run(call | alone)
            assert_same_bits(got["out"][0], together["out"][lane, first:last], f"out of lane {lane}")
            assert_same_bits(got["lse"][0], together["lse"][lane, :, first:last], f"lse of lane {lane}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_written_beside_the_outputs(dtype):
    call = calls.sink_ring_attention(**SIZES["63_queries"], dtype=dtype)
    want, guarded = run(call), {}
    for name in calls.written(NAME):
        guarded[name] = torch.full((call[name].numel() + 256,), 3.0, dtype=call[name].dtype)
        call[name] = guarded[name][128:-128].view(call[name].shape)
    with ops.use_backend("cpp"):
        calls.invoke(NAME, call)
    for name, buffer in guarded.items():
        assert_same_bits(call[name], want[name], name)
        assert torch.cat([buffer[:128], buffer[-128:]]).eq(3).all(), f"beside {name}"


@pytest.mark.parametrize(
    "argument, value, text",
    [
        ("row_index", 4, "row_index is outside the cache rows"),
        ("row_index", -2, "row_index is outside the cache rows"),
        ("bank_index", 2, "bank_index is outside the cache banks"),
        ("bank_index", -(2**31), "bank_index is outside the cache banks"),
        ("n_valid", 0, "n_valid is outside 1 .. slots"),
        ("n_valid", 8, "n_valid is outside 1 .. slots"),
        ("n_valid", -(2**31), "n_valid is outside 1 .. slots"),
    ],
)
def test_the_module_checks_indices_itself_before_it_writes(argument, value, text):
    """Called past the Python checks; the bad lane is the last one, and not even the first is written."""
    call = calls.sink_ring_attention()
    call[argument][-1] = value
    before = {name: call[name].clone() for name in calls.written(NAME)}
    args, kwargs = calls.split(NAME, call)
    cpp = next(b for b in ops.sink_ring_attention.backends if b.name == "cpp")
    with pytest.raises(OpError, match=f"{NAME}: {text}"):
        cpp.run(*args, **kwargs)
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"dtype": -1}, "dtype is not one of"),
        *[({name: -1}, "bad shape") for name in ("batch", "tokens", "heads", "head_dim", "rows", "banks", "slots")],
        ({"heads": 0}, "bad shape"),
        ({"head_dim": 0}, "bad shape"),
        ({"head_dim": 257}, "bad shape"),
        ({"vector_width": 5}, "no vectors of that width"),
        ({"vector_width": -1}, "no vectors of that width"),
        *[({name: 0}, "is null") for name in ("q", "k_cache", "v_cache", "out", "row_index", "bank_index", "n_valid")],
    ],
    ids=str,
)
def test_bad_sizes_are_return_codes(changes, text):
    call = calls.sink_ring_attention()
    code = direct(call, **changes)
    assert code != 0 and text in native.module()[0].error_string(code)
    assert call["out"].isnan().all()


@pytest.mark.parametrize("changes", [{"batch": 0}, {"tokens": 0}], ids=str)
def test_nothing_to_do(changes):
    call = calls.sink_ring_attention()
    assert direct(call, **changes) == 0
    assert call["out"].isnan().all()


def test_it_is_the_default_where_it_is_compiled():
    for dtype, name in ((torch.float32, "cpp"), (torch.bfloat16, "cpp"), (torch.float64, "sdpa")):
        args, kwargs = calls.split(NAME, calls.sink_ring_attention(dtype=dtype))
        spec = ops.sink_ring_attention.check(*args, **kwargs)
        assert ops.sink_ring_attention.choose(spec, None).name == name


def test_what_it_leaves_to_sdpa(monkeypatch):
    module = importlib.import_module("rest_fast.ops.sink_ring_attention")  # the package has the op under that name

    def chosen(dtype: torch.dtype, tokens: int, dim: int = 64) -> str:
        sizes = {"lanes": 2, "tokens": tokens, "heads": 32, "head_dim": dim, "slots": 1792}
        return ops.sink_ring_attention.choose(Spec("cpu", dtype, tuple(sizes.items())), None).name

    assert chosen(torch.float32, 768, dim=257) == "sdpa"
    assert chosen(torch.bfloat16, 768) == ("sdpa" if module.has_matrix_unit() else "cpp")
    monkeypatch.setattr(module, "has_matrix_unit", lambda: True)
    assert [chosen(dtype, 768) for dtype in (torch.bfloat16, torch.float16, torch.float32)] == ["sdpa", "sdpa", "cpp"]
    assert chosen(torch.bfloat16, 1) == "cpp"
