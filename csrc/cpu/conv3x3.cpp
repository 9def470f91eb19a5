// A convolution of 3 x 3 with SiLU before and after it, a map added, and a scale and a shift.
//
// Layout: ops/conv3x3.h. Why it exists: with AVX2 alone oneDNN and the passes for SiLU and sum take
// twice as long for maps of few channels (docs/kernels/conv3x3.md).
//
// Winograd's F(4 x 4, 3 x 3): 4 x 4 results come of 6 x 6 numbers (a tile) by 36 products a pair of
// channels, in place of 144. Tile and weight are polynomials; they are evaluated at the points 0,
// 1, -1, 2, -2 and infinity along each side, multiplied there, and the result is interpolated.
//
// A thread makes bands, four rows of a frame each, some at a time: their tiles at all points, one
// product of matrices a point and 16 channels, and the way back. Each result is the sum of the same
// numbers in the same order, whichever bands are made together and by which thread.
#include "../ops/conv3x3.h"

#include <memory>

#include "register_tile.h"

namespace rest_fast {
namespace {

constexpr int kTile = 4;        // results along a side of a tile
constexpr int kAround = 6;      // numbers along a side that they come of
constexpr int64_t kTiles = 24;  // at a time, about: of 32 channels they fill a third of an L2 cache
static_assert(kColumns == kConvBlock);

// x at the points of its six numbers.
template <class T>
REST_FAST_INLINE void to_points(const T* x, T* at) {
  const T even = x[4] - 4.0f * x[2], odd = x[3] - 4.0f * x[1];
  const T even_twice = x[4] - x[2], odd_twice = 2.0f * (x[3] - x[1]);
  at[0] = 4.0f * x[0] - 5.0f * x[2] + x[4];
  at[1] = even + odd;
  at[2] = even - odd;
  at[3] = even_twice + odd_twice;
  at[4] = even_twice - odd_twice;
  at[5] = 4.0f * x[1] - 5.0f * x[3] + x[5];
}

// Four results of products at the points.
template <class T>
REST_FAST_INLINE void from_points(const T* at, T* y) {
  const T even = at[1] + at[2], odd = at[1] - at[2];
  const T even_twice = at[3] + at[4], odd_twice = at[3] - at[4];
  y[0] = at[0] + even + even_twice;
  y[1] = odd + 2.0f * odd_twice;
  y[2] = even + 4.0f * even_twice;
  y[3] = odd + 8.0f * odd_twice + at[5];
}

// What a thread works in.
struct Scratch {
  explicit Scratch(const Conv3x3Params& p)
      : bands((p.height + kTile - 1) / kTile),
        across((p.width + kTile - 1) / kTile),
        together(std::max<int64_t>(1, kTiles / across)),
        tiles(together * across),
        wide((p.channels + kConvBlock - 1) / kConvBlock * kConvBlock),
        line((across * kTile + 2) * wide),
        rows(new float[kAround * line]()),
        points(new float[kConvPoints * tiles * wide]),
        products(new Columns[kConvPoints * tiles]) {}

