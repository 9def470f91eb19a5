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

// GCC does not multi-version templates, hence a plain function around them.
REST_FAST_MULTI_ISA void run(const CfgEulerStepParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto z) REST_FAST_INLINED {
    by_dtype(p.velocity_dtype,
             [&](auto v) REST_FAST_INLINED { run_range<decltype(z), decltype(v)>(p, begin, end); });
  });
}

}  // namespace

int cfg_euler_step_cpu(const CfgEulerStepParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t elements = p.sessions * p.numel;
  if (elements == 0) return kOk;

  in_parallel(elements, elements, [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
