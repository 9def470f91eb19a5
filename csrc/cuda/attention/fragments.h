// What a warp holds of its 16 rows of queries, and its products on tensor cores.
//
// Lane 4 g + t holds columns 8 j + 2 t and 8 j + 2 t + 1 of rows g and g + 8 (mma.sync m16n8k16).
// The accumulators of a warp in wgmma m64nNk16 lie in the same way, so softmax and epilogue fit
// both.
#pragma once

#include "stages.h"

namespace rest_fast {

constexpr int kRowTile = 16;  // rows of a left factor

// [kTiles][0, 1]: row g, [2, 3]: row g + 8.
template <int kColumns>
struct Sums {
  float at[kColumns / 8][4];
};

// The left factor of kDepth / 16 products.
template <int kDepth>
struct Left {
  uint32_t at[kDepth / 16][4];
};

// 16 rows of queries from global memory, zeros from row `exist` on. Two numbers a load: a block
// reads its queries once, and its keys many times. `negate` turns the sign bits.
template <class T, int kDim>
__device__ __forceinline__ Left<kDim> load_queries(const T* from, int64_t stride, int exist,
                                                   bool negate) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const uint32_t signs = negate ? 0x80008000u : 0u;
  Left<kDim> q;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int row = g + 8 * (part % 2), pair = 8 * step + t + 4 * (part / 2);
      const auto pairs = reinterpret_cast<const uint32_t*>(from + row * stride);
      q.at[step][part] = row < exist ? pairs[pair] ^ signs : 0u;
    }
  }
  return q;
}

// scores[i] = queries[i] keys^T.
template <class T, int kRowTiles, int kKeys, int kDim>
__device__ __forceinline__ void multiply_keys(Sums<kKeys> (&scores)[kRowTiles],
                                              const Left<kDim> (&queries)[kRowTiles],
                                              const SharedTile<T, kKeys, kDim>& keys) {
  const unsigned lane = threadIdx.x % kWarp, matrix = lane / 8;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) scores[i] = {};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t b[4];  // channels 0 to 7 and 8 to 15 of keys 0 to 7, then of keys 8 to 15
      ldmatrix(b, keys.at(16 * j + matrix / 2 * 8 + lane % 8, 2 * step + matrix % 2));
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        mma<T>(scores[i].at[2 * j], queries[i].at[step], b[0], b[1]);
        mma<T>(scores[i].at[2 * j + 1], queries[i].at[step], b[2], b[3]);
      }
    }
  }
}

// sums[i] += weights[i] values, the weights rounded to T.
template <class T, int kRowTiles, int kKeys, int kDim>
__device__ __forceinline__ void multiply_values(Sums<kDim> (&sums)[kRowTiles],
                                                const Sums<kKeys> (&weights)[kRowTiles],
                                                const SharedTile<T, kKeys, kDim>& values) {
  const unsigned lane = threadIdx.x % kWarp, matrix = lane / 8;
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    uint32_t a[kRowTiles][4];  // the layout of a sum is that of a left factor, two tiles at a time
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float* pair = weights[i].at[2 * step + part / 2] + part % 2 * 2;
        a[i][part] = pack<T>(pair[0], pair[1]);
      }
    }
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
      uint32_t b[4];  // keys 0 to 7 and 8 to 15 of channels 0 to 7, then of channels 8 to 15
      ldmatrix_transposed(b, values.at(16 * step + matrix % 2 * 8 + lane % 8, 2 * j + matrix / 2));
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        mma<T>(sums[i].at[2 * j], a[i], b[0], b[1]);
        mma<T>(sums[i].at[2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

}  // namespace rest_fast
