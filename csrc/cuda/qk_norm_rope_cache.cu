// Q and K: RMS norm over the full width, RoPE, K and V into the cache, in one pass over qkv.
//
//   q' = rope(q / sqrt(mean(q^2) + eps) * q_weight) -> q_out;  k' likewise, v as it is -> cache
//
// Layout: ops/qk_norm_rope_cache.h. One block per (lane, token). A thread keeps kIters vectors of
// kVec channels of q and of k in registers, so qkv is read once: 6 W elements of traffic a token,
// where the eager chain moves several times that and launches a dozen kernels. A lane with an index
// out of range writes nothing at all, its queries included. Limits: W <= 4 * 512 * kVec; lanes must
// not share slots, save scratch rows that nobody reads. tests/kit/cuda_on_cpu.h runs this very file
// without a GPU.
#include <cstdint>

#ifdef REST_FAST_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "../ops/qk_norm_rope_cache.h"

namespace rest_fast {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;

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
  static_assert(kVec % 2 == 0, "a vector holds whole channel pairs");
  static_assert(sizeof(T) * kVec <= 16, "a load moves at most 16 bytes");
  T at[kVec];
};

template <class T, int kVec>
__device__ __forceinline__ Vector<T, kVec> load(const T* from, int64_t vector) {
  return reinterpret_cast<const Vector<T, kVec>*>(from)[vector];
}

template <class T, int kVec>
__device__ __forceinline__ void store(T* to, int64_t vector, const Vector<T, kVec>& value) {
  reinterpret_cast<Vector<T, kVec>*>(to)[vector] = value;
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

// Sums over the block, the same in every thread. blockDim.x is a multiple of 32.
__device__ __forceinline__ float2 block_sum(float2 sum) {
  __shared__ float2 of_warp[kMaxThreads / kWarp];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    sum.x += __shfl_xor_sync(0xffffffffu, sum.x, offset);
    sum.y += __shfl_xor_sync(0xffffffffu, sum.y, offset);
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = sum;
  __syncthreads();
  float2 total = make_float2(0.0f, 0.0f);
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int warp = 0; warp < warps; ++warp) {
    total.x += of_warp[warp].x;
    total.y += of_warp[warp].y;
  }
  return total;
}

template <class T, int kVec>
__device__ __forceinline__ Vector<T, kVec> norm_rotate(const Vector<T, kVec>& x,
                                                       const Vector<T, kVec>& weight, float scale,
                                                       const float2 (&angle)[kVec / 2]) {
  Vector<T, kVec> out;
#pragma unroll
  for (int pair = 0; pair < kVec / 2; ++pair) {
    const float a = to_float(x.at[2 * pair]) * scale * to_float(weight.at[2 * pair]);
    const float b = to_float(x.at[2 * pair + 1]) * scale * to_float(weight.at[2 * pair + 1]);
    const float2 turn = angle[pair];  // (cos, sin)
    out.at[2 * pair] = round_to<T>(a * turn.x - b * turn.y);
    out.at[2 * pair + 1] = round_to<T>(a * turn.y + b * turn.x);
  }
  return out;
}

// Whether all that this lane reads by an index and writes lies inside the cache and the table.
__device__ __forceinline__ bool inside(const QkNormRopeCacheParams& p, int lane) {
  const int row = p.row_index[lane], bank = p.bank_index[lane];
  const int slot = p.write_slot[lane], first = p.base[lane];
  const int64_t most = (p.positions - first) * (p.grid_h * p.grid_w);  // tokens from `first` on
  // No short circuits: the four loads are in flight together.
  return (row >= 0) & (row < p.rows) & (bank >= 0) & (bank < p.banks) & (slot >= 0) &
         (slot <= p.slots - p.tokens) & (first >= 0) & (p.tokens <= most);
}

