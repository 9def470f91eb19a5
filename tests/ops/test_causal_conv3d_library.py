"""``causal_conv3d`` through oneDNN and the compiled pass after it: every form and layout, streams, copies, packing."""

from __future__ import annotations

import copy
import io
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from rest_fast import ops
from rest_fast.ops import library_convolution, native
from rest_fast.ops.memory_layouts import CHANNELS_LAST, CONTIGUOUS, HALOED, haloed, layout
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls, convolution
from tests.ops.cpp import LOW, MISSING

NAME = "causal_conv3d"
pytestmark = [
    pytest.mark.skipif(not library_convolution.DTYPES["cpu"], reason="oneDNN is not used on this machine"),
    MISSING,
]
BF16 = pytest.mark.skipif(torch.bfloat16 not in library_convolution.DTYPES["cpu"], reason="no bfloat16 in oneDNN here")
SUMS = "float32 sums of some hundred products, in another order"


def laid_out(call: calls.Call, kind: str) -> calls.Call:
    """The call with its volumes [B, C, T, H, W] in that layout; a halo holds zeros."""
    call = dict(call)
    for n in ("buffer", "history", "residual", "out", "normed", "weight"):
        x = call[n]
        if x is None or kind == CONTIGUOUS:
            continue
        if kind == HALOED and n in ("buffer", "normed"):
            call[n] = haloed(tuple(x.shape), dtype=x.dtype)
            call[n].copy_(x)
        else:
            call[n] = channels_last(x)
    return call


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def run(call: calls.Call, backend: str = "library") -> calls.Call:
    with ops.use_backend(backend):
        calls.invoke(NAME, call)
    return call


def cloned(call: calls.Call) -> calls.Call:
    return {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in call.items()}


@pytest.mark.parametrize("kind", [CONTIGUOUS, CHANNELS_LAST, HALOED])
@pytest.mark.parametrize("name", convolution.FORMS)
def test_every_form(name, kind):
    call = laid_out(convolution.form(name), kind)
    want, x = convolution.expected(call), convolution.piece(call).clone()
    if kind == HALOED:
        assert layout(call["buffer"]) == HALOED
    run(call)
    assert_same_bits(call["history"], want["history"].float(), "history")
    assert_same_bits(convolution.piece(call), x, "the new frames in the buffer")
    for n in ("out", "normed"):
        if call[n] is not None:
            assert_close(call[n], want[n], atol=1e-5, reason=SUMS)
    if call["pictures"] is not None:
        assert_close(call["pictures"], want["pictures"], atol=0.5 + 2e-3, reason="rounded to nearest, from float32")
    if kind == HALOED and call["normed"] is not None:
        around = ops.memory_layouts.halo(call["normed"]).clone()
        around[..., 1:-1, 1:-1] = 0
        assert not around.any(), "the halo stays zero"


@BF16
@pytest.mark.parametrize("name", ["everything", "wide", "normed alone", "norm without scale", "residual without noise"])
def test_bfloat16(name):
    call = laid_out(convolution.form(name, dtype=torch.bfloat16), CHANNELS_LAST)
    want, eager = convolution.expected(call), run(cloned(call), "reference")
    run(call)
    assert_same_bits(call["history"], want["history"].bfloat16(), "history")
    for n in ("out", "normed"):
        if call[n] is not None:
            twice_eager(call[n], eager[n], want[n])


@pytest.mark.parametrize("plan", [[9], [1] * 9, [3, 1, 5], [2, 4, 3]], ids=str)
@pytest.mark.parametrize("kind", [CHANNELS_LAST, HALOED])
def test_any_chunk_plan(plan, kind):
    """Two convolutions in a row, the second reading what the first wrote into its buffer."""
    channels, size, frames = 24, (6, 7), sum(plan)
    whole = calls.causal_conv3d(channels, channels, frames, size, factors=(1, 1, 1), drop=0, first=True, keep=frames)
    clip, weight, scale, shift = convolution.piece(whole), whole["weight"], whole["scale"], whole["shift"]
    absent = ["noise", "noise_scale", "residual", "out", "normed", "pictures"]
    whole |= {n: None for n in absent}
    first = convolution.expected(whole)["normed"]
    second = calls.causal_conv3d(channels, channels, frames, size, factors=(1, 1, 1), drop=0, first=True, keep=frames)
    second |= {n: None for n in absent} | {"scale": None, "shift": None, "bias": None}
    convolution.piece(second).copy_(first)
    want, seen = convolution.expected(second)["out"], 0
    histories = calls.nans(2, 2, channels, 2, *size)
    for new in plan:
        shape = (2, channels, new + 2, *size)
        buffers = [haloed(shape) if kind == HALOED else channels_last(calls.nans(*shape)) for _ in range(2)]
        buffers[0][:, :, 2:] = clip[:, :, seen : seen + new]
        out = channels_last(calls.nans(2, channels, new, *size))
        step = {"factors": [1, 1, 1], "drop": 0, "keep": new, "first": seen == 0, "reflect": False, "eps": 1e-6}
        step |= dict.fromkeys(absent) | {"weight": weight}
        run(
            step
            | {"buffer": buffers[0], "history": histories[0], "bias": whole["bias"], "scale": scale, "shift": shift}
            | {"normed": buffers[1][:, :, 2:]}
        )
        run(
            step
            | {"buffer": buffers[1], "history": histories[1], "bias": None, "scale": None, "shift": None, "out": out}
        )
        assert_close(out, want[:, :, seen : seen + new], atol=2e-5, reason=SUMS + ", twice")
        seen += new


