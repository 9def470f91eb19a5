"""The ops that ``bench_ops.py`` and the GPU suite measure: how each is called, and the same without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import kit, peers
from benchmarks.kit import LAYERS, Size
from rest_fast import noise, ops
from rest_fast.models.linear import DTYPES
from rest_fast.ops import functional, rope
from rest_fast.ops.derived import derived
from rest_fast.ops.memory_layouts import haloed

EPS = 1e-5
Values = dict[str, Any]  # arguments of an op by name, and what only its eager variant needs


class Draw:
    """Random tensors of one layer, in the dtype and on the device of a case."""

    def __init__(self, dtype: torch.dtype, seed: int):
        self.dtype, self.device = dtype, kit.device()
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(self.dtype)

    def video(self, *shape: int) -> torch.Tensor:
        """[B, C, T, H, W] as decoders keep it on this device: channels last on a GPU."""
        layout = torch.channels_last_3d if self.device.type == "cuda" else torch.contiguous_format
        return self(*shape).contiguous(memory_format=layout)

    def last(self, *shape: int) -> torch.Tensor:
        """[B, C, T, H, W], channels last."""
        return self(*shape).contiguous(memory_format=torch.channels_last_3d)

    def memory(self, *shape: int) -> torch.Tensor:
        """[B, C, T, H, W] where a convolution reads it: channels last, on a GPU in a border of zeros."""
        if self.device.type == "cpu":
            return self.last(*shape)
        return haloed(shape, dtype=self.dtype, device=self.device).copy_(self(*shape))  # type: ignore[arg-type]

    def ints(self, *values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


@dataclass(frozen=True)
class Entry:
    """One row of the table: how to call the op, and the same without it."""

    op: ops.Op
    make: Callable[[Size, Draw], Values]
    eager: Callable[..., tuple[torch.Tensor, ...]]
    reads: str  # what eager takes, in order
    writes: str  # what it returns, in order, and where the op leaves it
    flop: Callable[[Size], int] = lambda size: 0
    moves: Callable[[Values], list[torch.Tensor]] | None = None  # read or written once; None: all of reads and writes
    copies: int = LAYERS
    unfused: Callable[..., tuple[torch.Tensor, ...]] | None = None  # like eager, on our other ops


def make_qk_norm_rope_cache(s: Size, draw: Draw) -> Values:
    freqs, cells, base = rope.frequencies(s.width, 1e4), torch.arange(s.side), 1 + s.frames
    t = rope.axis_table(torch.arange(1 + 2 * s.frames), 0.32, 20.0, freqs)
    y = rope.axis_table(cells, 32.0, 2048.0, freqs)
    cos, sin = peers.pair_tables(rope.token_table(t[base : base + s.frames], y, y, s.width))
    t, y, cos, sin = (x.to(draw.device) for x in (t, y, cos, sin))
    k, v = (draw(s.lanes, 1, s.slots, s.heads, s.head_dim) for _ in range(2))
    values = {"qkv": draw(s.lanes, s.tokens, 3 * s.width), "q_weight": draw(s.width), "k_weight": draw(s.width)}
    values |= {"rope_t": t, "rope_y": y, "rope_x": y.clone(), "k_cache": k, "v_cache": v, "eps": EPS}
    values |= {"q_out": draw(s.lanes, s.tokens, s.heads, s.head_dim), "cos": cos, "sin": sin}
    values |= {"row_index": draw.ints(*range(s.lanes)), "bank_index": draw.ints(*[0] * s.lanes)}
    return values | {"write_slot": draw.ints(*[s.cells] * s.lanes), "base": draw.ints(*[base] * s.lanes), "at": s.cells}


def eager_qk_norm_rope_cache(qkv, q_weight, k_weight, cos, sin, k_cache, v_cache, at, eps):
    q, k, v = peers.heads(qkv, q_weight, k_weight, (cos, sin), k_cache.shape[-2], eps)
    k_cache[:, 0, at : at + k.shape[1]] = k
    v_cache[:, 0, at : at + k.shape[1]] = v
    return q, k_cache, v_cache


def make_sink_ring_attention(s: Size, draw: Draw) -> Values:
    lengths = [s.slots] * s.lanes
    values = {"q": draw(s.lanes, s.tokens, s.heads, s.head_dim), "scale": s.head_dim**-0.5, "host_n_valid": lengths}
    values |= {n: draw(s.lanes, 1, s.slots, s.heads, s.head_dim) for n in ("k_cache", "v_cache")}
    values |= {"row_index": draw.ints(*range(s.lanes)), "bank_index": draw.ints(*[0] * s.lanes)}
    return values | {"n_valid": draw.ints(*lengths), "out": torch.empty_like(values["q"])}


def eager_sink_ring_attention(q, k_cache, v_cache):
    return (peers.sdpa(q, k_cache[:, 0], v_cache[:, 0]),)


def make_rotate_context(s: Size, draw: Draw) -> Values:
    shift = rope.shift_table(-s.frames, 0.32, 20.0, rope.frequencies(s.width, 1e4)).to(draw.device)
    values = {"k_cache": draw(s.depth, s.lanes, 1, s.slots, s.heads, s.head_dim), "shift": shift}
    values |= {"row_index": draw.ints(*range(s.lanes)), "skip_slot": draw.ints(*[s.cells] * s.lanes)}
    return values | {"enabled": draw.ints(*[1] * s.lanes), "sink": s.cells, "chunk": s.tokens}


def eager_rotate_context(k_cache, shift, sink, chunk):
    context = k_cache[:, :, :, sink + chunk :]
    context.copy_(functional.shift_keys(context, shift))
    return (k_cache,)


def make_gate_norm_modulate(s: Size, draw: Draw) -> Values:
    values = {name: draw(s.lanes, s.tokens, s.width) for name in ("x", "branch", "out")}
    return values | {name: draw(s.lanes, s.frames, s.width) for name in ("gate", "scale", "shift")} | {"eps": EPS}


def eager_gate_norm_modulate(x, branch, gate, scale, shift, eps):
    x = peers.gated(x, branch, gate)
    return x, peers.modulate(x, scale, shift, eps)


def make_frame_cross_attention(s: Size, draw: Draw, frames: int | None = None, tokens: int | None = None) -> Values:
    lanes, shape = (1 if tokens else s.lanes), (frames or s.frames, tokens or s.audio, s.heads, s.head_dim)
    values = {"q": draw(s.lanes, s.tokens, s.width), "q_weight": draw(s.width), "eps": EPS}
    return values | {"k": draw(lanes, *shape), "v": draw(lanes, *shape), "out": draw(s.lanes, s.tokens, s.width)}


def make_text_attention(s: Size, draw: Draw) -> Values:
    return make_frame_cross_attention(s, draw, 1, s.text)


def eager_frame_cross_attention(q, q_weight, k, v, eps):
    return (peers.cross_attention(q, q_weight, (k, v), eps),)


def make_frame_audio_update(s: Size, draw: Draw) -> Values:
    """A session with guidance: the second half of the lanes hears nothing, which the others compute all the same."""
    values, half = make_frame_cross_attention(s, draw), s.lanes // 2
    k, v, width = values["k"], values["v"], s.width
    k[half:], v[half:] = k[half:, :1, :1].clone(), v[half:, :1, :1].clone()
    weight, bias = draw(width, width) / width**0.5, draw(width)
    project = {"q_weight": values["q_weight"], "out_weight": weight, "out_bias": bias}
    names = ("keys", "base", "update")
    ours = dict(zip(names, functional.audio_constants(k[:half], v[:half], **project), strict=True))
    ours |= {"null": F.linear(v[half, 0, 0].flatten(), weight, bias), "q": values["q"][:half]}
    ours |= {"slot": draw.ints(*range(half)), "x": draw(s.lanes, s.tokens, width), "eps": EPS}
    return ours | project | {"k": k, "v": v, "queries": values["q"]}


def eager_frame_audio_update(x, queries, q_weight, k, v, out_weight, out_bias, eps):
    return (x + F.linear(peers.cross_attention(queries, q_weight, (k, v), eps), out_weight, out_bias),)


def unfused_frame_audio_update(x, queries, q_weight, k, v, out_weight, out_bias, eps):
    seen = torch.empty_like(queries)
    ops.frame_cross_attention(queries, q_weight, k, v, seen, eps=eps)
    ops.gate_norm_modulate(x, F.linear(seen, out_weight, out_bias), None, None, None, None, eps=eps)
    return (x,)


def make_cfg_euler_step(s: Size, draw: Draw) -> Values:
    values = {name: draw(s.lanes // 2 or 1, s.tokens, s.channels) for name in ("z", "v_cond", "v_uncond")}
    vector = torch.ones(values["z"].shape[0], device=draw.device)
    return values | {"guidance": 6 * vector, "dt": -0.125 * vector}


def eager_cfg_euler_step(z, v_cond, v_uncond, guidance, dt):
    return (functional.guided_euler(z, v_cond, v_uncond, guidance, dt),)


def make_x0_renoise_step(s: Size, draw: Draw) -> Values:
    values = {name: draw(s.lanes, s.tokens, s.channels) for name in ("z", "velocity", "noise")}
    vector = torch.ones(s.lanes, device=draw.device)
    held = torch.full((s.lanes,), s.tokens // 5, dtype=torch.int32, device=draw.device)  # of five latents one is motion
    return values | {"now": 0.9375 * vector, "after": 0.832 * vector, "held": held}


def eager_x0_renoise_step(z, velocity, noise, now, after, held):
    t, t_next = now[:, None, None], after[:, None, None]
    moved = (1 - t_next) * (z - t * velocity) + t_next * noise
    stays = torch.arange(z.shape[1], device=z.device) < held[:, None]
    return (torch.where(stays[:, :, None], z, moved.to(z.dtype)),)


def make_latent_noise(s: Size, draw: Draw) -> Values:
    words = torch.tensor([noise.words(0, f) for f in range(s.frames)], dtype=torch.int32, device=draw.device)
    return {"out": (out := draw(s.frames, s.cells * s.channels).float()), "words": words, "count": out.shape[1]}


def make_causal_conv3d(s: Size, draw: Draw) -> Values:
    """A second convolution of a ResBlock in a causal stream, its tensors where the decoder has them."""
    c, t, side = s.conv
    values: Values = {"buffer": draw.memory(1, c, t + 2, side, side), "history": draw.memory(1, c, 2, side, side)}
    weight = draw(c, c, 3, 3, 3) / (27 * c) ** 0.5
    values |= {"weight": weight.contiguous(memory_format=torch.channels_last_3d), "bias": draw(c)}
    values |= {n: draw.last(1, c, t, side, side) for n in ("x", "residual", "out")}
    values["buffer"][:, :, 2:].copy_(values["x"])
    values |= {"normed": draw.memory(1, c, t + 2, side, side)[:, :, 2:], "factors": [1, 1, 1], "drop": 0, "keep": t}
    values |= dict.fromkeys(("noise", "noise_scale", "scale", "shift", "pictures"))
    return values | {"first": False, "reflect": False, "eps": EPS}


def eager_causal_conv3d(x, history, weight, bias, residual, eps):
    seen = torch.cat([history, x], 2)
    y = F.conv3d(seen, weight, bias, padding=(0, 1, 1)) + residual
    return (y, *eager_pixel_norm_silu(y, eps), seen[:, :, -2:].clone())


def make_pixel_norm_silu(s: Size, draw: Draw) -> Values:
    x = draw.video(1, *s.norm, s.norm[-1])
    return {"x": x, "scale": None, "shift": None, "out": torch.empty_like(x), "eps": EPS}


def eager_pixel_norm_silu(x, eps):
    """Norm over the channels where they lie, as LTX-Video writes it; ``F.rms_norm`` over a moved axis takes longer."""
    return (functional.normed_silu(x, eps=eps),)


def make_depth_to_space(s: Size, draw: Draw) -> Values:
    (c, t, side), (p1, p2, p3) = s.upsampled, s.factors
    out = draw.video(1, c // (p1 * p2 * p3), t * p1, side * p2, side * p3)
    return {"x": draw.video(1, c, t, side, side), "out": out, "factors": list(s.factors), "drop": 0}


def eager_depth_to_space(x, factors):
    return (functional.depth_to_space(x, tuple(factors)),)


def make_frames_to_uint8(s: Size, draw: Draw) -> Values:
    t, side = s.pixels
    out = torch.empty(1, t, side, side, 3, dtype=torch.uint8, device=draw.device)
    return {"x": draw.video(1, 3, t, side, side), "out": out}


def eager_frames_to_uint8(x):
    return (functional.to_uint8(x),)


def make_conv3x3(s: Size, draw: Draw) -> Values:
    """The second convolution of a residual block, of maps with channels innermost."""
    channels, n, side = s.maps
    x, added = (draw(n, channels, side, side).contiguous(memory_format=torch.channels_last) for _ in range(2))
    values = {"x": x, "weight": draw(channels, channels, 3, 3) * (9 * channels) ** -0.5, "bias": draw(channels)}
    values |= {"added": added, "scale": None, "shift": None, "out": torch.empty_like(x)}
    return values | {"silu_before": True, "silu_after": False}


def eager_conv3x3(x, weight, bias, added):
    return (F.conv2d(F.silu(x), weight, bias, padding=1) + added,)


def make_move_and_paint(s: Size, draw: Draw) -> Values:
    """In float32 whatever the dtype, as the decoder calls it."""
    n, side = s.pixels[0], -(-s.pixels[1] // 64) * 64
    shapes = {"flow": (2, 32, 32), "inner_flow": (2, 40, 40), "paint": (4, 32, 32), "inner_paint": (4, 80, 80)}
    maps = {name: 0.02 * draw(n, *shape).float() for name, shape in shapes.items()}
    out = torch.empty(n, side, side, 3, dtype=torch.uint8, device=draw.device)
    return maps | {"photo": draw(1, 3, side, side).float(), "out": out, "window": [16, 12, 40, 40]}


def eager_move_and_paint(photo, flow, paint, inner_flow, inner_paint, window):
    frames = functional.moved_and_painted(photo, flow, paint, inner_flow, inner_paint, window)
    return (functional.to_uint8(frames[:, :, None])[:, 0],)


def make_linear(s: Size, draw: Draw) -> Values:
    """The first layer of the MLP, for a session with guidance."""
    weight, rows = draw(4 * s.width, s.width) * s.width**-0.5, s.lanes * s.tokens
    out = draw(rows, 4 * s.width)
    return {"x": draw(rows, s.width), "weight": weight, "bias": draw(4 * s.width), "out": out, "gelu": True}


def eager_linear(x, weight, bias):
    return (F.gelu(F.linear(x, weight, bias), approximate="tanh"),)


def unfused_linear(x, weight, bias):
    """oneDNN's, as :mod:`rest_fast.models.linear` calls it where it does not call ours; eager where it cannot."""
    if not x.is_cpu or x.dtype not in DTYPES:
        return eager_linear(x, weight, bias)
    reordered = derived(weight, "reordered", (weight,), lambda: torch.ops.mkldnn._reorder_linear_weight(weight, 128))
    return (torch.ops.mkldnn._linear_pointwise(x, reordered, bias, "gelu", [], "tanh"),)


