"""``frame_audio_update`` in C++: sizes of both presets, every width of vectors, extreme scores, error codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops.dispatch import OpError
from rest_fast.ops.frame_audio_update import MAX_RANK
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.frame_audio_update import SHAPES

NAME = "frame_audio_update"
pytestmark = cpp.MISSING
FLOATS = ("x", "q", "keys", "base", "update", "null")
SIZES = SHAPES | {
    "demo": {"frames": 3, "tokens": 16, "audio": 4, "heads": 3, "dim": 64},
    "two_tokens": {"frames": 1, "tokens": 20, "audio": 2, "heads": 8, "dim": 64},
    "tails": {"frames": 2, "tokens": 19, "audio": 6, "heads": 5, "dim": 13},
    "rank_and_head": {"frames": 1, "tokens": 17, "audio": 17, "heads": 2, "dim": 150},
}


def references(call: calls.Call) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in the dtype of the call, and in float64."""
    exact = cpp.widened(call, *FLOATS)
    return cpp.run(NAME, call, "reference")["x"], cpp.run(NAME, exact, "reference")["x"]


def check(call: calls.Call) -> torch.Tensor:
    """Returns x, which is as exact as the reference."""
    got, (eager, exact) = cpp.run(NAME, call)["x"], references(call)
    # The reference has the same fp32 sums in another order: where luck makes it exact, a sum of 128 roundings is left.
    twice_eager(got, eager, exact, tiny=32 * cpp.UNIT * float(exact.abs().max()))
    return got


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_fp32_is_as_exact_as_the_reference(shape):
    call = calls.frame_audio_update(**shape)
    got = check(call)
    _, _, others, heads, dim = call["keys"].shape
    # Scores are sums of D products: D + 12 roundings relative to the sum of their sizes. Shares are off by twice that
    # (score and sum), relatively; each takes a part of at most the largest update vector, and a head's add up to one.
    heard = call["slot"].clamp(min=0).long()
    q = (call["q"].double() * (call["q"].double().square().mean(-1, keepdim=True) + call["eps"]).rsqrt()).abs()
    keys, update = (torch.nan_to_num(call[n][heard].double()).abs() for n in ("keys", "update"))
    q = q.view(len(heard), keys.shape[1], -1, heads, dim)
    size = float(torch.einsum("bfthd,bfahd->bftah", q, keys).max())
    atol = 2 * (dim + 12) * cpp.UNIT * size * heads * float(update.max()) + (others * heads + 4) * cpp.UNIT * float(
        got.abs().max()
    )
    assert_close(got, references(call)[1], atol=atol, reason="D + 12 fp32 roundings of a score, then a sum of the rank")


@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_low_precision_is_at_most_twice_eager(shape, dtype):
    call = calls.frame_audio_update(**shape, dtype=dtype)
    reason = "fp32 inside, one rounding at the end"
    assert_close(check(call), references(call)[1], rtol=1.01 * cpp.LOW[dtype], atol=4e-4, reason=reason)


@pytest.mark.parametrize("dtype", [torch.float32, *cpp.LOW], ids=str)
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_every_width_of_vectors(shape, width, dtype):
    call = calls.frame_audio_update(**shape, dtype=dtype)
    before, (eager, exact) = call["x"].clone(), references(call)
    answer = cpp.direct(NAME, call, {"vector_width": width})
    if answer != "ok":
        assert "no vectors of that width on this machine" in answer
        assert_same_bits(call["x"], before, "x")
        pytest.skip(answer)
    twice_eager(call["x"], eager, exact, tiny=32 * cpp.UNIT * float(exact.abs().max()))


@st.composite
def problems(draw):
    slots, lanes = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    hearing = draw(st.integers(1, lanes))
    return calls.frame_audio_update(
        frames=draw(st.integers(1, 4)),
        tokens=draw(st.integers(1, 40)),
        audio=draw(st.integers(2, 9)),
        heads=draw(st.integers(1, 4)),
        dim=draw(st.integers(1, 40)),
        lanes=lanes,
        slots=slots,
        slot=tuple(draw(st.lists(st.integers(-1, slots - 1), min_size=hearing, max_size=hearing))),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_any_shape(call):
    check(call)


@pytest.mark.parametrize("dtype", [torch.float32, *cpp.LOW], ids=str)
def test_large_scores_choose_one_token(dtype):
    """Scores of 1e5: every share but the largest is zero, and the first token's score is zero."""
    call = calls.frame_audio_update(frames=1, tokens=20, audio=4, heads=1, dim=16, slot=(0,), slots=1, dtype=dtype)
    call["x"].zero_(), call["base"].zero_()
    sign = torch.tensor([1.0, -1.0, 0.5])[:, None]
    call["q"][:] = call["q"][:, :1, :].abs()
    call["keys"][0, 0, :, 0] = (3e4 * sign * call["q"][0, 0].sign().float()).to(dtype)
    got = cpp.run(NAME, call)["x"]
    assert_same_bits(got[0], call["update"][0, 0, 0].expand(20, -1), "the token of the largest score")
    call["keys"].neg_()
    call["keys"][0, 0, 1].neg_()
    assert not cpp.run(NAME, call)["x"][0].any(), "all scores below zero: the first token alone"


@pytest.mark.parametrize("dtype, size", [(torch.bfloat16, 1e15), (torch.float16, 3e4), (torch.float32, 1e15)], ids=str)
def test_large_queries(dtype, size):
    call = calls.frame_audio_update(**SIZES["demo"], dtype=dtype)
    call["q"] = (call["q"].clamp(-1, 1).float() * size).to(dtype)
    check(call)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["x", "q", "keys", "base", "update", "null"])
