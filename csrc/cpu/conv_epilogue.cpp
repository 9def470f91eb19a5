// What follows a convolution of the decoder, in one pass over its result.
//
//   y = conv + noise_scale noise + residual, then channels into frames, rows and columns
//   out = y;  normed = silu(y / sqrt(mean_c(y^2) + eps) (1 + scale) + shift);  pictures = bytes(y)
//
// Layout: ops/conv_epilogue.h. Why it exists: a sequence of ops, one for each step, reads and
// writes the tensor two to four times more, and needs a tensor for an upsampler's residual. All
// sums are fp32 and rounded once. The unit of work is a row of pixels of the convolution.
#include "../ops/conv_epilogue.h"

#include "pixel.h"
#include "volume.h"

namespace rest_fast {
namespace {

constexpr int64_t kTile = 16;       // most pixels whose roots are taken together
constexpr int64_t kNumbers = 4096;  // most numbers of several such pixels: they fit the first cache
constexpr int64_t kColours = 3;

// A pixel: batch, frame, row, column.
struct Place {
  int64_t b;
  int64_t t;
  int64_t y;
  int64_t x;
};

REST_FAST_INLINE int64_t offset(const VolumeStrides& s, const Place& at) {
  return at.b * s.batch + at.t * s.frame + at.y * s.row + at.x * s.column;
}

// Numbers of some pixels in a row: pixel i begins at data[i * step].
struct Run {
  const float* data;
  int64_t step;
  int64_t pixels;
};

// Conversions are in separate loops, since GCC vectorises those of 16-bit numbers only there.
template <class T>
REST_FAST_INLINE void add_noise(const ConvEpilogueParams& p, const Place& at, int64_t channels,
                                float* __restrict sums) {
  const T* __restrict strength = static_cast<const T*>(p.noise_scale);
  const T* noise = static_cast<const T*>(p.noise);
  const float n = to_float(noise[(at.b * p.height + at.y) * p.width + at.x]);
  for (int64_t o = 0; o < channels; ++o) sums[o] += to_float(strength[o]) * n;
}

// The sums of some pixels from `at` on, before depth to space: in `memory`, or in place if nothing
// is added and no bytes are made.
template <class T>
REST_FAST_INLINE Run sums_of(const ConvEpilogueParams& p, Place at, int64_t pixels,
                             int64_t channels, float* __restrict memory) {
  const T* __restrict conv = static_cast<const T*>(p.conv) + offset(p.conv_strides, at);
  if constexpr (sizeof(T) == sizeof(float)) {
    const bool added = p.noise != nullptr || p.residual != nullptr;
    if (!added && p.pictures == nullptr) return {conv, p.conv_strides.column, pixels};
  }
  for (int64_t i = 0; i < pixels; ++i, ++at.x, conv += p.conv_strides.column) {
    float* __restrict sums = memory + i * channels;
    for (int64_t o = 0; o < channels; ++o) sums[o] = to_float(conv[o]);
    if (p.noise != nullptr) add_noise<T>(p, at, channels, sums);
    if (p.residual == nullptr) continue;
    const T* __restrict residual =
        static_cast<const T*>(p.residual) + offset(p.residual_strides, at);
    for (int64_t tile = 0; tile < channels; tile += p.residual_channels) {
      for (int64_t r = 0; r < p.residual_channels; ++r) sums[tile + r] += to_float(residual[r]);
    }
  }
  return {memory, channels, pixels};
}

template <class T>
REST_FAST_INLINE void store_normed(const ConvEpilogueParams& p, const Run& run, T* target,
                                   int64_t column) {
  const T* scale = static_cast<const T*>(p.scale);
  const T* shift = static_cast<const T*>(p.shift);
  const float count = static_cast<float>(p.channels);
  float roots[kTile] = {};
  for (int64_t i = 0; i < run.pixels; ++i) {
    roots[i] = sum_of_squares(run.data + i * run.step, p.channels);
  }
  for (int64_t i = 0; i < kTile; ++i) roots[i] = 1.0f / std::sqrt(roots[i] / count + p.eps);
  for (int64_t i = 0; i < run.pixels; ++i) {
    const float* __restrict pixel = run.data + i * run.step;
    T* __restrict to = target + i * column;
    const float root = roots[i];
    if (scale == nullptr && shift == nullptr) {
      for (int64_t c = 0; c < p.channels; ++c) round_to(silu(pixel[c] * root), to[c]);
    } else {
      for (int64_t c = 0; c < p.channels; ++c) {
        round_to(silu(pixel[c] * root * factor(scale, c) + summand(shift, c)), to[c]);
      }
    }
  }
}

// Pixels of the results, from `to` on and `columns` apart.
template <class T>
REST_FAST_INLINE void store(const ConvEpilogueParams& p, const Run& run, const Place& to,
                            int64_t columns) {
  if (p.out != nullptr) {
    T* out = static_cast<T*>(p.out) + offset(p.out_strides, to);
    for (int64_t i = 0; i < run.pixels; ++i) {
      const float* __restrict pixel = run.data + i * run.step;
      T* __restrict target = out + i * columns * p.out_strides.column;
      for (int64_t c = 0; c < p.channels; ++c) round_to(pixel[c], target[c]);
    }
  }
  if (p.normed != nullptr) {
    T* normed = static_cast<T*>(p.normed) + offset(p.normed_strides, to);
    store_normed(p, run, normed, columns * p.normed_strides.column);
  }
}

// Every `cell`-th number of each pixel, from `depth` on. A known `kCell` gives shuffles, not
// gathers.
template <int64_t kCell>
REST_FAST_INLINE void take(const Run& run, int64_t cell, int64_t depth, int64_t channels,
                           float* __restrict gathered) {
  const int64_t every = kCell == 0 ? cell : kCell;
  for (int64_t i = 0; i < run.pixels; ++i) {
    const float* __restrict from = run.data + i * run.step + depth;
    float* __restrict to = gathered + i * channels;
    for (int64_t c = 0; c < channels; ++c) to[c] = from[c * every];
  }
}

// Where channels (c, depth), c slower, of a pixel go; the frame is negative if it is dropped.
REST_FAST_INLINE Place place_of(const ConvEpilogueParams& p, const Place& at, int64_t depth) {
  const int64_t line = depth / p.factor_w;
  return {at.b, at.t * p.factor_t + line / p.factor_h - p.drop,
          at.y * p.factor_h + line % p.factor_h, at.x * p.factor_w + depth % p.factor_w};
}

template <class T>
REST_FAST_INLINE void store_numbers(const ConvEpilogueParams& p, const Run& run, const Place& at,
                                    int64_t cell, float* gathered) {
  for (int64_t depth = 0; depth < cell; ++depth) {
    const Place to = place_of(p, at, depth);
    if (to.t < 0) continue;
    if (cell == 1) {
      store<T>(p, run, to, 1);
      continue;
    }
    if (cell == 8) {
      take<8>(run, cell, depth, p.channels, gathered);
    } else if (cell == 4) {
      take<4>(run, cell, depth, p.channels, gathered);
    } else {
      take<0>(run, cell, depth, p.channels, gathered);
    }
    store<T>(p, {gathered, p.channels, run.pixels}, to, p.factor_w);
  }
}

// Nothing else may refer to the memory of `sums`: else the compiler does not vectorise the loop.
REST_FAST_INLINE void store_bytes(const ConvEpilogueParams& p, const float* __restrict sums,
                                  int64_t pixels, const Place& at, int64_t cell,
                                  uint8_t* __restrict bytes) {
  const int64_t frames = p.frames * p.factor_t - p.drop;
  const int64_t channels = kColours * cell;
  for (int64_t n = 0; n < pixels * channels; ++n) bytes[n] = to_byte(sums[n]);
  for (int64_t depth = 0; depth < cell; ++depth) {
    const Place to = place_of(p, at, depth);
    if (to.t < 0) continue;
    const int64_t row = (to.b * frames + to.t) * p.height * p.factor_h + to.y;
    uint8_t* __restrict target = p.pictures + (row * p.width * p.factor_w + to.x) * kColours;
    const uint8_t* from = bytes + depth;
    for (int64_t i = 0; i < pixels; ++i) {
      target[0] = from[0];
      target[1] = from[cell];
      target[2] = from[2 * cell];
      target += kColours * p.factor_w;
      from += channels;
    }
  }
}

template <class T>
REST_FAST_INLINE void run_range(const ConvEpilogueParams& p, int64_t begin, int64_t end) {
  const int64_t cell = p.factor_t * p.factor_h * p.factor_w;
  const int64_t channels = p.channels * cell;
  const int64_t tile = std::clamp<int64_t>(kNumbers / channels, 1, kTile);
  float sums[kMaxConvChannels];
  float gathered[kMaxConvChannels];
  uint8_t bytes[kMaxConvChannels];
  for (int64_t item = begin; item < end; ++item) {
    Place at{item / p.height / p.frames, item / p.height % p.frames, item % p.height, 0};
    if ((at.t + 1) * p.factor_t <= p.drop) continue;
    for (; at.x < p.width; at.x += tile) {
      const Run run = sums_of<T>(p, at, std::min(tile, p.width - at.x), channels, sums);
      if (p.out != nullptr || p.normed != nullptr) store_numbers<T>(p, run, at, cell, gathered);
      if (p.pictures != nullptr) store_bytes(p, sums, run.pixels, at, cell, bytes);
    }
  }
}

// GCC does not multi-version templates, hence a plain function around them.
REST_FAST_MULTI_ISA void run(const ConvEpilogueParams& p, int64_t begin, int64_t end) {
  by_dtype(p.dtype, [&](auto zero) REST_FAST_INLINED { run_range<decltype(zero)>(p, begin, end); });
}

}  // namespace

int conv_epilogue_cpu(const ConvEpilogueParams& p) {
  if (const int error = check_sizes(p)) return error;
  const int64_t rows = p.batch * p.frames * p.height;
  const int64_t channels = p.channels * p.factor_t * p.factor_h * p.factor_w;
  if (rows * p.width * channels == 0) return kOk;
  in_parallel(rows, rows * p.width * channels,
              [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
