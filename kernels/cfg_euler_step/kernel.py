"""One program per run of elements of one session."""

import triton
import triton.language as tl


@triton.jit
def cfg_euler_step_kernel(
    z,  # [S, N, C], written
    v_cond,  # [S, N, C]
    v_uncond,  # [S, N, C]
    guidance,  # fp32 [S]
    dt,  # fp32 [S]
    numel,  # N C
    BLOCK: tl.constexpr,
):
    runs = tl.cdiv(numel, BLOCK)
    session = tl.program_id(0) // runs
    i = tl.program_id(0) % runs * BLOCK + tl.arange(0, BLOCK)
    real = i < numel
    at = session.to(tl.int64) * numel + i
    c = tl.load(v_cond + at, mask=real).to(tl.float32)
    u = tl.load(v_uncond + at, mask=real).to(tl.float32)
    v = u + tl.load(guidance + session) * (c - u)
    moved = tl.load(z + at, mask=real).to(tl.float32) + tl.load(dt + session) * v
    tl.store(z + at, moved.to(z.dtype.element_ty), mask=real)
