// Rasteriser with a z-buffer.
//
//   e_b, e_c: edge functions of the middle of a picture element over the triangle's area,
//   e_a = 1 - e_b - e_c
//   1 / d = e_a / d_a + e_b / d_b + e_c / d_c;  share_k = e_k d / d_k
//
// Most triangles of hair lie behind the face or behind other hair. So triangles are drawn roughly
// from front to back, and those that are nowhere nearer than what their tiles show are left out. A
// middle that lies on the edge of two triangles belongs to the nearer, and between equals to the
// one that is drawn first.
#include "raster.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../cpu/vectors.h"
#include "light_map.h"

namespace rest_fast {
namespace {

using namespace heads;

constexpr float kFar = 1e30f;
constexpr float kFaint = 1e-15f;    // less nearness, or more than 1 / kFaint, is a mistake
constexpr int64_t kWidest = 32766;  // elements in a row or a column: Box counts with 16 bits
constexpr float kEdge = 1e-6f;      // rounding of an edge function: no gaps between neighbours
constexpr int64_t kTile = 16;       // elements to a side
constexpr int64_t kRound = 1024;    // triangles drawn between two looks at the tiles
constexpr int64_t kBins = 256;      // of nearness, to sort by
constexpr int64_t kSlack = 16;      // elements after the last that a vector may touch

// A picture to draw. Nearness is any number that is linear over the picture, positive and larger
// where something is nearer.
struct Candidate;
struct Canvas {
  const float* place;             // [points, 3] x, y in picture elements, nearness
  const int32_t* triangle;        // [triangles, 3]
  float* near;                    // [height, width] nearness, 0 where there is nothing
  int32_t* id;                    // [height, width] its triangle, or -1
  float* least;                   // [tiles] what is not nearer cannot be seen there
  int64_t height, width, across;  // across: tiles in a row
  const Candidate* candidates;    // roughly from front to back
};

// Whole numbers at or above, at or below: a library call for each would be half of the time.
REST_FAST_INLINE int16_t down(float x) {
  const int32_t i = static_cast<int32_t>(x);
  return static_cast<int16_t>(i - (x < static_cast<float>(i)));
}
REST_FAST_INLINE int16_t up(float x) {
  const int32_t i = static_cast<int32_t>(x);
  return static_cast<int16_t>(i + (x > static_cast<float>(i)));
}
REST_FAST_INLINE float least(float a, float b, float c) {
  return std::min(a, std::min(b, c));
}
REST_FAST_INLINE float most(float a, float b, float c) {
  return std::max(a, std::max(b, c));
}

struct Triangle {
  const float *a, *b, *c;

  REST_FAST_INLINE Triangle(const Canvas& s, int64_t t)
      : a(s.place + 3 * s.triangle[3 * t]),
        b(s.place + 3 * s.triangle[3 * t + 1]),
        c(s.place + 3 * s.triangle[3 * t + 2]) {}
};

// Elements whose middles may lie in a triangle.
struct Box {
  int16_t x0, x1, y0, y1;

  REST_FAST_INLINE Box(const Triangle& t, int64_t height, int64_t width) {
    x0 = up(first(least(t.a[0], t.b[0], t.c[0]), width));
    x1 = down(last(most(t.a[0], t.b[0], t.c[0]), width));
    y0 = up(first(least(t.a[1], t.b[1], t.c[1]), height));
    y1 = down(last(most(t.a[1], t.b[1], t.c[1]), height));
  }
  // Many triangles of hair lie between the middles.
  REST_FAST_INLINE bool empty() const { return x0 > x1 || y0 > y1; }

 private:
  static REST_FAST_INLINE float first(float at, int64_t count) {
    return std::min<float>(count, std::max(0.0f, at - 0.5f));
  }
  static REST_FAST_INLINE float last(float at, int64_t count) {
    return std::max(-1.0f, std::min(count - 1.0f, at - 0.5f));
  }
};

// A triangle that may be seen. All that tells whether it is hidden lies together.
struct Candidate {
  int32_t number;
  float nearest;
  Box box;
};

// What may be seen, sorted by its nearest corner; found: space to work in.
void front_to_back(const Canvas& s, int64_t triangles, std::vector<Candidate>& found,
                   std::vector<Candidate>& sorted) {
  found.clear();
  float low = 1.0f / kFaint, high = kFaint;
  for (int64_t i = 0; i < triangles; ++i) {
    const Triangle t(s, i);
    const float nearest = most(t.a[2], t.b[2], t.c[2]);
    if (!(least(t.a[2], t.b[2], t.c[2]) > kFaint && nearest < 1.0f / kFaint)) continue;
    const Box box(t, s.height, s.width);
    if (box.empty()) continue;
    found.push_back({static_cast<int32_t>(i), nearest, box});
    low = std::min(low, nearest);
    high = std::max(high, nearest);
  }
  const float scale = high > low ? (kBins - 1) / (high - low) : 0.0f;
  const auto bin = [&](const Candidate& c) { return static_cast<int>((high - c.nearest) * scale); };
  int64_t start[kBins + 1] = {};
  for (const Candidate& each : found) ++start[bin(each) + 1];
  for (int64_t k = 0; k < kBins; ++k) start[k + 1] += start[k];
  sorted = found;
  for (const Candidate& each : found) sorted[start[bin(each)]++] = each;
}

struct Draw {
  template <int kWidth>
  static REST_FAST_INLINE void run(const Canvas& s, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i % kRound == kRound - 1) look<Wide<kWidth>>(s);
      const Candidate& c = s.candidates[i];
      if (!hidden(s, c.box, c.nearest))
        fill<Wide<kWidth>>(s, Triangle(s, c.number), c.box, c.number);
    }
  }

