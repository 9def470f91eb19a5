// A linear layer of few rows and a small weight, with a GELU that follows.
//
// Layout: ops/linear.h. Why it exists: with AVX2 alone oneDNN takes 1.6 times as long for the 96
// rows of a chunk and their GELU (docs/kernels/linear.md).
//
// A thread takes blocks of 16 outputs, so that each part of the weight is read by one thread. Each
// result is the same sum in the same order, whatever the number of threads and of other rows.
#include "../ops/linear.h"

#include "register_tile.h"

namespace rest_fast {
namespace {

constexpr int64_t kTogether = 48;  // rows

// x <- x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), which is x / (1 + e^-2u) for that u.
template <class V>
REST_FAST_INLINE void gelu(typename V::Type& x) {
  constexpr float kTwice = 1.59576912f;  // 2 sqrt(2 / pi)
  typename V::Type u = x * x;
  u = x * (u * (0.044715f * kTwice) + kTwice);
  sigmoid_times<V>(u, x);
}

// Rows of sums of one block, of `lanes` outputs, to out.
template <class V>
REST_FAST_INLINE void write_rows(const LinearParams& p, int64_t first, int64_t count, int64_t from,
                                 Columns* sums) {
  const int64_t lanes = std::min<int64_t>(kColumns, p.outputs - from);
  Columns bias = {};
  if (p.bias) std::copy_n(p.bias + from, lanes, bias);
  for (int64_t r = 0; r < count; ++r) {
    for (int n = 0; n < kColumns; n += V::kWidth) {
      typename V::Type value, summand;
      load<V>(sums[r] + n, value);
      load<V>(bias + n, summand);
      value += summand;
      if (p.gelu) gelu<V>(value);
      store<V>(value, sums[r] + n);
    }
    float* out = p.out + (first + r) * p.outputs + from;
    if (lanes == kColumns) {
      std::memcpy(out, sums[r], sizeof(Columns));
    } else {
      std::copy_n(sums[r], lanes, out);
    }
  }
}

REST_FAST_INLINE int64_t groups(const LinearParams& p) {
  return (p.rows + kTogether - 1) / kTogether;
}

struct Body {
  // Items [begin, end): blocks of 16 outputs, each of all groups of rows.
  template <int kWidth>
  static REST_FAST_INLINE void run(const LinearParams& p, int64_t begin, int64_t end) {
    Columns sums[kTogether];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / groups(p), first = item % groups(p) * kTogether;
      const int64_t count = std::min(kTogether, p.rows - first);
      const float* columns = p.columns + block * p.inputs * kColumns;
      multiply_rows<kWidth, false>(p.x + first * p.inputs, count, p.inputs, 1, p.inputs,
                                   reinterpret_cast<const Columns*>(columns), sums);
      write_rows<Wide<kWidth>>(p, first, count, block * kColumns, sums);
    }
  }
};

}  // namespace

int linear_cpu(const LinearParams& p) {
  if (const int error = check_sizes(p)) return error;
  const auto run = choose_version<Body, LinearParams>(p.vector_width);
  if (!run) return kBadVectorWidth;
  const int64_t blocks = (p.outputs + kColumns - 1) / kColumns;
  // 16 products take as long as an element of a plain pass.
  in_parallel(blocks * groups(p), p.rows * p.inputs * blocks,
              [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
