// Q and K: RMS norm over the full width, RoPE, K and V into the cache, in one pass over qkv.
//
//   q' = rope(q / sqrt(mean(q^2) + eps) * q_weight) -> q_out;  k' likewise, v as it is -> cache
//
// Layout: ops/qk_norm_rope_cache.h. One block per (lane, token). A thread keeps kIters vectors of
// kVec channels of q and of k in registers, so qkv is read once: 6 W elements of traffic a token,
// where the eager chain moves several times that and launches a dozen kernels. A lane with an index
// out of range writes nothing at all, its queries included. Limits: W <= 4 * 512 * kVec; lanes must
// not share slots, save scratch rows that nobody reads.
#include "../ops/qk_norm_rope_cache.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kMaxThreads = 512;

template <class T, int kVec>
__device__ __forceinline__ Vector<T, kVec> norm_rotate(const Vector<T, kVec>& x,
                                                       const Vector<T, kVec>& weight, float scale,
                                                       const float2 (&angle)[kVec / 2]) {
  static_assert(kVec % 2 == 0, "a vector holds whole channel pairs");
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
__global__ void __launch_bounds__(kMaxThreads, 1)
    qk_norm_rope_cache_kernel(const QkNormRopeCacheParams p) {
  const int token = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(blockIdx.y);
  if (!inside(p, lane)) return;  // the whole block: no thread is left behind at a barrier
  const int width = static_cast<int>(p.width);
  const int vectors = width / kVec;
  const int sixth = width / 6, pad = width / 2 - 3 * sixth;
  // Pairs that each axis turns: of the full width, or of a head.
  const int head = static_cast<int>(p.head_pairs);
  const int of_t = head == 0 ? sixth : static_cast<int>(p.time_pairs);
  const int of_y = head == 0 ? sixth : static_cast<int>(p.row_pairs);
  const int of_x = head == 0 ? sixth : head - of_t - of_y;

  const int64_t row = lane * p.tokens + token;
  const T* qkv = static_cast<const T*>(p.qkv) + row * 3 * width;
  const int64_t slot = p.row_index[lane] * p.row_stride + p.bank_index[lane] * p.bank_stride +
                       static_cast<int64_t>(p.write_slot[lane] + token) * width;
  T* k_slot = static_cast<T*>(p.k_cache) + slot;
  T* v_slot = static_cast<T*>(p.v_cache) + slot;
  T* q_row = static_cast<T*>(p.q_out) + row * width;

  Vector<T, kVec> q[kIters], k[kIters];
  float squares[2] = {};  // of q and of k
#pragma unroll
  for (int iter = 0; iter < kIters; ++iter) {
    const int vector = static_cast<int>(threadIdx.x + iter * blockDim.x);
    if (vector >= vectors) break;
    q[iter] = load<T, kVec>(qkv, vector);
    k[iter] = load<T, kVec>(qkv + width, vector);
    store<T, kVec>(v_slot, vector, load<T, kVec>(qkv + 2 * width, vector));
    squares[0] += sum_of_squares<T, kVec>(q[iter]);
    squares[1] += sum_of_squares<T, kVec>(k[iter]);
  }
  block_sum(squares);
  const float q_scale = rsqrtf(squares[0] / static_cast<float>(width) + p.eps);
  const float k_scale = rsqrtf(squares[1] / static_cast<float>(width) + p.eps);

  // The token's row in each of the three tables.
  const int grid_h = static_cast<int>(p.grid_h), grid_w = static_cast<int>(p.grid_w);
  const int t = p.base[lane] + token / (grid_h * grid_w);
  const int y = token / grid_w % grid_h;
  const int x = token % grid_w;
  const float2* rope_t = reinterpret_cast<const float2*>(p.rope_t) + int64_t{t} * of_t;
  const float2* rope_y = reinterpret_cast<const float2*>(p.rope_y) + int64_t{y} * of_y;
  const float2* rope_x = reinterpret_cast<const float2*>(p.rope_x) + int64_t{x} * of_x;

#pragma unroll
  for (int iter = 0; iter < kIters; ++iter) {
    const int vector = static_cast<int>(threadIdx.x + iter * blockDim.x);
    if (vector >= vectors) break;
    float2 angle[kVec / 2];
#pragma unroll
    for (int pair = 0; pair < kVec / 2; ++pair) {
      const int at = vector * (kVec / 2) + pair;
      if (head == 0) {
        const int j = at - pad, m = j / 3, axis = j - 3 * m;
        const float2* table = axis == 0 ? rope_t : axis == 1 ? rope_y : rope_x;
        angle[pair] = j < 0 ? make_float2(1.0f, 0.0f) : table[m];
      } else {
        const int m = at % head;
        angle[pair] = m < of_t          ? rope_t[m]
                      : m < of_t + of_y ? rope_y[m - of_t]
                                        : rope_x[m - of_t - of_y];
      }
    }
    const auto q_weight = load<T, kVec>(static_cast<const T*>(p.q_weight), vector);
    const auto k_weight = load<T, kVec>(static_cast<const T*>(p.k_weight), vector);
    store<T, kVec>(q_row, vector, norm_rotate<T, kVec>(q[iter], q_weight, q_scale, angle));
    store<T, kVec>(k_slot, vector, norm_rotate<T, kVec>(k[iter], k_weight, k_scale, angle));
  }
}

bool aligned_to(const QkNormRopeCacheParams& p, int64_t vec, uintptr_t bytes) {
  const bool strides = p.width % vec == 0 && p.row_stride % vec == 0 && p.bank_stride % vec == 0;
  return strides && aligned({p.qkv, p.q_weight, p.k_weight, p.k_cache, p.v_cache, p.q_out}, bytes);
}

template <class T, int kVec, int kIters>
int launch_for(const QkNormRopeCacheParams& p, void* stream) {
  const int64_t vectors = p.width / kVec;
  if (vectors > int64_t{kIters} * kMaxThreads || p.batch > kMaxGridY) return kBadShape;
  const dim3 grid(static_cast<unsigned>(p.tokens), static_cast<unsigned>(p.batch), 1);
  const int threads = whole_warps((vectors + kIters - 1) / kIters, kMaxThreads);
  return launch(qk_norm_rope_cache_kernel<T, kVec, kIters>, p, grid, threads, stream);
}

template <class T>
int dispatch(const QkNormRopeCacheParams& p, void* stream) {
  constexpr int kWide = 16 / sizeof(T);
  if (!aligned_to(p, kWide, 16)) {
    // A pair at a time. The strides are whole pairs too: the width is even and they count slots.
    if (!aligned_to(p, 2, 2 * sizeof(T))) return kMisaligned;
    return launch_for<T, 2, 4>(p, stream);
  }
  if (p.width <= kWide * kMaxThreads) return launch_for<T, kWide, 1>(p, stream);
  return launch_for<T, kWide, 4>(p, stream);
}

}  // namespace

int qk_norm_rope_cache_cuda(const QkNormRopeCacheParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch == 0 || p.tokens == 0) return kOk;
  if (p.tokens > INT32_MAX) return kBadShape;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