def test_a_bad_number_stays_in_its_frame_and_lane(name, value):
    """As the reference has it: a row for a query, a channel for what is added, a frame for its constants."""
    call = calls.frame_audio_update(**SIZES["demo"])
    clean = cpp.run(NAME, call)["x"]
    one = (2, 1, 2, 1)  # slot 2, frame 1, an audio token, a head
    where = {"null": (70,), "keys": (*one, 6), "update": (*one, 70), "base": (*one[:2], 70)}
    call[name][where.get(name, (0, 20, 70))] = value
    got, want = cpp.run(NAME, call)["x"], cpp.run(NAME, call, "reference")["x"]
    assert torch.equal(got.isnan(), want.isnan()) and not want.isfinite().all()
    lane, rows, columns = (0, slice(16, 32), slice(None)) if name != "null" else (slice(1, 3), slice(None), 70)
    touched = torch.zeros_like(got, dtype=torch.bool)
    touched[lane, rows, columns] = True
    assert_same_bits(got[~touched], clean[~touched], "the others")


def test_threads_and_lanes_apart():
    call = calls.frame_audio_update(frames=3, tokens=70, audio=4, heads=3, dim=64, slot=(2, 0))
    one, three = cpp.by_threads(NAME, call)
    assert_same_bits(three["x"], one["x"], "x")
    alone = call | {"x": call["x"][1:2], "q": call["q"][1:2], "slot": call["slot"][1:2]}
    assert_same_bits(cpp.run(NAME, alone)["x"][0], one["x"][1], "lane 1")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"dtype": -1}, "dtype is not one of"),
        ({"others": MAX_RANK}, "bad shape"),
        ({"hearing": 4}, "bad shape"),
        *(({name: -1}, "bad shape") for name in ("batch", "tokens", "hearing", "slots", "others", "heads", "head_dim")),
        *(({name: 0}, "bad shape") for name in ("others", "heads", "head_dim", "width")),
        ({"frames": 0}, "the latent frames do not divide the tokens"),
        ({"frames": 5}, "the latent frames do not divide the tokens"),
        ({"slots": 2}, "slot is outside -1 .. slots - 1"),
        ({"vector_width": 5}, "no vectors of that width"),
        *(({name: 0}, "address of a required tensor is null") for name in (*FLOATS, "slot")),
    ],
    ids=str,
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.frame_audio_update()
    before = call["x"].clone()
    assert text in cpp.direct(NAME, call, changes)
    assert_same_bits(call["x"], before, "x")
    assert cpp.direct(NAME, call, {}) == "ok"
    assert not torch.equal(call["x"], before)


@pytest.mark.parametrize("slot", [-2, 3])
def test_a_slot_that_is_none_is_refused(slot):
    call = calls.frame_audio_update(slot=(0, slot), slots=3)
    before = call["x"].clone()
    assert "slot is outside -1 .. slots - 1" in cpp.direct(NAME, call, {})
    assert_same_bits(call["x"], before, "x")


def test_nothing_to_do():
    assert cpp.run(NAME, calls.frame_audio_update(tokens=0))["x"].numel() == 0


def test_it_is_the_default_where_it_is_compiled():
    cases = [({}, "cpp"), ({"dtype": torch.float64}, "reference"), ({"audio": 2 + MAX_RANK // 2}, "reference")]
    for shape, name in cases:
        args, kwargs = calls.split(NAME, calls.frame_audio_update(**shape))
        table = ops.frame_audio_update
        assert table.choose(table.check(*args, **kwargs), None).name == name
    with pytest.raises(OpError, match=f"'cpp' cannot run .*rank 514 .* is over {MAX_RANK}"):
        cpp.run(NAME, calls.frame_audio_update(audio=2 + MAX_RANK // 2))
