// The tokens of a latent frame see the keys of that frame; text is one frame that all of them see.
//
//   out = softmax(rms_norm(q) K^T / sqrt(D)) V
//
// Layout: ops/frame_cross_attention.h. Two ways.
//
// Any number of keys: a block has kRows tokens of one frame. A thread owns one vector of kVec
// channels of a head and goes through the keys with an online softmax: neighbouring threads make up
// a head, so that a score is a sum over a few lanes by shuffles, all loads are of neighbouring
// channels, and each key and value is loaded once for kRows tokens. The norm is over all heads, so
// q is read twice, the second time from the cache.
//
// More than kFewKeys of 16 bits, heads of 64 or 128: tensor cores, two launches. The norm is over
// all heads and a product of one, so the first writes normed queries to `out`, rounded as tensor
// cores take them; of these the second makes the result (attend.h), in place.
#include "../ops/frame_cross_attention.h"
#include "attention/attend.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kRows = 4;
constexpr int64_t kFewKeys = 8;

// How the vectors of a head lie in a warp: `lanes` of them side by side, a power of two.
struct HeadLanes {
  int lanes;
  int vectors;  // of a head; those of lane i are i, i + lanes, ...
};

__device__ __host__ __forceinline__ HeadLanes head_lanes(int64_t head_dim, int vec) {
  const int vectors = static_cast<int>(head_dim) / vec;
  int lanes = 1;
  while (lanes < vectors && lanes < kWarp) lanes *= 2;
  return {lanes, vectors};
}

// Sum over the threads of a head.
__device__ __forceinline__ float head_sum(float x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

template <class T, int kVec>
__device__ __forceinline__ void load_or_zero(float (&to)[kVec], const T* from, bool real) {
  Vector<T, kVec> v;
  if (real) v = load<T, kVec>(from, 0);
#pragma unroll
  for (int e = 0; e < kVec; ++e) to[e] = real ? to_float(v.at[e]) : 0.0f;
}

// A token's softmax over the keys so far, as far as this thread's channels go.
template <int kSize>
struct Seen {
  float q[kSize];    // normed, in units of log2
  float sum[kSize];  // of values
  float most;        // of scores
  float total;       // of weights
};

template <class T, int kVec, int kPer>
__device__ __forceinline__ void see_key(Seen<kVec * kPer> (&seen)[kRows], const T* k, const T* v,
                                        const bool (&real)[kPer], HeadLanes head, bool first) {
  float key[kPer][kVec], value[kPer][kVec];
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    load_or_zero<T, kVec>(key[i], k + i * head.lanes * kVec, real[i]);
    load_or_zero<T, kVec>(value[i], v + i * head.lanes * kVec, real[i]);
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    auto& s = seen[row];
    float score = 0.0f;
#pragma unroll
    for (int e = 0; e < kVec * kPer; ++e) score += s.q[e] * key[e / kVec][e % kVec];
    score = head_sum(score, head.lanes);
    const float most = first ? score : fmaxf(s.most, score);
    const float kept = first ? 0.0f : exp2f(s.most - most), share = exp2f(score - most);
#pragma unroll
    for (int e = 0; e < kVec * kPer; ++e) {
      const float weighted = share * value[e / kVec][e % kVec];
      s.sum[e] = first ? weighted : s.sum[e] * kept + weighted;
    }
    s.total = first ? share : s.total * kept + share;
    s.most = most;
  }
}

// 1 / root of the mean square of each of the block's rows.
template <class T, int kVec>
__device__ __forceinline__ void norms(float (&root)[kRows], const T* q, int rows,
                                      const FrameCrossAttentionParams& p) {
  const int64_t width = p.heads * p.head_dim;
#pragma unroll
  for (int row = 0; row < kRows; ++row) root[row] = 0.0f;
  for (int64_t vector = threadIdx.x; vector < width / kVec; vector += blockDim.x) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row < rows) root[row] += sum_of_squares(load<T, kVec>(q + row * width, vector));
    }
  }
  block_sum(root);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    root[row] = rsqrtf(root[row] / static_cast<float>(width) + p.eps);
  }
}

