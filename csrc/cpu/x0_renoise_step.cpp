// Clean latents from the velocity, and fresh noise mixed in again, one pass over the latents:
// z <- (1 - after) (z - now v) + after noise.
//
// Layout: ops/x0_renoise_step.h. Why it exists: three reads and one write, where eager PyTorch runs
// six kernels and stores what lies between them; and the tokens that stay are not touched.
#include "../ops/x0_renoise_step.h"

#include "common.h"

namespace rest_fast {
namespace {

template <class Z, class V>
REST_FAST_INLINE void step(const X0RenoiseStepParams& p, int64_t session, int64_t begin,
                           int64_t end) {
  const float now = p.now[session], after = p.after[session];
  const float rest = 1.0f - after;
  const int64_t start = session * p.tokens * p.channels;
  Z* __restrict z = static_cast<Z*>(p.z) + start;
  const V* __restrict velocity = static_cast<const V*>(p.velocity) + start;
  const Z* __restrict noise = static_cast<const Z*>(p.noise) + start;
  for (int64_t i = begin; i < end; ++i) {
    const float clean = to_float(z[i]) - now * to_float(velocity[i]);
    round_to(rest * clean + after * to_float(noise[i]), z[i]);
  }
}

// Elements [begin, end) of S x N x C, without those of tokens that stay.
template <class Z, class V>
REST_FAST_INLINE void run_range(const X0RenoiseStepParams& p, int64_t begin, int64_t end) {
  const int64_t numel = p.tokens * p.channels;
  while (begin < end) {
    const int64_t session = begin / numel;
    const int64_t first = session * numel;
    const int64_t stop = std::min(end, first + numel);
    const int64_t moved = std::max(begin - first, p.held[session] * p.channels);
    step<Z, V>(p, session, moved, stop - first);
    begin = stop;
  }
}

// GCC does not multi-version templates, hence a plain function around them.
REST_FAST_MULTI_ISA void run(const X0RenoiseStepParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto z) REST_FAST_INLINED {
    by_dtype(p.velocity_dtype,
             [&](auto v) REST_FAST_INLINED { run_range<decltype(z), decltype(v)>(p, begin, end); });
  });
}

}  // namespace

int x0_renoise_step_cpu(const X0RenoiseStepParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t elements = p.sessions * p.tokens * p.channels;
  if (elements == 0) return kOk;

  in_parallel(elements, elements, [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
