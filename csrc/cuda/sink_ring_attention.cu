// Attention over the valid slots of each lane's cache row, on the tensor cores of sm_80 and newer:
//
//   out = softmax(scale q K[:n]^T) V[:n],   lse = log sum exp(scale q K[:n]^T),   n = n_valid
//
// Layout: ops/sink_ring_attention.h. A block takes the queries of one head of one lane, 16 rows a
// row tile and kRowTiles of them a warp, and passes over the lane's slots once: cp.async keeps
// kStages tiles of keys and values under way (stages.h), a warp multiplies by mma.sync with
// everything of its rows in registers (fragments.h), softmax goes along (online_softmax.h). No warp
// needs another but for the barrier of a tile; no block needs another, so a lane's bits depend on
// nothing but the lane. Scores, sums and lse are fp32; weights are rounded for the second product,
// the result once more. Limits: bfloat16 and half; heads of 64 or 128; addresses and strides of 16
// bytes. A lane with an index out of range writes nothing. docs/kernels/sink_ring_attention.md has
// the why of the sizes.
#include "../ops/sink_ring_attention.h"
#include "attention/epilogue.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kKeys = 64;  // of a tile
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr float kLog2E = 1.4426950408889634f;

template <class T_, int kDim_, int kRowTiles_, int kStages_>
struct Config {
  using T = T_;
  static constexpr int kDim = kDim_, kRowTiles = kRowTiles_;
  static constexpr int kWarpRows = kRowTile * kRowTiles, kQueries = kWarps * kWarpRows;
  using Tiles = Stages<T, kKeys, kDim, kStages_, kThreads>;
  static_assert(Tiles::kBytes <= 99 * 1024, "what a block may have on sm_86, 89 and 120");
};

template <class C>
__global__ void __launch_bounds__(kThreads, 2)
    sink_ring_attention_kernel(const SinkRingAttentionParams p) {
  using T = typename C::T;
  REST_FAST_DYNAMIC_SHARED(memory);
  const int lane = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
  const auto slots = valid_slots<T>(p, lane, head);
  if (slots.count == 0) return;  // the whole block
  const typename C::Tiles tiles{reinterpret_cast<T*>(memory), slots};
  tiles.start();

  // This warp's rows.
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first = static_cast<int>(blockIdx.x) * C::kQueries + warp * C::kWarpRows;
  const int exist = static_cast<int>(p.tokens) - first;
  const int64_t stride = p.heads * p.head_dim;
  const int64_t at = (lane * p.tokens + first) * stride + head * p.head_dim;
  Left<C::kDim> queries[C::kRowTiles];
  Sums<C::kDim> sums[C::kRowTiles] = {};
  OnlineSoftmax softmax[C::kRowTiles];
#pragma unroll
  for (int i = 0; i < C::kRowTiles; ++i) {
    const T* q = static_cast<const T*>(p.q) + at + i * kRowTile * stride;
    queries[i] = load_queries<T, C::kDim>(q, stride, exist - i * kRowTile, p.scale < 0.0f);
  }
  // The sign is in the queries. Never zero, since it must leave -inf of a key that does not count.
  const float scale = fmaxf(fabsf(p.scale) * kLog2E, 1e-30f);

  for (int tile = 0; tile < tiles.tiles(); ++tile) {
    tiles.advance_to(tile);
    Sums<kKeys> scores[C::kRowTiles];
    multiply_keys(scores, queries, tiles.keys(tile));
#pragma unroll
    for (int i = 0; i < C::kRowTiles; ++i) {
      if (tiles.left(tile) < kKeys) mask(scores[i], tiles.left(tile));
      shrink(sums[i], softmax[i].advance(scores[i], scale));
    }
    multiply_values(sums, scores, tiles.values(tile));
  }

  wait_for_copies<0>();  // of empty groups
  float* lse = p.lse == nullptr ? nullptr : p.lse + (lane * p.heads + head) * p.tokens + first;
#pragma unroll
  for (int i = 0; i < C::kRowTiles; ++i) {
    softmax[i].finish();
    T* out = static_cast<T*>(p.out) + at + i * kRowTile * stride;
    float* sums_out = lse == nullptr ? nullptr : lse + i * kRowTile;
    write_rows<T>(sums[i], softmax[i], out, stride, sums_out, exist - i * kRowTile);
  }
}

template <class C>
int launch_for(const SinkRingAttentionParams& p, void* stream) {
  const int64_t blocks = (p.tokens + C::kQueries - 1) / C::kQueries;
  if (p.tokens > INT32_MAX || p.heads > kMaxGridY || p.batch > kMaxGridY) return kBadShape;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(p.batch));
  return launch(sink_ring_attention_kernel<C>, p, grid, kThreads, stream, C::Tiles::kBytes);
}

// Two row tiles a warp read a key from shared memory once for both; one leaves fewer rows empty,
// and is what fits the registers at a head of 128.
template <class T>
int dispatch(const SinkRingAttentionParams& p, void* stream) {
  if (p.head_dim == 128) return launch_for<Config<T, 128, 1, 2>>(p, stream);
  if (p.tokens <= 64) return launch_for<Config<T, 64, 1, 3>>(p, stream);
  return launch_for<Config<T, 64, 2, 3>>(p, stream);
}

template <>
int dispatch<float>(const SinkRingAttentionParams&, void*) {
  return kBadDType;
}

}  // namespace

int sink_ring_attention_cuda(const SinkRingAttentionParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.head_dim != 64 && p.head_dim != 128) return kBadHeadSize;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  const bool strides = p.row_stride % 8 == 0 && p.bank_stride % 8 == 0;
  if (!strides || !aligned({p.q, p.k_cache, p.v_cache, p.out}, 16)) return kNotWholeVectors;
  if (const int error = expect_capability(8, device)) return error;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
