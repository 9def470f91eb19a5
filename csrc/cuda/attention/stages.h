// Tiles of keys and values on their way through shared memory, kStages of them at a time.
#pragma once

#include "../ptx.h"
#include "slots.h"

namespace rest_fast {

// A tile of kRows rows of kDim 16-bit numbers. The 16-byte chunks of a row change places by its
// number, so that the same chunk of eight rows, which ldmatrix reads at once, lies in all banks.
template <class T, int kRows, int kDim>
struct SharedTile {
  static constexpr int kChunk = 8, kChunks = kDim / kChunk, kNumbers = kRows * kDim;
  static_assert(sizeof(T) == 2 && kChunks % 8 == 0, "eight chunks fill the 32 banks");

  T* memory;

  __device__ __forceinline__ T* at(unsigned row, unsigned chunk) const {
    return memory + row * kDim + (chunk ^ row % 8) * kChunk;
  }

  // Queues the rows that exist; the others become zero. All kThreads threads of the block call it.
  template <int kThreads>
  __device__ __forceinline__ void copy_from(const T* from, int64_t stride, int exist) const {
    static_assert(kRows * kChunks % kThreads == 0, "every thread copies as many chunks");
    static_assert(kThreads % kChunks == 0, "a thread copies the same chunk of its rows");
    const unsigned chunk = threadIdx.x % kChunks, first = threadIdx.x / kChunks;
    const T* source = from + first * stride + chunk * kChunk;
#pragma unroll
    for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
      const unsigned row = first + i * (kThreads / kChunks);
      const bool real = static_cast<int>(row) < exist;
      copy_async(at(row, chunk), real ? source : from, real ? 16 : 0);
      source += kThreads / kChunks * stride;
    }
  }
};

template <class T, int kKeys, int kDim, int kStages, int kThreads>
struct Stages {
  using Tile = SharedTile<T, kKeys, kDim>;
  static constexpr size_t kBytes = size_t{kStages} * 2 * Tile::kNumbers * sizeof(T);

  T* memory;
  ValidSlots<T> slots;

  __device__ __forceinline__ int tiles() const { return (slots.count + kKeys - 1) / kKeys; }
  // Keys of a tile that are valid; kKeys or more: all.
  __device__ __forceinline__ int left(int tile) const { return slots.count - tile * kKeys; }
  __device__ __forceinline__ Tile keys(int tile) const {
    return {memory + tile % kStages * 2 * Tile::kNumbers};
  }
  __device__ __forceinline__ Tile values(int tile) const {
    return {keys(tile).memory + Tile::kNumbers};
  }

  // A group of its own, empty behind the last tile, so that a wait can count groups.
  __device__ __forceinline__ void issue(int tile) const {
    if (tile < tiles()) {
      const int64_t from = tile * kKeys * slots.stride;
      keys(tile).template copy_from<kThreads>(slots.k + from, slots.stride, left(tile));
      values(tile).template copy_from<kThreads>(slots.v + from, slots.stride, left(tile));
    }
    commit_copies();
  }

  __device__ __forceinline__ void start() const {
#pragma unroll
    for (int tile = 0; tile < kStages - 1; ++tile) issue(tile);
  }

  // The tile is there, for all threads, and the one behind those under way is asked for: into the
  // memory of the tile before this one, which after the barrier nobody reads any more.
  __device__ __forceinline__ void advance_to(int tile) const {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    issue(tile + kStages - 1);
  }
};

}  // namespace rest_fast
