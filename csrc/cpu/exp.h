// exp for loops that the compiler vectorises: plain arithmetic and selects, no library call.
//
// For pixel_norm_silu and frame_cross_attention, whose loops are plain floats. exp2_nonpositive in
// vectors.h is for vectors, and for scores that already carry a factor log2(e): it saves the
// reduction by ln 2, and needs no select beside arithmetic to become vector code below AVX-512.
#pragma once

#include "common.h"

namespace rest_fast {

// e^x for x <= 0; NaN passes, and below -86.5 the result is 0 instead of at most 2.7e-38.
//
// x = n ln 2 + r with |r| <= ln(2) / 2, and e^r by its Taylor series up to r^7 / 7!, whose
// remainder is under 5.2e-9, a tenth of a unit of 2^-24. With the roundings of r (n * kLn2High is
// exact: 7 and 15 bits), of the last Horner steps and of the series as a whole, that stays within 2
// such units.
REST_FAST_INLINE float exp_nonpositive(float x) {
  constexpr float kLeast = -86.5f;       // e^r 2^n is still a normal number
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the sum has an integer in its low bits
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693145752f;  // 15 bits of ln 2
  constexpr float kLn2Low = 1.42860677e-6f;

  const float bounded = x < kLeast ? kLeast : x;
  const float shifted = bounded * kLog2E + kShift;
  const float n = shifted - kShift;
  const float r = (bounded - n * kLn2High) - n * kLn2Low;
  float series = 1.0f / 5040 * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const float power = as_float((as_bits(shifted) + 127u) << 23);  // 2^n
  return x < kLeast ? 0.0f : series * power;
}

}  // namespace rest_fast