def test_lanes_do_not_meet():
    """Two streams in one call equal each of them alone; NaN in one does not reach the other."""
    both = laid_out(convolution.form("everything"), CHANNELS_LAST)
    alone = [{n: v[i : i + 1].clone() if per_lane(n, v) else v for n, v in both.items()} for i in range(2)]
    convolution.piece(both)[1] = torch.nan
    run(both)
    run(alone[0])
    for n in ("out", "normed", "history"):
        assert_close(both[n][:1], alone[0][n], atol=1e-5, reason=SUMS)
        assert both[n][1].isnan().any()


def per_lane(name: str, value) -> bool:
    return name in ("buffer", "history", "noise", "residual", "out", "normed", "pictures") and value is not None


def test_the_sum_may_be_written_over_the_residual():
    call = laid_out(convolution.form("residual without noise"), CHANNELS_LAST)
    want = convolution.expected(call)
    run(call | {"out": call["residual"]})
    assert_close(call["residual"], want["out"], atol=1e-5, reason=SUMS)
    assert_close(call["normed"], want["normed"], atol=1e-5, reason=SUMS)


@pytest.mark.parametrize("kind", [CHANNELS_LAST, HALOED])
@pytest.mark.parametrize("past", [1, 2])
def test_nothing_is_copied_but_the_history(kind, past):
    """By PyTorch's own account of what ran: no loop instead of oneDNN, no concatenation, padding or clone."""
    call = laid_out(calls.causal_conv3d(16, 3, 4, (16, 16), batch=1, past=past), kind)
    run(call)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(call)
    ran = [e.name for e in profile.events() if not e.name.startswith("[memory]")]
    assert "mkldnn::_convolution_pointwise" in ran
    forbidden = ("cat", "pad", "clone", "contiguous", "slow_conv", "stack", "repeat", "_to_copy")
    assert not [n for n in ran if any(f in n.split("::")[-1] for f in forbidden)], ran
    assert ran.count("aten::copy_") == 4 - past, "in, out, and with one past frame the last one once more"
    made = sum(e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0)
    convolved = call["weight"].shape[0] * 4 * 16 * 16 * 4
    assert made < 1.5 * convolved, f"{made} bytes for a result of {convolved}"


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("name", convolution.FORMS)
def test_compiled_pass_equals_the_ops(name, dtype):
    """Each follows the same convolution; in 16 bits the composed one rounds after every step."""
    call = laid_out(convolution.form(name, dtype=dtype), CHANNELS_LAST)
    b, _, t, h, w = convolution.piece(call).shape
    y = torch.randn(b, len(call["weight"]), t, h, w, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = channels_last(y)
    operands = [call[n] for n in ("noise", "noise_scale", "residual", "scale", "shift")]
    results = {
        n: [call[n].clone() for _ in range(3)] if call[n] is not None else [None] * 3 for n in convolution.RESULTS
    }
    rest = {"factors": call["factors"], "drop": call["drop"], "eps": call["eps"]}
    threads = torch.get_num_threads()
    try:
        for i, n in ((0, 1), (1, 3)):
            torch.set_num_threads(n)
            library_convolution.follow_in_cpp(y, *operands, *(r[i] for r in results.values()), **rest)
    finally:
        torch.set_num_threads(threads)
    library_convolution.follow(y.clone(), *operands, *(r[2] for r in results.values()), **rest)
    for n, (one, three, composed) in results.items():
        if one is None:
            continue
        assert_same_bits(three, one, f"{n} by three threads")
        unit = 1e-5 if dtype == torch.float32 else 8 * LOW[dtype]
        if n == "pictures":
            assert_close(one, composed, atol=1, reason="a number may lie on the edge between two bytes")
        else:
            assert_close(one, composed, atol=unit, rtol=unit, reason="up to four roundings of numbers below 4")


def recorded(call: calls.Call) -> list:
    """What Python hands to the compiled pass."""
    with mock.patch.object(native, "call") as spy:
        run(call)
    assert spy.call_args.args[0] == "conv_epilogue"
    return list(spy.call_args.args[1:])


@pytest.mark.parametrize(
    "position, value, text",
    [
        (0, 0, "address of a required tensor is null"),
        (2, 0, "address of a required tensor is null"),
        (9, (1, -3, 3, 4, 5), "a size is negative"),
        (9, (1, 4096, 3, 4, 5), "or too wide"),
        (9, (1, 4, 3, 4, 5), "bad shape"),
        (10, 5, "bad shape"),
        (10, 0, "bad shape"),
        (11, (0, 1, 2), "a factor is below 1"),
        (12, 6, "drop leaves no frame"),
        (13, (1, 2, 1, 1, 1), "channels of a pixel do not follow one another"),
        (15, (1, 2, 1, 1, 1), "channels of a pixel do not follow one another"),
        (18, 3, "dtype is not one of"),
    ],
)
def test_the_compiled_pass_refuses(position, value, text):
    call = laid_out(calls.causal_conv3d(), CHANNELS_LAST)
    values = recorded(call)
    values[position] = value
    module = native.module()[0]
    assert text in module.error_string(module.conv_epilogue(*values))
    assert call["out"].isnan().all() and (call["pictures"] == 77).all()


class TestPacking:
    @staticmethod
    def convolved(weight: torch.Tensor, frames: int = 4, side: int = 9) -> torch.Tensor:
        size = (2, weight.shape[1], frames, side, 11)
        buffer = torch.randn(size, generator=torch.Generator().manual_seed(3)).to(weight.dtype)
        buffer = channels_last(buffer)
        return library_convolution.convolved(buffer, weight, None, reflect=False)

    @pytest.mark.parametrize("dtype", library_convolution.DTYPES["cpu"], ids=str)
    @pytest.mark.parametrize("shape", [(64, 64), (5, 3), (48, 20)], ids=str)
    def test_same_bits(self, shape, dtype):
        weight = torch.randn(*shape, 3, 3, 3).to(dtype)
        packed = self.convolved(weight)
        (order,) = weight.packed.value.values()
        assert order.is_mkldnn
        with mock.patch.object(library_convolution, "packed", lambda w, size: w):
            assert_same_bits(packed, self.convolved(weight), "packed against plain")

    def test_a_changed_weight_is_packed_anew(self):
        weight = torch.randn(8, 6, 3, 3, 3)
        before = self.convolved(weight)
        kept = weight.packed
        assert_same_bits(self.convolved(weight), before)
        assert weight.packed is kept, "once is enough"
        weight.mul_(2)
        assert_close(self.convolved(weight), 2 * before, rtol=0, reason="powers of two are exact")
        weight.data = torch.zeros_like(weight)
        assert not self.convolved(weight).any()

    def test_an_order_for_each_size(self):
        """oneDNN turns one for another size at every call, which for 128 channels takes longer than 200 pixels do."""
        weight = torch.randn(8, 6, 3, 3, 3)
        for frames, side in ((4, 9), (4, 5), (6, 9), (4, 9)):
            self.convolved(weight, frames, side)
        assert [key[1:] for key in weight.packed.value] == [(4, 9, 11, 1), (4, 5, 11, 1), (6, 9, 11, 1)]

    def test_orders_of_wide_weights_take_no_more_memory_than_one(self, monkeypatch):
        monkeypatch.setattr(library_convolution, "KEPT", 2 * 8 * 6 * 27)
        weight = torch.randn(8, 6, 3, 3, 3)
        for side in (5, 6, 7):
            self.convolved(weight, side=side)
        assert [key[2] for key in weight.packed.value] == [5, 6], "as many as there is memory for"
        wider = torch.randn(8, 20, 3, 3, 3)
        for side in (5, 6):
            self.convolved(wider, side=side)
        assert [key[2] for key in wider.packed.value] == [5], "the first in any case"

    def test_weights_that_are_not_packed(self):
        learns = torch.randn(4, 4, 3, 3, 3, requires_grad=True)
        with torch.inference_mode():
            made_here = torch.randn(4, 4, 3, 3, 3)
            for weight in (learns, made_here):
                self.convolved(weight)
                assert not hasattr(weight, "packed")
        wide = torch.randn(256, 160, 3, 3, 3)
        assert wide.numel() > library_convolution.SMALL
        with mock.patch.object(library_convolution, "FEW", 0):
            self.convolved(wide)
            assert not hasattr(wide, "packed")
        self.convolved(wide)
        assert hasattr(wide, "packed"), "few pixels"

    def test_copies_and_checkpoints_are_without_it(self):
        layer = torch.nn.Conv3d(4, 8, 3).requires_grad_(False)
        self.convolved(layer.weight)
        size = sum(p.numel() for p in layer.parameters()) * 4
        twin = copy.deepcopy(layer)
        assert getattr(twin.weight, "packed", None) is None
        assert_same_bits(self.convolved(twin.weight), self.convolved(layer.weight))
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        assert len(file.getvalue()) < size + 4096
        twin.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))


