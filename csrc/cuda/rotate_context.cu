// At commit: the time pairs of the context keys turn back by one chunk, in place.
//
// Layout: ops/rotate_context.h. One block per (slot, layer and bank, lane); a thread takes every
// blockDim-th time pair, six channels from the one before it. Only these are written, so whatever
// stays keeps its bits. A lane that is idle, not enabled or out of range writes nothing. Limits: an
// enabled lane's row is no other lane's.
#include "../ops/rotate_context.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kMaxThreads = 512;

// Two neighbouring channels: one access where pairs are aligned (kVec 2), else two.
template <class T, int kVec>
__device__ __forceinline__ void turn(T* pair, float cosine, float sine) {
  Vector<T, kVec> part[2 / kVec];
#pragma unroll
  for (int i = 0; i < 2 / kVec; ++i) part[i] = load<T, kVec>(pair, i);
  T* both = part[0].at;
  T& second = kVec == 2 ? both[kVec - 1] : part[2 / kVec - 1].at[0];
  const float a = to_float(both[0]), b = to_float(second);
  both[0] = round_to<T>(a * cosine - b * sine);
  second = round_to<T>(a * sine + b * cosine);
#pragma unroll
  for (int i = 0; i < 2 / kVec; ++i) store<T, kVec>(pair, i, part[i]);
}

template <class T, int kVec>
__global__ void __launch_bounds__(kMaxThreads) rotate_context_kernel(const RotateContextParams p) {
  const int64_t slot = p.sink + blockIdx.x;
  const int64_t layer = blockIdx.y / p.banks, bank = blockIdx.y % p.banks;
  const int lane = static_cast<int>(blockIdx.z);
  const int row = p.row_index[lane], skip = p.skip_slot[lane];
  const bool inside = (row >= 0) & (row < p.rows) & (skip >= p.sink) & (skip <= p.slots - p.chunk);
  if (!inside || p.enabled[lane] == 0) return;
  if (slot >= skip && slot < skip + p.chunk) return;

  const int frequencies = static_cast<int>(p.width / 6);
  const int64_t key = ((layer * p.rows + row) * p.banks + bank) * p.slots + slot;
  T* pairs = static_cast<T*>(p.k_cache) + key * p.width + (p.width - 6 * frequencies);
  const float2* shift = reinterpret_cast<const float2*>(p.shift);
  for (int m = static_cast<int>(threadIdx.x); m < frequencies; m += static_cast<int>(blockDim.x)) {
    const float2 angle = shift[m];  // (cos, sin)
    turn<T, kVec>(pairs + 6 * int64_t{m}, angle.x, angle.y);
  }
}

template <class T>
int dispatch(const RotateContextParams& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(p.slots - p.sink),
                  static_cast<unsigned>(p.layers * p.banks), static_cast<unsigned>(p.batch));
  const int threads = whole_warps(p.width / 6, kMaxThreads);
  const bool pairs = aligned({p.k_cache}, 2 * sizeof(T));
  const auto kernel = pairs ? rotate_context_kernel<T, 2> : rotate_context_kernel<T, 1>;
  return launch(kernel, p, grid, threads, stream);
}

}  // namespace

int rotate_context_cuda(const RotateContextParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch == 0 || p.layers == 0 || p.banks == 0 || p.width < 6) return kOk;
  const bool large = p.slots > INT32_MAX || p.layers * p.banks > kMaxGridY || p.batch > kMaxGridY;
  if (large) return kBadShape;
  if (!aligned({p.shift}, sizeof(float2))) return kMisaligned;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
