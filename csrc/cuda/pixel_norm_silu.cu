// RMS norm over the channels of each pixel, scale and shift, SiLU.
//
//   y = x / sqrt(mean_c(x^2) + eps) (1 + scale) + shift;  out = y / (1 + exp(-y))
//
// Layout: ops/pixel_norm_silu.h. Two ways through memory, both of two reads, the second from the
// cache, and one write. Where channels follow one another: the lanes of a warp that a pixel's
// vectors fill, several pixels to a warp. Else: a warp takes neighbouring pixels of a channel, and
// the warps of a block share the channels; their sums meet in shared memory.
#include "../ops/pixel_norm_silu.h"
#include "launch.h"
#include "volume.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__device__ __forceinline__ float silu(float y) {
  return y / (1.0f + expf(-y));
}

template <class T>
__device__ __forceinline__ float modulated(const T* scale, const T* shift, int64_t c, float x) {
  const float times = scale == nullptr ? 1.0f : 1.0f + to_float(scale[c]);
  return x * times + (shift == nullptr ? 0.0f : to_float(shift[c]));
}

__device__ __forceinline__ float root_of(float squares, const PixelNormSiluParams& p) {
  return rsqrtf(squares / static_cast<float>(p.channels) + p.eps);
}

// Lanes of a warp for one pixel: a power of two, all of them where there are vectors enough.
__device__ __host__ __forceinline__ int pixel_lanes(int64_t vectors) {
  int lanes = 1;
  while (lanes < vectors && lanes < kWarp) lanes *= 2;
  return lanes;
}

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) channels_last_kernel(const PixelNormSiluParams p) {
  const int64_t vectors = p.channels / kVec, pixels = p.batch * p.frames * p.height * p.width;
  const int lanes = pixel_lanes(vectors), lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t index = int64_t{blockIdx.x} * (kThreads / lanes) + threadIdx.x / lanes;
  const bool real = index < pixels;  // threads of no pixel stay, for the shuffles
  const Pixel at = pixel_at(real ? index : 0, p.frames, p.height, p.width);
  const T* x = static_cast<const T*>(p.x) + offset(p.x_strides, at);
  T* out = static_cast<T*>(p.out) + offset(p.out_strides, at);
  const T* scale = static_cast<const T*>(p.scale);
  const T* shift = static_cast<const T*>(p.shift);

  float squares = 0.0f;
  for (int64_t vector = lane; real && vector < vectors; vector += lanes) {
    squares += sum_of_squares(load<T, kVec>(x, vector));
  }
  for (int step = lanes / 2; step > 0; step /= 2) {
    squares += __shfl_xor_sync(kAllLanes, squares, step);
  }
  const float root = root_of(squares, p);
  for (int64_t vector = lane; real && vector < vectors; vector += lanes) {
    auto v = load<T, kVec>(x, vector);
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const float y = modulated(scale, shift, vector * kVec + e, to_float(v.at[e]) * root);
      v.at[e] = round_to<T>(silu(y));
    }
    store<T, kVec>(out, vector, v);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) planes_kernel(const PixelNormSiluParams p) {
  __shared__ float of_warp[kWarps][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t index = int64_t{blockIdx.x} * kWarp + lane;
  const bool real = index < p.batch * p.frames * p.height * p.width;
  const Pixel at = pixel_at(real ? index : 0, p.frames, p.height, p.width);
  const T* x = static_cast<const T*>(p.x) + offset(p.x_strides, at);
  T* out = static_cast<T*>(p.out) + offset(p.out_strides, at);
  const T* scale = static_cast<const T*>(p.scale);
  const T* shift = static_cast<const T*>(p.shift);

  float squares = 0.0f;
  for (int64_t c = warp; real && c < p.channels; c += kWarps) {
    const float v = to_float(x[c * p.x_strides.channel]);
    squares += v * v;
  }
  of_warp[warp][lane] = squares;
  __syncthreads();
  squares = 0.0f;
  for (int other = 0; other < kWarps; ++other) squares += of_warp[other][lane];
  const float root = root_of(squares, p);
  for (int64_t c = warp; real && c < p.channels; c += kWarps) {
    const float y = modulated(scale, shift, c, to_float(x[c * p.x_strides.channel]) * root);
    out[c * p.out_strides.channel] = round_to<T>(silu(y));
  }
}

template <class T>
int dispatch(const PixelNormSiluParams& p, void* stream) {
  constexpr int kWide = 16 / sizeof(T);
  const VolumeStrides &s = p.x_strides, &o = p.out_strides;
  const int64_t pixels = p.batch * p.frames * p.height * p.width;
  if (p.channels == 1 || s.channel != 1 || o.channel != 1) {
    // A pixel has a thread of each warp.
    return launch_each(planes_kernel<T>, p, pixels * kWarps, 1, kThreads, stream);
  }
  const bool in_vectors = p.channels % kWide == 0 && aligned({p.x, p.out}, 16) &&
                          steps_by(kWide, {s.batch, s.frame, s.row, s.column}) &&
                          steps_by(kWide, {o.batch, o.frame, o.row, o.column});
  const auto kernel = in_vectors ? channels_last_kernel<T, kWide> : channels_last_kernel<T, 1>;
  const int lanes = pixel_lanes(p.channels / (in_vectors ? kWide : 1));
  return launch_each(kernel, p, pixels * lanes, 1, kThreads, stream);
}

}  // namespace

int pixel_norm_silu_cuda(const PixelNormSiluParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch * p.frames * p.height * p.width * p.channels == 0) return kOk;
  if (p.x == nullptr || p.out == nullptr) return kNullAddress;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
