// Products of small matrices with 16 columns, in registers: for ops whose tile is 16 tokens or 16
// channels wide.
#pragma once

#include "vectors.h"

namespace rest_fast {

constexpr int kColumns = 16;  // one AVX-512 vector

using Columns = float[kColumns];

// Eight vectors, whatever their width, stay in registers: rows x columns.
template <int kWidth>
struct RegisterTile : Wide<kWidth> {
  static constexpr int kVectors = kColumns / kWidth;
  static constexpr int kRows = 8 / kVectors;
};

// c[r] += sum over i of a[r row_stride + i step] b[i], for R rows. GCC vectors, because plain
// arrays of this size do not end up in registers.
template <int kWidth, int R>
REST_FAST_INLINE void multiply(const float* a, int64_t row_stride, int64_t step, int64_t count,
                               const Columns* b, Columns* c) {
  using Vector = typename RegisterTile<kWidth>::Type;
  constexpr int kVectors = RegisterTile<kWidth>::kVectors;
  Vector sum[R][kVectors];
  std::memcpy(sum, c, sizeof(sum));
  for (int64_t i = 0; i < count; ++i) {
    Vector right[kVectors];
    std::memcpy(right, b[i], sizeof(right));
    for (int r = 0; r < R; ++r) {
      const float left = a[r * row_stride + i * step];
      for (int n = 0; n < kVectors; ++n) sum[r][n] += left * right[n];
    }
  }
  std::memcpy(c, sum, sizeof(sum));
}

template <int kWidth>
REST_FAST_INLINE void multiply_rows(const float* a, int64_t rows, int64_t row_stride, int64_t step,
                                    int64_t count, const Columns* b, Columns* c) {
  constexpr int kRows = RegisterTile<kWidth>::kRows;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    multiply<kWidth, kRows>(a + r * row_stride, row_stride, step, count, b, c + r);
  }
  if constexpr (kRows == 8) {
    for (; r + 4 <= rows; r += 4) {
      multiply<kWidth, 4>(a + r * row_stride, row_stride, step, count, b, c + r);
    }
  }
  for (; r < rows; ++r) {
    multiply<kWidth, 1>(a + r * row_stride, row_stride, step, count, b, c + r);
  }
}

}  // namespace rest_fast
