// Softmax attention over the valid slots of each lane's cache row, read in place:
//
//   out = softmax(scale q K[:n]^T) V[:n],   lse = log sum exp(scale q K[:n]^T),   n = n_valid
//
// Layout: ops/sink_ring_attention.h. Why it exists: a chunk's attention is small, and a stock
// kernel spends as long on its set-up, on a call for each length and on copying its own result as
// on the products. How: a task is a block of queries of one head. Blocks of keys and values are
// widened to fp32 next to each other (in the cache a head's rows lie heads x head_dim apart, which
// maps them to few cache sets). Scores are kept as [keys, queries]: the softmax of a query then
// runs down a column, vectors hold neighbouring queries, and no sum across a vector is needed. Both
// products go through one register tile. fp32 throughout, one rounding at the end. Limits: heads of
// at most kMaxRingHeadDim channels. Weights below 2^-126.5 of the largest are 0.
#include "../ops/sink_ring_attention.h"

#include <cmath>
#include <limits>

#include "vectors.h"

namespace rest_fast {
namespace {

constexpr int kQueries = 96;  // of a task: keys and values are widened once for all of them
constexpr int kKeys = 64;     // of a block: with 64 channels a task touches 105 KB of Scratch
constexpr int kRows = 4;      // of a register tile
constexpr float kLog2E = 1.44269504f;

struct alignas(64) Scratch {
  float query[kMaxRingHeadDim][kQueries];  // transposed
  float key[kKeys * kMaxRingHeadDim];      // rows of `width`, the channels rounded up to vectors
  float value[kKeys * kMaxRingHeadDim];    // rows of `width`
  float score[kKeys][kQueries];            // products, then weights
  float sum[kQueries * kMaxRingHeadDim];   // rows of `width`: not yet divided by total
  float top[kQueries];                     // largest product so far
  float total[kQueries];                   // of the weights exp(scale (product - top))
  float decay[kQueries];                   // factor of the sums so far, after a new top
};

// AVX-512 has 32 registers for a tile of 4 x 4 vectors, AVX2 has 16 for 4 x 3.
template <int kWidth>
struct RegisterTile : Wide<kWidth> {
  static constexpr int kColumns = kWidth == 16 ? 4 : kWidth == 8 ? 3 : 2;  // vectors
};

// c[m][n] = decay[m] c[m][n] + sum over i of a[m a_row + i a_step] b[i b_row + n], a tile of it.
// Without GCC vectors and full unrolling the sums would not stay in registers.
template <class V, int N>
REST_FAST_INLINE void multiply_tile(const float* a, int64_t a_row, int64_t a_step, const float* b,
                                    int64_t b_row, int64_t count, const float* decay, float* c,
                                    int64_t c_row) {
  typename V::Type sum[kRows][N];
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      sum[m][n] = typename V::Type{};
      if (!decay) continue;
      std::memcpy(&sum[m][n], c + m * c_row + n * V::kWidth, sizeof(sum[m][n]));
      sum[m][n] *= decay[m];
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    typename V::Type right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      std::memcpy(&right[n], b + i * b_row + n * V::kWidth, sizeof(right[n]));
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const float left = a[m * a_row + i * a_step];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] += left * right[n];
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      std::memcpy(c + m * c_row + n * V::kWidth, &sum[m][n], sizeof(sum[m][n]));
    }
  }
}

// kRows rows of c, any number of vectors long.
template <class V, int N = V::kColumns>
REST_FAST_INLINE void multiply_rows(const float* a, int64_t a_row, int64_t a_step, const float* b,
                                    int64_t b_row, int64_t count, const float* decay, float* c,
                                    int64_t c_row, int vectors) {
  for (; vectors >= N; vectors -= N, b += N * V::kWidth, c += N * V::kWidth) {
    multiply_tile<V, N>(a, a_row, a_step, b, b_row, count, decay, c, c_row);
  }
  if constexpr (N > 1) {
    if (vectors > 0) {
      multiply_rows<V, N - 1>(a, a_row, a_step, b, b_row, count, decay, c, c_row, vectors);
    }
  }
}

