// Products of small matrices with 16 columns, in registers: for ops whose tile is 16 tokens or 16
// channels wide.
#pragma once

#include "vectors.h"

namespace rest_fast {

constexpr int kColumns = 16;  // one AVX-512 vector

using Columns = float[kColumns];

// Sums of rows x columns that stay in registers, and are enough to hide how long one takes.
template <int kWidth>
struct RegisterTile : Wide<kWidth> {
  static constexpr int kVectors = kColumns / kWidth;
  static constexpr int kSums = kWidth == 4 ? 8 : 12;  // the oldest instruction set has 16 registers
  static constexpr int kRows = kSums / kVectors;
};

// c[r] = sum over i of a[r row_stride + i step] b[i], for R rows, or (kOnto) c[r] += that. GCC
// vectors, because plain arrays of this size do not end up in registers.
template <int kWidth, int R, bool kOnto>
REST_FAST_INLINE void multiply(const float* a, int64_t row_stride, int64_t step, int64_t count,
                               const Columns* b, Columns* c) {
  using V = RegisterTile<kWidth>;
  typename V::Type sum[R][V::kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < V::kVectors; ++n) {
      sum[r][n] = typename V::Type{};
      if constexpr (kOnto) load<V>(c[r] + n * kWidth, sum[r][n]);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    typename V::Type right[V::kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < V::kVectors; ++n) load<V>(b[i] + n * kWidth, right[n]);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const float left = a[r * row_stride + i * step];
#pragma GCC unroll 4
      for (int n = 0; n < V::kVectors; ++n) sum[r][n] += left * right[n];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < V::kVectors; ++n) store<V>(sum[r][n], c[r] + n * kWidth);
  }
}

// The same for any number of rows. A row's sums do not depend on how many there are.
template <int kWidth, bool kOnto = true>
REST_FAST_INLINE void multiply_rows(const float* a, int64_t rows, int64_t row_stride, int64_t step,
                                    int64_t count, const Columns* b, Columns* c) {
  constexpr int kRows = RegisterTile<kWidth>::kRows;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    multiply<kWidth, kRows, kOnto>(a + r * row_stride, row_stride, step, count, b, c + r);
  }
  if constexpr (kRows > 4) {
    for (; r + 4 <= rows; r += 4) {
      multiply<kWidth, 4, kOnto>(a + r * row_stride, row_stride, step, count, b, c + r);
    }
  }
  for (; r < rows; ++r) {
    multiply<kWidth, 1, kOnto>(a + r * row_stride, row_stride, step, count, b, c + r);
  }
}

}  // namespace rest_fast