def map_flop(s: Size) -> int:
    c, n, side = s.maps
    return 2 * 9 * c * c * n * side * side


def conv_flop(s: Size) -> int:
    c, t, side = s.conv
    return 2 * 27 * c * c * t * side * side


TABLE = {
    "qk_norm_rope_cache": Entry(
        ops.qk_norm_rope_cache,
        make_qk_norm_rope_cache,
        eager_qk_norm_rope_cache,
        "qkv q_weight k_weight cos sin k_cache v_cache at eps",
        "q_out k_cache v_cache",
        moves=lambda values: [values["qkv"]] * 2,  # read; and as much written: q, k and v
    ),
    "sink_ring_attention": Entry(
        ops.sink_ring_attention,
        make_sink_ring_attention,
        eager_sink_ring_attention,
        "q k_cache v_cache",
        "out",
        flop=lambda s: 4 * s.lanes * s.tokens * s.slots * s.width,
    ),
    "rotate_context": Entry(
        ops.rotate_context,
        make_rotate_context,
        eager_rotate_context,
        "k_cache shift sink chunk",
        "k_cache",
        # of the context's keys the time pairs, a third of the width; both ways
        moves=lambda values: [values["k_cache"][:, :, :, values["sink"] + values["chunk"] :, :, ::3]] * 2,
        copies=1,
    ),
    "gate_norm_modulate": Entry(
        ops.gate_norm_modulate,
        make_gate_norm_modulate,
        eager_gate_norm_modulate,
        "x branch gate scale shift eps",
        "x out",
    ),
    "frame_cross_attention": Entry(
        ops.frame_cross_attention, make_frame_cross_attention, eager_frame_cross_attention, "q q_weight k v eps", "out"
    ),
    "text_attention": Entry(
        ops.frame_cross_attention,
        make_text_attention,
        eager_frame_cross_attention,
        "q q_weight k v eps",
        "out",
        flop=lambda s: 4 * s.lanes * s.tokens * s.text * s.width,
    ),
    "frame_audio_update": Entry(
        ops.frame_audio_update,
        make_frame_audio_update,
        eager_frame_audio_update,
        "x queries q_weight k v out_weight out_bias eps",
        "x",
        flop=lambda s: s.lanes * s.tokens * s.heads * (s.audio - 1) * (s.width + s.head_dim),
        moves=lambda values: [values[name] for name in ("x", "x", "q", "keys", "base", "update")],
        unfused=unfused_frame_audio_update,
    ),
    "cfg_euler_step": Entry(
        ops.cfg_euler_step, make_cfg_euler_step, eager_cfg_euler_step, "z v_cond v_uncond guidance dt", "z"
    ),
    "x0_renoise_step": Entry(
        ops.x0_renoise_step, make_x0_renoise_step, eager_x0_renoise_step, "z velocity noise now after held", "z"
    ),
    "latent_noise": Entry(ops.latent_noise, make_latent_noise, lambda *v: (noise.normals(*v),), "words count", "out"),
    "linear": Entry(
        ops.linear,
        make_linear,
        eager_linear,
        "x weight bias",
        "out",
        flop=lambda s: 8 * s.lanes * s.tokens * s.width**2,
        unfused=unfused_linear,
    ),
    "causal_conv3d": Entry(
        ops.causal_conv3d,
        make_causal_conv3d,
        eager_causal_conv3d,
        "x history weight bias residual eps",
        "out normed history",
        flop=conv_flop,
    ),
    "pixel_norm_silu": Entry(ops.pixel_norm_silu, make_pixel_norm_silu, eager_pixel_norm_silu, "x eps", "out"),
    "depth_to_space": Entry(ops.depth_to_space, make_depth_to_space, eager_depth_to_space, "x factors", "out"),
    "frames_to_uint8": Entry(ops.frames_to_uint8, make_frames_to_uint8, eager_frames_to_uint8, "x", "out"),
    "conv3x3": Entry(ops.conv3x3, make_conv3x3, eager_conv3x3, "x weight bias added", "out", flop=map_flop),
    "move_and_paint": Entry(
        ops.move_and_paint,
        make_move_and_paint,
        eager_move_and_paint,
        "photo flow paint inner_flow inner_paint window",
        "out",
    ),
}