// Scores -> weights; top, total and decay follow. A NaN never becomes the top, but stays NaN.
// `scale` is that of the scores times log2(e).
template <class V>
REST_FAST_INLINE void online_softmax(Scratch& s, int64_t keys, int vectors, float scale) {
  using Type = typename V::Type;
  for (int at = 0; at < vectors * V::kWidth; at += V::kWidth) {
    Type before, top, total, score;
    std::memcpy(&before, s.top + at, sizeof(before));
    std::memcpy(&total, s.total + at, sizeof(total));
    top = before;
    for (int64_t k = 0; k < keys; ++k) {
      std::memcpy(&score, &s.score[k][at], sizeof(score));
      top = score > top ? score : top;
    }
    Type decay = (before - top) * scale;
    exp2_nonpositive<V>(decay);
    total *= decay;
    for (int64_t k = 0; k < keys; ++k) {
      std::memcpy(&score, &s.score[k][at], sizeof(score));
      score = (score - top) * scale;
      exp2_nonpositive<V>(score);
      total += score;
      std::memcpy(&s.score[k][at], &score, sizeof(score));
    }
    std::memcpy(s.top + at, &top, sizeof(top));
    std::memcpy(s.total + at, &total, sizeof(total));
    std::memcpy(s.decay + at, &decay, sizeof(decay));
  }
}

// Rows of a head, `stride` apart, to fp32 rows of `width`; what is wider than a head is zero.
template <class T>
REST_FAST_INLINE void widen_rows(const T* source, int64_t stride, int64_t rows, int64_t dim,
                                 int64_t width, float* target) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict from = source + r * stride;
    float* __restrict to = target + r * width;
    for (int64_t d = 0; d < dim; ++d) to[d] = to_float(from[d]);
    for (int64_t d = dim; d < width; ++d) to[d] = 0.0f;
  }
}

// `count` queries, transposed; those up to `queries` are zero. The sign of the scale goes with
// them, so that the largest product is the largest score.
template <class T>
REST_FAST_INLINE void load_queries(const T* __restrict q, int64_t stride, int64_t dim, int count,
                                   int queries, float sign, Scratch& s) {
  for (int64_t d = 0; d < dim; ++d) {
    for (int i = 0; i < count; ++i) s.query[d][i] = sign * to_float(q[i * stride + d]);
    for (int i = count; i < queries; ++i) s.query[d][i] = 0.0f;
  }
  // Not minus infinity: that minus itself is NaN.
  std::fill(s.top, s.top + queries, std::numeric_limits<float>::lowest());
  std::fill(s.total, s.total + queries, 0.0f);
}

// Whether a score of query `q` of a task is NaN. Its sums do not say: an infinite score makes NaN
// of them, too. `keys`: the first one of the lane and head.
template <class T>
bool any_nan(const Scratch& s, int q, const T* keys, int64_t stride, int64_t valid, int64_t dim) {
  for (int64_t slot = 0; slot < valid; ++slot) {
    float score = 0.0f;
    for (int64_t d = 0; d < dim; ++d) score += s.query[d][q] * to_float(keys[slot * stride + d]);
    if (score != score) return true;
  }
  return false;
}

