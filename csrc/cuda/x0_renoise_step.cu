// Clean latents and fresh noise, z <- (1 - after) (z - now v) + after noise.
//
// Layout: ops/x0_renoise_step.h. A thread computes one vector of a token's channels: three reads
// and one write an element, at any dtype of latents and of velocities; one of a token that stays
// reads nothing but the session's count. fp32 inside, one rounding.
#include "../ops/x0_renoise_step.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 256;

template <class T, class V, int kVec>
__global__ void __launch_bounds__(kThreads) x0_renoise_step_kernel(const X0RenoiseStepParams p) {
  const int64_t session = blockIdx.y, numel = p.tokens * p.channels;
  const int64_t vector = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (vector >= numel / kVec || vector * kVec < p.held[session] * p.channels) return;
  const float now = p.now[session], after = p.after[session];
  T* z = static_cast<T*>(p.z) + session * numel;
  const auto v = load<V, kVec>(static_cast<const V*>(p.velocity) + session * numel, vector);
  const auto noise = load<T, kVec>(static_cast<const T*>(p.noise) + session * numel, vector);
  auto next = load<T, kVec>(z, vector);
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    const float clean = to_float(next.at[e]) - now * to_float(v.at[e]);
    next.at[e] = round_to<T>((1.0f - after) * clean + after * to_float(noise.at[e]));
  }
  store<T, kVec>(z, vector, next);
}

template <class T, class V>
int dispatch(const X0RenoiseStepParams& p, void* stream) {
  constexpr int kWide = 16 / (sizeof(T) > sizeof(V) ? sizeof(T) : sizeof(V));
  // Of channels, so that no vector lies in two tokens.
  const bool in_vectors = p.channels % kWide == 0 && aligned({p.z, p.noise}, kWide * sizeof(T)) &&
                          aligned({p.velocity}, kWide * sizeof(V));
  const auto kernel =
      in_vectors ? x0_renoise_step_kernel<T, V, kWide> : x0_renoise_step_kernel<T, V, 1>;
  const int64_t vectors = p.tokens * p.channels / (in_vectors ? kWide : 1);
  return launch_each(kernel, p, vectors, p.sessions, kThreads, stream);
}

}  // namespace

int x0_renoise_step_cuda(const X0RenoiseStepParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.sessions == 0 || p.tokens == 0 || p.channels == 0) return kOk;
  return on_device(device, p.dtype, [&](auto z) {
    return by_dtype(p.velocity_dtype,
                    [&](auto v) { return dispatch<decltype(z), decltype(v)>(p, stream); });
  });
}

}  // namespace rest_fast
