"""Small kernels, good and bad, to try the harness of offline compilation on."""

import triton
import triton.language as tl


@triton.jit
def scaled(x, out, n, step, BLOCK: tl.constexpr):
    """Every ``step``-th number."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, 2.0 * tl.load(x + i * step, mask=i < n), mask=i < n)


@triton.jit
def softmax(x, out, BLOCK: tl.constexpr):
    """One row, all of it in the registers of one program."""
    i = tl.arange(0, BLOCK)
    y = tl.load(x + i)
    y = tl.exp(y - tl.max(y, 0))
    tl.store(out + i, y / tl.sum(y, 0))


@triton.jit
def products(x, y, out, COMMON: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """[ROWS, ROWS] from [ROWS, COMMON] twice."""
    i, k = tl.arange(0, ROWS), tl.arange(0, COMMON)
    a = tl.load(x + i[:, None] * COMMON + k[None, :])
    b = tl.load(y + i[:, None] * COMMON + k[None, :])
    tl.store(out + i[:, None] * ROWS + i[None, :], tl.dot(a, tl.trans(b), input_precision=PRECISION))
