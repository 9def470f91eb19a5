#pragma once

#include "../core.h"

namespace rest_fast {

// Channels (c, p1, p2, p3), c slowest, into frames, rows and columns; `drop` frames are left out.
struct DepthToSpaceParams {
  const void* x;     // [B, C p1 p2 p3, T, H, W] of any element, any strides
  void* out;         // [B, C, T p1 - drop, H p2, W p3], any strides without overlap, not x's memory
  int64_t batch;     // B, and so on: the sizes of x, but for
  int64_t channels;  // C, those of out
  int64_t frames;
  int64_t height;
  int64_t width;
  int64_t factor_t;  // p1
  int64_t factor_h;  // p2
  int64_t factor_w;  // p3
  int64_t drop;      // 0 .. T p1 - 1
  VolumeStrides x_strides;
  VolumeStrides out_strides;
  int64_t element_size;  // bytes: 1, 2, 4 or 8
};

inline int check_sizes(const DepthToSpaceParams& p) {
  const int64_t size = p.element_size;
  if (size != 1 && size != 2 && size != 4 && size != 8) return kBadElementSize;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  if (negative || p.channels < 0) return kBadShape;
  if (p.factor_t < 1 || p.factor_h < 1 || p.factor_w < 1) return kBadFactors;
  return p.drop < 0 || p.drop >= p.frames * p.factor_t ? kBadFactors : kOk;
}

// In the order of the call.
inline auto arguments(const DepthToSpaceParams*) {
  return std::make_tuple(
      REST_FAST_FIELD(x), REST_FAST_FIELD(out),
      REST_FAST_SETS("shape", std::tie(p.batch, p.channels, p.frames, p.height, p.width)),
      REST_FAST_SETS("factors", std::tie(p.factor_t, p.factor_h, p.factor_w)),
      REST_FAST_FIELD(drop), REST_FAST_FIELD(x_strides), REST_FAST_FIELD(out_strides),
      REST_FAST_FIELD(element_size));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int depth_to_space_cpu(const DepthToSpaceParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int depth_to_space_cuda(const DepthToSpaceParams& p, void* stream, int device);

}  // namespace rest_fast
