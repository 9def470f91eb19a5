// RMS norm over the channels of each pixel, scale and shift, SiLU, in one pass over the tensor.
//
//   y = x / sqrt(mean_c(x^2) + eps) * (1 + scale) + shift;  out = y / (1 + exp(-y))
//
// Layout: ops/pixel_norm_silu.h. Why it exists: eager PyTorch writes and reads the tensor half a
// dozen times. Two ways through memory: where channels follow one another (channels last), pixel by
// pixel; else tiles of pixels, which run down the channels twice while the tile is in the cache.
#include "../ops/pixel_norm_silu.h"

#include "pixel.h"
#include "volume.h"

namespace rest_fast {
namespace {

constexpr int64_t kTile = 64;   // pixels: a row of a tile is a few cache lines and vector registers
constexpr int64_t kGroup = 32;  // channels whose squares are summed on their own, for accuracy

// Rows of a tile as fp32. Conversions are in separate loops, since GCC vectorises those of 16-bit
// numbers only there.
template <class T>
REST_FAST_INLINE void load_row(const T* __restrict x, int64_t step, int64_t pixels,
                               float* __restrict row) {
  if (step == 1 && pixels == kTile) {
    for (int64_t i = 0; i < kTile; ++i) row[i] = to_float(x[i]);
  } else {
    for (int64_t i = 0; i < pixels; ++i) row[i] = to_float(x[i * step]);
  }
}

template <class T>
REST_FAST_INLINE void store_row(const float* __restrict row, int64_t step, int64_t pixels,
                                T* __restrict out) {
  if (step == 1 && pixels == kTile) {
    for (int64_t i = 0; i < kTile; ++i) round_to(row[i], out[i]);
  } else {
    for (int64_t i = 0; i < pixels; ++i) round_to(row[i], out[i * step]);
  }
}

REST_FAST_INLINE void roots_of(float* sums, int64_t pixels, int64_t channels, float eps) {
  const float count = static_cast<float>(channels);
  for (int64_t i = 0; i < pixels; ++i) sums[i] = 1.0f / std::sqrt(sums[i] / count + eps);
}

template <class T>
REST_FAST_INLINE void run_tile(const PixelNormSiluParams& p, const T* x, T* out, int64_t pixels,
                               int64_t from, int64_t to) {
  const T* scale = static_cast<const T*>(p.scale);
  const T* shift = static_cast<const T*>(p.shift);
  float row[kTile] = {};  // all of it is computed, whatever a tile at a border holds
  float roots[kTile] = {};
  for (int64_t first = 0; first < p.channels; first += kGroup) {
    float group[kTile] = {};
    const int64_t end = std::min(first + kGroup, p.channels);
    for (int64_t c = first; c < end; ++c) {
      load_row(x + c * p.x_strides.channel, from, pixels, row);
      for (int64_t i = 0; i < kTile; ++i) group[i] += row[i] * row[i];
    }
    for (int64_t i = 0; i < kTile; ++i) roots[i] += group[i];
  }
  roots_of(roots, kTile, p.channels, p.eps);

  for (int64_t c = 0; c < p.channels; ++c) {
    const float times = factor(scale, c);
    const float plus = summand(shift, c);
    load_row(x + c * p.x_strides.channel, from, pixels, row);
    for (int64_t i = 0; i < kTile; ++i) row[i] = silu(row[i] * roots[i] * times + plus);
    store_row(row, to, pixels, out + c * p.out_strides.channel);
  }
}

template <class T>
REST_FAST_INLINE void run_pixels(const PixelNormSiluParams& p, const T* x, T* out, int64_t pixels,
                                 int64_t from, int64_t to) {
  const T* scale = static_cast<const T*>(p.scale);
  const T* shift = static_cast<const T*>(p.shift);
  const bool plain = scale == nullptr && shift == nullptr;
  float roots[kTile];
  for (int64_t i = 0; i < pixels; ++i) roots[i] = sum_of_squares(x + i * from, p.channels);
  roots_of(roots, pixels, p.channels, p.eps);

  for (int64_t i = 0; i < pixels; ++i) {
    const T* __restrict pixel = x + i * from;
    T* __restrict target = out + i * to;
    const float root = roots[i];
    if (plain) {
      for (int64_t c = 0; c < p.channels; ++c) {
        round_to(silu(to_float(pixel[c]) * root), target[c]);
      }
    } else {
      for (int64_t c = 0; c < p.channels; ++c) {
        const float y = to_float(pixel[c]) * root * factor(scale, c) + summand(shift, c);
        round_to(silu(y), target[c]);
      }
    }
  }
}

template <class T>
REST_FAST_INLINE void run_range(const PixelNormSiluParams& p, const PixelRuns& runs, int64_t begin,
                                int64_t end) {
  const bool channels_last = p.x_strides.channel == 1 && p.out_strides.channel == 1 &&
                             runs.run.from != 1 && runs.run.to != 1;
  for (int64_t item = begin; item < end; ++item) {
    const PixelTile tile = pixel_tile(runs, item);
    const T* x = static_cast<const T*>(p.x) + tile.from;
    T* out = static_cast<T*>(p.out) + tile.to;
    if (channels_last) {
      run_pixels(p, x, out, tile.pixels, runs.run.from, runs.run.to);
    } else {
      run_tile(p, x, out, tile.pixels, runs.run.from, runs.run.to);
    }
  }
}

// GCC does not multi-version templates, hence a plain function around them.
REST_FAST_MULTI_ISA void run(const PixelNormSiluParams& p, const PixelRuns& runs, int64_t begin,
                             int64_t end) {
  by_dtype(p.dtype,
           [&](auto zero) REST_FAST_INLINED { run_range<decltype(zero)>(p, runs, begin, end); });
}

}  // namespace

int pixel_norm_silu_cpu(const PixelNormSiluParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t pixels = p.batch * p.frames * p.height * p.width;
  if (pixels == 0) return kOk;
  if (p.x == nullptr || p.out == nullptr) return kNullAddress;
  const PixelRuns runs =
      pixel_runs(p.batch, p.frames, p.height, p.width, p.x_strides, p.out_strides, kTile);
  in_parallel(runs.items(), pixels * p.channels,
              [&](int64_t begin, int64_t end) { run(p, runs, begin, end); });
  return kOk;
}

}  // namespace rest_fast
