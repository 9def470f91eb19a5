// One pass of softmax over tiles of scores: the largest so far, and the sum of weights relative to
// it.
#pragma once

#include "fragments.h"

namespace rest_fast {

constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_huge_valf();

// Of rows g and g + 8 of a row tile. Scores are raw; exponents are scale * score, of base 2.
struct OnlineSoftmax {
  float top[2] = {-kInfinity, -kInfinity};  // exponent
  float total[2] = {};                      // of this lane's columns

  // Scores become weights. What was summed up before must be multiplied by what comes back.
  template <int kKeys>
  __device__ __forceinline__ float2 advance(Sums<kKeys>& scores, float scale) {
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = -kInfinity;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
        most = fmaxf(most, fmaxf(scores.at[j][2 * half], scores.at[j][2 * half + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));  // the four lanes of a row
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float higher = fmaxf(top[half], most * scale);
      shrink[half] = exp2_approximate(top[half] - higher);
      top[half] = higher;
      total[half] *= shrink[half];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores.at[j][e] = exp2_approximate(fmaf(scores.at[j][e], scale, -higher));
          total[half] += scores.at[j][e];
        }
      }
    }
    return make_float2(shrink[0], shrink[1]);
  }

  // The sums of whole rows, in all four lanes. Once, behind the last tile.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] += __shfl_xor_sync(kAllLanes, total[half], 1);
      total[half] += __shfl_xor_sync(kAllLanes, total[half], 2);
    }
  }

  // Natural logarithm of the sum of exp(score).
  __device__ __forceinline__ float log_sum(int half) const {
    return (top[half] + log2f(total[half])) * kLn2;
  }
};

// Keys from `left` on do not count.
template <int kKeys>
__device__ __forceinline__ void mask(Sums<kKeys>& scores, int left) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (8 * j + 2 * t + e % 2 >= left) scores.at[j][e] = -kInfinity;
    }
  }
}

template <int kDim>
__device__ __forceinline__ void shrink(Sums<kDim>& sums, float2 by) {
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
    sums.at[j][0] *= by.x;
    sums.at[j][1] *= by.x;
    sums.at[j][2] *= by.y;
    sums.at[j][3] *= by.y;
  }
}

}  // namespace rest_fast