 private:
  // Notes the least nearness of each tile. At the right edge, elements of the next row count, too:
  // less is on the safe side.
  template <class V>
  static REST_FAST_INLINE void look(const Canvas& s) {
    for (int64_t y = 0; y < s.height; y += kTile) {
      for (int64_t x = 0; x < s.width; x += kTile) {
        typename V::Type low = typename V::Type{} + kFar, row;
        for (int64_t j = y; j < std::min(s.height, y + kTile); ++j) {
          for (int64_t i = x; i < x + kTile; i += V::kWidth) {
            std::memcpy(&row, s.near + j * s.width + i, sizeof(row));
            low = row < low ? row : low;
          }
        }
        float& tile = s.least[y / kTile * s.across + x / kTile];
        tile = low[0];
        for (int k = 1; k < V::kWidth; ++k) tile = std::min(tile, low[k]);
      }
    }
  }

  static REST_FAST_INLINE bool hidden(const Canvas& s, const Box& box, float nearest) {
    for (int64_t j = box.y0 / kTile; j <= box.y1 / kTile; ++j) {
      for (int64_t i = box.x0 / kTile; i <= box.x1 / kTile; ++i) {
        if (nearest > s.least[j * s.across + i]) return false;
      }
    }
    return true;
  }

  template <class V>
  static REST_FAST_INLINE void fill(const Canvas& s, const Triangle& t, const Box& box,
                                    int32_t number) {
    using Floats = typename V::Type;
    typedef int32_t Ints __attribute__((vector_size(4 * V::kWidth)));
    const float bx = t.b[0] - t.a[0], by = t.b[1] - t.a[1];
    const float cx = t.c[0] - t.a[0], cy = t.c[1] - t.a[1];
    const float area = bx * cy - by * cx;
    if (!(std::fabs(area) > 1e-9f)) return;
    const float inverse = 1.0f / area, to_b = t.b[2] - t.a[2], to_c = t.c[2] - t.a[2];
    const Floats outside = Floats{} - 1.0f, lowest = Floats{} - kEdge;
    const Ints numbers = Ints{} + number;
    Floats lane;
    for (int k = 0; k < V::kWidth; ++k) lane[k] = static_cast<float>(k);
    for (int64_t y = box.y0; y <= box.y1; ++y) {
      const float py = y + 0.5f - t.a[1];
      for (int64_t x = box.x0; x <= box.x1; x += V::kWidth) {
        const Floats px = lane + (x + 0.5f - t.a[0]);
        const Floats eb = (px * cy - py * cx) * inverse, ec = (bx * py - by * px) * inverse;
        const Floats ea = 1.0f - eb - ec, room = static_cast<float>(box.x1 - x) - lane;
        Floats edge = eb < ec ? eb : ec, near = t.a[2] + eb * to_b + ec * to_c, before;
        Ints id;
        std::memcpy(&before, s.near + y * s.width + x, sizeof(before));
        std::memcpy(&id, s.id + y * s.width + x, sizeof(id));
        // One comparison a choice: GCC does not keep a combination of several in vectors.
        edge = ea < edge ? ea : edge;
        edge = room < edge ? room : edge;
        near = edge < lowest ? outside : near;
        id = near > before ? numbers : id;
        before = near > before ? near : before;
        std::memcpy(s.near + y * s.width + x, &before, sizeof(before));
        std::memcpy(s.id + y * s.width + x, &id, sizeof(id));
      }
    }
  }
};

// Kept from call to call: what is freed goes back to the system, which takes longer to clear its
// pages again than to draw some thousand triangles.
struct Drawing {
  std::vector<float> place, near, least;  // as in Canvas
  std::vector<int32_t> id;
  std::vector<Candidate> found, sorted;

  // The nearest triangle of each element.
  void draw(const int32_t* triangle, int64_t triangles, int64_t height, int64_t width) {
    const int64_t across = (width + kTile - 1) / kTile, down = (height + kTile - 1) / kTile;
    near.assign(height * width + kSlack, 0.0f);
    id.assign(height * width + kSlack, -1);
    least.assign(across * down, 0.0f);
    Canvas canvas{place.data(), triangle, near.data(), id.data(), least.data(),
                  height,       width,    across,      nullptr};
    front_to_back(canvas, triangles, found, sorted);
    canvas.candidates = sorted.data();
    static const auto version = choose_version<Draw, Canvas>(0);
    version(canvas, 0, static_cast<int64_t>(sorted.size()));
  }