def test_small_pieces_go_through_onednn():
    """F.conv3d takes a loop for them, four times slower, and gives the same numbers."""
    buffer = channels_last(torch.randn(1, 8, 4, 6, 6))
    weight = torch.randn(4, 8, 3, 3, 3)
    got = library_convolution.convolved(buffer, weight, None, reflect=False)
    want = F.conv3d(buffer.double(), weight.double(), padding=(0, 1, 1))
    assert_close(got, want, atol=1e-4, reason=SUMS)


@pytest.mark.skipif(not library_convolution.DTYPES["cpu"], reason="oneDNN is called on x86-64 alone")
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("side", [0, 1])
def test_what_encoders_convolve_by(stride, side):
    """The numbers of F.conv3d, by oneDNN where nothing learns; else it has gradients."""
    x, weight, bias = torch.randn(2, 6, 5, 8, 9), torch.randn(4, 6, 3, 3, 3), torch.randn(4)
    padding = (0, side, side)
    want = F.conv3d(x.double(), weight.double(), bias.double(), stride, padding)
    with mock.patch.object(F, "conv3d", side_effect=AssertionError("the loop")):
        got = library_convolution.conv3d(x, weight, bias, stride, padding)
    assert_close(got, want, atol=1e-4, reason=SUMS)
    learns = weight.requires_grad_()
    got = library_convolution.conv3d(x, learns, bias, stride, padding)
    assert_close(got, want, atol=1e-4, reason=SUMS)
    got.sum().backward()
    (wanted,) = torch.autograd.grad(F.conv3d(x, learns, bias, stride, padding).sum(), learns)
    assert_close(learns.grad, wanted, atol=1e-4, reason=SUMS)
    with torch.no_grad():
        assert not library_convolution.conv3d(x, learns, bias, stride, padding).requires_grad


