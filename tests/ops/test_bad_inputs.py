"""Every class of bad input, per op: an OpError that names op, argument, expectation and value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_same_bits
from tests.ops import calls
from tests.ops.calls import ints

Change = Callable[[torch.Tensor], torch.Tensor]


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Twice as long along the last axis."""
    return torch.cat([x, x], -1)


def strided(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, x], -1)[..., 0]


def meta(x: torch.Tensor) -> torch.Tensor:
    return x.to("meta")


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.flatten()


def table(op: str, change: Change, arguments: str, expected: str, got: str) -> list:
    """One row per argument: (op, argument, change, what the message must say)."""
    text = rf"expected {expected}.*got {got}"
    return [pytest.param(op, a, change, text, id=f"{op}-{a}-{change.__name__}") for a in arguments.split()]


QK, RING, ROTATE = "qk_norm_rope_cache", "sink_ring_attention", "rotate_context"
GLUE, CROSS, CFG = "gate_norm_modulate", "frame_cross_attention", "cfg_euler_step"
HEAR = "frame_audio_update"
CONV, NORM, DEPTH, BYTES = "causal_conv3d", "pixel_norm_silu", "depth_to_space", "frames_to_uint8"
MOVE, NOISE, RENOISE, MAPS = "move_and_paint", "latent_noise", "x0_renoise_step", "conv3x3"
LINEAR = "linear"

# op -> (first tensor, float arguments that follow its dtype, int32 arguments, those that must be contiguous)
ARGUMENTS = {
    QK: (
        "qkv",
        "q_weight k_weight k_cache v_cache q_out",
        "row_index bank_index write_slot base",
        "qkv q_weight k_weight rope_t rope_y rope_x k_cache v_cache q_out row_index bank_index write_slot base",
    ),
    RING: (
        "q",
        "k_cache v_cache out",
        "row_index bank_index n_valid",
        "q k_cache v_cache out row_index bank_index n_valid lse",
    ),
    ROTATE: ("k_cache", "", "row_index skip_slot enabled", "k_cache shift row_index skip_slot enabled"),
    GLUE: ("x", "branch gate scale shift out", "", "x branch out"),
    CROSS: ("q", "q_weight k v out", "", "q q_weight k v out"),
    HEAR: ("x", "q keys base update null", "slot", "x q keys base update null slot"),
    CFG: ("z", "", "", "z v_cond v_uncond guidance dt"),
    RENOISE: ("z", "noise", "held", "z velocity noise now after held"),
    NOISE: ("out", "", "words", "out words"),
    LINEAR: ("x", "weight bias out", "", "x bias out"),
    CONV: (
        "buffer",
        "history weight bias noise noise_scale residual scale shift out normed",
        "",
        "bias noise noise_scale scale shift pictures",
    ),
    NORM: ("x", "scale shift out", "", "scale shift"),
    DEPTH: ("x", "out", "", ""),
    BYTES: ("x", "", "", "out"),
    MAPS: ("x", "weight bias added scale shift out", "", "bias scale shift"),
    MOVE: ("photo", "flow paint inner_flow inner_paint", "", "photo flow paint inner_flow inner_paint out"),
}
OTHER_DTYPE = [  # arguments with a dtype of their own
    *table(QK, torch.Tensor.double, "rope_t rope_y rope_x", "torch.float32", "torch.float64"),
    *table(RING, torch.Tensor.double, "lse", "torch.float32", "torch.float64"),
    *table(ROTATE, torch.Tensor.double, "shift", "torch.float32", "torch.float64"),
    *table(CFG, torch.Tensor.double, "guidance dt", "torch.float32", "torch.float64"),
    *table(CFG, torch.Tensor.double, "v_uncond", "torch.float32", "torch.float64"),
    *table(RENOISE, torch.Tensor.double, "now after", "torch.float32", "torch.float64"),
    *table(NOISE, torch.Tensor.double, "out", "torch.float32", "torch.float64"),
    *table(NOISE, torch.Tensor.half, "out", "torch.float32", "torch.float16"),
    *table(NOISE, torch.Tensor.int, "out", "torch.float32", "torch.int32"),
    *table(BYTES, torch.Tensor.float, "out", "torch.uint8", "torch.float32"),
    *table(CONV, torch.Tensor.float, "pictures", "torch.uint8", "torch.float32"),
    *table(MOVE, torch.Tensor.float, "out", "torch.uint8", "torch.float32"),
]


