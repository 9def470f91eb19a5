// Philox4x32-10 and Box-Muller in float64, as C++ and CUDA C++ share them for latent_noise.
//
// Integers are exact. The logarithm, sine and cosine are the series of
// kernels/latent_noise/kernel.py, where their errors are argued: before the rounding to float32 a
// number is off by at most 10 units of 2^-53, relatively. One rounding is kept as the reference has
// it, that of the angle.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__) || defined(REST_FAST_CUDA_ON_CPU)
#include "cuda/device.h"
#define REST_FAST_INLINE __device__ __forceinline__
#else
#include "cpu/common.h"
#endif

namespace rest_fast {

constexpr int kNoiseWords = 5;  // of a frame

REST_FAST_INLINE double as_double(uint64_t u) {
  double d;
  memcpy(&d, &u, sizeof(d));
  return d;
}

REST_FAST_INLINE uint64_t as_bits(double d) {
  uint64_t u;
  memcpy(&u, &d, sizeof(u));
  return u;
}

// a b, rounded before anything is added to it.
REST_FAST_INLINE double rounded_product(double a, double b) {
#if defined(__CUDACC__) || defined(REST_FAST_CUDA_ON_CPU)
  return __dmul_rn(a, b);
#else
  return a * b;  // the file is compiled without contraction of products and sums
#endif
}

constexpr uint64_t kTwo52Bits = 0x4330000000000000u;  // 2^52, whose unit in the last place is 1
constexpr double kTwo52 = 4503599627370496.0;

// (word + 0.5) / 2^32, exactly; never 0 or 1.
REST_FAST_INLINE double uniform(uint32_t word) {
  return (as_double(kTwo52Bits | word) - (kTwo52 - 0.5)) * 0x1p-32;
}

// ln x for x in 2^-33 .. 1: x = m 2^e with m in sqrt(1/2) .. sqrt(2), and ln m = 2 artanh(s).
REST_FAST_INLINE double natural_logarithm(double x) {
  constexpr uint64_t kSqrtHalfBits = 0x3FE6A09E667F3BCDu;
  constexpr double kLn2High = 0x1.62e42fefap-1;  // 36 bits: its product with e is exact
  constexpr double kLn2Low = 0x1.cf79abc9e3b3ap-40;
  const uint64_t shifted =  // e + 1024
      (as_bits(x) - kSqrtHalfBits + (uint64_t{1024} << 52)) >> 52;
  const double m = as_double(as_bits(x) - ((shifted - 1024) << 52));
  const double e = as_double(kTwo52Bits | shifted) - (kTwo52 + 1024);
  const double s = (m - 1) / (m + 1);
  const double t = s * s;
  double series = 1.0 / 21;
  series = series * t + 1.0 / 19;
  series = series * t + 1.0 / 17;
  series = series * t + 1.0 / 15;
  series = series * t + 1.0 / 13;
  series = series * t + 1.0 / 11;
  series = series * t + 1.0 / 9;
  series = series * t + 1.0 / 7;
  series = series * t + 1.0 / 5;
  series = series * t + 1.0 / 3;
  const double twice = 2 * s;
  return e * kLn2High + (e * kLn2Low + (twice + twice * (t * series)));
}

// Cosine and sine of 2 pi v, v = uniform(word), the angle rounded to float64 as the reference does:
// angle = q pi / 2 + r with |r| <= pi / 4, where q is read from the word, and the series of r.
REST_FAST_INLINE void cosine_and_sine(uint32_t word, double& cosine, double& sine) {
  constexpr double kTwoPi = 6.283185307179586;
  constexpr double kHalfPiHigh = 0x1.921fb544p+0;  // 33 bits: products with q <= 4 are exact
  constexpr double kHalfPiMiddle = 0x1.0b4611a6p-34;
  constexpr double kHalfPiLow = 0x1.3198a2e037073p-69;
  const double angle = rounded_product(kTwoPi, uniform(word));
  const uint64_t turns = ((word >> 29) + 1) >> 1;
  const double q = as_double(kTwo52Bits | turns) - kTwo52;
  const double r = ((angle - q * kHalfPiHigh) - q * kHalfPiMiddle) - q * kHalfPiLow;
  const double t = r * r;
  double odd = 1.0 / 355687428096000;  // 17!
  odd = odd * t - 1.0 / 1307674368000;
  odd = odd * t + 1.0 / 6227020800;
  odd = odd * t - 1.0 / 39916800;
  odd = odd * t + 1.0 / 362880;
  odd = odd * t - 1.0 / 5040;
  odd = odd * t + 1.0 / 120;
  odd = odd * t - 1.0 / 6;
  double even = 1.0 / 20922789888000;  // 16!
  even = even * t - 1.0 / 87178291200;
  even = even * t + 1.0 / 479001600;
  even = even * t - 1.0 / 3628800;
  even = even * t + 1.0 / 40320;
  even = even * t - 1.0 / 720;
  even = even * t + 1.0 / 24;
  even = even * t - 0.5;
  const uint64_t sine_bits = as_bits(r + r * (t * odd));
  const uint64_t cosine_bits = as_bits(1 + t * even);
  // A quarter turn swaps the two; signs follow from the quadrant.
  const uint64_t swapped = 0 - (turns & 1);
  const uint64_t change = (sine_bits ^ cosine_bits) & swapped;
  cosine = as_double((cosine_bits ^ change) ^ (((turns + 1) & 2) << 62));
  sine = as_double((sine_bits ^ change) ^ ((turns & 2) << 62));
}

// One of the ten rounds, on the counter c with the key's words of this round.
REST_FAST_INLINE void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3,
                                   uint32_t k0, uint32_t k1) {
  const uint64_t product0 = uint64_t{c0} * 0xD2511F53u;
  const uint64_t product1 = uint64_t{c2} * 0xCD9E8D57u;
  c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
  c1 = static_cast<uint32_t>(product1);
  c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
  c3 = static_cast<uint32_t>(product0);
}

// The key's words of the next round.
REST_FAST_INLINE void next_key(uint32_t& k0, uint32_t& k1) {
  k0 += 0x9E3779B9u;
  k1 += 0xBB67AE85u;
}

// Two words of Philox to two numbers.
REST_FAST_INLINE void normal_pair(uint32_t radial, uint32_t angular, float& first, float& second) {
  const double radius = sqrt(-2 * natural_logarithm(uniform(radial)));
  double cosine, sine;
  cosine_and_sine(angular, cosine, sine);
  first = static_cast<float>(radius * cosine);
  second = static_cast<float>(radius * sine);
}

}  // namespace rest_fast
