// What is done to the numbers of one pixel: modulation, SiLU, bytes.
#pragma once

#include "exp.h"

namespace rest_fast {

// y <= 0 goes through e^y and y > 0 through e^-y, so that nothing overflows.
REST_FAST_INLINE float silu(float y) {
  const float e = exp_nonpositive(-std::fabs(y));
  return (y < 0.0f ? y * e : y) / (1.0f + e);
}

// (1 + scale, shift) of a channel. Without shift -0 is added, which changes no number, not even -0.
template <class T>
REST_FAST_INLINE float factor(const T* scale, int64_t channel) {
  return scale == nullptr ? 1.0f : 1.0f + to_float(scale[channel]);
}
template <class T>
REST_FAST_INLINE float summand(const T* shift, int64_t channel) {
  return shift == nullptr ? -0.0f : to_float(shift[channel]);
}

// round(clamp((x + 1) * 127.5, 0, 255)), ties to even, NaN to 0. The sum comes before the product
// so that no compiler can make one rounding of the two.
REST_FAST_INLINE uint8_t to_byte(float x) {
  const float value = (x + 1.0f) * 127.5f;
  const float above = value > 0.0f ? value : 0.0f;  // NaN fails the comparison
  const float bounded = above < 255.0f ? above : 255.0f;
  // Adding 2^23 leaves no fraction bits: the adder rounds, and the integer is in the low bits.
  return static_cast<uint8_t>(as_bits(bounded + 8388608.0f));
}

}  // namespace rest_fast
