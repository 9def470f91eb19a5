// What is done to the numbers of one pixel.
#pragma once

#include "device.h"

namespace rest_fast {

// round(clamp((x + 1) 127.5, 0, 255)), ties to even, NaN to 0. The sum comes before the product so
// that no compiler can make one rounding of the two.
__device__ __forceinline__ uint8_t to_byte(float x) {
  const float y = fminf(fmaxf((x + 1.0f) * 127.5f, 0.0f), 255.0f);  // fmaxf of NaN and 0 is 0
  return static_cast<uint8_t>(rintf(y));
}

}  // namespace rest_fast
