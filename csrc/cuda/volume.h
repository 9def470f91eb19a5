// Pixels of a tensor [B, C, T, H, W] of any strides, counted as the shape says: columns fastest.
#pragma once

#include <initializer_list>

#include "../core.h"
#include "device.h"

namespace rest_fast {

struct Pixel {
  int64_t batch, frame, row, column;
};

__device__ __host__ __forceinline__ Pixel pixel_at(int64_t index, int64_t frames, int64_t height,
                                                   int64_t width) {
  const int64_t line = index / width, picture = line / height;
  return {picture / frames, picture % frames, line % height, index % width};
}

__device__ __host__ __forceinline__ int64_t offset(const VolumeStrides& s, const Pixel& at) {
  return at.batch * s.batch + at.frame * s.frame + at.row * s.row + at.column * s.column;
}

// Whether vectors of `vec` elements along one axis, whose own stride is 1, all begin at a multiple.
inline bool steps_by(int64_t vec, std::initializer_list<int64_t> others) {
  for (const int64_t stride : others) {
    if (stride % vec != 0) return false;
  }
  return true;
}

}  // namespace rest_fast
