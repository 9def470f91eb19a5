"""What holds for every op: torch's own checks, compilation, no gradients in place, gradients in the references."""

from __future__ import annotations

import functools
import inspect
import re

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional, rope
from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_same_bits
from tests.ops import calls

EVERY_OP = pytest.mark.parametrize("name", calls.VALID)
LEFT_OUT = [
    ("sink_ring_attention", ["lse"]),
    ("gate_norm_modulate", ["gate"]),
    ("gate_norm_modulate", ["gate", "branch"]),
    ("gate_norm_modulate", ["scale", "shift", "out"]),
    ("causal_conv3d", ["bias", "noise", "noise_scale", "residual", "scale", "shift", "normed", "pictures"]),
    ("causal_conv3d", ["out", "pictures"]),
    ("pixel_norm_silu", ["scale", "shift"]),
    ("linear", ["bias"]),
    ("conv3x3", ["bias", "added", "scale", "shift"]),
]
SCRATCH = {"causal_conv3d": "buffer"}  # what a backend may write or leave


def test_every_op_is_covered_here():
    assert list(calls.VALID) == [op.name for op in ops.ALL]


@EVERY_OP
def test_help_names_every_argument_and_what_is_written(name):
    op, schema = calls.OPS[name], calls.schema(name)
    parameters = inspect.signature(op).parameters
    names = [argument.name for argument in schema._schema.arguments]
    assert list(parameters) == names
    described = inspect.getdoc(op).partition("Args:")[2]
    assert all(re.search(rf"\b{argument}\b", described) for argument in names), names
    assert described.count("Written") >= 1


def opcheck(name: str, call: calls.Call) -> None:
    """Schema (what is written and what is not), fake tensors, functionalisation with symbolic shapes."""
    clean = {n: torch.nan_to_num(v) if isinstance(v, torch.Tensor) else v for n, v in call.items()}
    args, kwargs = calls.split(name, clean)
    torch.library.opcheck(calls.schema(name), args, kwargs)


@EVERY_OP
def test_opcheck(name):
    opcheck(name, calls.VALID[name]())


