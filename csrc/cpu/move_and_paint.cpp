// Frames of the motion VAE: a photo moved by a flow and painted over, as bytes, in one pass.
//
// Layout: ops/move_and_paint.h. Why it exists: eager PyTorch enlarges six maps, samples, blends
// twice and rounds, each as a pass over all frames, and is limited by memory.
//
// Rows are made one after another. A row of an enlarged map lies between two rows of the small one,
// which are enlarged along the row once and kept as long as they are needed. Colours stand in
// vectors of four: share, red, green, blue.
#include "../ops/move_and_paint.h"

#include <vector>

#include "pixel.h"
#include "volume.h"

namespace rest_fast {
namespace {

typedef float Quad __attribute__((vector_size(16)));
constexpr int64_t kBand = 32;  // rows that one thread makes at a time

// Between which two of `from` numbers the place of one of `to` numbers lies, and where there.
struct Between {
  int64_t first;
  int64_t second;
  float share;  // of the second
};

REST_FAST_INLINE Between between(int64_t place, int64_t from, int64_t to) {
  const float scale = static_cast<float>(from) / static_cast<float>(to);
  const float at = std::max((static_cast<float>(place) + 0.5f) * scale - 0.5f, 0.0f);
  const int64_t first = std::min(static_cast<int64_t>(at), from - 1);
  return {first, std::min(first + 1, from - 1), at - static_cast<float>(first)};
}

// A map [kChannels, rows, columns] enlarged bilinearly, row by row, channels together.
template <int kChannels>
class Enlarged {
 public:
  Enlarged(int64_t rows, int64_t columns, int64_t height, int64_t width)
      : rows_(rows), columns_(columns), height_(height), places_(width), row_(width * kChannels) {
    for (int64_t x = 0; x < width; ++x) places_[x] = between(x, columns, width);
    for (auto& line : lines_) line.resize(width * kChannels);
  }

  void begin(const float* map) {
    map_ = map;
    held_[0] = held_[1] = -1;
  }

  // Row y of the enlarged map [width, kChannels], valid until the next call.
  REST_FAST_INLINE const float* row(int64_t y) {
    const Between at = between(y, rows_, height_);
    const float* __restrict first = line(at.first);
    const float* __restrict second = line(at.second);
    float* __restrict out = row_.data();
    const int64_t size = static_cast<int64_t>(row_.size());
    for (int64_t i = 0; i < size; ++i) out[i] = first[i] * (1.0f - at.share) + second[i] * at.share;
    return out;
  }

 private:
  // Row y of the map, enlarged along the row. Two that follow one another can be held.
  REST_FAST_INLINE const float* line(int64_t y) {
    float* __restrict out = lines_[y % 2].data();
    if (held_[y % 2] == y) return out;
    held_[y % 2] = y;
    const Between* places = places_.data();
    const int64_t width = static_cast<int64_t>(places_.size());
    for (int c = 0; c < kChannels; ++c) {
      const float* source = map_ + (c * rows_ + y) * columns_;
      for (int64_t x = 0; x < width; ++x) {
        const Between& at = places[x];
        out[x * kChannels + c] = source[at.first] * (1.0f - at.share) + source[at.second] * at.share;
      }
    }
    return out;
  }

  int64_t rows_, columns_, height_;
  const float* map_ = nullptr;
  std::vector<Between> places_;
  std::vector<float> row_, lines_[2];
  int64_t held_[2] = {-1, -1};
};

// Where a row of pixels is read in the photo: the upper left one of four, and how far from it.
struct Places {
  explicit Places(int64_t width) : first(width), right(width), below(width) {}
  std::vector<int32_t> first;
  std::vector<float> right, below;
};

// What a thread needs for the rows that it makes.
struct Rows {
  explicit Rows(const MoveAndPaintParams& p)
      : flow(p.map_rows, p.map_columns, p.height, p.width),
        paint(p.map_rows, p.map_columns, p.height, p.width),
        inner_flow(p.inner_rows, p.inner_columns, p.window_rows, p.window_columns),
        inner_paint(2 * p.inner_rows, 2 * p.inner_columns, p.window_rows, p.window_columns),
        moved(2 * p.width),
        faded(p.window_columns),
        places(p.width) {}

