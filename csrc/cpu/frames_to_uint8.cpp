// Decoder output to pictures: out = round(clamp((x + 1) * 127.5, 0, 255)), ties to even, NaN to 0,
// and [B, 3, T, H, W] to [B, T, H, W, 3] on the way.
//
// Layout: ops/frames_to_uint8.h. Why it exists: eager PyTorch writes six tensors for one of bytes.
// The sum comes before the product so that no compiler can make one rounding of the two: all
// instruction sets give the same bytes, those of the reference.
#include "../ops/frames_to_uint8.h"

#include "pixel.h"
#include "volume.h"

namespace rest_fast {
namespace {

constexpr int64_t kTile = 256;
constexpr int64_t kColours = 3;

template <class T>
REST_FAST_INLINE void run_tile(const FramesToUint8Params& p, const PixelRuns& runs,
                               const PixelTile& tile) {
  const T* x = static_cast<const T*>(p.x) + tile.from;
  uint8_t* __restrict out = p.out + tile.to;
  const int64_t step = runs.run.from;
  if (step == kColours && p.x_strides.channel == 1) {
    for (int64_t i = 0; i < tile.pixels * kColours; ++i) out[i] = to_byte(to_float(x[i]));
    return;
  }
  uint8_t bytes[kColours][kTile];
  for (int64_t c = 0; c < kColours; ++c) {
    const T* row = x + c * p.x_strides.channel;
    if (step == 1) {
      for (int64_t i = 0; i < tile.pixels; ++i) bytes[c][i] = to_byte(to_float(row[i]));
    } else {
      for (int64_t i = 0; i < tile.pixels; ++i) bytes[c][i] = to_byte(to_float(row[i * step]));
    }
  }
  for (int64_t i = 0; i < tile.pixels; ++i) {
    out[kColours * i] = bytes[0][i];
    out[kColours * i + 1] = bytes[1][i];
    out[kColours * i + 2] = bytes[2][i];
  }
}

template <class T>
REST_FAST_INLINE void run_range(const FramesToUint8Params& p, const PixelRuns& runs, int64_t begin,
                                int64_t end) {
  for (int64_t item = begin; item < end; ++item) run_tile<T>(p, runs, pixel_tile(runs, item));
}

// GCC does not multi-version templates, hence one plain function per dtype.
REST_FAST_MULTI_ISA void run_float32(const FramesToUint8Params& p, const PixelRuns& runs,
                                     int64_t begin, int64_t end) {
  run_range<float>(p, runs, begin, end);
}
REST_FAST_MULTI_ISA void run_bfloat16(const FramesToUint8Params& p, const PixelRuns& runs,
                                      int64_t begin, int64_t end) {
  run_range<BFloat16>(p, runs, begin, end);
}
REST_FAST_MULTI_ISA void run_float16(const FramesToUint8Params& p, const PixelRuns& runs,
                                     int64_t begin, int64_t end) {
  run_range<Float16>(p, runs, begin, end);
}

}  // namespace

int frames_to_uint8_cpu(const FramesToUint8Params& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t pixels = p.batch * p.frames * p.height * p.width;
  if (pixels == 0) return kOk;
  if (p.x == nullptr || p.out == nullptr) return kNullAddress;
  const int64_t row = kColours * p.width;
  const VolumeStrides target{p.frames * p.height * row, 1, p.height * row, row, kColours};
  const PixelRuns runs =
      pixel_runs(p.batch, p.frames, p.height, p.width, p.x_strides, target, kTile);
  const auto run = p.dtype == DType::kFloat32    ? &run_float32
                   : p.dtype == DType::kBFloat16 ? &run_bfloat16
                                                 : &run_float16;
  in_parallel(runs.items(), pixels * kColours,
              [&](int64_t begin, int64_t end) { run(p, runs, begin, end); });
  return kOk;
}

}  // namespace rest_fast
