"""One small valid call per op, as a dictionary of arguments, for tests that hold for every op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rest_fast import noise, ops
from tests.ops.motion_calls import conv3x3, move_and_paint

OPS = {op.name: op for op in ops.ALL}
Call = dict[str, Any]


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def nans(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def schema(name: str):
    return getattr(torch.ops.rest_fast, name).default


def split(name: str, call: Call) -> tuple[tuple, dict]:
    """(args, kwargs) in the order of the op's schema; what the call leaves out keeps its default."""
    arguments = schema(name)._schema.arguments
    args = tuple(call[a.name] for a in arguments if not a.kwarg_only)
    return args, {a.name: call[a.name] for a in arguments if a.kwarg_only and a.name in call}


def invoke(name: str, call: Call) -> None:
    args, kwargs = split(name, call)
    OPS[name](*args, **kwargs)


def written(name: str) -> list[str]:
    """The arguments that the op writes, from its schema."""
    return [a.name for a in schema(name)._schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def qk_norm_rope_cache(
    heads: int = 2,
    dim: int = 10,
    frames: int = 2,
    grid: tuple[int, int] = (2, 3),
    *,
    rows: tuple[int, ...] = (2, 0),
    banks: tuple[int, ...] = (1, 0),
    slots: tuple[int, ...] = (1, 5),
    base: tuple[int, ...] = (3, 0),
    cache: tuple[int, int, int] = (4, 2, 20),
    rope: str = "interleaved",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Call:
    """Two lanes at different phases, rows out of order; W = 20, so that one channel pair is not rotated."""
    g = torch.Generator().manual_seed(seed)
    width, tokens, lanes = heads * dim, frames * grid[0] * grid[1], len(rows)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    third = dim // 6  # by head, of its pairs: those of y, of x; the others are those of t
    by_head = {"t": dim // 2 - 2 * third, "y": third, "x": third}
    pairs = dict.fromkeys("tyx", width // 6) if rope == "interleaved" else by_head

    def table(axis: str, positions: int) -> torch.Tensor:
        angle = 20 * normal(positions, pairs[axis])
        return torch.stack([angle.cos(), angle.sin()], -1)

    return {
        "qkv": (3 * normal(lanes, tokens, 3 * width)).to(dtype),
        "q_weight": (1 + 0.3 * normal(width)).to(dtype),
        "k_weight": (1 + 0.3 * normal(width)).to(dtype),
        "rope_t": table("t", max(base) + frames),
        "rope_y": table("y", grid[0]),
        "rope_x": table("x", grid[1]),
        "k_cache": normal(*cache, heads, dim).to(dtype),
        "v_cache": normal(*cache, heads, dim).to(dtype),
        "q_out": nans(lanes, tokens, heads, dim, dtype=dtype),
        "row_index": ints(*rows),
        "bank_index": ints(*banks),
        "write_slot": ints(*slots),
        "base": ints(*base),
        "eps": 1e-5,
        "rope": rope,
    }


def sink_ring_attention(
    rows: tuple[int, ...] = (2, 0, 3),
    banks: tuple[int, ...] = (1, 0, 1),
    n_valid: tuple[int, ...] = (4, 7, 1),
    *,
    tokens: int = 5,
    heads: int = 3,
    dim: int = 6,
    cache: tuple[int, int, int] = (4, 2, 7),
    dtype: torch.dtype = torch.float32,
    lse: bool = True,
    seed: int = 0,
) -> Call:
    """Slots beyond a lane's ``n_valid``, and rows of no lane, hold NaN."""
    g = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(*cache, heads, dim, generator=g).to(dtype) for _ in range(2))
    valid = torch.zeros(cache, dtype=torch.bool)
    for row, bank, n in zip(rows, banks, n_valid, strict=True):
        valid[row, bank, :n] = True
    keys[~valid], values[~valid] = torch.nan, torch.nan
    call = {
        "q": torch.randn(len(rows), tokens, heads, dim, generator=g).to(dtype),
        "k_cache": keys,
        "v_cache": values,
        "out": nans(len(rows), tokens, heads, dim, dtype=dtype),
        "row_index": ints(*rows),
        "bank_index": ints(*banks),
        "n_valid": ints(*n_valid),
        "host_n_valid": list(n_valid),
        "scale": dim**-0.5,
    }
    return call | ({"lse": nans(len(rows), heads, tokens)} if lse else {})


def rotate_context(
    rows: tuple[int, ...] = (3, 0, 1),
    skip: tuple[int, ...] = (2, 5, 8),
    enabled: tuple[int, ...] = (1, 0, 1),
    *,
    sink: int = 2,
    chunk: int = 3,
    heads: int = 2,
    dim: int = 10,
    cache: tuple[int, int, int, int] = (2, 5, 2, 11),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Call:
    g = torch.Generator().manual_seed(seed)
    angle = 3 * torch.randn(heads * dim // 6, generator=g)
    return {
        "k_cache": torch.randn(*cache, heads, dim, generator=g).to(dtype),
        "shift": torch.stack([angle.cos(), angle.sin()], -1),
        "row_index": ints(*rows),
        "skip_slot": ints(*skip),
        "enabled": ints(*enabled),
        "sink": sink,
        "chunk": chunk,
    }


def gate_norm_modulate(
    frames: int = 3,
    tokens: int = 4,
    width: int = 10,
    dtype: torch.dtype = torch.float32,
    *,
    lanes: int = 2,
    gate_frames: int | None = None,
    seed: int = 0,
) -> Call:
    """``frames`` of ``tokens`` each; the gate may have other frames than scale and shift."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    return {
        "x": normal(lanes, frames * tokens, width),
        "branch": normal(lanes, frames * tokens, width),
        "gate": normal(lanes, gate_frames or frames, width),
        "scale": normal(lanes, frames, width),
        "shift": normal(lanes, frames, width),
        "out": nans(lanes, frames * tokens, width, dtype=dtype),
        "eps": 1e-6,
    }


def frame_cross_attention(
    frames: int = 3,
    tokens: int = 4,
    audio: int = 2,
    heads: int = 2,
    dim: int = 5,
    dtype: torch.dtype = torch.float32,
    *,
    lanes: int = 2,
    shared: bool = False,
    seed: int = 0,
) -> Call:
    """``shared``: one set of keys and values for all lanes."""
    g = torch.Generator().manual_seed(seed)
    context = (1 if shared else lanes, frames, audio, heads, dim)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    return {
        "q": 2 * normal(lanes, frames * tokens, heads * dim),
        "q_weight": 1 + normal(heads * dim),
        "k": normal(*context),
        "v": normal(*context),
        "out": nans(lanes, frames * tokens, heads * dim, dtype=dtype),
        "eps": 1e-5,
    }


def frame_audio_update(
    frames: int = 3,
    tokens: int = 4,
    audio: int = 2,
    heads: int = 2,
    dim: int = 5,
    dtype: torch.dtype = torch.float32,
    *,
    lanes: int = 3,
    slot: tuple[int, ...] = (2, -1),
    slots: int = 3,
    seed: int = 0,
) -> Call:
    """Lane 0 hears, lane 1 has a query and hears nothing, lane 2 has none; a slot that no lane hears holds NaN."""
    g = torch.Generator().manual_seed(seed)
    width, others = heads * dim, audio - 1

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    call = {
        "x": normal(lanes, frames * tokens, width),
        "q": 2 * normal(len(slot), frames * tokens, width),
        "keys": normal(slots, frames, others, heads, dim),
        "base": normal(slots, frames, width),
        "update": normal(slots, frames, others, heads, width),
        "null": normal(width),
        "slot": ints(*slot),
        "eps": 1e-5,
    }
    for unheard in set(range(slots)) - set(slot):
        for name in ("keys", "base", "update"):
            call[name][unheard] = torch.nan
    return call


def cfg_euler_step(
    dtype: torch.dtype = torch.float32,
    velocity: torch.dtype | None = None,
    shape: tuple[int, int, int] = (3, 5, 7),
    seed: int = 0,
) -> Call:
    g = torch.Generator().manual_seed(seed)
    z, v_cond, v_uncond = (torch.randn(*shape, generator=g) for _ in range(3))
    sessions = shape[0]
    return {
        "z": z.to(dtype),
        "v_cond": v_cond.to(velocity or dtype),
        "v_uncond": v_uncond.to(velocity or dtype),
        "guidance": torch.tensor([6.0, 1.0, 0.0, 3.5])[:sessions].clone(),
        "dt": torch.tensor([-0.125, -0.5, -0.03, -1.0])[:sessions].clone(),
    }


def x0_renoise_step(
    dtype: torch.dtype = torch.float32,
    velocity: torch.dtype | None = None,
    shape: tuple[int, int, int] = (3, 5, 7),
    held: tuple[int, ...] = (1, 0, 2),
    seed: int = 0,
) -> Call:
    """Sessions at different steps, the last of which adds no noise; of tokens that stay, velocity and noise are NaN."""
    g = torch.Generator().manual_seed(seed)
    z, v, noise_ = (torch.randn(*shape, generator=g) for _ in range(3))
    sessions = shape[0]
    for session, count in zip(range(sessions), held):
        v[session, :count], noise_[session, :count] = torch.nan, torch.nan
    return {
        "z": z.to(dtype),
        "velocity": v.to(velocity or dtype),
        "noise": noise_.to(dtype),
        "now": torch.tensor([1.0, 0.9375, 0.625, 0.832])[:sessions].clone(),
        "after": torch.tensor([0.9375, 0.832, 0.0, 0.625])[:sessions].clone(),
        "held": ints(*held[:sessions]),
    }


def latent_noise(dtype: torch.dtype = torch.float32, frames: int = 3, count: int = 37) -> Call:
    """Frames of other seeds, indices and purposes, whose words have their highest bits set and clear."""
    rows = [noise.words(2**64 - 1 - 5 * f, f * (2**63 + 2**31) % 2**64, f % 4) for f in range(frames)]
    words = torch.tensor(rows, dtype=torch.int32).view(frames, 5)
    return {"out": nans(frames, count, dtype=dtype), "words": words}


def linear(
    rows: int = 5,
    inputs: int = 7,
    outputs: int = 3,
    dtype: torch.dtype = torch.float32,
    *,
    gelu: bool = True,
    seed: int = 0,
) -> Call:
    g = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(s, generator=g).to(dtype) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    weight = weight * max(inputs, 1) ** -0.5
    return {"x": x, "weight": weight, "bias": bias, "out": nans(rows, outputs, dtype=dtype), "gelu": gelu}


def causal_conv3d(
    channels: int = 5,
    out: int = 3,
    frames: int = 3,
    size: tuple[int, int] = (4, 5),
    *,
    factors: tuple[int, int, int] = (2, 1, 2),
    drop: int = 1,
    past: int = 2,
    keep: int | None = None,
    tiles: int | None = None,
    first: bool = False,
    reflect: bool = False,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Call:
    """``out`` channels after depth to space, of which the residual has one part in ``tiles`` (None: one channel).

    ``pictures`` where ``out`` is 3. Room for the history in the buffer holds NaN.
    """
    g = torch.Generator().manual_seed(seed)
    cell = factors[0] * factors[1] * factors[2]
    residual = (batch, out * cell // (tiles or out), frames, *size)
    size_out = (frames * factors[0] - drop, size[0] * factors[1], size[1] * factors[2])

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    call = {
        "buffer": nans(batch, channels, frames + 2, *size, dtype=dtype),
        "history": normal(batch, channels, past, *size),
        "weight": (normal(out * cell, channels, 3, 3, 3) * (27 * channels) ** -0.5),
        "bias": normal(out * cell),
        "noise": normal(batch, *size),
        "noise_scale": normal(out * cell),
        "residual": normal(*residual),
        "scale": normal(out),
        "shift": normal(out),
        "out": nans(batch, out, *size_out, dtype=dtype),
        "normed": nans(batch, out, *size_out, dtype=dtype),
        "pictures": torch.full((batch, *size_out, 3), 77, dtype=torch.uint8) if out == 3 else None,
        "factors": list(factors),
        "drop": drop,
        "keep": frames - 1 if keep is None else keep,
        "first": first,
        "reflect": reflect,
        "eps": 1e-6,
    }
    call["buffer"][:, :, past : past + frames] = normal(batch, channels, frames, *size)
    return call


def pixel_norm_silu(dtype: torch.dtype = torch.float32) -> Call:
    g = torch.Generator().manual_seed(0)
    x, scale, shift = (torch.randn(s, generator=g).to(dtype) for s in ((2, 5, 3, 4, 3), (5,), (5,)))
    return {"x": x, "scale": scale, "shift": shift, "out": nans(*x.shape, dtype=dtype), "eps": 1e-8}


def depth_to_space(dtype: torch.dtype = torch.float32) -> Call:
    x = torch.randn(2, 24, 3, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {"x": x, "out": nans(2, 2, 5, 6, 6, dtype=dtype), "factors": [2, 3, 2], "drop": 1}


def frames_to_uint8(dtype: torch.dtype = torch.float32) -> Call:
    x = torch.randn(2, 3, 2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    return {"x": x, "out": torch.full((2, 2, 3, 5, 3), 77, dtype=torch.uint8)}


VALID: dict[str, Callable[..., Call]] = {
    "qk_norm_rope_cache": qk_norm_rope_cache,
    "sink_ring_attention": sink_ring_attention,
    "rotate_context": rotate_context,
    "gate_norm_modulate": gate_norm_modulate,
    "frame_cross_attention": frame_cross_attention,
    "frame_audio_update": frame_audio_update,
    "cfg_euler_step": cfg_euler_step,
    "x0_renoise_step": x0_renoise_step,
    "latent_noise": latent_noise,
    "linear": linear,
    "causal_conv3d": causal_conv3d,
    "pixel_norm_silu": pixel_norm_silu,
    "depth_to_space": depth_to_space,
    "frames_to_uint8": frames_to_uint8,
    "conv3x3": conv3x3,
    "move_and_paint": move_and_paint,
}
