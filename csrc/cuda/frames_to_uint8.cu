// Decoder output to pictures: out = round(clamp((x + 1) 127.5, 0, 255)), ties to even, NaN to 0,
// and [B, 3, T, H, W] to [B, T, H, W, 3] on the way.
//
// Layout: ops/frames_to_uint8.h. A thread makes kPixels neighbours of a row: one load a colour
// where columns lie side by side, and 12 bytes in three words. Where they do not, or a row is no
// whole number of these, a thread makes one pixel.
#include "../ops/frames_to_uint8.h"
#include "launch.h"
#include "pixel.h"
#include "volume.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kColours = 3;

template <class T, int kPixels>
__global__ void __launch_bounds__(kThreads) frames_to_uint8_kernel(const FramesToUint8Params p) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPixels;
  if (first >= p.batch * p.frames * p.height * p.width) return;
  const Pixel at = pixel_at(first, p.frames, p.height, p.width);
  const T* x = static_cast<const T*>(p.x) + offset(p.x_strides, at);
  constexpr int kBytes = kPixels * kColours, kWord = kPixels % 4 == 0 ? 4 : 1;
  alignas(4) uint8_t bytes[kBytes];
#pragma unroll
  for (int c = 0; c < kColours; ++c) {
    const auto run = load<T, kPixels>(x + c * p.x_strides.channel, 0);
#pragma unroll
    for (int i = 0; i < kPixels; ++i) bytes[i * kColours + c] = to_byte(to_float(run.at[i]));
  }
#pragma unroll
  for (int word = 0; word < kBytes / kWord; ++word) {
    const auto* from = reinterpret_cast<const Vector<uint8_t, kWord>*>(bytes);
    store<uint8_t, kWord>(p.out + first * kColours, word, from[word]);
  }
}

template <class T>
int dispatch(const FramesToUint8Params& p, void* stream) {
  constexpr int kPixels = 4;
  const VolumeStrides& s = p.x_strides;
  const bool in_vectors = p.width % kPixels == 0 && s.column == 1 &&
                          steps_by(kPixels, {s.batch, s.channel, s.frame, s.row}) &&
                          aligned({p.x}, kPixels * sizeof(T)) && aligned({p.out}, 4);
  const auto kernel =
      in_vectors ? frames_to_uint8_kernel<T, kPixels> : frames_to_uint8_kernel<T, 1>;
  const int64_t pixels = p.batch * p.frames * p.height * p.width;
  return launch_each(kernel, p, pixels / (in_vectors ? kPixels : 1), 1, kThreads, stream);
}

}  // namespace

int frames_to_uint8_cuda(const FramesToUint8Params& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.batch * p.frames * p.height * p.width == 0) return kOk;
  if (p.x == nullptr || p.out == nullptr) return kNullAddress;
  return on_device(device, p.dtype, [&](auto zero) { return dispatch<decltype(zero)>(p, stream); });
}

}  // namespace rest_fast