@pytest.mark.parametrize("name, absent", LEFT_OUT, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_opcheck_without_optional_arguments(name, absent):
    opcheck(name, calls.VALID[name]() | {n: None for n in absent})


@pytest.mark.parametrize(
    "name, call",
    [
        ("gate_norm_modulate", calls.gate_norm_modulate() | {"rounding": "eager"}),
        ("gate_norm_modulate", calls.gate_norm_modulate() | {"norm": "affine"}),
        ("qk_norm_rope_cache", calls.qk_norm_rope_cache(dim=16, rope="by_head")),
        ("frame_cross_attention", calls.frame_cross_attention(shared=True)),
    ],
    ids=["eager rounding", "affine norm", "rotation by head", "keys shared by lanes"],
)
def test_opcheck_of_other_forms(name, call):
    opcheck(name, call)


@EVERY_OP
def test_schema_names_exactly_what_is_written(name):
    """Everything written is in the schema, and everything in the schema is written."""
    call = calls.VALID[name]()
    before = {n: v.clone() for n, v in call.items() if isinstance(v, torch.Tensor)}
    calls.invoke(name, call)
    changed = []
    for n, old in before.items():
        try:
            assert_same_bits(call[n], old, n)
        except AssertionError:
            changed.append(n)
    assert set(changed) | {SCRATCH.get(name)} == set(calls.written(name)) | {SCRATCH.get(name)}


def test_compiled_function_of_two_ops_equals_eager():
    """Write K and V, then attend to them: the compiler must keep the order through the shared cache."""

    def both(write, where, read, lengths):
        ops.qk_norm_rope_cache(*write, **where)
        ops.sink_ring_attention(*read, **lengths)
        return read[-1] * 2

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for slots in ((1, 5), (3, 0)):
        results = []
        for function in (both, compiled):
            first = calls.qk_norm_rope_cache(slots=slots)
            n_valid = [slot + 12 for slot in slots]
            second = {name: first[name] for name in ("k_cache", "v_cache", "row_index", "bank_index")}
            second |= {"q": first["q_out"], "n_valid": calls.ints(*n_valid), "host_n_valid": n_valid, "scale": 0.3}
            second["out"] = torch.full_like(first["q_out"], torch.nan)
            arguments = (*calls.split("qk_norm_rope_cache", first), *calls.split("sink_ring_attention", second))
            with torch.no_grad():
                results.append((function(*arguments), second["out"], first["k_cache"], first["v_cache"]))
        for eager, fast in zip(*results):
            assert_same_bits(fast, eager, f"slots {slots}")
        assert not results[0][0].isnan().any()


@pytest.mark.slow
def test_compiled_by_inductor():
    """What users run: the default compiler, around a mutated input and two calls of one op."""

    def twice(x, branch, gate, scale, shift, out, eps):
        ops.gate_norm_modulate(x, branch, gate, scale, shift, out, eps=eps)
        ops.gate_norm_modulate(x, out * 2, None, None, None, None, eps=eps)
        return x + 1

    results = []
    for function in (twice, torch.compile(twice, fullgraph=True)):
        call = calls.gate_norm_modulate()
        with torch.no_grad():
            results.append((function(*call.values()), call["x"], call["out"]))
    for eager, fast in zip(*results):
        torch.testing.assert_close(fast, eager, rtol=1e-6, atol=1e-6)


@EVERY_OP
def test_a_tracer_sees_the_op(name):
    """Called as a user calls it, not through ``torch.ops``."""
    from torch.fx.experimental.proxy_tensor import make_fx

    args, kwargs = calls.split(name, calls.VALID[name]())
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]

    def function(*given):
        fresh = iter(given)
        swapped = [next(fresh) if isinstance(v, torch.Tensor) else v for v in args]
        named = {k: next(fresh) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        calls.OPS[name](*swapped, **named)
        return given

    with torch.no_grad():
        graph = make_fx(function)(*tensors).graph
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [calls.schema(name)]


@EVERY_OP
def test_fake_tensors_reach_no_backend(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    args, kwargs = calls.split(name, calls.VALID[name]())
    with FakeTensorMode() as mode, torch.no_grad():
        fake = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in args]
        named = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        calls.OPS[name](*fake, **named)


def floating(name: str, call: calls.Call) -> list[str]:
    return [n for n, v in call.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]


@EVERY_OP
def test_gradients_are_refused_in_place(name):
    for argument in floating(name, calls.VALID[name]()):
        call = calls.VALID[name]()
        call[argument].requires_grad_(True)
        with pytest.raises(OpError, match=f"{name}: the in-place face has no gradient.*rest_fast.ops.functional"):
            calls.invoke(name, call)
        args, kwargs = calls.split(name, call)
        with pytest.raises(OpError, match="has no gradient"):
            calls.schema(name)(*args, **kwargs)
    for guard in (torch.no_grad, torch.inference_mode):
        call = calls.VALID[name]()
        with guard():
            calls.invoke(name, call)


def test_gradients_are_refused_when_compiled():
    call = calls.cfg_euler_step()
    call["v_cond"].requires_grad_(True)

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def step(z, v_cond, v_uncond, guidance, dt):
        z = z.clone()
        ops.cfg_euler_step(z, v_cond, v_uncond, guidance, dt)
        return z

    with pytest.raises(Exception, match="has no gradient"):
        step(*call.values())


def wide(call: calls.Call, *names: str) -> tuple[torch.Tensor, ...]:
    return tuple(call[n].double().requires_grad_(True) for n in names)


def smooth_photo() -> torch.Tensor:
    """[1, 3, 64, 128]: between noisy pixels a slope is not known a step away."""
    small = torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.interpolate(small, (64, 128), mode="bicubic")


def moved_and_painted(*maps, photo, window):
    return functional.moved_and_painted(photo, *maps, window)


def differentiable() -> dict:
    """name -> (function, float64 inputs)."""
    qk, cross = calls.qk_norm_rope_cache(frames=1, grid=(1, 2)), calls.frame_cross_attention()
    conv, hear = calls.causal_conv3d(), calls.frame_audio_update(slot=(0, 1), slots=2, lanes=2, audio=3)
    glue, norm, cfg = calls.gate_norm_modulate(2, 1, 4), calls.pixel_norm_silu(), calls.cfg_euler_step()
    renoise = calls.x0_renoise_step(held=(0, 0, 0))
    table = rope.token_table(qk["rope_t"][:1], qk["rope_y"], qk["rope_x"], 20).double()
    conv["x"] = conv["buffer"][:, :, 2:]
    qkv = {n: torch.randn(2, 3, 1, 4) for n in "qkv"}
    project = tuple(torch.randn(*shape).double().requires_grad_(True) for shape in ((10, 10), (10,)))

    def convolve(x, weight, bias, history):
        return functional.causal_convolution(x, weight, bias, history)

    def rotated(*tensors):
        return functional.qk_norm_rope(*tensors, table, heads=2, eps=1e-5)

    maps = calls.conv3x3(2, 2, 2, (2, 3), added=1)

    def convolved(*tensors):
        return functional.convolved(*tensors, silu_before=True, silu_after=True)

    def renoised(*tensors):
        return functional.renoised(*tensors, renoise["now"], renoise["after"], renoise["held"])

    def euler(*tensors):
        return functional.guided_euler(*tensors, cfg["guidance"], cfg["dt"])

    return {
        "qk_norm_rope": (rotated, wide(qk, "qkv", "q_weight", "k_weight")),
        "attention": (functional.attention, wide(qkv, "q", "k", "v")),
        "shift_keys": (functional.shift_keys, wide(calls.rotate_context(cache=(1, 1, 1, 2)), "k_cache", "shift")),
        "gated_residual": (functional.gated_residual, wide(glue, "x", "branch", "gate")),
        "norm_modulate": (functools.partial(functional.norm_modulate, eps=1e-6), wide(glue, "x", "scale", "shift")),
        "frame_attention": (
            functools.partial(functional.frame_attention, eps=1e-5),
            wide(cross, "q", "q_weight", "k", "v"),
        ),
        "audio_update": (
            functools.partial(functional.audio_update, eps=1e-5),
            wide(hear, "x", "q", "keys", "base", "update"),
        ),
        "audio_constants": (functional.audio_constants, (*wide(cross, "k", "v", "q_weight"), *project)),
        "guided_euler": (euler, wide(cfg, "z", "v_cond", "v_uncond")),
        "renoised": (renoised, wide(renoise, "z", "velocity", "noise")),
        "causal_convolution": (convolve, wide(conv, "x", "weight", "bias", "history")),
        "convolved": (convolved, wide(maps, "x", "weight", "bias", "added", "scale", "shift")),
        "mirrored": (functional.mirrored, wide(conv, "x")),
        "normed_silu": (functools.partial(functional.normed_silu, eps=1e-8), wide(norm, "x", "scale", "shift")),
        "depth_to_space": (lambda x: functional.depth_to_space(x, (2, 3, 2), 1), wide(calls.depth_to_space(), "x")),
        "space_to_depth": (lambda x: functional.space_to_depth(x, (3, 2, 3)), wide(calls.depth_to_space(), "x")),
        "moved_and_painted": (
            functools.partial(moved_and_painted, photo=smooth_photo(), window=(8, 16, 40, 32)),
            wide(calls.move_and_paint(photos=1, frames=1), "flow", "paint", "inner_flow", "inner_paint"),
        ),
        "rms_norm": (lambda x, weight: functional.rms_norm(x, weight, 1e-6), wide(cross, "q", "q_weight")),
    }


@pytest.mark.parametrize("name", [n for n in functional.__all__ if n != "to_uint8"])
def test_functional_references_are_differentiable(name):
    function, inputs = differentiable()[name]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
