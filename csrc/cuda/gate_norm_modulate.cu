// Gated residual, norm and modulation, in one pass over the residual stream.
//
//   x <- x + gate branch;  out = x / sqrt(mean(x^2) + eps) (1 + scale) + shift
//
// or the same of x - mean(x), with 1 + scale or (affine) scale itself.
//
// Layout: ops/gate_norm_modulate.h. One block per (token, lane). A thread keeps its kIters vectors
// of kVec channels of the sum in registers, so that x is read once and the norm sees the sum
// unrounded: 4 W elements of traffic a token (and the three vectors of its frame, which its
// neighbours read too), where the eager chain moves about four times that in ten kernels. Limit: W
// <= 8192.
#include "../ops/gate_norm_modulate.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kMaxThreads = 512;
constexpr int64_t kMostChannels = 8192;

// The vector [W] of a token's latent frame, or null.
template <class T>
__device__ __forceinline__ const T* of_frame(const Vectors& v, int64_t frames, int64_t tokens,
                                             int64_t lane, int64_t token) {
  if (v.data == nullptr) return nullptr;
  const int64_t frame = token / (tokens / frames);
  return static_cast<const T*>(v.data) + lane * v.lane_stride + frame * v.frame_stride;
}

// x as a number of type T holds it, where eager PyTorch rounds.
template <class T>
__device__ __forceinline__ float rounded_if(bool eager, float x) {
  return eager ? to_float(round_to<T>(x)) : x;
}

// The sum of a vector of x and the gated branch, which also goes to x.
template <class T, int kVec>
__device__ __forceinline__ void add_branch(float (&sum)[kVec], const T* branch, const T* gate, T* x,
                                           int vector, bool eager) {
  const auto added = load<T, kVec>(branch, vector);
  Vector<T, kVec> factor, total;
  if (gate != nullptr) factor = load<T, kVec>(gate, vector);
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    const float b = to_float(added.at[e]);
    sum[e] += gate == nullptr ? b : rounded_if<T>(eager, b * to_float(factor.at[e]));
    total.at[e] = round_to<T>(sum[e]);
    if (eager) sum[e] = to_float(total.at[e]);
  }
  store<T, kVec>(x, vector, total);
}

template <class T, int kVec>
__device__ __forceinline__ void modulate(const float (&x)[kVec], float mean, float root, float one,
                                         const T* scale, const T* shift, T* out, int vector,
                                         bool eager) {
  const auto grow = load<T, kVec>(scale, vector), move = load<T, kVec>(shift, vector);
  Vector<T, kVec> result;
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    const float times = rounded_if<T>(eager, one + to_float(grow.at[e]));
    result.at[e] = round_to<T>((x[e] - mean) * root * times + to_float(move.at[e]));
  }
  store<T, kVec>(out, vector, result);
}

template <class T, int kVec, int kIters>
__global__ void __launch_bounds__(kMaxThreads, 1)
    gate_norm_modulate_kernel(const GateNormModulateParams p) {
  const int64_t token = blockIdx.x, lane = blockIdx.y;
  const int vectors = static_cast<int>(p.width) / kVec;
  const bool eager = p.rounding == Rounding::kEager, centred = p.norm != Norm::kRms;
  const int64_t row = (lane * p.tokens + token) * p.width;
  T* x = static_cast<T*>(p.x) + row;
  const T* branch = static_cast<const T*>(p.branch);
  const T* gate = of_frame<T>(p.gate, p.gate_frames, p.tokens, lane, token);

  float sum[kIters][kVec];
  float total[1] = {0.0f};  // of the numbers where their mean is taken away, else of their squares
#pragma unroll
  for (int iter = 0; iter < kIters; ++iter) {
    const int vector = static_cast<int>(threadIdx.x + iter * blockDim.x);
    if (vector >= vectors) break;
    const auto before = load<T, kVec>(x, vector);
#pragma unroll
    for (int e = 0; e < kVec; ++e) sum[iter][e] = to_float(before.at[e]);
    if (branch != nullptr) add_branch<T, kVec>(sum[iter], branch + row, gate, x, vector, eager);
#pragma unroll
    for (int e = 0; e < kVec; ++e) total[0] += sum[iter][e] * (centred ? 1.0f : sum[iter][e]);
  }
  if (p.out == nullptr) return;  // the whole block: no thread is left behind at a barrier

  block_sum(total);
  float mean = 0.0f;
  if (centred) {
    mean = total[0] / static_cast<float>(p.width);
    total[0] = 0.0f;
#pragma unroll
    for (int iter = 0; iter < kIters; ++iter) {
      if (static_cast<int>(threadIdx.x + iter * blockDim.x) >= vectors) break;
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        total[0] += (sum[iter][e] - mean) * (sum[iter][e] - mean);
      }
    }
    __syncthreads();  // all have read the first total
    block_sum(total);
  }
  const float root = rsqrtf(total[0] / static_cast<float>(p.width) + p.eps);
  const float one = p.norm == Norm::kAffine ? 0.0f : 1.0f;
  const T* scale = of_frame<T>(p.scale, p.norm_frames, p.tokens, lane, token);
  const T* shift = of_frame<T>(p.shift, p.norm_frames, p.tokens, lane, token);
  T* out = static_cast<T*>(p.out) + row;
#pragma unroll
  for (int iter = 0; iter < kIters; ++iter) {
    const int vector = static_cast<int>(threadIdx.x + iter * blockDim.x);
    if (vector >= vectors) break;
    modulate<T, kVec>(sum[iter], mean, root, one, scale, shift, out, vector, eager);
  }
}

bool in_vectors(const GateNormModulateParams& p, int64_t vec) {
  for (const Vectors& v : {p.gate, p.scale, p.shift}) {
    if (v.lane_stride % vec != 0 || v.frame_stride % vec != 0) return false;
  }
  return p.width % vec == 0 &&
         aligned({p.x, p.branch, p.gate.data, p.scale.data, p.shift.data, p.out}, 16);
}

template <class T, int kVec, int kIters>
int launch_for(const GateNormModulateParams& p, void* stream) {
  const int64_t vectors = p.width / kVec;
  const dim3 grid(static_cast<unsigned>(p.tokens), static_cast<unsigned>(p.batch), 1);
  const int threads = whole_warps((vectors + kIters - 1) / kIters, kMaxThreads);
  return launch(gate_norm_modulate_kernel<T, kVec, kIters>, p, grid, threads, stream);
}

template <class T>
int dispatch(const GateNormModulateParams& p, void* stream) {
  constexpr int kWide = 16 / sizeof(T);
  constexpr int kNarrowIters = kMostChannels / kMaxThreads, kWideIters = kNarrowIters / kWide;
  if (!in_vectors(p, kWide)) return launch_for<T, 1, kNarrowIters>(p, stream);
  if (p.width <= kWide * kMaxThreads) return launch_for<T, kWide, 1>(p, stream);
  return launch_for<T, kWide, kWideIters>(p, stream);
}

}  // namespace

int gate_norm_modulate_cuda(const GateNormModulateParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  const bool nothing = p.branch == nullptr && p.out == nullptr;
  if (nothing || p.batch == 0 || p.tokens == 0 || p.width == 0) return kOk;
  if (p.width > kMostChannels || p.tokens > INT32_MAX || p.batch > kMaxGridY) return kBadShape;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
