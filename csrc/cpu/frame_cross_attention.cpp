// Tokens of a latent frame attend to the audio (or text) tokens of that frame:
//
//   out = softmax(scale rms_norm(q) K_i^T) V_i
//
// Layout: ops/frame_cross_attention.h. How: the elements of a vector are 16 tokens; keys and
// channels are broadcast. So neither the products nor the softmax need a sum across a vector, and
// no number of keys wastes anything. Keys come in tiles with an online softmax; everything between
// q and out is in one tile on the stack. Limits: heads of at most kMaxHeadDim channels.
#include "../ops/frame_cross_attention.h"

#include <limits>

#include "exp.h"
#include "register_tile.h"

namespace rest_fast {
namespace {

constexpr int kTokens = kColumns;  // of a tile
constexpr int kKeys = 32;    // with 64 channels the tile takes two thirds of a first-level cache

using PerToken = Columns;  // a number for each token of a tile

struct alignas(64) Tile {
  PerToken q[kMaxHeadDim];            // normed and scaled, channel by channel
  PerToken out[kMaxHeadDim];          // not yet divided by the sum
  PerToken score[kKeys];              // then exp(score - top)
  float k[kKeys * kMaxHeadDim];       // fp32, rows of head_dim
  float v[kKeys * kMaxHeadDim];       // fp32, rows of head_dim
  float rows[kTokens * kMaxHeadDim];  // q and out with tokens as rows of head_dim
  PerToken top;                       // largest score so far
  PerToken sum;                       // of exp(score - top)
  PerToken root;                      // 1 / rms of the whole token, all heads
};

// to[j to_stride + i] = from[i from_stride + j], in squares of four that the compiler shuffles.
REST_FAST_INLINE void transpose(const float* __restrict from, int64_t from_stride, int64_t rows,
                                int64_t columns, float* __restrict to, int64_t to_stride) {
  const int64_t square_rows = rows / 4 * 4;
  const int64_t square_columns = columns / 4 * 4;
  for (int64_t row = 0; row < square_rows; row += 4) {
    for (int64_t column = 0; column < square_columns; column += 4) {
      for (int64_t j = column; j < column + 4; ++j) {
        for (int64_t i = row; i < row + 4; ++i) to[j * to_stride + i] = from[i * from_stride + j];
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < square_rows ? square_columns : 0; j < columns; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

// `count` tokens of q, one head: normed, scaled, and transposed so that the tokens are the elements
// of vectors. The elements after them compute on zeros.
template <class T>
REST_FAST_INLINE void load_query(const T* __restrict q, const T* __restrict weight, int64_t width,
                                 int64_t dim, int count, Tile& tile) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int t = 0; t < count; ++t) {
    const T* __restrict from = q + t * width;
    float* __restrict to = tile.rows + t * dim;
    const float root = tile.root[t] * scale;
    for (int64_t d = 0; d < dim; ++d) to[d] = to_float(from[d]) * root * to_float(weight[d]);
  }
  std::fill(tile.rows + count * dim, tile.rows + kTokens * dim, 0.0f);
  transpose(tile.rows, dim, kTokens, dim, tile.q[0], kTokens);
}

// Stores `count` tokens of one head, divided by their sums.
template <class T>
REST_FAST_INLINE void store_out(Tile& tile, int64_t width, int64_t dim, int count, T* out) {
  transpose(tile.out[0], kTokens, dim, kTokens, tile.rows, dim);
  for (int t = 0; t < count; ++t) {
    const float* __restrict from = tile.rows + t * dim;
    T* __restrict to = out + t * width;
    const float factor = 1.0f / tile.sum[t];
    for (int64_t d = 0; d < dim; ++d) round_to(from[d] * factor, to[d]);
  }
}

template <class T>
REST_FAST_INLINE void load_keys(const T* source, int64_t width, int64_t dim, int64_t keys,
                                float* rows) {
  for (int64_t a = 0; a < keys; ++a) {
    const T* __restrict from = source + a * width;
    float* __restrict to = rows + a * dim;
    for (int64_t d = 0; d < dim; ++d) to[d] = to_float(from[d]);
  }
}

// Scores -> exp(score - top); earlier sums are rescaled to the new top.
REST_FAST_INLINE void online_softmax(Tile& tile, int64_t keys, int64_t dim) {
  PerToken top, correction;
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
template <int kWidth, class T>
REST_FAST_INLINE void attend(const FrameCrossAttentionParams& p, const T* q, const T* weight,
                             const T* k, const T* v, T* out, int count, Tile& tile) {
  const int64_t width = p.heads * p.head_dim;
  const int64_t dim = p.head_dim;
  load_query(q, weight, width, dim, count, tile);
  std::fill_n(tile.out[0], dim * kTokens, 0.0f);
  for (int t = 0; t < kTokens; ++t) {
    // Not minus infinity: that minus itself is NaN.
    tile.top[t] = std::numeric_limits<float>::lowest();
    tile.sum[t] = 0.0f;
  }
  for (int64_t key = 0; key < p.audio; key += kKeys) {
    const int64_t keys = std::min<int64_t>(kKeys, p.audio - key);
    load_keys(k + key * width, width, dim, keys, tile.k);
    load_keys(v + key * width, width, dim, keys, tile.v);
    std::fill_n(tile.score[0], keys * kTokens, 0.0f);
    multiply_rows<kWidth>(tile.k, keys, dim, 1, dim, tile.q, tile.score);
    online_softmax(tile, keys, dim);
    multiply_rows<kWidth>(tile.v, dim, 1, dim, keys, tile.score, tile.out);
  }
  store_out(tile, width, dim, count, out);
}

// Tiles of tokens [begin, end) of B x F x tiles of a frame.
template <int kWidth, class T>
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
      attend<kWidth>(p, q + at, static_cast<const T*>(p.q_weight) + at,
                     static_cast<const T*>(p.k) + context + at,
                     static_cast<const T*>(p.v) + context + at, static_cast<T*>(p.out) + token + at,
                     count, tile);
    }
  }
}

template <class T>
struct Body {
  template <int kWidth>
  static REST_FAST_INLINE void run(const FrameCrossAttentionParams& p, int64_t begin, int64_t end) {
    run_range<kWidth, T>(p, begin, end);
  }
};

}  // namespace

int frame_cross_attention_cpu(const FrameCrossAttentionParams& p) {
  if (const int error = check_sizes(p)) return error;
  const auto run = choose_version<Body>(p);
  if (!run) return kBadVectorWidth;
  if (p.batch == 0 || p.tokens == 0) return kOk;

  const int64_t frame_tokens = p.tokens / p.frames;
  const int64_t items = p.batch * p.frames * ((frame_tokens + kTokens - 1) / kTokens);
  const int64_t elements = p.batch * p.tokens * p.heads * p.head_dim;
  // An element costs its conversions and, a vector at a time, two products a key.
  in_parallel(items, elements * (2 + p.audio / 8),
              [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
