// Guidance and the sampler's step, z <- z + dt (v_uncond + guidance (v_cond - v_uncond)).
//
// Layout: ops/cfg_euler_step.h. A thread computes one vector of a session's latents: three reads
// and one write an element, at any dtype of latents and of velocities. fp32 inside, one rounding.
#include "../ops/cfg_euler_step.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 256;

template <class T, class V, int kVec>
__global__ void __launch_bounds__(kThreads) cfg_euler_step_kernel(const CfgEulerStepParams p) {
  const int64_t session = blockIdx.y;
  const int64_t vector = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (vector >= p.numel / kVec) return;
  const float guidance = p.guidance[session], dt = p.dt[session];
  const int64_t start = session * p.numel;
  T* z = static_cast<T*>(p.z) + start;
  const auto cond = load<V, kVec>(static_cast<const V*>(p.v_cond) + start, vector);
  const auto uncond = load<V, kVec>(static_cast<const V*>(p.v_uncond) + start, vector);
  auto next = load<T, kVec>(z, vector);
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    const float u = to_float(uncond.at[e]);
    const float v = u + guidance * (to_float(cond.at[e]) - u);
    next.at[e] = round_to<T>(to_float(next.at[e]) + dt * v);
  }
  store<T, kVec>(z, vector, next);
}

template <class T, class V>
int dispatch(const CfgEulerStepParams& p, void* stream) {
  constexpr int kWide = 16 / (sizeof(T) > sizeof(V) ? sizeof(T) : sizeof(V));
  const bool in_vectors = p.numel % kWide == 0 && aligned({p.z}, kWide * sizeof(T)) &&
                          aligned({p.v_cond, p.v_uncond}, kWide * sizeof(V));
  const auto kernel =
      in_vectors ? cfg_euler_step_kernel<T, V, kWide> : cfg_euler_step_kernel<T, V, 1>;
  const int64_t vectors = p.numel / (in_vectors ? kWide : 1);
  return launch_each(kernel, p, vectors, p.sessions, kThreads, stream);
}

}  // namespace

int cfg_euler_step_cuda(const CfgEulerStepParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.sessions == 0 || p.numel == 0) return kOk;
  return on_device(device, p.dtype, [&](auto z) {
    return by_dtype(p.velocity_dtype,
                    [&](auto v) { return dispatch<decltype(z), decltype(v)>(p, stream); });
  });
}

}  // namespace rest_fast