  int64_t bands;     // of a frame
  int64_t across;    // tiles of a band
  int64_t together;  // bands at a time
  int64_t tiles;     // of those
  int64_t wide;      // channels, and zeros up to whole vectors
  int64_t line;      // numbers of a row with its border
  int64_t held = -1;  // the band whose rows are there
  std::unique_ptr<float[]> rows;        // [6, columns + 2, wide]: of a band, and a border of zeros
  std::unique_ptr<float[]> points;      // [36, tiles, wide]
  std::unique_ptr<Columns[]> products;  // [36, tiles]
};

// Row y of a frame, behind s, between zeros; rows outside are zeros.
template <class V>
REST_FAST_INLINE void read_row(const Conv3x3Params& p, const Scratch& s, int64_t frame, int64_t y,
                               float* row) {
  if (y < 0 || y >= p.height) {
    std::fill_n(row, s.line, 0.0f);
    return;
  }
  const float* source = p.x + (frame * p.height + y) * p.width * p.channels;
  float* target = row + s.wide;
  if (p.channels == s.wide) {
    std::copy_n(source, p.width * p.channels, target);
  } else {
    for (int64_t x = 0; x < p.width; ++x) {
      std::copy_n(source + x * p.channels, p.channels, target + x * s.wide);
    }
  }
  if (!p.silu_before) return;
  for (int64_t i = 0; i < p.width * s.wide; i += V::kWidth) {
    typename V::Type value;
    load<V>(target + i, value);
    silu<V>(value);
    store<V>(value, target + i);
  }
}

// The six rows of a band; two of them are those of the band above.
template <class V>
REST_FAST_INLINE void read_band(const Conv3x3Params& p, Scratch& s, int64_t band) {
  const int64_t frame = band / s.bands, top = band % s.bands * kTile - 1;
  int first = 0;
  if (band == s.held + 1 && top > 0) {
    std::copy_n(s.rows.get() + kTile * s.line, 2 * s.line, s.rows.get());
    first = kAround - kTile;
  }
  for (int r = first; r < kAround; ++r) {
    read_row<V>(p, s, frame, top + r, s.rows.get() + r * s.line);
  }
  s.held = band;
}

// The tiles of the band that was read, at all points, from tile `first` of the scratch on.
template <class V>
REST_FAST_INLINE void evaluate_band(Scratch& s, int64_t first) {
  const int64_t step = s.tiles * s.wide;
  for (int64_t x = 0; x < s.across; ++x) {
    const float* tile = s.rows.get() + x * kTile * s.wide;
    float* target = s.points.get() + (first + x) * s.wide;
    for (int64_t c = 0; c < s.wide; c += V::kWidth) {
      typename V::Type half[kAround][kAround], in[kAround], out[kAround];
      for (int i = 0; i < kAround; ++i) {
        for (int j = 0; j < kAround; ++j) load<V>(tile + j * s.line + i * s.wide + c, in[j]);
        to_points(in, out);
        for (int j = 0; j < kAround; ++j) half[j][i] = out[j];
      }
      for (int j = 0; j < kAround; ++j) {
        to_points(half[j], out);
        for (int i = 0; i < kAround; ++i) store<V>(out[i], target + (j * kAround + i) * step + c);
      }
    }
  }
}

// What is done with a block of results of a frame: numbers that do not depend on the pixel.
struct Finish {
  Columns bias, scale, shift;
  bool scaled;
};

REST_FAST_INLINE Finish finish_of(const Conv3x3Params& p, int64_t frame, int64_t from,
                                  int64_t lanes) {
  Finish f{{}, {}, {}, p.scale != nullptr};
  if (p.bias) std::copy_n(p.bias + from, lanes, f.bias);
  if (f.scaled) {
    std::copy_n(p.scale + frame * p.out_channels + from, lanes, f.scale);
    std::copy_n(p.shift + frame * p.out_channels + from, lanes, f.shift);
  }
  return f;
}

// One block of a pixel: y becomes out.
template <class V>
REST_FAST_INLINE void finish_pixel(const Finish& f, const float* added, float* y) {
  for (int n = 0; n < kConvBlock; n += V::kWidth) {
    typename V::Type value, other;
    load<V>(y + n, value);
    if (added) {
      load<V>(added + n, other);
      value += other;
    }
    if (f.scaled) {
      load<V>(f.scale + n, other);
      value *= other;
      load<V>(f.shift + n, other);
      value += other;
    }
    store<V>(value, y + n);
  }
}

// A tile of products of one block -> results [4][4], with bias and behind s'.
template <class V>
REST_FAST_INLINE void interpolate(const Conv3x3Params& p, const Finish& f,
                                  const Columns* products, int64_t step, Columns* y) {
  for (int n = 0; n < kConvBlock; n += V::kWidth) {
    typename V::Type half[kTile][kAround], in[kAround], out[kTile], bias;
    load<V>(f.bias + n, bias);
    for (int i = 0; i < kAround; ++i) {
      for (int j = 0; j < kAround; ++j) load<V>(products[(j * kAround + i) * step] + n, in[j]);
      from_points(in, out);
      for (int j = 0; j < kTile; ++j) half[j][i] = out[j];
    }
    for (int j = 0; j < kTile; ++j) {
      from_points(half[j], out);
      for (int i = 0; i < kTile; ++i) {
        out[i] += bias;
        if (p.silu_after) silu<V>(out[i]);
        store<V>(out[i], y[kTile * j + i] + n);
      }
    }
  }
}

// Tiles of a band, one block of channels from `from` on, to out.
template <class V>
REST_FAST_INLINE void write_band(const Conv3x3Params& p, const Scratch& s, int64_t band,
                                 int64_t first, int64_t from) {
  const int64_t frame = band / s.bands, top = band % s.bands * kTile;
  const int64_t lanes = std::min<int64_t>(kConvBlock, p.out_channels - from);
  const int64_t image = p.height * p.width * p.out_channels;
  const float* added = nullptr;
  if (p.added) added = p.added + frame / (p.frames / p.added_frames) * image + from;
  float* out = p.out + frame * image + from;
  const Finish finish = finish_of(p, frame, from, lanes);
  const bool more = added || finish.scaled;
  for (int64_t x = 0; x < s.across; ++x) {
    Columns y[kTile * kTile];
    interpolate<V>(p, finish, s.products.get() + first + x, s.tiles, y);
    const int64_t rows = std::min<int64_t>(kTile, p.height - top);
    const int64_t columns = std::min<int64_t>(kTile, p.width - x * kTile);
    for (int64_t j = 0; j < rows; ++j) {
      for (int64_t i = 0; i < columns; ++i) {
        const int64_t at = ((top + j) * p.width + x * kTile + i) * p.out_channels;
        float* pixel = y[kTile * j + i];
        if (lanes == kConvBlock) {
          if (more) finish_pixel<V>(finish, added ? added + at : nullptr, pixel);
          std::memcpy(out + at, pixel, sizeof(Columns));
        } else {
          Columns other = {};
          if (added) std::copy_n(added + at, lanes, other);
          if (more) finish_pixel<V>(finish, other, pixel);
          std::copy_n(pixel, lanes, out + at);
        }
      }
    }
  }
}

struct Body {
  // Bands [begin, end) of all frames.
  template <int kWidth>
  static REST_FAST_INLINE void run(const Conv3x3Params& p, int64_t begin, int64_t end) {
    using V = Wide<kWidth>;
    Scratch s(p);
    for (int64_t band = begin; band < end; band += s.together) {
      const int64_t count = std::min(s.together, end - band);
      for (int64_t i = 0; i < count; ++i) {
        read_band<V>(p, s, band + i);
        evaluate_band<V>(s, i * s.across);
      }
      for (int64_t from = 0; from < p.out_channels; from += kConvBlock) {
        const float* weight = p.points + from * kConvPoints * p.channels;
        for (int64_t k = 0; k < kConvPoints; ++k) {
          const float* columns = weight + k * p.channels * kConvBlock;
          multiply_rows<kWidth, false>(s.points.get() + k * s.tiles * s.wide, count * s.across,
                                       s.wide, 1, p.channels,
                                       reinterpret_cast<const Columns*>(columns),
                                       s.products.get() + k * s.tiles);
        }
        for (int64_t i = 0; i < count; ++i) write_band<V>(p, s, band + i, i * s.across, from);
      }
    }
  }
};

}  // namespace

int conv3x3_cpu(const Conv3x3Params& p) {
  if (const int error = check_sizes(p)) return error;
  const auto run = choose_version<Body, Conv3x3Params>(p.vector_width);
  if (!run) return kBadVectorWidth;
  const int64_t bands = p.frames * ((p.height + kTile - 1) / kTile);
  if (bands == 0 || p.width == 0 || p.out_channels == 0) return kOk;
  // A number of x is multiplied 4 times for each output: 16 of those take as long as an element of
  // a plain pass.
  const int64_t work = p.frames * p.height * p.width * p.channels * (p.out_channels / 4 + 1);
  in_parallel(bands, work, [&](int64_t begin, int64_t end) { run(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
