"""``frame_audio_update`` in Triton against the reference: padding, parts of a row, slots in any order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.kernels import frame_audio_update as package
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.frame_audio_update import SHAPES

NAME = "frame_audio_update"

# Scores are below 16 and off by a dozen units of 2^-24 of that: a share is off by 16 * 12 units, relatively, and the
# result by twice that, as no more than one update vector a head is added up.
FP32, WHY = 2 * 16 * 12 * 2.0**-24, "scores below 16 with a dozen fp32 roundings"

SIZES = SHAPES | {
    "demo": {"frames": 2, "tokens": 5, "audio": 4, "heads": 3, "dim": 64},
    "rows_left_over": {"frames": 2, "tokens": 19, "heads": 5, "dim": 24},
    "groups_of_heads": {"frames": 1, "tokens": 3, "heads": 12, "dim": 64},
}
if kit.ON_GPU:
    SIZES["rest_512"] = {"frames": 3, "tokens": 256, "audio": 2, "heads": 32, "dim": 64}
    SIZES["rest_512_four_tokens"] = {"frames": 3, "tokens": 256, "audio": 4, "heads": 32, "dim": 64}


@pytest.mark.parametrize("full", [0, 132], ids=["row_a_program", "part_of_a_row_a_program"])
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity(shape, full, monkeypatch):
    monkeypatch.setattr(package, "FULL", full)
    kit.check_parity(NAME, calls.frame_audio_update(**shape), fp32=FP32, reason=WHY)


@pytest.mark.parametrize("dtype", kit.LOW, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_low_precision_is_at_most_twice_eager(shape, dtype):
    """Tensor cores take rounded shares, as eager attention rounds its weights; this is compared with that."""
    call = calls.frame_audio_update(**shape, dtype=dtype)
    exact = kit.run(NAME, kit.widened(NAME, call), "reference")["x"]
    twice_eager(kit.run(NAME, call, "triton")["x"], rounded(call), exact, tiny=1e-6)


def rounded(call: calls.Call) -> torch.Tensor:
    """The same sums in the dtype of the call, rounded after each step, as eager PyTorch does."""
    x, slot, eps = call["x"].clone(), call["slot"].tolist(), call["eps"]
    heads, dim = call["keys"].shape[-2:]
    for lane in range(len(x)):
        if lane >= len(slot) or slot[lane] < 0:
            x[lane] += call["null"]
            continue
        keys, base, update = (call[n][slot[lane]] for n in ("keys", "base", "update"))
        q = call["q"][lane] * (call["q"][lane] ** 2).mean(-1, keepdim=True).add(eps).rsqrt()
        q = q.view(len(keys), -1, heads, dim)
        score = torch.einsum("fthd,fahd->ftah", q, keys)
        share = torch.nn.functional.pad(score, (0, 0, 1, 0)).softmax(-2)[:, :, 1:]
        x[lane] += (base[:, None] + torch.einsum("ftah,fahw->ftw", share, update)).flatten(0, 1)
    return x


@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    names, most = ("frames", "tokens", "heads", "dim", "lanes", "slots"), (3, 20, 5, 40, 3, 3)
    sizes = {name: data.draw(st.integers(1, n), label=name) for name, n in zip(names, most, strict=True)}
    hearing = data.draw(st.integers(1, sizes["lanes"]), label="hearing")
    one = st.integers(-1, sizes["slots"] - 1)
    slot = tuple(data.draw(st.lists(one, min_size=hearing, max_size=hearing), label="slot"))
    audio, seed = data.draw(st.integers(2, package.MOST), label="audio"), data.draw(st.integers(0, 99))
    call = calls.frame_audio_update(**sizes, audio=audio, slot=slot, seed=seed)
    want, got = (kit.run(NAME, call, backend)["x"] for backend in ("reference", "triton"))
    scale = max(float(torch.nan_to_num(call[name]).abs().max()) for name in ("x", "base", "update"))
    assert_close(got, want, atol=FP32 * scale * sizes["heads"], reason=WHY)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_other_frames_lanes_and_slots_are_not_heard():
    """NaN in a frame's keys and in one query reach their tokens and no others."""
    call = calls.frame_audio_update(slot=(2, 0, -1))
    want = kit.run(NAME, call, "triton")["x"]
    call["keys"][0, 1, -1, 1, 2], call["q"][0, 4, 1] = torch.nan, torch.nan
    lost = torch.zeros(want.shape[:2], dtype=torch.bool)
    lost[1, 4:8], lost[0, 4] = True, True
    got = kit.run(NAME, call, "triton")["x"]
    assert got[lost].isnan().all()
    assert_same_bits(got[~lost], want[~lost], "tokens of other frames and lanes")


def test_large_scores():
    """Scores of thousands: one token takes all, and nothing overflows."""
    call = calls.frame_audio_update(audio=4)
    call["keys"] *= 1000
    got, want = (kit.run(NAME, call, backend)["x"] for backend in ("triton", "reference"))
    # A rounding of a score of 10^4 is 10^-3: so much a share may move where two scores are near each other.
    assert_close(got, want, atol=2 * 12 * 1e4 * 2.0**-23, reason="scores of 10^4 with a dozen roundings, two heads")


def test_a_slot_out_of_range_writes_nothing():
    """Contents of device integers are not checked on a GPU: such a lane stays as it is."""
    call = kit.copied(calls.frame_audio_update(slot=(2, 3, -2)))
    before, args = call["x"].clone(), calls.split(NAME, call)
    package.launch(*args[0], **args[1])
    assert_same_bits(call["x"][1:].cpu(), before[1:].cpu(), "lanes of no slot")
    assert not torch.equal(call["x"][0], before[0])


def test_memory_around_x_and_inputs_stay():
    call = kit.copied(calls.frame_audio_update(tokens=5))
    memory = torch.full((5, *call["x"].shape[1:]), 77.0, device=kit.DEVICE)
    memory[1:4] = call["x"]
    call["x"] = memory[1:4]
    before = {name: v.clone() for name, v in call.items() if isinstance(v, torch.Tensor) and name != "x"}
    args, kwargs = calls.split(NAME, call)
    package.launch(*args, **kwargs)
    assert (memory[[0, 4]] == 77).all()
    for name, old in before.items():
        assert_same_bits(call[name].cpu(), old.cpu(), name)


def test_refusals():
    spec = kit.ops.dispatch.Spec("cpu", torch.float32, (("audio", 5), ("width", 260)))
    assert package.supports(spec) == (False, "at most 4 audio tokens, got 5")
    wide = spec._replace(dims=(("audio", 4), ("heads", 65), ("head_dim", 64)))
    assert package.supports(wide) == (False, "a padded rank of at most 256, got 128 heads x 4 tokens")
    assert package.supports(spec._replace(dims=(("audio", 2), ("head_dim", 130))))[1].startswith("head_dim of at most")
    assert package.supports(spec._replace(dims=()))[0]
    assert not package.supports(spec._replace(dims=(), dtype=torch.float64))[0]