def tensors(op: str) -> str:
    return " ".join(n for n, v in calls.VALID[op]().items() if isinstance(v, torch.Tensor))


def rows() -> list:
    result = list(OTHER_DTYPE)
    for op, (first, same, index, contiguous) in ARGUMENTS.items():
        others = " ".join(n for n in tensors(op).split() if n != first)
        if op not in (DEPTH, NOISE):  # one only moves numbers, of any dtype; the other makes float32
            result += table(op, torch.Tensor.int, first, "a floating dtype", "torch.int32")
        result += table(op, torch.Tensor.half, same, "torch.float32", "torch.float16")
        result += table(op, torch.Tensor.long, index, "torch.int32", "torch.int64")
        result += table(op, torch.Tensor.float, index, "torch.int32", "torch.float32")
        result += table(op, meta, others, "device cpu", "meta")
        result += table(op, strided, contiguous, "a contiguous tensor", r"strides \(")
        result += table(op, flat, first, r"shape \[-1(, -?\d+)+\]", r"\[\d+\]")
    return result


@pytest.mark.parametrize("op, argument, change, text", rows())
def test_one_bad_argument(op, argument, change, text):
    call = calls.VALID[op]()
    call[argument] = change(call[argument])
    with pytest.raises(OpError, match=f"^{op}: argument {argument}: {text}"):
        calls.invoke(op, call)


# Arguments that other arguments are measured by: one of those is named when the sizes disagree.
YARDSTICKS = {"qkv", "q", "k", "keys", "k_cache", "x", "z", "buffer", "row_index", "photo", "flow", "inner_flow"}


SIZED = [(op, a) for op in ARGUMENTS for a in tensors(op).split() if (op, a) != (NOISE, "out")]  # of any length


@pytest.mark.parametrize("op, argument", SIZED)
def test_a_wrong_size(op, argument):
    call = calls.VALID[op]()
    named = r"\w+" if argument in YARDSTICKS else argument
    call[argument] = doubled(call[argument])
    before = {n: call[n].clone() for n in calls.written(op) if call.get(n) is not None}
    with pytest.raises(OpError, match=rf"^{op}: argument {named}: expected .*got .*\d"):
        calls.invoke(op, call)
    for name, old in before.items():
        assert_same_bits(call[name], old, f"{name}, which a refused call must not write")


