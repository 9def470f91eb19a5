// Rasteriser with a z-buffer.
//
//   e_b, e_c: edge functions of the middle of a picture element over the triangle's area, e_a = 1 -
//   e_b - e_c 1 / d = e_a / d_a + e_b / d_b + e_c / d_c;  share_k = e_k d / d_k
//
// Triangles of a head cover few elements each, so boxes are walked element by element. A middle
// that lies on the edge of two triangles belongs to the nearer, and between equals to the first.
#include "raster.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "light_map.h"

namespace rest_fast {
namespace {

using namespace heads;

constexpr float kFar = 1e30f;
constexpr float kEdge = 1e-6f;  // rounding of an edge function: no gaps between neighbours

// Whole numbers at or above, at or below: a library call for each would be half of the time.
inline int64_t down(float x) {
  const int64_t i = static_cast<int64_t>(x);
  return i - (x < static_cast<float>(i));
}
inline int64_t up(float x) {
  const int64_t i = static_cast<int64_t>(x);
  return i + (x > static_cast<float>(i));
}

// Calls pixel(x, y, e_b, e_c) for each middle in the triangle.
template <class Pixel>
inline void walk(const float* a, const float* b, const float* c, int64_t height, int64_t width,
                 Pixel&& pixel) {
  const float left = std::min({a[0], b[0], c[0]}), right = std::max({a[0], b[0], c[0]});
  const float top = std::min({a[1], b[1], c[1]}), bottom = std::max({a[1], b[1], c[1]});
  if (right < 0 || bottom < 0 || left > width || top > height) return;
  const int64_t x0 = std::max<int64_t>(0, up(left - 0.5f));
  const int64_t x1 = std::min<int64_t>(width - 1, down(right - 0.5f));
  const int64_t y0 = std::max<int64_t>(0, up(top - 0.5f));
  const int64_t y1 = std::min<int64_t>(height - 1, down(bottom - 0.5f));
  if (x0 > x1 || y0 > y1) return;  // many triangles of hair lie between the middles
  const float bx = b[0] - a[0], by = b[1] - a[1], cx = c[0] - a[0], cy = c[1] - a[1];
  const float area = bx * cy - by * cx;
  if (!(std::fabs(area) > 1e-9f)) return;
  const float inverse = 1.0f / area;
  // Both edge functions change by a fixed step along a row: where they, and their rest, can be
  // positive is a run of elements. Found with a margin; the test itself decides.
  const float steps[3] = {cy * inverse, -by * inverse, (by - cy) * inverse};
  float per_step[3];
  for (int k = 0; k < 3; ++k) per_step[k] = std::fabs(steps[k]) > 1e-6f ? 1.0f / steps[k] : 0.0f;
  for (int64_t y = y0; y <= y1; ++y) {
    const float py = y + 0.5f - a[1], px0 = x0 + 0.5f - a[0];
    const float b0 = (px0 * cy - py * cx) * inverse, c0 = (bx * py - by * px0) * inverse;
    const float starts[3] = {b0, c0, 1.0f - b0 - c0};
    float low = 0, high = static_cast<float>(x1 - x0);
    for (int k = 0; k < 3; ++k) {
      const float crossing = -starts[k] * per_step[k];
      if (per_step[k] > 0) low = std::max(low, crossing - 1.0f);
      if (per_step[k] < 0) high = std::min(high, crossing + 1.0f);
    }
    if (!(low <= high)) continue;
    for (int64_t x = x0 + static_cast<int64_t>(low); x <= x0 + static_cast<int64_t>(high); ++x) {
      const float px = x + 0.5f - a[0];
      const float eb = (px * cy - py * cx) * inverse;
      const float ec = (bx * py - by * px) * inverse;
      if (eb < -kEdge || ec < -kEdge || eb + ec > 1.0f + kEdge) continue;
      pixel(x, y, eb, ec);
    }
  }
}

bool inside(const int32_t* corner, int64_t points) {
  for (int k = 0; k < 3; ++k) {
    if (corner[k] < 0 || corner[k] >= points) return false;
  }
  return true;
}

// Distances alone, of points that are already in the map.
void depths(const float* mapped, const int32_t* triangle, int64_t count, int64_t size,
            float* depth) {
  std::fill(depth, depth + size * size, kFar);
  for (int64_t t = 0; t < count; ++t) {
    const int32_t* corner = triangle + 3 * t;
    const float *a = mapped + 3 * corner[0], *b = mapped + 3 * corner[1],
                *c = mapped + 3 * corner[2];
    walk(a, b, c, size, size, [&](int64_t x, int64_t y, float eb, float ec) {
      const float d = a[2] + eb * (b[2] - a[2]) + ec * (c[2] - a[2]);
      float& nearest = depth[y * size + x];
      if (d < nearest) nearest = d;
    });
  }
}

std::vector<float> mapped(const LightMap& map, const float* world, int64_t points) {
  std::vector<float> out(3 * points);
  for (int64_t i = 0; i < points; ++i) store(map.place(load(world + 3 * i)), out.data() + 3 * i);
  return out;
}

}  // namespace

int heads_raster(const HeadsRasterParams& p) {
  if (p.points < 0 || p.triangles < 0 || p.height < 1 || p.width < 1) return kBadShape;
  if (p.screen == nullptr || p.id == nullptr || p.share == nullptr || p.depth == nullptr)
    return kNullAddress;
  for (int64_t t = 0; t < p.triangles; ++t) {
    if (!inside(p.triangle + 3 * t, p.points)) return kBadShape;
  }
  std::fill(p.id, p.id + p.height * p.width, -1);
  std::fill(p.share, p.share + 3 * p.height * p.width, 0.0f);
  // The nearest has the largest 1 / d, which is linear over the picture; shares are left for later.
  std::fill(p.depth, p.depth + p.height * p.width, 0.0f);
  std::vector<float> inverse(p.points);
  for (int64_t i = 0; i < p.points; ++i) inverse[i] = 1.0f / p.screen[3 * i + 2];
  for (int64_t t = 0; t < p.triangles; ++t) {
    const int32_t* corner = p.triangle + 3 * t;
    const float *a = p.screen + 3 * corner[0], *b = p.screen + 3 * corner[1],
                *c = p.screen + 3 * corner[2];
    const float ia = inverse[corner[0]], ib = inverse[corner[1]], ic = inverse[corner[2]];
    if (!(ia > 0 && ib > 0 && ic > 0)) continue;
    walk(a, b, c, p.height, p.width, [&](int64_t x, int64_t y, float eb, float ec) {
      const float near = ia + eb * (ib - ia) + ec * (ic - ia);
      const int64_t i = y * p.width + x;
      if (!(near > p.depth[i])) return;
      p.depth[i] = near;
      p.id[i] = static_cast<int32_t>(t);
    });
  }
  for (int64_t i = 0; i < p.height * p.width; ++i) {
    if (p.id[i] < 0) {
      p.depth[i] = kFar;
      continue;
    }
    const int32_t* corner = p.triangle + 3 * p.id[i];
    const float *a = p.screen + 3 * corner[0], *b = p.screen + 3 * corner[1],
                *c = p.screen + 3 * corner[2];
    const float px = i % p.width + 0.5f - a[0], py = i / p.width + 0.5f - a[1];
    const float bx = b[0] - a[0], by = b[1] - a[1], cx = c[0] - a[0], cy = c[1] - a[1];
    const float inverse = 1.0f / (bx * cy - by * cx);
    const float eb = (px * cy - py * cx) * inverse, ec = (bx * py - by * px) * inverse;
    const float wa = (1.0f - eb - ec) / a[2], wb = eb / b[2], wc = ec / c[2];
    p.depth[i] = 1.0f / (wa + wb + wc);
    p.share[3 * i] = wa * p.depth[i];
    p.share[3 * i + 1] = wb * p.depth[i];
    p.share[3 * i + 2] = wc * p.depth[i];
  }
  return kOk;
}

int heads_shadow(const HeadsShadowParams& p) {
  if (p.points < 0 || p.triangles < 0 || p.size < 1 || !(p.radius > 0)) return kBadShape;
  if (p.world == nullptr || p.depth == nullptr || p.light == nullptr || p.middle == nullptr)
    return kNullAddress;
  for (int64_t t = 0; t < p.triangles; ++t) {
    if (!inside(p.triangle + 3 * t, p.points)) return kBadShape;
  }
  const LightMap map(load(p.light), load(p.middle), p.radius, p.size);
  depths(mapped(map, p.world, p.points).data(), p.triangle, p.triangles, p.size, p.depth);
  return kOk;
}

int heads_occlusion(const HeadsOcclusionParams& p) {
  if (p.points < 0 || p.triangles < 0 || p.size < 1 || p.count < 1 || !(p.radius > 0))
    return kBadShape;
  if (p.world == nullptr || p.normal == nullptr || p.open == nullptr) return kNullAddress;
  for (int64_t t = 0; t < p.triangles; ++t) {
    if (!inside(p.triangle + 3 * t, p.points)) return kBadShape;
  }
  std::vector<float> depth(p.size * p.size), seen(p.points, 0.0f), all(p.points, 1e-6f);
  const float bias = 3.0f * p.radius / p.size;
  for (int64_t k = 0; k < p.count; ++k) {
    const Vec light = load(p.directions + 3 * k);
    const LightMap map(light, load(p.middle), p.radius, p.size);
    const std::vector<float> places = mapped(map, p.world, p.points);
    depths(places.data(), p.triangle, p.triangles, p.size, depth.data());
    for (int64_t i = 0; i < p.points; ++i) {
      const float facing = dot(load(p.normal + 3 * i), light);
      if (facing <= 0) continue;
      all[i] += facing;
      const int64_t x = static_cast<int64_t>(places[3 * i]),
                    y = static_cast<int64_t>(places[3 * i + 1]);
      const bool within = x >= 0 && y >= 0 && x < p.size && y < p.size;
      if (!within || places[3 * i + 2] < depth[y * p.size + x] + bias) seen[i] += facing;
    }
  }
  for (int64_t i = 0; i < p.points; ++i) p.open[i] = std::min(1.0f, seen[i] / all[i]);
  return kOk;
}

}  // namespace rest_fast
