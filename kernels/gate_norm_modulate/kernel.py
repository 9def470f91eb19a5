"""One program per (lane, token): residual, norm and modulation of one row."""

import triton
import triton.language as tl


@triton.jit
def vector_of_frame(vector, lane, token, tokens, frames, lane_stride, frame_stride, c, real):
    """A modulation vector of the token's latent frame, [BLOCK] in its own dtype."""
    frame = token // (tokens // frames)
    start = vector + lane.to(tl.int64) * lane_stride + frame.to(tl.int64) * frame_stride
    return tl.load(start + c, mask=real, other=0.0)


# Alignment follows from WIDTH and the strides. The other sizes must not be specialised.
@triton.jit(do_not_specialize=["tokens", "gate_frames", "frames"])
def gate_norm_modulate_kernel(
    x,  # [B, N, W], written where there is a branch
    branch,  # [B, N, W] or None
    gate,  # [B, F, W] or None
    scale,  # [B, F, W]
    shift,  # [B, F, W]
    out,  # [B, N, W] or None
    tokens,
    gate_frames,
    frames,
    gate_lane,  # strides in elements; those of channels are 1
    gate_frame,
    scale_lane,
    scale_frame,
    shift_lane,
    shift_frame,
    eps,
    EAGER: tl.constexpr,
    NORM: tl.constexpr,  # rms, layer or affine
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tl.static_assert(BLOCK >= WIDTH, "a program holds a whole row: its norm is over all channels")
    lane, token = tl.program_id(0) // tokens, tl.program_id(0) % tokens
    c = tl.arange(0, BLOCK)
    real = c < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + c
    dtype: tl.constexpr = x.dtype.element_ty
    row = tl.load(x + at, mask=real, other=0.0).to(tl.float32)

    if branch is not None:
        added = tl.load(branch + at, mask=real, other=0.0).to(tl.float32)
        if gate is not None:
            factor = vector_of_frame(gate, lane, token, tokens, gate_frames, gate_lane, gate_frame, c, real)
            added = added * factor.to(tl.float32)
            if EAGER:
                added = added.to(dtype).to(tl.float32)
        row += added
        rounded = row.to(dtype)
        tl.store(x + at, rounded, mask=real)
        if EAGER:
            row = rounded.to(tl.float32)

    if out is not None:
        grow = vector_of_frame(scale, lane, token, tokens, frames, scale_lane, scale_frame, c, real).to(tl.float32)
        if NORM != "affine":
            grow += 1
            if EAGER:
                grow = grow.to(dtype).to(tl.float32)
        if NORM != "rms":
            row = tl.where(real, row - tl.sum(row) / WIDTH, 0.0)
        move = vector_of_frame(shift, lane, token, tokens, frames, shift_lane, shift_frame, c, real).to(tl.float32)
        normed = row * tl.rsqrt(tl.sum(row * row) / WIDTH + eps)
        tl.store(out + at, (normed * grow + move).to(dtype), mask=real)
