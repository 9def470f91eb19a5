// Solid noise: random numbers at the points of a lattice, blended smoothly between them.
#pragma once

#include <cstdint>

#include "../cpu/common.h"

namespace rest_fast::heads {

// Numbers that are close become numbers that have nothing in common.
REST_FAST_INLINE uint32_t scatter(uint32_t h) {
  h = (h ^ (h >> 15)) * 0x2c1b3c6du;
  h = (h ^ (h >> 12)) * 0x297a2d39u;
  return h ^ (h >> 15);
}

REST_FAST_INLINE float lattice(int32_t x, int32_t y, int32_t z, uint32_t seed) {
  const uint32_t h =
      scatter(static_cast<uint32_t>(x) * 0x8da6b343u ^ static_cast<uint32_t>(y) * 0xd8163841u ^
              static_cast<uint32_t>(z) * 0xcb1ab31fu ^ seed);
  return static_cast<float>(static_cast<int32_t>(h)) * (1.0f / 2147483648.0f);
}

REST_FAST_INLINE int32_t whole(float x) {
  const int32_t i = static_cast<int32_t>(x);
  return i - (x < static_cast<float>(i) ? 1 : 0);
}

// -1 .. 1, one change of sign per unit or so.
REST_FAST_INLINE float noise(float x, float y, float z, uint32_t seed) {
  const int32_t i = whole(x), j = whole(y), k = whole(z);
  float u = x - i, v = y - j, w = z - k;
  u = u * u * (3.0f - 2.0f * u);
  v = v * v * (3.0f - 2.0f * v);
  w = w * w * (3.0f - 2.0f * w);
  float plane[2];
  for (int c = 0; c < 2; ++c) {
    const float a = lattice(i, j, k + c, seed), b = lattice(i + 1, j, k + c, seed);
    const float d = lattice(i, j + 1, k + c, seed), e = lattice(i + 1, j + 1, k + c, seed);
    const float low = a + u * (b - a), high = d + u * (e - d);
    plane[c] = low + v * (high - low);
  }
  return plane[0] + w * (plane[1] - plane[0]);
}

}  // namespace rest_fast::heads
