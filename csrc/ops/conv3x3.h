#pragma once

#include "../core.h"

namespace rest_fast {

constexpr int kConvPoints = 36;  // at which a tile and the weight are multiplied
constexpr int kConvBlock = 16;   // output channels that lie together in the weight

// y = W * s(x) + bias, s = SiLU or nothing;  out = (s'(y) + added) scale + shift: a convolution of
// 3 x 3 with zeros outside. Maps have channels innermost, without gaps.
struct Conv3x3Params {
  const float* x;       // [frames, height, width, channels]
  const float* points;  // [ceil(out_channels / 16), 36, channels, 16]: the weight at the points
  const float* bias;    // [out_channels], or null
  const float* added;   // [added_frames, height, width, out_channels], or null
  const float* scale;   // [frames, out_channels], or null together with shift
  const float* shift;   // [frames, out_channels]
  float* out;           // [frames, height, width, out_channels], not the memory of x or added
  int64_t frames;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t out_channels;
  int64_t added_frames;  // divides frames: each is added to that many frames, one after another
  int64_t silu_before;   // 1: s is SiLU, 0: nothing
  int64_t silu_after;    // the same of s'
  int64_t vector_width;  // of a CPU; 0: as wide as the machine has; 4, 8, 16: that version
};

inline int check_sizes(const Conv3x3Params& p) {
  const bool negative = p.frames < 0 || p.height < 0 || p.width < 0 || p.added_frames < 0;
  if (negative || p.channels < 0 || p.out_channels < 0) return kBadShape;
  if (p.frames == 0 || p.height == 0 || p.width == 0 || p.out_channels == 0) return kOk;
  if (p.channels > 0 && (!p.x || !p.points)) return kNullAddress;
  if (!p.out || !p.scale != !p.shift) return kNullAddress;
  const bool whole = p.added_frames > 0 && p.frames % p.added_frames == 0;
  return p.added && !whole ? kBadShape : kOk;
}

// In the order of the call.
inline auto arguments(const Conv3x3Params*) {
  return std::make_tuple(
      REST_FAST_FIELD(x), REST_FAST_FIELD(points), REST_FAST_FIELD(bias), REST_FAST_FIELD(added),
      REST_FAST_FIELD(scale), REST_FAST_FIELD(shift), REST_FAST_FIELD(out),
      REST_FAST_SETS("shape", std::tie(p.frames, p.height, p.width, p.channels, p.out_channels)),
      REST_FAST_FIELD(added_frames),
      REST_FAST_SETS("silu", std::tie(p.silu_before, p.silu_after)),
      REST_FAST_FIELD(vector_width));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int conv3x3_cpu(const Conv3x3Params& p);

}  // namespace rest_fast