  void begin(const MoveAndPaintParams& p, int64_t frame) {
    const int64_t map = p.map_rows * p.map_columns, inner = p.inner_rows * p.inner_columns;
    flow.begin(p.flow + 2 * frame * map);
    paint.begin(p.paint + 4 * frame * map);
    inner_flow.begin(p.inner_flow + 2 * frame * inner);
    inner_paint.begin(p.inner_paint + 4 * 4 * frame * inner);
  }

  Enlarged<2> flow;
  Enlarged<4> paint;
  Enlarged<2> inner_flow;
  Enlarged<4> inner_paint;
  std::vector<float> moved;  // flow of both maps, [W, 2]
  std::vector<float> faded;  // share of the inner maps, [columns of the window]
  Places places;
};

// How much a line of the window's pixels counts, at place i of n.
REST_FAST_INLINE float fade(int64_t i, int64_t n, int64_t width) {
  const float depth = static_cast<float>(std::min(i, n - 1 - i));
  return std::min(depth / static_cast<float>(width), 1.0f);
}

REST_FAST_INLINE Quad load(const float* x) {
  Quad quad;
  std::memcpy(&quad, x, sizeof(quad));
  return quad;
}

// x within 0 .. most; NaN becomes 0, for it would be an address.
REST_FAST_INLINE float bounded(float x, float most) {
  const float above = x > 0.0f ? x : 0.0f;
  return above < most ? above : most;
}

// What lies outside has the colours of the border. moved: flow of row y, [W, 2]. A loop of its own,
// which the compiler makes vectors of.
REST_FAST_INLINE void find_places(const MoveAndPaintParams& p, const float* __restrict moved,
                                  int64_t y, Places& places) {
  const float width = static_cast<float>(p.width), height = static_cast<float>(p.height);
  const int32_t columns = static_cast<int32_t>(p.width);
  const int32_t last_column = columns - 2, last_row = static_cast<int32_t>(p.height) - 2;
  const float row = static_cast<float>(y);
  int32_t* __restrict first = places.first.data();
  float* __restrict right = places.right.data();
  float* __restrict below = places.below.data();
  for (int32_t x = 0; x < columns; ++x) {
    const float at_x = bounded(static_cast<float>(x) + width * moved[2 * x], width - 1.0f);
    const float at_y = bounded(row + height * moved[2 * x + 1], height - 1.0f);
    const int32_t left = std::min(static_cast<int32_t>(at_x), last_column);
    const int32_t top = std::min(static_cast<int32_t>(at_y), last_row);
    first[x] = top * columns + left;
    right[x] = at_x - static_cast<float>(left);
    below[x] = at_y - static_cast<float>(top);
  }
}

// The photo [H, W] of quads, read bilinearly.
REST_FAST_INLINE Quad sampled(const float* photo, int64_t width, int32_t first, float right,
                              float below) {
  const float* at = photo + 4 * static_cast<int64_t>(first);
  const Quad above = load(at) * (1.0f - right) + load(at + 4) * right;
  const Quad under = load(at + 4 * width) * (1.0f - right) + load(at + 4 * width + 4) * right;
  return above * (1.0f - below) + under * below;
}

REST_FAST_INLINE Quad laid_over(Quad x, Quad paint) {
  return x + paint - x * paint[0];
}

// Red, green and blue as bytes from the lowest on: to_byte() of pixel.h, four at once.
REST_FAST_INLINE uint32_t to_bytes(Quad colour) {
  Quad value = (colour + 1.0f) * 127.5f;
  value = value > 0.0f ? value : Quad{};  // NaN fails the comparison
  value = value < 255.0f ? value : Quad{} + 255.0f;
  value += 8388608.0f;
  uint32_t bits[4];
  std::memcpy(bits, &value, sizeof(bits));
  return (bits[1] & 255u) | (bits[2] & 255u) << 8 | (bits[3] & 255u) << 16;
}

// One row of a frame. photo: quads [H, W].
REST_FAST_INLINE void draw_row(const MoveAndPaintParams& p, Rows& rows, const float* photo,
                               int64_t y, uint8_t* out) {
  const float* paint = rows.paint.row(y);
  const float* flow = rows.flow.row(y);
  const int64_t left = p.window_left, right = left + p.window_columns;
  const bool inside = y >= p.window_top && y < p.window_top + p.window_rows;
  const float* inner = nullptr;
  float* __restrict moved = rows.moved.data();
  std::copy_n(flow, 2 * p.width, moved);
  if (inside) {
    const int64_t row = y - p.window_top;
    const float here = fade(row, p.window_rows, p.fade);
    const float* __restrict finer = rows.inner_flow.row(row);
    inner = rows.inner_paint.row(row);
    float* __restrict faded = rows.faded.data();
    for (int64_t x = 0; x < p.window_columns; ++x) {
      faded[x] = here * fade(x, p.window_columns, p.fade);
      moved[2 * (left + x)] += faded[x] * finer[2 * x];
      moved[2 * (left + x) + 1] += faded[x] * finer[2 * x + 1];
    }
  }
  find_places(p, moved, y, rows.places);
  for (int64_t x = 0; x < p.width; ++x) {
    const Places& from = rows.places;
    Quad colour = sampled(photo, p.width, from.first[x], from.right[x], from.below[x]);
    colour = laid_over(colour, load(paint + 4 * x));
    if (inside && x >= left && x < right) {
      colour = laid_over(colour, load(inner + 4 * (x - left)) * rows.faded[x - left]);
    }
    const uint32_t bytes = to_bytes(colour);
    if (x + 1 < p.width) {
      std::memcpy(out + 3 * x, &bytes, 4);  // the fourth is the next pixel's, which comes later
    } else {
      std::memcpy(out + 3 * x, &bytes, 3);
    }
  }
}

// Bands [begin, end) of all frames.
REST_FAST_MULTI_ISA void draw(const MoveAndPaintParams& p, const float* photos, int64_t begin,
                              int64_t end) {
  Rows rows(p);
  const int64_t bands = (p.height + kBand - 1) / kBand;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t frame = item / bands, top = item % bands * kBand;
    const int64_t photo = frame / (p.frames / p.photos);
    rows.begin(p, frame);
    for (int64_t y = top; y < std::min(top + kBand, p.height); ++y) {
      draw_row(p, rows, photos + photo * 4 * p.height * p.width, y,
               p.out + (frame * p.height + y) * 3 * p.width);
    }
  }
}

// [B, 3, H, W] -> quads [B, H, W], of which the first number means nothing.
std::vector<float> in_quads(const MoveAndPaintParams& p) {
  const int64_t pixels = p.height * p.width;
  std::vector<float> quads(p.photos * pixels * 4);
  for (int64_t b = 0; b < p.photos; ++b) {
    for (int64_t c = 0; c < 3; ++c) {
      const float* source = p.photo + (b * 3 + c) * pixels;
      float* target = quads.data() + b * pixels * 4 + c + 1;
      for (int64_t i = 0; i < pixels; ++i) target[4 * i] = source[i];
    }
  }
  return quads;
}

}  // namespace

int move_and_paint_cpu(const MoveAndPaintParams& p) {
  if (const int error = check_sizes(p)) return error;
  if (p.frames == 0) return kOk;
  for (const void* address :
       {static_cast<const void*>(p.photo), static_cast<const void*>(p.flow),
        static_cast<const void*>(p.paint), static_cast<const void*>(p.inner_flow),
        static_cast<const void*>(p.inner_paint), static_cast<const void*>(p.out)}) {
    if (address == nullptr) return kNullAddress;
  }
  const std::vector<float> photos = in_quads(p);
  const int64_t bands = (p.height + kBand - 1) / kBand;
  in_parallel(p.frames * bands, p.frames * p.height * p.width * 4,
              [&](int64_t begin, int64_t end) { draw(p, photos.data(), begin, end); });
  return kOk;
}

}  // namespace rest_fast
