"""``frame_cross_attention`` in C++: audio and text sizes, every width of vectors, extreme scores, error codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops.dispatch import OpError
from rest_fast.ops.frame_cross_attention import MAX_HEAD_DIM
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.frame_cross_attention import SHAPES

NAME = "frame_cross_attention"
pytestmark = cpp.MISSING
FLOATS = ("q", "q_weight", "k", "v", "out")
SIZES = SHAPES | {
    "demo": {"frames": 3, "tokens": 16, "audio": 4, "heads": 3, "dim": 64},
    "text": {"frames": 1, "tokens": 48, "audio": 128, "heads": 3, "dim": 64, "shared": True},
    "tails": {"frames": 2, "tokens": 19, "audio": 37, "heads": 2, "dim": 13},
    "one_key_more_than_a_tile": {"frames": 1, "tokens": 17, "audio": 33, "heads": 1, "dim": 128, "shared": True},
}


def references(call: calls.Call) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in the dtype of the call, and in float64."""
    eager, exact = call, cpp.widened(call, *FLOATS)
    return cpp.run(NAME, eager, "reference")["out"], cpp.run(NAME, exact, "reference")["out"]


def check(call: calls.Call) -> torch.Tensor:
    """Returns out, which is as exact as the reference."""
    got, (eager, exact) = cpp.run(NAME, call)["out"], references(call)
    # The reference has the same fp32 sums in another order: where luck makes it exact, a sum of 128 roundings is left.
    twice_eager(got, eager, exact, tiny=32 * cpp.UNIT * float(call["v"].abs().max()))
    return got


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_fp32_is_as_exact_as_the_reference(shape):
    call = calls.frame_cross_attention(**shape)
    got = check(call)
    k, v = (call[name].double().expand(2, *call[name].shape[1:]) for name in "kv")
    frames, _, heads, dim = k.shape[1:]
    # Scores are sums of D products of normed numbers: D + 12 roundings relative to the sum of their sizes. Weights
    # are off by twice that (score and sum), and out by that of the largest value.
    q = (call["q"].double() * call["q"].double().square().mean(-1, keepdim=True).rsqrt() * call["q_weight"]).abs()
    sizes = torch.einsum("bfthd,bfahd->bfhta", q.view(2, frames, -1, heads, dim), k.abs()) * dim**-0.5
    atol = float(2 * (dim + 12) * cpp.UNIT * sizes.max() * v.abs().max())
    assert_close(got, references(call)[1], atol=atol, reason="D + 12 fp32 roundings of a score")


@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_low_precision_is_at_most_twice_eager(shape, dtype):
    call = calls.frame_cross_attention(**shape, dtype=dtype)
    reason = "fp32 inside, one rounding at the end"
    assert_close(check(call), references(call)[1], rtol=1.01 * cpp.LOW[dtype], atol=1e-4, reason=reason)


@pytest.mark.parametrize("dtype", [torch.float32, *cpp.LOW], ids=str)
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_every_width_of_vectors(shape, width, dtype):
    call = calls.frame_cross_attention(**shape, dtype=dtype)
    out, (eager, exact) = cpp.at_width(NAME, call, width), references(call)
    twice_eager(out, eager, exact, tiny=32 * cpp.UNIT * float(call["v"].abs().max()))