template <class T, int kVec, int kIters>
__global__ void __launch_bounds__(kMaxThreads)
    qk_norm_rope_cache_kernel(const QkNormRopeCacheParams p) {
  const int token = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(blockIdx.y);
  if (!inside(p, lane)) return;  // the whole block: no thread is left behind at a barrier
  const int width = static_cast<int>(p.width);
  const int vectors = width / kVec;
  const int frequencies = width / 6;
  const int pad = width / 2 - 3 * frequencies;

  const int64_t row = lane * p.tokens + token;
  const T* qkv = static_cast<const T*>(p.qkv) + row * 3 * width;
  const int64_t slot = p.row_index[lane] * p.row_stride + p.bank_index[lane] * p.bank_stride +
                       static_cast<int64_t>(p.write_slot[lane] + token) * width;
  T* k_slot = static_cast<T*>(p.k_cache) + slot;
  T* v_slot = static_cast<T*>(p.v_cache) + slot;
  T* q_row = static_cast<T*>(p.q_out) + row * width;

  Vector<T, kVec> q[kIters], k[kIters];
  float2 squares = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int iter = 0; iter < kIters; ++iter) {
    const int vector = static_cast<int>(threadIdx.x + iter * blockDim.x);
    if (vector >= vectors) break;
    q[iter] = load<T, kVec>(qkv, vector);
    k[iter] = load<T, kVec>(qkv + width, vector);
    store<T, kVec>(v_slot, vector, load<T, kVec>(qkv + 2 * width, vector));
    squares.x += sum_of_squares<T, kVec>(q[iter]);
    squares.y += sum_of_squares<T, kVec>(k[iter]);
  }
  squares = block_sum(squares);
  const float q_scale = rsqrtf(squares.x / static_cast<float>(width) + p.eps);
  const float k_scale = rsqrtf(squares.y / static_cast<float>(width) + p.eps);

  // The token's row in each of the three tables.
  const int grid_h = static_cast<int>(p.grid_h), grid_w = static_cast<int>(p.grid_w);
  const int t = p.base[lane] + token / (grid_h * grid_w);
  const int y = token / grid_w % grid_h;
  const int x = token % grid_w;
  const float2* rope_t = reinterpret_cast<const float2*>(p.rope_t) + int64_t{t} * frequencies;
  const float2* rope_y = reinterpret_cast<const float2*>(p.rope_y) + int64_t{y} * frequencies;
  const float2* rope_x = reinterpret_cast<const float2*>(p.rope_x) + int64_t{x} * frequencies;

#pragma unroll
  for (int iter = 0; iter < kIters; ++iter) {
    const int vector = static_cast<int>(threadIdx.x + iter * blockDim.x);
    if (vector >= vectors) break;
    float2 angle[kVec / 2];
#pragma unroll
    for (int pair = 0; pair < kVec / 2; ++pair) {
      const int j = vector * (kVec / 2) + pair - pad;
      const int m = j / 3, axis = j - 3 * m;
      const float2* table = axis == 0 ? rope_t : axis == 1 ? rope_y : rope_x;
      angle[pair] = j < 0 ? make_float2(1.0f, 0.0f) : table[m];
    }
    const auto q_weight = load<T, kVec>(static_cast<const T*>(p.q_weight), vector);
    const auto k_weight = load<T, kVec>(static_cast<const T*>(p.k_weight), vector);
    store<T, kVec>(q_row, vector, norm_rotate<T, kVec>(q[iter], q_weight, q_scale, angle));
    store<T, kVec>(k_slot, vector, norm_rotate<T, kVec>(k[iter], k_weight, k_scale, angle));
  }
}

bool aligned(const QkNormRopeCacheParams& p, int64_t vec, uintptr_t bytes) {
  const void* const pointers[] = {p.qkv, p.q_weight, p.k_weight, p.k_cache, p.v_cache, p.q_out};
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) return false;
  }
  return p.width % vec == 0 && p.row_stride % vec == 0 && p.bank_stride % vec == 0;
}

template <class T, int kVec, int kIters>
int launch(const QkNormRopeCacheParams& p, cudaStream_t stream) {
  const int64_t vectors = p.width / kVec;
  if (vectors > int64_t{kIters} * kMaxThreads || p.batch > 65535) return kBadShape;
  const int64_t per_iter = (vectors + kIters - 1) / kIters;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(p.tokens), static_cast<unsigned>(p.batch), 1);
  config.blockDim = dim3(static_cast<unsigned>((per_iter + kWarp - 1) / kWarp * kWarp), 1, 1);
  config.stream = stream;
  const cudaError_t error =
      cudaLaunchKernelEx(&config, qk_norm_rope_cache_kernel<T, kVec, kIters>, p);
  return error == cudaSuccess ? int{kOk} : kCudaErrorBase + static_cast<int>(error);
}

template <class T>
int dispatch(const QkNormRopeCacheParams& p, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  if (!aligned(p, kWide, 16)) {
    // A pair at a time. The strides are whole pairs too: the width is even and they count slots.
    if (!aligned(p, 2, 2 * sizeof(T))) return kMisaligned;
    return launch<T, 2, 4>(p, stream);
  }
  if (p.width <= kWide * kMaxThreads) return launch<T, kWide, 1>(p, stream);
  return launch<T, kWide, 4>(p, stream);
}

// Raw pointers carry no device: make theirs current for the launch, and put the old one back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && previous_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

int qk_norm_rope_cache_cuda(const QkNormRopeCacheParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (p.tokens > INT32_MAX) return kBadShape;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return kCudaErrorBase + static_cast<int>(guard.error());
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kFloat32: return dispatch<float>(p, on);
    case DType::kBFloat16: return dispatch<__nv_bfloat16>(p, on);
    case DType::kFloat16: return dispatch<__half>(p, on);
  }
  return kBadDType;
}

const char* cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace rest_fast
