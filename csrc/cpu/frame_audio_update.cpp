// Attention to the audio of a latent frame, its output projection and the residual:
//
//   x <- x + base_i + sum over r of share[r] update_i[r],   r: the A - 1 other tokens, head by head
//
// Layout: ops/frame_audio_update.h. Why it exists: the shares of a token are few numbers, so the
// projection of every token becomes a product of rank H (A - 1) with constants of a chunk; a lane
// that hears nothing adds a constant. How: 16 tokens at a time. Scores are dot products of rows as
// they lie in memory; then 16 channels of all update vectors are widened once for the 16 tokens.
// Limits: a rank of at most kMaxRank.
#include "../ops/frame_audio_update.h"

#include "exp.h"
#include "register_tile.h"

namespace rest_fast {
namespace {

constexpr int kTokens = 16;  // of a tile

struct alignas(64) Tile {
  float share[kTokens * kMaxRank];  // rows of rank: scores, then shares
  Columns update[kMaxRank];         // 16 channels, fp32
  Columns sum[kTokens];             // base and update, 16 channels
  float top[kMaxRank];              // of each head of a token: the largest score,
  float whole[kMaxRank];            // and the sum of exp(score - top)
};

// In the order of sum_of_squares in common.h.
template <class T>
REST_FAST_INLINE float dot(const T* __restrict a, const T* __restrict b, int64_t count) {
  constexpr int kPartials = 32;
  float partial[kPartials] = {};
  int64_t i = 0;
  for (; i + kPartials <= count; i += kPartials) {
    for (int j = 0; j < kPartials; ++j) partial[j] += to_float(a[i + j]) * to_float(b[i + j]);
  }
  for (int j = 0; i < count; ++i, ++j) partial[j] += to_float(a[i]) * to_float(b[i]);
  for (int half = kPartials / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) partial[j] += partial[j + half];
  }
  return partial[0];
}

// Scores [others, heads] -> shares. The first token has a score of zero in every head.
REST_FAST_INLINE void softmax(float* __restrict share, int64_t others, int64_t heads,
                              float* __restrict top, float* __restrict whole) {
  for (int64_t h = 0; h < heads; ++h) top[h] = 0.0f;
  for (int64_t a = 0; a < others; ++a) {
    for (int64_t h = 0; h < heads; ++h) top[h] = std::max(top[h], share[a * heads + h]);
  }
  for (int64_t h = 0; h < heads; ++h) whole[h] = exp_nonpositive(-top[h]);
  for (int64_t a = 0; a < others; ++a) {
    for (int64_t h = 0; h < heads; ++h) {
      share[a * heads + h] = exp_nonpositive(share[a * heads + h] - top[h]);
      whole[h] += share[a * heads + h];
    }
  }
  for (int64_t a = 0; a < others; ++a) {
    for (int64_t h = 0; h < heads; ++h) share[a * heads + h] /= whole[h];
  }
}

// The shares of `count` tokens, a row each.
template <class T>
REST_FAST_INLINE void hear(const FrameAudioUpdateParams& p, const T* q, const T* keys, int count,
                           Tile& tile) {
  const int64_t rank = p.others * p.heads;
  const int64_t width = p.heads * p.head_dim;
  for (int t = 0; t < count; ++t, q += width) {
    const float mean = sum_of_squares(q, width) / static_cast<float>(width);
    const float root = 1.0f / std::sqrt(mean + p.eps);
    float* share = tile.share + t * rank;
    for (int64_t r = 0; r < rank; ++r) {
      const T* head = q + r % p.heads * p.head_dim;
      share[r] = root * dot(head, keys + r * p.head_dim, p.head_dim);
    }
    softmax(share, p.others, p.heads, tile.top, tile.whole);
  }
}

// The first `columns` of a row, and zeros; the compiler makes one vector of a whole one.
template <class T>
REST_FAST_INLINE void widen(const T* __restrict from, int columns, Columns& to) {
  if (columns == kColumns) {
    for (int c = 0; c < kColumns; ++c) to[c] = to_float(from[c]);
  } else {
    for (int c = 0; c < kColumns; ++c) to[c] = c < columns ? to_float(from[c]) : 0.0f;
  }
}

template <class T>
REST_FAST_INLINE void add(const Columns& sum, int columns, T* __restrict x) {
  if (columns == kColumns) {
    for (int c = 0; c < kColumns; ++c) round_to(to_float(x[c]) + sum[c], x[c]);
  } else {
    for (int c = 0; c < columns; ++c) round_to(to_float(x[c]) + sum[c], x[c]);
  }
}

// x += base + shares x update, of `count` tokens.
template <int kWidth, class T>
REST_FAST_INLINE void add_update(const FrameAudioUpdateParams& p, const T* base, const T* update,
                                 int count, Tile& tile, T* x) {
  const int64_t rank = p.others * p.heads;
  for (int64_t first = 0; first < p.width; first += kColumns) {
    const int columns = static_cast<int>(std::min<int64_t>(kColumns, p.width - first));
    for (int64_t r = 0; r < rank; ++r) {
      widen(update + r * p.width + first, columns, tile.update[r]);
    }
    widen(base + first, columns, tile.sum[0]);
    for (int t = 1; t < count; ++t) std::memcpy(tile.sum[t], tile.sum[0], sizeof(Columns));
    multiply_rows<kWidth>(tile.share, count, rank, 1, rank, tile.update, tile.sum);
    for (int t = 0; t < count; ++t) add(tile.sum[t], columns, x + t * p.width + first);
  }
}

template <class T>
REST_FAST_INLINE void add_null(const T* __restrict null, int64_t width, T* __restrict x) {
  for (int64_t c = 0; c < width; ++c) round_to(to_float(x[c]) + to_float(null[c]), x[c]);
}

// Items [begin, end) of F x tiles of a frame x B. Lanes come last, so that every thread gets its
// part of the lanes that hear nothing.
template <int kWidth, class T>
REST_FAST_INLINE void run_range(const FrameAudioUpdateParams& p, int64_t begin, int64_t end) {
  Tile tile;
  const int64_t frame_tokens = p.tokens / p.frames;
  const int64_t tiles = (frame_tokens + kTokens - 1) / kTokens;
  const int64_t query_width = p.heads * p.head_dim;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t lane = item % p.batch;
    const int64_t first = item / p.batch % tiles * kTokens;
    const int64_t frame = item / p.batch / tiles;
    const int count = static_cast<int>(std::min<int64_t>(kTokens, frame_tokens - first));
    const int64_t token = lane * p.tokens + frame * frame_tokens + first;
    const int64_t slot = lane < p.hearing ? p.slot[lane] : -1;
    T* x = static_cast<T*>(p.x) + token * p.width;
    if (slot < 0) {
      for (int t = 0; t < count; ++t) {
        add_null(static_cast<const T*>(p.null), p.width, x + t * p.width);
      }
      continue;
    }
    const int64_t heard = slot * p.frames + frame;
    hear(p, static_cast<const T*>(p.q) + token * query_width,
         static_cast<const T*>(p.keys) + heard * p.others * query_width, count, tile);
    add_update<kWidth>(p, static_cast<const T*>(p.base) + heard * p.width,
                       static_cast<const T*>(p.update) + heard * p.others * p.heads * p.width,
                       count, tile, x);
  }
}

template <class T>
struct Body {
  template <int kWidth>
  static REST_FAST_INLINE void run(const FrameAudioUpdateParams& p, int64_t begin, int64_t end) {
    run_range<kWidth, T>(p, begin, end);
  }
};

bool slots_exist(const FrameAudioUpdateParams& p) {
  return std::all_of(p.slot, p.slot + p.hearing, [&](int64_t s) { return s >= -1 && s < p.slots; });
}

}  // namespace

int frame_audio_update_cpu(const FrameAudioUpdateParams& p) {
  if (const int error = check_sizes(p)) return error;
  const auto run = choose_version<Body>(p);
  if (!run) return kBadVectorWidth;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (!slots_exist(p)) return kAudioSlotOutOfRange;

  const int64_t frame_tokens = p.tokens / p.frames;
  const int64_t items = p.batch * p.frames * ((frame_tokens + kTokens - 1) / kTokens);
  // A channel that is heard costs, a vector at a time, one product for each part of the rank.
  const int64_t rank = p.others * p.heads;
  in_parallel(items, p.tokens * p.width * (p.batch + p.hearing * (1 + rank / 8)),
              [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
