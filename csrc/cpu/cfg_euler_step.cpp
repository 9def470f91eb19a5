// Guidance and Euler update, z <- z + dt (v_u + g (v_c - v_u)), one pass over the latents.
//
// Layout: ops/cfg_euler_step.h. Why it exists: three reads and one write, where eager PyTorch runs
// six kernels and stores what lies between them.
#include "../ops/cfg_euler_step.h"

#include "common.h"

namespace rest_fast {
namespace {

template <class Z, class V>
REST_FAST_INLINE void step(const CfgEulerStepParams& p, int64_t session, int64_t begin,
                           int64_t end) {
  const float guidance = p.guidance[session];
  const float dt = p.dt[session];
  Z* __restrict z = static_cast<Z*>(p.z) + session * p.numel;
  const V* __restrict v_cond = static_cast<const V*>(p.v_cond) + session * p.numel;
  const V* __restrict v_uncond = static_cast<const V*>(p.v_uncond) + session * p.numel;
  for (int64_t i = begin; i < end; ++i) {
    const float u = to_float(v_uncond[i]);
    const float v = u + guidance * (to_float(v_cond[i]) - u);
    round_to(to_float(z[i]) + dt * v, z[i]);
  }
}

// Elements [begin, end) of S x numel.
template <class Z, class V>
REST_FAST_INLINE void run_range(const CfgEulerStepParams& p, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t session = begin / p.numel;
    const int64_t first = session * p.numel;
    const int64_t stop = std::min(end, first + p.numel);
    step<Z, V>(p, session, begin - first, stop - first);
    begin = stop;
  }
}

template <class Z>
REST_FAST_INLINE void run_latents(const CfgEulerStepParams& p, int64_t begin, int64_t end) {
  switch (p.velocity_dtype) {
    case DType::kFloat32: return run_range<Z, float>(p, begin, end);
    case DType::kBFloat16: return run_range<Z, BFloat16>(p, begin, end);
    case DType::kFloat16: return run_range<Z, Float16>(p, begin, end);
  }
}

// GCC does not multi-version templates, hence one plain function per dtype.
REST_FAST_MULTI_ISA void run_float32(const CfgEulerStepParams& p, int64_t begin, int64_t end) {
  run_latents<float>(p, begin, end);
}
REST_FAST_MULTI_ISA void run_bfloat16(const CfgEulerStepParams& p, int64_t begin, int64_t end) {
  run_latents<BFloat16>(p, begin, end);
}
REST_FAST_MULTI_ISA void run_float16(const CfgEulerStepParams& p, int64_t begin, int64_t end) {
  run_latents<Float16>(p, begin, end);
}

}  // namespace

int cfg_euler_step_cpu(const CfgEulerStepParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t elements = p.sessions * p.numel;
  if (elements == 0) return kOk;

  const auto run = p.dtype == DType::kFloat32    ? &run_float32
                   : p.dtype == DType::kBFloat16 ? &run_bfloat16
                                                 : &run_float16;
  const int threads = thread_count(elements);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    run(p, elements * thread / threads, elements * (thread + 1) / threads);
  }
  return kOk;
}

}  // namespace rest_fast