@pytest.mark.parametrize("kind", [CONTIGUOUS, CHANNELS_LAST, HALOED])
@pytest.mark.parametrize("reflect", [False, True])
def test_other_devices_take_the_same_sizes(kind, reflect):
    """Without a GPU only shapes can be told, on tensors without contents."""
    call = laid_out(calls.causal_conv3d(), kind)
    buffer, weight = (call[n].to("meta") for n in ("buffer", "weight"))
    if kind == HALOED:
        buffer = haloed(tuple(call["buffer"].shape), device="meta")
    y = library_convolution.convolved(buffer, weight, None, reflect=reflect)
    assert y.shape == (2, 12, 3, 4, 5) and y.is_meta


@pytest.mark.parametrize(
    "dtype, dims, reason",
    [
        (torch.float64, (), "float64 is not convolved"),
        (torch.float16, (), "float16 is not convolved"),
        (torch.float32, (("batch", 0),), "an empty tensor"),
    ],
)
def test_what_it_does_not_take(dtype, dims, reason):
    spec = ops.dispatch.Spec("cpu", dtype, dims)
    ok, why = library_convolution.supports(spec)
    assert not ok and reason in why
    assert ops.causal_conv3d.choose(spec, None).name == "reference"


def test_it_is_the_first_choice_on_the_cpu():
    chosen = ops.causal_conv3d.choose(ops.dispatch.Spec("cpu", torch.float32), None)
    assert chosen.name == "library"
    assert library_convolution.supports(ops.dispatch.Spec("cuda", torch.float16))[0]
    assert not library_convolution.supports(ops.dispatch.Spec("meta", torch.float32))[0]
