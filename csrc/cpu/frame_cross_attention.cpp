// Tokens of a latent frame attend to the audio (or text) tokens of that frame:
//
//   out = softmax(scale rms_norm(q) K_i^T) V_i
//
// Layout: params.h. How: 16 tokens at a time stand side by side in the lanes of a vector, keys and
// channels are broadcast, so that neither the products nor the softmax need a sum across lanes and
// any number of keys wastes nothing. Keys come in tiles with an online softmax; everything between
// q and out lives in one tile on the stack.
// Limits: heads of at most kMaxHeadDim channels.
#include <limits>

#include "common.h"
#include "exp.h"

namespace rest_fast {
namespace {

constexpr int kTokens = 16;  // one AVX-512 vector, two of AVX2
constexpr int kKeys = 32;    // with both tiles of 64 channels half of a first-level cache

using Lanes = float[kTokens];

struct alignas(64) Tile {
  Lanes q[kMaxHeadDim];         // normed and scaled, channel by channel
  Lanes out[kMaxHeadDim];       // not yet divided by the sum
  Lanes score[kKeys];           // then exp(score - top)
  float k[kKeys * kMaxHeadDim]; // fp32, rows of head_dim
  float v[kKeys * kMaxHeadDim];
  Lanes top;   // largest score so far
  Lanes sum;   // of exp(score - top)
  Lanes root;  // 1 / rms of the whole token, all heads
};

// c[r] += sum over i of a[r row_stride + i step] b[i], for R rows: R vectors stay in registers.
template <int R>
REST_FAST_INLINE void multiply(const float* __restrict a, int64_t row_stride, int64_t step,
                               int64_t count, const Lanes* __restrict b, Lanes* __restrict c) {
  float sum[R][kTokens] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int r = 0; r < R; ++r) {
      const float factor = a[r * row_stride + i * step];
      for (int t = 0; t < kTokens; ++t) sum[r][t] += factor * b[i][t];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < kTokens; ++t) c[r][t] += sum[r][t];
  }
}

REST_FAST_INLINE void multiply_rows(const float* a, int64_t rows, int64_t row_stride, int64_t step,
                                    int64_t count, const Lanes* b, Lanes* c) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) multiply<8>(a + r * row_stride, row_stride, step, count, b, c + r);
  for (; r + 4 <= rows; r += 4) multiply<4>(a + r * row_stride, row_stride, step, count, b, c + r);
  for (; r < rows; ++r) multiply<1>(a + r * row_stride, row_stride, step, count, b, c + r);
}

// `count` tokens of q, one head: normed, scaled, turned so that tokens are lanes. The other lanes
// compute on zeros.
template <class T>
REST_FAST_INLINE void load_query(const T* __restrict q, const T* __restrict weight, int64_t width,
                                 int64_t dim, int count, Tile& tile) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int64_t d = 0; d < dim; ++d) {
    const float factor = to_float(weight[d]) * scale;
    for (int t = 0; t < count; ++t) tile.q[d][t] = to_float(q[t * width + d]) * tile.root[t] * factor;
    for (int t = count; t < kTokens; ++t) tile.q[d][t] = 0.0f;
  }
}

template <class T>
REST_FAST_INLINE void load_keys(const T* __restrict source, int64_t width, int64_t dim, int64_t keys,
                                float* __restrict rows) {
  for (int64_t a = 0; a < keys; ++a) {
    for (int64_t d = 0; d < dim; ++d) rows[a * dim + d] = to_float(source[a * width + d]);
  }
}

// Scores -> exp(score - top); what was summed before is brought to the new top.
REST_FAST_INLINE void online_softmax(Tile& tile, int64_t keys, int64_t dim) {
  Lanes top, correction;
  for (int t = 0; t < kTokens; ++t) top[t] = tile.top[t];
  for (int64_t a = 0; a < keys; ++a) {
    for (int t = 0; t < kTokens; ++t) top[t] = std::max(top[t], tile.score[a][t]);
  }
  for (int t = 0; t < kTokens; ++t) {
    correction[t] = exp_nonpositive(tile.top[t] - top[t]);
    tile.top[t] = top[t];
    tile.sum[t] *= correction[t];
  }
  for (int64_t a = 0; a < keys; ++a) {
    for (int t = 0; t < kTokens; ++t) {
      tile.score[a][t] = exp_nonpositive(tile.score[a][t] - top[t]);
      tile.sum[t] += tile.score[a][t];
    }
  }
  for (int64_t d = 0; d < dim; ++d) {
    for (int t = 0; t < kTokens; ++t) tile.out[d][t] *= correction[t];
  }
}