VALUES = [  # op, changes, what the message must say
    (QK, {"row_index": ints(0, 4)}, "row_index: expected entries in -1..3, got 0..4"),
    (QK, {"row_index": ints(-2, 2)}, "row_index: expected entries in -1..3, got -2..2"),
    (QK, {"bank_index": ints(0, 2)}, "bank_index: expected entries in 0..1, got 0..2"),
    (QK, {"bank_index": ints(1, -2)}, "bank_index: expected entries in 0..1, got -2..1"),
    (QK, {"write_slot": ints(0, 9)}, "write_slot: expected entries in 0..8, got 0..9"),
    (QK, {"write_slot": ints(-1, 0)}, "write_slot: expected entries in 0..8, got -1..0"),
    (QK, {"base": ints(4, 0)}, "base: expected entries in 0..3, got 0..4"),
    (QK, {"base": ints(-1, -1)}, "base: expected entries in 0..3, got -1..-1"),
    (QK, {"qkv": torch.randn(2, 11, 60)}, r"qkv: expected shape \[2, 12, 60\], got \[2, 11, 60\]"),
    (QK, {"qkv": torch.randn(2, 12, 63)}, r"qkv: expected shape \[2, 12, 60\], got \[2, 12, 63\]"),
    (QK, {"k_cache": torch.randn(6)}, r"k_cache: expected shape \[-1, -1, -1, -1, -1\], got \[6\]"),
    (RING, {"row_index": ints(0, 4, 1)}, "row_index: expected entries in -1..3, got 0..4"),
    (RING, {"row_index": ints(0, -2, 1)}, "row_index: expected entries in -1..3, got -2..1"),
    (RING, {"bank_index": ints(0, 2, 1)}, "bank_index: expected entries in 0..1, got 0..2"),
    (RING, {"host_n_valid": [4, 7]}, r"host_n_valid: expected 3 lengths in 1..7, got \[4, 7\]"),
    (RING, {"host_n_valid": [4, 7, 0]}, r"host_n_valid: expected 3 lengths in 1..7, got \[4, 7, 0\]"),
    (RING, {"host_n_valid": [4, 8, 1]}, r"host_n_valid: expected 3 lengths in 1..7, got \[4, 8, 1\]"),
    (RING, {"host_n_valid": [4, 7, 2]}, r"host_n_valid: expected the same as n_valid \[4, 7, 1\], got \[4, 7, 2\]"),
    (RING, {"n_valid": ints(4, 8, 1)}, r"host_n_valid: expected the same as n_valid \[4, 8, 1\], got \[4, 7, 1\]"),
    (RING, {"k_cache": torch.randn(6)}, r"k_cache: expected shape \[-1, -1, -1, -1, -1\], got \[6\]"),
    (ROTATE, {"row_index": ints(0, 5, 1)}, "row_index: expected entries in -1..4, got 0..5"),
    (ROTATE, {"row_index": ints(0, -5, 1)}, "row_index: expected entries in -1..4, got -5..1"),
    (ROTATE, {"skip_slot": ints(2, 5, 9)}, "skip_slot: expected entries in 2..8, got 2..9"),
    (ROTATE, {"skip_slot": ints(1, 5, 8)}, "skip_slot: expected entries in 2..8, got 1..8"),
    (ROTATE, {"enabled": ints(1, 2, 0)}, "enabled: expected entries in 0..1, got 0..2"),
    (ROTATE, {"sink": 9}, "sink: expected sink >= 0 and chunk >= 1 within 11 slots, got 9 and 3"),
    (GLUE, {"branch": None}, "branch: expected a tensor beside gate, got None"),
    (GLUE, {"scale": None}, "scale: expected scale and shift beside out, got None"),
    (GLUE, {"shift": None}, "scale: expected scale and shift beside out, got None"),
    (GLUE, {"gate": torch.randn(2, 5, 10)}, r"gate: expected \[2, F, 10\] with F dividing 12, got \[2, 5, 10\]"),
    (GLUE, {"scale": torch.randn(2, 10)}, r"scale: expected \[2, F, 10\] with F dividing 12, got \[2, 10\]"),
    (CROSS, {"q": torch.randn(2, 11, 10)}, r"q: expected shape \[2, 12, 10\], got \[2, 11, 10\]"),
    (NOISE, {"out": torch.empty(2, 37)}, r"words: expected shape \[2, 5\], got \[3, 5\]"),
    (NOISE, {"words": torch.zeros(3, 4, dtype=torch.int32)}, r"words: expected shape \[3, 5\], got \[3, 4\]"),
    (CONV, {"buffer": torch.randn(2, 5, 2, 4, 5)}, "buffer: expected more than 2 frames, got 2"),
    (CONV, {"history": torch.randn(2, 5, 3, 4, 5)}, "history: expected 1 or 2 frames, got 3"),
    (CONV, {"history": torch.randn(2, 5, 0, 4, 5)}, "history: expected 1 or 2 frames, got 0"),
    (CONV, {"keep": 4}, r"keep: expected 0\.\.3, got 4"),
    (CONV, {"keep": -1}, r"keep: expected 0\.\.3, got -1"),
    (CONV, {"weight": torch.randn(4, 5, 1, 1, 1)}, r"weight: expected shape \[-1, 5, 3, 3, 3\], got \[4, 5, 1, 1, 1\]"),
    (CONV, {"factors": [2, 1]}, r"factors: expected three that divide 12 channels .*got \[2, 1\] for 3 frames"),
    (CONV, {"factors": [-2, -1, 2]}, r"factors: expected three that .*got \[-2, -1, 2\]"),
    (CONV, {"factors": [5, 1, 1]}, r"factors: expected three that divide 12 channels .*got \[5, 1, 1\]"),
    (CONV, {"drop": 6}, r"factors: expected three that .*more than drop 6 frames, got \[2, 1, 2\] for 3 frames"),
    (CONV, {"drop": -1}, "factors: expected three that .*more than drop -1 frames"),
    (CONV, calls.causal_conv3d(size=(1, 5)) | {"reflect": True}, "reflect: expected at least 2 .*mirror, got 1 x 5"),
    (CONV, {"noise": None}, "noise: expected noise and noise_scale together, got one of them"),
    (CONV, {"noise_scale": None}, "noise: expected noise and noise_scale together, got one of them"),
    (CONV, {"scale": None}, "shift: expected scale and shift together, got one of them"),
    (CONV, {"shift": None}, "shift: expected scale and shift together, got one of them"),
    (CONV, {"residual": torch.randn(2, 6, 3, 4, 5)}, "residual: expected 4 n channels where n divides 3, got 6"),
    (CONV, {"residual": torch.randn(2, 8, 3, 4, 5)}, "residual: expected 4 n channels where n divides 3, got 8"),
    (
        CONV,
        calls.causal_conv3d(out=4) | {"pictures": torch.zeros(2, 5, 4, 10, 3, dtype=torch.uint8)},
        "pictures: expected a convolution to 3 channels, got 4",
    ),
    (CONV, {"out": None, "normed": None, "pictures": None}, "out: expected out, normed or pictures, got None for all"),
    (NORM, {"scale": None}, "shift: expected scale and shift together, got one of them"),
    (NORM, {"shift": None}, "shift: expected scale and shift together, got one of them"),
    (DEPTH, {"x": torch.randn(2, 23, 3, 2, 3)}, r"x: expected channels divisible by 12 .*got shape \[2, 23, 3, 2, 3\]"),
    (DEPTH, {"factors": [-2, -3, 2]}, "factors: expected three positive integers"),
    (DEPTH, {"drop": 6}, r"x: expected .*more than 6 output frames, got shape \[2, 24, 3, 2, 3\]"),
    (DEPTH, {"drop": -1}, r"x: expected .*more than -1 output frames"),
    (DEPTH, {"factors": [2, 12]}, r"factors: expected three positive integers, got \[2, 12\]"),
    (ROTATE, {"sink": -1}, "sink: expected sink >= 0 and chunk >= 1"),
    (ROTATE, {"chunk": -1}, "sink: expected sink >= 0 and chunk >= 1"),
    (ROTATE, {"k_cache": torch.randn(2, 5, 2, 11, 1, 7), "shift": torch.ones(1, 2)}, "k_cache: expected an even width"),
    (
        ROTATE,
        {"enabled": ints(1, 0, 1), "row_index": ints(3, 0, 3)},
        r"row_index: expected a row of its own .*\[3, 0, 3\]",
    ),
    (GLUE, {"scale": torch.randn(2, 1, 10)}, r"shift: expected scale's shape \[2, 1, 10\]"),
    (GLUE, {"rounding": "exact"}, r"rounding: expected one of \['fused', 'eager'\], got 'exact'"),
    (GLUE, {"gate": torch.randn(2, 10, 3).mT}, r"gate: expected a contiguous last dimension, got strides \(30, 1, 3\)"),
    (CROSS, {"k": torch.randn(3, 3, 2, 2, 5)}, r"k: expected shape \[2, -1, -1, -1, -1\], got \[3, 3, 2, 2, 5\]"),
    (CROSS, {"k": torch.randn(1, 3, 2, 2, 5)}, r"v: expected shape \[1, 3, 2, 2, 5\], got \[2, 3, 2, 2, 5\]"),
    (CROSS, {"k": torch.randn(2, 3, 0, 2, 5)}, r"k: expected at least one token a frame, got shape \[2, 3, 0, 2, 5\]"),
    (HEAR, {"slot": ints(0, 3)}, "slot: expected entries in -1..2, got 0..3"),
    (HEAR, {"slot": ints(-2, 0)}, "slot: expected entries in -1..2, got -2..0"),
    (HEAR, {"q": torch.randn(4, 12, 10), "slot": ints(0, 0, 0, 0)}, "q: expected at most 3 lanes, got 4"),
    (HEAR, {"keys": torch.randn(3, 5, 1, 2, 5)}, r"keys: expected .* F dividing 12 .*, got \[3, 5, 1, 2, 5\]"),
    (HEAR, {"keys": torch.randn(3, 3, 0, 2, 5)}, r"keys: expected .* no size of zero, got \[3, 3, 0, 2, 5\]"),
    (HEAR, {"keys": torch.randn(3, 3, 2, 2, 5)}, r"update: expected shape \[3, 3, 2, 2, 10\], got \[3, 3, 1, 2, 10\]"),
    (HEAR, {"base": torch.randn(3, 2, 10)}, r"base: expected shape \[3, 3, 10\], got \[3, 2, 10\]"),
    (CFG, {"v_cond": torch.ones(3, 5, 7).int(), "v_uncond": torch.ones(3, 5, 7).int()}, "v_cond: expected a floating"),
    (RENOISE, {"held": ints(0, 6, 1)}, "held: expected entries in 0..5, got 0..6"),
    (RENOISE, {"held": ints(0, -1, 1)}, "held: expected entries in 0..5, got -1..1"),
    (RENOISE, {"velocity": torch.ones(3, 5, 7).int()}, "velocity: expected a floating"),
    (QK, {"rope": "spiral"}, r"rope: expected one of \['interleaved', 'by_head'\], got 'spiral'"),
    (QK, {"rope": "by_head"}, r"rope_x: expected shape \[-1, 0, 2\], got \[3, 3, 2\]"),
    (GLUE, {"norm": "batch"}, r"norm: expected one of \['rms', 'layer', 'affine'\], got 'batch'"),
    (BYTES, {"x": torch.randn(2, 4, 2, 3, 5)}, r"x: expected shape \[-1, 3, -1, -1, -1\], got \[2, 4, 2, 3, 5\]"),
    (LINEAR, {"weight": torch.randn(3, 6)}, r"weight: expected shape \[-1, 7\], got \[3, 6\]"),
    (MAPS, {"scale": None}, "shift: expected scale and shift together, got one of them"),
    (MAPS, {"shift": None}, "shift: expected scale and shift together, got one of them"),
    (MAPS, calls.conv3x3(added=3), "added: expected a number of maps that divides 4, got 3"),
    (MAPS, {"weight": torch.randn(3, 5, 1, 1)}, r"weight: expected shape \[-1, 5, 3, 3\], got \[3, 5, 1, 1\]"),
    (MOVE, {"window": [8, 16, 40]}, r"window: expected top, left, rows, columns in 64ths .*got \[8, 16, 40\]"),
    (MOVE, {"window": [30, 16, 40, 32]}, r"window: expected .*got \[30, 16, 40, 32\]"),
    (MOVE, {"window": [8, -1, 40, 32]}, r"window: expected .*got \[8, -1, 40, 32\]"),
    (MOVE, {"window": [8, 16, 0, 32]}, r"window: expected .*got \[8, 16, 0, 32\]"),
    (MOVE, calls.move_and_paint(size=(64, 96)), "photo: expected sides divisible by 64, got 64 x 96"),
    (MOVE, calls.move_and_paint(size=(0, 64)), "photo: expected sides divisible by 64, got 0 x 64"),
    (MOVE, calls.move_and_paint(photos=3), "flow: expected a multiple of 3 frames, as photos, got 4"),
    (MOVE, {"flow": torch.zeros(4, 2, 0, 6), "paint": torch.zeros(4, 4, 0, 6)}, "flow: expected at least one cell"),
    (MOVE, {"inner_flow": torch.zeros(4, 2, 3, 0), "inner_paint": torch.zeros(4, 4, 6, 0)}, "inner_flow: expected at"),
]