template <class T, int kVec, int kPer>
__global__ void __launch_bounds__(kMaxThreads, 1)
    frame_cross_attention_kernel(const FrameCrossAttentionParams p) {
  const int64_t width = p.heads * p.head_dim, in_frame = p.tokens / p.frames;
  const int64_t tiles = (in_frame + kRows - 1) / kRows, lane = blockIdx.y;
  const int64_t frame = blockIdx.x / tiles, first = blockIdx.x % tiles * kRows;
  const int rows = static_cast<int>(in_frame - first < kRows ? in_frame - first : kRows);
  const int64_t start = (lane * p.tokens + frame * in_frame + first) * width;
  const T* q = static_cast<const T*>(p.q) + start;
  T* out = static_cast<T*>(p.out) + start;
  const int64_t keys = ((p.kv_batch == 1 ? 0 : lane) * p.frames + frame) * p.audio * width;
  const T* k = static_cast<const T*>(p.k) + keys;
  const T* v = static_cast<const T*>(p.v) + keys;
  const T* weight = static_cast<const T*>(p.q_weight);

  float root[kRows];
  norms<T, kVec>(root, q, rows, p);
  const HeadLanes head = head_lanes(p.head_dim, kVec);
  const float scale = kLog2E * rsqrtf(static_cast<float>(p.head_dim));

  // Whole warps go round, for the shuffles: threads beyond the last head work on nothing.
  const int64_t places = (p.heads * head.lanes + kWarp - 1) / kWarp * kWarp;
  for (int64_t place = threadIdx.x; place < places; place += blockDim.x) {
    const int64_t h = place / head.lanes;
    const int lane_of_head = static_cast<int>(place % head.lanes);
    const int64_t at = h * p.head_dim + lane_of_head * kVec;
    bool real[kPer];
    Seen<kVec * kPer> seen[kRows];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      real[i] = h < p.heads && lane_of_head + i * head.lanes < head.vectors;
      const int64_t c = at + i * head.lanes * kVec;
      float grow[kVec], x[kVec];
      load_or_zero<T, kVec>(grow, weight + c, real[i]);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        load_or_zero<T, kVec>(x, q + row * width + c, real[i] && row < rows);
#pragma unroll
        for (int e = 0; e < kVec; ++e)
          seen[row].q[i * kVec + e] = x[e] * root[row] * grow[e] * scale;
      }
    }
    for (int64_t key = 0; key < p.audio; ++key) {
      see_key<T, kVec, kPer>(seen, k + key * width + at, v + key * width + at, real, head,
                             key == 0);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        if (!real[i] || row >= rows) continue;
        Vector<T, kVec> result;
#pragma unroll
        for (int e = 0; e < kVec; ++e) {
          result.at[e] = round_to<T>(seen[row].sum[i * kVec + e] / seen[row].total);
        }
        store<T, kVec>(out + row * width + at + i * head.lanes * kVec, 0, result);
      }
    }
  }
}

template <class T, int kVec, int kPer>
int launch_for(const FrameCrossAttentionParams& p, void* stream) {
  const int64_t tiles = (p.tokens / p.frames + kRows - 1) / kRows * p.frames;
  if (tiles > INT32_MAX || p.batch > kMaxGridY) return kBadShape;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(p.batch), 1);
  const int threads = whole_warps(p.heads * head_lanes(p.head_dim, kVec).lanes, kMaxThreads);
  return launch(frame_cross_attention_kernel<T, kVec, kPer>, p, grid, threads, stream);
}

