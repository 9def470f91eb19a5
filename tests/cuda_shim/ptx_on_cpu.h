// csrc/cuda/ptx.h on the CPU: the same functions, without the assembly.
#pragma once

#include <cmath>

#include "cuda_on_cpu.h"

namespace rest_fast {

inline float widen_bfloat16(uint16_t bits) {
  return __bfloat162float({bits});
}
inline float widen_half(uint16_t bits) {
  return __half2float({bits});
}

inline void ldmatrix(uint32_t (&out)[4], const void* row) {
  cuda_on_cpu::Matrices part{row, out};
  cuda_on_cpu::together(~0u, part, cuda_on_cpu::load_matrices<false>);
}
inline void ldmatrix_transposed(uint32_t (&out)[4], const void* row) {
  cuda_on_cpu::Matrices part{row, out};
  cuda_on_cpu::together(~0u, part, cuda_on_cpu::load_matrices<true>);
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr bool kBFloat16 = sizeof(T) == 2 && std::is_same<T, __nv_bfloat16>::value;
  const uint32_t b[2] = {b0, b1};
  cuda_on_cpu::Product part{d, a, b};
  cuda_on_cpu::together(~0u, part,
                        cuda_on_cpu::multiply < kBFloat16 ? widen_bfloat16 : widen_half >);
}

inline void copy_async(void* shared, const void* global, int bytes) {
  cuda_on_cpu::issue_copy(shared, global, bytes);
}
inline void commit_copies() {
  cuda_on_cpu::commit_copies();
}
template <int kPending>
void wait_for_copies() {
  cuda_on_cpu::wait_for_copies(kPending);
}
inline float exp2_approximate(float x) {
  return std::exp2(x);
}

}  // namespace rest_fast
