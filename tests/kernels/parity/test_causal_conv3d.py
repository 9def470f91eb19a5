"""Triton's ``causal_conv3d`` against the reference: all that it stores, histories, streams cut anywhere, every tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.kernels import causal_conv3d as kernels
from rest_fast.ops.dispatch import OpError, Spec
from rest_fast.ops.memory_layouts import HALOED, halo, haloed, layout
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.kit.pictures import LAYOUTS, assert_untouched_around, convolution_call, moved, placed
from tests.ops import calls

NAME = "causal_conv3d"
FP32, REASON = 4e-6, "fp32 sums of some hundred products in another order, an approximate root and exponential"
UP = (2, 2, 2)
RESULTS = ("out", "normed", "pictures", "history")


def run(call: calls.Call, **changes) -> calls.Call:
    """What Triton leaves behind, under its own plan or that plan with changes."""
    copy = {n: moved(v, kit.DEVICE) for n, v in call.items()}
    if changes:
        chosen = kernels.planned(copy["buffer"], copy["weight"], copy["factors"])
        fixed = {n: copy[n] for n in ("factors", "drop", "keep", "first", "eps")}
        operands = {n: v for n, v in copy.items() if n not in (*fixed, "buffer", "history", "weight", "reflect")}
        chosen = replace(chosen, **changes)
        kernels.launch_plan(chosen, copy["buffer"], copy["history"], copy["weight"], operands, **fixed)
    else:
        with ops.use_backend("triton"):
            calls.invoke(NAME, copy)
    for name in ("history", "normed"):
        assert_zero_border(copy[name])
    return {n: moved(v, "cpu") for n, v in copy.items()}


def assert_zero_border(x: torch.Tensor | None) -> None:
    whole = None if x is None or layout(x) != HALOED else halo(x)
    if whole is not None:
        outside = torch.ones(whole.shape[-2:], dtype=torch.bool, device=whole.device)
        outside[1:-1, 1:-1] = False
        assert not whole[..., outside].any(), "the border"


def reference(call: calls.Call, dtype: torch.dtype | None = None) -> calls.Call:
    copy = {n: moved(v, "cpu", dtype) for n, v in call.items()}
    with ops.use_backend("reference"):
        calls.invoke(NAME, copy)
    return copy


def check(call: calls.Call, got: calls.Call | None = None) -> calls.Call:
    """Triton, or what it left, against the reference; low precision by the rule of twice its error."""
    got, want = run(call) if got is None else got, reference(call)
    exact = reference(call, torch.float64)
    for name in RESULTS:
        if call[name] is None:
            continue
        mine, theirs = got[name], want[name]
        if name == "history":
            assert_same_bits(mine, theirs, "history: frames are moved, not computed")
        elif mine.dtype == torch.uint8:
            assert (mine.int() - theirs.int()).abs().max() <= 1, "pictures"
        elif mine.dtype == torch.float32:
            # of few channels the norm enlarges what is small: bound it by what SiLU is given as well
            assert_close(mine, theirs, atol=FP32 * (float(theirs.abs().max()) + 1), reason=REASON)
        else:
            twice_eager(mine, theirs, exact[name], tiny=1e-6)
    assert_same_bits(got["buffer"].nan_to_num(7), call["buffer"].nan_to_num(7), "buffer")
    return got


@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
@pytest.mark.parametrize("past", [2, 1])
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_parity(dtype, past, first):
    """All frames kept or only some, fewer frames than the kernel is long."""
    for frames, keep in ((1, 1), (1, 0), (3, 3), (3, 2)):
        check(convolution_call(16, 16, frames, past=past, first=first, keep=keep, dtype=dtype))


OFF = dict.fromkeys(("bias", "noise", "noise_scale", "residual", "scale", "shift", "out"))


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize(
    "names",
    [[], ["bias"], ["noise", "noise_scale"], ["residual"], ["scale", "shift"], ["out"], ["bias", "residual", "out"]],
    ids="-".join,
)
def test_each_part_of_the_store(names, dtype):
    """``normed`` from what the others make of it, and each of them alone."""
    call = convolution_call(32, 24, dtype=dtype) | {n: None for n in OFF if n not in names}
    check(call)
    if "out" in names:
        check(call | {"normed": None})


@pytest.mark.parametrize("dtype", kit.FIRST_DTYPE, ids=str)
@pytest.mark.parametrize("to, residual", [(16, 1), (24, 3), (6, 2)])
def test_depth_to_space(to, residual, dtype):
    """One place of the cell a tile; of few channels all of them. The residual is tiled."""
    sizes = {"factors": UP, "residual": residual, "dtype": dtype}
    check(convolution_call(16, to, 1, (3, 4), **sizes))
    check(convolution_call(16, to, 2, (2, 3), lanes=1, first=True, drop=1, **sizes))


@pytest.mark.parametrize("to", [16, 5])
@pytest.mark.parametrize("factors, drop", [((2, 1, 1), 1), ((1, 2, 2), 0), ((3, 1, 2), 2), ((2, 2, 1), 2)], ids=str)
def test_other_factors(factors, drop, to):
    check(convolution_call(16, to, 2, (3, 4), lanes=1, factors=factors, drop=drop))


@pytest.mark.parametrize(
    "change", [{"splits": 3}, {"descriptors": False}, {"splits": 3, "descriptors": False}], ids=str
)
@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("dtype", kit.FIRST_DTYPE, ids=str)
def test_other_plans(dtype, factors, change):
    for call in (
        convolution_call(16, 24, 2, (2, 3), lanes=1, factors=factors, dtype=dtype),
        convolution_call(16, 24, 1, (3, 4), lanes=1, factors=factors, first=True, drop=factors[0] - 1, dtype=dtype),
    ):
        check(call, run(call, **change))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("out", [True, False])
@pytest.mark.parametrize("dtype", kit.FIRST_DTYPE, ids=str)
def test_more_channels_than_a_tile(dtype, out, splits):
    """The norm is then a kernel of its own: of ``out``, or in place."""
    call = convolution_call(16, 40, dtype=dtype)
    call |= {} if out else {"out": None}
    chosen = kernels.planned(call["buffer"], call["weight"], call["factors"])
    tile = replace(chosen.tile, columns=16)
    check(call, run(call, tile=tile, norm=splits == 3, splits=splits))


def test_wide_layers():
    """Of more channels than any tile: what is planned for them, not what a test asks for."""
    call = convolution_call(16, 272, 1, (2, 3), lanes=1)
    assert not kernels.planned(call["buffer"], call["weight"], call["factors"]).norm
    check(call)
    check(call | {"out": None})


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 1), (3, 6), (9, 8), *kit.slow((23, 24))], ids=str)
def test_sizes(size, descriptors):
    """One pixel; several tiles a frame, the last one beyond its end."""
    call = convolution_call(16, 16, 2, size, lanes=1 if size[0] > 5 else 2)
    check(call, run(call, descriptors=descriptors))


@pytest.mark.parametrize("out_layout", [LAYOUTS[0], *kit.slow(*LAYOUTS[1:])])
def test_any_layout_of_the_results(out_layout):
    """And of the residual; what lies around them stays."""
    call = convolution_call(16, 16, 2, factors=UP, drop=1, residual=2)
    want = reference(call)
    copy = {n: moved(v, kit.DEVICE) for n, v in call.items()}
    around = {n: placed(call[n].cpu(), out_layout, kit.DEVICE) for n in ("residual", "out", "normed")}
    with ops.use_backend("triton"):
        calls.invoke(NAME, copy | {n: view for n, (view, _) in around.items()})
    for name in ("out", "normed"):
        assert_close(around[name][0].cpu(), want[name], atol=FP32 * float(want[name].abs().max()), reason=REASON)
        assert_untouched_around(*around[name])


def test_in_place_residual():
    """The stream of a block: what is added to is what is written."""
    call = convolution_call(16, 16, dtype=torch.float32)
    want = reference(call)
    copy = {n: moved(v, kit.DEVICE) for n, v in call.items()}
    copy["out"].copy_(copy["residual"])
    with ops.use_backend("triton"):
        calls.invoke(NAME, copy | {"residual": copy["out"]})
    assert_close(copy["out"].cpu(), want["out"], atol=FP32 * float(want["out"].abs().max()), reason=REASON)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_pictures(dtype):
    """Sums of small whole numbers are exact: the same bytes, ties and values out of range included; NaN is 0."""
    call = convolution_call(16, 3, 2, (3, 4), factors=(1, 4, 4), dtype=dtype) | OFF | {"normed": None}
    g = torch.Generator().manual_seed(1)
    for name in ("buffer", "history", "weight"):
        call[name].copy_(torch.randint(-1, 2, call[name].shape, generator=g))
    call["weight"] /= 32
    call["bias"] = torch.arange(48).sub(24).div(32).to(dtype)
    call["bias"][5] = torch.nan
    call["pictures"] = torch.full((2, 2, 12, 16, 3), 77, dtype=torch.uint8)
    got, want = run(call)["pictures"], reference(call)["pictures"]
    assert torch.equal(got, want)
    assert (got == 0).any() and (got == 255).any() and len(got.unique()) > 20


def pieces(call: calls.Call, cut: list[int], **changes) -> dict[str, torch.Tensor]:
    """The frames of a first call, in pieces."""
    results, at, history = {"out": [], "normed": []}, 0, call["history"]
    for frames in cut:
        past, first = history.shape[2], at == 0
        whole = call["buffer"]
        buffer = haloed((*whole.shape[:2], frames + 2, *whole.shape[3:]), dtype=whole.dtype)
        buffer[:, :, past : past + frames] = whole[:, :, past + at : past + at + frames]
        drop = call["drop"] if first else 0
        piece = call | {"buffer": buffer, "history": history, "first": first, "drop": drop, "keep": frames}
        piece["residual"] = call["residual"][:, :, at : at + frames].contiguous()
        for name in results:
            b, c, _, h, w = call[name].shape
            piece[name] = calls.nans(b, c, frames * call["factors"][0] - drop, h, w, dtype=whole.dtype)
        got = run(piece, **changes)
        history, at = got["history"], at + frames
        for name, parts in results.items():
            parts.append(got[name])
    return {n: torch.cat(parts, 2) for n, parts in results.items()} | {"history": history}


@pytest.mark.parametrize(
    "factors, change",
    [((1, 1, 1), {}), ((1, 1, 1), {"splits": 3}), ((1, 1, 1), {"descriptors": False}), ((2, 1, 1), {})],
    ids=str,
)
@pytest.mark.parametrize("dtype", kit.FIRST_DTYPE, ids=str)
def test_a_stream_cut_anywhere_is_the_same_bits(dtype, factors, change):
    call = convolution_call(16, 16, 4, (2, 3), lanes=1, factors=factors, first=True, drop=factors[0] - 1, dtype=dtype)
    whole = check(call, run(call, **change))
    for cut in ([1, 1, 1, 1], [1, 3], [2, 2]):
        got = pieces(call, cut, **change)
        for name in got:
            assert_same_bits(got[name], whole[name], f"{name}, in pieces of {cut}")


def test_a_lane_is_the_same_bits_alone():
    call = convolution_call(16, 16, 2, lanes=3)
    whole = run(call)
    for lane in range(3):
        one = {n: call[n][lane : lane + 1] for n in ("noise", "residual", "out")}
        one |= {n: haloed((1, *call[n].shape[1:])).copy_(call[n][lane : lane + 1]) for n in ("buffer", "normed")}
        one["history"] = haloed((1, *call["history"].shape[1:])).copy_(call["history"][lane : lane + 1])
        got = run(call | one)
        for name in ("out", "normed", "history"):
            assert_same_bits(got[name], whole[name][lane : lane + 1], f"{name} of lane {lane}")


@settings(max_examples=60 if kit.ON_GPU else 4, deadline=None, derandomize=True)
@given(
    channels=st.sampled_from((16, 48, 80)),
    to=st.integers(4, 24),
    frames=st.integers(1, 3),
    size=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    past=st.sampled_from((1, 2)),
    first=st.booleans(),
    factors=st.sampled_from(((1, 1, 1), (2, 1, 1), (1, 2, 2))),
    data=st.data(),
)
def test_any_call(channels, to, frames, size, past, first, factors, data):
    keep, drop = data.draw(st.integers(0, frames)), data.draw(st.integers(0, factors[0] - 1))
    sizes = {"lanes": data.draw(st.integers(1, 2)), "past": past, "first": first, "keep": keep}
    call = convolution_call(channels, to, frames, size, factors=factors, drop=drop, **sizes)
    check(call | {n: None for n in data.draw(st.sampled_from(((), ("residual",), ("out", "bias"), ("normed",))))})


def test_weights_anywhere_in_memory():
    """A descriptor asks for 16 bytes; elsewhere threads fetch for themselves."""
    call = convolution_call(16, 16)
    got, weight = run(call), call["weight"]
    flat = torch.empty(weight.numel() + 1)
    call["weight"] = flat[1:].as_strided(weight.shape, weight.stride(), 1).copy_(weight)
    copy = {n: moved(v, kit.DEVICE) if n != "weight" else flat.to(kit.DEVICE) for n, v in call.items()}
    copy["weight"] = copy["weight"].as_strided(weight.shape, weight.stride(), 1)
    with ops.use_backend("triton"):
        calls.invoke(NAME, copy)
    assert_close(copy["out"].cpu(), got["out"], atol=FP32 * float(got["out"].abs().max()), reason=REASON)


def test_a_result_in_memory_that_is_read_is_refused():
    call = {n: moved(v, kit.DEVICE) for n, v in convolution_call(16, 16).items()}
    before = call["buffer"].clone()
    for name, source in (("normed", "buffer"), ("out", "buffer")):
        same = call | {name: call[source][:, :, 2:]}
        with ops.use_backend("triton"), pytest.raises(OpError, match=f"argument {name}: expected memory apart from"):
            calls.invoke(NAME, same)
    assert_same_bits(call["buffer"].nan_to_num(7), before.nan_to_num(7))


def spec(dtype: torch.dtype = torch.float16, **dims) -> Spec:
    sizes = {"batch": 1, "in": 16, "channels": 16, "frames": 1, "height": 4, "width": 4}
    return Spec(kit.DEVICE, dtype, tuple((sizes | dims).items()))


@pytest.mark.parametrize(
    "refused, reason",
    [
        (spec(torch.float64), "float32, bfloat16 and float16 only, got torch.float64"),
        (spec(reflect=1), "zeros at the border only, got reflect"),
        (spec(layout="channels_last"), "layout haloed only, got channels_last"),
        (spec(history_layout="contiguous"), "history_layout haloed only, got contiguous"),
        (spec(weight_layout="contiguous"), "weight_layout channels_last only, got contiguous"),
        (spec(**{"in": 24}), "input channels that are a multiple of 16 only, got 24"),
        (spec(height=2**14, width=2**14), "a frame of fewer than 2^31 elements only"),
        (spec(frames=2**30), "a launch of fewer than 2^31 pixels only"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_with_a_reason(refused, reason):
    ok, said = next(b for b in ops.causal_conv3d.backends if b.name == "triton").supports(refused)
    assert not ok and reason in said
    assert kernels.supports(Spec(kit.DEVICE, torch.float16)) == (True, "")


@pytest.mark.skipif(not kit.ON_GPU, reason="real shapes take a GPU")
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(
    "channels, to, frames, size, factors",
    [
        (128, 1024, 1, 16, (1, 1, 1)),
        (1024, 1024, 3, 16, (1, 1, 1)),
        (1024, 512, 1, 16, UP),
        (512, 512, 2, 32, (1, 1, 1)),
        (512, 256, 2, 32, UP),
        (256, 256, 4, 64, (1, 1, 1)),
        (256, 128, 4, 64, UP),
        (128, 128, 8, 128, (1, 1, 1)),
        (128, 3, 8, 128, (1, 4, 4)),
    ],
    ids=str,
)
def test_real_shapes(channels, to, frames, size, factors, dtype):
    residual = 1 if factors != UP else to * 8 // channels
    call = convolution_call(
        channels, to, frames, (size, size), lanes=1, factors=factors, residual=residual, dtype=dtype
    )
    check(call | ({"normed": None} if to == 3 else {}))
