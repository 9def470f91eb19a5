#pragma once

#include "../core.h"

namespace rest_fast {

constexpr int kMaxConvChannels = 8192;  // of conv_epilogue_cpu: a pixel lies on the stack

// What follows a convolution: noise, residual, channels into frames, rows and columns; then the sum
// itself, its norm with SiLU, or bytes. Channels are innermost everywhere (stride 1).
struct ConvEpilogueParams {
  const void* conv;         // [B, C p1 p2 p3, T, H, W] dtype
  const void* noise;        // [B, H, W] dtype, contiguous, or null
  const void* noise_scale;  // [C p1 p2 p3] dtype, beside noise
  const void* residual;     // [B, residual_channels, T, H, W] dtype, tiled over channels, or null
  const void* scale;        // [C] dtype, or null: as if zero
  const void* shift;        // [C] dtype, or null: as if zero
  void* out;          // [B, C, T p1 - drop, H p2, W p3] dtype, or null; may be the residual itself
  void* normed;       // the same shape, or null
  uint8_t* pictures;  // [B, T p1 - drop, H p2, W p3, 3], contiguous, C = 3; or null
  int64_t batch;      // B, and so on: the sizes of conv, but for
  int64_t channels;   // C, those of out
  int64_t residual_channels;  // divides C p1 p2 p3
  int64_t frames;
  int64_t height;
  int64_t width;
  int64_t factor_t;  // p1
  int64_t factor_h;  // p2
  int64_t factor_w;  // p3
  int64_t drop;      // 0 .. T p1 - 1
  VolumeStrides conv_strides;
  VolumeStrides residual_strides;
  VolumeStrides out_strides;
  VolumeStrides normed_strides;
  DType dtype;
  float eps;
};

inline int check_sizes(const ConvEpilogueParams& p) {
  if (!known(p.dtype)) return kBadDType;
  const bool negative = p.batch < 0 || p.frames < 0 || p.height < 0 || p.width < 0;
  if (negative || p.channels < 0) return kBadShape;
  if (p.factor_t < 1 || p.factor_h < 1 || p.factor_w < 1) return kBadFactors;
  if (p.drop < 0 || p.drop >= p.frames * p.factor_t) return kBadFactors;
  const int64_t channels = p.channels * p.factor_t * p.factor_h * p.factor_w;
  if (channels > kMaxConvChannels || (p.pictures && p.channels != 3)) return kBadShape;
  if (p.residual && (p.residual_channels < 1 || channels % p.residual_channels)) return kBadShape;
  if (p.batch * p.height * p.width * channels == 0) return kOk;
  if (!p.conv || (p.noise && !p.noise_scale)) return kNullAddress;
  const auto innermost = [](const void* tensor, const VolumeStrides& strides) {
    return tensor == nullptr || strides.channel == 1;
  };
  const bool read = innermost(p.conv, p.conv_strides) && innermost(p.residual, p.residual_strides);
  const bool written = innermost(p.out, p.out_strides) && innermost(p.normed, p.normed_strides);
  return read && written ? kOk : kBadLayout;
}

// In the order of the call.
inline auto arguments(const ConvEpilogueParams*) {
  return std::make_tuple(
      REST_FAST_FIELD(conv), REST_FAST_FIELD(noise), REST_FAST_FIELD(noise_scale),
      REST_FAST_FIELD(residual), REST_FAST_FIELD(scale), REST_FAST_FIELD(shift),
      REST_FAST_FIELD(out), REST_FAST_FIELD(normed), REST_FAST_FIELD(pictures),
      REST_FAST_SETS("shape", std::tie(p.batch, p.channels, p.frames, p.height, p.width)),
      REST_FAST_FIELD(residual_channels),
      REST_FAST_SETS("factors", std::tie(p.factor_t, p.factor_h, p.factor_w)),
      REST_FAST_FIELD(drop), REST_FAST_FIELD(conv_strides), REST_FAST_FIELD(residual_strides),
      REST_FAST_FIELD(out_strides), REST_FAST_FIELD(normed_strides), REST_FAST_FIELD(eps),
      REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int conv_epilogue_cpu(const ConvEpilogueParams& p);

}  // namespace rest_fast
