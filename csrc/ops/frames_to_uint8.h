#pragma once

#include "../core.h"

namespace rest_fast {

// Decoder output, about -1..1, to bytes.
struct FramesToUint8Params {
  const void* x;  // [B, 3, T, H, W] dtype, any strides
  uint8_t* out;   // [B, T, H, W, 3], contiguous
  int64_t batch;
  int64_t frames;
  int64_t height;
  int64_t width;
  VolumeStrides x_strides;
  DType dtype;
};

inline int check_sizes(const FramesToUint8Params& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  return negative ? kBadShape : kOk;
}

// In the order of the call.
inline auto arguments(const FramesToUint8Params*) {
  return std::make_tuple(REST_FAST_FIELD(x), REST_FAST_FIELD(out),
                         REST_FAST_SETS("shape", std::tie(p.batch, p.frames, p.height, p.width)),
                         REST_FAST_FIELD(x_strides), REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int frames_to_uint8_cpu(const FramesToUint8Params& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int frames_to_uint8_cuda(const FramesToUint8Params& p, void* stream, int device);

}  // namespace rest_fast
