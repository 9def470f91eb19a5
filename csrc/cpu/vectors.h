// Vectors of a width that the source chooses, and the version of an op that fits the machine.
//
// For ops whose register tiles depend on the width. The others leave the width to the compiler:
// REST_FAST_MULTI_ISA in common.h.
#pragma once

#include "common.h"

namespace rest_fast {

template <int kWidth_>
struct Wide {
  static constexpr int kWidth = kWidth_;  // floats of a vector
  typedef float Type __attribute__((vector_size(4 * kWidth_)));
  typedef uint32_t Bits __attribute__((vector_size(4 * kWidth_)));
  // Anywhere in memory. std::memcpy of several vectors at once becomes copies of narrower ones,
  // whose results are slow to load as wide ones.
  typedef float Loose __attribute__((vector_size(4 * kWidth_), aligned(4), may_alias));
};

template <class V>
REST_FAST_INLINE void load(const float* x, typename V::Type& value) {
  value = *reinterpret_cast<const typename V::Loose*>(x);
}

template <class V>
REST_FAST_INLINE void store(const typename V::Type& value, float* x) {
  *reinterpret_cast<typename V::Loose*>(x) = value;
}

// x <- 2^x for x <= 0. NaN passes; below -126.5 the result is 0. V: a Wide.
//
// 2^x = 2^n 2^f with |f| <= 1/2, both exact. The polynomial of 2^f has the least largest relative
// error of its degree with p(0) = 1: 2e-9. Its fp32 Horner steps make that 1.4 units of 2^-24.
// A GCC vector, because a select beside trapping arithmetic keeps plain loops scalar below AVX-512.
template <class V>
REST_FAST_INLINE void exp2_nonpositive(typename V::Type& x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, low bits
  const typename V::Type least = typename V::Type{} - 127.0f;
  x = x < least ? least : x;
  const typename V::Type shifted = x + kShift;
  const typename V::Type f = x - (shifted - kShift);
  typename V::Type p = f * 1.53533620e-4f + 1.33988739e-3f;
  p = p * f + 9.61843692e-3f;
  p = p * f + 5.55033237e-2f;
  p = p * f + 2.40226477e-1f;
  p = p * f + 6.93147182e-1f;
  p = p * f + 1.0f;
  typename V::Bits bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127) << 23;  // of 2^n; n = -127 gives 0
  typename V::Type power;
  std::memcpy(&power, &bits, sizeof(bits));
  x = p * power;
}

// x <- x / (1 + e^-u). NaN passes.
template <class V>
REST_FAST_INLINE void sigmoid_times(const typename V::Type& u, typename V::Type& x) {
  constexpr float kLog2E = 1.44269504f;
  typename V::Type power = u * kLog2E;
  power = power < -power ? power : -power;
  exp2_nonpositive<V>(power);  // e^-|u|
  const typename V::Type above = u < 0.0f ? x * power : x;
  x = above / (1.0f + power);
}

// x <- x / (1 + e^-x). NaN passes.
template <class V>
REST_FAST_INLINE void silu(typename V::Type& x) {
  sigmoid_times<V>(x, x);
}

template <class Params>
using Version = void (*)(const Params&, int64_t begin, int64_t end);

// Body::run<width>(p, begin, end), forced inline, for one instruction set each. Body has to be in
// an anonymous namespace, since otherwise two ops could share a symbol.
template <class Body, class Params>
void run_narrow(const Params& p, int64_t begin, int64_t end) {
  Body::template run<4>(p, begin, end);
}

#ifdef REST_FAST_X86_LEVELS
template <class Body, class Params>
__attribute__((target("arch=x86-64-v3"))) void run_avx2(const Params& p, int64_t begin,
                                                        int64_t end) {
  Body::template run<8>(p, begin, end);
}
template <class Body, class Params>
__attribute__((target("arch=x86-64-v4"))) void run_avx512(const Params& p, int64_t begin,
                                                          int64_t end) {
  Body::template run<16>(p, begin, end);
}
#endif

// The version with vectors of `width` floats (0: the widest on this machine), or null.
template <class Body, class Params>
Version<Params> choose_version(int64_t width) {
#ifdef REST_FAST_X86_LEVELS
  if ((width == 0 || width == 16) && __builtin_cpu_supports("x86-64-v4")) {
    return &run_avx512<Body, Params>;
  }
  if ((width == 0 || width == 8) && __builtin_cpu_supports("x86-64-v3")) {
    return &run_avx2<Body, Params>;
  }
#endif
  return width == 0 || width == 4 ? &run_narrow<Body, Params> : nullptr;
}

// The same for the number type and the vector width of the parameters. Body<T>: as above.
template <template <class> class Body, class Params>
Version<Params> choose_version(const Params& p) {
  return p.dtype == DType::kFloat32    ? choose_version<Body<float>, Params>(p.vector_width)
         : p.dtype == DType::kBFloat16 ? choose_version<Body<BFloat16>, Params>(p.vector_width)
                                       : choose_version<Body<Float16>, Params>(p.vector_width);
}

}  // namespace rest_fast