  // The same as a light sees it.
  void draw(const LightMap& map, const float* world, int64_t points, const int32_t* triangle,
            int64_t triangles) {
    place.resize(3 * points);
    for (int64_t i = 0; i < points; ++i) store(map.place(load(world + 3 * i)), &place[3 * i]);
    draw(triangle, triangles, map.size, map.size);
  }
};
thread_local Drawing drawing;

bool inside(const int32_t* triangle, int64_t triangles, int64_t points) {
  bool all = true;
  for (int64_t i = 0; i < 3 * triangles; ++i) all &= triangle[i] >= 0 && triangle[i] < points;
  return all;
}

// Shares and depths of a row whose triangles are known.
void shares(const HeadsRasterParams& p, int64_t y) {
  const float *a = nullptr, *b = nullptr, *c = nullptr;
  float inverse = 0;
  int32_t last = -1;
  for (int64_t x = 0; x < p.width; ++x) {
    const int64_t i = y * p.width + x;
    if (p.id[i] < 0) {
      p.depth[i] = kFar;
      store({0, 0, 0}, p.share + 3 * i);
      continue;
    }
    if (p.id[i] != last) {
      last = p.id[i];
      const int32_t* corner = p.triangle + 3 * last;
      a = &drawing.place[3 * corner[0]];
      b = &drawing.place[3 * corner[1]];
      c = &drawing.place[3 * corner[2]];
      inverse = 1.0f / ((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]));
    }
    const float px = x + 0.5f - a[0], py = y + 0.5f - a[1];
    const float eb = (px * (c[1] - a[1]) - py * (c[0] - a[0])) * inverse;
    const float ec = ((b[0] - a[0]) * py - (b[1] - a[1]) * px) * inverse;
    const Vec weight{(1.0f - eb - ec) * a[2], eb * b[2], ec * c[2]};
    p.depth[i] = 1.0f / (weight.x + weight.y + weight.z);
    store(weight * p.depth[i], p.share + 3 * i);
  }
}

}  // namespace

int heads_raster(const HeadsRasterParams& p) {
  if (p.points < 0 || p.triangles < 0 || p.height < 1 || p.width < 1) return kBadShape;
  if (p.height > kWidest || p.width > kWidest) return kBadShape;
  if (p.screen == nullptr || p.id == nullptr || p.share == nullptr || p.depth == nullptr)
    return kNullAddress;
  if (!inside(p.triangle, p.triangles, p.points)) return kBadShape;
  // 1 / d is linear over the picture; shares are left for later.
  std::vector<float>& place = drawing.place;
  place.assign(p.screen, p.screen + 3 * p.points);
  for (int64_t i = 0; i < p.points; ++i) place[3 * i + 2] = 1.0f / place[3 * i + 2];
  drawing.draw(p.triangle, p.triangles, p.height, p.width);
  std::copy_n(drawing.id.data(), p.height * p.width, p.id);
  for (int64_t y = 0; y < p.height; ++y) shares(p, y);
  return kOk;
}

int heads_shadow(const HeadsShadowParams& p) {
  if (p.points < 0 || p.triangles < 0 || p.size < 1 || p.size > kWidest || !(p.radius > 0))
    return kBadShape;
  if (p.world == nullptr || p.height == nullptr || p.light == nullptr || p.middle == nullptr)
    return kNullAddress;
  if (!inside(p.triangle, p.triangles, p.points)) return kBadShape;
  const LightMap map(load(p.light), load(p.middle), p.radius, p.size);
  drawing.draw(map, p.world, p.points, p.triangle, p.triangles);
  std::copy_n(drawing.near.data(), p.size * p.size, p.height);
  return kOk;
}

int heads_occlusion(const HeadsOcclusionParams& p) {
  if (p.points < 0 || p.triangles < 0 || p.size < 1 || p.size > kWidest || p.count < 1 ||
      !(p.radius > 0))
    return kBadShape;
  if (p.world == nullptr || p.normal == nullptr || p.open == nullptr) return kNullAddress;
  if (!inside(p.triangle, p.triangles, p.points)) return kBadShape;
  std::vector<float> seen(p.points, 0.0f), all(p.points, 1e-6f);
  const float bias = 3.0f * p.radius / p.size;
  for (int64_t k = 0; k < p.count; ++k) {
    const Vec light = load(p.directions + 3 * k);
    const LightMap map(light, load(p.middle), p.radius, p.size);
    drawing.draw(map, p.world, p.points, p.triangle, p.triangles);
    for (int64_t i = 0; i < p.points; ++i) {
      const float facing = dot(load(p.normal + 3 * i), light);
      if (facing <= 0) continue;
      all[i] += facing;
      if (!map.covered(drawing.near.data(), load(&drawing.place[3 * i]), bias)) seen[i] += facing;
    }
  }
  for (int64_t i = 0; i < p.points; ++i) p.open[i] = std::min(1.0f, seen[i] / all[i]);
  return kOk;
}

}  // namespace rest_fast
