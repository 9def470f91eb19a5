// Q and K: RMS norm over the full width, RoPE, K and V into the cache, in one pass over qkv.
//
//   q' = rope(q / sqrt(mean(q^2) + eps) * q_weight) -> q_out;  k' likewise, v as it is -> cache
//
// Layout: ops/qk_norm_rope_cache.h. Why it exists: qkv is read once and each result is written
// once, where eager PyTorch runs a dozen kernels over it and then copies K and V into the cache.
// Limits: lanes must not share slots (a scratch row that nobody reads may be shared).
#include "../ops/qk_norm_rope_cache.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "common.h"

namespace rest_fast {
namespace {

constexpr int64_t kStackWidth = 8192;  // 32 KB of a thread's stack hold the angles of a token

// The pairs that an axis turns: `count` of them, `step` apart from `first` on; by head, again every
// `period` pairs.
struct Axis {
  int64_t first;
  int64_t count;
  int64_t row = -1;  // of its table, now held
};

// cos and sin of every channel pair of the current token. q and k share them, and so do the lanes.
// From one token to the next only those of the axes that changed are rewritten, mostly x.
struct PairAngles {
  float* cosine;   // [pairs]
  float* sine;     // [pairs]
  int64_t pairs;   // W / 2
  int64_t step;    // 3 where the axes alternate, 1 by head
  int64_t period;  // pairs of a head, or all
  Axis axes[3];    // t, y, x
};

// For scratch of W numbers. Pairs that no axis turns stay as they are.
REST_FAST_INLINE PairAngles new_angles(const QkNormRopeCacheParams& p, float* scratch) {
  const int64_t pairs = p.width / 2, n = p.width / 6, pad = pairs - 3 * n;
  std::fill(scratch, scratch + pairs, 1.0f);
  std::fill(scratch + pairs, scratch + 2 * pairs, 0.0f);
  if (p.head_pairs == 0) {
    return {scratch, scratch + pairs, pairs, 3, pairs, {{pad, n}, {pad + 1, n}, {pad + 2, n}}};
  }
  const int64_t spatial = p.time_pairs + p.row_pairs;
  return {scratch,
          scratch + pairs,
          pairs,
          1,
          p.head_pairs,
          {{0, p.time_pairs}, {p.time_pairs, p.row_pairs}, {spatial, p.head_pairs - spatial}}};
}

REST_FAST_INLINE void load_axis(PairAngles& angles, Axis& axis, const float* table, int64_t row) {
  if (axis.row == row) return;
  axis.row = row;
  const float* __restrict source = table + row * axis.count * 2;
  for (int64_t start = axis.first; start < angles.pairs; start += angles.period) {
    float* __restrict cosine = angles.cosine + start;
    float* __restrict sine = angles.sine + start;
    for (int64_t m = 0; m < axis.count; ++m) {
      cosine[angles.step * m] = source[2 * m];
      sine[angles.step * m] = source[2 * m + 1];
    }
  }
}

template <class T>
REST_FAST_INLINE void norm_rotate(const T* __restrict x, const T* __restrict weight,
                                  const float* __restrict cosine, const float* __restrict sine,
                                  int64_t width, float eps, T* __restrict out) {
  const float scale = 1.0f / std::sqrt(sum_of_squares(x, width) / static_cast<float>(width) + eps);

  const int64_t pairs = width / 2;
  for (int64_t j = 0; j < pairs; ++j) {
    const float a = to_float(x[2 * j]) * scale * to_float(weight[2 * j]);
    const float b = to_float(x[2 * j + 1]) * scale * to_float(weight[2 * j + 1]);
    round_to(a * cosine[j] - b * sine[j], out[2 * j]);
    round_to(a * sine[j] + b * cosine[j], out[2 * j + 1]);
  }
}

// Items [begin, end) of B x N, lanes innermost so that they share the angles of their token.
template <class T>
REST_FAST_INLINE void run_range(const QkNormRopeCacheParams& p, int64_t begin, int64_t end,
                                float* scratch) {
  const int64_t width = p.width;
  PairAngles angles = new_angles(p, scratch);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t token = item / p.batch;
    const int64_t lane = item % p.batch;
    if (p.row_index[lane] == kIdle) continue;
    const int64_t frame = token / (p.grid_h * p.grid_w);
    load_axis(angles, angles.axes[0], p.rope_t, p.base[lane] + frame);
    load_axis(angles, angles.axes[1], p.rope_y, token / p.grid_w % p.grid_h);
    load_axis(angles, angles.axes[2], p.rope_x, token % p.grid_w);

    const int64_t row = lane * p.tokens + token;
    const T* qkv = static_cast<const T*>(p.qkv) + row * 3 * width;
    const int64_t slot = p.row_index[lane] * p.row_stride + p.bank_index[lane] * p.bank_stride +
                         (p.write_slot[lane] + token) * width;
    norm_rotate(qkv, static_cast<const T*>(p.q_weight), angles.cosine, angles.sine, width, p.eps,
                static_cast<T*>(p.q_out) + row * width);
    norm_rotate(qkv + width, static_cast<const T*>(p.k_weight), angles.cosine, angles.sine, width,
                p.eps, static_cast<T*>(p.k_cache) + slot);
    std::memcpy(static_cast<T*>(p.v_cache) + slot, qkv + 2 * width, width * sizeof(T));
  }
}

// GCC does not multi-version templates, hence a plain function around them.
REST_FAST_MULTI_ISA void run(const QkNormRopeCacheParams& p, int64_t begin, int64_t end,
                             float* scratch) {
  by_dtype(p.dtype,
           [&](auto zero) REST_FAST_INLINED { run_range<decltype(zero)>(p, begin, end, scratch); });
}

int check_indices(const QkNormRopeCacheParams& p) {
  const int64_t last_frame = (p.tokens - 1) / (p.grid_h * p.grid_w);
  for (int64_t lane = 0; lane < p.batch; ++lane) {
    if (p.row_index[lane] == kIdle) continue;
    const auto inside = [](int64_t i, int64_t n) { return i >= 0 && i < n; };
    if (!inside(p.row_index[lane], p.rows)) return kRowOutOfRange;
    if (!inside(p.bank_index[lane], p.banks)) return kBankOutOfRange;
    if (!inside(p.write_slot[lane], p.slots - p.tokens + 1)) return kSlotOutOfRange;
    if (!inside(p.base[lane], p.positions - last_frame)) return kPositionOutOfRange;
  }
  return kOk;
}

}  // namespace

int qk_norm_rope_cache_cpu(const QkNormRopeCacheParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t items = p.batch * p.tokens;
  if (items == 0) return kOk;
  if (const int error = check_indices(p)) return error;

  const int threads = thread_count(items * 3 * p.width);
  // Empty, without an allocation, for every width that fits the stack.
  std::vector<float> heap(p.width > kStackWidth ? static_cast<size_t>(threads) * p.width : 0);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    alignas(64) float stack[kStackWidth];
    run(p, items * thread / threads, items * (thread + 1) / threads,
        heap.empty() ? stack : heap.data() + thread * p.width);
  }
  return kOk;
}

}  // namespace rest_fast
