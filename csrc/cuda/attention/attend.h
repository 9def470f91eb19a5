// A block's pass over the keys of one head, on the tensor cores of sm_80 and newer: attention of
// any op that has lists of keys.
//
// A block takes queries of one head, 16 rows a row tile and kRowTiles of them a warp, and passes
// over the keys once: cp.async keeps kStages tiles of keys and values under way (stages.h), a warp
// multiplies by mma.sync with everything of its rows in registers (fragments.h), softmax goes along
// (online_softmax.h). No warp needs another but for the barrier of a tile. Scores and sums are
// fp32; weights are rounded for the second product, the result once more.
// docs/kernels/sink_ring_attention.md has the why of the sizes.
#pragma once

#include "epilogue.h"

namespace rest_fast {

constexpr float kLog2E = 1.4426950408889634f;

template <class T_, int kDim_, int kRowTiles_, int kStages_>
struct Attention {
  using T = T_;
  static constexpr int kDim = kDim_, kRowTiles = kRowTiles_;
  static constexpr int kKeys = 64;  // of a tile
  static constexpr int kWarps = 4, kThreads = kWarps * kWarp;
  static constexpr int kWarpRows = kRowTile * kRowTiles, kQueries = kWarps * kWarpRows;
  using Tiles = Stages<T, kKeys, kDim, kStages_, kThreads>;
  static_assert(Tiles::kBytes <= 99 * 1024, "what a block may have on sm_86, 89 and 120");
};

// Two row tiles a warp read a key from shared memory once for both; one leaves fewer rows empty,
// and is what fits the registers at a head of 128. run(Attention{}) with the one for these queries.
template <class T, class Run>
int by_queries(int64_t head_dim, int64_t queries, Run run) {
  if (head_dim == 128) return run(Attention<T, 128, 1, 2>{});
  if (queries <= 64) return run(Attention<T, 64, 1, 3>{});
  return run(Attention<T, 64, 2, 3>{});
}

// Rows of one head, `stride` numbers apart, of which `exist` are there. `out` may be `q`: a warp
// has read its rows before it writes any.
template <class T>
struct HeadRows {
  const T* q;
  T* out;
  float* lse;  // of each row, or null
  int64_t stride;
  int exist;

  __device__ __forceinline__ HeadRows from(int row) const {
    return {q + row * stride, out + row * stride, lse == nullptr ? nullptr : lse + row, stride,
            exist - row};
  }
};

// All threads of the block. `rows` are the block's; Tiles::kBytes of shared memory are `memory`.
template <class A>
__device__ __forceinline__ void attend(unsigned char* memory,
                                       const ValidSlots<typename A::T>& slots,
                                       const HeadRows<typename A::T>& rows, float scale) {
  using T = typename A::T;
  const typename A::Tiles tiles{reinterpret_cast<T*>(memory), slots};
  tiles.start();

  const auto mine = rows.from(static_cast<int>(threadIdx.x) / kWarp * A::kWarpRows);
  Left<A::kDim> queries[A::kRowTiles];
  Sums<A::kDim> sums[A::kRowTiles] = {};
  OnlineSoftmax softmax[A::kRowTiles];
#pragma unroll
  for (int i = 0; i < A::kRowTiles; ++i) {
    const auto tile = mine.from(i * kRowTile);
    queries[i] = load_queries<T, A::kDim>(tile.q, tile.stride, tile.exist, scale < 0.0f);
  }
  // The sign is in the queries. Never zero, since it must leave -inf of a key that does not count.
  const float positive = fmaxf(fabsf(scale) * kLog2E, 1e-30f);

  for (int tile = 0; tile < tiles.tiles(); ++tile) {
    tiles.advance_to(tile);
    Sums<A::kKeys> scores[A::kRowTiles];
    multiply_keys(scores, queries, tiles.keys(tile));
#pragma unroll
    for (int i = 0; i < A::kRowTiles; ++i) {
      if (tiles.left(tile) < A::kKeys) mask(scores[i], tiles.left(tile));
      shrink(sums[i], softmax[i].advance(scores[i], positive));
    }
    multiply_values(sums, scores, tiles.values(tile));
  }

  wait_for_copies<0>();  // of empty groups
#pragma unroll
  for (int i = 0; i < A::kRowTiles; ++i) {
    softmax[i].finish();
    const auto tile = mine.from(i * kRowTile);
    write_rows<T>(sums[i], softmax[i], tile.out, tile.stride, tile.lse, tile.exist);
  }
}

}  // namespace rest_fast
