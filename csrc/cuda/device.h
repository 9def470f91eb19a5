// What device code of every op starts from: number types, vectors of one load, sums over a block.
//
// With REST_FAST_CUDA_ON_CPU the same sources are C++ for the CPU (tests/cuda_shim).
#pragma once

#include <cstdint>

#ifdef REST_FAST_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#define REST_FAST_DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_cpu::dynamic_shared()
#define REST_FAST_EXPECT_ALIGNED(at) cuda_on_cpu::expect_aligned(at)
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// Declares `name`, the block's dynamic shared memory.
#define REST_FAST_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define REST_FAST_EXPECT_ALIGNED(at)
#endif

namespace rest_fast {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 32;  // of a block

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}

template <class T>
__device__ __forceinline__ T round_to(float x);
template <>
__device__ __forceinline__ float round_to<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 round_to<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half round_to<__half>(float x) {
  return __float2half_rn(x);
}

// kVec elements that move in one instruction.
template <class T, int kVec>
struct alignas(sizeof(T) * kVec) Vector {
  static_assert(sizeof(T) * kVec <= 16, "a load moves at most 16 bytes");
  T at[kVec];
};

// A GPU ends the program where the address is no multiple of a vector's size; so does the shim.
template <class T, int kVec>
__device__ __forceinline__ Vector<T, kVec> load(const T* from, int64_t vector) {
  const auto* at = reinterpret_cast<const Vector<T, kVec>*>(from) + vector;
  REST_FAST_EXPECT_ALIGNED(at);
  return *at;
}

template <class T, int kVec>
__device__ __forceinline__ void store(T* to, int64_t vector, const Vector<T, kVec>& value) {
  auto* at = reinterpret_cast<Vector<T, kVec>*>(to) + vector;
  REST_FAST_EXPECT_ALIGNED(at);
  *at = value;
}

template <class T, int kVec>
__device__ __forceinline__ float sum_of_squares(const Vector<T, kVec>& x) {
  float sum = 0.0f;
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    const float v = to_float(x.at[e]);
    sum += v * v;
  }
  return sum;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

// Each number becomes its sum over the block, the same bits in every thread. The block is of whole
// warps, all of whose threads come here; who calls it twice needs a barrier between.
template <int kCount>
__device__ __forceinline__ void block_sum(float (&sum)[kCount]) {
  __shared__ float of_warp[kMaxWarps][kCount];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sum[i] = warp_sum(sum[i]);
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp][i] = sum[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sum[i] = 0.0f;
    for (int warp = 0; warp < warps; ++warp) sum[i] += of_warp[warp][i];
  }
}

}  // namespace rest_fast