@pytest.mark.parametrize(
    "op, changes, text", VALUES, ids=[f"{op}-{'-'.join(c)}-{i}" for i, (op, c, _) in enumerate(VALUES)]
)
def test_bad_values(op, changes, text):
    call = calls.VALID[op]() | changes
    before = {n: call[n].clone() for n in calls.written(op) if call.get(n) is not None}
    with pytest.raises(OpError, match=f"^{op}: argument {text}"):
        calls.invoke(op, call)
    for name, old in before.items():
        assert_same_bits(call[name], old, f"{name}, which a refused call must not write")


def of_another_kind(name: str) -> list:
    """(argument, value) that the schema does not take."""
    wrong = {"Tensor": [1, 2.0], "int": 2.0, "float": "x", "str": 3, "List[int]": 5, "bool": 0}
    found = []
    for a in calls.schema(name)._schema.arguments:
        kind = str(a.type).removeprefix("Optional[").removesuffix("]") if "Optional" in str(a.type) else str(a.type)
        found.append((a.name, wrong[kind]))
    return found


@pytest.mark.parametrize("op", calls.VALID)
def test_an_argument_of_another_kind(op):
    for argument, value in of_another_kind(op):
        call = calls.VALID[op]()
        calls.invoke(op, call)  # a decision is there, which 2.0 for 2 must not find
        with pytest.raises(OpError, match=f"{op}: argument {argument}: expected .*, got "):
            calls.invoke(op, calls.VALID[op]() | {argument: value})