@st.composite
def problems(draw):
    return calls.frame_cross_attention(
        frames=draw(st.integers(1, 4)),
        tokens=draw(st.integers(1, 40)),
        audio=draw(st.integers(1, 70)),
        heads=draw(st.integers(1, 4)),
        dim=draw(st.integers(1, 40)),
        lanes=draw(st.integers(1, 3)),
        shared=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_any_shape(call):
    check(call)


def test_shared_keys_are_copies_for_every_lane():
    call = calls.frame_cross_attention(**SIZES["text"], lanes=3)
    copies = call | {n: call[n].expand(3, -1, -1, -1, -1).contiguous() for n in "kv"}
    for backend in ("cpp", "reference"):
        assert_same_bits(cpp.run(NAME, call, backend)["out"], cpp.run(NAME, copies, backend)["out"], backend)


@pytest.mark.parametrize("dtype", [torch.float32, *cpp.LOW], ids=str)
def test_large_scores_choose_one_key(dtype):
    """Scores of 1e5: every weight but the largest is zero, whatever tile its key is in."""
    call = calls.frame_cross_attention(frames=1, tokens=20, audio=70, heads=2, dim=16, dtype=dtype)
    call["q_weight"].fill_(3e4)
    out = cpp.run(NAME, call)["out"].double()
    q, k, v = (call[name].double() for name in "qkv")
    score = torch.einsum("bthd,bahd->btha", q.view(2, 20, 2, 16), k[:, 0])
    first, second = score.topk(2).values.unbind(-1)
    clear = first - second > 0.01 * first.abs()  # times 3e4: further apart than fp32 can lose
    best = torch.take_along_dim(v[:, 0].transpose(1, 2)[:, None], score.argmax(-1)[..., None, None], 3)[..., 0, :]
    assert clear.double().mean() > 0.8
    assert torch.equal(out.view(2, 20, 2, 16)[clear], best[clear])


@pytest.mark.parametrize("dtype, size", [(torch.bfloat16, 1e15), (torch.float16, 3e4), (torch.float32, 1e15)], ids=str)
def test_large_queries(dtype, size):
    call = calls.frame_cross_attention(**SIZES["demo"], dtype=dtype)
    call["q"] = (call["q"].clamp(-1, 1).float() * size).to(dtype)
    check(call)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_bad_number_stays_in_its_frame_and_lane(name, value):
    call = calls.frame_cross_attention(**SIZES["demo"])
    clean = cpp.run(NAME, call)["out"]
    where = (1, 20, 70) if name == "q" else (1, 1, 2, 1, 6)  # lane 1, frame 1, head 1
    call[name][where] = value
    got, want = cpp.run(NAME, call)["out"], cpp.run(NAME, call, "reference")["out"]
    assert torch.equal(got.isnan(), want.isnan()) and not want.isfinite().all()
    touched = torch.zeros_like(got, dtype=torch.bool)
    if name == "q":
        touched[1, 20] = True  # the norm spans the heads
    else:
        touched[1, 16:32, 64:128] = True
    assert_same_bits(got[~touched], clean[~touched], "the others")


def test_threads_and_lanes_apart():
    call = calls.frame_cross_attention(frames=3, tokens=70, audio=5, heads=3, dim=64)
    one, three = cpp.by_threads(NAME, call)
    assert_same_bits(three["out"], one["out"], "out")
    alone = {n: v[1:] if isinstance(v, torch.Tensor) and v.ndim > 1 else v for n, v in call.items()}
    assert_same_bits(cpp.run(NAME, alone)["out"][0], one["out"][1], "lane 1")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"dtype": -1}, "dtype is not one of"),
        ({"kv_batch": 3}, "bad shape"),
        ({"head_dim": MAX_HEAD_DIM + 1}, "bad shape"),
        *(({name: -1}, "bad shape") for name in ("batch", "tokens", "audio", "heads", "head_dim")),
        ({"audio": 0}, "bad shape"),
        ({"frames": 0}, "the latent frames do not divide the tokens"),
        ({"frames": 5}, "the latent frames do not divide the tokens"),
        ({"vector_width": 5}, "no vectors of that width"),
        *(({name: 0}, "address of a required tensor is null") for name in FLOATS),
    ],
    ids=str,
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.frame_cross_attention()
    assert text in cpp.direct(NAME, call, changes)
    assert call["out"].isnan().all()
    assert cpp.direct(NAME, call, {}) == "ok"
    assert not call["out"].isnan().any()


def test_nothing_to_do():
    for empty in ({"lanes": 0, "shared": True}, {"tokens": 0}):
        assert cpp.run(NAME, calls.frame_cross_attention(**empty))["out"].numel() == 0


def test_it_is_the_default_where_it_is_compiled():
    cases = [({}, "cpp"), ({"dtype": torch.float64}, "reference"), ({"dim": MAX_HEAD_DIM + 1}, "reference")]
    for shape, name in cases:
        args, kwargs = calls.split(NAME, calls.frame_cross_attention(**shape))
        table = ops.frame_cross_attention
        assert table.choose(table.check(*args, **kwargs), None).name == name
    with pytest.raises(OpError, match=f"'cpp' cannot run .*head_dim {MAX_HEAD_DIM + 1} is over {MAX_HEAD_DIM}"):
        cpp.run(NAME, calls.frame_cross_attention(dim=MAX_HEAD_DIM + 1))
