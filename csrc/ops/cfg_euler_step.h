#pragma once

#include "../core.h"

namespace rest_fast {

// Guidance and Euler update, z <- z + dt (v_uncond + guidance (v_cond - v_uncond)).
struct CfgEulerStepParams {
  void* z;                // [S, numel] dtype
  const void* v_cond;     // [S, numel] velocity_dtype
  const void* v_uncond;   // [S, numel] velocity_dtype
  const float* guidance;  // [S]
  const float* dt;        // [S]
  int64_t sessions;       // S
  int64_t numel;
  DType dtype;
  DType velocity_dtype;
};

inline int check_sizes(const CfgEulerStepParams& p) {
  if (!known(p.dtype) || !known(p.velocity_dtype)) return kBadDType;
  if (p.sessions < 0 || p.numel < 0) return kBadShape;
  if (p.sessions == 0 || p.numel == 0) return kOk;
  if (!p.z || !p.v_cond || !p.v_uncond || !p.guidance || !p.dt) return kNullAddress;
  return kOk;
}

// In the order of the call.
inline auto arguments(const CfgEulerStepParams*) {
  return std::make_tuple(REST_FAST_FIELD(z), REST_FAST_FIELD(v_cond), REST_FAST_FIELD(v_uncond),
                         REST_FAST_FIELD(guidance), REST_FAST_FIELD(dt), REST_FAST_FIELD(sessions),
                         REST_FAST_FIELD(numel), REST_FAST_FIELD(dtype),
                         REST_FAST_FIELD(velocity_dtype));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int cfg_euler_step_cpu(const CfgEulerStepParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int cfg_euler_step_cuda(const CfgEulerStepParams& p, void* stream, int device);

}  // namespace rest_fast