@pytest.mark.parametrize("op", calls.VALID)
def test_negated_views_are_refused(op):
    """Whoever takes addresses would read them without the sign."""
    for argument in tensors(op).split():
        call = calls.VALID[op]()
        if call[argument].is_floating_point():
            calls.invoke(op, calls.VALID[op]())
            with pytest.raises(OpError, match=f"{op}: argument {argument}: expected plain memory, got a negated"):
                calls.invoke(op, call | {argument: torch._neg_view(call[argument])})


def test_lengths_are_checked_at_every_call():
    for lengths in ((4, 7, 1), (4, 6, 1), (4, 7, 1)):
        call = calls.sink_ring_attention()
        if lengths == (4, 7, 1):
            calls.invoke(RING, call)
        else:
            with pytest.raises(OpError, match="host_n_valid: expected the same as n_valid"):
                calls.invoke(RING, call | {"host_n_valid": list(lengths)})
    with pytest.raises(OpError, match=r"host_n_valid: expected 3 lengths in 1..7, got \[4, 8, 1\]"):
        calls.invoke(RING, calls.sink_ring_attention() | {"host_n_valid": [4, 8, 1]})


def test_sizes_that_only_ranges_would_see_on_a_gpu():
    """On an accelerator contents are not read: what the shapes alone rule out is refused there, too."""
    call = {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in calls.qk_norm_rope_cache().items()}
    with pytest.raises(OpError, match="argument k_cache: expected at least 12 slots, got 9"):
        calls.invoke(QK, call | {n: call[n][:, :, :9].contiguous() for n in ("k_cache", "v_cache")})
    with pytest.raises(OpError, match="argument rope_t: expected at least 2 positions, got 1"):
        calls.invoke(QK, call | {"rope_t": call["rope_t"][:1]})


def test_a_disabled_lane_may_not_name_the_row_of_an_enabled_one():
    call = calls.rotate_context(rows=(3, 3, 1), enabled=(1, 0, 1))
    with pytest.raises(OpError, match=r"row_index: expected a row of its own for each enabled lane, got \[3, 3, 1\]"):
        calls.invoke(ROTATE, call)
    calls.invoke(ROTATE, calls.rotate_context(rows=(3, 3, 1), enabled=(0, 0, 1)))


@pytest.mark.parametrize(
    "op, name", [(NORM, "out"), (DEPTH, "out"), *((CONV, name) for name in ("out", "normed", "buffer", "history"))]
)
def test_outputs_whose_elements_share_memory(op, name):
    shape = calls.VALID[op]()[name].shape
    windows = torch.zeros(10_000).as_strided(shape, (1000, 200, 50, 2, 1))  # rows of more than two, two apart
    for out in (torch.zeros((*shape[:-1], 1)).expand(shape), windows):
        with pytest.raises(OpError, match=f"{op}: argument {name}: expected elements that share no memory"):
            calls.invoke(op, calls.VALID[op]() | {name: out})
