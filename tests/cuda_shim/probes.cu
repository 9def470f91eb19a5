// Small kernels that show what the shim does: test_shim.py calls them by ctypes.
#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace rest_fast {
namespace {

struct Probe {
  const void* in;
  void* out;
  const void* more;
  int32_t fault;  // which mistake the kernel makes; 0: none
};

enum Fault { kNone, kNoWait, kNoBarrier, kReuseWithoutBarrier, kNobodyWaits };

// Two tiles through one buffer: out[tile][i] = the number that thread 63 - i has copied.
__global__ void copies(const Probe p) {
  REST_FAST_DYNAMIC_SHARED(memory);
  float* buffer = reinterpret_cast<float*>(memory);
  const int i = static_cast<int>(threadIdx.x), other = 63 - i;
  for (int tile = 0; tile < 2; ++tile) {
    copy_async(buffer + 4 * i, static_cast<const float*>(p.in) + 4 * (64 * tile + i), 16);
    commit_copies();
    if (p.fault == kNobodyWaits) return;
    if (p.fault != kNoWait) wait_for_copies<0>();
    if (p.fault != kNoBarrier) __syncthreads();
    static_cast<float*>(p.out)[64 * tile + i] = buffer[4 * other];
    if (p.fault != kReuseWithoutBarrier) __syncthreads();
  }
  wait_for_copies<0>();
}

// As many groups are left pending as `fault` says; the last of 16 bytes are not read.
__global__ void groups(const Probe p) {
  __shared__ __align__(16) float buffer[3][4];
  const float* in = static_cast<const float*>(p.in);
  for (int group = 0; group < 3; ++group) {
    copy_async(buffer[group], in + 4 * group, group == 1 ? 12 : 16);
    commit_copies();
  }
  if (p.fault == 0) wait_for_copies<0>();
  if (p.fault == 1) wait_for_copies<1>();
  if (p.fault == 2) wait_for_copies<2>();
  for (int i = 0; i < 12; ++i) static_cast<float*>(p.out)[i] = buffer[i / 4][i % 4];
  wait_for_copies<0>();
}

// out[16, 8] = in[16, 16] more[16, 8], by ldmatrix and mma.
template <class T>
__global__ void product(const Probe p) {
  __shared__ __align__(16) uint16_t a[16][16], b[16][8];
  const int lane = static_cast<int>(threadIdx.x), row = lane % 16;
  for (int i = 0; i < 8; ++i) {
    a[row][8 * (lane / 16) + i] =
        static_cast<const uint16_t*>(p.in)[16 * row + 8 * (lane / 16) + i];
    b[row][i] = static_cast<const uint16_t*>(p.more)[8 * row + i];
  }
  __syncthreads();
  uint32_t left[4], right[4];
  ldmatrix(left, &a[row][8 * (lane / 16)]);
  ldmatrix_transposed(right, &b[row][0]);  // matrices 2 and 3 are 0 and 1 again
  float d[4] = {};
  mma<T>(d, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) {
    static_cast<float*>(p.out)[8 * (lane / 4 + 8 * (i / 2)) + 2 * (lane % 4) + i % 2] = d[i];
  }
}

// One row of 64 bytes apart: each of the 8 rows of a matrix hits the banks of another.
__global__ void conflicts(const Probe p) {
  __shared__ __align__(128) uint16_t rows[8][64];
  uint32_t out[4];
  ldmatrix(out, rows[threadIdx.x % 8] + (p.fault ? 0 : 8 * (threadIdx.x % 8)));
}

__global__ void sums(const Probe p) {
  float sum[2] = {static_cast<const float*>(p.in)[threadIdx.x], 1.0f};
  block_sum(sum);
  static_cast<float*>(p.out)[2 * threadIdx.x] = sum[0];
  static_cast<float*>(p.out)[2 * threadIdx.x + 1] = sum[1];
}

// 1: half of the warps wait; 2: a shuffle that one lane leaves out; 3: one lane is elsewhere;
// 4: ldmatrix off by a number; 5: one number behind dynamic shared memory; 6: one before `in`.
__global__ void mistakes(const Probe p) {
  __shared__ __align__(16) uint16_t rows[9][8];
  uint32_t out[4];
  REST_FAST_DYNAMIC_SHARED(memory);
  if (p.fault == 5) static_cast<uint8_t*>(p.out)[0] = memory[512];
  if (p.fault == 6) static_cast<float*>(p.out)[0] = static_cast<const float*>(p.in)[-1];
  if (p.fault == 1 && threadIdx.x < 32) __syncthreads();
  if (p.fault == 2 && threadIdx.x != 5) __shfl_xor_sync(kAllLanes, 1, 1);
  if (p.fault == 3) threadIdx.x == 7 ? __syncwarp() : (void)__ballot_sync(kAllLanes, true);
  if (p.fault == 4) ldmatrix(out, rows[threadIdx.x % 8] + 1);
  if (p.fault == 7) out[0] = load<uint16_t, 8>(rows[0] + 4, threadIdx.x % 2).at[0];
  if (p.fault == 8) store<uint16_t, 2>(rows[0] + 1, 0, {});
}

}  // namespace
}  // namespace rest_fast

#define PROBE(name, kernel, threads, shared)                                                \
  extern "C" __attribute__((visibility("default"))) int name(const void* in, void* out,     \
                                                             const void* more, int fault) { \
    const rest_fast::Probe p{in, out, more, fault};                                         \
    return rest_fast::launch(rest_fast::kernel, p, dim3(1, 1, 1), threads, 0, shared);      \
  }

PROBE(copies, copies, 64, 1024)
PROBE(groups, groups, 32, 0)
PROBE(product_bfloat16, product<__nv_bfloat16>, 32, 0)
PROBE(product_float16, product<__half>, 32, 0)
PROBE(conflicts, conflicts, 32, 0)
PROBE(sums, sums, 96, 0)
PROBE(mistakes, mistakes, 64, 512)
PROBE(too_much_shared, sums, 96, size_t{200} * 1024)
PROBE(too_many_threads, sums, 1056, 0)
