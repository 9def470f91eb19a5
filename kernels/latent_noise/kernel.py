"""One program per run of Philox blocks, each of four numbers, of one frame.

The logarithm, sine and cosine are written out. Those of CUDA's library reduce any angle, for which they keep a table on
a stack; here u and v are multiples of 2^-33 in (0, 1), so little is to be reduced and all of it exactly. Errors of a
number relative to itself, in units of 2^-53 (half a unit in the last place of float64), each rounding being one:

* the logarithm 5: s has three roundings, its series adds fewer than one more, the last sums two (e ln 2 and ln m have
  opposite signs at most where the former is twice the latter); the root halves them and adds one, so that 4 are left.
* cosine and sine 4: r has two, from the middle and the low part of pi / 2; the series' last product and sum.
* the product of root and cosine: 1.

So a number is within 10 such units of the exact value for 2 pi v rounded to float64, the angle that the reference has.
"""

import triton
import triton.language as tl

MULTIPLIER_0, MULTIPLIER_1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
WEYL_0, WEYL_1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
LN2_HIGH, LN2_LOW = tl.constexpr(0.6931471805582987), tl.constexpr(1.6465949582897082e-12)  # the first has 36 bits
HALF_PI_HIGH = tl.constexpr(1.5707963267341256)  # 33 bits, as the next
HALF_PI_MIDDLE, HALF_PI_LOW = tl.constexpr(6.077100506303966e-11), tl.constexpr(2.0222662487959506e-21)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds; all words uint32."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, MULTIPLIER_0), c0 * MULTIPLIER_0
        high1, low1 = tl.umulhi(c2, MULTIPLIER_1), c2 * MULTIPLIER_1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + WEYL_0, k1 + WEYL_1
    return c0, c1, c2, c3


@triton.jit
def uniform(word):
    """(word + 0.5) / 2^32, exactly; never 0 or 1."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def natural_logarithm(x):
    """ln x for x in 2^-33 .. 1: x = m 2^e with m in sqrt(1/2) .. sqrt(2), and ln m = 2 artanh(s), by its series.

    |s| < 0.1716, so that the first term left out, s^22 / 23 of the whole, is under 2^-60.
    """
    bits = x.to(tl.int64, bitcast=True)
    e = (bits - 0x3FE6A09E667F3BCD) >> 52  # the bits of sqrt(1/2)
    m = (bits - (e << 52)).to(tl.float64, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    t = s * s
    series = t * (1.0 / 21.0) + 1.0 / 19.0
    series = series * t + 1.0 / 17.0
    series = series * t + 1.0 / 15.0
    series = series * t + 1.0 / 13.0
    series = series * t + 1.0 / 11.0
    series = series * t + 1.0 / 9.0
    series = series * t + 1.0 / 7.0
    series = series * t + 1.0 / 5.0
    series = series * t + 1.0 / 3.0
    twice = 2.0 * s
    e = e.to(tl.float64)
    return e * LN2_HIGH + (e * LN2_LOW + (twice + twice * (t * series)))


@triton.jit
def cosine_and_sine(word):
    """Of 2 pi v, v = uniform(word): angle = q pi / 2 + r with |r| <= pi / 4, and the series of r up to r^17.

    The angle is rounded to float64 as in the reference. q is read from the word. pi / 2 is in three parts of 33, 33 and
    53 bits: the products of the first two with q are exact, and |r| > 2^-31 has all its bits.
    """
    angle = uniform(word) * 6.283185307179586
    turns = ((word >> 29) + 1) >> 1  # 0 .. 4
    q = turns.to(tl.float64)
    # Written as one instruction: a compiler could take angle's own product into it, whose rounding the reference has.
    high = tl.full(q.shape, HALF_PI_HIGH, tl.float64)  # a bare number would become float32
    r = (tl.fma(-q, high, angle) - q * HALF_PI_MIDDLE) - q * HALF_PI_LOW
    t = r * r
    odd = t * (1.0 / 355687428096000.0) - 1.0 / 1307674368000.0  # 1 / 17!, 1 / 15!
    odd = odd * t + 1.0 / 6227020800.0
    odd = odd * t - 1.0 / 39916800.0
    odd = odd * t + 1.0 / 362880.0
    odd = odd * t - 1.0 / 5040.0
    odd = odd * t + 1.0 / 120.0
    odd = odd * t - 1.0 / 6.0
    even = t * (1.0 / 20922789888000.0) - 1.0 / 87178291200.0  # 1 / 16!, 1 / 14!
    even = even * t + 1.0 / 479001600.0
    even = even * t - 1.0 / 3628800.0
    even = even * t + 1.0 / 40320.0
    even = even * t - 1.0 / 720.0
    even = even * t + 1.0 / 24.0
    even = even * t - 0.5
    sine, cosine = r + r * (t * odd), 1.0 + t * even
    # A quarter turn swaps the two; signs follow from the quadrant.
    swapped = (turns & 1) != 0
    first, second = tl.where(swapped, sine, cosine), tl.where(swapped, cosine, sine)
    return tl.where(((turns + 1) & 2) != 0, -first, first), tl.where((turns & 2) != 0, -second, second)


@triton.jit
def latent_noise_kernel(
    out,  # fp32 [frames, count], written
    words,  # int32 [frames, 5]
    count,
    BLOCKS: tl.constexpr,
):
    runs = tl.cdiv(count, 4 * BLOCKS)
    frame, first = (tl.program_id(0) // runs).to(tl.int64), tl.program_id(0) % runs * BLOCKS
    k0 = tl.load(words + frame * 5).to(tl.uint32, bitcast=True)
    k1 = tl.load(words + frame * 5 + 1).to(tl.uint32, bitcast=True)
    c0 = (first + tl.arange(0, BLOCKS)).to(tl.uint32)
    c1 = tl.zeros_like(c0) + tl.load(words + frame * 5 + 2).to(tl.uint32, bitcast=True)
    c2 = tl.zeros_like(c0) + tl.load(words + frame * 5 + 3).to(tl.uint32, bitcast=True)
    c3 = tl.zeros_like(c0) + tl.load(words + frame * 5 + 4).to(tl.uint32, bitcast=True)
    c0, c1, c2, c3 = philox4x32(c0, c1, c2, c3, k0, k1)
    radius = tl.sqrt(-2.0 * natural_logarithm(uniform(tl.join(c0, c2))))  # [BLOCKS, 2]
    cosine, sine = cosine_and_sine(tl.join(c1, c3))
    numbers = tl.join((radius * cosine).to(tl.float32), (radius * sine).to(tl.float32))  # [BLOCKS, pair, 2]
    i = 4 * first + tl.arange(0, 4 * BLOCKS)
    tl.store(out + frame * count + i, tl.reshape(numbers, (4 * BLOCKS,)), mask=i < count)
