// What the CPU ops share: number types, one binary for several instruction sets, threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../core.h"

// One wheel serves every x86-64: the compiler makes three versions of the marked functions, and the
// loader picks one. Helpers are forced inline, since otherwise they would use the base instruction
// set only.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12
#define REST_FAST_X86_LEVELS 1
#define REST_FAST_MULTI_ISA \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define REST_FAST_MULTI_ISA
#endif
#if defined(__GNUC__)
#define REST_FAST_INLINED __attribute__((always_inline))
#else
#define REST_FAST_INLINED
#endif
#define REST_FAST_INLINE inline REST_FAST_INLINED

namespace rest_fast {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

REST_FAST_INLINE float as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof(f));
  return f;
}

REST_FAST_INLINE uint32_t as_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof(u));
  return u;
}

REST_FAST_INLINE float to_float(float x) {
  return x;
}

REST_FAST_INLINE float to_float(BFloat16 x) {
  return as_float(uint32_t{x.bits} << 16);
}

// Half floats by integer arithmetic and selects: any instruction set vectorises it.
REST_FAST_INLINE float to_float(Float16 x) {
  const uint32_t sign = (uint32_t{x.bits} & 0x8000u) << 16;
  const uint32_t magnitude = (uint32_t{x.bits} & 0x7fffu) << 13;
  const uint32_t normal = magnitude + (112u << 23);   // exponent bias 15 -> 127
  const uint32_t special = magnitude + (224u << 23);  // inf and NaN keep a full exponent
  // Subnormal: put the mantissa under a leading one of weight 2^-14, then take that one away.
  const uint32_t subnormal = as_bits(as_float(magnitude + (113u << 23)) - as_float(113u << 23));
  const uint32_t finite = magnitude < (1u << 23) ? subnormal : normal;
  return as_float(sign | (magnitude >= (31u << 23) ? special : finite));
}

REST_FAST_INLINE void round_to(float x, float& out) {
  out = x;
}

REST_FAST_INLINE void round_to(float x, BFloat16& out) {
  const uint32_t u = as_bits(x);
  const uint32_t nearest_even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : nearest_even);
}

REST_FAST_INLINE void round_to(float x, Float16& out) {
  const uint32_t u = as_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal: adding 0.5 leaves exactly the bits of a half in the low mantissa, rounded by the
  // adder itself.
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t bounded = magnitude >= (143u << 23) ? 0x7c00u : finite;
  out.bits = static_cast<uint16_t>(sign | (x != x ? 0x7e00u : bounded));
}

// Sum of squares in an order fixed by the source, so that no fast-math is needed to vectorise it
// and every build adds in the same order.
template <class T>
REST_FAST_INLINE float sum_of_squares(const T* __restrict x, int64_t width) {
  constexpr int kPartials = 32;
  float partial[kPartials] = {};
  int64_t i = 0;
  for (; i + kPartials <= width; i += kPartials) {
    for (int j = 0; j < kPartials; ++j) {
      const float v = to_float(x[i + j]);
      partial[j] += v * v;
    }
  }
  for (int j = 0; i < width; ++i, ++j) {
    const float v = to_float(x[i]);
    partial[j] += v * v;
  }
  for (int half = kPartials / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) partial[j] += partial[j + half];
  }
  return partial[0];
}

// Calls run(T{}) with the number type of the dtype. In a function of several versions `run` is
// marked REST_FAST_INLINED, as what it calls is.
template <class Run>
REST_FAST_INLINE void by_dtype(DType dtype, Run run) {
  switch (dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kBFloat16: return run(BFloat16{});
    case DType::kFloat16: return run(Float16{});
  }
}

// Threads for a pass over this many elements.
inline int thread_count(int64_t elements) {
#ifdef _OPENMP
  // Waking a second thread costs a few microseconds; a thread does this many elements in ten.
  constexpr int64_t kElementsPerThread = 32768;
  if (omp_in_parallel()) return 1;
  return static_cast<int>(
      std::clamp<int64_t>(elements / kElementsPerThread, 1, omp_get_max_threads()));
#else
  (void)elements;
  return 1;
#endif
}

// Calls run(begin, end) for equal parts of the items, on as many threads as the elements are worth.
template <class Run>
inline void in_parallel(int64_t items, int64_t elements, Run run) {
  const int threads = thread_count(elements);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    run(items * thread / threads, items * (thread + 1) / threads);
  }
}

}  // namespace rest_fast
