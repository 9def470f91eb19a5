// Channels (c, p1, p2, p3), c slowest, into frames, rows and columns; `drop` frames are left out.
//
// Layout: ops/depth_to_space.h. Elements are moved as integers of their size. Where channels follow
// one another on both ends, and a cell has 2, 4 or 8 places, a thread loads kVec channels of all
// places (kVec x kPlaces neighbours), exchanges the two axes in registers and writes a vector to
// each place: 16-byte accesses, no shared memory. Any other layout: a thread moves one element, and
// neighbours follow the axis that lies side by side in the output, so that writes coalesce and the
// sectors that reads share come from the cache.
#include "../ops/depth_to_space.h"
#include "launch.h"
#include "volume.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 256;

// Where place `place` of the cell at `at` lies in the output.
__device__ __forceinline__ Pixel place_of(const DepthToSpaceParams& p, const Pixel& at,
                                          int64_t place) {
  const int64_t line = place / p.factor_w;
  return {at.batch, at.frame * p.factor_t + line / p.factor_h - p.drop,
          at.row * p.factor_h + line % p.factor_h, at.column * p.factor_w + place % p.factor_w};
}

template <class T, int kVec, int kPlaces>
__global__ void __launch_bounds__(kThreads) channels_last_kernel(const DepthToSpaceParams p) {
  const int64_t groups = p.channels / kVec;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= p.batch * p.frames * p.height * p.width * groups) return;
  const Pixel at = pixel_at(index / groups, p.frames, p.height, p.width);
  const int64_t channel = index % groups * kVec;
  const T* x = static_cast<const T*>(p.x) + offset(p.x_strides, at) + channel * kPlaces;
  Vector<T, kVec> from[kPlaces];
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) from[i] = load<T, kVec>(x, i);
#pragma unroll
  for (int place = 0; place < kPlaces; ++place) {
    const Pixel to = place_of(p, at, place);
    if (to.frame < 0) continue;
    Vector<T, kVec> moved;
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const int source = e * kPlaces + place;
      moved.at[e] = from[source / kVec].at[source % kVec];
    }
    store<T, kVec>(static_cast<T*>(p.out) + offset(p.out_strides, to) + channel, 0, moved);
  }
}

template <class T, bool kChannelsFirst>
__global__ void __launch_bounds__(kThreads) elements_kernel(const DepthToSpaceParams p) {
  const int64_t frames = p.frames * p.factor_t - p.drop;
  const int64_t height = p.height * p.factor_h, width = p.width * p.factor_w;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= p.batch * p.channels * frames * height * width) return;
  const int64_t picture = p.channels * frames * height * width;
  const int64_t volume = frames * height * width;
  // Of an output: [B, T, H, W, C] or [B, C, T, H, W], the last axis fastest.
  const int64_t channel = kChannelsFirst ? index % p.channels : index % picture / volume;
  const int64_t pixel =
      kChannelsFirst ? index / p.channels : index / picture * volume + index % volume;
  const Pixel to = pixel_at(pixel, frames, height, width);
  const int64_t frame = to.frame + p.drop;
  const Pixel at{to.batch, frame / p.factor_t, to.row / p.factor_h, to.column / p.factor_w};
  const int64_t place =
      (frame % p.factor_t * p.factor_h + to.row % p.factor_h) * p.factor_w + to.column % p.factor_w;
  const int64_t deep = channel * p.factor_t * p.factor_h * p.factor_w + place;
  const T* x = static_cast<const T*>(p.x) + offset(p.x_strides, at);
  T* out = static_cast<T*>(p.out) + offset(p.out_strides, to);
  out[channel * p.out_strides.channel] = x[deep * p.x_strides.channel];
}

template <class T, int kPlaces>
int launch_cells(const DepthToSpaceParams& p, void* stream) {
  constexpr int kVec = 16 / sizeof(T);
  const int64_t cells = p.batch * p.frames * p.height * p.width;
  return launch_each(channels_last_kernel<T, kVec, kPlaces>, p, cells * (p.channels / kVec), 1,
                     kThreads, stream);
}

template <class T>
int dispatch(const DepthToSpaceParams& p, void* stream) {
  constexpr int64_t kVec = 16 / sizeof(T);
  const VolumeStrides &s = p.x_strides, &o = p.out_strides;
  const int64_t places = p.factor_t * p.factor_h * p.factor_w;
  const bool in_vectors = s.channel == 1 && o.channel == 1 && p.channels % kVec == 0 &&
                          aligned({p.x, p.out}, 16) &&
                          steps_by(kVec, {s.batch, s.frame, s.row, s.column}) &&
                          steps_by(kVec, {o.batch, o.frame, o.row, o.column});
  if constexpr (sizeof(T) == 2 || sizeof(T) == 4) {
    if (in_vectors && places == 2) return launch_cells<T, 2>(p, stream);
    if (in_vectors && places == 4) return launch_cells<T, 4>(p, stream);
    if (in_vectors && places == 8) return launch_cells<T, 8>(p, stream);
  }
  const int64_t frames = p.frames * p.factor_t - p.drop;
  const int64_t elements = p.batch * p.channels * frames * p.height * p.width * places / p.factor_t;
  const auto kernel = o.channel == 1 ? elements_kernel<T, true> : elements_kernel<T, false>;
  return launch_each(kernel, p, elements, 1, kThreads, stream);
}

int of_size(const DepthToSpaceParams& p, void* stream) {
  switch (p.element_size) {
    case 1: return dispatch<uint8_t>(p, stream);
    case 2: return dispatch<uint16_t>(p, stream);
    case 4: return dispatch<uint32_t>(p, stream);
    default: return dispatch<uint64_t>(p, stream);
  }
}

}  // namespace

int depth_to_space_cuda(const DepthToSpaceParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch * p.channels * p.frames * p.height * p.width == 0) return kOk;
  if (p.x == nullptr || p.out == nullptr) return kNullAddress;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_code(guard.error());
  return of_size(p, stream);
}

}  // namespace rest_fast
