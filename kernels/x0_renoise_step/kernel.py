"""One program per run of elements of one session."""

import triton
import triton.language as tl


@triton.jit
def x0_renoise_step_kernel(
    z,  # [S, N, C], written
    velocity,  # [S, N, C]
    noise,  # [S, N, C]
    now,  # fp32 [S]
    after,  # fp32 [S]
    held,  # int32 [S]
    numel,  # N C
    channels,  # C
    BLOCK: tl.constexpr,
):
    runs = tl.cdiv(numel, BLOCK)
    session = tl.program_id(0) // runs
    i = tl.program_id(0) % runs * BLOCK + tl.arange(0, BLOCK)
    real = (i < numel) & (i >= tl.load(held + session) * channels)
    at = session.to(tl.int64) * numel + i
    v = tl.load(velocity + at, mask=real).to(tl.float32)
    fresh = tl.load(noise + at, mask=real).to(tl.float32)
    share = tl.load(after + session)
    clean = tl.load(z + at, mask=real).to(tl.float32) - tl.load(now + session) * v
    tl.store(z + at, ((1 - share) * clean + share * fresh).to(z.dtype.element_ty), mask=real)