template <class T, int kVec>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(const FrameCrossAttentionParams p) {
  const int64_t width = p.heads * p.head_dim, vectors = width / kVec;
  const int64_t row = (blockIdx.y * p.tokens + blockIdx.x) * width;
  const T* q = static_cast<const T*>(p.q) + row;
  T* out = static_cast<T*>(p.out) + row;
  float squares[1] = {0.0f};
  for (int64_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
    squares[0] += sum_of_squares(load<T, kVec>(q, vector));
  }
  block_sum(squares);
  const float root = rsqrtf(squares[0] / static_cast<float>(width) + p.eps);
  for (int64_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
    auto x = load<T, kVec>(q, vector);
    const auto grow = load<T, kVec>(static_cast<const T*>(p.q_weight), vector);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      x.at[e] = round_to<T>(to_float(x.at[e]) * root * to_float(grow.at[e]));
    }
    store<T, kVec>(out, vector, x);
  }
}

template <class A>
__global__ void __launch_bounds__(A::kThreads, 2)
    many_keys_kernel(const FrameCrossAttentionParams p) {
  using T = typename A::T;
  REST_FAST_DYNAMIC_SHARED(memory);
  const int64_t width = p.heads * p.head_dim, in_frame = p.tokens / p.frames;
  const int64_t tiles = (in_frame + A::kQueries - 1) / A::kQueries, lane = blockIdx.z;
  const int64_t frame = blockIdx.x / tiles, first = blockIdx.x % tiles * A::kQueries;
  const int64_t head = blockIdx.y * p.head_dim;
  const int64_t keys = ((p.kv_batch == 1 ? 0 : lane) * p.frames + frame) * p.audio * width + head;
  T* rows = static_cast<T*>(p.out) + (lane * p.tokens + frame * in_frame + first) * width + head;
  attend<A>(memory,
            {static_cast<const T*>(p.k) + keys, static_cast<const T*>(p.v) + keys, width,
             static_cast<int>(p.audio)},
            {rows, rows, nullptr, width, static_cast<int>(in_frame - first)},
            rsqrtf(static_cast<float>(p.head_dim)));
}

template <class A>
int launch_many_keys(const FrameCrossAttentionParams& p, void* stream) {
  using T = typename A::T;
  constexpr int kVec = 16 / sizeof(T);
  const int64_t in_frame = p.tokens / p.frames;
  const int64_t tiles = (in_frame + A::kQueries - 1) / A::kQueries * p.frames;
  const bool large = p.tokens > INT32_MAX || p.audio > INT32_MAX || p.heads > kMaxGridY;
  if (large || p.batch > kMaxGridY) return kBadShape;
  const auto batch = static_cast<unsigned>(p.batch);
  const dim3 each(static_cast<unsigned>(p.tokens), batch, 1);
  const int threads = whole_warps(p.heads * p.head_dim / kVec, kMaxThreads);
  if (const int error = launch(norm_kernel<T, kVec>, p, each, threads, stream)) return error;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(p.heads), batch);
  return launch(many_keys_kernel<A>, p, grid, A::kThreads, stream, A::Tiles::kBytes);
}

template <class T>
int dispatch(const FrameCrossAttentionParams& p, void* stream) {
  constexpr int kWide = 16 / sizeof(T), kMostAlone = kMaxHeadDim / kWarp;
  static_assert(kWide * kWarp >= kMaxHeadDim, "a warp holds the vectors of a head");
  const bool in_vectors =
      p.head_dim % kWide == 0 && aligned({p.q, p.q_weight, p.k, p.v, p.out}, 16);
  if (!in_vectors) return launch_for<T, 1, kMostAlone>(p, stream);
  if constexpr (sizeof(T) == 2) {
    if (p.audio > kFewKeys && (p.head_dim == 64 || p.head_dim == 128)) {
      return by_queries<T>(p.head_dim, p.tokens / p.frames,
                           [&](auto a) { return launch_many_keys<decltype(a)>(p, stream); });
    }
  }
  return launch_for<T, kWide, 1>(p, stream);
}

}  // namespace

int frame_cross_attention_cuda(const FrameCrossAttentionParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