// Block `task` of B x H x blocks of queries.
template <class V, class T>
REST_FAST_INLINE void attend(const SinkRingAttentionParams& p, int64_t task) {
  Scratch s;
  const int64_t blocks = (p.tokens + kQueries - 1) / kQueries;
  const int64_t lane = task / blocks / p.heads;
  if (p.row_index[lane] == kIdle) return;
  const int64_t head = task / blocks % p.heads;
  const int64_t first = task % blocks * kQueries;
  const int64_t dim = p.head_dim;
  const int64_t stride = p.heads * dim;
  const int count = static_cast<int>(std::min<int64_t>(kQueries, p.tokens - first));
  const int query_vectors = (count + V::kWidth - 1) / V::kWidth;
  const int channel_vectors = static_cast<int>((dim + V::kWidth - 1) / V::kWidth);
  const int queries = query_vectors * V::kWidth;
  const int64_t width = channel_vectors * V::kWidth;
  const float scale = std::fabs(p.scale);

  const int64_t at = ((lane * p.tokens + first) * p.heads + head) * dim;
  load_queries(static_cast<const T*>(p.q) + at, stride, dim, count, queries,
               p.scale < 0 ? -1.0f : 1.0f, s);
  std::fill(s.sum, s.sum + queries * width, 0.0f);

  const int64_t valid = p.n_valid[lane];
  const int64_t row =
      p.row_index[lane] * p.row_stride + p.bank_index[lane] * p.bank_stride + head * dim;
  for (int64_t slot = 0; slot < valid; slot += kKeys) {
    const int64_t keys = std::min<int64_t>(kKeys, valid - slot);
    const int64_t whole = (keys + kRows - 1) / kRows * kRows;
    const int64_t source = row + slot * stride;
    widen_rows(static_cast<const T*>(p.k_cache) + source, stride, keys, dim, width, s.key);
    widen_rows(static_cast<const T*>(p.v_cache) + source, stride, keys, dim, width, s.value);
    std::fill(s.key + keys * width, s.key + whole * width, 0.0f);
    for (int64_t k = 0; k < keys; k += kRows) {
      multiply_rows<V>(s.key + k * width, width, 1, s.query[0], kQueries, dim, nullptr, s.score[k],
                       kQueries, query_vectors);
    }
    online_softmax<V>(s, keys, query_vectors, scale * kLog2E);
    for (int q = 0; q < count; q += kRows) {
      multiply_rows<V>(s.score[0] + q, 1, kQueries, s.value, width, keys, s.decay + q,
                       s.sum + q * width, width, channel_vectors);
    }
  }

  for (int q = 0; q < count; ++q) {
    T* __restrict out = static_cast<T*>(p.out) + at + q * stride;
    const float divisor = 1.0f / s.total[q];
    for (int64_t d = 0; d < dim; ++d) round_to(s.sum[q * width + d] * divisor, out[d]);
  }
  if (!p.lse) return;
  float* lse = p.lse + (lane * p.heads + head) * p.tokens + first;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const T* keys = static_cast<const T*>(p.k_cache) + row;
  for (int q = 0; q < count; ++q) {
    lse[q] = s.top[q] * scale + std::log(s.total[q]);
    // inf - inf is NaN in the weights and so in the result; the sum of exponentials is infinite.
    if (s.top[q] == kInfinity && scale > 0.0f && !any_nan(s, q, keys, stride, valid, dim)) {
      lse[q] = kInfinity;
    }
  }
}

static_assert(kQueries % 16 == 0 && kQueries % kRows == 0 && kKeys % kRows == 0, "whole tiles");

template <class T>
struct Body {
  template <int kWidth>
  static REST_FAST_INLINE void run(const SinkRingAttentionParams& p, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) attend<RegisterTile<kWidth>, T>(p, task);
  }
};

int check_indices(const SinkRingAttentionParams& p) {
  for (int64_t lane = 0; lane < p.batch; ++lane) {
    if (p.row_index[lane] == kIdle) continue;
    const auto inside = [](int64_t i, int64_t n) { return i >= 0 && i < n; };
    if (!inside(p.row_index[lane], p.rows)) return kRowOutOfRange;
    if (!inside(p.bank_index[lane], p.banks)) return kBankOutOfRange;
    if (!inside(p.n_valid[lane] - int64_t{1}, p.slots)) return kLengthOutOfRange;
  }
  return kOk;
}

}  // namespace

int sink_ring_attention_cpu(const SinkRingAttentionParams& p) {
  if (const int error = check_sizes(p)) return error;
  const auto run = choose_version<Body>(p);
  if (!run) return kBadVectorWidth;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (const int error = check_indices(p)) return error;

  int64_t keys = 0;
  for (int64_t lane = 0; lane < p.batch; ++lane) {
    if (p.row_index[lane] != kIdle) keys += p.n_valid[lane];
  }
  const int64_t tasks = p.batch * p.heads * ((p.tokens + kQueries - 1) / kQueries);
  // A score costs two products of head_dim; 32 of those take as long as an element of a plain pass.
  const int64_t work = keys * p.heads * p.tokens * (p.head_dim / 16 + 1);
  const int threads = static_cast<int>(std::min<int64_t>(tasks, thread_count(work)));
  // Dynamic, because lanes differ in length; the result of a task does not depend on its thread.
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) run(p, task, task + 1);
  return kOk;
}

}  // namespace rest_fast
