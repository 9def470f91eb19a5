#pragma once

#include "../core.h"

namespace rest_fast {

// RMS norm over the channels of each pixel, scale and shift, SiLU.
struct PixelNormSiluParams {
  const void* x;      // [B, C, T, H, W] dtype, any strides
  const void* scale;  // [C] dtype, or null: as if zero
  const void* shift;  // [C] dtype, or null: as if zero
  void* out;          // [B, C, T, H, W] dtype, any strides without overlap, not x's memory
  int64_t batch;
  int64_t channels;
  int64_t frames;
  int64_t height;
  int64_t width;
  VolumeStrides x_strides;
  VolumeStrides out_strides;
  DType dtype;
  float eps;
};

inline int check_sizes(const PixelNormSiluParams& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  return negative || p.channels < 0 ? kBadShape : kOk;
}

// In the order of the call.
inline auto arguments(const PixelNormSiluParams*) {
  return std::make_tuple(
      REST_FAST_FIELD(x), REST_FAST_FIELD(scale), REST_FAST_FIELD(shift), REST_FAST_FIELD(out),
      REST_FAST_SETS("shape", std::tie(p.batch, p.channels, p.frames, p.height, p.width)),
      REST_FAST_FIELD(x_strides), REST_FAST_FIELD(out_strides), REST_FAST_FIELD(eps),
      REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int pixel_norm_silu_cpu(const PixelNormSiluParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int pixel_norm_silu_cuda(const PixelNormSiluParams& p, void* stream, int device);

}  // namespace rest_fast
