// Shuffles, votes, mma.sync and ldmatrix: what the lanes of a warp do together.
#pragma once

#include "fibers.h"

namespace cuda_on_cpu {

struct Nothing {};

struct Shuffle {
  uint64_t brings;
  unsigned source;
  uint64_t takes;
};

inline void shuffle(Shuffle* const* lanes) {
  for (size_t i = 0; i < kWarp; ++i) {
    if (!lanes[i]) continue;
    const Shuffle* from = lanes[lanes[i]->source % kWarp];
    if (!from) fail("a shuffle reads a lane that takes no part");
    lanes[i]->takes = from->brings;
  }
}

template <class T>
T from_lane(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "one word");
  Shuffle part{0, source, 0};
  std::memcpy(&part.brings, &value, sizeof(T));
  together(mask, part, shuffle);
  std::memcpy(&value, &part.takes, sizeof(T));
  return value;
}

struct Vote {
  bool brings;
  unsigned takes;
};

inline void vote(Vote* const* lanes) {
  unsigned ballot = 0;
  for (unsigned i = 0; i < kWarp; ++i) ballot |= (lanes[i] && lanes[i]->brings ? 1u : 0u) << i;
  for (unsigned i = 0; i < kWarp; ++i) {
    if (lanes[i]) lanes[i]->takes = ballot;
  }
}

// D[16, 8] += A[16, 16] B[16, 8], fp32 sums. `widen` reads a 16-bit number.
struct Product {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <float (*widen)(uint16_t)>
void multiply(Product* const* lanes) {
  float a[16][16], b[16][8];
  for (unsigned i = 0; i < kWarp; ++i) {
    const unsigned group = i / 4, pair = 2 * (i % 4);
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned reg = 0; reg < 4; ++reg) {
        const uint32_t word = lanes[i]->a[reg] >> (16 * half);
        a[group + 8 * (reg % 2)][pair + half + 8 * (reg / 2)] = widen(static_cast<uint16_t>(word));
      }
      for (unsigned reg = 0; reg < 2; ++reg) {
        const uint32_t word = lanes[i]->b[reg] >> (16 * half);
        b[pair + half + 8 * reg][group] = widen(static_cast<uint16_t>(word));
      }
    }
  }
  for (unsigned i = 0; i < kWarp; ++i) {
    for (unsigned reg = 0; reg < 4; ++reg) {
      const unsigned row = i / 4 + 8 * (reg / 2), column = 2 * (i % 4) + reg % 2;
      double sum = lanes[i]->d[reg];
      for (unsigned k = 0; k < 16; ++k) sum += double{a[row][k]} * double{b[k][column]};
      lanes[i]->d[reg] = static_cast<float>(sum);
    }
  }
}

// Four matrices of 8 rows of 16 bytes; lane i brings the address of row i % 8 of matrix i / 8.
struct Matrices {
  const void* row;
  uint32_t* takes;
};

template <bool transposed>
void load_matrices(Matrices* const* lanes) {
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t values[8][8];
    unsigned uses[8] = {}, most = 0;
    for (unsigned row = 0; row < 8; ++row) {
      const void* address = lanes[8 * matrix + row]->row;
      if (reinterpret_cast<uintptr_t>(address) % 16)
        fail("ldmatrix: a row is not aligned to 16 bytes");
      std::memcpy(values[row], address, 16);
      const unsigned n = ++uses[reinterpret_cast<uintptr_t>(address) / 16 % 8];  // 4 banks of 32
      most = n > most ? n : most;
    }
    cuda_on_cpu_bank_conflicts += most - 1;
    for (unsigned i = 0; i < kWarp; ++i) {
      const unsigned group = i / 4, pair = 2 * (i % 4);
      const uint16_t low = transposed ? values[pair][group] : values[group][pair];
      const uint16_t high = transposed ? values[pair + 1][group] : values[group][pair + 1];
      lanes[i]->takes[matrix] = low | uint32_t{high} << 16;
    }
  }
}

}  // namespace cuda_on_cpu

inline void __syncwarp(unsigned mask = ~0u) {
  cuda_on_cpu::Nothing part;
  cuda_on_cpu::together<cuda_on_cpu::Nothing>(mask, part, [](cuda_on_cpu::Nothing* const*) {});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return cuda_on_cpu::from_lane(mask, value, static_cast<unsigned>(source));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int change) {
  return cuda_on_cpu::from_lane(mask, value, cuda_on_cpu::lane() ^ static_cast<unsigned>(change));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned source = cuda_on_cpu::lane() + by;
  return cuda_on_cpu::from_lane(mask, value, source < cuda_on_cpu::kWarp ? source : source - by);
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  cuda_on_cpu::Vote part{value, 0};
  cuda_on_cpu::together(mask, part, cuda_on_cpu::vote);
  return part.takes;
}
inline bool __any_sync(unsigned mask, bool value) {
  return __ballot_sync(mask, value) != 0;
}
inline bool __all_sync(unsigned mask, bool value) {
  return __ballot_sync(mask, value) == mask;
}
