#pragma once

#include "../core.h"

namespace rest_fast {

// z <- (1 - after) (z - now velocity) + after noise, from token `held` of a session on.
struct X0RenoiseStepParams {
  void* z;               // [S, N, C] dtype
  const void* velocity;  // [S, N, C] velocity_dtype
  const void* noise;     // [S, N, C] dtype
  const float* now;      // [S]
  const float* after;    // [S]
  const int32_t* held;   // [S] in 0..N
  int64_t sessions;      // S
  int64_t tokens;        // N
  int64_t channels;      // C
  DType dtype;
  DType velocity_dtype;
};

inline int check_sizes(const X0RenoiseStepParams& p) {
  if (!known(p.dtype) || !known(p.velocity_dtype)) return kBadDType;
  if (p.sessions < 0 || p.tokens < 0 || p.channels < 0) return kBadShape;
  if (p.sessions == 0 || p.tokens == 0 || p.channels == 0) return kOk;
  if (!p.z || !p.velocity || !p.noise || !p.now || !p.after || !p.held) return kNullAddress;
  return kOk;
}

// In the order of the call.
inline auto arguments(const X0RenoiseStepParams*) {
  return std::make_tuple(REST_FAST_FIELD(z), REST_FAST_FIELD(velocity), REST_FAST_FIELD(noise),
                         REST_FAST_FIELD(now), REST_FAST_FIELD(after), REST_FAST_FIELD(held),
                         REST_FAST_FIELD(sessions), REST_FAST_FIELD(tokens),
                         REST_FAST_FIELD(channels), REST_FAST_FIELD(dtype),
                         REST_FAST_FIELD(velocity_dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int x0_renoise_step_cpu(const X0RenoiseStepParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int x0_renoise_step_cuda(const X0RenoiseStepParams& p, void* stream, int device);

}  // namespace rest_fast
