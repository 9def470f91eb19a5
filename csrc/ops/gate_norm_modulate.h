#pragma once

#include "../core.h"

namespace rest_fast {

// AdaLN vectors [B, frames, W]: the last dim is contiguous, the others may be views or shared (0).
struct Vectors {
  const void* data;
  int64_t lane_stride;
  int64_t frame_stride;
};

enum class Rounding : int { kFused = 0, kEager = 1 };
enum class Norm : int { kRms = 0, kLayer = 1, kAffine = 2 };

// x <- x + gate branch, out = norm(x) (1 + scale) + shift. Token i of N has frame
// i / (N / frames). kRms: x / sqrt(mean(x^2) + eps). kLayer: the same of x - mean(x). kAffine: of
// x - mean(x), times scale instead of 1 + scale. kFused: fp32 until x and out are stored, the norm reads the unrounded sum.
// kEager: rounded to dtype after each step of the functional reference.
struct GateNormModulateParams {
  void* x;             // [B, N, W] dtype, contiguous
  const void* branch;  // [B, N, W] dtype, contiguous, or null: x stays
  Vectors gate;        // dtype, or null: the branch is added as it is
  Vectors scale;       // dtype, needed beside out
  Vectors shift;       // dtype, needed beside out
  void* out;           // [B, N, W] dtype, contiguous, or null: no norm
  int64_t batch;       // B
  int64_t tokens;      // N
  int64_t width;       // W
  int64_t gate_frames;
  int64_t norm_frames;  // of scale and shift
  DType dtype;
  Rounding rounding;
  Norm norm;
  float eps;
};

inline int check_sizes(const GateNormModulateParams& p) {
  const int rounding = static_cast<int>(p.rounding), norm = static_cast<int>(p.norm);
  if (!known(p.dtype)) return kBadDType;
  if (p.batch < 0 || p.tokens < 0 || p.width < 0) return kBadShape;
  if (rounding < 0 || rounding > 1 || norm < 0 || norm > 2) return kBadShape;
  const auto fits = [&](int64_t frames) { return frames > 0 && p.tokens % frames == 0; };
  if ((p.gate.data && !fits(p.gate_frames)) || (p.out && !fits(p.norm_frames))) return kBadFrames;
  if (p.batch == 0 || p.tokens == 0 || p.width == 0) return kOk;
  const bool unscaled = p.out && (!p.scale.data || !p.shift.data);
  if (!p.x || unscaled || (p.gate.data && !p.branch)) return kNullAddress;
  return kOk;
}

// In the order of the call.
inline auto arguments(const GateNormModulateParams*) {
  return std::make_tuple(
      REST_FAST_FIELD(x), REST_FAST_FIELD(branch), REST_FAST_SETS("gate", (p.gate.data)),
      REST_FAST_SETS("scale", (p.scale.data)), REST_FAST_SETS("shift", (p.shift.data)),
      REST_FAST_FIELD(out), REST_FAST_FIELD(batch), REST_FAST_FIELD(tokens), REST_FAST_FIELD(width),
      REST_FAST_FIELD(gate_frames), REST_FAST_FIELD(norm_frames),
      REST_FAST_SETS("gate_lane_stride", (p.gate.lane_stride)),
      REST_FAST_SETS("gate_frame_stride", (p.gate.frame_stride)),
      REST_FAST_SETS("scale_lane_stride", (p.scale.lane_stride)),
      REST_FAST_SETS("scale_frame_stride", (p.scale.frame_stride)),
      REST_FAST_SETS("shift_lane_stride", (p.shift.lane_stride)),
      REST_FAST_SETS("shift_frame_stride", (p.shift.frame_stride)), REST_FAST_FIELD(eps),
      REST_FAST_FIELD(rounding), REST_FAST_FIELD(norm), REST_FAST_FIELD(dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int gate_norm_modulate_cpu(const GateNormModulateParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int gate_norm_modulate_cuda(const GateNormModulateParams& p, void* stream, int device);

}  // namespace rest_fast