// One head of `count` tokens against all keys of their frame.
template <class T>
REST_FAST_INLINE void attend(const FrameCrossAttentionParams& p, const T* q, const T* weight,
                             const T* k, const T* v, T* out, int count, Tile& tile) {
  const int64_t width = p.heads * p.head_dim;
  const int64_t dim = p.head_dim;
  load_query(q, weight, width, dim, count, tile);
  std::fill(&tile.out[0][0], &tile.out[dim][0], 0.0f);
  for (int t = 0; t < kTokens; ++t) {
    // Not minus infinity: that minus itself is NaN.
    tile.top[t] = std::numeric_limits<float>::lowest();
    tile.sum[t] = 0.0f;
  }
  for (int64_t key = 0; key < p.audio; key += kKeys) {
    const int64_t keys = std::min<int64_t>(kKeys, p.audio - key);
    load_keys(k + key * width, width, dim, keys, tile.k);
    load_keys(v + key * width, width, dim, keys, tile.v);
    std::fill(&tile.score[0][0], &tile.score[keys][0], 0.0f);
    multiply_rows(tile.k, keys, dim, 1, dim, tile.q, tile.score);
    online_softmax(tile, keys, dim);
    multiply_rows(tile.v, dim, 1, dim, keys, tile.score, tile.out);
  }
  for (int t = 0; t < count; ++t) {
    const float divisor = 1.0f / tile.sum[t];
    for (int64_t d = 0; d < dim; ++d) round_to(tile.out[d][t] * divisor, out[t * width + d]);
  }
}

// Tiles of tokens [begin, end) of B x F x tiles of a frame.
template <class T>
REST_FAST_INLINE void run_range(const FrameCrossAttentionParams& p, int64_t begin, int64_t end) {
  Tile tile;
  const int64_t width = p.heads * p.head_dim;
  const int64_t frame_tokens = p.tokens / p.frames;
  const int64_t tiles = (frame_tokens + kTokens - 1) / kTokens;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t lane = item / (p.frames * tiles);
    const int64_t frame = item / tiles % p.frames;
    const int64_t first = item % tiles * kTokens;
    const int count = static_cast<int>(std::min<int64_t>(kTokens, frame_tokens - first));
    const int64_t token = (lane * p.tokens + frame * frame_tokens + first) * width;
    const int64_t context = ((p.kv_batch == 1 ? 0 : lane) * p.frames + frame) * p.audio * width;
    const T* q = static_cast<const T*>(p.q) + token;
    for (int t = 0; t < count; ++t) {
      const float mean = sum_of_squares(q + t * width, width) / static_cast<float>(width);
      tile.root[t] = 1.0f / std::sqrt(mean + p.eps);
    }
    for (int64_t head = 0; head < p.heads; ++head) {
      const int64_t at = head * p.head_dim;
      attend(p, q + at, static_cast<const T*>(p.q_weight) + at,
             static_cast<const T*>(p.k) + context + at, static_cast<const T*>(p.v) + context + at,
             static_cast<T*>(p.out) + token + at, count, tile);
    }
  }
}

// GCC does not multi-version templates, hence one plain function per dtype.
REST_FAST_MULTI_ISA void run_float32(const FrameCrossAttentionParams& p, int64_t begin, int64_t end) {
  run_range<float>(p, begin, end);
}
REST_FAST_MULTI_ISA void run_bfloat16(const FrameCrossAttentionParams& p, int64_t begin,
                                      int64_t end) {
  run_range<BFloat16>(p, begin, end);
}
REST_FAST_MULTI_ISA void run_float16(const FrameCrossAttentionParams& p, int64_t begin, int64_t end) {
  run_range<Float16>(p, begin, end);
}

}  // namespace

int frame_cross_attention_cpu(const FrameCrossAttentionParams& p) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch == 0 || p.tokens == 0) return kOk;

  const auto run = p.dtype == DType::kFloat32    ? &run_float32
                   : p.dtype == DType::kBFloat16 ? &run_bfloat16
                                                 : &run_float16;
  const int64_t frame_tokens = p.tokens / p.frames;
  const int64_t items = p.batch * p.frames * ((frame_tokens + kTokens - 1) / kTokens);
  const int64_t elements = p.batch * p.tokens * p.heads * p.head_dim;
  // An element costs its conversions and, a vector at a time, two products a key.
  const int threads = thread_count(elements * (2 + p.audio / 8));
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    run(p, items * thread / threads, items * (thread + 1) / threads);
  }
  return kOk;
}

}  // namespace rest_fast
