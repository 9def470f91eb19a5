// Sums and totals of a row tile become out and lse.
#pragma once

#include "online_softmax.h"

namespace rest_fast {

// out: the first of 16 rows, `stride` apart; lse: of the same rows, or null. Rows from `exist` on
// are left alone. Two numbers a store, four neighbours of 16 bytes: once a block.
template <class T, int kDim>
__device__ __forceinline__ void write_rows(const Sums<kDim>& sums, const OnlineSoftmax& softmax,
                                           T* out, int64_t stride, float* lse, int exist) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = g + 8 * half;
    if (row >= exist) continue;
    const float share = __fdividef(1.0f, softmax.total[half]);
    auto pairs = reinterpret_cast<uint32_t*>(out + row * stride);
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const float* pair = sums.at[j] + 2 * half;
      pairs[4 * j + t] = pack<T>(pair[0] * share, pair[1] * share);
    }
    if (lse != nullptr && t == 0) lse[row] = softmax.log_sum(half);
  }
}

}  // namespace rest_fast
